//! Calling cargo, the one that called us.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Runs `cargo ARGUMENTS` at the root with these variables; shows the command; fails when it does.
pub fn run(root: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let shown: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value} ")).collect();
    eprintln!("+ {}cargo {}", shown.concat(), arguments.join(" "));
    let status = command(root).args(arguments).envs(env.iter().copied()).status().context("starting cargo")?;
    if !status.success() {
        bail!("cargo {}: {status}", arguments.first().copied().unwrap_or_default());
    }
    Ok(())
}

/// Whether `cargo NAME` is installed.
pub fn has(root: &Path, name: &str) -> bool {
    command(root).args([name, "--version"]).output().is_ok_and(|out| out.status.success())
}

/// Where cargo puts what it builds.
pub fn target(root: &Path) -> Result<PathBuf> {
    let out = command(root).args(["metadata", "--format-version", "1", "--no-deps"]).output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).context("cargo metadata")?;
    let target = metadata["target_directory"].as_str().context("cargo metadata names no target folder")?;
    Ok(PathBuf::from(target))
}

/// `cargo`, at the root.
pub fn command(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}
