//! Reads of living objects, each within one scope.

use sqlx::AnyConnection;

use super::{Object, Scope};
use crate::app::App;
use crate::db::Engine;
use crate::error::ApiError;

/// A living object.
///
/// # Errors
/// When the database fails.
pub async fn find(on: &mut AnyConnection, scope: &Scope, kind: &str, id: &str) -> Result<Option<Object>, ApiError> {
    let row = sqlx::query_as(
        "SELECT kind, id, parent, name, doc, revision, created_at_ms, updated_at_ms FROM objects
         WHERE scope = $1 AND kind = $2 AND id = $3 AND deleted = 0",
    )
    .bind(&*scope.0)
    .bind(kind)
    .bind(id)
    .fetch_optional(on)
    .await?;
    Ok(row)
}

/// A living object by its unique name.
///
/// # Errors
/// When the database fails.
pub async fn find_named(
    on: &mut AnyConnection,
    scope: &Scope,
    kind: &str,
    parent: &str,
    name: &str,
) -> Result<Option<Object>, ApiError> {
    let row = sqlx::query_as(
        "SELECT kind, id, parent, name, doc, revision, created_at_ms, updated_at_ms FROM objects
         WHERE scope = $1 AND kind = $2 AND parent = $3 AND name = $4 AND deleted = 0",
    )
    .bind(&*scope.0)
    .bind(kind)
    .bind(parent)
    .bind(name)
    .fetch_optional(on)
    .await?;
    Ok(row)
}

/// Which objects a list shows, and from where on.
#[derive(Debug, Clone, Default)]
pub struct Filter<'a> {
    /// `None` = whatever they belong to.
    pub parent: Option<&'a str>,
    /// `None` = whatever their name.
    pub name: Option<&'a str>,
    /// `None` = on and off.
    pub disabled: Option<bool>,
    /// Ids above this.
    pub after: &'a str,
    /// At most so many.
    pub limit: i64,
}

/// Living objects in order of id.
///
/// # Errors
/// When the database fails.
pub async fn list(app: &App, scope: &Scope, kind: &str, filter: &Filter<'_>) -> Result<Vec<Object>, ApiError> {
    // An absent filter is bound as '' (or -1) and holds for every row: the statement stays one text.
    let statement = match app.db.engine() {
        Engine::Sqlite => {
            "SELECT kind, id, parent, name, doc, revision, created_at_ms, updated_at_ms FROM objects
             WHERE scope = $1 AND kind = $2 AND id > $3 AND deleted = 0 AND ($4 = '' OR parent = $4)
                 AND ($5 = '' OR name = $5) AND ($6 < 0 OR COALESCE(json_extract(doc, '$.disabled'), 0) = $6)
             ORDER BY id LIMIT $7"
        }
        Engine::Postgres => {
            "SELECT kind, id, parent, name, doc, revision, created_at_ms, updated_at_ms FROM objects
             WHERE scope = $1 AND kind = $2 AND id > $3 AND deleted = 0 AND ($4 = '' OR parent = $4)
                 AND ($5 = '' OR name = $5)
                 AND ($6 < 0 OR CASE WHEN CAST(doc AS json) ->> 'disabled' = 'true' THEN 1 ELSE 0 END = $6)
             ORDER BY id LIMIT $7"
        }
    };
    let rows = sqlx::query_as(statement)
        .bind(&*scope.0)
        .bind(kind)
        .bind(filter.after)
        .bind(filter.parent.unwrap_or_default())
        .bind(filter.name.unwrap_or_default())
        .bind(filter.disabled.map_or(-1, i64::from))
        .bind(filter.limit)
        .fetch_all(app.db.pool())
        .await?;
    Ok(rows)
}
