//! THE retry decision: what follows a failed attempt. `next` only reads; [`Attempts`] is the log it
//! reads, written by whoever makes the attempts, who asks [`Attempts::step`].
//!
//! **The bound.** Trying a provider once more for a request that it already failed for reasons of
//! its own takes from that provider's retry budget: in any ten seconds at most 10 plus a tenth of
//! the requests that came to it first. So retries never add more than a tenth to the load of a
//! provider in trouble. Moving on takes nothing: to another provider it adds no load to the one that
//! fails, and each candidate is visited once; to another credential, after 401, 402, 403 or 429, it
//! replaces load that was turned away cheaply. What bounds those moves is the breaker: after ten
//! calls, half of them bad, the circuit is out of the plan, and from then on a storm costs one probe
//! per rest. Over a storm the attempts per request tend to one, and with a second provider every
//! request still has an answer.

use shared::failure::{Deadline, Failure, FailureKind};

use crate::dice;
use crate::facts::Now;
use crate::health::{Fleet, Outcome, Standing, Ticket};
use crate::plan::{Plan, Slot};

/// First ceiling of a wait, doubled with each attempt up to the highest. The wait itself is anything
/// from zero to the ceiling.
const FIRST_CEILING_MS: u64 = 250;
const HIGHEST_CEILING_MS: u64 = 8_000;

/// Nobody waits longer than this for one candidate while another is free.
const PATIENCE_MS: u64 = 2_000;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Make an attempt here.
    Try(Slot),
    /// Make an attempt here after a pause.
    Wait {
        /// Milliseconds.
        ms: u64,
        /// Where.
        slot: Slot,
    },
    /// Tell the caller about the last failure.
    Stop(Stop),
}

/// Why there is no further attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The last attempt did not fail.
    NotFailed,
    /// The caller has seen part of an answer.
    Committed,
    /// It would fail again everywhere.
    Final,
    /// Every candidate had its turn.
    NothingLeft,
    /// As many attempts as the plan allows.
    AttemptsSpent,
    /// No time is left.
    TimeSpent,
    /// The provider has had its share of retries.
    BudgetSpent,
}

impl Stop {
    /// Stable text for logs and explanations.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotFailed => "not_failed",
            Self::Committed => "committed",
            Self::Final => "final",
            Self::NothingLeft => "nothing_left",
            Self::AttemptsSpent => "attempts_spent",
            Self::TimeSpent => "time_spent",
            Self::BudgetSpent => "budget_spent",
        }
    }
}

/// The log of one request's attempts.
#[derive(Debug, Clone)]
pub struct Attempts {
    arrived_ms: u64,
    committed: bool,
    tried: Vec<Tried>,
    ticket: Option<Ticket>,
}

/// One attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tried {
    /// Where.
    pub slot: Slot,
    /// How it failed; `None` while it runs, or when it did not.
    pub failure: Option<FailureKind>,
    /// What the provider asked for.
    pub retry_after_ms: Option<u64>,
    /// Monotonic time.
    pub began_ms: u64,
}

impl Attempts {
    /// For a request that arrived at `now`.
    pub fn new(now: Now) -> Self {
        Self { arrived_ms: now.mono_ms, committed: false, tried: Vec::new(), ticket: None }
    }

    /// In order.
    pub fn tried(&self) -> &[Tried] {
        &self.tried
    }

    /// How many there were.
    pub fn count(&self) -> u32 {
        u32::try_from(self.tried.len()).unwrap_or(u32::MAX)
    }

    /// Whether one has begun and its end is not known.
    pub fn running(&self) -> bool {
        self.ticket.is_some()
    }

    /// Whether the caller has seen part of an answer.
    pub fn committed(&self) -> bool {
        self.committed
    }

    /// What `next` says, and takes from the retry budget what that costs: at the time of deciding,
    /// or all who wait at once would spend the same token.
    pub fn step(&self, plan: &Plan, fleet: &mut Fleet, now: Now, seed: u64) -> Next {
        let step = next(plan, self, fleet, now, seed);
        let slot = match step {
            Next::Try(slot) | Next::Wait { slot, .. } => slot,
            Next::Stop(_) => return step,
        };
        if let Some((candidate, _)) = plan.at(slot)
            && self.is_retry(plan, slot)
        {
            fleet.spend_retry(&candidate.provider.id, now.mono_ms);
        }
        step
    }

    /// An attempt begins where [`Attempts::step`] said. One that is still open is abandoned.
    pub fn begin(&mut self, plan: &Plan, slot: Slot, fleet: &mut Fleet, now: Now) {
        self.abandon(plan, fleet, now);
        if let Some((candidate, access)) = plan.at(slot) {
            if !self.is_retry(plan, slot) {
                fleet.count_request(&candidate.provider.id, now.mono_ms);
            }
            self.ticket = Some(fleet.started(&access.circuit, now));
        }
        self.tried.push(Tried { slot, failure: None, retry_after_ms: None, began_ms: now.mono_ms });
    }

    /// The attempt failed, before or after the commit point. `seed` spreads breakers' rests.
    pub fn fail(&mut self, plan: &Plan, failure: &Failure, fleet: &mut Fleet, now: Now, seed: u64) {
        let Some(last) = self.tried.last_mut() else { return };
        last.failure = Some(failure.kind);
        last.retry_after_ms = failure.retry_after_ms;
        let Some((_, access)) = plan.at(last.slot) else { return };
        match self.ticket.take() {
            Some(ticket) => fleet.ended(&access.circuit, ticket, Outcome::Failed(failure), now, seed),
            None => fleet.broke_off(&access.circuit, failure, now, seed),
        }
    }

    /// A good answer is here, whole or begun: the provider is well. Says nothing about the caller;
    /// see [`Attempts::commit`].
    pub fn answered(&mut self, plan: &Plan, fleet: &mut Fleet, now: Now) {
        self.close(plan, Outcome::Answered, fleet, now);
    }

    /// The first byte goes to the caller: from here on nothing is tried again.
    pub fn commit(&mut self) {
        self.committed = true;
    }

    /// The attempt ends without a judgement: the caller left, or the node drains. Does nothing when
    /// none is open, so that a drop guard may call it always.
    pub fn abandon(&mut self, plan: &Plan, fleet: &mut Fleet, now: Now) {
        self.close(plan, Outcome::Abandoned, fleet, now);
    }

    fn close(&mut self, plan: &Plan, outcome: Outcome<'_>, fleet: &mut Fleet, now: Now) {
        if let Some(ticket) = self.ticket.take()
            && let Some((_, access)) = self.tried.last().and_then(|last| plan.at(last.slot))
        {
            fleet.ended(&access.circuit, ticket, outcome, now, 0);
        }
    }

    /// Whether an attempt there asks a provider for the second time for what it failed at.
    fn is_retry(&self, plan: &Plan, slot: Slot) -> bool {
        let provider = |slot: Slot| plan.candidates.get(slot.candidate).map(|c| c.provider.id);
        self.tried.iter().any(|tried| {
            tried.failure.is_some_and(|kind| match advice(kind) {
                Advice::Stop | Advice::MoveOn | Advice::OtherCredential | Advice::OtherCredentialElseAgain => {
                    tried.slot == slot
                }
                Advice::AgainElseMoveOn | Advice::MoveOnElseAgain => provider(tried.slot) == provider(slot),
            })
        })
    }

    fn count_at(&self, slot: Slot) -> u32 {
        self.tried.iter().map(|tried| u32::from(tried.slot == slot)).sum()
    }
}

/// What a kind of failure calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Advice {
    /// It would fail again everywhere.
    Stop,
    /// It would fail again here: the next candidate.
    MoveOn,
    /// It would fail again with this credential: another one of the same offering, else the next
    /// candidate.
    OtherCredential,
    /// The same, and when there is nobody else, this one again after a pause.
    OtherCredentialElseAgain,
    /// It may have been bad luck: here again after a pause, else the next candidate.
    AgainElseMoveOn,
    /// It has cost time already: the next candidate, else here again.
    MoveOnElseAgain,
}

fn advice(kind: FailureKind) -> Advice {
    match kind {
        FailureKind::InvalidRequest | FailureKind::ContentFilter | FailureKind::Timeout(Deadline::Total) => {
            Advice::Stop
        }
        FailureKind::EgressDenied | FailureKind::ModelNotFound | FailureKind::ContextLength => Advice::MoveOn,
        FailureKind::Unauthorized
        | FailureKind::PaymentRequired
        | FailureKind::Forbidden
        | FailureKind::QuotaExhausted => Advice::OtherCredential,
        FailureKind::RateLimited => Advice::OtherCredentialElseAgain,
        FailureKind::Connect
        | FailureKind::Reset
        | FailureKind::Overloaded
        | FailureKind::ServerError
        | FailureKind::BadReply
        | FailureKind::StreamError
        | FailureKind::StreamCut => Advice::AgainElseMoveOn,
        FailureKind::Timeout(Deadline::Connect | Deadline::FirstToken | Deadline::Idle)
        | FailureKind::ProviderTimeout => Advice::MoveOnElseAgain,
    }
}

/// What follows the attempts so far. Before the first one: where to begin. The same arguments give
/// the same answer; at most [`crate::Limits::attempts`] tries come out of it for one request, and
/// none after [`Attempts::commit`].
pub(crate) fn next(plan: &Plan, past: &Attempts, fleet: &Fleet, now: Now, seed: u64) -> Next {
    let at = Situation { plan, past, fleet, now, seed };
    let Some(last) = past.tried.last() else {
        // The plan was made a moment ago; if all has changed since, it still holds.
        return Next::Try(at.free_from(0).unwrap_or(Slot { candidate: 0, access: 0 }));
    };
    if past.committed {
        return Next::Stop(Stop::Committed);
    }
    let Some(kind) = last.failure else { return Next::Stop(Stop::NotFailed) };
    if past.count() >= plan.limits.attempts {
        return Next::Stop(Stop::AttemptsSpent);
    }
    if at.remaining_ms() == 0 {
        return Next::Stop(Stop::TimeSpent);
    }
    let advice = advice(kind);
    let other_credential = match advice {
        Advice::OtherCredential | Advice::OtherCredentialElseAgain => at.other_access(last.slot),
        Advice::Stop => return Next::Stop(Stop::Final),
        Advice::MoveOn | Advice::AgainElseMoveOn | Advice::MoveOnElseAgain => None,
    };
    if let Some(slot) = other_credential {
        return Next::Try(slot);
    }
    let elsewhere = at.elsewhere(last, kind);
    let again = match (advice, elsewhere) {
        (Advice::Stop | Advice::MoveOn | Advice::OtherCredential, _) => Err(Stop::NothingLeft),
        (Advice::OtherCredentialElseAgain | Advice::AgainElseMoveOn, Some(_)) => at.again(last, PATIENCE_MS),
        (Advice::MoveOnElseAgain, Some(_)) => Err(Stop::NothingLeft),
        (Advice::OtherCredentialElseAgain | Advice::AgainElseMoveOn | Advice::MoveOnElseAgain, None) => {
            at.again(last, plan.limits.longest_wait_ms)
        }
    };
    match (again, elsewhere) {
        (Ok(ms), _) => Next::Wait { ms, slot: last.slot },
        (Err(_), Some(slot)) => Next::Try(slot),
        (Err(stop), None) => Next::Stop(stop),
    }
}

struct Situation<'a> {
    plan: &'a Plan,
    past: &'a Attempts,
    fleet: &'a Fleet,
    now: Now,
    seed: u64,
}

impl Situation<'_> {
    fn remaining_ms(&self) -> u64 {
        let spent = self.now.mono_ms.saturating_sub(self.past.arrived_ms);
        self.plan.limits.total_ms.saturating_sub(spent)
    }

    /// The first access at or after this candidate that may be tried now.
    fn free_from(&self, candidate: usize) -> Option<Slot> {
        let candidates = self.plan.candidates.iter().enumerate().skip(candidate);
        candidates
            .flat_map(|(candidate, c)| (0..c.accesses.len()).map(move |access| Slot { candidate, access }))
            .find(|slot| self.open(*slot, self.now.mono_ms) && self.affordable(*slot))
    }

    /// Another credential of the same offering that had no turn yet.
    fn other_access(&self, slot: Slot) -> Option<Slot> {
        let accesses = self.plan.candidates.get(slot.candidate)?.accesses.len();
        (0..accesses).map(|access| Slot { access, ..slot }).find(|other| {
            self.past.count_at(*other) == 0 && self.open(*other, self.now.mono_ms) && self.affordable(*other)
        })
    }

    /// A later candidate.
    fn elsewhere(&self, last: &Tried, kind: FailureKind) -> Option<Slot> {
        let slot = self.free_from(last.slot.candidate + 1)?;
        if kind != FailureKind::ContextLength {
            return Some(slot);
        }
        // What did not fit here does not fit there either, unless there is more room.
        let room = |slot: Slot| self.plan.candidates.get(slot.candidate).map_or(0, |c| c.offering.facts.context_tokens);
        let here = room(last.slot);
        let roomier = |slot: &Slot| here == 0 || room(*slot) == 0 || room(*slot) > here;
        (slot.candidate..self.plan.candidates.len())
            .filter_map(|candidate| self.free_from(candidate).filter(|slot| slot.candidate == candidate))
            .find(roomier)
    }

    /// How long to wait before the same access is tried again, if it may be.
    fn again(&self, last: &Tried, longest_ms: u64) -> Result<u64, Stop> {
        let tries = self.past.count_at(last.slot);
        if tries >= self.plan.limits.attempts_per_access {
            return Err(Stop::NothingLeft);
        }
        if !self.affordable(last.slot) {
            return Err(Stop::BudgetSpent);
        }
        let doublings = tries.saturating_sub(1).min(16);
        let ceiling = (FIRST_CEILING_MS << doublings).min(HIGHEST_CEILING_MS);
        let jitter = dice::below(ceiling + 1, self.seed, u64::from(self.past.count()));
        // What was asked for is the least; the jitter comes on top, or all would come back at once.
        let ms = last.retry_after_ms.unwrap_or(0).saturating_add(jitter);
        if ms > longest_ms {
            return Err(Stop::NothingLeft);
        }
        if ms >= self.remaining_ms() {
            return Err(Stop::TimeSpent);
        }
        match self.open(last.slot, self.now.mono_ms.saturating_add(ms)) {
            true => Ok(ms),
            false => Err(Stop::NothingLeft),
        }
    }

    fn open(&self, slot: Slot, mono_ms: u64) -> bool {
        self.plan.at(slot).is_some_and(|(_, access)| match self.fleet.standing(&access.circuit, mono_ms) {
            Standing::Live | Standing::Probe => true,
            Standing::Shut { .. } => false,
        })
    }

    fn affordable(&self, slot: Slot) -> bool {
        !self.past.is_retry(self.plan, slot)
            || self
                .plan
                .candidates
                .get(slot.candidate)
                .is_some_and(|c| self.fleet.retry_allowed(&c.provider.id, self.now.mono_ms))
    }
}
