//! What a test needs beyond Rust: PostgreSQL, Python, Node with the official packages,
//! programs of the system. Absent means
//! skipped and said so; with `POINTSMAN_TEST_REQUIRE_ALL=1` it means failed.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Under this switch a skip is a failure.
pub const REQUIRE_ALL: &str = "POINTSMAN_TEST_REQUIRE_ALL";

/// Something optional: there, or the reason why not.
pub type Found<T> = Result<T, String>;

/// `Some` when found; else prints the skip and gives `None`, or panics under [`REQUIRE_ALL`].
pub fn or_skip<T>(what: &str, found: Found<T>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(reason) => {
            assert!(!required(), "{what} is required by {REQUIRE_ALL}: {reason}");
            println!("skipped: {what}: {reason}");
            None
        }
    }
}

/// Whether a skip counts as a failure.
pub fn required() -> bool {
    std::env::var(REQUIRE_ALL).is_ok_and(|v| v == "1")
}

/// URL of a PostgreSQL server on which a test may make and drop its own databases.
pub fn postgres() -> Found<String> {
    let (url, chosen) = match std::env::var("POINTSMAN_TEST_POSTGRES_URL") {
        Ok(url) => (url, true),
        Err(_) => ("postgres://postgres@127.0.0.1:5432/test".to_owned(), false),
    };
    let authority = url.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:5432") };
    let addresses: Vec<SocketAddr> = host.to_socket_addrs().map(Iterator::collect).unwrap_or_default();
    let open = addresses.iter().any(|a| TcpStream::connect_timeout(a, Duration::from_secs(2)).is_ok());
    match (open, chosen) {
        (true, _) => Ok(url),
        (false, true) => Err(format!("nobody listens on {host} (POINTSMAN_TEST_POSTGRES_URL)")),
        (false, false) => Err(format!("nobody listens on {host}; set POINTSMAN_TEST_POSTGRES_URL")),
    }
}

/// A Python interpreter with this package: `POINTSMAN_TEST_PYTHON`, else `python3`.
pub fn python(package: &str) -> Found<PathBuf> {
    let python = std::env::var_os("POINTSMAN_TEST_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let answer = Command::new(&python).args(["-c", &format!("import {package}")]).output();
    match answer {
        Ok(out) if out.status.success() => Ok(python),
        Ok(_) => Err(format!("{} has no package {package}; set POINTSMAN_TEST_PYTHON", python.display())),
        Err(error) => Err(format!("{}: {error}", python.display())),
    }
}

/// A folder whose `node_modules` holds `openai`: `POINTSMAN_TEST_NODE_DIR`, else `tests/sdk/node`.
pub fn node() -> Found<PathBuf> {
    let dir = std::env::var_os("POINTSMAN_TEST_NODE_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/node"), PathBuf::from);
    if let Err(error) = Command::new("node").arg("--version").output() {
        return Err(format!("node: {error}"));
    }
    if dir.join("node_modules/openai/package.json").is_file() {
        return Ok(dir);
    }
    Err(format!("no node_modules/openai in {}; set POINTSMAN_TEST_NODE_DIR", dir.display()))
}

/// The program `prlimit` of util-linux, which changes the limits of a running process.
pub fn prlimit() -> Found<()> {
    Command::new("prlimit").arg("--version").output().map(drop).map_err(|error| format!("prlimit: {error}"))
}

/// The folder with `control-plane` and `data-plane` of the version before this one:
/// `POINTSMAN_TEST_PREVIOUS_DIR`. `.ci/run` builds them from the commit that `.ci/previous` names;
/// `none` says that there is no such commit here (a clone without history), which is no failure.
pub fn previous() -> Option<PathBuf> {
    let dir = std::env::var_os("POINTSMAN_TEST_PREVIOUS_DIR").unwrap_or_default();
    if dir == "none" {
        println!("skipped: the version before: its commit is not in this clone");
        return None;
    }
    let dir = PathBuf::from(dir);
    let there = ["control-plane", "data-plane"].iter().all(|name| dir.join(name).is_file());
    let found = if there { Ok(dir) } else { Err("set POINTSMAN_TEST_PREVIOUS_DIR".to_owned()) };
    or_skip("the version before", found)
}
