//! What to say when no candidate is left: one refusal out of the reasons for which each was dropped.

use super::{DropReason, Dropped};
use crate::facts::{Endpoint, Facts};
use crate::refusal::{MAX_LISTED, Refusal, RefusalKind};
use crate::resolve::{self, Wanted};

/// The refusal that tells the caller what would have helped: the candidate that came furthest
/// decides the kind.
pub(super) fn refuse(facts: &Facts<'_>, wanted: &[Wanted<'_>], dropped: Vec<Dropped>) -> Refusal {
    // Backwards, because the last of equals wins and the first that was named should.
    let furthest = dropped.iter().rev().map(|d| d.reason).max_by_key(|reason| reason.stage());
    let furthest = furthest.unwrap_or(DropReason::NotFound);
    let all = |want: fn(DropReason) -> bool| dropped.iter().all(|d| want(d.reason));
    let (kind, summary) = match furthest.stage() {
        Stage::Missing if all(|r| r == DropReason::NoSuchRouter) => (RefusalKind::RouterNotFound, "No such router"),
        Stage::Missing if all(|r| r == DropReason::NoSuchPolicy) => (RefusalKind::PolicyNotFound, "No such policy"),
        Stage::Missing => (RefusalKind::ModelNotFound, "No such model"),
        Stage::Forbidden => (RefusalKind::ModelNotAllowed, "This API key may not use the model"),
        Stage::Incapable if all(|r| matches!(r, DropReason::ContextTooSmall { .. })) => {
            (RefusalKind::ContextLength, "The prompt is longer than the model can read")
        }
        Stage::Incapable => (RefusalKind::NoCapableModel, "No model that was named can take this request"),
        Stage::Unreachable => (RefusalKind::NoHealthyProvider, "No provider of the model can be reached now"),
    };
    let reasons: Vec<String> = dropped.iter().take(MAX_LISTED).map(|d| format!("{} {}", d.name, d.reason)).collect();
    let retry_after_ms = dropped
        .iter()
        .filter_map(
            |d| if let DropReason::Unhealthy { retry_after_ms } = d.reason { Some(retry_after_ms) } else { None },
        )
        .min();
    let did_you_mean = match wanted.first() {
        Some(first) if kind == RefusalKind::ModelNotFound => {
            resolve::similar(facts.workspace, facts.key, first.written)
        }
        Some(_) | None => Vec::new(),
    };
    let mut message = format!("{summary}: {}.", reasons.join("; "));
    if !did_you_mean.is_empty() {
        message.push_str(&format!(" Did you mean {}?", did_you_mean.join(", ")));
    }
    let param = match (furthest.param(), facts.models.is_empty(), facts.endpoint) {
        ("model", false, _) => "models",
        ("messages", _, Endpoint::Embeddings) => "input",
        (param, _, _) => param,
    };
    Refusal { kind, message, param: Some(param), did_you_mean, dropped, retry_after_ms }
}

/// How far a candidate came before it was dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// It is not there.
    Missing,
    /// It is there, and not for this key.
    Forbidden,
    /// The request asks too much of it.
    Incapable,
    /// It could, and cannot be reached.
    Unreachable,
}

impl DropReason {
    fn stage(self) -> Stage {
        match self {
            Self::NotFound
            | Self::Ambiguous
            | Self::NoSuchRouter
            | Self::NoSuchPolicy
            | Self::ProviderDisabled
            | Self::Deprecated
            | Self::Duplicate
            | Self::TooMany => Stage::Missing,
            Self::NotAllowed => Stage::Forbidden,
            Self::EndpointMissing
            | Self::WrongType
            | Self::CapabilityMissing { .. }
            | Self::ContextTooSmall { .. }
            | Self::OutputTooSmall { .. } => Stage::Incapable,
            Self::NoCredential | Self::Unhealthy { .. } => Stage::Unreachable,
        }
    }

    fn param(self) -> &'static str {
        match self {
            Self::CapabilityMissing { capability: "tools" } => "tools",
            Self::CapabilityMissing { capability: "json_schema" } => "response_format",
            Self::CapabilityMissing { capability: "audio_output" } => "modalities",
            Self::CapabilityMissing { .. } | Self::ContextTooSmall { .. } => "messages",
            Self::OutputTooSmall { .. } => "max_tokens",
            Self::NotFound
            | Self::Ambiguous
            | Self::NoSuchRouter
            | Self::NoSuchPolicy
            | Self::NotAllowed
            | Self::ProviderDisabled
            | Self::Deprecated
            | Self::EndpointMissing
            | Self::WrongType
            | Self::NoCredential
            | Self::Unhealthy { .. }
            | Self::Duplicate
            | Self::TooMany => "model",
        }
    }
}
