//! One admitted request from its intent to its final record. However it ends (answered, failed, cut,
//! caller gone, panic), it is settled exactly once.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use providers::{Dialect, Usage};
use router::price::Priced;
use router::{Attempts, Next, Now, Plan, Slot};
use runtime::clock;
use shared::failure::Failure;
use shared::ids::RequestId;
use shared::money::Nanos;
use shared::proto::{self, Outcome};
use shared::snapshot::ApiKey;

use crate::drain::InFlight;
use crate::headers::Trace;
use crate::observe::{Attempt, Observed};
use crate::usage::journal::{Gate, Unwritable};
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
    /// A request comes in.
    pub fn begin() -> Self {
        let wall_ms = clock::now_ms();
        let mut random = [0; 10];
        let (low, high) = (runtime::random::seed(), runtime::random::seed());
        for (byte, from) in random.iter_mut().zip(low.to_le_bytes().into_iter().chain(high.to_le_bytes())) {
            *byte = from;
        }
        Self { id: RequestId::new(u64::try_from(wall_ms).unwrap_or(0), random), wall_ms, at: clock::monotonic() }
    }

    /// Both clocks, by reading one: a wall clock that is set meanwhile changes nothing for a request
    /// that runs.
    pub fn now(&self) -> Now {
        self.clocks_at(clock::monotonic())
    }

    /// Both clocks when the monotonic one shows `at`.
    pub fn clocks_at(&self, at: Duration) -> Now {
        let since = i64::try_from(as_ms(at.saturating_sub(self.at))).unwrap_or(0);
        Now { wall_ms: self.wall_ms.saturating_add(since), mono_ms: as_ms(at) }
    }
}

/// What ingress knows of a request that the plan does not.
pub struct Asked<'a> {
    /// When and which.
    pub arrival: Arrival,
    /// Whose.
    pub key: &'a Arc<ApiKey>,
    /// "chat_completions".
    pub endpoint: &'static str,
    /// The end user as the caller named it.
    pub identity: &'a str,
    /// The answer is to be a stream.
    pub stream: bool,
    /// Own estimate.
    pub prompt_tokens: u64,
    /// The caller's trace.
    pub trace: Option<Trace>,
    /// See [`Exchange::spare`].
    pub spare: HeaderMap,
}

/// The state of one admitted request.
pub struct Exchange {
    /// The thread it runs on.
    pub worker: Rc<Worker>,
    /// What was decided.
    pub plan: Plan,
    /// What was tried.
    pub attempts: Attempts,
    /// When and which.
    pub arrival: Arrival,
    /// Own estimate of the prompt's tokens.
    pub prompt_tokens: u64,
    /// The memory of a map that is empty: the caller's head becomes the provider's, and the provider's
    /// answer's becomes ours.
    pub spare: HeaderMap,
    key: Arc<ApiKey>,
    endpoint: &'static str,
    identity: String,
    stream: bool,
    meter: Option<Meter>,
    trail: Vec<Attempt>,
    /// The caller's trace.
    pub trace: Option<Trace>,
    first_byte_us: u64,
    _in_flight: InFlight,
}

impl Exchange {
    /// Queues the intent; `now` is the time of deciding. It is written when the first byte passes
    /// [`Exchange::gate`].
    ///
    /// # Errors
    /// When usage cannot be written down: the request must be refused.
    pub fn begin(
        worker: &Rc<Worker>,
        plan: Plan,
        asked: Asked<'_>,
        now: Now,
        in_flight: InFlight,
    ) -> Result<Box<Self>, Unwritable> {
        let mut exchange = Box::new(Self {
            attempts: Attempts::new(Now { mono_ms: as_ms(asked.arrival.at), ..now }),
            worker: worker.clone(),
            plan,
            arrival: asked.arrival,
            prompt_tokens: asked.prompt_tokens,
            spare: asked.spare,
            key: asked.key.clone(),
            endpoint: asked.endpoint,
            identity: asked.identity.to_owned(),
            stream: asked.stream,
            meter: None,
            trail: Vec::new(),
            trace: asked.trace,
            first_byte_us: 0,
            _in_flight: in_flight,
        });
        let (id, began) = (*exchange.arrival.id.as_bytes(), Duration::from_millis(now.mono_ms));
        let meter = Meter::begin(&worker.journal, id, began, |record| {
            exchange.name_request(record);
            // The provider that will most likely serve it: what is known if the process dies.
            if let Some((candidate, _)) = exchange.plan.at(FIRST) {
                name_candidate(record, candidate);
            }
        })?;
        exchange.meter = Some(meter);
        Ok(exchange)
    }

    /// What is sent to a provider must pass this first.
    pub fn gate(&self) -> Gate {
        self.worker.journal.gate(*self.arrival.id.as_bytes())
    }

    /// Takes the request back when its intent cannot be written: no provider got it, nothing is
    /// metered, and it must be refused. Otherwise does nothing.
    pub fn withdraw(&mut self) -> Option<Unwritable> {
        self.worker.journal.flush();
        let refused = self.worker.journal.take_refusal(self.arrival.id.as_bytes())?;
        self.meter = None;
        self.attempts.abandon(&self.plan, &mut self.worker.health.lock(), self.arrival.now());
        Some(refused)
    }

    /// What comes next, at the monotonic time `at`. An attempt that is to be made now has begun.
    pub fn next_attempt(&mut self, at: Duration, seed: u64) -> Next {
        let now = self.arrival.clocks_at(at);
        let mut fleet = self.worker.health.lock();
        let next = self.attempts.step(&self.plan, &mut fleet, now, seed);
        if let Next::Try(slot) = next {
            self.attempts.begin(&self.plan, slot, &mut fleet, now);
            self.trail.push(Attempt::begun(slot, at));
        }
        next
    }

    /// The attempt that was waited for begins at the monotonic time `at`.
    pub fn attempt_begins(&mut self, slot: Slot, at: Duration) {
        let now = self.arrival.clocks_at(at);
        self.attempts.begin(&self.plan, slot, &mut self.worker.health.lock(), now);
        self.trail.push(Attempt::begun(slot, at));
    }

    /// The attempt failed, before or after the commit point.
    pub fn attempt_failed(&mut self, failure: &Failure) {
        let (seed, at) = (runtime::random::seed(), clock::monotonic());
        self.attempts.fail(&self.plan, failure, &mut self.worker.health.lock(), self.arrival.clocks_at(at), seed);
        self.end_attempt(at, failure.status.unwrap_or(0), Some(failure.kind));
    }

    /// A good answer has begun.
    pub fn attempt_answered(&mut self) {
        let at = clock::monotonic();
        self.attempts.answered(&self.plan, &mut self.worker.health.lock(), self.arrival.clocks_at(at));
        if self.first_byte_us == 0 {
            self.first_byte_us = micros(at.saturating_sub(self.arrival.at));
        }
    }

    /// Bytes are about to go to the caller; nothing is tried again from here on.
    pub fn commit(&mut self) {
        self.attempts.commit();
    }

    /// Notes bytes of a stream, and writes a checkpoint when one is due.
    pub fn progress(&mut self, bytes: usize, usage: impl FnOnce() -> Usage) {
        if let Some(meter) = &mut self.meter {
            meter.progress(bytes as u64, clock::monotonic(), || usage().tokens);
        }
    }

    /// Where the last attempt was made.
    pub fn last_slot(&self) -> Option<Slot> {
        self.trail.last().map(|attempt| attempt.slot)
    }

    /// Writes the final record; later calls do nothing. Call it before the caller's last byte.
    pub fn settle(&mut self, outcome: Outcome, status: u16, code: &str, usage: Option<&Usage>) {
        if self.is_open() {
            self.end(outcome, status, code, usage);
            self.worker.journal.flush();
        }
    }

    /// As [`Exchange::settle`], in one write with other requests of this thread. Gives what `usage`
    /// costs, when it is priced.
    pub async fn settle_together(
        &mut self,
        outcome: Outcome,
        status: u16,
        code: &str,
        usage: Option<&Usage>,
    ) -> Option<Nanos> {
        let cost = self.end(outcome, status, code, usage);
        self.worker.journal.written().await;
        cost
    }

    /// Queues the final record.
    fn end(&mut self, outcome: Outcome, status: u16, code: &str, usage: Option<&Usage>) -> Option<Nanos> {
        self.meter.as_ref()?;
        let at = clock::monotonic();
        if self.attempts.running() {
            self.attempts.abandon(&self.plan, &mut self.worker.health.lock(), self.arrival.clocks_at(at));
        }
        self.end_attempt(at, status, None);
        let slot = self.last_slot();
        let priced = usage.zip(slot).and_then(|(usage, slot)| price(&self.plan, slot, usage, self.arrival.wall_ms));
        let cost = priced.as_ref().map(|priced| priced.cost);
        let tried = slot.is_some();
        // As late as can be: what fails before this is settled by `Drop`.
        let meter = self.meter.take()?;
        let fill = |record: &mut proto::UsageRecord| {
            self.name_request(record);
            record.outcome = outcome.into();
            record.status = status.into();
            code.clone_into(&mut record.code);
            record.attempts = self.attempts.count();
            record.upstream_us = self.trail.iter().map(Attempt::micros).sum();
            record.first_byte_us = self.first_byte_us;
            record.total_us = micros(at.saturating_sub(self.arrival.at)).max(1);
            if let Some((candidate, access)) = self.plan.at(slot.unwrap_or(FIRST)) {
                name_candidate(record, candidate);
                record.fallback_level = if tried { candidate.level } else { 0 };
                if let Some(credential) = access.credential.as_ref().filter(|_| tried) {
                    credential.id.push_to(&mut record.credential_id);
                    record.credential_owner.push_str(&credential.owner);
                }
            }
            if let Some(usage) = usage.filter(|_| tried) {
                record.tokens = Some(usage.tokens.into());
                record.estimated = usage.estimated;
                record.service_tier.push_str(&usage.service_tier);
            }
            if let Some(priced) = priced {
                record.price_id.push_str(priced.price_id);
                record.cost_nanos = priced.cost.0;
            }
        };
        meter.finish(fill, |record| self.worker.observed.push(record, self.observed()));
        if outcome == Outcome::Completed {
            self.worker.node.store.answered();
        }
        cost
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

    fn end_attempt(&mut self, at: Duration, status: u16, failure: Option<shared::failure::FailureKind>) {
        if let Some(attempt) = self.trail.last_mut()
            && attempt.ended.is_none()
        {
            attempt.ended = Some(at);
            attempt.status = status;
            attempt.failure = failure;
        }
    }

    fn name_request(&self, record: &mut proto::UsageRecord) {
        self.key.workspace.push_to(&mut record.workspace_id);
        self.key.project.push_to(&mut record.project_id);
        self.key.id.push_to(&mut record.api_key_id);
        record.identity.push_str(&self.identity);
        record.endpoint.push_str(self.endpoint);
        record.requested_model.push_str(&self.plan.requested);
        record.stream = self.stream;
        record.revision = self.plan.revision;
        record.started_at_ms = self.arrival.wall_ms;
    }

    fn observed(&self) -> Observed<'_> {
        Observed { endpoint: self.endpoint, plan: &self.plan, attempts: &self.trail, trace: self.trace.as_ref() }
    }
}

impl Drop for Exchange {
    /// The caller left before there was an answer, or a task was cancelled.
    fn drop(&mut self) {
        self.settle(Outcome::Cancelled, 499, "client_closed_request", None);
    }
}

/// What the offering at `slot` charges for `usage`; `None`: there is no price.
fn price<'p>(plan: &'p Plan, slot: Slot, usage: &Usage, at_ms: i64) -> Option<Priced<'p>> {
    let (candidate, _) = plan.at(slot)?;
    router::price::cost(&candidate.offering, &usage.tokens, &usage.service_tier, at_ms)
}

/// The offering that a request goes to first.
const FIRST: Slot = Slot { candidate: 0, access: 0 };

/// Who serves it, into a record that names nobody yet.
fn name_candidate(record: &mut proto::UsageRecord, candidate: &router::Candidate) {
    candidate.provider.id.push_to(&mut record.provider_id);
    record.provider.push_str(&candidate.provider.slug);
    record.vendor.push_str(&candidate.provider.vendor.slug);
    record.model.push_str(&candidate.offering.model);
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
