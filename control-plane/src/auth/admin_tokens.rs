//! Admin tokens over REST. Nobody hands out more than they have, and the last token that could repair
//! everything cannot be taken away.
//!
//! Tokens belong to no workspace's revision: no node needs them. Their audit is a chain of its own,
//! scope `admin`.

use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use shared::ids::{AdminTokenId, ChangeId};
use utoipa::ToSchema;

use super::permit::{Action, Role, may_grant};
use super::{Principal, Reach, Tenant, token};
use crate::app::App;
use crate::db::Tx;
use crate::error::{ApiError, Code};
use crate::resources::rfc3339;
use crate::resources::store::{Actor, AuditLine};
use crate::rest::{Access, Body, Claim, Params, Reply, Route};
use crate::vault::Secret;

const COLLECTION: &str = "/api/v1/admin-tokens";
const ITEM: &str = "/api/v1/admin-tokens/{id}";

/// Scope of the audit of what belongs to no workspace.
const AUDIT_SCOPE: &str = "admin";

/// What is asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAdminToken {
    /// For people; at most 200 characters.
    name: String,
    /// What it may.
    role: Role,
    /// Id or key of the workspace it is for. Needed for workspace roles, unless the caller's own token
    /// is for one; not allowed for operators.
    #[serde(default)]
    workspace: Option<String>,
    /// Milliseconds since 1970; absent = never.
    #[serde(default)]
    expires_at_ms: Option<i64>,
}

/// What can be changed. Role and workspace cannot: make another token.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminTokenChange {
    /// For people; at most 200 characters.
    #[serde(default)]
    name: Option<String>,
    /// Refused while true.
    #[serde(default)]
    disabled: Option<bool>,
    /// Milliseconds since 1970; 0 = never.
    #[serde(default)]
    expires_at_ms: Option<i64>,
}

/// A token as callers see it: never the token itself.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AdminToken {
    /// Its id.
    id: String,
    /// For people.
    name: String,
    /// What it may.
    role: String,
    /// The workspace it is for; null = all.
    workspace_id: Option<String>,
    /// RFC 3339.
    created_at: String,
    /// Milliseconds since 1970; null = never.
    expires_at_ms: Option<i64>,
    /// Refused while true.
    disabled: bool,
}

#[derive(Debug, Clone, sqlx::FromRow)]
struct Row {
    id: String,
    name: String,
    role: String,
    scope: String,
    created_at_ms: i64,
    expires_at_ms: i64,
    disabled: i64,
}

impl Row {
    fn view(&self) -> AdminToken {
        AdminToken {
            id: self.id.clone(),
            name: self.name.clone(),
            role: self.role.clone(),
            workspace_id: (!self.scope.is_empty()).then(|| self.scope.clone()),
            created_at: rfc3339(self.created_at_ms),
            expires_at_ms: (self.expires_at_ms != 0).then_some(self.expires_at_ms),
            disabled: self.disabled != 0,
        }
    }

    /// Whether it can repair everything, for ever.
    fn is_lasting_operator(&self) -> bool {
        self.role == Role::Operator.as_str() && self.disabled == 0 && self.expires_at_ms == 0
    }
}

pub(super) fn routes() -> Vec<Route> {
    let access = Access::Fleet(Action::ManageAdminTokens);
    let mut list = Route::get(COLLECTION, access, list).tag("admin-tokens").summary("Lists those within reach").paged();
    let one = list.reference::<AdminToken>();
    let page = json!({
        "type": "object",
        "properties": { "data": { "type": "array", "items": one.clone() }, "next": { "type": ["string", "null"] } },
    });
    let made = json!({ "allOf": [one, { "type": "object", "properties": {
        "token": { "type": "string", "description": "The token itself. Shown this once." },
    } }] });
    vec![
        list.answers_schema(200, "A page", page),
        Route::post(COLLECTION, access, create)
            .tag("admin-tokens")
            .summary("Creates one; nobody grants more than they have")
            .body::<NewAdminToken>()
            .answers_schema(201, "Created", made),
        Route::get(ITEM, access, get).tag("admin-tokens").summary("Reads one").answers::<AdminToken>(200, "The token"),
        Route::patch(ITEM, access, change)
            .tag("admin-tokens")
            .summary("Changes some fields")
            .body::<AdminTokenChange>()
            .refuses(&[Code::Protected])
            .answers::<AdminToken>(200, "The token"),
        Route::delete(ITEM, access, remove)
            .tag("admin-tokens")
            .summary("Removes one; it is refused from now on")
            .refuses(&[Code::Protected])
            .answers_schema(200, "Removed", json!({ "type": "object" })),
    ]
}

/// Rows within reach: '' = all.
fn reach(principal: &Principal) -> String {
    match principal.reach {
        Reach::All => String::new(),
        Reach::One(id) => id.to_string(),
    }
}

async fn list(State(app): State<App>, principal: Principal, params: Params) -> Result<Reply, ApiError> {
    let limit = params.limit()?;
    let context = format!("admin_tokens/{}", reach(&principal));
    let bad = || ApiError::new(Code::InvalidCursor, "send next of the page before");
    let after = match params.get("after") {
        None => String::new(),
        Some(cursor) => app.vault.verify(&context, cursor).ok_or_else(bad)?,
    };
    let mut rows: Vec<Row> = sqlx::query_as(
        "SELECT id, name, role, scope, created_at_ms, expires_at_ms, disabled FROM admin_tokens
         WHERE id > $1 AND ($2 = '' OR scope = $2) ORDER BY id LIMIT $3",
    )
    .bind(after)
    .bind(reach(&principal))
    .bind(limit + 1)
    .fetch_all(app.db.pool())
    .await?;
    let more = rows.len() as i64 > limit;
    rows.truncate(usize::try_from(limit).unwrap_or_default());
    let next = rows.last().filter(|_| more).map(|last| app.vault.sign(&context, &last.id));
    let data: Vec<_> = rows.iter().map(Row::view).collect();
    Reply::json(StatusCode::OK, &json!({ "data": data, "next": next }))
}

async fn get(State(app): State<App>, principal: Principal, Path(id): Path<String>) -> Result<Reply, ApiError> {
    let mut tx = app.db.begin().await?;
    let row = find(&mut tx, &principal, &id).await?;
    Reply::json(StatusCode::OK, &row.view())
}

async fn create(State(app): State<App>, principal: Principal, claim: Claim, body: Body) -> Result<Reply, ApiError> {
    let new: NewAdminToken = body.parse()?;
    check_name(&new.name)?;
    if new.expires_at_ms.is_some_and(|ms| ms <= app.now_ms()) {
        return Err(invalid("expires_at_ms", "lies in the past"));
    }
    let scope = granted_scope(&app, &principal, &new).await?;
    if !may_grant(principal.role, new.role) {
        return Err(ApiError::new(Code::Forbidden, "a token cannot grant more than it has"));
    }
    let mut tx = app.db.begin().await?;
    let actor = Actor::token(principal.id);
    let (row, secret) = insert(&app, &mut tx, &actor, &new.name, new.role, &scope, new.expires_at_ms).await?;
    let mut all = to_map(&row.view())?;
    all.insert("token".into(), json!(secret.expose_str()));
    let reply = Reply::json(StatusCode::CREATED, &all)?.location(format!("{COLLECTION}/{}", row.id));
    claim.settle(&app, &mut tx, &reply).await?;
    tx.commit().await?;
    Ok(reply)
}

/// The workspace that the new token is for, '' = all.
async fn granted_scope(app: &App, principal: &Principal, new: &NewAdminToken) -> Result<String, ApiError> {
    match (new.role.is_scoped(), &new.workspace, principal.reach) {
        (false, Some(_), _) => Err(invalid("workspace", "an operator's token is for all workspaces")),
        (false, None, Reach::All) => Ok(String::new()),
        (false, None, Reach::One(_)) => Err(ApiError::new(Code::Forbidden, "a token cannot grant more than it has")),
        (true, None, Reach::One(own)) => Ok(own.to_string()),
        (true, None, Reach::All) => Err(invalid("workspace", "must say which workspace the token is for")),
        (true, Some(name), _) => match Tenant::resolve(&app.db, principal, name).await {
            Ok(tenant) => Ok(tenant.scope().to_owned()),
            Err(e) if e.code == Code::NotFound => {
                let refused = ApiError::new(Code::InvalidDocument, "the fields in errors must be corrected");
                Err(refused.at("workspace", "unknown_reference", "does not exist"))
            }
            Err(e) => Err(e),
        },
    }
}

async fn change(
    State(app): State<App>,
    principal: Principal,
    Path(id): Path<String>,
    claim: Claim,
    body: Body,
) -> Result<Reply, ApiError> {
    let change: AdminTokenChange = body.parse()?;
    if let Some(name) = &change.name {
        check_name(name)?;
    }
    if change.expires_at_ms.is_some_and(|ms| ms < 0) {
        return Err(invalid("expires_at_ms", "must not be below zero"));
    }
    let mut tx = app.db.begin().await?;
    let revision = lock(&mut tx).await?;
    let old = find(&mut tx, &principal, &id).await?;
    let mut new = old.clone();
    new.name = change.name.unwrap_or(new.name);
    new.disabled = change.disabled.map_or(new.disabled, i64::from);
    new.expires_at_ms = change.expires_at_ms.unwrap_or(new.expires_at_ms);
    if old.is_lasting_operator() && !new.is_lasting_operator() {
        keep_an_operator(&mut tx, &old.id).await?;
    }
    sqlx::query("UPDATE admin_tokens SET name = $1, disabled = $2, expires_at_ms = $3 WHERE id = $4")
        .bind(&*new.name)
        .bind(new.disabled)
        .bind(new.expires_at_ms)
        .bind(&*new.id)
        .execute(&mut *tx)
        .await?;
    let deed = Deed { app: &app, actor: &Actor::token(principal.id), action: "update", revision };
    deed.record(&mut tx, Some(&old), Some(&new)).await?;
    let reply = Reply::json(StatusCode::OK, &new.view())?;
    claim.settle(&app, &mut tx, &reply).await?;
    tx.commit().await?;
    Ok(reply)
}

async fn remove(
    State(app): State<App>,
    principal: Principal,
    Path(id): Path<String>,
    claim: Claim,
) -> Result<Reply, ApiError> {
    let mut tx = app.db.begin().await?;
    let revision = lock(&mut tx).await?;
    let old = find(&mut tx, &principal, &id).await?;
    if old.is_lasting_operator() {
        keep_an_operator(&mut tx, &old.id).await?;
    }
    sqlx::query("DELETE FROM admin_tokens WHERE id = $1").bind(&*old.id).execute(&mut *tx).await?;
    let deed = Deed { app: &app, actor: &Actor::token(principal.id), action: "delete", revision };
    deed.record(&mut tx, Some(&old), None).await?;
    let reply = Reply::json(StatusCode::OK, &json!({ "id": old.id }))?;
    claim.settle(&app, &mut tx, &reply).await?;
    tx.commit().await?;
    Ok(reply)
}

/// Makes an operator's token outside of any request: at the first start.
pub(crate) async fn insert_first(app: &App, tx: &mut Tx) -> Result<Secret, ApiError> {
    let made = insert(app, tx, &Actor::system(), "first start", Role::Operator, "", None).await?;
    Ok(made.1)
}

async fn insert(
    app: &App,
    tx: &mut Tx,
    actor: &Actor,
    name: &str,
    role: Role,
    scope: &str,
    expires_at_ms: Option<i64>,
) -> Result<(Row, Secret), ApiError> {
    let revision = lock(tx).await?;
    let now_ms = app.now_ms();
    let secret = token::generate(token::ADMIN);
    let row = Row {
        id: AdminTokenId::new(u64::try_from(now_ms).unwrap_or_default(), runtime::random::bytes()).to_string(),
        name: name.to_owned(),
        role: role.as_str().to_owned(),
        scope: scope.to_owned(),
        created_at_ms: now_ms,
        expires_at_ms: expires_at_ms.unwrap_or_default(),
        disabled: 0,
    };
    sqlx::query(
        "INSERT INTO admin_tokens (id, hash, name, role, scope, created_at_ms, expires_at_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(&*row.id)
    .bind(token::hash(secret.expose()))
    .bind(&*row.name)
    .bind(&*row.role)
    .bind(&*row.scope)
    .bind(row.created_at_ms)
    .bind(row.expires_at_ms)
    .execute(&mut **tx)
    .await?;
    let deed = Deed { app, actor, action: "create", revision };
    deed.record(tx, None, Some(&row)).await?;
    Ok((row, secret))
}

/// Takes the lock of all tokens, and gives the next revision of their audit.
pub(crate) async fn lock(tx: &mut Tx) -> Result<i64, ApiError> {
    let (text,): (String,) = sqlx::query_as(
        "INSERT INTO meta (name, value) VALUES ('admin_revision', '1') ON CONFLICT (name) DO UPDATE
         SET value = CAST(CAST(meta.value AS BIGINT) + 1 AS TEXT) RETURNING value",
    )
    .fetch_one(&mut **tx)
    .await?;
    text.parse().map_err(ApiError::internal)
}

async fn find(tx: &mut Tx, principal: &Principal, id: &str) -> Result<Row, ApiError> {
    let row = sqlx::query_as(
        "SELECT id, name, role, scope, created_at_ms, expires_at_ms, disabled FROM admin_tokens
         WHERE id = $1 AND ($2 = '' OR scope = $2)",
    )
    .bind(id)
    .bind(reach(principal))
    .fetch_optional(&mut **tx)
    .await?;
    row.ok_or_else(ApiError::not_found)
}

/// Refuses when no other operator's token would be left that is on and does not expire.
async fn keep_an_operator(tx: &mut Tx, except: &str) -> Result<(), ApiError> {
    let (others,): (i64,) = sqlx::query_as(
        "SELECT COUNT(*) FROM admin_tokens WHERE role = 'operator' AND disabled = 0 AND expires_at_ms = 0 AND id <> $1",
    )
    .bind(except)
    .fetch_one(&mut **tx)
    .await?;
    if others > 0 {
        return Ok(());
    }
    Err(ApiError::new(
        Code::Protected,
        "this is the last operator token that is on and does not expire; make another first",
    ))
}

struct Deed<'a> {
    app: &'a App,
    actor: &'a Actor,
    action: &'static str,
    revision: i64,
}

impl Deed<'_> {
    async fn record(&self, tx: &mut Tx, before: Option<&Row>, after: Option<&Row>) -> Result<(), ApiError> {
        let now_ms = self.app.now_ms();
        let text =
            |row: Option<&Row>| row.map(|r| serde_json::to_string(&r.view()).map_err(ApiError::internal)).transpose();
        let (before_text, after_text) = (text(before)?, text(after)?);
        let change_id = ChangeId::new(u64::try_from(now_ms).unwrap_or_default(), runtime::random::bytes()).to_string();
        let line = AuditLine {
            change_id: &change_id,
            scope: AUDIT_SCOPE,
            revision: self.revision,
            at_ms: now_ms,
            actor: self.actor.as_str(),
            action: self.action,
            kind: "admin_token",
            object_id: before.or(after).map_or("", |row| &row.id),
            before: before_text.as_deref(),
            after: after_text.as_deref(),
        };
        line.append(tx).await
    }
}

fn check_name(name: &str) -> Result<(), ApiError> {
    match compiler::check::free_text(name, 1) {
        Some(message) => Err(invalid("name", message)),
        None => Ok(()),
    }
}

fn invalid(path: &'static str, message: impl Into<String>) -> ApiError {
    ApiError::new(Code::InvalidDocument, "the fields in errors must be corrected").at(path, "invalid_value", message)
}

fn to_map(value: &impl Serialize) -> Result<Map<String, Value>, ApiError> {
    match serde_json::to_value(value).map_err(ApiError::internal)? {
        Value::Object(map) => Ok(map),
        other => Err(ApiError::internal(format!("not an object: {other}"))),
    }
}
