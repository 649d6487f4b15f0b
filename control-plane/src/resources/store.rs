//! Configuration resources in the database. One store for all nouns instead of one file of SQL each:
//! every resource is a document in `objects`, so that revisions, history, audit, outbox, paging,
//! ETags and name clashes exist once and cannot differ between nouns.
//!
//! A write takes the lock of its scope first (the row in `scopes`), so that everything it reads
//! afterwards stays true until it commits. Each changed object advances the scope's revision by one
//! and writes, in the same transaction: the object, its history line, its audit line and its outbox
//! line. It knows nothing of what documents mean.

mod audit_line;
mod read;

use serde::Serialize;
use shared::ids::{AdminTokenId, ChangeId};
use shared::snapshot::SHARED_SCOPE;
use sqlx::AnyConnection;

use crate::app::App;
use crate::auth::Tenant;
use crate::db::{Engine, Tx};
use crate::error::{ApiError, Code};
use crate::publish::replicas;
use crate::rest::{Claim, Reply};
use crate::vault::{Place, Secret};

pub use audit_line::AuditLine;
pub use read::{Filter, find, find_named, list};

/// Where objects live: a workspace, or what all share. Only a [`Tenant`] gives the former.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope(String);

impl Scope {
    /// The scope of a workspace.
    pub fn of(tenant: &Tenant) -> Self {
        Self(tenant.scope().to_owned())
    }

    /// What all workspaces have in common.
    pub fn shared() -> Self {
        Self(SHARED_SCOPE.to_owned())
    }

    /// As the database writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Who makes a change, as the audit names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor(String);

impl Actor {
    /// The holder of an admin token.
    pub fn token(id: AdminTokenId) -> Self {
        Self(id.to_string())
    }

    /// The control plane itself.
    pub fn system() -> Self {
        Self("system".to_owned())
    }

    /// As the database writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A living object.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Object {
    /// `provider`, `api_key`, …
    pub kind: String,
    /// Its id.
    pub id: String,
    /// What it belongs to, or empty.
    pub parent: String,
    /// Unique beside its siblings.
    pub name: String,
    /// JSON.
    pub doc: String,
    /// Revision of the scope that last changed it.
    pub revision: i64,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
    /// Milliseconds since 1970.
    pub updated_at_ms: i64,
}

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Made an object.
    Create,
    /// Changed one.
    Update,
    /// Removed one.
    Delete,
    /// Confirmed what the guard against sudden shrinking or growth holds back.
    Confirm,
}

impl Deed {
    fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Confirm => "confirm",
        }
    }
}

/// One committed change.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The object afterwards; before, when it was removed.
    pub object: Object,
    /// Names the change.
    pub change_id: ChangeId,
}

/// What of an object is unique and how it is named to callers.
#[derive(Debug, Clone, Copy)]
pub struct Naming<'a> {
    /// What it belongs to, or empty.
    pub parent: &'a str,
    /// Unique beside its siblings.
    pub name: &'a str,
    /// The document's field that holds it.
    pub field: &'static str,
}

/// A transaction that changes one scope.
pub struct Writing {
    app: App,
    tx: Tx,
    scope: Scope,
    actor: Actor,
    now_ms: i64,
}

impl Writing {
    /// Begins, and locks the scope against other writers until the end.
    ///
    /// # Errors
    /// [`Code::NotFound`] when the scope is gone.
    pub async fn begin(app: &App, scope: Scope, actor: Actor) -> Result<Self, ApiError> {
        let mut tx = app.db.begin().await?;
        // An update that changes nothing is a row lock in both engines' words.
        let locked = sqlx::query("UPDATE scopes SET revision = revision WHERE scope = $1 AND deleted = 0")
            .bind(&*scope.0)
            .execute(&mut *tx)
            .await?;
        if locked.rows_affected() == 0 {
            return Err(ApiError::not_found());
        }
        Ok(Self { app: app.clone(), tx, scope, actor, now_ms: app.now_ms() })
    }

    /// Begins with a scope that does not exist yet.
    ///
    /// # Errors
    /// [`Code::AlreadyExists`] when the key is taken.
    pub async fn begin_new(app: &App, scope: Scope, key: &str, actor: Actor) -> Result<Self, ApiError> {
        let mut tx = app.db.begin().await?;
        let now_ms = app.now_ms();
        let made = sqlx::query(
            "INSERT INTO scopes (scope, workspace_key, revision, updated_at_ms) VALUES ($1, $2, 0, $3)
             ON CONFLICT DO NOTHING",
        )
        .bind(&*scope.0)
        .bind(key)
        .bind(now_ms)
        .execute(&mut *tx)
        .await?;
        if made.rows_affected() == 0 {
            return Err(taken("key", key));
        }
        Ok(Self { app: app.clone(), tx, scope, actor, now_ms })
    }

    /// The scope being changed.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// When it is being changed, milliseconds since 1970.
    pub fn now_ms(&self) -> i64 {
        self.now_ms
    }

    /// For reads that the store does not know, in the same transaction.
    pub fn connection(&mut self) -> &mut AnyConnection {
        &mut self.tx
    }

    /// For writes that belong to no scope, in the same transaction.
    pub fn transaction(&mut self) -> &mut Tx {
        &mut self.tx
    }

    /// A living object of the scope.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find(&mut self, kind: &str, id: &str) -> Result<Option<Object>, ApiError> {
        find(&mut self.tx, &self.scope, kind, id).await
    }

    /// A living object of the scope by its unique name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find_named(&mut self, kind: &str, parent: &str, name: &str) -> Result<Option<Object>, ApiError> {
        find_named(&mut self.tx, &self.scope, kind, parent, name).await
    }

    /// All living objects of a kind in the scope.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn all(&mut self, kind: &str) -> Result<Vec<Object>, ApiError> {
        let rows = sqlx::query_as(
            "SELECT kind, id, parent, name, doc, revision, created_at_ms, updated_at_ms FROM objects
             WHERE scope = $1 AND kind = $2 AND deleted = 0 ORDER BY id",
        )
        .bind(&*self.scope.0)
        .bind(kind)
        .fetch_all(&mut *self.tx)
        .await?;
        Ok(rows)
    }

    /// Seals a secret of an object of this scope.
    ///
    /// # Errors
    /// When the database fails; two secrets of one version are an error.
    pub async fn keep_secret(&mut self, id: &str, version: i64, secret: &Secret) -> Result<(), ApiError> {
        let sealed = self.app.vault.seal(&Place { scope: &self.scope.0, id, version }, secret);
        sqlx::query("INSERT INTO secrets (id, version, scope, sealed, created_at_ms) VALUES ($1, $2, $3, $4, $5)")
            .bind(id)
            .bind(version)
            .bind(&*self.scope.0)
            .bind(sealed)
            .bind(self.now_ms)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// The version that the next secret of an object has.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn next_secret_version(&mut self, id: &str) -> Result<i64, ApiError> {
        let (last,): (i64,) =
            sqlx::query_as("SELECT COALESCE(MAX(version), 0) FROM secrets WHERE id = $1 AND scope = $2")
                .bind(id)
                .bind(&*self.scope.0)
                .fetch_one(&mut *self.tx)
                .await?;
        Ok(last + 1)
    }

    /// Destroys every version of an object's secret.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_secrets(&mut self, id: &str) -> Result<(), ApiError> {
        sqlx::query("DELETE FROM secrets WHERE id = $1 AND scope = $2")
            .bind(id)
            .bind(&*self.scope.0)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Gives an object another name; [`Writing::update`] must follow with the document that says so.
    ///
    /// # Errors
    /// [`Code::AlreadyExists`], naming the field, when a sibling has the name.
    pub async fn rename(&mut self, old: &Object, naming: Naming<'_>) -> Result<(), ApiError> {
        if self.find_named(&old.kind, naming.parent, naming.name).await?.is_some() {
            return Err(taken(naming.field, naming.name));
        }
        sqlx::query("UPDATE objects SET name = $1 WHERE scope = $2 AND kind = $3 AND id = $4")
            .bind(naming.name)
            .bind(&*self.scope.0)
            .bind(&*old.kind)
            .bind(&*old.id)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Makes an object.
    ///
    /// # Errors
    /// [`Code::AlreadyExists`], naming the field, when a sibling has the name; [`Code::LimitExceeded`]
    /// when the scope would outgrow the smallest node.
    pub async fn create(
        &mut self,
        kind: &str,
        id: &str,
        naming: Naming<'_>,
        doc: &impl Serialize,
    ) -> Result<Changed, ApiError> {
        if self.find_named(kind, naming.parent, naming.name).await?.is_some() {
            return Err(taken(naming.field, naming.name));
        }
        let object = Object {
            kind: kind.to_owned(),
            id: id.to_owned(),
            parent: naming.parent.to_owned(),
            name: naming.name.to_owned(),
            doc: text(doc)?,
            revision: self.advance().await?,
            created_at_ms: self.now_ms,
            updated_at_ms: self.now_ms,
        };
        self.check_size(&object, 1)?;
        self.write(&object, false).await?;
        self.record(Deed::Create, None, Some(object)).await
    }

    /// Changes an object that was read in this transaction. Its name and parent stay.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn update(&mut self, old: &Object, doc: &impl Serialize) -> Result<Changed, ApiError> {
        let object =
            Object { doc: text(doc)?, revision: self.advance().await?, updated_at_ms: self.now_ms, ..old.clone() };
        // An update that makes the object smaller always passes: it may be the way out.
        if object.doc.len() > old.doc.len() {
            self.check_size(&object, 0)?;
        }
        self.write(&object, false).await?;
        self.record(Deed::Update, Some(old), Some(object)).await
    }

    /// Removes an object that was read in this transaction. A mark stays, so that nodes can be told.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete(&mut self, old: &Object) -> Result<Changed, ApiError> {
        let revision = self.advance().await?;
        let object = Object { revision, updated_at_ms: self.now_ms, ..old.clone() };
        self.write(&object, true).await?;
        self.record(Deed::Delete, Some(old), Some(object)).await
    }

    /// Confirms the scope as it stands, past the guard against sudden shrinking or growth (S11): a new
    /// revision without a change, marked as confirmed. `as_of` is the workspace's own object; the
    /// revision of the result is the new one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn confirm(&mut self, as_of: &Object) -> Result<Changed, ApiError> {
        let doc = text(&serde_json::json!({ "force": true }))?;
        let line = Object { revision: self.advance().await?, doc, ..as_of.clone() };
        let changed = self.record(Deed::Confirm, None, Some(line)).await?;
        self.force().await?;
        Ok(changed)
    }

    /// Marks the newest revision as confirmed by an operator.
    async fn force(&mut self) -> Result<(), ApiError> {
        sqlx::query(
            "UPDATE outbox SET force = 1
             WHERE scope = $1 AND revision = (SELECT revision FROM scopes WHERE scope = $1)",
        )
        .bind(&*self.scope.0)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Marks the whole scope as removed and frees its key. The objects stay for the record. Asking for
    /// it is the confirmation that nodes want before they drop a workspace (S11).
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_scope(&mut self) -> Result<(), ApiError> {
        sqlx::query("UPDATE scopes SET deleted = 1, workspace_key = workspace_key || '~' || scope WHERE scope = $1")
            .bind(&*self.scope.0)
            .execute(&mut *self.tx)
            .await?;
        self.force().await
    }

    /// Replaces many objects at once under one revision: rows that the program itself brings, too many
    /// for a line of audit each. `upserts` and `removals` are written as given, new ones (with a
    /// creation time of 0) as made now; one audit line with `note` stands for all.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn bulk(&mut self, upserts: &[Object], removals: &[Object], note: &str) -> Result<(), ApiError> {
        let revision = self.advance().await?;
        let at = |object: &Object| {
            let created_at_ms = if object.created_at_ms == 0 { self.now_ms } else { object.created_at_ms };
            Object { revision, created_at_ms, updated_at_ms: self.now_ms, ..object.clone() }
        };
        let rows: Vec<_> =
            upserts.iter().map(|o| (at(o), false)).chain(removals.iter().map(|o| (at(o), true))).collect();
        for (object, deleted) in &rows {
            self.write(object, *deleted).await?;
        }
        let line = Object {
            kind: "catalog".to_owned(),
            id: note.to_owned(),
            parent: String::new(),
            name: String::new(),
            doc: text(&serde_json::json!({ "upserts": upserts.len(), "removals": removals.len() }))?,
            revision,
            created_at_ms: self.now_ms,
            updated_at_ms: self.now_ms,
        };
        self.record(Deed::Update, None, Some(line)).await?;
        Ok(())
    }

    /// Commits, with the answer to the request's `Idempotency-Key` if it has one, and wakes the
    /// publisher, here and in other replicas.
    ///
    /// # Errors
    /// When the database fails or another request took the key over: nothing is changed then.
    pub async fn commit(mut self, claim: &Claim, reply: &Reply) -> Result<(), ApiError> {
        claim.settle(&self.app, &mut self.tx, reply).await?;
        notify(&self.app, &mut self.tx, &self.scope.0).await?;
        self.tx.commit().await?;
        self.app.wake();
        Ok(())
    }

    /// S12: what no node could take is refused here and not held back later.
    fn check_size(&self, object: &Object, more: u64) -> Result<(), ApiError> {
        let bytes = object.doc.len() as u64;
        let fits = self.app.publish.check_size(&self.scope.0, bytes, more);
        fits.map_err(|e| ApiError::new(Code::LimitExceeded, e.detail))
    }

    async fn advance(&mut self) -> Result<i64, ApiError> {
        let (revision,): (i64,) = sqlx::query_as(
            "UPDATE scopes SET revision = revision + 1, updated_at_ms = $1 WHERE scope = $2 RETURNING revision",
        )
        .bind(self.now_ms)
        .bind(&*self.scope.0)
        .fetch_one(&mut *self.tx)
        .await?;
        Ok(revision)
    }

    /// The object and its history line.
    async fn write(&mut self, object: &Object, deleted: bool) -> Result<(), ApiError> {
        let written = sqlx::query(
            "INSERT INTO objects (scope, kind, id, parent, name, doc, revision, created_at_ms, updated_at_ms, deleted)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
             ON CONFLICT (scope, kind, id) DO UPDATE SET doc = excluded.doc, revision = excluded.revision,
                 updated_at_ms = excluded.updated_at_ms, deleted = excluded.deleted",
        )
        .bind(&*self.scope.0)
        .bind(&*object.kind)
        .bind(&*object.id)
        .bind(&*object.parent)
        .bind(&*object.name)
        .bind(&*object.doc)
        .bind(object.revision)
        .bind(object.created_at_ms)
        .bind(object.updated_at_ms)
        .bind(i64::from(deleted))
        .execute(&mut *self.tx)
        .await;
        match written {
            // Looked for before, under the scope's lock; the index is the second wall.
            Err(sqlx::Error::Database(e)) if e.is_unique_violation() => return Err(taken("name", &object.name)),
            other => other?,
        };
        sqlx::query(
            "INSERT INTO object_history (scope, kind, id, revision, doc, deleted) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&*self.scope.0)
        .bind(&*object.kind)
        .bind(&*object.id)
        .bind(object.revision)
        .bind(&*object.doc)
        .bind(i64::from(deleted))
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// The audit line and the outbox line. `after` is what stands at the new revision.
    async fn record(
        &mut self,
        deed: Deed,
        before: Option<&Object>,
        after: Option<Object>,
    ) -> Result<Changed, ApiError> {
        let object = after.ok_or_else(|| ApiError::internal("a change without an object"))?;
        let change_id = ChangeId::new(u64::try_from(self.now_ms).unwrap_or_default(), runtime::random::bytes());
        let after = (deed != Deed::Delete).then_some(&*object.doc);
        let line = AuditLine {
            change_id: &change_id.to_string(),
            scope: &self.scope.0,
            revision: object.revision,
            at_ms: self.now_ms,
            actor: &self.actor.0,
            action: deed.as_str(),
            kind: &object.kind,
            object_id: &object.id,
            before: before.map(|o| &*o.doc),
            after,
        };
        line.append(&mut self.tx).await?;
        sqlx::query("INSERT INTO outbox (scope, revision, change_id, committed_at_ms) VALUES ($1, $2, $3, $4)")
            .bind(&*self.scope.0)
            .bind(object.revision)
            .bind(change_id.to_string())
            .bind(self.now_ms)
            .execute(&mut *self.tx)
            .await?;
        Ok(Changed { object, change_id })
    }
}

/// Wakes the publishers of other replicas once the transaction commits. SQLite has no others.
async fn notify(app: &App, tx: &mut Tx, scope: &str) -> Result<(), ApiError> {
    match app.db.engine() {
        Engine::Sqlite => {}
        Engine::Postgres => {
            sqlx::query("SELECT CAST(pg_notify($1, $2) AS TEXT)")
                .bind(replicas::CHANGES)
                .bind(scope)
                .execute(&mut **tx)
                .await?;
        }
    }
    Ok(())
}

fn taken(field: &'static str, name: &str) -> ApiError {
    let message = format!("{name:?} is taken");
    ApiError::new(Code::AlreadyExists, format!("{field}: {message}")).at(field, "already_exists", message)
}

fn text(value: &impl Serialize) -> Result<String, ApiError> {
    serde_json::to_string(value).map_err(ApiError::internal)
}
