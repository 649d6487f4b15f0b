//! Waiting for something that another process does: always with a limit, never for a fixed time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition outside this process is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Calls `look` until it gives `Some`, at most for `limit`; else an error that names `what`.
pub async fn until<T>(limit: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        if started.elapsed() > limit {
            bail!("not within {limit:?}: {what}");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The same for code without a runtime.
pub fn until_blocking<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if started.elapsed() > limit {
            bail!("not within {limit:?}: {what}");
        }
        std::thread::sleep(POLL);
    }
}
