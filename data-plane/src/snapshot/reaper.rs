//! Where old snapshots go to be freed. Dropping one can take milliseconds, and the request that
//! happens to hold the last `Arc` must not pay for it.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::time::Duration;

use shared::snapshot::Snapshot;

/// How often old snapshots are looked at while some are still in use.
const INTERVAL: Duration = Duration::from_millis(100);
/// Old snapshots kept for requests that still use them. Past it the oldest is let go: the request
/// that drops it last then frees it after all, rather than memory growing without end.
const MOST: usize = 1024;
/// Old snapshots that may wait for the thread. Past it the configuration thread waits, nobody else.
const QUEUE: usize = 64;

/// The thread that frees. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Reaper(SyncSender<Arc<Snapshot>>);

impl Reaper {
    pub(super) fn start() -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel::<Arc<Snapshot>>(QUEUE);
        runtime::task::thread("snapshot-reaper", move || {
            let mut kept: Vec<Arc<Snapshot>> = Vec::new();
            loop {
                let next = if kept.is_empty() {
                    receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
                } else {
                    receiver.recv_timeout(INTERVAL)
                };
                match next {
                    Ok(old) => kept.push(old),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                // The count cannot grow again: the store has let go of it.
                kept.retain(|old| Arc::strong_count(old) > 1);
                if kept.len() > MOST {
                    kept.remove(0);
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Takes over a snapshot that serves no more.
    pub(super) fn take(&self, old: Arc<Snapshot>) {
        // Without the thread it is freed here, on the configuration thread.
        _ = self.0.send(old);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn frees_what_nobody_uses_and_only_that() {
        let reaper = Reaper::start().expect("threads exist");
        let (used, unused) = (Arc::new(Snapshot::default()), Arc::new(Snapshot::default()));
        let (weak_used, weak_unused) = (Arc::downgrade(&used), Arc::downgrade(&unused));
        reaper.take(used.clone());
        reaper.take(unused);
        let patience = Instant::now() + Duration::from_secs(20);
        while weak_unused.strong_count() > 0 && Instant::now() < patience {
            std::thread::yield_now();
        }
        assert_eq!(weak_unused.strong_count(), 0);
        assert_eq!(weak_used.strong_count(), 2);
        drop(used);
        while weak_used.strong_count() > 0 && Instant::now() < patience {
            std::thread::yield_now();
        }
        assert_eq!(weak_used.strong_count(), 0, "the reaper keeps only what others use");
    }
}
