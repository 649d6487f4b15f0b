//! `cargo xtask test`: says what will be skipped, builds once, and hands over to the runner, whose
//! summary is the last thing printed.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{cargo, require};

/// Runs all tests, or those whose name contains `filter`.
pub fn run(root: &Path, filter: Option<&str>) -> Result<()> {
    let optional = [
        ("PostgreSQL (the store on its second engine)", require::postgres().err()),
        ("Python with openai (tests/sdk/python)", require::python("openai").err()),
        ("Python with schemathesis (the REST contract)", require::python("schemathesis").err()),
        ("Node with openai (tests/sdk/node)", require::node().err()),
        ("prlimit (a full disk)", require::prlimit().err()),
    ];
    let skipped: Vec<String> =
        optional.into_iter().filter_map(|(what, why)| Some(format!("{what}: {}", why?))).collect();
    if !skipped.is_empty() && require::required() {
        bail!("required by {}, and not there:\n  {}", require::REQUIRE_ALL, skipped.join("\n  "));
    }
    if skipped.is_empty() {
        println!("nothing is skipped");
    }
    for line in &skipped {
        println!("skipped: {line}");
    }

    // The programs once, before many tests would each ask cargo for them.
    cargo::run(root, &["build", "-p", "pointsman", "-p", "control-plane", "-p", "data-plane"], &[])?;
    let programs = cargo::target(root)?.join("debug");
    let programs = programs.to_string_lossy().into_owned();
    let env = [("POINTSMAN_BIN_DIR", programs.as_str())];

    if cargo::has(root, "nextest") {
        // nextest runs no documentation tests.
        cargo::run(root, &with(&["test", "--quiet", "--workspace", "--doc"], filter), &env)?;
        let runner = ["nextest", "run", "--workspace", "--no-fail-fast", "--config-file", "tests/nextest.toml"];
        return cargo::run(root, &with(&runner, filter), &env);
    }
    cargo::run(root, &with(&["test", "--workspace", "--no-fail-fast"], filter), &env)
}

fn with<'a>(arguments: &[&'a str], filter: Option<&'a str>) -> Vec<&'a str> {
    arguments.iter().copied().chain(filter).collect()
}
