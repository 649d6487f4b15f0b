//! Usage over REST: sums by time and names, and the records behind them.

use axum::extract::{Path, State};
use http::StatusCode;
use serde::Serialize;
use serde_json::{Map, Value, json};
use shared::ids::RequestId;
use shared::money::Nanos;
use shared::usage::Tokens;
use utoipa::ToSchema;

use super::period;
use super::query::{self, Grain, NAMES, Question, RECORD_FILTERS, Record, Search, Sums};
use crate::app::App;
use crate::auth::permit::Action;
use crate::auth::{Principal, Reach, Tenant};
use crate::error::{ApiError, Code};
use crate::resources::rfc3339;
use crate::rest::{Access, Params, Reply, Route};

const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 24 * 60 * MINUTE_MS;
/// Rows of an answer unless asked otherwise, and at most.
const ROWS: (i64, i64) = (1000, 10_000);
/// Pages do not go deeper than this many rows.
const MAX_OFFSET: i64 = 1_000_000;
/// Longest time of one question at the finest grain.
const MAX_MINUTES_MS: i64 = 31 * DAY_MS;

/// Sums over a time, for one bucket and one combination of names.
#[derive(Debug, Serialize, ToSchema)]
struct UsageRow {
    /// Start of the bucket; null when `grain` is `none`.
    #[schema(example = "2026-01-01T00:00:00.000Z")]
    start: Option<String>,
    /// The names grouped by.
    #[schema(value_type = Object)]
    group: Map<String, Value>,
    /// Requests that ended.
    requests: i64,
    /// Of these, not completed: failed, cut, cancelled or interrupted.
    errors: i64,
    /// Of these, with tokens counted by us because the provider did not report them.
    estimated: i64,
    /// Of these, with tokens and without a price: their cost is not in `cost_nanos`.
    unpriced: i64,
    /// Tokens by class; the classes do not overlap.
    #[schema(value_type = Object)]
    tokens: Value,
    /// Nano-dollars.
    cost_nanos: i64,
    /// The same in dollars, exact.
    #[schema(example = "0.001234500")]
    cost_usd: String,
    /// Microseconds from arrival to the last byte, summed up.
    total_us: i64,
    /// Of these, spent waiting for providers.
    upstream_us: i64,
}

/// Sums.
#[derive(Debug, Serialize, ToSchema)]
struct Usage {
    /// Start of the time asked for, on a whole minute.
    from: String,
    /// Its end, exclusive, on a whole minute.
    to: String,
    /// Length of the buckets.
    grain: &'static str,
    /// Ordered by start and names. Buckets without requests do not appear.
    data: Vec<UsageRow>,
    /// `after` of the next page; null on the last.
    next: Option<String>,
}

/// One request.
#[derive(Debug, Serialize, ToSchema)]
struct UsageRecord {
    /// The answer's `x-request-id`.
    request_id: String,
    /// The node that served it.
    node: String,
    project: String,
    api_key: String,
    /// The end user as the caller named it.
    identity: String,
    endpoint: String,
    /// As the caller wrote it.
    requested_model: String,
    provider: String,
    vendor: String,
    model: String,
    credential: String,
    /// Whose credential: `workspace` or `operator`.
    credential_owner: String,
    router: String,
    policy: String,
    /// HTTP status; 499 when the caller left first, 0 when none was sent.
    status: i64,
    /// `completed`, `failed`, `cut`, `cancelled` or `interrupted`.
    outcome: String,
    /// Failure or refusal code, if any.
    code: String,
    stream: bool,
    attempts: i64,
    fallback_level: i64,
    /// Revision of the workspace that decided.
    revision: i64,
    started_at: String,
    total_us: i64,
    upstream_us: i64,
    first_byte_us: i64,
    /// Tokens by class; the classes do not overlap.
    #[schema(value_type = Object)]
    tokens: Value,
    /// The provider did not report; the tokens are our count.
    estimated: bool,
    /// Tokens were used and no price is known.
    unpriced: bool,
    /// The price row used.
    price_id: String,
    /// Nano-dollars.
    cost_nanos: i64,
    /// The same in dollars, exact.
    cost_usd: String,
    service_tier: String,
    region: String,
}

/// Records.
#[derive(Debug, Serialize, ToSchema)]
struct UsageRecords {
    /// Newest first.
    data: Vec<UsageRecord>,
    /// `after` of the next page; null on the last.
    next: Option<String>,
}

/// The routes of usage.
pub fn routes() -> Vec<Route> {
    let workspace = Access::Workspace(Action::ReadUsage);
    vec![
        asked(Route::get("/api/v1/workspaces/{workspace}/usage", workspace, of_workspace), false)
            .summary("What a workspace used, by time and any names"),
        asked(Route::get("/api/v1/usage", Access::Fleet(Action::ReadUsage), of_all), true)
            .summary("What all workspaces within reach used"),
        filtered(Route::get("/api/v1/workspaces/{workspace}/requests", workspace, list))
            .tag("usage")
            .summary("Requests, newest first")
            .paged()
            .answers::<UsageRecords>(200, "A page"),
        Route::get("/api/v1/workspaces/{workspace}/requests/{request_id}", workspace, get)
            .tag("usage")
            .summary("One request")
            .answers::<UsageRecord>(200, "The request"),
    ]
}

const FROM: &str = "RFC 3339 or milliseconds since 1970, rounded down to a minute; default: 24 hours before `to`";
const TO: &str = "The same, exclusive; default: now, the running minute included";

fn asked(route: Route, all: bool) -> Route {
    let mut route = route
        .tag("usage")
        .query("from", FROM)
        .query("to", TO)
        .query("grain", "`none` (default), `minute`, `hour`, `day` or `month`, in UTC")
        .query("group_by", "Names, separated by commas: any of those below")
        .query("limit", "Rows, 1 to 10000; default 1000")
        .query("after", "`next` of the page before")
        .answers::<Usage>(200, "Sums");
    for (name, _) in NAMES.iter().filter(|(name, _)| all || *name != "workspace") {
        route = route.query(name, "Only this one");
    }
    route
}

fn filtered(route: Route) -> Route {
    let mut route = route
        .query("from", "RFC 3339 or milliseconds since 1970; default: the beginning")
        .query("to", "The same, exclusive; default: no end");
    for (name, _) in RECORD_FILTERS {
        route = route.query(name, "Only this one");
    }
    route
}

async fn of_workspace(State(app): State<App>, tenant: Tenant, params: Params) -> Result<Reply, ApiError> {
    answer(&app, &params, Some(tenant.scope())).await
}

async fn of_all(State(app): State<App>, principal: Principal, params: Params) -> Result<Reply, ApiError> {
    let own = match principal.reach {
        Reach::All => None,
        Reach::One(id) => Some(id.to_string()),
    };
    answer(&app, &params, own.as_deref()).await
}

/// `within` is the only workspace whose usage may be seen, if not all.
async fn answer(app: &App, params: &Params, within: Option<&str>) -> Result<Reply, ApiError> {
    let mut question = question(params, app.now_ms())?;
    if let Some(scope) = within {
        question.filters.push((0, scope.to_owned()));
    }
    // The default times are those of the first page.
    let context = format!("usage/{}/{}", within.unwrap_or_default(), params.filters());
    if let Some(cursor) = params.get("after") {
        let place = app.vault.verify(&context, cursor).and_then(|text| resume(&text)).ok_or_else(bad_cursor)?;
        (question.from_ms, question.to_ms, question.page.0) = place;
    }
    let limit = question.page.1;
    question.page.1 += 1;
    let mut rows = query::sums(&app.db, &question).await?;
    let more = rows.len() as i64 > limit;
    rows.truncate(usize::try_from(limit).unwrap_or_default());
    let offset = question.page.0 + limit;
    let next = (more && offset <= MAX_OFFSET)
        .then(|| app.vault.sign(&context, &format!("{}:{}:{offset}", question.from_ms, question.to_ms)));
    let data = rows.iter().map(|row| usage_row(&question, row)).collect();
    let (from, to) = (rfc3339(question.from_ms), rfc3339(question.to_ms));
    Reply::json(StatusCode::OK, &Usage { from, to, grain: question.grain.as_str(), data, next })
}

fn question(params: &Params, now_ms: i64) -> Result<Question, ApiError> {
    let floor = |ms: i64| ms - ms.rem_euclid(MINUTE_MS);
    let to_ms = instant(params, "to")?.map_or_else(|| floor(now_ms) + MINUTE_MS, floor);
    let from_ms = floor(instant(params, "from")?.unwrap_or(to_ms - DAY_MS));
    if from_ms >= to_ms {
        return Err(wrong("from", "must be before to, by a minute at least"));
    }
    let grain = params.get("grain").unwrap_or(Grain::None.as_str());
    let grain = Grain::ALL.into_iter().find(|known| known.as_str() == grain);
    let grain = grain.ok_or_else(|| wrong("grain", "must be none, minute, hour, day or month"))?;
    if grain == Grain::Minute && to_ms - from_ms > MAX_MINUTES_MS {
        return Err(wrong("grain", "minute is for at most 31 days"));
    }
    let mut group_by = Vec::new();
    for name in params.get("group_by").unwrap_or_default().split(',').filter(|name| !name.is_empty()) {
        let place = NAMES.iter().position(|(known, _)| *known == name);
        let place = place.filter(|place| !group_by.contains(place));
        group_by.push(place.ok_or_else(|| wrong("group_by", "must name known things, each once"))?);
    }
    let filters = (0..).zip(NAMES).filter_map(|(place, (name, _))| Some((place, params.get(name)?.to_owned())));
    let limit = params.parsed::<i64>("limit", "a number from 1 to 10000")?.unwrap_or(ROWS.0);
    if !(1..=ROWS.1).contains(&limit) {
        return Err(wrong("limit", "must be a number from 1 to 10000"));
    }
    Ok(Question { from_ms, to_ms, grain, group_by, filters: filters.collect(), page: (0, limit) })
}

fn resume(text: &str) -> Option<(i64, i64, i64)> {
    let mut parts = text.split(':').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

fn usage_row(question: &Question, sums: &Sums) -> UsageRow {
    let [requests, errors, estimated, unpriced, classes @ .., cost_nanos, total_us, upstream_us] = sums.counts;
    let name = |place: &usize| NAMES.get(*place).map_or("", |(name, _)| *name);
    let names = question.group_by.iter().map(name).zip(&sums.names);
    UsageRow {
        start: (question.grain != Grain::None).then(|| rfc3339(sums.start_ms)),
        group: names.map(|(name, value)| (name.to_owned(), json!(value))).collect(),
        requests,
        errors,
        estimated,
        unpriced,
        tokens: tokens(classes),
        cost_nanos,
        cost_usd: Nanos(cost_nanos).to_string(),
        total_us,
        upstream_us,
    }
}

/// The eight classes, and their sums.
fn tokens(classes: [i64; 8]) -> Value {
    let [input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, audio_input, audio_output] =
        classes.map(|count| u64::try_from(count).unwrap_or_default());
    let all =
        Tokens { input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, audio_input, audio_output };
    let mut object = json!(all);
    object["prompt"] = json!(all.prompt());
    object["produced"] = json!(all.produced());
    object["total"] = json!(all.total());
    object
}

async fn list(State(app): State<App>, tenant: Tenant, params: Params) -> Result<Reply, ApiError> {
    let limit = params.limit()?;
    let context = format!("requests/{}/{}", tenant.scope(), params.filters());
    let after = match params.get("after") {
        None => None,
        Some(cursor) => {
            let text = app.vault.verify(&context, cursor);
            let place = text.as_deref().and_then(|text| text.split_once(':'));
            let place = place.and_then(|(started, id)| Some((started.parse().ok()?, id.to_owned())));
            Some(place.ok_or_else(bad_cursor)?)
        }
    };
    let filters =
        (0..).zip(RECORD_FILTERS).filter_map(|(place, (name, _))| Some((place, params.get(name)?.to_owned())));
    let search = Search {
        workspace: tenant.scope().to_owned(),
        from_ms: instant(&params, "from")?.unwrap_or(i64::MIN),
        to_ms: instant(&params, "to")?.unwrap_or(i64::MAX),
        filters: filters.collect(),
        after,
        limit: limit + 1,
    };
    let mut records = query::records(app.db.pool(), &search).await?;
    let more = records.len() as i64 > limit;
    records.truncate(usize::try_from(limit).unwrap_or_default());
    let last = records.last().filter(|_| more);
    let next = last.map(|last| app.vault.sign(&context, &format!("{}:{}", last.started_at_ms, last.request_id)));
    Reply::json(StatusCode::OK, &UsageRecords { data: records.into_iter().map(view).collect(), next })
}

async fn get(
    State(app): State<App>,
    tenant: Tenant,
    Path((_, request_id)): Path<(String, String)>,
) -> Result<Reply, ApiError> {
    let id: RequestId = request_id.parse().map_err(|_| ApiError::not_found())?;
    let record = query::record(app.db.pool(), tenant.scope(), &id.to_string()).await?;
    Reply::json(StatusCode::OK, &view(record.ok_or_else(ApiError::not_found)?))
}

fn view(r: Record) -> UsageRecord {
    let classes = [
        r.input,
        r.cache_read,
        r.cache_write_5m,
        r.cache_write_1h,
        r.output,
        r.reasoning,
        r.audio_input,
        r.audio_output,
    ];
    UsageRecord {
        request_id: r.request_id,
        node: r.node_id,
        project: r.project_id,
        api_key: r.api_key_id,
        identity: r.identity,
        endpoint: r.endpoint,
        requested_model: r.requested_model,
        provider: r.provider,
        vendor: r.vendor,
        model: r.model,
        credential: r.credential_id,
        credential_owner: r.credential_owner,
        router: r.router,
        policy: r.policy,
        status: r.status,
        outcome: r.outcome,
        code: r.code,
        stream: r.stream != 0,
        attempts: r.attempts,
        fallback_level: r.fallback_level,
        revision: r.revision,
        started_at: rfc3339(r.started_at_ms),
        total_us: r.total_us,
        upstream_us: r.upstream_us,
        first_byte_us: r.first_byte_us,
        tokens: tokens(classes),
        estimated: r.estimated != 0,
        unpriced: r.unpriced != 0,
        price_id: r.price_id,
        cost_nanos: r.cost_nanos,
        cost_usd: Nanos(r.cost_nanos).to_string(),
        service_tier: r.service_tier,
        region: r.region,
    }
}

fn instant(params: &Params, name: &'static str) -> Result<Option<i64>, ApiError> {
    let Some(text) = params.get(name) else { return Ok(None) };
    let ms = period::parse(text).ok_or_else(|| wrong(name, "must be RFC 3339 or milliseconds since 1970"))?;
    Ok(Some(ms))
}

fn wrong(name: &'static str, message: &'static str) -> ApiError {
    ApiError::new(Code::InvalidQuery, format!("{name}: {message}")).at(name, "invalid_value", message)
}

fn bad_cursor() -> ApiError {
    ApiError::new(Code::InvalidCursor, "send next of the page before, with the same filters")
}
