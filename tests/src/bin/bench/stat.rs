//! What a process has used, from /proc.

use std::time::Duration;

use anyhow::{Context, Result};

/// A process that is watched.
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    pid: u32,
    tick: Duration,
}

/// Watches a process; `taskset` has become the program it started.
pub fn worker(pid: u32) -> Result<Stat> {
    let out = std::process::Command::new("getconf").arg("CLK_TCK").output();
    let ticks = out.ok().and_then(|o| String::from_utf8(o.stdout).ok()?.trim().parse().ok()).unwrap_or(100_u32);
    Ok(Stat { pid, tick: Duration::from_secs(1) / ticks })
}

impl Stat {
    /// CPU time of all its threads, user and system.
    pub fn cpu(self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The name may hold anything, but it ends with the last parenthesis.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|f| f.parse::<u32>().ok()).context("/proc/PID/stat");
        Ok(self.tick * (number(11)? + number(12)?))
    }

    /// Bytes of memory it holds.
    pub fn rss(self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.split_whitespace().next().context("no VmRSS")?.parse()?;
        Ok(kib * 1024)
    }
}
