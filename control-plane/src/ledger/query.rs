//! Reads: sums by time and names, and single records. Only what [`super::ingest`] wrote; nothing is
//! estimated or filled in.

use sqlx::{AnyPool, FromRow, Row};

use super::sql::Sql;
use crate::db::{Db, Engine};

/// (name in REST, column of usage_minutes): what sums may be grouped and filtered by.
pub const NAMES: [(&str, &str); 13] = [
    ("workspace", "workspace_id"),
    ("project", "project_id"),
    ("api_key", "api_key_id"),
    ("identity", "identity"),
    ("provider", "provider"),
    ("vendor", "vendor"),
    ("model", "model"),
    ("credential", "credential_id"),
    ("credential_owner", "credential_owner"),
    ("router", "router"),
    ("policy", "policy"),
    ("endpoint", "endpoint"),
    ("status_class", "status_class"),
];

/// What is summed, in the order of [`Sums`].
const COUNTS: [&str; 15] = [
    "requests",
    "errors",
    "estimated",
    "unpriced",
    "input",
    "cache_read",
    "cache_write_5m",
    "cache_write_1h",
    "output",
    "reasoning",
    "audio_input",
    "audio_output",
    "cost_nanos",
    "total_us",
    "upstream_us",
];

/// Length of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// One bucket for the whole time.
    None,
    /// 60 s.
    Minute,
    /// 60 min.
    Hour,
    /// A day in UTC.
    Day,
    /// A calendar month in UTC.
    Month,
}

impl Grain {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::None, Self::Minute, Self::Hour, Self::Day, Self::Month];

    /// As REST writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// The start of a row's bucket.
    fn bucket(self, engine: Engine) -> &'static str {
        match (self, engine) {
            (Self::None, _) => "CAST(0 AS BIGINT)",
            (Self::Minute, _) => "minute_ms",
            (Self::Hour, _) => "minute_ms - minute_ms % 3600000",
            (Self::Day, _) => "minute_ms - minute_ms % 86400000",
            (Self::Month, Engine::Sqlite) => {
                "CAST(strftime('%s', minute_ms / 1000, 'unixepoch', 'start of month') AS BIGINT) * 1000"
            }
            (Self::Month, Engine::Postgres) => {
                "CAST(EXTRACT(EPOCH FROM date_trunc('month', to_timestamp(minute_ms / 1000) AT TIME ZONE 'UTC')) AS BIGINT) * 1000"
            }
        }
    }
}

/// Which sums.
#[derive(Debug, Clone)]
pub struct Question {
    /// From this minute on, in milliseconds since 1970.
    pub from_ms: i64,
    /// Before this minute.
    pub to_ms: i64,
    /// Buckets.
    pub grain: Grain,
    /// Places in [`NAMES`].
    pub group_by: Vec<usize>,
    /// (place in [`NAMES`], value).
    pub filters: Vec<(usize, String)>,
    /// Rows to skip and to give.
    pub page: (i64, i64),
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    /// Start of the bucket in milliseconds since 1970; 0 for [`Grain::None`].
    pub start_ms: i64,
    /// Values of the names grouped by.
    pub names: Vec<String>,
    /// Values in the order of the columns: requests, errors, estimated, unpriced, eight token classes,
    /// cost in nano-dollars, microseconds in all, microseconds upstream.
    pub counts: [i64; 15],
}

/// Sums up, ordered by time and names.
///
/// # Errors
/// When the database refuses.
pub async fn sums(db: &Db, question: &Question) -> Result<Vec<Sums>, sqlx::Error> {
    let column = |place: &usize| NAMES.get(*place).map_or("''", |(_, column)| *column);
    let mut sql = Sql::new("SELECT ");
    sql.push(question.grain.bucket(db.engine())).push(" AS start_ms");
    for count in COUNTS {
        sql.push(", CAST(COALESCE(SUM(").push(count).push("), 0) AS BIGINT)");
    }
    for place in &question.group_by {
        sql.push(", ").push(column(place));
    }
    sql.push(" FROM usage_minutes WHERE minute_ms >= ").bind(question.from_ms);
    sql.push(" AND minute_ms < ").bind(question.to_ms);
    for (place, value) in &question.filters {
        sql.push(" AND ").push(column(place)).push(" = ").bind(value.as_str());
    }
    sql.push(" GROUP BY 1");
    for place in &question.group_by {
        sql.push(", ").push(column(place));
    }
    sql.push(" ORDER BY 1");
    for place in &question.group_by {
        sql.push(", ").push(column(place));
    }
    sql.push(" LIMIT ").bind(question.page.1).push(" OFFSET ").bind(question.page.0);
    let rows = sql.query().fetch_all(db.pool()).await?;
    rows.iter()
        .map(|row| {
            let mut counts = [0; 15];
            for (place, count) in counts.iter_mut().enumerate() {
                *count = row.try_get(1 + place)?;
            }
            let names = (0..question.group_by.len()).map(|place| row.try_get(1 + counts.len() + place));
            Ok(Sums { start_ms: row.try_get(0)?, names: names.collect::<Result<_, _>>()?, counts })
        })
        .collect()
}

/// One request, as applied.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
#[expect(
    missing_docs,
    reason = "the columns of usage_records, documented in its migration and in proto/v1/usage.proto"
)]
pub struct Record {
    pub request_id: String,
    pub node_id: String,
    pub workspace_id: String,
    pub project_id: String,
    pub api_key_id: String,
    pub identity: String,
    pub endpoint: String,
    pub requested_model: String,
    pub provider_id: String,
    pub provider: String,
    pub vendor: String,
    pub model: String,
    pub credential_id: String,
    pub credential_owner: String,
    pub router: String,
    pub policy: String,
    pub status: i64,
    pub outcome: String,
    pub code: String,
    pub stream: i64,
    pub attempts: i64,
    pub fallback_level: i64,
    pub revision: i64,
    pub started_at_ms: i64,
    pub total_us: i64,
    pub upstream_us: i64,
    pub first_byte_us: i64,
    pub input: i64,
    pub cache_read: i64,
    pub cache_write_5m: i64,
    pub cache_write_1h: i64,
    pub output: i64,
    pub reasoning: i64,
    pub audio_input: i64,
    pub audio_output: i64,
    pub estimated: i64,
    pub unpriced: i64,
    pub price_id: String,
    pub cost_nanos: i64,
    pub service_tier: String,
    pub region: String,
}

const RECORD: &str = "SELECT request_id, node_id, workspace_id, project_id, api_key_id, identity, endpoint, \
    requested_model, provider_id, provider, vendor, model, credential_id, credential_owner, router, policy, status, \
    outcome, code, stream, attempts, fallback_level, revision, started_at_ms, total_us, upstream_us, first_byte_us, \
    input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, audio_input, audio_output, estimated, \
    unpriced, price_id, cost_nanos, service_tier, region FROM usage_records WHERE workspace_id = ";

/// (name in REST, column of usage_records): what records may be filtered by.
pub const RECORD_FILTERS: [(&str, &str); 7] = [
    ("project", "project_id"),
    ("api_key", "api_key_id"),
    ("identity", "identity"),
    ("provider", "provider"),
    ("model", "model"),
    ("endpoint", "endpoint"),
    ("outcome", "outcome"),
];

/// Which records of a workspace.
#[derive(Debug, Clone)]
pub struct Search {
    /// The workspace's id as text.
    pub workspace: String,
    /// Started at or after this, in milliseconds since 1970.
    pub from_ms: i64,
    /// Started before this.
    pub to_ms: i64,
    /// (place in [`RECORD_FILTERS`], value).
    pub filters: Vec<(usize, String)>,
    /// Only what comes after this (start, request id).
    pub after: Option<(i64, String)>,
    /// Rows to give.
    pub limit: i64,
}

/// Records, newest first.
///
/// # Errors
/// When the database refuses.
pub async fn records(pool: &AnyPool, search: &Search) -> Result<Vec<Record>, sqlx::Error> {
    let mut sql = Sql::new(RECORD);
    sql.bind(search.workspace.as_str());
    sql.push(" AND started_at_ms >= ").bind(search.from_ms).push(" AND started_at_ms < ").bind(search.to_ms);
    for (place, value) in &search.filters {
        let column = RECORD_FILTERS.get(*place).map_or("''", |(_, column)| *column);
        sql.push(" AND ").push(column).push(" = ").bind(value.as_str());
    }
    if let Some((started, id)) = &search.after {
        // The first condition alone lets the index find the place.
        sql.push(" AND started_at_ms <= ").bind(*started).push(" AND (started_at_ms < ").bind(*started);
        sql.push(" OR request_id < ").bind(id.as_str()).push(")");
    }
    sql.push(" ORDER BY started_at_ms DESC, request_id DESC LIMIT ").bind(search.limit);
    sql.query_as().fetch_all(pool).await
}

/// One record of a workspace.
///
/// # Errors
/// When the database refuses.
pub async fn record(pool: &AnyPool, workspace: &str, request_id: &str) -> Result<Option<Record>, sqlx::Error> {
    let mut sql = Sql::new(RECORD);
    sql.bind(workspace).push(" AND request_id = ").bind(request_id);
    sql.query_as().fetch_optional(pool).await
}
