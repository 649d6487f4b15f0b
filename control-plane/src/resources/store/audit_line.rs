//! The chain of audit lines of a scope. It only ever adds a line.

use serde::Serialize;
use shared::digest::sha256;

use super::text;
use crate::auth::token::hex;
use crate::db::Tx;
use crate::error::ApiError;

/// A line of the audit. Its hash covers everything it says and the hash before it, so that a changed,
/// removed or inserted line breaks the chain of its scope.
#[derive(Debug, Serialize)]
pub struct AuditLine<'a> {
    /// Names the change.
    pub change_id: &'a str,
    /// Workspace id, `shared`, or `admin` for what belongs to none.
    pub scope: &'a str,
    /// Counts up in the scope.
    pub revision: i64,
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Id of an admin token, or `system`.
    pub actor: &'a str,
    /// `create`, `update`, `delete`, `confirm`.
    pub action: &'a str,
    /// What kind of object.
    pub kind: &'a str,
    /// Which.
    pub object_id: &'a str,
    /// The document before; never holds a secret.
    pub before: Option<&'a str>,
    /// The document afterwards.
    pub after: Option<&'a str>,
}

impl AuditLine<'_> {
    /// The hash of the line behind one with the hash `previous` ("" for the first).
    ///
    /// # Errors
    /// Never in practice: the line is plain text.
    pub fn hash(&self, previous: &str) -> Result<String, ApiError> {
        Ok(hex(&sha256(&[previous.as_bytes(), b"\n", text(self)?.as_bytes()])))
    }

    /// Writes the line at the end of its scope's chain. The caller holds the scope's lock.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn append(&self, tx: &mut Tx) -> Result<(), ApiError> {
        let last: Option<(String,)> =
            sqlx::query_as("SELECT hash FROM audit WHERE scope = $1 ORDER BY revision DESC LIMIT 1")
                .bind(self.scope)
                .fetch_optional(&mut **tx)
                .await?;
        let hash = self.hash(last.as_ref().map_or("", |(hash,)| hash))?;
        sqlx::query(
            "INSERT INTO audit (change_id, scope, revision, at_ms, actor, action, kind, object_id, before, after, hash)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(self.change_id)
        .bind(self.scope)
        .bind(self.revision)
        .bind(self.at_ms)
        .bind(self.actor)
        .bind(self.action)
        .bind(self.kind)
        .bind(self.object_id)
        .bind(self.before)
        .bind(self.after)
        .bind(hash)
        .execute(&mut **tx)
        .await?;
        Ok(())
    }
}
