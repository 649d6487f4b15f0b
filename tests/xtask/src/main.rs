//! `cargo xtask`: the commands of a developer of this repository. Nothing to install but Rust.
//!
//! It only starts other programs and generates files; what is checked is decided by those.

mod cargo;
mod check;
mod explain;
mod generate;
// Compiled here too, so that `test` announces by the same rules by which the tests skip.
#[expect(dead_code, reason = "the tests use the rest of it")]
#[path = "../../src/require.rs"]
mod require;
mod test;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The commands of a developer of Pointsman.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that is judged without running the programs: format, clippy, documentation, the
    /// house rules (tests/tidy.rs), generated files, and `cargo deny` when it is installed.
    Check,
    /// All tests: unit, whole house, the official Python and Node packages. First lists what is
    /// skipped and why; with POINTSMAN_TEST_REQUIRE_ALL=1 that is a failure. Runs nextest when it
    /// is installed, else `cargo test`.
    Test {
        /// Only tests whose name contains this.
        filter: Option<String>,
    },
    /// Starts both planes with the scripted provider connected, for playing. Ends with Ctrl-C.
    Run,
    /// Release build, then the benchmark: direct, a bare pass-through and the data plane, on the
    /// same upstream in interleaved rounds. See tests/src/bin/bench.rs.
    Bench {
        /// Passed on, for example `--quick`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs the golden tests with UPDATE_GOLDENS=1: what they get becomes what they expect. Read the
    /// difference before committing it.
    Accept,
    /// Writes every file that is made from another: code from proto/, documents that the programs
    /// print about themselves.
    Gen {
        /// Writes nothing; fails when a file would change.
        #[arg(long)]
        check: bool,
    },
    /// Shows what a node would decide about one request, and why, with every provider healthy.
    Explain {
        /// JSON: kind to objects as REST lists them, at least `workspace` (see explain.rs).
        snapshot: PathBuf,
        /// The body of the request.
        request: PathBuf,
    },
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    match Arguments::parse().command {
        Command::Check => check::run(&root),
        Command::Test { filter } => test::run(&root, filter.as_deref()),
        Command::Run => cargo::run(&root, &["run", "--quiet", "-p", "tests", "--bin", "play"], &[]),
        Command::Bench { arguments } => {
            let mut command = vec!["run", "--release", "-p", "tests", "--bin", "bench", "--"];
            command.extend(arguments.iter().map(String::as_str));
            cargo::run(&root, &command, &[])
        }
        Command::Accept => {
            cargo::run(&root, &["test", "--workspace", "--exclude", "tests"], &[("UPDATE_GOLDENS", "1")])
        }
        Command::Gen { check } => generate::run(&root, check),
        Command::Explain { snapshot, request } => explain::run(&snapshot, &request),
    }
}
