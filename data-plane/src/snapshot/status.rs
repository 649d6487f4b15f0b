//! What is going on with configuration, as numbers that the admin port and the metrics read while
//! the configuration thread writes them. Nothing here decides anything.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use shared::snapshot::Rejection;

/// Upper bounds of the convergence histogram, in milliseconds; one more bucket takes the rest.
pub const CONVERGENCE_BOUNDS_MS: [u64; 12] = [5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000];

/// Counters and gauges of snapshots on this node. All counters start at 0 with the process.
#[derive(Debug, Default)]
pub struct Status {
    /// The control plane's stream is open and has said Welcome.
    pub connected: AtomicBool,
    /// Wall clock in ms when the control plane was last heard; 0 = never.
    pub last_contact_ms: AtomicI64,
    /// Streams opened, the first one included.
    pub connects: AtomicU64,
    /// Tries to open a stream that failed.
    pub connect_failures: AtomicU64,
    /// Updates that serve.
    pub applied: AtomicU64,
    /// Updates that were refused.
    pub rejected: AtomicU64,
    /// Updates that took longer than the time budget to check.
    pub slow: AtomicU64,
    /// Messages that belonged to no open update, and were ignored.
    pub ignored: AtomicU64,
    /// Writes of state to disk that failed.
    pub disk_failures: AtomicU64,
    /// Started from an older state, because the newest one kept ending the process.
    pub degraded: AtomicBool,
    /// How long the last update took from receipt to serving, in microseconds.
    pub last_apply_us: AtomicU64,
    /// Bytes of all resources held.
    pub held_bytes: AtomicU64,
    convergence: [AtomicU64; CONVERGENCE_BOUNDS_MS.len() + 1],
    convergence_sum_ms: AtomicU64,
    last_rejection: Mutex<Option<LastRejection>>,
}

/// The most recent refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastRejection {
    /// Scope and revision that were refused.
    pub scope: String,
    /// Its revision.
    pub revision: u64,
    /// Why.
    pub rejection: Rejection,
    /// Wall clock in ms.
    pub at_ms: i64,
}

/// The convergence histogram: milliseconds from commit at the control plane to serving here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Convergence {
    /// Observations per bucket of [`CONVERGENCE_BOUNDS_MS`], not cumulative; the last one takes the
    /// rest.
    pub buckets: Vec<u64>,
    /// Sum of all observations in ms.
    pub sum_ms: u64,
}

impl Status {
    /// The most recent refusal, if any.
    pub fn last_rejection(&self) -> Option<LastRejection> {
        self.last_rejection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The convergence histogram as of now.
    pub fn convergence(&self) -> Convergence {
        Convergence {
            buckets: self.convergence.iter().map(|b| b.load(Ordering::Relaxed)).collect(),
            sum_ms: self.convergence_sum_ms.load(Ordering::Relaxed),
        }
    }

    pub(super) fn note_rejection(&self, scope: &str, revision: u64, rejection: &Rejection, at_ms: i64) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
        let last = LastRejection { scope: scope.to_owned(), revision, rejection: rejection.clone(), at_ms };
        *self.last_rejection.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
    }

    /// Counts one change that serves now. Clocks of two machines differ: a negative time counts as 0.
    pub(super) fn note_convergence(&self, committed_at_ms: i64, now_ms: i64) {
        if committed_at_ms <= 0 {
            return;
        }
        let took = u64::try_from(now_ms.saturating_sub(committed_at_ms)).unwrap_or(0);
        let bucket = CONVERGENCE_BOUNDS_MS.partition_point(|bound| *bound < took);
        if let Some(bucket) = self.convergence.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.convergence_sum_ms.fetch_add(took, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn convergence_lands_in_its_bucket() {
        let status = Status::default();
        for (committed, now) in [(1000, 1005), (1000, 1006), (1000, 900), (1000, 1_000_000), (0, 50)] {
            status.note_convergence(committed, now);
        }
        let seen = status.convergence();
        assert_eq!((seen.buckets[0], seen.buckets[1], seen.buckets[12]), (2, 1, 1));
        assert_eq!(seen.buckets.iter().sum::<u64>(), 4);
        assert_eq!(seen.sum_ms, 5 + 6 + 999_000);
    }
}
