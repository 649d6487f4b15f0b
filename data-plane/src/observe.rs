//! What requests tell about themselves once they are over: metrics, access log, spans. A request
//! leaves one observation in its thread's queue and goes on; one thread of the node collects them.
//! When that thread falls behind, observations are dropped and counted, never waited for.

pub mod metrics;
pub mod spans;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use router::Slot;
use shared::failure::FailureKind;
use shared::proto;
use shared::snapshot::{Offering, Provider};

use crate::headers::Trace;

/// Observations that may wait per thread.
const MOST_WAITING: usize = 16_384;

/// How often they are collected.
pub const COLLECT_EVERY: Duration = Duration::from_millis(100);

/// One request, over.
#[derive(Debug)]
pub struct Observation {
    /// As written to the journal.
    pub record: proto::UsageRecord,
    /// What was tried.
    pub attempts: Vec<Attempt>,
    /// The caller's trace.
    pub trace: Option<Trace>,
}

/// One attempt.
#[derive(Debug)]
pub struct Attempt {
    /// Its place in the plan.
    pub slot: Slot,
    /// Whom it asked.
    pub provider: Arc<Provider>,
    /// For what.
    pub offering: Arc<Offering>,
    /// Monotonic.
    pub began: Duration,
    /// Monotonic; `None` while it runs.
    pub ended: Option<Duration>,
    /// The provider's status; 0 = none came.
    pub status: u16,
    /// How it failed.
    pub failure: Option<FailureKind>,
}

impl Attempt {
    /// How long it took, microseconds.
    pub fn micros(&self) -> u64 {
        let took = self.ended.map_or(Duration::ZERO, |ended| ended.saturating_sub(self.began));
        u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
    }
}

/// A thread's way to the collector. The lock is the thread's own, but for a moment ten times a
/// second.
#[derive(Debug, Clone, Default)]
pub struct Queue(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    observations: Vec<Observation>,
    dropped: u64,
}

impl Queue {
    /// Leaves one; drops it when too many wait.
    pub fn push(&self, observation: Observation) {
        let mut waiting = self.lock();
        if waiting.observations.len() < MOST_WAITING {
            waiting.observations.push(observation);
        } else {
            waiting.dropped += 1;
        }
    }

    /// Takes all, and how many were dropped since the last time.
    pub fn take(&self) -> (Vec<Observation>, u64) {
        let mut waiting = self.lock();
        (std::mem::take(&mut waiting.observations), std::mem::take(&mut waiting.dropped))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts of what never became a request. Rare, so they may be shared.
#[derive(Debug, Default)]
pub struct Counters {
    refused: Mutex<HashMap<&'static str, u64>>,
    connections: AtomicU64,
}

impl Counters {
    /// A request was refused with this code.
    pub fn refused(&self, code: &'static str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry(code).or_default() += 1;
    }

    /// A connection was closed unread, because there were too many.
    pub fn refused_connections(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Refusals by code.
    pub fn refusals(&self) -> Vec<(&'static str, u64)> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.iter().map(|(code, count)| (*code, *count)).collect()
    }

    /// Connections closed unread.
    pub fn connections_refused(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

/// One line per request, at level `info` under the target `access`. Never a body, a key or a header.
pub fn log(observation: &Observation) {
    let record = &observation.record;
    let id = <[u8; 16]>::try_from(record.request_id.as_slice()).map(u128::from_be_bytes).unwrap_or_default();
    tracing::info!(
        target: "access",
        request = %shared::ids::RequestId::from_u128(id),
        workspace = record.workspace_id,
        key = record.api_key_id,
        endpoint = record.endpoint,
        requested = record.requested_model,
        provider = record.provider,
        model = record.model,
        status = record.status,
        code = record.code,
        outcome = record.outcome().as_str_name(),
        attempts = record.attempts,
        total_us = record.total_us,
        upstream_us = record.upstream_us,
        cost_nanos = record.cost_nanos,
    );
}
