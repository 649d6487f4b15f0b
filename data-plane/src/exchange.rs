//! One admitted request from its intent to its final record. However it ends (answered, failed, cut,
//! caller gone, panic), it is settled exactly once.

use std::sync::Arc;
use std::time::Duration;

use providers::{Dialect, Usage};
use router::{Attempts, Now, Plan, Slot};
use runtime::clock;
use shared::failure::Failure;
use shared::ids::RequestId;
use shared::proto::{self, Outcome};
use shared::snapshot::{ApiKey, Workspace};

use crate::drain::InFlight;
use crate::headers::Trace;
use crate::observe::{Attempt, Observation};
use crate::usage::journal::Unwritable;
use crate::usage::meter::Meter;
use crate::worker::Worker;

/// When a request came, by both clocks, and its id.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// The `x-request-id`.
    pub id: RequestId,
    /// Wall clock, milliseconds since 1970.
    pub wall_ms: i64,
    /// Monotonic.
    pub at: Duration,
}

impl Arrival {
    /// Now.
    pub fn now() -> Self {
        let wall_ms = clock::now_ms();
        let mut random = [0; 10];
        let (low, high) = (runtime::random::seed(), runtime::random::seed());
        for (byte, from) in random.iter_mut().zip(low.to_le_bytes().into_iter().chain(high.to_le_bytes())) {
            *byte = from;
        }
        Self { id: RequestId::new(u64::try_from(wall_ms).unwrap_or(0), random), wall_ms, at: clock::monotonic() }
    }
}

/// Both clocks for a decision.
pub fn now() -> Now {
    Now { wall_ms: clock::now_ms(), mono_ms: clock::monotonic_ms() }
}

/// What ingress knows of a request that the plan does not.
pub struct Asked<'a> {
    /// When and which.
    pub arrival: Arrival,
    /// Whose.
    pub key: &'a ApiKey,
    /// Whose workspace.
    pub workspace: &'a Workspace,
    /// "chat_completions".
    pub endpoint: &'static str,
    /// As the caller wrote it.
    pub model: &'a str,
    /// The end user as the caller named it.
    pub identity: &'a str,
    /// The answer is to be a stream.
    pub stream: bool,
    /// Own estimate.
    pub prompt_tokens: u64,
    /// The caller's trace.
    pub trace: Option<Trace>,
}

/// The state of one admitted request.
pub struct Exchange {
    /// The thread it runs on.
    pub worker: Arc<Worker>,
    /// What was decided.
    pub plan: Plan,
    /// What was tried.
    pub attempts: Attempts,
    /// When and which.
    pub arrival: Arrival,
    /// Own estimate of the prompt's tokens.
    pub prompt_tokens: u64,
    meter: Option<Meter>,
    trail: Vec<Attempt>,
    last_slot: Option<Slot>,
    trace: Option<Trace>,
    first_byte_us: u64,
    _in_flight: InFlight,
}

impl Exchange {
    /// Writes the intent.
    ///
    /// # Errors
    /// When usage cannot be written down: the request must be refused.
    pub fn begin(
        worker: &Arc<Worker>,
        plan: Plan,
        asked: &Asked<'_>,
        in_flight: InFlight,
    ) -> Result<Box<Self>, Unwritable> {
        let mut record = proto::UsageRecord {
            request_id: asked.arrival.id.as_bytes().to_vec(),
            workspace_id: asked.workspace.id.to_string(),
            project_id: asked.key.project.to_string(),
            api_key_id: asked.key.id.to_string(),
            identity: asked.identity.to_owned(),
            endpoint: asked.endpoint.to_owned(),
            requested_model: asked.model.to_owned(),
            stream: asked.stream,
            revision: plan.revision,
            started_at_ms: asked.arrival.wall_ms,
            ..Default::default()
        };
        // The provider that will most likely serve it: what is known if the process dies.
        if let Some((candidate, _)) = plan.at(Slot { candidate: 0, access: 0 }) {
            name_candidate(&mut record, candidate);
        }
        let meter = Meter::begin(&worker.journal, record)?;
        let decided = now();
        Ok(Box::new(Self {
            attempts: Attempts::new(Now { mono_ms: as_ms(asked.arrival.at), ..decided }),
            worker: worker.clone(),
            plan,
            arrival: asked.arrival,
            prompt_tokens: asked.prompt_tokens,
            meter: Some(meter),
            trail: Vec::new(),
            last_slot: None,
            trace: asked.trace.clone(),
            first_byte_us: 0,
            _in_flight: in_flight,
        }))
    }

    /// An attempt begins at `slot`.
    pub fn attempt_begins(&mut self, slot: Slot) {
        let now = now();
        self.attempts.begin(&self.plan, slot, &mut self.worker.fleet(), now);
        let Some((candidate, _)) = self.plan.at(slot) else { return };
        self.trail.push(Attempt {
            slot,
            provider: candidate.provider.clone(),
            offering: candidate.offering.clone(),
            began: clock::monotonic(),
            ended: None,
            status: 0,
            failure: None,
        });
    }

    /// The attempt failed, before or after the commit point.
    pub fn attempt_failed(&mut self, failure: &Failure) {
        let seed = runtime::random::seed();
        self.attempts.fail(&self.plan, failure, &mut self.worker.fleet(), now(), seed);
        self.end_attempt(failure.status.unwrap_or(0), Some(failure.kind));
    }

    /// A good answer has begun.
    pub fn attempt_answered(&mut self) {
        self.attempts.answered(&self.plan, &mut self.worker.fleet(), now());
        if self.first_byte_us == 0 {
            self.first_byte_us = micros(clock::monotonic().saturating_sub(self.arrival.at));
        }
    }

    /// Bytes are about to go to the caller; nothing is tried again from here on.
    pub fn commit(&mut self) {
        self.attempts.commit();
    }

    /// Notes bytes of a stream, and writes a checkpoint when one is due.
    pub fn progress(&mut self, bytes: usize, usage: impl FnOnce() -> Usage) {
        if let Some(meter) = &mut self.meter {
            meter.progress(bytes as u64, || usage().tokens);
        }
    }

    /// Where the last attempt was made.
    pub fn last_slot(&self) -> Option<Slot> {
        self.trail.last().map(|attempt| attempt.slot).or(self.last_slot)
    }

    /// Writes the final record; later calls do nothing. Call it before the caller's last byte.
    pub fn settle(&mut self, outcome: Outcome, status: u16, code: &str, usage: Option<&Usage>) {
        let Some(mut meter) = self.meter.take() else { return };
        self.attempts.abandon(&self.plan, &mut self.worker.fleet(), now());
        self.end_attempt(status, None);
        let slot = self.last_slot();
        let record = meter.record_mut();
        record.status = status.into();
        code.clone_into(&mut record.code);
        record.attempts = self.attempts.count();
        record.upstream_us = self.trail.iter().map(Attempt::micros).sum();
        record.first_byte_us = self.first_byte_us;
        record.total_us = micros(clock::monotonic().saturating_sub(self.arrival.at)).max(1);
        if let Some((candidate, access)) = slot.and_then(|slot| self.plan.at(slot)) {
            name_candidate(record, candidate);
            record.fallback_level = candidate.level;
            if let Some(credential) = &access.credential {
                record.credential_id = credential.id.to_string();
                record.credential_owner = credential.owner.to_string();
            }
            if let Some(usage) = usage {
                charge(record, candidate, usage, self.arrival.wall_ms);
            }
        }
        if outcome == Outcome::Completed {
            self.worker.node.store.answered();
        }
        let (record, kept) = meter.finish(outcome);
        if let Err(error) = kept {
            tracing::error!(request = %self.arrival.id, %error, "a usage record was lost");
        }
        let (attempts, trace) = (std::mem::take(&mut self.trail), self.trace.take());
        self.last_slot = slot;
        self.worker.observed.push(Observation { record, attempts, trace });
    }

    /// Takes the credential of the last attempt out of what a failure says.
    pub fn hide_secret(&self, dialect: Dialect, failure: &mut Failure) {
        let access = self.last_slot().and_then(|slot| self.plan.at(slot)).map(|(_, access)| access);
        if let Some(secret) = access.and_then(|access| access.credential.as_ref()).and_then(|c| c.secret()) {
            dialect.hide(failure, secret);
        }
    }

    /// Whether the final record is still to be written.
    pub fn is_open(&self) -> bool {
        self.meter.is_some()
    }

    fn end_attempt(&mut self, status: u16, failure: Option<shared::failure::FailureKind>) {
        if let Some(attempt) = self.trail.last_mut()
            && attempt.ended.is_none()
        {
            attempt.ended = Some(clock::monotonic());
            attempt.status = status;
            attempt.failure = failure;
        }
    }
}

impl Drop for Exchange {
    /// The caller left before there was an answer, or a task was cancelled.
    fn drop(&mut self) {
        self.settle(Outcome::Cancelled, 499, "client_closed_request", None);
    }
}

fn name_candidate(record: &mut proto::UsageRecord, candidate: &router::Candidate) {
    record.provider_id = candidate.provider.id.to_string();
    candidate.provider.slug.as_ref().clone_into(&mut record.provider);
    candidate.provider.vendor.slug.as_ref().clone_into(&mut record.vendor);
    candidate.offering.model.as_ref().clone_into(&mut record.model);
}

fn charge(record: &mut proto::UsageRecord, candidate: &router::Candidate, usage: &Usage, at_ms: i64) {
    record.tokens = Some(usage.tokens.into());
    record.estimated = usage.estimated;
    usage.service_tier.clone_into(&mut record.service_tier);
    if let Some(priced) = router::price::cost(&candidate.offering, &usage.tokens, &usage.service_tier, at_ms) {
        record.price_id = priced.price_id;
        record.cost_nanos = priced.cost.0;
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
