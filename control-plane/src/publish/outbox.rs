//! The SQL of publishing: what changed since a revision, what it was before, and what was published.

use std::collections::HashSet;

use prost::Message;
use serde_json::Value;

use compiler::lower::{Secret, Version};
use shared::ids::ChangeId;
use shared::proto;
use shared::snapshot::Extent;

use super::published::Commit;
use crate::app::App;
use crate::auth::token::hex;
use crate::db::Db;
use crate::ledger::prices;
use crate::vault::Place;

/// Earlier versions that are tried for one object.
const MAX_VERSIONS: i64 = 20;

/// A scope as its row says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopeRow {
    /// Its name.
    pub scope: String,
    /// Its revision.
    pub revision: u64,
    /// Deleted workspaces stay as marks.
    pub deleted: bool,
}

/// All scopes.
pub async fn scopes(db: &Db) -> Result<Vec<ScopeRow>, sqlx::Error> {
    let rows: Vec<(String, i64, i64)> =
        sqlx::query_as("SELECT scope, revision, deleted FROM scopes ORDER BY scope").fetch_all(db.pool()).await?;
    let row = |(scope, revision, deleted): (String, i64, i64)| ScopeRow {
        scope,
        revision: unsigned(revision),
        deleted: deleted != 0,
    };
    Ok(rows.into_iter().map(row).collect())
}

/// An object that changed.
#[derive(Debug)]
pub struct ChangedObject {
    /// "provider".
    pub kind: String,
    /// Its id.
    pub id: String,
    /// Revision that changed it.
    pub revision: u64,
    /// Its document; `None` = deleted.
    pub doc: Option<String>,
    /// Its secret, opened.
    pub secret: Secret,
}

/// What changed after a revision, read in one statement so that it is one state of the database.
#[derive(Debug)]
pub struct Changes {
    /// The scope's revision at that moment.
    pub revision: u64,
    /// Whether the scope was deleted by then.
    pub deleted: bool,
    /// In no order.
    pub objects: Vec<ChangedObject>,
}

type ChangeRow = (i64, i64, Option<String>, Option<String>, Option<i64>, Option<String>, Option<i64>);

/// What changed in a scope after `after`; `None` when there is no such scope.
pub async fn changes(app: &App, scope: &str, after: u64) -> Result<Option<Changes>, sqlx::Error> {
    let rows: Vec<ChangeRow> = sqlx::query_as(
        "SELECT s.revision, s.deleted, o.kind, o.id, o.revision, o.doc, o.deleted
         FROM scopes s LEFT JOIN objects o ON o.scope = s.scope AND o.revision > $1 WHERE s.scope = $2",
    )
    .bind(signed(after))
    .bind(scope)
    .fetch_all(app.db.pool())
    .await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let mut changes = Changes { revision: unsigned(first.0), deleted: first.1 != 0, objects: Vec::new() };
    for (_, _, kind, id, revision, doc, deleted) in rows {
        let (Some(kind), Some(id), Some(revision), Some(doc)) = (kind, id, revision, doc) else { continue };
        let doc = (deleted == Some(0)).then_some(doc);
        let secret = match &doc {
            Some(doc) => secret(app, scope, &kind, &id, doc).await?,
            None => Secret::Absent,
        };
        changes.objects.push(ChangedObject { kind, id, revision: unsigned(revision), doc, secret });
    }
    Ok(Some(changes))
}

/// Versions of an object before `before`, newest first, secrets opened.
pub async fn history(app: &App, scope: &str, kind: &str, id: &str, before: u64) -> Result<Vec<Version>, sqlx::Error> {
    let rows: Vec<(i64, String)> = sqlx::query_as(
        "SELECT revision, doc FROM object_history
         WHERE scope = $1 AND kind = $2 AND id = $3 AND deleted = 0 AND revision < $4 ORDER BY revision DESC LIMIT $5",
    )
    .bind(scope)
    .bind(kind)
    .bind(id)
    .bind(signed(before))
    .bind(MAX_VERSIONS)
    .fetch_all(app.db.pool())
    .await?;
    let mut versions = Vec::new();
    for (revision, doc) in rows {
        let secret = secret(app, scope, kind, id, &doc).await?;
        versions.push(Version { revision: unsigned(revision), doc, secret });
    }
    Ok(versions)
}

/// Opens the secret that a credential's document refers to.
async fn secret(app: &App, scope: &str, kind: &str, id: &str, doc: &str) -> Result<Secret, sqlx::Error> {
    if kind != "credential" {
        return Ok(Secret::Absent);
    }
    let version = serde_json::from_str::<Value>(doc).ok().and_then(|doc| doc.get("secret_version")?.as_i64());
    let Some(version) = version.filter(|v| *v != 0) else { return Ok(Secret::Absent) };
    let sealed: Option<(String,)> =
        sqlx::query_as("SELECT sealed FROM secrets WHERE id = $1 AND version = $2 AND scope = $3")
            .bind(id)
            .bind(version)
            .bind(scope)
            .fetch_optional(app.db.pool())
            .await?;
    let Some((sealed,)) = sealed else { return Ok(Secret::Absent) };
    Ok(match app.vault.open(&Place { scope, id, version }, &sealed) {
        Ok(secret) => Secret::Opened(secret.expose().to_vec()),
        Err(e) => {
            tracing::error!(scope, credential = id, version, error = %e, "a secret cannot be opened");
            Secret::Unreadable
        }
    })
}

/// When a revision was committed, and the last one at or before it that an operator confirmed.
pub async fn commit(db: &Db, scope: &str, revision: u64) -> Result<Commit, sqlx::Error> {
    let at: Option<(i64,)> = sqlx::query_as(
        "SELECT committed_at_ms FROM outbox WHERE scope = $1 AND revision <= $2 ORDER BY revision DESC LIMIT 1",
    )
    .bind(scope)
    .bind(signed(revision))
    .fetch_optional(db.pool())
    .await?;
    let forced: Option<(i64,)> = sqlx::query_as(
        "SELECT revision FROM outbox WHERE scope = $1 AND revision <= $2 AND force = 1 ORDER BY revision DESC LIMIT 1",
    )
    .bind(scope)
    .bind(signed(revision))
    .fetch_optional(db.pool())
    .await?;
    Ok(Commit {
        at_ms: at.map(|r| r.0).unwrap_or_default(),
        forced_at: forced.map(|r| unsigned(r.0)).unwrap_or_default(),
    })
}

/// What any replica last published of a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedRow {
    /// Which revision.
    pub revision: u64,
    /// Hex.
    pub state_hash: String,
    /// How large.
    pub extent: Extent,
}

/// The row of a scope.
pub async fn published(db: &Db, scope: &str) -> Result<Option<PublishedRow>, sqlx::Error> {
    let row: Option<(i64, String, i64, i64, i64)> =
        sqlx::query_as("SELECT revision, state_hash, resources, api_keys, bytes FROM published WHERE scope = $1")
            .bind(scope)
            .fetch_optional(db.pool())
            .await?;
    let count = |n: i64| usize::try_from(n).unwrap_or_default();
    Ok(row.map(|(revision, state_hash, resources, keys, bytes)| PublishedRow {
        revision: unsigned(revision),
        state_hash,
        extent: Extent { resources: count(resources), keys: count(keys), bytes: unsigned(bytes) },
    }))
}

/// Writes down what a revision came to, once: true when the row now says exactly this, or a later
/// revision. False: this revision is known with another content.
pub async fn claim(db: &Db, scope: &str, row: &PublishedRow) -> Result<bool, sqlx::Error> {
    let known: Option<(i64, String)> = sqlx::query_as(
        "INSERT INTO published (scope, revision, state_hash, resources, api_keys, bytes) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (scope) DO UPDATE SET
             state_hash = CASE WHEN published.revision < excluded.revision THEN excluded.state_hash ELSE published.state_hash END,
             resources = CASE WHEN published.revision < excluded.revision THEN excluded.resources ELSE published.resources END,
             api_keys = CASE WHEN published.revision < excluded.revision THEN excluded.api_keys ELSE published.api_keys END,
             bytes = CASE WHEN published.revision < excluded.revision THEN excluded.bytes ELSE published.bytes END,
             revision = CASE WHEN published.revision < excluded.revision THEN excluded.revision ELSE published.revision END
         RETURNING revision, state_hash",
    )
    .bind(scope)
    .bind(signed(row.revision))
    .bind(&row.state_hash)
    .bind(signed(row.extent.resources as u64))
    .bind(signed(row.extent.keys as u64))
    .bind(signed(row.extent.bytes))
    .fetch_optional(db.pool())
    .await?;
    Ok(known.is_none_or(|(revision, hash)| unsigned(revision) > row.revision || hash == row.state_hash))
}

/// Gives a scope a new revision without a change of its documents: what they compile to has changed.
/// True when this call did it, false when the scope had moved on.
pub async fn advance(app: &App, scope: &str, from: u64) -> Result<bool, sqlx::Error> {
    let now_ms = app.now_ms();
    let change = ChangeId::new(unsigned(now_ms), runtime::random::bytes());
    let mut tx = app.db.begin().await?;
    let moved =
        sqlx::query("UPDATE scopes SET revision = revision + 1, updated_at_ms = $1 WHERE scope = $2 AND revision = $3")
            .bind(now_ms)
            .bind(scope)
            .bind(signed(from))
            .execute(&mut *tx)
            .await?;
    if moved.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query("INSERT INTO outbox (scope, revision, change_id, committed_at_ms, force) VALUES ($1, $2, $3, $4, 0)")
        .bind(scope)
        .bind(signed(from + 1))
        .bind(change.to_string())
        .bind(now_ms)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(true)
}

/// Records price rows that resources carry, so that usage can be rated by their ids for ever. `known`
/// spares the database what it has.
pub async fn record_prices(
    db: &Db,
    resources: &[proto::Resource],
    known: &mut HashSet<String>,
) -> Result<(), sqlx::Error> {
    let prices: Vec<proto::Price> =
        resources.iter().flat_map(prices_of).filter(|price| !known.contains(&price.id)).collect();
    if prices.is_empty() {
        return Ok(());
    }
    let mut tx = db.begin().await?;
    prices::record(&mut tx, &prices).await?;
    tx.commit().await?;
    known.extend(prices.into_iter().map(|price| price.id));
    Ok(())
}

fn prices_of(resource: &proto::Resource) -> Vec<proto::Price> {
    let facts = match resource.kind.as_str() {
        "model" => proto::Model::decode(resource.body.clone()).ok().and_then(|m| m.facts),
        "catalog_offering" => proto::CatalogOffering::decode(resource.body.clone()).ok().and_then(|o| o.facts),
        _ => None,
    };
    facts.map(|f| f.prices).unwrap_or_default()
}

/// A state hash as the table keeps it.
pub fn hash_text(hash: &shared::digest::StateHash) -> String {
    hex(hash.as_bytes())
}

/// Revisions and sizes are far below 2^63.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
