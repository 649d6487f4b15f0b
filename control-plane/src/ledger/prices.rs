//! Every price row that was ever published, by its id, for ever. A row's id is the hash of the row,
//! so that nobody can name one and mean another.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use shared::money;
use shared::proto;

use super::sql::Sql;
use crate::db::Tx;

/// Rows written with one statement.
const CHUNK: usize = 500;

/// A row as the database keeps it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct Doc {
    effective_from_ms: i64,
    above_input_tokens: u64,
    service_tier: String,
    input: i64,
    cache_read: i64,
    cache_write_5m: i64,
    cache_write_1h: i64,
    output: i64,
    reasoning: i64,
    audio_input: i64,
    audio_output: i64,
}

/// Records price rows in the transaction that publishes them. Known ones are skipped; a row whose id
/// is not its own hash is skipped too and never used.
///
/// # Errors
/// When the database refuses.
pub async fn record<'a>(tx: &mut Tx, rows: impl IntoIterator<Item = &'a proto::Price>) -> Result<(), sqlx::Error> {
    // Sorted: replicas that record the same rows must not wait for each other in a circle.
    let docs: std::collections::BTreeMap<&str, String> = rows
        .into_iter()
        .filter(|row| money::price_id(row) == row.id)
        .filter_map(|row| Some((row.id.as_str(), serde_json::to_string(&doc(row)).ok()?)))
        .collect();
    let docs: Vec<_> = docs.into_iter().collect();
    for chunk in docs.chunks(CHUNK) {
        let mut sql = Sql::new("INSERT INTO price_versions (id, doc) VALUES ");
        for (place, (id, doc)) in chunk.iter().enumerate() {
            sql.push(if place == 0 { "(" } else { ", (" }).bind(*id).push(", ").bind(doc.as_str()).push(")");
        }
        sql.push(" ON CONFLICT (id) DO NOTHING");
        sql.query().execute(&mut **tx).await?;
    }
    Ok(())
}

/// The rows with these ids, as far as known. At most 1000 are looked up.
///
/// # Errors
/// When the database refuses.
pub async fn load(tx: &mut Tx, ids: &[&str]) -> Result<HashMap<String, proto::Price>, sqlx::Error> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let mut sql = Sql::new("SELECT id, doc FROM price_versions WHERE id IN ");
    sql.bind_list(ids.iter().take(1000).copied());
    let rows: Vec<(String, String)> = sql.query_as().fetch_all(&mut **tx).await?;
    Ok(rows.into_iter().filter_map(|(id, doc)| Some((id.clone(), row(&id, &doc)?))).collect())
}

fn doc(row: &proto::Price) -> Doc {
    Doc {
        effective_from_ms: row.effective_from_ms,
        above_input_tokens: row.above_input_tokens,
        service_tier: row.service_tier.clone(),
        input: row.input,
        cache_read: row.cache_read,
        cache_write_5m: row.cache_write_5m,
        cache_write_1h: row.cache_write_1h,
        output: row.output,
        reasoning: row.reasoning,
        audio_input: row.audio_input,
        audio_output: row.audio_output,
    }
}

/// `None` when the text is not the row of that id.
fn row(id: &str, text: &str) -> Option<proto::Price> {
    let doc: Doc = serde_json::from_str(text).ok()?;
    let row = proto::Price {
        id: id.to_owned(),
        effective_from_ms: doc.effective_from_ms,
        above_input_tokens: doc.above_input_tokens,
        service_tier: doc.service_tier,
        input: doc.input,
        cache_read: doc.cache_read,
        cache_write_5m: doc.cache_write_5m,
        cache_write_1h: doc.cache_write_1h,
        output: doc.output,
        reasoning: doc.reasoning,
        audio_input: doc.audio_input,
        audio_output: doc.audio_output,
    };
    (money::price_id(&row) == id).then_some(row)
}
