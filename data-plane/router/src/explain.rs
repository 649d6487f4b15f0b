//! A decision in words: for `cargo xtask explain` and the admin port. Ids, names and reasons; of a
//! credential never more than those.

use serde::Serialize;

use crate::plan::{Decision, Dropped, Limits};
use crate::refusal::Refusal;

/// A decision, ready to be written as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Explanation {
    /// Try these in order.
    Plan {
        /// Revision of the workspace.
        revision: u64,
        /// Revision of the catalogue.
        shared_revision: u64,
        /// What led to the candidates.
        reason: String,
        /// In order.
        candidates: Vec<ExplainedCandidate>,
        /// What was left out.
        dropped: Vec<ExplainedDrop>,
        /// How much may be tried.
        limits: Limits,
        /// Everything was shut; tried all the same.
        last_resort: bool,
    },
    /// Say no.
    Refusal {
        /// Stable code.
        code: &'static str,
        /// HTTP status.
        status: u16,
        /// Whose fault.
        error_type: &'static str,
        /// For the caller.
        message: String,
        /// Field to blame.
        param: Option<&'static str>,
        /// Names the caller may have meant.
        did_you_mean: Vec<String>,
        /// What was left out.
        dropped: Vec<ExplainedDrop>,
        /// When to ask again, in milliseconds.
        retry_after_ms: Option<u64>,
    },
}

/// A candidate in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedCandidate {
    /// "provider/model".
    pub name: String,
    /// Place in the list that was named.
    pub level: u32,
    /// The id that the provider's API wants.
    pub upstream_model: String,
    /// Where the request goes.
    pub base_url: String,
    /// In order of trying.
    pub credentials: Vec<ExplainedCredential>,
}

/// A credential in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedCredential {
    /// Its id; absent for a vendor that wants none.
    pub id: Option<String>,
    /// For people.
    pub name: String,
    /// Its share.
    pub weight: u32,
}

/// Something left out, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedDrop {
    /// Name and machine-readable reason.
    #[serde(flatten)]
    pub dropped: Dropped,
    /// The reason as a sentence's end.
    pub detail: String,
}

/// Puts a decision into words.
pub fn explain(decision: &Decision) -> Explanation {
    match decision {
        Decision::Plan(plan) => Explanation::Plan {
            revision: plan.revision,
            shared_revision: plan.shared_revision,
            reason: plan.why().to_string(),
            candidates: plan.candidates.iter().map(candidate).collect(),
            dropped: plan.dropped.iter().map(dropped).collect(),
            limits: plan.limits,
            last_resort: plan.last_resort,
        },
        Decision::Refusal(refusal) => refused(refusal),
    }
}

fn refused(refusal: &Refusal) -> Explanation {
    Explanation::Refusal {
        code: refusal.code(),
        status: refusal.status(),
        error_type: refusal.error_type(),
        message: refusal.message.clone(),
        param: refusal.param,
        did_you_mean: refusal.did_you_mean.clone(),
        dropped: refusal.dropped.iter().map(dropped).collect(),
        retry_after_ms: refusal.retry_after_ms,
    }
}

fn candidate(candidate: &crate::plan::Candidate) -> ExplainedCandidate {
    ExplainedCandidate {
        name: candidate.name().to_string(),
        level: candidate.level,
        upstream_model: candidate.offering.upstream_model.to_string(),
        base_url: candidate.base_url().to_string(),
        credentials: candidate
            .accesses
            .iter()
            .map(|access| match &access.credential {
                Some(c) => {
                    ExplainedCredential { id: Some(c.id.to_string()), name: c.name.to_string(), weight: c.weight }
                }
                None => ExplainedCredential { id: None, name: String::new(), weight: 1 },
            })
            .collect(),
    }
}

fn dropped(dropped: &Dropped) -> ExplainedDrop {
    ExplainedDrop { dropped: dropped.clone(), detail: dropped.reason.to_string() }
}
