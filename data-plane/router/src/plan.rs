//! The plan: which offerings may take a request, in which order, through which credentials, and a
//! reason for each one that was left out. It refuses to look at a clock, to call anybody, and to
//! leave a choice to whoever carries it out.
//!
//! **Last resort.** When every candidate that could take the request is shut by a breaker, the one
//! that opens soonest is tried once, at most [`LAST_RESORT_WAITING`] at a time, rather than refusing
//! outright: health is an opinion, formed by one worker, and a lone provider must not stay shut
//! after it came back. Envoy calls this panic mode. Beyond that number the request is refused with
//! `no_healthy_provider`, so that a provider that hangs cannot collect all of a node's requests.

mod nothing_left;
mod pool;

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use shared::snapshot::{BaseUrl, Credential, Offering, Provider, Snapshot};

use crate::admit::{Permission, admit};
use crate::facts::{Facts, Now};
use crate::health::{Circuit, Fleet};
use crate::refusal::Refusal;
use crate::resolve::{self, Found, Wanted};

/// Most candidates of one plan; what comes after them is dropped.
pub const MAX_CANDIDATES: usize = 16;

/// Most requests that wait for an answer of a shut circuit at a time.
pub const LAST_RESORT_WAITING: u32 = 8;

/// So many bytes of JSON text are at least one token: letters that a client escapes take six bytes
/// each, and a token may hold four of them. A prompt that this misjudges as short costs one attempt
/// that ends in `ContextLength` and moves on; one misjudged as long would be refused for nothing.
const BYTES_PER_TOKEN: u64 = 24;

/// What becomes of a request. More ways to decide may come.
#[derive(Debug, Clone)]
pub enum Decision {
    /// Try these.
    Plan(Plan),
    /// Say no.
    Refusal(Refusal),
}

/// Ordered candidates and the bounds of trying them.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Revision of the workspace that decided.
    pub revision: u64,
    /// Revision of the catalogue and its prices.
    pub shared_revision: u64,
    /// The model as the caller wrote it; the first one of an ordered list.
    pub requested: Box<str>,
    /// How that led to these candidates.
    pub reason: Reason,
    /// In order of preference, each with at least one access; never empty.
    pub candidates: Vec<Candidate>,
    /// What was left out.
    pub dropped: Vec<Dropped>,
    /// How much may be tried.
    pub limits: Limits,
    /// Everything was shut: the one candidate is tried all the same.
    pub last_resort: bool,
}

/// An offering that can take the request.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Who offers it.
    pub provider: Arc<Provider>,
    /// What is offered.
    pub offering: Arc<Offering>,
    /// Ways in, in order; at most [`Limits::attempts`].
    pub accesses: Vec<Access>,
    /// Place in the list that the request named, dropped ones counted; 0 = first.
    pub level: u32,
}

impl Candidate {
    /// "provider/model".
    pub fn name(&self) -> impl fmt::Display {
        self.found().full_name()
    }

    fn found(&self) -> Found<'_> {
        Found { provider: &self.provider, offering: &self.offering }
    }

    /// Where to connect.
    pub fn base_url(&self) -> &BaseUrl {
        self.offering.base_url.as_ref().unwrap_or(&self.provider.base_url)
    }
}

/// One way into an offering.
#[derive(Debug, Clone)]
pub struct Access {
    /// `None`: the vendor wants none.
    pub credential: Option<Arc<Credential>>,
    /// Where its health is kept.
    pub circuit: Circuit,
}

/// Place of an access in a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// Index into [`Plan::candidates`].
    pub candidate: usize,
    /// Index into [`Candidate::accesses`].
    pub access: usize,
}

impl Plan {
    /// What stands at a slot; `None` for one of another plan.
    pub fn at(&self, slot: Slot) -> Option<(&Candidate, &Access)> {
        let candidate = self.candidates.get(slot.candidate)?;
        Some((candidate, candidate.accesses.get(slot.access)?))
    }

    /// What led to these candidates; short, for a response header.
    pub fn why(&self) -> impl fmt::Display {
        let (kind, name) = match self.reason {
            Reason::Model => ("model:", &*self.requested),
            Reason::Alias => ("alias:", &*self.requested),
            Reason::InlineModels => ("inline:", "models"),
        };
        fmt::from_fn(move |f| {
            f.write_str(kind)?;
            f.write_str(name)
        })
    }
}

/// Bounds of one request's attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Attempts in all.
    pub attempts: u32,
    /// Attempts on the same offering with the same credential.
    pub attempts_per_access: u32,
    /// Milliseconds from the request's arrival, waits included.
    pub total_ms: u64,
    /// Longest single wait, in milliseconds.
    pub longest_wait_ms: u64,
}

impl Limits {
    /// The standard bounds within `total_ms`.
    pub const fn within(total_ms: u64) -> Self {
        Self { attempts: 6, attempts_per_access: 2, total_ms, longest_wait_ms: 30_000 }
    }
}

/// What led to the candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The caller named the model.
    Model,
    /// The caller named an alias.
    Alias,
    /// The caller sent an ordered list.
    InlineModels,
}

/// A name that was considered and left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// "provider/model", or the name as written when it leads nowhere.
    pub name: Box<str>,
    /// Why.
    pub reason: DropReason,
}

/// Why a candidate was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum DropReason {
    /// Nothing has this name.
    NotFound,
    /// Several providers have it and the name says none.
    Ambiguous,
    /// No router has this name.
    NoSuchRouter,
    /// No policy has this name.
    NoSuchPolicy,
    /// The key may not use it.
    NotAllowed,
    /// The provider is switched off.
    ProviderDisabled,
    /// No longer served by the vendor.
    Deprecated,
    /// The vendor has no such endpoint.
    EndpointMissing,
    /// Another type of model.
    WrongType,
    /// It cannot do this.
    CapabilityMissing {
        /// "tools", "vision", "audio_input", "audio_output", "pdf_input", "json_schema".
        capability: &'static str,
    },
    /// The prompt does not fit.
    ContextTooSmall {
        /// What fits.
        context_tokens: u64,
    },
    /// It cannot produce as much as was asked for.
    OutputTooSmall {
        /// What it can.
        max_output_tokens: u64,
    },
    /// No credential is enabled for this environment.
    NoCredential,
    /// Every way in is shut for now.
    Unhealthy {
        /// Until the first may open.
        retry_after_ms: u64,
    },
    /// Named before.
    Duplicate,
    /// Too far down the list.
    TooMany,
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("does not exist"),
            Self::Ambiguous => f.write_str("is offered by several providers: name one, as in provider/model"),
            Self::NoSuchRouter => f.write_str("names no router"),
            Self::NoSuchPolicy => f.write_str("names no policy"),
            Self::NotAllowed => f.write_str("not allowed for this key"),
            Self::ProviderDisabled => f.write_str("its provider is disabled"),
            Self::Deprecated => f.write_str("is no longer served"),
            Self::EndpointMissing => f.write_str("its vendor does not serve this endpoint"),
            Self::WrongType => f.write_str("is a model of another type than this endpoint needs"),
            Self::CapabilityMissing { capability } => write!(f, "lacks the capability {capability}"),
            Self::ContextTooSmall { context_tokens } => write!(f, "reads at most {context_tokens} tokens"),
            Self::OutputTooSmall { max_output_tokens } => write!(f, "produces at most {max_output_tokens} tokens"),
            Self::NoCredential => f.write_str("has no usable credential"),
            Self::Unhealthy { retry_after_ms } => write!(f, "is failing; tried again in {retry_after_ms} ms"),
            Self::Duplicate => f.write_str("was named before"),
            Self::TooMany => f.write_str("is too far down the list"),
        }
    }
}

/// Decides a request. The same arguments give the same decision. `seed` orders credentials of equal
/// standing by their weights; nothing is written to `fleet`.
pub fn plan(snapshot: &Snapshot, facts: &Facts<'_>, fleet: &Fleet, now: Now, seed: u64) -> Decision {
    match decide(snapshot, facts, fleet, now, seed) {
        Ok(plan) => Decision::Plan(plan),
        Err(refusal) => Decision::Refusal(refusal),
    }
}

fn decide(snapshot: &Snapshot, facts: &Facts<'_>, fleet: &Fleet, now: Now, seed: u64) -> Result<Plan, Refusal> {
    admit(facts.key, facts.workspace, Permission::Inference, facts.peer, facts.config_age_ms, now)?;
    let (reason, wanted) = resolve::resolve(facts)?;
    let mut candidates: Vec<Candidate> = Vec::with_capacity(wanted.len().min(MAX_CANDIDATES));
    let mut dropped = Vec::new();
    let mut least_bad: Option<(u64, Candidate)> = None;
    for (level, wanted) in (0..).zip(&wanted) {
        let found = match &wanted.found {
            Ok(found) => found,
            Err(reason) => {
                dropped.push(Dropped { name: wanted.written.into(), reason: *reason });
                continue;
            }
        };
        let mut drop = |reason| dropped.push(Dropped { name: found.full_name().to_string().into(), reason });
        if let Err(reason) = usable(facts, wanted, found, now) {
            drop(reason);
            continue;
        }
        if candidates.iter().any(|seen| seen.found() == *found) {
            drop(DropReason::Duplicate);
            continue;
        }
        if candidates.len() == MAX_CANDIDATES {
            drop(DropReason::TooMany);
            continue;
        }
        let pool = pool::accesses(found, facts.environment, fleet, now, seed.wrapping_add(u64::from(level)));
        let candidate = |accesses| Candidate {
            provider: found.provider.clone(),
            offering: found.offering.clone(),
            accesses,
            level,
        };
        match pool {
            pool::Pool::Open(accesses) => candidates.push(candidate(accesses)),
            pool::Pool::Empty => drop(DropReason::NoCredential),
            pool::Pool::Shut { until_ms, full, access } => {
                drop(DropReason::Unhealthy { retry_after_ms: until_ms.saturating_sub(now.mono_ms) });
                let sooner = least_bad.as_ref().is_none_or(|(best, _)| until_ms < *best);
                if sooner && !full {
                    least_bad = Some((until_ms, candidate(vec![access])));
                }
            }
        }
    }
    let last_resort = candidates.is_empty() && least_bad.is_some();
    if last_resort && let Some((_, candidate)) = least_bad {
        let name = candidate.name().to_string();
        dropped.retain(|d| *d.name != *name);
        candidates.push(candidate);
    }
    let Some(first) = candidates.first() else { return Err(nothing_left::refuse(facts, &wanted, dropped)) };
    let total_ms = match first.provider.timeouts.total_ms {
        0 => facts.total_ms,
        own => own,
    };
    let mut limits = Limits::within(total_ms);
    if last_resort {
        limits.attempts = 1;
    }
    Ok(Plan {
        revision: facts.workspace.revision,
        shared_revision: snapshot.shared.revision,
        requested: facts.requested().into(),
        reason,
        candidates,
        dropped,
        limits,
        last_resort,
    })
}

/// Whether an offering may and can take the request, credentials and health apart.
fn usable(facts: &Facts<'_>, wanted: &Wanted<'_>, found: &Found<'_>, now: Now) -> Result<(), DropReason> {
    let (provider, model) = (found.provider, &found.offering.facts);
    if !wanted.by_alias && !resolve::allowed(facts.workspace, facts.key, found) {
        return Err(DropReason::NotAllowed);
    }
    if provider.disabled {
        return Err(DropReason::ProviderDisabled);
    }
    if model.deprecated_at_ms != 0 && model.deprecated_at_ms <= now.wall_ms {
        return Err(DropReason::Deprecated);
    }
    if !provider.vendor.endpoints.contains_key(facts.endpoint.name()) {
        return Err(DropReason::EndpointMissing);
    }
    if model.r#type != facts.endpoint.model_type() {
        return Err(DropReason::WrongType);
    }
    let needed = [
        (facts.tools, "tools"),
        (facts.vision, "vision"),
        (facts.audio_input, "audio_input"),
        (facts.audio_output, "audio_output"),
        (facts.pdf, "pdf_input"),
        (facts.json_schema, "json_schema"),
    ];
    for (needed, capability) in needed {
        // An empty list is an unknown one, as a private model's often is: taken at its owner's word.
        if needed && !model.capabilities.is_empty() && !model.capabilities.iter().any(|c| c == capability) {
            return Err(DropReason::CapabilityMissing { capability });
        }
    }
    if model.context_tokens != 0 && facts.prompt_text_bytes / BYTES_PER_TOKEN > model.context_tokens {
        return Err(DropReason::ContextTooSmall { context_tokens: model.context_tokens });
    }
    if model.max_output_tokens != 0 && facts.max_tokens.is_some_and(|wanted| wanted > model.max_output_tokens) {
        return Err(DropReason::OutputTooSmall { max_output_tokens: model.max_output_tokens });
    }
    Ok(())
}
