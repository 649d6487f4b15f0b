//! The fleet over REST: nodes, join tokens, what of a workspace is quarantined. Where a change serves is
//! in `changes`.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use shared::ids::{ChangeId, NodeId};

use super::changes;
use super::fleet::NodeState;
use super::outbox::unsigned;
use super::replicas::{self, Question};
use crate::app::App;
use crate::auth::permit::Action;
use crate::auth::token::hex;
use crate::auth::{Principal, Tenant, admin_tokens};
use crate::db::Tx;
use crate::error::{ApiError, Code};
use crate::resources::rfc3339;
use crate::resources::store::{Actor, AuditLine};
use crate::rest::{Access, Body, Claim, Params, Reply, Route};

const NODES: &str = "/api/v1/nodes";
const NODE: &str = "/api/v1/nodes/{id}";

/// Life of a join token unless asked otherwise, and at most.
const TOKEN_LIFE_S: (i64, i64) = (900, 3600);
/// Labels of a join token.
const MAX_LABELS: usize = 32;

/// All routes about nodes and changes.
pub fn routes() -> Vec<Route> {
    let mut list = Route::get(NODES, Access::Fleet(Action::ReadFleet), list)
        .tag("nodes")
        .summary("Lists the nodes")
        .describe("Every node that joined, with what it runs while it is connected.")
        .paged();
    let one = list.reference::<Node>();
    let page = json!({
        "type": "object",
        "required": ["data", "next"],
        "properties": { "data": { "type": "array", "items": one }, "next": { "type": ["string", "null"] } },
    });
    vec![
        list.answers_schema(200, "A page", page),
        Route::post("/api/v1/nodes/tokens", Access::Fleet(Action::ManageFleet), make_token)
            .tag("nodes")
            .summary("Makes a join token")
            .describe("A node joins with it once and gets a certificate of its own. Shown this once.")
            .body::<NewJoinToken>()
            .answers::<JoinToken>(201, "The token"),
        Route::get(NODE, Access::Fleet(Action::ReadFleet), get)
            .tag("nodes")
            .summary("Reads one node")
            .answers::<Node>(200, "The node"),
        Route::delete(NODE, Access::Fleet(Action::ManageFleet), revoke)
            .tag("nodes")
            .summary("Revokes a node: its streams end and it cannot come back")
            .answers::<Node>(200, "The node as it is now"),
        changes::route(),
        Route::get("/api/v1/workspaces/{workspace}/status", Access::Workspace(Action::ReadWorkspace), status)
            .tag("workspaces")
            .summary("Tells how the workspace compiles")
            .answers::<WorkspaceStatus>(200, "Quarantined objects and warnings"),
    ]
}

/// A node.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Node {
    /// Its id, as its certificate names it.
    #[schema(example = "node_0192f0c1d2e34f56a7b8c9d0e1f2a3b4")]
    id: String,
    /// As it calls itself.
    display_name: String,
    /// Program version.
    version: String,
    /// Of its process, hex; null while it is not connected.
    boot_id: Option<String>,
    /// Whether it is connected, to whichever replica of the control plane.
    connected: bool,
    /// RFC 3339; null while it is not connected.
    connected_since: Option<String>,
    /// It may not come back.
    revoked: bool,
    /// Those of its join token before those of its own configuration.
    labels: BTreeMap<String, String>,
    /// RFC 3339.
    joined_at: String,
    /// RFC 3339.
    last_seen_at: String,
    /// RFC 3339; null when it needs none.
    certificate_expires_at: Option<String>,
    /// It runs from an older state because the last one kept crashing it.
    degraded: bool,
    /// It finishes its requests and takes no new ones.
    draining: bool,
    /// Usage that it has not delivered yet.
    journal_bytes: u64,
    /// Requests that it works on.
    requests_in_flight: u64,
    /// Answers of it that confirmed nothing.
    ignored_answers: u64,
    /// What it serves, by workspace id and "shared".
    scopes: BTreeMap<String, NodeScope>,
}

/// What a node serves of one scope.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct NodeScope {
    /// Revision it serves; 0 = none.
    revision: u64,
    /// Newest published revision.
    published_revision: u64,
    /// RFC 3339; null when it came with it.
    serving_since: Option<String>,
    /// 0 when it is current; else milliseconds since the newest revision was committed.
    lag_ms: i64,
    /// From commit to serving of what it serves; null when it was committed before the node had
    /// caught up on this connection.
    convergence_ms: Option<i64>,
    /// Newest refusal that still stands.
    refusal: Option<NodeRefusal>,
    /// Objects of this scope that do not compile.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    quarantined: Vec<QuarantinedObject>,
}

/// Why a node did not take a revision.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NodeRefusal {
    /// Which revision.
    revision: u64,
    /// Stable: `NACK_CODE_DANGLING_REF`, …
    #[schema(example = "NACK_CODE_DANGLING_REF")]
    code: String,
    /// Resource and field.
    path: String,
    /// For a person.
    detail: String,
    /// RFC 3339.
    at: String,
}

/// An object whose newest version does not compile.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct QuarantinedObject {
    /// `provider`, `model`, …
    kind: String,
    /// Which.
    id: String,
    /// The version that does not compile.
    revision: u64,
    /// Stable.
    #[schema(example = "unknown_reference")]
    code: String,
    /// Field; empty = the whole document.
    path: String,
    /// For a person.
    message: String,
    /// The earlier version in force instead; null: it does not serve.
    serving_revision: Option<u64>,
}

/// How a workspace compiles.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WorkspaceStatus {
    /// Revision that was compiled last.
    compiled_revision: u64,
    /// Revision that nodes are given; 0 = none yet.
    published_revision: u64,
    /// Why the newest revision is held back; null when it is not.
    held_back: Option<String>,
    /// Which limit of the smallest node is nearly reached.
    near_limit: Option<String>,
    /// Objects that do not compile.
    quarantined: Vec<QuarantinedObject>,
    /// Objects that serve, but probably not as intended.
    warnings: Vec<ObjectWarning>,
}

/// Something that serves, but probably not as intended.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ObjectWarning {
    /// `alias`, …
    kind: String,
    /// Which.
    id: String,
    /// For a person.
    message: String,
}

/// What is asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJoinToken {
    /// Seconds, 1 to 3600; default 900.
    #[serde(default)]
    expires_in_seconds: Option<i64>,
    /// Given to the node that joins.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// A join token.
#[derive(Debug, Serialize, ToSchema)]
pub struct JoinToken {
    /// Names it in the audit.
    id: String,
    /// The token itself, and a checksum of the control plane's authority. Shown this once.
    token: String,
    /// RFC 3339.
    expires_at: String,
}

#[derive(Debug, Clone, sqlx::FromRow)]
struct Row {
    id: String,
    display_name: String,
    version: String,
    labels: String,
    joined_at_ms: i64,
    last_seen_ms: i64,
    certificate_not_after_ms: i64,
    revoked_at_ms: i64,
}

async fn list(State(app): State<App>, params: Params) -> Result<Reply, ApiError> {
    let limit = params.limit()?;
    let bad = || ApiError::new(Code::InvalidCursor, "send next of the page before");
    let after = match params.get("after") {
        None => String::new(),
        Some(cursor) => app.vault.verify("nodes", cursor).ok_or_else(bad)?,
    };
    let mut rows: Vec<Row> = sqlx::query_as(
        "SELECT id, display_name, version, labels, joined_at_ms, last_seen_ms, certificate_not_after_ms, revoked_at_ms
         FROM nodes WHERE id > $1 ORDER BY id LIMIT $2",
    )
    .bind(after)
    .bind(limit + 1)
    .fetch_all(app.db.pool())
    .await?;
    let more = rows.len() as i64 > limit;
    rows.truncate(usize::try_from(limit).unwrap_or_default());
    let next = rows.last().filter(|_| more).map(|last| app.vault.sign("nodes", &last.id));
    let data = views(&app, &rows).await?;
    Reply::json(StatusCode::OK, &json!({ "data": data, "next": next }))
}

async fn get(State(app): State<App>, Path(id): Path<String>) -> Result<Reply, ApiError> {
    let row = find(&app, &id).await?;
    Reply::json(StatusCode::OK, &views(&app, &[row]).await?.pop())
}

async fn revoke(
    State(app): State<App>,
    principal: Principal,
    claim: Claim,
    Path(id): Path<String>,
) -> Result<Reply, ApiError> {
    let node: NodeId = id.parse().map_err(|_| ApiError::not_found())?;
    let mut row = find(&app, &id).await?;
    let mut tx = app.db.begin().await?;
    let now_ms = app.now_ms();
    let revoked = sqlx::query("UPDATE nodes SET revoked_at_ms = $1 WHERE id = $2 AND revoked_at_ms = 0")
        .bind(now_ms)
        .bind(&id)
        .execute(&mut *tx)
        .await?;
    if revoked.rows_affected() > 0 {
        let actor = Actor::token(principal.id);
        record(&app, &mut tx, &actor, "delete", "node", &id, Some(&json!({ "display_name": row.display_name })))
            .await?;
        row.revoked_at_ms = now_ms;
    }
    let reply = Reply::json(StatusCode::OK, &view(&app, &row))?;
    claim.settle(&app, &mut tx, &reply).await?;
    tx.commit().await?;
    app.publish.fleet.deny(node);
    Ok(reply)
}

async fn make_token(State(app): State<App>, principal: Principal, claim: Claim, body: Body) -> Result<Reply, ApiError> {
    let new: NewJoinToken = body.parse()?;
    let seconds = new.expires_in_seconds.unwrap_or(TOKEN_LIFE_S.0);
    let invalid = |path: &str, message: String| {
        ApiError::new(Code::InvalidDocument, "the fields in errors must be corrected").at(
            path,
            "invalid_value",
            message,
        )
    };
    if !(1..=TOKEN_LIFE_S.1).contains(&seconds) {
        return Err(invalid("expires_in_seconds", format!("must be 1 to {}", TOKEN_LIFE_S.1)));
    }
    let long = |(name, value): (&String, &String)| name.is_empty() || name.len() > 63 || value.len() > 256;
    if new.labels.len() > MAX_LABELS || new.labels.iter().any(long) {
        return Err(invalid("labels", format!("at most {MAX_LABELS}, names of 1 to 63 and values of up to 256 bytes")));
    }
    let not_started = || ApiError::new(Code::Unavailable, "the authority is not open yet; try again");
    let authority = app.publish.authority().ok_or_else(not_started)?;
    let mut tx = app.db.begin().await?;
    let made = authority.make_token(&app, &mut tx, &new.labels, seconds * 1000).await?;
    let actor = Actor::token(principal.id);
    let after = json!({ "labels": new.labels, "expires_at": rfc3339(made.expires_at_ms) });
    record(&app, &mut tx, &actor, "create", "join_token", &made.id.to_string(), Some(&after)).await?;
    let view = JoinToken { id: made.id.to_string(), token: made.text, expires_at: rfc3339(made.expires_at_ms) };
    let reply = Reply::json(StatusCode::CREATED, &view)?;
    claim.settle(&app, &mut tx, &reply).await?;
    tx.commit().await?;
    Ok(reply)
}

async fn status(State(app): State<App>, tenant: Tenant) -> Result<Reply, ApiError> {
    let status = app.publish.status(tenant.scope()).unwrap_or_default();
    let published = app.publish.board.get(tenant.scope());
    let warning = |w: &compiler::lower::Warning| ObjectWarning {
        kind: w.kind.clone(),
        id: w.id.clone(),
        message: w.message.clone(),
    };
    let view = WorkspaceStatus {
        compiled_revision: status.revision,
        published_revision: published.map(|p| p.revision()).unwrap_or_default(),
        quarantined: quarantined(&app, tenant.scope()),
        warnings: status.warnings.iter().map(warning).collect(),
        held_back: status.held_back,
        near_limit: status.near_limit,
    };
    Reply::json(StatusCode::OK, &view)
}

/// What other replicas are told who ask.
pub(super) async fn answer(app: &App, question: Question) -> Result<serde_json::Value, sqlx::Error> {
    match question {
        Question::Nodes(ids) => {
            let mut found = Vec::new();
            for id in ids {
                if app.publish.fleet.get(id).is_some_and(|state| state.stream.is_some())
                    && let Some(row) = row(app, &id.to_string()).await?
                {
                    found.push(json!(view(app, &row)));
                }
            }
            Ok(found.into())
        }
        Question::Change { scope, revision } => Ok(json!(changes::nodes_of(app, &scope, revision))),
    }
}

/// Nodes, wherever they are connected.
async fn views(app: &App, rows: &[Row]) -> Result<Vec<serde_json::Value>, ApiError> {
    let here: Vec<Node> = rows.iter().map(|row| view(app, row)).collect();
    let ids: Vec<NodeId> = here.iter().filter(|node| !node.revoked).filter_map(|node| node.id.parse().ok()).collect();
    let elsewhere = match ids.is_empty() {
        true => Vec::new(),
        false => replicas::ask::<serde_json::Value>(app, &Question::Nodes(ids)).await?.found,
    };
    let newest = |node: Node| {
        let here = json!(node);
        // A node that changed replicas may still be listed by the one it left. Times of one form; clocks
        // that differ show the older view for half a minute at most.
        let since = |node: &serde_json::Value| node["connected_since"].as_str().unwrap_or_default().to_owned();
        let all = elsewhere.iter().filter(|other| other["id"] == here["id"]).cloned().chain([here.clone()]);
        all.max_by_key(since).unwrap_or(here)
    };
    Ok(here.into_iter().map(newest).collect())
}

async fn find(app: &App, id: &str) -> Result<Row, ApiError> {
    row(app, id).await?.ok_or_else(ApiError::not_found)
}

async fn row(app: &App, id: &str) -> Result<Option<Row>, sqlx::Error> {
    sqlx::query_as(
        "SELECT id, display_name, version, labels, joined_at_ms, last_seen_ms, certificate_not_after_ms, revoked_at_ms
         FROM nodes WHERE id = $1",
    )
    .bind(id)
    .fetch_optional(app.db.pool())
    .await
}

fn view(app: &App, row: &Row) -> Node {
    let state = row.id.parse::<NodeId>().ok().and_then(|id| app.publish.fleet.get(id)).unwrap_or_default();
    let connected = state.stream.is_some();
    let mut labels = state.labels.clone();
    labels.extend(serde_json::from_str::<BTreeMap<String, String>>(&row.labels).unwrap_or_default());
    let known = |live: &String, stored: &String| if live.is_empty() { stored.clone() } else { live.clone() };
    Node {
        id: row.id.clone(),
        display_name: known(&state.display_name, &row.display_name),
        version: known(&state.version, &row.version),
        boot_id: connected.then(|| hex(&state.boot_id)),
        connected,
        connected_since: connected.then(|| rfc3339(state.connected_at_ms)),
        revoked: row.revoked_at_ms != 0,
        labels,
        joined_at: rfc3339(row.joined_at_ms),
        last_seen_at: rfc3339(row.last_seen_ms.max(state.last_seen_ms)),
        certificate_expires_at: (row.certificate_not_after_ms != 0).then(|| rfc3339(row.certificate_not_after_ms)),
        degraded: state.degraded,
        draining: state.beat.draining,
        journal_bytes: state.beat.journal_bytes,
        requests_in_flight: state.beat.requests_in_flight,
        ignored_answers: state.ignored,
        scopes: if connected { scopes(app, &state) } else { BTreeMap::new() },
    }
}

fn scopes(app: &App, state: &NodeState) -> BTreeMap<String, NodeScope> {
    let now_ms = app.now_ms();
    let mut scopes = BTreeMap::new();
    for published in app.publish.board.all() {
        let name = published.scope().to_string();
        let serving = state.serves.get(published.scope());
        if published.is_removed() && serving.is_none() {
            continue;
        }
        let revision = serving.map(|s| s.revision).unwrap_or_default();
        let current = revision >= published.revision();
        let refused = state.refused.get(published.scope());
        scopes.insert(
            name.clone(),
            NodeScope {
                revision,
                published_revision: published.revision(),
                serving_since: serving.filter(|s| s.since_ms != 0).map(|s| rfc3339(s.since_ms)),
                lag_ms: if current { 0 } else { now_ms.saturating_sub(published.committed_at_ms()).max(0) },
                convergence_ms: serving.and_then(|s| s.convergence_ms),
                refusal: refused.map(|(refusal, at_ms)| refusal_view(refusal, *at_ms)),
                quarantined: quarantined(app, &name),
            },
        );
    }
    scopes
}

pub(super) fn refusal_view(refusal: &super::session::Refusal, at_ms: i64) -> NodeRefusal {
    NodeRefusal {
        revision: refusal.revision,
        code: refusal.code.as_str_name().to_owned(),
        path: refusal.path.clone(),
        detail: refusal.detail.clone(),
        at: rfc3339(at_ms),
    }
}

pub(super) fn quarantined(app: &App, scope: &str) -> Vec<QuarantinedObject> {
    let status = app.publish.status(scope).unwrap_or_default();
    let object = |q: compiler::lower::Quarantined| QuarantinedObject {
        kind: q.kind,
        id: q.id,
        revision: q.revision,
        code: q.code.to_owned(),
        path: q.path,
        message: q.message,
        serving_revision: q.serving_revision,
    };
    status.quarantined.into_iter().map(object).collect()
}

/// A line in the audit of what belongs to no workspace.
async fn record(
    app: &App,
    tx: &mut Tx,
    actor: &Actor,
    action: &str,
    kind: &str,
    id: &str,
    what: Option<&serde_json::Value>,
) -> Result<(), ApiError> {
    let revision = admin_tokens::lock(tx).await?;
    let now_ms = app.now_ms();
    let change_id = ChangeId::new(unsigned(now_ms), runtime::random::bytes()).to_string();
    let what = what.map(ToString::to_string);
    let (before, after) = if action == "delete" { (what.as_deref(), None) } else { (None, what.as_deref()) };
    let line = AuditLine {
        change_id: &change_id,
        scope: "admin",
        revision,
        at_ms: now_ms,
        actor: actor.as_str(),
        action,
        kind,
        object_id: id,
        before,
        after,
    };
    line.append(tx).await
}
