//! One record of a node: whether it can be true, and what it costs. Pure.
//!
//! It refuses what no honest node writes. A refused record is kept apart and has no effect; the rest
//! of its batch is not held up by it.

use prost::Message;
use shared::ids::{ApiKeyId, ProjectId, RequestId, WorkspaceId};
use shared::money::{self, Nanos};
use shared::proto::{self, Outcome};
use shared::usage::Tokens;

/// Longest text, in bytes; the node cuts at 256.
const MAX_TEXT: usize = 512;
/// Most tokens of one class in one request.
const MAX_TOKENS: u64 = 1_000_000_000;
/// Longest request.
const MAX_US: u64 = 7 * 24 * 3600 * 1_000_000;
/// Start times before 2020 come from a clock that was never set.
const MIN_STARTED_MS: i64 = 1_577_836_800_000;
/// How far a node's clock may be ahead.
const MAX_AHEAD_MS: i64 = 24 * 3600 * 1000;
/// Most that one request may cost: a million dollars.
const MAX_COST: Nanos = Nanos(1_000_000_000_000_000);

/// Why a record is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// `bad_record` or `foreign_workspace`.
    pub code: &'static str,
    /// For people.
    pub detail: &'static str,
}

/// A record that can be true.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Its place in the journal.
    pub seq: u64,
    /// Which request.
    pub request_id: RequestId,
    /// Whose.
    pub workspace: WorkspaceId,
    /// What was used.
    pub tokens: Tokens,
    /// How it ended.
    pub outcome: Outcome,
    /// As the node sent it, texts made fit for storage.
    pub record: proto::UsageRecord,
}

/// Reads and checks one record.
///
/// # Errors
/// When it cannot be true by itself. Whether its key belongs to its workspace is not known here.
pub fn check(seq: u64, encoded: &[u8], now_ms: i64) -> Result<Checked, Refused> {
    let bad = |detail| Refused { code: "bad_record", detail };
    let mut record = proto::UsageRecord::decode(encoded).map_err(|_| bad("not a usage record"))?;
    let id: [u8; 16] = record.request_id.as_slice().try_into().map_err(|_| bad("request_id must be 16 bytes"))?;
    let workspace = record.workspace_id.parse().map_err(|_| bad("workspace_id is not an id"))?;
    let _: ApiKeyId = record.api_key_id.parse().map_err(|_| bad("api_key_id is not an id"))?;
    if !record.project_id.is_empty() {
        let _: ProjectId = record.project_id.parse().map_err(|_| bad("project_id is not an id"))?;
    }
    let tokens = record.tokens.as_ref().map(Tokens::from).unwrap_or_default();
    let classes = [
        tokens.input,
        tokens.cache_read,
        tokens.cache_write_5m,
        tokens.cache_write_1h,
        tokens.output,
        tokens.reasoning,
        tokens.audio_input,
        tokens.audio_output,
    ];
    if classes.iter().any(|count| *count > MAX_TOKENS) {
        return Err(bad("more tokens than any request can use"));
    }
    if !(0..=MAX_COST.0).contains(&record.cost_nanos) {
        return Err(bad("cost_nanos is negative or absurd"));
    }
    if ![record.total_us, record.upstream_us, record.first_byte_us].iter().all(|us| *us <= MAX_US) {
        return Err(bad("longer than any request can take"));
    }
    if !(MIN_STARTED_MS..=now_ms.saturating_add(MAX_AHEAD_MS)).contains(&record.started_at_ms) {
        return Err(bad("started_at_ms is not near this time"));
    }
    if record.status > 599 || record.attempts > 10_000 || record.fallback_level > 10_000 {
        return Err(bad("status, attempts or fallback_level is out of range"));
    }
    let outcome = Outcome::try_from(record.outcome).unwrap_or(Outcome::Unspecified);
    if outcome == Outcome::Unspecified {
        return Err(bad("outcome is not known"));
    }
    clean_texts(&mut record)?;
    Ok(Checked { seq, request_id: RequestId::from_u128(u128::from_be_bytes(id)), workspace, tokens, outcome, record })
}

/// What a record costs by the price row it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Priced {
    /// Zero when unpriced.
    pub cost: Nanos,
    /// Tokens were used and their price is not known.
    pub unpriced: bool,
}

/// Computes the cost again. The node's own figure is not used.
///
/// # Errors
/// When the amount is absurd.
pub fn price(checked: &Checked, row: Option<&proto::Price>) -> Result<Priced, Refused> {
    let Some(row) = row else {
        return Ok(Priced { cost: Nanos(0), unpriced: checked.tokens.total() > 0 });
    };
    match money::cost(&checked.tokens, row) {
        Some(cost) if cost <= MAX_COST => Ok(Priced { cost, unpriced: false }),
        Some(_) | None => Err(Refused { code: "bad_record", detail: "costs more than any request can" }),
    }
}

/// As REST and the tables write it.
pub fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unspecified => "unspecified",
        Outcome::Completed => "completed",
        Outcome::Failed => "failed",
        Outcome::Cut => "cut",
        Outcome::Cancelled => "cancelled",
        Outcome::Interrupted => "interrupted",
    }
}

/// First digit of a status, as the tables write it.
pub fn status_class(status: u32) -> &'static str {
    match status / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        5 => "5xx",
        _ => "none",
    }
}

/// Refuses long texts; takes out NUL, which PostgreSQL cannot store.
fn clean_texts(record: &mut proto::UsageRecord) -> Result<(), Refused> {
    let texts = [
        &mut record.identity,
        &mut record.endpoint,
        &mut record.requested_model,
        &mut record.provider_id,
        &mut record.provider,
        &mut record.vendor,
        &mut record.model,
        &mut record.credential_id,
        &mut record.credential_owner,
        &mut record.router,
        &mut record.policy,
        &mut record.code,
        &mut record.price_id,
        &mut record.service_tier,
        &mut record.region,
    ];
    for text in texts {
        if text.len() > MAX_TEXT {
            return Err(Refused { code: "bad_record", detail: "a text is longer than 512 bytes" });
        }
        if text.contains('\0') {
            *text = text.replace('\0', "\u{fffd}");
        }
    }
    Ok(())
}
