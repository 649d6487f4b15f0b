//! `cargo xtask explain`: the router's own account of one decision, from files.

use std::path::Path;

use anyhow::{Context, Result};

use crate::cargo;

/// Runs `pointsman explain`, which decides with the same function as a node.
pub fn run(root: &Path, snapshot: &Path, request: &Path, more: &[String]) -> Result<()> {
    let snapshot = absolute(snapshot)?;
    let request = absolute(request)?;
    let mut arguments = vec!["run", "--quiet", "-p", "pointsman", "--", "explain", &snapshot, &request];
    arguments.extend(more.iter().map(String::as_str));
    cargo::run(root, &arguments, &[])
}

fn absolute(path: &Path) -> Result<String> {
    let path = path.canonicalize().with_context(|| format!("{}", path.display()))?;
    Ok(path.to_string_lossy().into_owned())
}
