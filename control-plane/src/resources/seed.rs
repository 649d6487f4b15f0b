//! What a database is born with: a lineage, the catalogue, and at the first start enough to send a
//! first request. Later starts bring the catalogue up to date and change nothing else.

use std::collections::BTreeMap;

use compiler::input::{CatalogOffering, Vendor};
use http::StatusCode;
use serde_json::{Map, Value, json};
use shared::catalog::{Catalog, VendorRow};

use super::api_key::ApiKeys;
use super::credential::Credentials;
use super::crud::make;
use super::provider::Providers;
use super::store::{Actor, Object, Scope, Writing};
use super::workspace;
use crate::app::App;
use crate::auth::admin_tokens;
use crate::db::Db;
use crate::error::{ApiError, Code};
use crate::rest::{Claim, Reply};
use crate::vault::Secret;

/// Key of the workspace that the first start makes.
const WORKSPACE: &str = "default";

/// What is shown once, when the database was empty.
pub struct FirstStart {
    /// An operator's token.
    pub admin_token: Secret,
    /// A key of the workspace `default`.
    pub api_key: Secret,
    /// Vendors that were connected, and the environment variables their keys came from.
    pub connected: Vec<(String, String)>,
}

/// Shows what was connected, not the secrets.
impl std::fmt::Debug for FirstStart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FirstStart({:?})", self.connected)
    }
}

/// The database's lineage; made now if it has none.
///
/// # Errors
/// When the database fails, or holds something else in its place.
pub async fn lineage(db: &Db) -> Result<[u8; 16], ApiError> {
    let fresh = crate::auth::token::hex(&runtime::random::bytes::<16>());
    sqlx::query("INSERT INTO meta (name, value) VALUES ('lineage', $1) ON CONFLICT (name) DO NOTHING")
        .bind(fresh)
        .execute(db.pool())
        .await?;
    let (text,): (String,) =
        sqlx::query_as("SELECT value FROM meta WHERE name = 'lineage'").fetch_one(db.pool()).await?;
    let bits = u128::from_str_radix(&text, 16).map_err(|e| ApiError::internal(format!("meta.lineage: {e}")))?;
    Ok(bits.to_be_bytes())
}

/// Brings the shared scope to the given catalogue, if that is newer. Says whether it was.
///
/// # Errors
/// When the database fails.
pub async fn catalogue(app: &App, catalog: &Catalog) -> Result<bool, ApiError> {
    sqlx::query(
        "INSERT INTO scopes (scope, workspace_key, revision, updated_at_ms) VALUES ('shared', 'shared', 0, $1)
         ON CONFLICT DO NOTHING",
    )
    .bind(app.now_ms())
    .execute(app.db.pool())
    .await?;
    let mut writing = Writing::begin(app, Scope::shared(), Actor::system()).await?;
    let stored: Option<(String,)> = sqlx::query_as("SELECT value FROM meta WHERE name = 'catalog_version'")
        .fetch_optional(writing.connection())
        .await?;
    let stored = stored.and_then(|(text,)| text.parse::<u64>().ok());
    // A program that was rolled back keeps the newer rows: nodes already have them.
    if stored.is_some_and(|stored| stored >= catalog.version) {
        return Ok(false);
    }
    let wanted = rows(catalog)?;
    let mut had = BTreeMap::new();
    for kind in ["vendor", "catalog_offering"] {
        had.extend(writing.all(kind).await?.into_iter().map(|o| ((o.kind.clone(), o.id.clone()), o)));
    }
    let changed = |row: &&Object| had.get(&(row.kind.clone(), row.id.clone())).is_none_or(|old| old.doc != row.doc);
    let upserts: Vec<Object> = wanted.iter().filter(changed).cloned().collect();
    for row in &wanted {
        had.remove(&(row.kind.clone(), row.id.clone()));
    }
    let removals: Vec<Object> = had.into_values().collect();
    writing.bulk(&upserts, &removals, &format!("version {}", catalog.version)).await?;
    sqlx::query(
        "INSERT INTO meta (name, value) VALUES ('catalog_version', $1)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind(catalog.version.to_string())
    .execute(writing.connection())
    .await?;
    writing.commit(&Claim::default(), &Reply::empty(StatusCode::OK)).await?;
    Ok(true)
}

/// The catalogue as objects of the shared scope; revisions and times are set when they are written.
fn rows(catalog: &Catalog) -> Result<Vec<Object>, ApiError> {
    let row = |kind: &str, parent: &str, id: String, doc: serde_json::Result<String>| {
        Ok(Object {
            kind: kind.to_owned(),
            name: id.clone(),
            id,
            parent: parent.to_owned(),
            doc: doc.map_err(ApiError::internal)?,
            revision: 0,
            created_at_ms: 0,
            updated_at_ms: 0,
        })
    };
    let vendors = catalog.vendors.iter().map(|v| {
        let doc = Vendor::from(&v.vendor);
        row("vendor", "", doc.slug.clone(), serde_json::to_string(&doc))
    });
    let offerings = catalog.offerings.iter().map(|o| {
        let doc = CatalogOffering::from(o);
        row("catalog_offering", &doc.vendor, format!("{}/{}", doc.vendor, doc.model), serde_json::to_string(&doc))
    });
    vendors.chain(offerings).collect()
}

/// Makes the first workspace, provider, key and admin token, all in one transaction. `None` when this
/// database has had its first start.
///
/// # Errors
/// When the database fails.
pub async fn first_start(app: &App, catalog: &Catalog) -> Result<Option<FirstStart>, ApiError> {
    let done: Option<(String,)> =
        sqlx::query_as("SELECT value FROM meta WHERE name = 'first_start'").fetch_optional(app.db.pool()).await?;
    if done.is_some() {
        return Ok(None);
    }
    let document = fields(json!({ "key": WORKSPACE, "display_name": "Default" }));
    let mut writing = match workspace::begin(app, Actor::system(), document).await {
        Ok((writing, _)) => writing,
        // Another replica was faster.
        Err(e) if e.code == Code::AlreadyExists => return Ok(None),
        Err(e) => return Err(e),
    };
    let claimed =
        sqlx::query("INSERT INTO meta (name, value) VALUES ('first_start', $1) ON CONFLICT (name) DO NOTHING")
            .bind(app.now_ms().to_string())
            .execute(writing.connection())
            .await?;
    if claimed.rows_affected() == 0 {
        return Ok(None);
    }
    make::<Providers>(&mut writing, fields(json!({ "vendor": "sandbox" }))).await?;
    let mut connected = Vec::new();
    for vendor in &catalog.vendors {
        if let Some(variable) = connect(app, &mut writing, vendor).await? {
            connected.push((vendor.vendor.slug.clone(), variable));
        }
    }
    let key = make::<ApiKeys>(&mut writing, fields(json!({ "name": "first start" }))).await?;
    let no_key = || ApiError::internal("a key was made without a text");
    let (_, api_key) = key.shown_once.ok_or_else(no_key)?;
    let admin_token = admin_tokens::insert_first(app, writing.transaction()).await?;
    writing.commit(&Claim::default(), &Reply::empty(StatusCode::OK)).await?;
    Ok(Some(FirstStart { admin_token, api_key, connected }))
}

/// Connects a vendor whose key is in the environment; gives the variable's name.
async fn connect(app: &App, writing: &mut Writing, row: &VendorRow) -> Result<Option<String>, ApiError> {
    let slug = &row.vendor.slug;
    let found = row.env_vars.iter().find_map(|name| Some((name, app.config.environment.get(name)?)));
    let Some((variable, key)) = found else { return Ok(None) };
    let key = key.trim();
    if row.vendor.base_url.is_empty() || row.vendor.base_url.contains('{') {
        tracing::info!(vendor = %slug, variable, "not connected: the vendor needs an address; use the API");
        return Ok(None);
    }
    if key.is_empty() || !key.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
        tracing::warn!(vendor = %slug, variable, "not connected: the variable does not hold a key");
        return Ok(None);
    }
    let provider = make::<Providers>(writing, fields(json!({ "vendor": slug }))).await?;
    let credential = json!({ "provider_id": provider.changed.object.id, "name": variable, "secret": key });
    make::<Credentials>(writing, fields(credential)).await?;
    Ok(Some(variable.clone()))
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}
