//! The invariants, read from the tables.

use crate::db::Db;

/// Every column of usage_minutes that is summed, as usage_records gives it.
const REBUILD: &str = "SELECT workspace_id, identity, vendor, status_class, requests, errors, tokens, cost FROM (\
    SELECT workspace_id, identity, vendor, \
    CASE WHEN status BETWEEN 200 AND 299 THEN '2xx' WHEN status BETWEEN 500 AND 599 THEN '5xx' ELSE 'none' END AS status_class, \
    started_at_ms - started_at_ms % 60000 AS minute_ms, COUNT(*) AS requests, \
    CAST(SUM(CASE WHEN outcome = 'completed' THEN 0 ELSE 1 END) AS BIGINT) AS errors, \
    CAST(SUM(input + cache_read + output) AS BIGINT) AS tokens, CAST(SUM(cost_nanos) AS BIGINT) AS cost \
    FROM usage_records GROUP BY 1, 2, 3, 4, 5) AS again ORDER BY workspace_id, identity, vendor, status_class, minute_ms";
const LIVE: &str = "SELECT workspace_id, identity, vendor, status_class, CAST(SUM(requests) AS BIGINT), \
    CAST(SUM(errors) AS BIGINT), CAST(SUM(input + cache_read + output) AS BIGINT), CAST(SUM(cost_nanos) AS BIGINT) \
    FROM usage_minutes GROUP BY workspace_id, identity, vendor, status_class, minute_ms \
    ORDER BY workspace_id, identity, vendor, status_class, minute_ms";

type Line = (String, String, String, String, i64, i64, i64, i64);

pub async fn number(db: &Db, text: &'static str) -> i64 {
    let (number,): (i64,) = sqlx::query_as(text).fetch_one(db.pool()).await.expect(text);
    number
}

/// I3, I4, I12, and that every applied number was applied once.
pub async fn hold(db: &Db) {
    let sum = "SELECT CAST(COALESCE(SUM(amount_nanos), 0) AS BIGINT) FROM entries";
    assert_eq!(number(db, sum).await, 0, "I3: all entries sum to zero");
    let unbalanced = "SELECT COUNT(*) FROM (SELECT tx FROM entries GROUP BY tx HAVING SUM(amount_nanos) <> 0) AS t";
    assert_eq!(number(db, unbalanced).await, 0, "I3: every transaction sums to zero");
    let metered = "SELECT CAST(COALESCE(SUM(amount_nanos), 0) AS BIGINT) FROM entries WHERE account LIKE 'workspace:%'";
    let costs = "SELECT CAST(COALESCE(SUM(cost_nanos), 0) AS BIGINT) FROM usage_records";
    assert_eq!(-number(db, metered).await, number(db, costs).await, "I4: what was metered is what the records cost");
    let live: Vec<Line> = sqlx::query_as(LIVE).fetch_all(db.pool()).await.expect("live sums");
    let again: Vec<Line> = sqlx::query_as(REBUILD).fetch_all(db.pool()).await.expect("sums of the records");
    assert_eq!(live, again, "I12: the records summed up again give the live sums");
    let twice = "SELECT COUNT(*) FROM (SELECT seq FROM usage_records GROUP BY node_id, incarnation, seq HAVING COUNT(*) > 1) AS t";
    assert_eq!(number(db, twice).await, 0, "I2: no number twice");
}
