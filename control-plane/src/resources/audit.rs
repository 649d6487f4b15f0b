//! The audit of a workspace, to read and to verify. It never changes a line.

use axum::extract::State;
use http::StatusCode;
use serde_json::{Value, json};

use super::Noun as _;
use super::api_key::ApiKeys;
use super::crud::page_schema;
use super::store::{AuditLine, Scope};
use super::view::rfc3339;
use crate::app::App;
use crate::auth::Tenant;
use crate::auth::permit::Action;
use crate::error::{ApiError, Code};
use crate::rest::{Access, Params, Reply, Route};

const LIST: &str = "/api/v1/workspaces/{workspace}/audit";

pub(super) fn routes() -> Vec<Route> {
    let access = Access::Workspace(Action::ReadAudit);
    let text = || json!({ "type": "string" });
    let line = json!({ "type": "object", "properties": {
        "change_id": text(), "revision": { "type": "integer" }, "at": { "type": "string", "format": "date-time" },
        "actor": text(), "action": { "enum": ["create", "update", "delete", "confirm"] }, "kind": text(), "object_id": text(),
        "before": { "type": ["object", "null"] }, "after": { "type": ["object", "null"] }, "hash": text(),
    } });
    let verdict = json!({ "type": "object", "properties": {
        "intact": { "type": "boolean" }, "lines": { "type": "integer" }, "broken_at": { "type": ["integer", "null"] },
    } });
    vec![
        Route::get(LIST, access, list).tag("audit").summary("Who changed what, newest first")
            .describe("`before` and `after` are the documents without what is never shown, so `hash`, which covers the stored line, is checked by `audit/verification` alone.")
            .paged()
            .answers_schema(200, "A page", page_schema(line)),
        Route::get("/api/v1/workspaces/{workspace}/audit/verification", access, verification)
            .tag("audit")
            .summary("Whether the chain of hashes is intact")
            .answers_schema(200, "The verdict", verdict),
    ]
}

/// A stored line.
#[derive(Debug, sqlx::FromRow)]
struct Line {
    change_id: String,
    scope: String,
    revision: i64,
    at_ms: i64,
    actor: String,
    action: String,
    kind: String,
    object_id: String,
    before: Option<String>,
    after: Option<String>,
    hash: String,
}

impl Line {
    fn as_audit(&self) -> AuditLine<'_> {
        AuditLine {
            change_id: &self.change_id,
            scope: &self.scope,
            revision: self.revision,
            at_ms: self.at_ms,
            actor: &self.actor,
            action: &self.action,
            kind: &self.kind,
            object_id: &self.object_id,
            before: self.before.as_deref(),
            after: self.after.as_deref(),
        }
    }

    fn view(&self) -> Value {
        let doc = |text: &Option<String>| {
            let mut doc = text.as_ref().and_then(|t| serde_json::from_str::<Value>(t).ok());
            // What the object does not show, its past must not show either.
            if let Some(Value::Object(fields)) = &mut doc {
                fields.retain(|name, _| !ApiKeys::HIDDEN.contains(&name.as_str()));
            }
            doc
        };
        json!({
            "change_id": self.change_id, "revision": self.revision, "at": rfc3339(self.at_ms), "actor": self.actor,
            "action": self.action, "kind": self.kind, "object_id": self.object_id, "before": doc(&self.before),
            "after": doc(&self.after), "hash": self.hash,
        })
    }
}

async fn list(State(app): State<App>, tenant: Tenant, params: Params) -> Result<Reply, ApiError> {
    let limit = params.limit()?;
    let context = format!("{}/audit", tenant.scope());
    let bad = || ApiError::new(Code::InvalidCursor, "send next of the page before");
    let below = match params.get("after") {
        None => i64::MAX,
        Some(cursor) => app.vault.verify(&context, cursor).and_then(|text| text.parse().ok()).ok_or_else(bad)?,
    };
    let mut lines: Vec<Line> = sqlx::query_as(
        "SELECT change_id, scope, revision, at_ms, actor, action, kind, object_id, before, after, hash FROM audit
         WHERE scope = $1 AND revision < $2 ORDER BY revision DESC LIMIT $3",
    )
    .bind(tenant.scope())
    .bind(below)
    .bind(limit + 1)
    .fetch_all(app.db.pool())
    .await?;
    let more = lines.len() as i64 > limit;
    lines.truncate(usize::try_from(limit).unwrap_or_default());
    let next = lines.last().filter(|_| more).map(|last| app.vault.sign(&context, &last.revision.to_string()));
    let data: Vec<_> = lines.iter().map(Line::view).collect();
    Reply::json(StatusCode::OK, &json!({ "data": data, "next": next }))
}

async fn verification(State(app): State<App>, tenant: Tenant) -> Result<Reply, ApiError> {
    let verdict = verify(&app, &Scope::of(&tenant)).await?;
    let body = json!({ "intact": verdict.broken_at.is_none(), "lines": verdict.lines, "broken_at": verdict.broken_at });
    Reply::json(StatusCode::OK, &body)
}

/// What reading a chain found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Lines that were read.
    pub lines: i64,
    /// Revision of the first line whose hash is not what its content and its predecessor give.
    pub broken_at: Option<i64>,
}

/// Reads the whole chain of a scope, in pieces.
pub(super) async fn verify(app: &App, scope: &Scope) -> Result<Verdict, ApiError> {
    const PIECE: i64 = 500;
    let mut verdict = Verdict { lines: 0, broken_at: None };
    let (mut previous, mut above) = (String::new(), 0);
    loop {
        let lines: Vec<Line> = sqlx::query_as(
            "SELECT change_id, scope, revision, at_ms, actor, action, kind, object_id, before, after, hash FROM audit
             WHERE scope = $1 AND revision > $2 ORDER BY revision LIMIT $3",
        )
        .bind(scope.as_str())
        .bind(above)
        .bind(PIECE)
        .fetch_all(app.db.pool())
        .await?;
        for line in &lines {
            verdict.lines += 1;
            if line.as_audit().hash(&previous)? != line.hash {
                verdict.broken_at = Some(line.revision);
                return Ok(verdict);
            }
            above = line.revision;
            previous.clone_from(&line.hash);
        }
        if (lines.len() as i64) < PIECE {
            break;
        }
    }
    // Lines cut off at the end leave a chain that is whole; the objects' history still knows of them.
    let (last,): (i64,) = sqlx::query_as("SELECT COALESCE(MAX(revision), 0) FROM object_history WHERE scope = $1")
        .bind(scope.as_str())
        .fetch_one(app.db.pool())
        .await?;
    if last > above {
        verdict.broken_at = Some(above + 1);
    }
    Ok(verdict)
}
