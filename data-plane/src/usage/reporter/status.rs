//! What metrics and heartbeats say of usage reports.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::usage::journal::{Spool, Total};

/// Points in time remembered per journal; beyond it, only the oldest count.
const MAX_NOTES: usize = 1024;

/// Counters of one node's reporter. All counters only grow.
#[derive(Debug)]
pub struct Status {
    /// Whether a stream to the control plane stands.
    pub connected: AtomicBool,
    /// Records that the ledger confirmed.
    pub reported: AtomicU64,
    /// Refusals other than the two below.
    pub rejected: AtomicU64,
    /// Journals that had to begin a new incarnation.
    pub renumbered: AtomicU64,
    /// Streams given up because a newer one reports the same journal.
    pub fenced: AtomicU64,
    /// Times that a journal could not be read.
    pub unreadable: AtomicU64,
    spools: Vec<Arc<Spool>>,
    /// Per journal: finals at some time, oldest first, of those not yet confirmed.
    notes: Mutex<Vec<VecDeque<(u64, Duration)>>>,
}

impl Status {
    pub(super) fn new(spools: &[Arc<Spool>]) -> Self {
        Self {
            connected: AtomicBool::new(false),
            reported: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            renumbered: AtomicU64::new(0),
            fenced: AtomicU64::new(0),
            unreadable: AtomicU64::new(0),
            spools: spools.to_vec(),
            notes: Mutex::new(vec![VecDeque::new(); spools.len()]),
        }
    }

    /// Finals that the ledger has not confirmed.
    pub fn unacked(&self) -> u64 {
        self.spools.iter().map(|spool| spool.unacked()).sum()
    }

    /// Age of the oldest final that the ledger has not confirmed, to about the poll interval; zero
    /// when there is none. Ages begin with this process. `now` is the monotonic clock.
    pub fn oldest_unacked(&self, now: Duration) -> Duration {
        self.note(now);
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = notes.iter().filter_map(|notes| notes.front().map(|(_, at)| *at)).min();
        oldest.map_or(Duration::ZERO, |at| now.saturating_sub(at))
    }

    /// Sums over the journals; `None` when there are none.
    pub fn total(&self) -> Option<&Total> {
        self.spools.first().map(|spool| &**spool.total())
    }

    /// Bytes that the journals may take; 0 when there are none.
    pub fn limit_bytes(&self) -> u64 {
        self.spools.first().map_or(0, |spool| spool.options().limit_bytes)
    }

    /// Whether the journals have passed 80 % of their limit.
    pub fn is_nearly_full(&self) -> bool {
        self.total().is_some_and(|total| total.used() / 4 >= self.limit_bytes() / 5)
    }

    pub(super) fn note(&self, now: Duration) {
        let mut all = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        for (spool, notes) in self.spools.iter().zip(all.iter_mut()) {
            let (finals, acked) = (spool.finals(), spool.mark().acked);
            while notes.front().is_some_and(|(upto, _)| *upto <= acked) {
                notes.pop_front();
            }
            let known = notes.back().map_or(acked, |(upto, _)| *upto);
            if finals <= known {
                continue;
            }
            if notes.len() < MAX_NOTES {
                notes.push_back((finals, now));
            } else if let Some(last) = notes.back_mut() {
                last.0 = finals;
            }
        }
    }
}
