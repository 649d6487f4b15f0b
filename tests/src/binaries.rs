//! Where the programs under test are: built once by cargo, or taken from `POINTSMAN_BIN_DIR`.
//!
//! Cargo tells a test only about binaries of its own package, so the harness asks cargo itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// The packages whose programs the tests start.
pub const PACKAGES: [&str; 3] = ["pointsman", "control-plane", "data-plane"];

static DIR: OnceLock<Result<PathBuf, String>> = OnceLock::new();

/// Full path of a program, built if need be in the profile of the running test.
pub fn program(name: &str) -> Result<PathBuf> {
    let dir = DIR.get_or_init(|| locate().map_err(|e| format!("{e:#}")));
    let dir = dir.as_ref().map_err(|e| anyhow::anyhow!("{e}"))?;
    let path = dir.join(name);
    if !path.is_file() {
        bail!("no program {}", path.display());
    }
    Ok(path)
}

/// Top folder of the repository.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

fn locate() -> Result<PathBuf> {
    // Empty is how a shell says "not this one".
    if let Some(dir) = std::env::var_os("POINTSMAN_BIN_DIR").filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir));
    }
    let profile_dir = profile_dir()?;
    let target = profile_dir.parent().context("the test is not inside a target folder")?;
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(repository()).args(["build", "--quiet", "--target-dir"]).arg(target);
    for package in PACKAGES {
        build.args(["-p", package]);
    }
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let status = build.status().context("starting cargo")?;
    if !status.success() {
        bail!("building the programs under test: {status}");
    }
    Ok(profile_dir)
}

/// `target/debug` of a test in `target/debug/deps`, or of a program in `target/debug`.
fn profile_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let dir = exe.parent().context("a program without a folder")?;
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    Ok(dir.to_path_buf())
}
