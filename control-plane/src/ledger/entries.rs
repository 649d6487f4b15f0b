//! Money moved: append-only, double entry. Every transaction sums to zero, by this code and by the
//! database's triggers, and carries the name of what happened, so that it cannot happen twice.
//!
//! Calls on a workspace's own credentials are metered, not charged: they move between
//! `workspace:<id>:metered` and `provider:<vendor>:cost`, two accounts that nobody pays from.

use shared::ids::WorkspaceId;
use shared::money::Nanos;

use super::sql::Sql;
use crate::db::Tx;

/// One side of a movement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whose.
    pub account: String,
    /// Into it, or out of it when negative.
    pub amount: Nanos,
}

/// Why entries were not posted.
#[derive(Debug)]
pub enum PostError {
    /// They do not sum to zero, or not within 64 bits; or there are none.
    Unbalanced,
    /// The database refuses: a transaction of this name exists, or it cannot be reached.
    Database(sqlx::Error),
}

impl std::fmt::Display for PostError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unbalanced => f.write_str("entries do not sum to zero"),
            Self::Database(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for PostError {}

impl From<sqlx::Error> for PostError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// The account of what a workspace used on its own credentials.
pub fn metered(workspace: &str) -> String {
    format!("workspace:{workspace}:metered")
}

/// The account of what a vendor has billed to whoever owns the credentials.
pub fn vendor_cost(vendor: &str) -> String {
    format!("provider:{vendor}:cost")
}

/// Posts entries as one transaction named `idem`, of this kind, at most 1000 of them.
///
/// # Errors
/// When they do not sum to zero, or when `idem` was posted before (the database's uniqueness error).
pub async fn post(tx: &mut Tx, idem: &str, kind: &str, entries: &[Entry], now_ms: i64) -> Result<(), PostError> {
    let sum = entries.iter().try_fold(0_i64, |sum, entry| sum.checked_add(entry.amount.0));
    if sum != Some(0) || entries.is_empty() || entries.len() > 1000 {
        return Err(PostError::Unbalanced);
    }
    let id = format!("tx_{:032x}", u128::from_be_bytes(runtime::random::bytes()));
    let mut sql = Sql::new("INSERT INTO entries (tx, n, account, amount_nanos, created_at_ms) VALUES ");
    for (n, entry) in (0_i64..).zip(entries) {
        sql.push(if n == 0 { "(" } else { ", (" }).bind(id.as_str());
        sql.push(", ").bind(n).push(", ").bind(entry.account.as_str());
        sql.push(", ").bind(entry.amount.0).push(", ").bind(now_ms).push(")");
    }
    sql.query().execute(&mut **tx).await?;
    sqlx::query("INSERT INTO transactions (id, idem, kind, created_at_ms) VALUES ($1, $2, $3, $4)")
        .bind(&id)
        .bind(idem)
        .bind(kind)
        .bind(now_ms)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// What an account holds.
///
/// # Errors
/// When the database cannot be reached.
pub async fn balance(pool: &sqlx::AnyPool, account: &str) -> Result<Nanos, sqlx::Error> {
    let (sum,): (i64,) =
        sqlx::query_as("SELECT CAST(COALESCE(SUM(amount_nanos), 0) AS BIGINT) FROM entries WHERE account = $1")
            .bind(account)
            .fetch_one(pool)
            .await?;
    Ok(Nanos(sum))
}

/// The two accounts of a metered amount.
pub(super) fn memo(workspace: &WorkspaceId, vendor: &str, amount: Nanos) -> Option<[Entry; 2]> {
    let out = amount.0.checked_neg()?;
    Some([
        Entry { account: metered(&workspace.to_string()), amount: Nanos(out) },
        Entry { account: vendor_cost(vendor), amount },
    ])
}
