//! What one worker has learned of the providers lately: a circuit breaker per offering and
//! credential, credentials that were turned away, and how many retries each provider has had.
//!
//! It belongs to one thread and locks nothing; workers learn apart from each other. It asks no clock
//! and starts nothing: whoever runs attempts tells it how they went (see
//! [`crate::retry::Attempts`]). It never keeps more than a fixed number of entries, and one that it
//! has no room for counts as healthy.

mod breaker;
mod window;

use std::hash::BuildHasher;

use foldhash::HashMap;
use shared::failure::{Deadline, Failure, FailureKind};
use shared::ids::{CredentialId, ProviderId};
use shared::snapshot::{Credential, Offering, Provider};

use crate::facts::Now;
use breaker::{Breaker, Verdict};
use window::Window;

pub use breaker::{Standing, Ticket};

/// Most circuits kept, and most entries of each other kind.
pub const MAX_ENTRIES: usize = 8_192;

/// Retries a provider gets in any ten seconds whatever its traffic.
pub const RETRY_FLOOR: u32 = 10;

/// One retry for this many requests, above the floor.
pub const REQUESTS_PER_RETRY: u32 = 10;

/// How long a credential that the provider turned away rests.
const CREDENTIAL_REST_MS: u64 = 60_000;

/// A circuit that nobody used for so long may be forgotten.
const IDLE_MS: u64 = 600_000;

/// A full table is searched for idle entries at most this often.
const PRUNE_EVERY_MS: u64 = 1_000;

/// What a breaker guards: one offering through one credential. Cheap to copy, holds no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Circuit {
    provider: ProviderId,
    credential: Option<CredentialId>,
    model: u64,
}

impl Circuit {
    /// The circuit of `offering` at `provider` with `credential`; `None` for a vendor that needs
    /// none. The same over revisions and restarts.
    pub fn new(provider: &Provider, offering: &Offering, credential: Option<&Credential>) -> Self {
        Self::for_model(provider, model_hash(&offering.model), credential)
    }

    pub(crate) fn for_model(provider: &Provider, model: u64, credential: Option<&Credential>) -> Self {
        Self { provider: provider.id, credential: credential.map(|c| c.id), model }
    }

    /// Whose offering it is.
    pub fn provider(&self) -> ProviderId {
        self.provider
    }

    /// The credential, if the vendor wants one.
    pub fn credential(&self) -> Option<CredentialId> {
        self.credential
    }
}

/// The part of a circuit that is an offering.
pub(crate) fn model_hash(model: &str) -> u64 {
    // Unkeyed on purpose: the same in every process.
    foldhash::quality::FixedState::default().hash_one(model)
}

/// How an attempt ended, as far as health is concerned.
#[derive(Debug, Clone, Copy)]
pub enum Outcome<'a> {
    /// An answer began as it should.
    Answered,
    /// It failed.
    Failed(&'a Failure),
    /// The caller left or we stopped: says nothing about the provider.
    Abandoned,
}

/// One worker's view of all providers.
#[derive(Debug, Default)]
pub struct Fleet {
    circuits: HashMap<Circuit, Breaker>,
    /// Credentials that rest, and until when.
    resting: HashMap<CredentialId, u64>,
    /// First tries and retries per provider.
    budgets: HashMap<ProviderId, Window>,
    pruned_ms: u64,
}

impl Fleet {
    /// Whether the circuit takes requests at `mono_ms`, which may lie in the future.
    pub fn standing(&self, circuit: &Circuit, mono_ms: u64) -> Standing {
        let own = self.circuits.get(circuit).map_or(Standing::Live, |breaker| breaker.standing(mono_ms));
        let rest = match circuit.credential {
            Some(id) if !self.resting.is_empty() => self.resting.get(&id).copied().filter(|until| *until > mono_ms),
            Some(_) | None => None,
        };
        match (own, rest) {
            (own, None) => own,
            (Standing::Shut { until_ms }, Some(rest_ms)) => Standing::Shut { until_ms: until_ms.max(rest_ms) },
            (Standing::Live | Standing::Probe, Some(until_ms)) => Standing::Shut { until_ms },
        }
    }

    /// Attempts on the circuit that have no answer yet.
    pub fn waiting(&self, circuit: &Circuit) -> u32 {
        self.circuits.get(circuit).map_or(0, |breaker| breaker.waiting)
    }

    /// Whether the provider may be tried once more for a request that it has failed already.
    pub fn retry_allowed(&self, provider: &ProviderId, mono_ms: u64) -> bool {
        let (first, retries) = self.budgets.get(provider).map_or((0, 0), |window| window.sums(mono_ms));
        retries < RETRY_FLOOR.saturating_add(first / REQUESTS_PER_RETRY)
    }

    /// Takes one retry from the provider's budget.
    pub fn spend_retry(&mut self, provider: &ProviderId, mono_ms: u64) {
        if let Some(window) = self.budget(provider, mono_ms) {
            window.add_second(mono_ms);
        }
    }

    /// A request comes to the provider for the first time.
    pub fn count_request(&mut self, provider: &ProviderId, mono_ms: u64) {
        if let Some(window) = self.budget(provider, mono_ms) {
            window.add_first(mono_ms);
        }
    }

    /// An attempt begins. The ticket goes back with [`Fleet::ended`]; a lost one is made good after
    /// a minute.
    pub fn started(&mut self, circuit: &Circuit, now: Now) -> Ticket {
        self.make_room(now.mono_ms);
        if self.circuits.len() >= MAX_ENTRIES && !self.circuits.contains_key(circuit) {
            return Ticket::UNTRACKED;
        }
        self.circuits.entry(*circuit).or_default().started(now.mono_ms)
    }

    /// An attempt ended, or its answer began.
    pub fn ended(&mut self, circuit: &Circuit, ticket: Ticket, outcome: Outcome<'_>, now: Now, seed: u64) {
        let verdict = match outcome {
            Outcome::Answered => Verdict::Good,
            Outcome::Abandoned => Verdict::Unknown,
            Outcome::Failed(failure) => self.verdict(circuit, failure, now),
        };
        if matches!(verdict, Verdict::Good)
            && let Some(id) = circuit.credential
            && !self.resting.is_empty()
        {
            self.resting.remove(&id);
        }
        if let Some(breaker) = self.circuits.get_mut(circuit) {
            breaker.ended(ticket, verdict, now.mono_ms, seed);
        }
    }

    /// An answer that had begun broke off.
    pub fn broke_off(&mut self, circuit: &Circuit, failure: &Failure, now: Now, seed: u64) {
        let verdict = self.verdict(circuit, failure, now);
        if let Some(breaker) = self.circuits.get_mut(circuit) {
            breaker.broke_off(verdict, now.mono_ms, seed);
        }
    }

    /// Every circuit that does not simply take requests, for metrics and the admin port.
    pub fn troubled(&self, mono_ms: u64) -> impl Iterator<Item = (&Circuit, Standing)> {
        self.circuits.keys().filter_map(move |circuit| match self.standing(circuit, mono_ms) {
            Standing::Live => None,
            standing @ (Standing::Probe | Standing::Shut { .. }) => Some((circuit, standing)),
        })
    }

    /// Number of circuits kept.
    pub fn len(&self) -> usize {
        self.circuits.len()
    }

    /// Whether nothing was learned yet.
    pub fn is_empty(&self) -> bool {
        self.circuits.is_empty()
    }

    /// What a failure says about the circuit. What only the credential is to blame for goes into
    /// its own table: it concerns all offerings behind it.
    fn verdict(&mut self, circuit: &Circuit, failure: &Failure, now: Now) -> Verdict {
        match blame(failure.kind) {
            Blame::Nobody => Verdict::Unknown,
            Blame::Caller => Verdict::Good,
            Blame::Provider => Verdict::Bad,
            Blame::Connection => Verdict::NoConnection,
            // Limits are counted per model by most vendors, so this rests the circuit, not the credential.
            Blame::Rate => match failure.retry_after_ms {
                Some(for_ms @ 1..) => Verdict::Limited { for_ms },
                Some(0) | None => Verdict::Bad,
            },
            Blame::Credential => match circuit.credential {
                Some(id) if self.resting.len() < MAX_ENTRIES => {
                    self.resting.insert(id, now.mono_ms + CREDENTIAL_REST_MS);
                    Verdict::Unknown
                }
                Some(_) | None => Verdict::Bad,
            },
        }
    }

    fn budget(&mut self, provider: &ProviderId, mono_ms: u64) -> Option<&mut Window> {
        self.make_room(mono_ms);
        if self.budgets.len() >= MAX_ENTRIES && !self.budgets.contains_key(provider) {
            return None;
        }
        Some(self.budgets.entry(*provider).or_default())
    }

    fn make_room(&mut self, mono_ms: u64) {
        let full = [self.circuits.len(), self.resting.len(), self.budgets.len()].iter().any(|n| *n >= MAX_ENTRIES);
        if !full || mono_ms < self.pruned_ms + PRUNE_EVERY_MS {
            return;
        }
        self.pruned_ms = mono_ms;
        self.circuits.retain(|_, breaker| !breaker.idle_since(mono_ms.saturating_sub(IDLE_MS), mono_ms));
        self.resting.retain(|_, until| *until > mono_ms);
        self.budgets.retain(|_, window| window.sums(mono_ms) != (0, 0));
    }
}

/// Who is to blame for a failure.
enum Blame {
    /// Us, our rules, or a deadline the caller may have chosen: says nothing about the provider.
    Nobody,
    /// The provider is there and said no to this very request: as good as an answer. Were it held
    /// against the provider, one caller could shut it for everybody.
    Caller,
    /// The provider.
    Provider,
    /// There was no connection.
    Connection,
    /// Too much for now.
    Rate,
    /// The credential, for every offering.
    Credential,
}

fn blame(kind: FailureKind) -> Blame {
    match kind {
        FailureKind::EgressDenied | FailureKind::Timeout(Deadline::Total) => Blame::Nobody,
        FailureKind::ContextLength | FailureKind::ContentFilter | FailureKind::InvalidRequest => Blame::Caller,
        FailureKind::Connect | FailureKind::Timeout(Deadline::Connect) => Blame::Connection,
        FailureKind::RateLimited => Blame::Rate,
        FailureKind::Unauthorized | FailureKind::PaymentRequired | FailureKind::QuotaExhausted => Blame::Credential,
        // 403 is some vendors' answer to flagged content: it counts, and alone shuts nothing.
        FailureKind::Forbidden
        | FailureKind::Timeout(Deadline::FirstToken | Deadline::Idle)
        | FailureKind::Reset
        | FailureKind::Overloaded
        | FailureKind::ProviderTimeout
        | FailureKind::ServerError
        | FailureKind::ModelNotFound
        | FailureKind::BadReply
        | FailureKind::StreamError
        | FailureKind::StreamCut => Blame::Provider,
    }
}
