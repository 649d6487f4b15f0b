//! Who calls the management interface, and what they may do.
//!
//! Tokens are random (256 bits) and kept as SHA-256. What a token may is the product of its role
//! ([`permit`]) and its reach: every workspace, or one. It knows no passwords and no sessions.

pub mod admin_tokens;
pub mod permit;
pub mod token;

use axum::extract::FromRequestParts;
use http::header::AUTHORIZATION;
use http::request::Parts;
use shared::ids::{AdminTokenId, WorkspaceId};

use crate::app::App;
use crate::db::Db;
use crate::error::{ApiError, Code};
use crate::rest::Route;
use permit::Role;

/// The holder of a valid admin token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The token.
    pub id: AdminTokenId,
    /// What its actions are allowed by.
    pub role: Role,
    /// Where.
    pub reach: Reach,
}

/// Where a token is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// In every workspace, and outside of them.
    All,
    /// In one workspace.
    One(WorkspaceId),
}

impl Reach {
    /// Whether it includes a workspace.
    pub fn includes(self, workspace: WorkspaceId) -> bool {
        match self {
            Self::All => true,
            Self::One(own) => own == workspace,
        }
    }
}

/// Proof that a workspace exists and that whoever asks may enter it. Storage functions take a scope
/// that is made from it, so none can run for a workspace that nobody checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    id: WorkspaceId,
    scope: String,
}

impl Tenant {
    /// For the control plane's own work (publishing, ingest, first start), where no caller's right is
    /// in question.
    pub fn of_system(id: WorkspaceId) -> Self {
        Self { id, scope: id.to_string() }
    }

    /// Which workspace.
    pub fn id(&self) -> WorkspaceId {
        self.id
    }

    /// Name of its scope: the id as text.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// The workspace that a path names, by id or by key, if it exists and is within reach.
    ///
    /// # Errors
    /// [`Code::NotFound`] in both other cases, indistinguishably.
    pub(crate) async fn resolve(db: &Db, principal: &Principal, name: &str) -> Result<Self, ApiError> {
        let found: Option<(String,)> = sqlx::query_as(
            "SELECT scope FROM scopes WHERE deleted = 0 AND scope <> 'shared' AND (scope = $1 OR workspace_key = $1)",
        )
        .bind(name)
        .fetch_optional(db.pool())
        .await?;
        let (scope,) = found.ok_or_else(ApiError::not_found)?;
        let id: WorkspaceId = scope.parse().map_err(|_| ApiError::not_found())?;
        if !principal.reach.includes(id) {
            return Err(ApiError::not_found());
        }
        Ok(Self { id, scope })
    }
}

/// Routes of admin tokens.
pub fn routes() -> Vec<Route> {
    admin_tokens::routes()
}

/// Finds the principal of a request by its `Authorization: Bearer` header.
///
/// # Errors
/// [`Code::Unauthenticated`] when there is none, it is unknown, disabled or expired: one answer for
/// all, so that it tells nothing about tokens.
pub(crate) async fn authenticate(app: &App, headers: &http::HeaderMap) -> Result<Principal, ApiError> {
    let refused = || ApiError::new(Code::Unauthenticated, "send Authorization: Bearer with a valid admin token");
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(refused()) };
    let text = value.to_str().map_err(|_| refused())?;
    let (scheme, token) = text.split_once(' ').ok_or_else(refused)?;
    let token = token.trim_start();
    // The checksum spares the database a look-up for what cannot be a token.
    if !scheme.eq_ignore_ascii_case("bearer") || !token::is_well_formed(token::ADMIN, token) {
        return Err(refused());
    }
    let found: Option<(String, String, String, i64, i64)> =
        sqlx::query_as("SELECT id, role, scope, expires_at_ms, disabled FROM admin_tokens WHERE hash = $1")
            .bind(token::hash(token.as_bytes()))
            .fetch_optional(app.db.pool())
            .await?;
    let (id, role, scope, expires_at_ms, disabled) = found.ok_or_else(refused)?;
    if disabled != 0 || (expires_at_ms != 0 && expires_at_ms <= app.now_ms()) {
        return Err(refused());
    }
    principal(&id, &role, &scope)
}

/// A principal from a row of `admin_tokens`.
fn principal(id: &str, role: &str, scope: &str) -> Result<Principal, ApiError> {
    let damaged = || ApiError::internal("a row of admin_tokens cannot be read");
    let reach = match scope {
        "" => Reach::All,
        scope => Reach::One(scope.parse().map_err(|_| damaged())?),
    };
    Ok(Principal { id: id.parse().map_err(|_| damaged())?, role: Role::parse(role).ok_or_else(damaged)?, reach })
}

impl<S: Sync> FromRequestParts<S> for Principal {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let missing = || ApiError::internal("a route without authentication asks for a principal");
        parts.extensions.get().cloned().ok_or_else(missing)
    }
}

impl<S: Sync> FromRequestParts<S> for Tenant {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let missing = || ApiError::internal("a route without {workspace} asks for a tenant");
        parts.extensions.get().cloned().ok_or_else(missing)
    }
}
