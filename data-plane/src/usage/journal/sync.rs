//! The one thread that makes all journals of a node durable, every few milliseconds.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Spool;

/// Runs until dropped; the last act is one more sync.
#[derive(Debug)]
pub struct Syncer {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Starts the thread; with a zero interval there is none, since writers sync themselves.
    pub(super) fn start(spools: Vec<Arc<Spool>>, interval: Duration) -> io::Result<Self> {
        if interval.is_zero() {
            return Ok(Self { stop: None, thread: None });
        }
        let (stop, stopped) = mpsc::sync_channel(0);
        let thread = runtime::task::thread("journal-sync", move || {
            loop {
                let last = stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout);
                for spool in &spools {
                    if let Err(error) = spool.sync() {
                        tracing::error!(journal = %spool.dir().display(), %error, "the usage journal could not be made durable");
                    }
                }
                if last {
                    return;
                }
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was logged there.
            _ = thread.join();
        }
    }
}
