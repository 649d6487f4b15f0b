//! `Idempotency-Key`: the same request twice has one effect and one answer.
//!
//! A key is claimed before the handler runs. A handler that writes settles the claim in its own
//! transaction, so that the change and its answer are there together or not at all; every other
//! answer is stored behind the handler. A claim whose process died is taken over after a minute: if
//! the first one still commits, its settling fails and with it the whole transaction. Answers are
//! sealed: they may hold a key that is shown once. Kept for a day.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body as HttpBody;
use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use shared::digest::sha256;

use super::input::{MAX_BODY, Reply};
use crate::app::App;
use crate::auth::Principal;
use crate::auth::token::hex;
use crate::db::Tx;
use crate::error::{ApiError, Code, Fault};
use crate::vault::{Place, Secret, VaultError};

/// How long answers are kept.
const KEEP_MS: i64 = 24 * 60 * 60 * 1000;

/// After this a claim without an answer belongs to a process that is gone. Longer than any write.
const STALE_MS: i64 = 60 * 1000;

/// The claim of the current request, if it carries a key. Handlers that write in a transaction of
/// their own take it and [`Claim::settle`] it there.
#[derive(Clone, Default)]
pub struct Claim(Option<Arc<Held>>);

struct Held {
    principal: String,
    key: String,
    created_at_ms: i64,
    settled: AtomicBool,
}

pub(super) enum Claimed {
    /// This request is the first, or takes over from one that died.
    Now(Claim),
    /// It was answered before.
    Answered(Response),
}

/// A refusal as it is stored.
#[derive(Serialize, Deserialize)]
struct StoredRefusal {
    code: String,
    detail: String,
    faults: Vec<(String, String, String)>,
}

impl Claim {
    /// Stores the answer in the transaction that makes the change. Without a key it does nothing.
    ///
    /// # Errors
    /// [`Code::IdempotencyInProgress`] when another request took the claim over: the transaction must
    /// not be committed.
    pub async fn settle(&self, app: &App, tx: &mut Tx, reply: &Reply) -> Result<(), ApiError> {
        let Some(held) = &self.0 else { return Ok(()) };
        let headers = serde_json::to_string(&reply.headers).map_err(ApiError::internal)?;
        held.store(app, &mut *tx, reply.status, &headers, &reply.body).await?;
        held.settled.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Stores the answer of a handler that did not settle; gives it back.
    pub(super) async fn after(&self, app: &App, response: Response) -> Result<Response, ApiError> {
        let Some(held) = &self.0 else { return Ok(response) };
        // A refused change after settling rolled the settling back; only a success proves it.
        if held.settled.load(Ordering::Relaxed) && response.status().is_success() {
            return Ok(response);
        }
        if may_be_repeated(&response) {
            held.release(app).await?;
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let refusal = parts.extensions.get::<ApiError>();
        let body = axum::body::to_bytes(body, MAX_BODY).await.map_err(ApiError::internal)?;
        let (headers, text) = match refusal {
            Some(error) => (String::from("[]"), serde_json::to_string(&stored(error)).map_err(ApiError::internal)?),
            None => (header_list(&parts.headers)?, String::from_utf8_lossy(&body).into_owned()),
        };
        let mut tx = app.db.begin().await?;
        held.store(app, &mut tx, parts.status, &headers, &text).await?;
        tx.commit().await?;
        Ok(Response::from_parts(parts, HttpBody::from(body)))
    }
}

impl Held {
    fn place<'a>(&self, id: &'a str) -> Place<'a> {
        Place { scope: "idempotency", id, version: self.created_at_ms }
    }

    fn id(&self) -> String {
        format!("{}/{}", self.principal, self.key)
    }

    async fn store(
        &self,
        app: &App,
        tx: &mut Tx,
        status: StatusCode,
        headers: &str,
        body: &str,
    ) -> Result<(), ApiError> {
        let sealed = app.vault.seal(&self.place(&self.id()), &Secret::new(body));
        let stored = sqlx::query(
            "UPDATE idempotency SET status = $1, headers = $2, body = $3
             WHERE principal = $4 AND key = $5 AND created_at_ms = $6 AND status = 0",
        )
        .bind(i64::from(status.as_u16()))
        .bind(headers)
        .bind(sealed)
        .bind(&*self.principal)
        .bind(&*self.key)
        .bind(self.created_at_ms)
        .execute(&mut **tx)
        .await?;
        if stored.rows_affected() == 1 {
            return Ok(());
        }
        Err(in_progress())
    }

    async fn release(&self, app: &App) -> Result<(), ApiError> {
        sqlx::query("DELETE FROM idempotency WHERE principal = $1 AND key = $2 AND created_at_ms = $3 AND status = 0")
            .bind(&*self.principal)
            .bind(&*self.key)
            .bind(self.created_at_ms)
            .execute(app.db.pool())
            .await?;
        Ok(())
    }

    /// The stored answer. One that does not open any more is a fault, not a reason to run again.
    fn open(&self, app: &App, status: i64, headers: &str, sealed: &str) -> Result<Response, ApiError> {
        let damaged = |e: VaultError| ApiError::internal(format!("a stored answer: {e}"));
        let body = app.vault.open(&self.place(&self.id()), sealed).map_err(damaged)?;
        let body = String::from_utf8_lossy(body.expose()).into_owned();
        let status = u16::try_from(status).ok().and_then(|s| StatusCode::from_u16(s).ok());
        let status = status.ok_or_else(|| ApiError::internal("a stored answer has no status"))?;
        if status.as_u16() >= 400
            && let Ok(refusal) = serde_json::from_str::<StoredRefusal>(&body)
        {
            return Ok(replayed(reopened(refusal)?.into_response()));
        }
        let headers = serde_json::from_str(headers).map_err(ApiError::internal)?;
        Ok(replayed(Reply { status, headers, body }.into_response()))
    }
}

impl<S: Sync> FromRequestParts<S> for Claim {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}

/// The request's key, if it has one.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    if values.next().is_some() || text.is_empty() || text.len() > 255 {
        return Err(ApiError::new(Code::InvalidHeader, "Idempotency-Key must be 1 to 255 visible characters, once"));
    }
    Ok(Some(text.to_owned()))
}

/// What makes two requests the same.
pub(super) fn request_hash(method: &Method, uri: &Uri, principal: &Principal, body: &[u8]) -> String {
    let id = principal.id.to_string();
    let uri = uri.path_and_query().map_or("", |p| p.as_str());
    hex(&sha256(&[method.as_str().as_bytes(), &[0], uri.as_bytes(), &[0], id.as_bytes(), &[0], body]))
}

/// Claims the key, or finds what it was answered with.
pub(super) async fn claim(app: &App, principal: &Principal, key: &str, hash: &str) -> Result<Claimed, ApiError> {
    let now = app.now_ms();
    let mine = |created_at_ms| Held {
        principal: principal.id.to_string(),
        key: key.to_owned(),
        created_at_ms,
        settled: AtomicBool::new(false),
    };
    let claimed = |held| Ok(Claimed::Now(Claim(Some(Arc::new(held)))));
    let held = mine(now);
    let inserted = sqlx::query(
        "INSERT INTO idempotency (principal, key, request_hash, status, headers, body, created_at_ms)
         VALUES ($1, $2, $3, 0, '', '', $4) ON CONFLICT (principal, key) DO NOTHING",
    )
    .bind(&*held.principal)
    .bind(key)
    .bind(hash)
    .bind(now)
    .execute(app.db.pool())
    .await?;
    if inserted.rows_affected() == 1 {
        return claimed(held);
    }
    let row: Option<(String, i64, String, String, i64)> = sqlx::query_as(
        "SELECT request_hash, status, headers, body, created_at_ms FROM idempotency WHERE principal = $1 AND key = $2",
    )
    .bind(&*held.principal)
    .bind(key)
    .fetch_optional(app.db.pool())
    .await?;
    // Released between the two statements: the next try finds it free.
    let Some((stored_hash, status, headers, body, created_at_ms)) = row else { return Err(in_progress()) };
    let expired = created_at_ms <= now - KEEP_MS;
    if stored_hash != hash && !expired {
        return Err(ApiError::new(
            Code::IdempotencyKeyReused,
            "this Idempotency-Key was used with another method, path or body; choose a new one",
        ));
    }
    if status != 0 && !expired {
        return mine(created_at_ms).open(app, status, &headers, &body).map(Claimed::Answered);
    }
    if created_at_ms > now - STALE_MS {
        return Err(in_progress());
    }
    let taken = sqlx::query(
        "UPDATE idempotency SET request_hash = $1, status = 0, headers = '', body = '', created_at_ms = $2
         WHERE principal = $3 AND key = $4 AND created_at_ms = $5 AND status = $6",
    )
    .bind(hash)
    .bind(now)
    .bind(&*held.principal)
    .bind(key)
    .bind(created_at_ms)
    .bind(status)
    .execute(app.db.pool())
    .await?;
    if taken.rows_affected() == 1 { claimed(held) } else { Err(in_progress()) }
}

/// Forgets answers older than a day.
///
/// # Errors
/// When the database cannot be reached.
pub async fn forget_old(app: &App) -> Result<u64, sqlx::Error> {
    let done = sqlx::query("DELETE FROM idempotency WHERE created_at_ms < $1")
        .bind(app.now_ms() - KEEP_MS)
        .execute(app.db.pool())
        .await?;
    Ok(done.rows_affected())
}

fn in_progress() -> ApiError {
    ApiError::new(Code::IdempotencyInProgress, "wait for the answer of the first request, or send it again later")
}

/// Nothing was executed, or by a fault of ours: the caller may try again with the same key.
fn may_be_repeated(response: &Response) -> bool {
    let transient = |error: &ApiError| {
        matches!(error.code, Code::WriteConflict | Code::RequestTimeout | Code::IdempotencyInProgress)
    };
    response.status().is_server_error() || response.extensions().get::<ApiError>().is_some_and(transient)
}

fn header_list(headers: &HeaderMap) -> Result<String, ApiError> {
    let text = |(name, value): (&http::HeaderName, &HeaderValue)| {
        value.to_str().ok().map(|value| (name.as_str().to_owned(), value.to_owned()))
    };
    let list: Vec<_> = headers.iter().filter_map(text).filter(|(name, _)| name != "content-length").collect();
    serde_json::to_string(&list).map_err(ApiError::internal)
}

fn stored(error: &ApiError) -> StoredRefusal {
    let fault = |f: &Fault| (f.path.clone(), f.code.clone().into_owned(), f.message.clone());
    StoredRefusal {
        code: error.code.as_str().to_owned(),
        detail: error.detail.clone().into_owned(),
        faults: error.faults.iter().map(fault).collect(),
    }
}

fn reopened(stored: StoredRefusal) -> Result<ApiError, ApiError> {
    let code = Code::ALL.iter().find(|code| code.as_str() == stored.code);
    let code = *code.ok_or_else(|| ApiError::internal("a stored refusal has an unknown code"))?;
    let faults = stored.faults.into_iter().map(|(path, code, message)| Fault { path, code: code.into(), message });
    Ok(ApiError { faults: faults.collect(), ..ApiError::new(code, stored.detail) })
}

fn replayed(mut response: Response) -> Response {
    response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    response
}
