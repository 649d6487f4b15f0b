//! `cargo xtask check`: every judgement that needs no running program. All of them are made, so
//! that one call shows everything; the first failure does not hide the next.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{cargo, generate};

/// Fails when any of the checks does, and names those.
pub fn run(root: &Path) -> Result<()> {
    let mut failed = Vec::new();
    let mut note = |name: &'static str, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("{name}: {error:#}");
            failed.push(name);
        }
    };
    note("fmt", cargo::run(root, &["fmt", "--all", "--check"], &[]));
    note(
        "clippy",
        cargo::run(root, &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"], &[]),
    );
    let documentation = ["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"];
    note("doc", cargo::run(root, &documentation, &[("RUSTDOCFLAGS", "-D warnings")]));
    note("gen", generate::run(root, true));
    note("tidy", cargo::run(root, &["test", "--quiet", "-p", "tests", "--test", "tidy"], &[]));
    if cargo::has(root, "deny") {
        note(
            "deny",
            cargo::run(
                root,
                &["deny", "--log-level", "error", "--all-features", "check", "bans", "licenses", "sources"],
                &[],
            ),
        );
        // Known vulnerabilities are a repository elsewhere; what is here can be judged without it.
        match cargo::run(root, &["deny", "fetch", "db"], &[]) {
            Ok(()) => {
                let advisories =
                    ["deny", "--log-level", "error", "--all-features", "check", "--disable-fetch", "advisories"];
                note("advisories", cargo::run(root, &advisories, &[]));
            }
            Err(_) => eprintln!("skipped: advisories: their database cannot be fetched"),
        }
    } else {
        eprintln!("skipped: cargo deny: not installed");
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
