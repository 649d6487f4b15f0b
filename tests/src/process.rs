//! One program under test as a process: its first line, its log, its end.
//!
//! Everything it prints is kept: shown when the test fails, and searched for secrets and panics
//! when it does not.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::wait;

/// Lines shown of a failing program's log.
const SHOWN_LINES: usize = 200;
/// Lines kept; older ones go first.
const KEPT_LINES: usize = 200_000;

/// How to start a program.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Name in messages.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Set in its environment, which is otherwise ours without `POINTSMAN_*` and provider keys.
    pub env: Vec<(String, String)>,
}

impl Launch {
    /// A program of this repository.
    pub fn new(program: &Path, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = vec![program.as_os_str().to_owned()];
        command.extend(args.into_iter().map(Into::into));
        Self { name, command, env: Vec::new() }
    }

    /// The same, on these cores only (`taskset -c`).
    pub fn pinned(mut self, cores: &str) -> Self {
        let mut command: Vec<OsString> = vec!["taskset".into(), "-c".into(), cores.into()];
        command.append(&mut self.command);
        self.command = command;
        self
    }

    /// The same, deaf to this signal, such as "XFSZ".
    pub fn ignoring(mut self, signal: &str) -> Self {
        let script = format!("trap '' {signal}; exec \"$0\" \"$@\"");
        let mut command: Vec<OsString> = vec!["sh".into(), "-c".into(), script.into()];
        command.append(&mut self.command);
        self.command = command;
        self
    }

    /// The same, behind everything else that wants its cores (`nice -n 19`).
    pub fn nice(mut self) -> Self {
        let mut command: Vec<OsString> = vec!["nice".into(), "-n".into(), "19".into()];
        command.append(&mut self.command);
        self.command = command;
        self
    }
}

/// A running (or ended) program. Dropping it kills it.
pub struct Program {
    name: String,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    first: Receiver<String>,
    readers: Vec<JoinHandle<()>>,
    ended: Option<ExitStatus>,
}

impl Program {
    /// Starts it.
    pub fn start(launch: &Launch) -> Result<Self> {
        let (program, args) = launch.command.split_first().context("an empty command")?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("POINTSMAN_") || text.ends_with("_API_KEY") {
                command.env_remove(&name);
            }
        }
        command.envs(launch.env.iter().map(|(k, v)| (k, v)));
        let mut child = command.spawn().with_context(|| format!("starting {}", launch.name))?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let (send_first, first) = sync_channel(1);
        let stdout = child.stdout.take().context("no standard output")?;
        let stderr = child.stderr.take().context("no standard error")?;
        let readers = vec![read_lines(stdout, log.clone(), Some(send_first)), read_lines(stderr, log.clone(), None)];
        Ok(Self { name: launch.name.clone(), child, log, first, readers, ended: None })
    }

    /// The JSON object of its first line of standard output, waited for at most `limit`.
    pub fn first_line(&mut self, limit: Duration) -> Result<Value> {
        let line = match self.first.recv_timeout(limit) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => bail!("{} not ready within {limit:?}\n{}", self.name, self.tail()),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                self.join_readers();
                bail!("{} ended before it was ready: {status}\n{}", self.name, self.tail())
            }
        };
        serde_json::from_str(&line).with_context(|| format!("{}: first line is not JSON: {line}", self.name))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn running(&mut self) -> bool {
        self.ended.is_none() && matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended.is_none() {
            self.child.kill()?;
            self.ended = Some(self.child.wait()?);
            self.join_readers();
        }
        Ok(())
    }

    /// Sends a signal by name: "TERM", "STOP", "CONT".
    pub fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status()?;
        if !status.success() {
            bail!("kill -{name} {}: {status}", self.name);
        }
        Ok(())
    }

    /// Lets its files grow no further than this (`prlimit`); `None`: as they like.
    pub fn limit_files(&self, bytes: Option<u64>) -> Result<()> {
        let soft = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        let (pid, limit) = (self.pid().to_string(), format!("--fsize={soft}:unlimited"));
        let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status()?;
        if !status.success() {
            bail!("prlimit {limit} of {}: {status}", self.name);
        }
        Ok(())
    }

    /// Waits for the end, at most `limit`.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        let what = format!("end of {}", self.name);
        let child = &mut self.child;
        let found = wait::until(limit, &what, || std::future::ready(child.try_wait().ok().flatten())).await;
        let status = found.with_context(|| self.tail())?;
        self.ended = Some(status);
        self.join_readers();
        Ok(status)
    }

    /// Everything it printed but the first line of standard output (which may hold secrets).
    pub fn log(&self) -> Vec<String> {
        self.log.lock().map(|log| log.clone()).unwrap_or_default()
    }

    /// Fails when the log holds one of `secrets`, or a panic.
    pub fn check_log(&self, secrets: &[String]) -> Result<()> {
        for line in self.log() {
            if line.contains("panicked at") {
                bail!("{} panicked: {line}\n{}", self.name, self.tail());
            }
            if let Some(secret) = secrets.iter().find(|s| !s.is_empty() && line.contains(s.as_str())) {
                let shown: String = secret.chars().take(6).collect();
                bail!("{} logged a secret ({shown}...)", self.name);
            }
        }
        Ok(())
    }

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(SHOWN_LINES);
        format!("---- log of {} ----\n{}\n----", self.name, log[from..].join("\n"))
    }

    fn join_readers(&mut self) {
        for reader in self.readers.drain(..) {
            // A reader only reads; it cannot fail in a way that matters here.
            drop(reader.join());
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("could not kill {}: {error:#}", self.name);
        }
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}

fn read_lines(
    from: impl Read + Send + 'static,
    log: Arc<Mutex<Vec<String>>>,
    mut first: Option<std::sync::mpsc::SyncSender<String>>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).into_owned();
            if let Some(first) = first.take() {
                // Nobody waits any more: then nobody needs it.
                drop(first.try_send(line));
                continue;
            }
            if let Ok(mut log) = log.lock() {
                if log.len() >= KEPT_LINES {
                    log.drain(..KEPT_LINES / 2);
                }
                log.push(line);
            }
        }
    })
}
