//! What requests tell about themselves once they are over: metrics always, access log and spans when
//! somebody listens. A request adds to its thread's tally and goes on; one thread of the node collects
//! tallies. Whole observations, which logs and spans need, are dropped and counted when that thread
//! falls behind, never waited for.

pub mod metrics;
pub mod spans;
mod tally;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use router::{Plan, Slot};
use shared::failure::FailureKind;
use shared::proto;
use shared::snapshot::{Offering, Provider};

use crate::headers::Trace;
use tally::Tally;

/// Observations that may wait per thread.
const MOST_WAITING: usize = 16_384;

/// How often they are collected.
pub const COLLECT_EVERY: Duration = Duration::from_millis(100);

/// A request that is over, as long as it is at hand.
pub struct Observed<'a> {
    /// "chat_completions".
    pub endpoint: &'static str,
    /// What was decided.
    pub plan: &'a Plan,
    /// What was tried.
    pub attempts: &'a [Attempt],
    /// The caller's trace.
    pub trace: Option<&'a Trace>,
}

/// One attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Its place in the plan.
    pub slot: Slot,
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
    /// One that begins at the monotonic time `began`.
    pub fn begun(slot: Slot, began: Duration) -> Self {
        Self { slot, began, ended: None, status: 0, failure: None }
    }

    /// How long it took, microseconds.
    pub fn micros(&self) -> u64 {
        let took = self.ended.map_or(Duration::ZERO, |ended| ended.saturating_sub(self.began));
        u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
    }
}

/// One request, over, for logs and spans.
#[derive(Debug)]
pub struct Observation {
    /// As written to the journal.
    pub record: proto::UsageRecord,
    /// What was tried, and of whom it was asked.
    pub attempts: Vec<(Attempt, Arc<Provider>, Arc<Offering>)>,
    /// The caller's trace.
    pub trace: Option<Trace>,
}

/// A thread's way to the collector. The lock is the thread's own, but for a moment ten times a
/// second.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    /// Whether logs or spans want whole observations.
    whole: bool,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    tally: Tally,
    observations: Vec<Observation>,
    dropped: u64,
}

impl Queue {
    /// Of a thread. `whole`: somebody wants more than metrics.
    pub fn new(whole: bool) -> Self {
        Self { whole, waiting: Arc::default() }
    }

    /// Leaves a request, with its record as it was written.
    pub fn push(&self, record: &proto::UsageRecord, request: Observed<'_>) {
        let mut waiting = self.lock();
        waiting.tally.add(record, &request);
        if !self.whole {
            return;
        }
        if waiting.observations.len() >= MOST_WAITING {
            waiting.dropped += 1;
            return;
        }
        let asked = |attempt: &Attempt| {
            let (candidate, _) = request.plan.at(attempt.slot)?;
            Some((attempt.clone(), candidate.provider.clone(), candidate.offering.clone()))
        };
        let attempts = request.attempts.iter().filter_map(asked).collect();
        waiting.observations.push(Observation { record: record.clone(), attempts, trace: request.trace.cloned() });
    }

    /// Takes all that waits, and how many observations were dropped since the last time.
    fn take(&self) -> (Tally, Vec<Observation>, u64) {
        let mut waiting = self.lock();
        let tally = waiting.tally.take();
        (tally, std::mem::take(&mut waiting.observations), std::mem::take(&mut waiting.dropped))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who hears of requests besides metrics.
#[derive(Debug, Clone, Copy)]
pub struct Telling {
    /// A line per request.
    pub access_log: bool,
    /// Spans, to whatever exporter there is.
    pub spans: bool,
}

/// Collects what waits: counts it, and tells logs and spans.
pub fn collect(queues: &[Queue], metrics: &mut metrics::Metrics, telling: Telling) {
    for queue in queues {
        let (tally, observations, dropped) = queue.take();
        metrics.add(tally);
        metrics.lost(dropped);
        for observation in &observations {
            if telling.access_log {
                log(observation);
            }
            if telling.spans {
                spans::export(observation);
            }
        }
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
fn log(observation: &Observation) {
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
