//! House rules that no compiler knows: walls between crates, documented modules, file sizes, no
//! orphans. Every rule reports all its violations at once.
//!
//! It reads the working tree, not git: what is generated or ignored is left out by folder name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Crates that decide or translate; they can name nothing that does I/O.
const PURE: [&str; 4] = ["shared", "data-plane/router", "data-plane/providers", "control-plane/compiler"];
/// What a pure crate never names, in its manifest or its sources.
const IO: [&str; 12] = [
    "tokio",
    "axum",
    "tonic",
    "hyper",
    "sqlx",
    "reqwest",
    "socket2",
    "rustls",
    "hyper-util",
    "tokio-rustls",
    "opentelemetry",
    "runtime",
];
/// A file above this explains itself with a line that starts with "//! Size:".
const MAX_LINES: usize = 600;
/// Folders that hold nothing of ours.
const SKIPPED: [&str; 7] = [".git", "target", "node_modules", "__pycache__", "pointsman-data", ".venv", "dist"];
/// Written by `cargo xtask gen`, or long by nature.
const GENERATED: [&str; 3] = ["shared/src/proto.rs", "data-plane/src/rpc.rs", "control-plane/src/rpc.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

/// All files, as (path from the root with forward slashes, full path).
fn files() -> Vec<(String, PathBuf)> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a readable folder") {
            let entry = entry.expect("a readable entry");
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let kind = entry.file_type().expect("a file type");
            if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
                folders.push(path);
            } else if kind.is_file() {
                let short = path.strip_prefix(&root).expect("under the root").to_string_lossy().replace('\\', "/");
                found.push((short, path));
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(String, String)> {
    files()
        .into_iter()
        .filter(|(short, _)| short.ends_with(".rs"))
        .map(|(short, path)| (short, std::fs::read_to_string(path).expect("UTF-8")))
        .collect()
}

fn manifest(crate_path: &str) -> String {
    std::fs::read_to_string(root().join(crate_path).join("Cargo.toml")).expect("a manifest")
}

/// Names in a manifest's dependency tables, test-only ones included.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.trim_matches(['[', ']']).ends_with("dependencies");
        } else if inside && let Some((name, _)) = line.split_once(['=', '.']) {
            names.insert(name.trim().to_owned());
        }
    }
    names
}

/// A source without comments and text in quotes: what is left names only code.
fn code(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    for line in source.lines() {
        let mut quoted = false;
        let mut characters = line.chars().peekable();
        while let Some(c) = characters.next() {
            match c {
                '\\' if quoted => {
                    characters.next();
                }
                '"' => quoted = !quoted,
                '/' if !quoted && characters.peek() == Some(&'/') => break,
                c if !quoted => out.push(c),
                _ => {}
            }
        }
        out.push('\n');
    }
    out
}

#[track_caller]
fn none(rule: &str, violations: Vec<String>) {
    assert!(violations.is_empty(), "{rule}:\n  {}\n", violations.join("\n  "));
}

#[test]
fn pure_crates_name_nothing_that_does_io() {
    let mut bad = Vec::new();
    for krate in PURE {
        let named = dependencies(&manifest(krate));
        bad.extend(IO.iter().filter(|io| named.contains(**io)).map(|io| format!("{krate}/Cargo.toml names {io}")));
    }
    for (short, source) in sources() {
        let Some(krate) = PURE.iter().find(|c| short.starts_with(&format!("{c}/src/"))) else { continue };
        let code = code(&source);
        for io in IO.map(|io| io.replace('-', "_")) {
            if code.contains(&format!("{io}::")) {
                bad.push(format!("{short} ({krate} is pure) names {io}"));
            }
        }
        for io in ["std::fs", "TcpStream", "TcpListener", "UdpSocket", "std::env", "thread::", "SystemTime", "Instant"]
        {
            // Tests of a pure crate may read their cases.
            if code.contains(io) && !short.contains("test") && !code.contains("mod tests") {
                bad.push(format!("{short} ({krate} is pure) names {io}"));
            }
        }
    }
    none("pure crates do no I/O", bad);
}

#[test]
fn planes_meet_only_in_proto_and_shared() {
    let walls: [(&str, &[&str]); 6] = [
        ("data-plane", &["control-plane", "compiler", "sqlx", "axum"]),
        ("control-plane", &["data-plane", "providers", "reqwest"]),
        ("data-plane/router", &["providers", "compiler", "data-plane", "control-plane"]),
        ("data-plane/providers", &["router", "compiler", "data-plane", "control-plane"]),
        ("control-plane/compiler", &["router", "providers", "data-plane", "control-plane"]),
        ("shared", &["router", "providers", "compiler", "data-plane", "control-plane"]),
    ];
    let mut bad = Vec::new();
    for (krate, forbidden) in walls {
        let named = dependencies(&manifest(krate));
        bad.extend(forbidden.iter().filter(|f| named.contains(**f)).map(|f| format!("{krate} depends on {f}")));
    }
    none("walls between crates", bad);
}

#[test]
fn versions_stand_in_the_workspace() {
    let mut bad = Vec::new();
    for (short, path) in files() {
        if !short.ends_with("Cargo.toml") || short == "Cargo.toml" || short.starts_with("tests/xtask") {
            continue;
        }
        let text = std::fs::read_to_string(path).expect("UTF-8");
        let mut inside = false;
        for line in text.lines() {
            if line.starts_with('[') {
                inside = line.trim_matches(['[', ']']).ends_with("dependencies");
            } else if inside && line.contains('=') && !line.contains("workspace = true") {
                bad.push(format!("{short}: {line}"));
            }
        }
    }
    none("versions live in [workspace.dependencies]", bad);
}

#[test]
fn every_module_says_what_it_is_for() {
    let undocumented = sources()
        .into_iter()
        .filter(|(short, _)| !short.contains("/fixtures/") && !short.contains("/cases/"))
        .filter(|(_, source)| !source.trim_start().starts_with("//!"))
        .map(|(short, _)| short);
    none("a module opens with //!", undocumented.collect());
}

#[test]
fn modules_have_one_form() {
    let bad = files().into_iter().map(|(short, _)| short).filter(|short| short.ends_with("/mod.rs"));
    none("foo.rs beside foo/, no mod.rs", bad.collect());
}

#[test]
fn long_files_explain_themselves() {
    let bad = sources()
        .into_iter()
        .filter(|(short, _)| !GENERATED.contains(&short.as_str()))
        .filter(|(_, source)| source.lines().count() > MAX_LINES)
        .filter(|(_, source)| !source.lines().take(40).any(|line| line.starts_with("//! Size:")))
        .map(|(short, source)| format!("{short}: {} lines", source.lines().count()));
    none("above 600 lines a file has a line \"//! Size: why\"", bad.collect());
}

#[test]
fn nothing_is_left_for_later() {
    let marks = [
        concat!("todo", "!("),
        concat!("#[", "ignore"),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("//! place", "holder"),
    ];
    let mut bad = Vec::new();
    for (short, source) in sources() {
        for (number, line) in source.lines().enumerate() {
            bad.extend(marks.iter().filter(|m| line.contains(**m)).map(|m| format!("{short}:{}: {m}", number + 1)));
        }
    }
    none("no unfinished work in the tree", bad);
}

#[test]
fn lints_are_inherited() {
    let mut bad = Vec::new();
    for (short, path) in files() {
        if !short.ends_with("Cargo.toml") || short == "Cargo.toml" {
            continue;
        }
        let text = std::fs::read_to_string(path).expect("UTF-8");
        if !text.contains("[lints]\nworkspace = true") && !text.contains("# lints:") {
            bad.push(short);
        }
    }
    none("[lints] workspace = true, or own lints with a comment \"# lints:\"", bad);
}

/// Fixtures, cases and goldens that no source names are dead weight. A source names a file by its
/// name, its stem, or a folder above it that is read as a whole.
#[test]
fn no_orphan_fixtures() {
    let text: String = sources().into_iter().map(|(_, source)| source).collect();
    let folders = ["fixtures", "cases", "goldens"];
    let mut bad = Vec::new();
    for (short, _) in files() {
        let parts: Vec<&str> = short.split('/').collect();
        let Some(at) = parts.iter().position(|p| folders.contains(p)) else { continue };
        let own = parts[at + 1..].iter().flat_map(|p| [*p, p.split('.').next().unwrap_or(p)]);
        let read_whole = text.contains(&format!("\"{}\"", parts[at])) || text.contains(&format!("/{}\"", parts[at]));
        if !read_whole && !own.into_iter().any(|name| text.contains(name)) {
            bad.push(short);
        }
    }
    none("fixtures that no test names", bad);
}

/// A golden without its input, `NAME.EXT.golden` or `NAME.golden` beside nothing called NAME.
#[test]
fn no_orphan_goldens() {
    let all: BTreeSet<String> = files().into_iter().map(|(short, _)| short).collect();
    let orphans = all.iter().filter(|short| short.ends_with(".golden")).filter(|golden| {
        let stem = golden.trim_end_matches(".golden");
        !all.contains(stem) && !all.iter().any(|f| f != *golden && f.starts_with(&format!("{stem}.")))
    });
    none("goldens without a case", orphans.cloned().collect());
}

#[test]
fn links_in_documents_resolve() {
    let all: BTreeMap<String, PathBuf> = files().into_iter().collect();
    let mut bad = Vec::new();
    for (short, path) in all.iter().filter(|(short, _)| short.ends_with(".md")) {
        let text = std::fs::read_to_string(path).expect("UTF-8");
        let folder = path.parent().expect("a folder");
        let mut fenced = false;
        for line in text.lines() {
            fenced ^= line.trim_start().starts_with("```");
            for target in line.split("](").skip(1).filter(|_| !fenced).filter_map(|rest| rest.split(')').next()) {
                let target = target.split(['#', ' ']).next().unwrap_or_default();
                let outside = target.contains("://") || target.starts_with("mailto:") || target.is_empty();
                if !outside && !folder.join(target).exists() {
                    bad.push(format!("{short}: {target}"));
                }
            }
        }
    }
    none("links that lead nowhere", bad);
}

/// Paths of one machine, keys, and other things that belong to nobody else.
#[test]
fn nothing_of_one_machine() {
    let marks = [concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/home", "/"), concat!("C:", "\\Users")];
    let keys = [concat!("BEGIN ", "PRIVATE KEY"), concat!("BEGIN EC ", "PRIVATE KEY")];
    let mut bad = Vec::new();
    for (short, path) in files() {
        // A binary file, or one that is only data of the outside world.
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        for (number, line) in text.lines().enumerate() {
            let found = marks.iter().chain(&keys).filter(|m| line.contains(**m));
            bad.extend(found.map(|m| format!("{short}:{}: {m}", number + 1)));
        }
    }
    none("words that must not be in the tree", bad);
}

#[test]
fn code_drops_comments_and_text() {
    assert_eq!(code("a \"b // c\" d // e\nf"), "a  d \nf\n");
}
