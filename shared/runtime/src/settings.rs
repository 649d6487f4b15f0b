//! Settings from the command line, else the environment, else a TOML file, else defaults. The file
//! is turned into arguments that stand before the real ones, so that there is one parser and one
//! list of settings: the program's `--help`.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::Command;
use toml::Value;

/// What is wrong with a settings file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFile {
    path: PathBuf,
    key: String,
    message: String,
}

impl fmt::Display for BadFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.path.display(), self.message),
            key => write!(f, "{}: {key}: {}", self.path.display(), self.message),
        }
    }
}

impl std::error::Error for BadFile {}

/// The arguments of this process with those of the file `--config` (or `POINTSMAN_CONFIG`) put
/// before them. Keys are the long options' names with underscores; an option that the environment
/// sets is left to it. `command` must override earlier values by later ones
/// (`args_override_self`).
///
/// # Errors
/// When the file cannot be read, is not TOML, or holds a key that is no setting.
pub fn arguments(command: &Command) -> Result<Vec<OsString>, BadFile> {
    let given: Vec<OsString> = std::env::args_os().collect();
    let Some(path) = config_path(&given) else { return Ok(given) };
    let read = std::fs::read_to_string(&path);
    let text = read.map_err(|e| BadFile { path: path.clone(), key: String::new(), message: e.to_string() })?;
    let in_environment = |name: &str| std::env::var_os(name).is_some();
    let (command, behind) = place(command, &given);
    let from_file = parse(&path, &text, command, in_environment)?;
    let mut all = given;
    all.splice(behind..behind, from_file);
    Ok(all)
}

/// Whose settings they are, and behind how many arguments they go: behind the program's name and that
/// of its subcommand, when the first argument is one.
fn place<'a>(command: &'a Command, given: &[OsString]) -> (&'a Command, usize) {
    let named = given.get(1).and_then(|first| command.find_subcommand(first));
    match named {
        Some(subcommand) => (subcommand, 2),
        None => (command, given.len().min(1)),
    }
}

fn config_path(given: &[OsString]) -> Option<PathBuf> {
    let mut arguments = given.iter().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--config") => return arguments.next().map(PathBuf::from),
            Some(text) => match text.strip_prefix("--config=") {
                Some(path) => return Some(PathBuf::from(path)),
                None => continue,
            },
            None => continue,
        }
    }
    std::env::var_os("POINTSMAN_CONFIG").map(PathBuf::from)
}

fn parse(
    path: &Path,
    text: &str,
    command: &Command,
    in_environment: impl Fn(&str) -> bool,
) -> Result<Vec<OsString>, BadFile> {
    let bad = |key: &str, message: String| BadFile { path: path.to_owned(), key: key.to_owned(), message };
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| bad("", e.to_string()))?;
    let mut arguments = Vec::new();
    for (key, value) in &table {
        let option = key.replace('_', "-");
        let known = command.get_arguments().find(|a| a.get_long() == Some(option.as_str()));
        let Some(known) = known.filter(|_| key != "config") else {
            return Err(bad(key, "there is no such setting; see --help".into()));
        };
        if known.get_env().and_then(|name| name.to_str()).is_some_and(&in_environment) {
            continue;
        }
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Boolean(flag) => flag.to_string(),
            Value::Array(items) => {
                let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
                texts.ok_or_else(|| bad(key, "must be a list of texts".into()))?.join(",")
            }
            Value::Datetime(_) | Value::Table(_) => {
                return Err(bad(key, "must be a text, a number, true or false, or a list of texts".into()));
            }
        };
        arguments.push(format!("--{option}={text}").into());
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    #[test]
    fn a_file_becomes_arguments() {
        let command = Command::new("x")
            .arg(Arg::new("listen").long("listen"))
            .arg(Arg::new("data_dir").long("data-dir").env("X_DATA_DIR"))
            .arg(Arg::new("labels").long("labels"));
        let read = |text: &str| parse(Path::new("f.toml"), text, &command, |name| name == "X_DATA_DIR");
        let good = read("listen = \"127.0.0.1:1\"\ndata_dir = \"/elsewhere\"\nlabels = [\"a=1\", \"b=2\"]\n");
        assert_eq!(good, Ok(vec!["--labels=a=1,b=2".into(), "--listen=127.0.0.1:1".into()]));
        for (text, message) in [
            ("lisen = 1", "f.toml: lisen: there is no such setting; see --help"),
            ("listen = {}", "f.toml: listen: must be a text, a number, true or false, or a list of texts"),
            ("labels = [1]", "f.toml: labels: must be a list of texts"),
        ] {
            assert_eq!(read(text).map_err(|e| e.to_string()), Err(message.to_owned()));
        }
        assert!(read("listen = ").is_err());
    }

    #[test]
    fn a_subcommand_takes_the_settings() {
        let command = Command::new("x").subcommand(Command::new("serve"));
        let given = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let at = |words: &[&str]| {
            let (command, behind) = place(&command, &given(words));
            (command.get_name().to_owned(), behind)
        };
        assert_eq!(at(&["x", "serve", "--config", "f"]), ("serve".to_owned(), 2));
        assert_eq!(at(&["x", "--config", "f"]), ("x".to_owned(), 1));
    }
}
