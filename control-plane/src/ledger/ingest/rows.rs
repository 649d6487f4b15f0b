//! Writing records and sums: many rows in one statement and one value, a JSON array of arrays, which
//! both engines take apart several times faster than they take as many single values.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use shared::proto::Outcome;
use sqlx::AssertSqlSafe;

use super::IngestError;
use super::record::{Checked, Priced, outcome_name, status_class};
use crate::db::{Engine, Tx};
use crate::ledger::sql::Sql;

/// Rows of one statement.
const CHUNK: usize = 1000;
const MINUTE_MS: i64 = 60_000;

/// A table that rows go into.
struct Table {
    name: &'static str,
    /// What makes a row the same row. Columns are separated by blanks; those of numbers end in `#`.
    key: &'static str,
    /// The other columns.
    rest: &'static str,
    /// What becomes of a row that is there already.
    known: Known,
}

enum Known {
    /// It stays as it is.
    Keep,
    /// The rest is added to it.
    Add,
}

const RECORDS: Table = Table {
    name: "usage_records",
    key: "request_id",
    rest: "node_id incarnation seq# workspace_id project_id api_key_id identity endpoint requested_model \
        provider_id provider vendor model credential_id credential_owner router policy status# outcome code \
        stream# attempts# fallback_level# revision# started_at_ms# total_us# upstream_us# first_byte_us# \
        input# cache_read# cache_write_5m# cache_write_1h# output# reasoning# audio_input# audio_output# \
        estimated# unpriced# price_id cost_nanos# reported_cost_nanos# service_tier region applied_at_ms#",
    known: Known::Keep,
};

const MINUTES: Table = Table {
    name: "usage_minutes",
    key: "workspace_id minute_ms# project_id api_key_id identity provider vendor model credential_id \
        credential_owner router policy endpoint status_class",
    rest: "requests# errors# estimated# unpriced# input# cache_read# cache_write_5m# cache_write_1h# \
        output# reasoning# audio_input# audio_output# cost_nanos# total_us# upstream_us#",
    known: Known::Add,
};

impl Table {
    /// Inserts what `$1` holds: lines of the key's columns and the rest's, in their order.
    fn insert(&self, engine: Engine) -> String {
        let columns = || self.key.split(' ').chain(self.rest.split(' '));
        let name = |column: &'static str| column.trim_end_matches('#');
        let names = columns().map(name).collect::<Vec<_>>().join(", ");
        let key = self.key.split(' ').map(name).collect::<Vec<_>>().join(", ");
        let values = columns().enumerate().map(|(place, column)| match engine {
            Engine::Sqlite => format!("value->>{place}"),
            Engine::Postgres if column.ends_with('#') => format!("(v->>{place})::bigint"),
            Engine::Postgres => format!("v->>{place}"),
        });
        let values = values.collect::<Vec<_>>().join(", ");
        let lines = match engine {
            // Without the condition SQLite would read the conflict clause as part of a join.
            Engine::Sqlite => "json_each($1) WHERE true",
            Engine::Postgres => "jsonb_array_elements($1::jsonb) AS lines(v)",
        };
        let table = self.name;
        let known = match self.known {
            Known::Keep => "NOTHING".to_owned(),
            Known::Add => {
                let sum = |column| format!("{column} = {table}.{column} + excluded.{column}");
                format!("UPDATE SET {}", self.rest.split(' ').map(name).map(sum).collect::<Vec<_>>().join(", "))
            }
        };
        format!("INSERT INTO {table} ({names}) SELECT {values} FROM {lines} ON CONFLICT ({key}) DO {known}")
    }
}

/// A record to apply, and its cost.
#[derive(Debug)]
pub struct Row {
    /// What was used.
    pub checked: Checked,
    /// For how much.
    pub priced: Priced,
}

/// Inserts records; gives those that were new, in their order. A request id that is known already,
/// from this batch or any earlier one, is left alone.
pub async fn insert(
    tx: &mut Tx,
    engine: Engine,
    node: &str,
    incarnation: &str,
    rows: Vec<Row>,
    now: i64,
) -> Result<Vec<Row>, IngestError> {
    let text = RECORDS.insert(engine);
    let mut new = Vec::with_capacity(rows.len());
    let mut rows = rows.into_iter();
    loop {
        let chunk: Vec<Row> = rows.by_ref().take(CHUNK).collect();
        if chunk.is_empty() {
            return Ok(new);
        }
        let mut lines = Lines::default();
        for row in &chunk {
            record_line(&mut lines, node, incarnation, row, now);
        }
        let done = sqlx::query(AssertSqlSafe(text.clone())).bind(lines.finish()).execute(&mut **tx).await?;
        if done.rows_affected() == chunk.len() as u64 {
            new.extend(chunk);
        } else {
            let ours = ours(tx, node, incarnation, &chunk).await?;
            new.extend(
                chunk
                    .into_iter()
                    .filter(|row| ours.get(&row.checked.request_id.to_string()) == Some(&(row.checked.seq as i64))),
            );
        }
    }
}

/// Of these requests, the ones that the table has from this very journal, and under which number.
async fn ours(tx: &mut Tx, node: &str, incarnation: &str, chunk: &[Row]) -> Result<HashMap<String, i64>, IngestError> {
    let mut sql = Sql::new("SELECT request_id, seq FROM usage_records WHERE node_id = ");
    sql.bind(node).push(" AND incarnation = ").bind(incarnation).push(" AND request_id IN ");
    sql.bind_list(chunk.iter().map(|row| row.checked.request_id.to_string()));
    // Rare and of any length: not worth a prepared statement.
    let rows: Vec<(String, i64)> = sql.query_as().persistent(false).fetch_all(&mut **tx).await?;
    Ok(rows.into_iter().collect())
}

/// What the sums are kept by, in the order of the primary key: rows are always locked in one order.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a> {
    workspace_id: &'a str,
    minute_ms: i64,
    names: [&'a str; 12],
}

/// Adds records to the sums per minute.
pub async fn add_to_minutes(tx: &mut Tx, engine: Engine, rows: &[Row]) -> Result<(), IngestError> {
    let mut sums: BTreeMap<Key<'_>, [i64; 15]> = BTreeMap::new();
    for row in rows {
        let sum = sums.entry(key(row)).or_insert([0; 15]);
        for (total, part) in sum.iter_mut().zip(counts(row)) {
            *total = total.checked_add(part).ok_or(IngestError::Damaged("a sum does not fit 64 bits"))?;
        }
    }
    let sums: Vec<_> = sums.into_iter().collect();
    for chunk in sums.chunks(CHUNK) {
        let mut lines = Lines::default();
        for (key, counts) in chunk {
            lines.begin().add(key.workspace_id).add(key.minute_ms);
            key.names.iter().for_each(|name| _ = lines.add(name));
            counts.iter().for_each(|count| _ = lines.add(count));
        }
        let text = MINUTES.insert(engine);
        sqlx::query(AssertSqlSafe(text)).bind(lines.finish()).execute(&mut **tx).await?;
    }
    Ok(())
}

fn key(row: &Row) -> Key<'_> {
    let r = &row.checked.record;
    Key {
        workspace_id: &r.workspace_id,
        minute_ms: r.started_at_ms - r.started_at_ms.rem_euclid(MINUTE_MS),
        names: [
            &r.project_id,
            &r.api_key_id,
            &r.identity,
            &r.provider,
            &r.vendor,
            &r.model,
            &r.credential_id,
            &r.credential_owner,
            &r.router,
            &r.policy,
            &r.endpoint,
            status_class(r.status),
        ],
    }
}

fn counts(row: &Row) -> [i64; 15] {
    let (r, t) = (&row.checked.record, &row.checked.tokens);
    let error = row.checked.outcome != Outcome::Completed;
    let [input, cache_read, cache_write_5m, cache_write_1h] =
        [t.input, t.cache_read, t.cache_write_5m, t.cache_write_1h].map(number);
    let [output, reasoning, audio_input, audio_output] =
        [t.output, t.reasoning, t.audio_input, t.audio_output].map(number);
    [
        1,
        error.into(),
        r.estimated.into(),
        row.priced.unpriced.into(),
        input,
        cache_read,
        cache_write_5m,
        cache_write_1h,
        output,
        reasoning,
        audio_input,
        audio_output,
        row.priced.cost.0,
        number(r.total_us),
        number(r.upstream_us),
    ]
}

fn record_line(lines: &mut Lines, node: &str, incarnation: &str, row: &Row, now: i64) {
    let (c, r, t) = (&row.checked, &row.checked.record, &row.checked.tokens);
    lines.begin().add(c.request_id.to_string()).add(node).add(incarnation).add(number(c.seq));
    let names = [
        &r.workspace_id,
        &r.project_id,
        &r.api_key_id,
        &r.identity,
        &r.endpoint,
        &r.requested_model,
        &r.provider_id,
        &r.provider,
        &r.vendor,
        &r.model,
        &r.credential_id,
        &r.credential_owner,
        &r.router,
        &r.policy,
    ];
    names.iter().for_each(|name| _ = lines.add(name.as_str()));
    lines.add(i64::from(r.status)).add(outcome_name(c.outcome)).add(r.code.as_str());
    lines.add(i64::from(r.stream)).add(i64::from(r.attempts)).add(i64::from(r.fallback_level));
    lines.add(number(r.revision)).add(r.started_at_ms);
    let counts = [
        r.total_us,
        r.upstream_us,
        r.first_byte_us,
        t.input,
        t.cache_read,
        t.cache_write_5m,
        t.cache_write_1h,
        t.output,
        t.reasoning,
        t.audio_input,
        t.audio_output,
    ];
    counts.iter().for_each(|count| _ = lines.add(number(*count)));
    lines.add(i64::from(r.estimated)).add(i64::from(row.priced.unpriced)).add(r.price_id.as_str());
    lines.add(row.priced.cost.0).add(r.cost_nanos).add(r.service_tier.as_str()).add(r.region.as_str()).add(now);
}

/// Columns are signed; nothing that passed the checks is near the border.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A JSON array of arrays in the making.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// Begins a line.
    fn begin(&mut self) -> &mut Self {
        self.0.extend_from_slice(if self.0.is_empty() { b"[[" } else { b"],[" });
        self
    }

    /// Adds a value to the line.
    fn add(&mut self, value: impl Serialize) -> &mut Self {
        if self.0.last() != Some(&b'[') {
            self.0.push(b',');
        }
        // Texts and numbers, into memory: it cannot fail.
        _ = serde_json::to_writer(&mut self.0, &value);
        self
    }

    fn finish(mut self) -> String {
        self.0.extend_from_slice(if self.0.is_empty() { b"[]" } else { b"]]" });
        String::from_utf8(self.0).unwrap_or_default()
    }
}
