//! Applies what nodes report: each record exactly once.
//!
//! One transaction per batch compares the batch with the journal's mark (`decide`), inserts the
//! records, adds them to the sums, posts the entries and moves the mark; the answer follows the
//! commit. At most once comes from the mark, at least once from the node, which keeps a record until
//! the answer. The request id, unique for ever, is a second guard against journals that were copied
//! and therefore come under two names.
//!
//! A node is believed that it carried a request out. It is not believed in whose name (the key must
//! belong to the workspace) nor at what price (computed again from the tokens).

mod decide;
mod metrics;
mod record;
mod rows;
mod stream;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use shared::digest::Hash;
use shared::ids::NodeId;
use shared::money::Nanos;
use shared::proto::{self, usage_reply::Message};

use self::decide::{Decision, Known, Offer};
use self::metrics::Counters;
use self::record::{Checked, Priced, check, price};
pub use self::record::{Refused, outcome_name, status_class};
use self::rows::Row;
pub use self::stream::UsageService;
use super::entries::{self, PostError};
use super::prices;
use super::sql::Sql;
use crate::db::{Db, Engine, Tx};

/// Records of a batch at most.
pub const MAX_RECORDS: usize = 4096;
/// Journals of one node at most, over all times.
const MAX_SPOOLS: i64 = 100_000;
/// Remembered (workspace, object) pairs and price rows; forgotten all at once beyond.
const MAX_CACHED: usize = 200_000;

/// Why nothing was applied. The node keeps its records and comes again.
#[derive(Debug)]
pub enum IngestError {
    /// The database refuses or cannot be reached.
    Database(sqlx::Error),
    /// The message cannot be meant.
    Malformed(&'static str),
    /// What the database holds cannot be read.
    Damaged(&'static str),
}

impl fmt::Display for IngestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database(error) => error.fmt(f),
            Self::Malformed(what) | Self::Damaged(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for IngestError {}

impl From<sqlx::Error> for IngestError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<PostError> for IngestError {
    fn from(error: PostError) -> Self {
        match error {
            PostError::Unbalanced => Self::Damaged("the entries of a batch do not sum to zero"),
            PostError::Database(error) => Self::Database(error),
        }
    }
}

/// Where the time of day comes from.
type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The writer of the ledger's usage. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Ingest {
    db: Db,
    clock: Clock,
    counters: Counters,
    cache: Arc<Mutex<Cache>>,
}

/// Facts that never change once true.
#[derive(Default)]
struct Cache {
    /// (scope, id of a key or project in it).
    owned: HashSet<(String, String)>,
    prices: HashMap<String, Arc<proto::Price>>,
}

/// The name of a journal, as the tables write it.
struct Journal<'a> {
    node: &'a str,
    incarnation: String,
}

impl Ingest {
    /// Over a migrated database; `clock` gives milliseconds since 1970.
    pub fn new(db: Db, clock: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self { db, clock: Arc::new(clock), counters: Counters::default(), cache: Arc::default() }
    }

    /// Adds its metrics to a registry.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.counters.register(registry);
    }

    /// A node opens a journal: older streams of it are fenced off from here on.
    ///
    /// # Errors
    /// When the database refuses, or the node has opened too many journals.
    pub async fn open(&self, node: NodeId, open: &proto::UsageOpen) -> Result<proto::UsageReply, IngestError> {
        let node = node.to_string();
        let journal = Journal::of(&node, &open.incarnation)?;
        let now = (self.clock)();
        let mut tx = self.db.begin().await?;
        let (count,): (i64,) =
            sqlx::query_as("SELECT COUNT(*) FROM spools WHERE node_id = $1").bind(&node).fetch_one(&mut *tx).await?;
        if count >= MAX_SPOOLS {
            return Err(IngestError::Malformed("this node has opened too many journals"));
        }
        let (session, applied_seq, chain, quarantined): (i64, i64, String, String) = sqlx::query_as(
            "INSERT INTO spools (node_id, incarnation, session, applied_seq, chain, quarantined, created_at_ms, updated_at_ms) \
             VALUES ($1, $2, 1, 0, $3, '', $4, $4) \
             ON CONFLICT (node_id, incarnation) DO UPDATE SET session = spools.session + 1, updated_at_ms = $4 \
             RETURNING session, applied_seq, chain, quarantined",
        )
        .bind(&node)
        .bind(&journal.incarnation)
        .bind(hex(&[0; 32]))
        .bind(now)
        .fetch_one(&mut *tx)
        .await?;
        let held_from = i64::try_from(open.held_from).unwrap_or(i64::MAX);
        if held_from > applied_seq.saturating_add(1) {
            self.note_gap(&mut tx, &journal, applied_seq + 1, held_from - 1, now).await?;
        }
        tx.commit().await?;
        if !quarantined.is_empty() {
            return Ok(rejected(open.incarnation.clone(), &quarantined, "this journal was set aside"));
        }
        let chain = hash(&chain).ok_or(IngestError::Damaged("spools.chain"))?.to_vec();
        let (session, applied_seq) = (session as u64, applied_seq as u64);
        Ok(reply(Message::Opened(proto::UsageOpened {
            incarnation: open.incarnation.clone(),
            session,
            applied_seq,
            chain,
        })))
    }

    /// Applies a batch and answers it; the answer is true once this returns.
    ///
    /// # Errors
    /// When the database refuses: nothing was applied, or the commit's answer was lost, in which case
    /// the mark will tell.
    pub async fn apply(&self, node: NodeId, batch: &proto::UsageBatch) -> Result<proto::UsageReply, IngestError> {
        if batch.records.len() > MAX_RECORDS {
            return Err(IngestError::Malformed("too many records in a batch"));
        }
        let began = runtime::clock::monotonic();
        let node = node.to_string();
        let journal = Journal::of(&node, &batch.incarnation)?;
        let now = (self.clock)();
        // Before the write lock is taken: it is the costly part that needs no database.
        let checks: Vec<_> =
            (batch.first_seq..).zip(&batch.records).map(|(seq, bytes)| check(seq, bytes, now)).collect();
        let mut tx = self.db.begin().await?;
        let Some(known) = self.mark(&mut tx, &journal).await? else {
            return Ok(rejected(batch.incarnation.clone(), "fenced", "open the journal first"));
        };
        let offer = Offer {
            session: batch.session,
            first_seq: batch.first_seq,
            prev_hash: &batch.prev_hash,
            records: &batch.records,
        };
        let decision = decide::decide(&known, &offer);
        let incarnation = batch.incarnation.clone();
        let accepted = |applied_seq, chain: Hash| {
            reply(Message::Accepted(proto::UsageAccepted {
                incarnation: incarnation.clone(),
                applied_seq,
                chain: chain.to_vec(),
            }))
        };
        match decision {
            Decision::Apply { skip, applied_seq, chain } => {
                let checks = checks.into_iter().skip(skip).collect();
                self.write(&mut tx, &journal, batch, skip, checks, now).await?;
                move_mark(&mut tx, &journal, &known, applied_seq, &chain, now).await?;
                tx.commit().await?;
                self.counters.resent.inc_by(skip as u64);
                self.counters.batch_seconds.observe(runtime::clock::monotonic().saturating_sub(began).as_secs_f64());
                Ok(accepted(applied_seq, chain))
            }
            Decision::Known => {
                self.counters.resent.inc_by(batch.records.len() as u64);
                Ok(accepted(known.applied_seq, known.chain))
            }
            Decision::Resend => {
                self.counters.resends.inc();
                let from_seq = known.applied_seq + 1;
                Ok(reply(Message::Resend(proto::UsageResend { incarnation, from_seq, chain: known.chain.to_vec() })))
            }
            Decision::Fenced => {
                self.counters.fenced.inc();
                Ok(rejected(incarnation, "fenced", "a newer stream reports this journal"))
            }
            Decision::Mismatch => {
                self.quarantine(&mut tx, &journal, "chain_mismatch", now).await?;
                tx.commit().await?;
                Ok(rejected(incarnation, "chain_mismatch", "other records were applied under these numbers"))
            }
            Decision::Quarantined => Ok(rejected(incarnation, "chain_mismatch", "this journal was set aside")),
            Decision::Malformed => {
                Err(IngestError::Malformed("a batch needs records, a first_seq and 32 bytes of prev_hash"))
            }
        }
    }

    /// Reads the mark and keeps others from moving it until the transaction ends.
    async fn mark(&self, tx: &mut Tx, journal: &Journal<'_>) -> Result<Option<Known>, IngestError> {
        let text = match self.db.engine() {
            // The write lock of the whole file is held already.
            Engine::Sqlite => {
                "SELECT session, applied_seq, chain, quarantined FROM spools WHERE node_id = $1 AND incarnation = $2"
            }
            Engine::Postgres => {
                "SELECT session, applied_seq, chain, quarantined FROM spools WHERE node_id = $1 AND incarnation = $2 FOR UPDATE"
            }
        };
        let found: Option<(i64, i64, String, String)> =
            sqlx::query_as(text).bind(journal.node).bind(&journal.incarnation).fetch_optional(&mut **tx).await?;
        let Some((session, applied_seq, chain, quarantined)) = found else { return Ok(None) };
        Ok(Some(Known {
            session: session as u64,
            applied_seq: applied_seq as u64,
            chain: hash(&chain).ok_or(IngestError::Damaged("spools.chain"))?,
            quarantined: !quarantined.is_empty(),
        }))
    }

    /// Everything a batch does besides moving the mark.
    async fn write(
        &self,
        tx: &mut Tx,
        journal: &Journal<'_>,
        batch: &proto::UsageBatch,
        skip: usize,
        checks: Vec<Result<Checked, Refused>>,
        now: i64,
    ) -> Result<(), IngestError> {
        let first = batch.first_seq + skip as u64;
        let mut refused: Vec<(u64, Refused)> = Vec::new();
        let mut possible = Vec::with_capacity(checks.len());
        for (seq, check) in (first..).zip(checks) {
            match check {
                Ok(checked) => possible.push(checked),
                Err(why) => refused.push((seq, why)),
            }
        }
        let owned = self.owned(tx, &possible).await?;
        let prices = self.prices(tx, &possible).await?;
        let mut rows = Vec::with_capacity(possible.len());
        for checked in possible {
            let outcome = judge(&checked, &owned, &prices);
            match outcome {
                Ok(priced) => rows.push(Row { checked, priced }),
                Err(why) => refused.push((checked.seq, why)),
            }
        }
        self.refuse(tx, journal, batch, &refused, now).await?;
        let (offered, unpriced) = (rows.len(), rows.iter().filter(|row| row.priced.unpriced).count());
        let corrected = rows.iter().filter(|row| row.priced.cost.0 != row.checked.record.cost_nanos).count();
        let applied = rows::insert(tx, self.db.engine(), journal.node, &journal.incarnation, rows, now).await?;
        rows::add_to_minutes(tx, self.db.engine(), &applied).await?;
        post(tx, journal, first, &applied, now).await?;
        self.counters.duplicates.inc_by((offered - applied.len()) as u64);
        self.counters.applied.inc_by(applied.len() as u64);
        self.counters.unpriced.inc_by(unpriced as u64);
        self.counters.corrected.inc_by(corrected as u64);
        Ok(())
    }

    /// Which (workspace, key or project) of the records exist.
    async fn owned(&self, tx: &mut Tx, records: &[Checked]) -> Result<HashSet<(String, String)>, IngestError> {
        let mut wanted = BTreeSet::new();
        for checked in records {
            let record = &checked.record;
            wanted.insert((record.workspace_id.as_str(), record.api_key_id.as_str()));
            if !record.project_id.is_empty() {
                wanted.insert((record.workspace_id.as_str(), record.project_id.as_str()));
            }
        }
        let (mut found, mut missing) = (HashSet::new(), Vec::new());
        {
            let cache = self.cache();
            for (scope, id) in wanted {
                let pair = (scope.to_owned(), id.to_owned());
                if cache.owned.contains(&pair) { _ = found.insert(pair) } else { missing.push(pair) }
            }
        }
        for chunk in missing.chunks(500) {
            let mut sql = Sql::new("SELECT scope, id FROM objects WHERE kind IN ('api_key', 'project') AND scope IN ");
            sql.bind_list(chunk.iter().map(|(scope, _)| scope.as_str()).collect::<BTreeSet<_>>());
            sql.push(" AND id IN ").bind_list(chunk.iter().map(|(_, id)| id.as_str()));
            let rows: Vec<(String, String)> = sql.query_as().fetch_all(&mut **tx).await?;
            let mut cache = self.cache();
            if cache.owned.len() > MAX_CACHED {
                cache.owned.clear();
            }
            cache.owned.extend(rows.iter().cloned());
            found.extend(rows);
        }
        Ok(found)
    }

    async fn prices(
        &self,
        tx: &mut Tx,
        records: &[Checked],
    ) -> Result<HashMap<String, Arc<proto::Price>>, IngestError> {
        let ids: BTreeSet<&str> =
            records.iter().map(|c| c.record.price_id.as_str()).filter(|id| !id.is_empty()).collect();
        let (mut found, mut missing) = (HashMap::new(), Vec::new());
        {
            let cache = self.cache();
            for id in ids {
                match cache.prices.get(id) {
                    Some(row) => _ = found.insert(id.to_owned(), row.clone()),
                    None => missing.push(id),
                }
            }
        }
        for chunk in missing.chunks(500) {
            let rows = prices::load(tx, chunk).await?;
            let mut cache = self.cache();
            if cache.prices.len() > MAX_CACHED {
                cache.prices.clear();
            }
            for (id, row) in rows {
                let row = Arc::new(row);
                cache.prices.insert(id.clone(), row.clone());
                found.insert(id, row);
            }
        }
        Ok(found)
    }

    /// Keeps refused records apart, as they came.
    async fn refuse(
        &self,
        tx: &mut Tx,
        journal: &Journal<'_>,
        batch: &proto::UsageBatch,
        refused: &[(u64, Refused)],
        now: i64,
    ) -> Result<(), IngestError> {
        for (seq, why) in refused {
            let place = usize::try_from(seq - batch.first_seq).unwrap_or(usize::MAX);
            let record = batch.records.get(place).map(|bytes| BASE64.encode(bytes)).unwrap_or_default();
            sqlx::query(
                "INSERT INTO usage_refused (node_id, incarnation, seq, code, detail, record, noted_at_ms) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
            )
            .bind(journal.node)
            .bind(&journal.incarnation)
            .bind(*seq as i64)
            .bind(why.code)
            .bind(why.detail)
            .bind(record)
            .bind(now)
            .execute(&mut **tx)
            .await?;
        }
        // One line per batch: a node must not be able to flood the log.
        if let Some((seq, why)) = refused.first() {
            tracing::error!(
                node = journal.node,
                incarnation = journal.incarnation,
                seq,
                code = why.code,
                detail = why.detail,
                records = refused.len(),
                "usage records were refused and kept apart; the first of them is named"
            );
        }
        self.counters.refused.inc_by(refused.len() as u64);
        Ok(())
    }

    async fn quarantine(&self, tx: &mut Tx, journal: &Journal<'_>, code: &str, now: i64) -> Result<(), IngestError> {
        tracing::error!(
            node = journal.node,
            incarnation = journal.incarnation,
            code,
            "a usage journal was set aside: it was copied, or its node lost durable data"
        );
        self.counters.quarantined.inc();
        sqlx::query("UPDATE spools SET quarantined = $3, updated_at_ms = $4 WHERE node_id = $1 AND incarnation = $2")
            .bind(journal.node)
            .bind(&journal.incarnation)
            .bind(code)
            .bind(now)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    async fn note_gap(
        &self,
        tx: &mut Tx,
        journal: &Journal<'_>,
        from: i64,
        to: i64,
        now: i64,
    ) -> Result<(), IngestError> {
        tracing::error!(
            node = journal.node,
            incarnation = journal.incarnation,
            from,
            to,
            "usage records are missing for ever: the node was told that they had been applied"
        );
        self.counters.gaps.inc();
        sqlx::query(
            "INSERT INTO usage_gaps (node_id, incarnation, from_seq, to_seq, noted_at_ms) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (node_id, incarnation, from_seq) DO NOTHING",
        )
        .bind(journal.node)
        .bind(&journal.incarnation)
        .bind(from)
        .bind(to)
        .bind(now)
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Journal<'a> {
    fn of(node: &'a str, incarnation: &[u8]) -> Result<Self, IngestError> {
        if incarnation.len() != 16 {
            return Err(IngestError::Malformed("an incarnation is 16 bytes"));
        }
        Ok(Self { node, incarnation: hex(incarnation) })
    }
}

/// Whether a record may be applied, and at what cost.
fn judge(
    checked: &Checked,
    owned: &HashSet<(String, String)>,
    prices: &HashMap<String, Arc<proto::Price>>,
) -> Result<Priced, Refused> {
    let record = &checked.record;
    let belongs = |id: &str| owned.contains(&(record.workspace_id.clone(), id.to_owned()));
    if !belongs(&record.api_key_id) || !(record.project_id.is_empty() || belongs(&record.project_id)) {
        return Err(Refused { code: "foreign_workspace", detail: "the key or project is not one of that workspace" });
    }
    price(checked, prices.get(&record.price_id).map(|row| &**row))
}

/// Posts what the records cost, one pair of entries per workspace and vendor.
async fn post(tx: &mut Tx, journal: &Journal<'_>, first: u64, applied: &[Row], now: i64) -> Result<(), IngestError> {
    let mut sums: BTreeMap<(shared::ids::WorkspaceId, &str), i64> = BTreeMap::new();
    for row in applied.iter().filter(|row| row.priced.cost.0 != 0) {
        let sum = sums.entry((row.checked.workspace, row.checked.record.vendor.as_str())).or_default();
        *sum =
            sum.checked_add(row.priced.cost.0).ok_or(IngestError::Damaged("a batch costs more than 64 bits hold"))?;
    }
    let pairs: Vec<_> = sums
        .into_iter()
        .filter_map(|((workspace, vendor), sum)| entries::memo(&workspace, vendor, Nanos(sum)))
        .flatten()
        .collect();
    for (part, chunk) in pairs.chunks(500).enumerate() {
        let idem = format!("usage:{}:{}:{first}:{part}", journal.node, journal.incarnation);
        entries::post(tx, &idem, "usage", chunk, now).await?;
    }
    Ok(())
}

/// Moves the mark from where it was read, or fails: nobody else may have moved it.
async fn move_mark(
    tx: &mut Tx,
    journal: &Journal<'_>,
    known: &Known,
    applied_seq: u64,
    chain: &Hash,
    now: i64,
) -> Result<(), IngestError> {
    let moved = sqlx::query(
        "UPDATE spools SET applied_seq = $3, chain = $4, updated_at_ms = $5 \
         WHERE node_id = $1 AND incarnation = $2 AND session = $6 AND applied_seq = $7",
    )
    .bind(journal.node)
    .bind(&journal.incarnation)
    .bind(i64::try_from(applied_seq).map_err(|_| IngestError::Malformed("first_seq is out of range"))?)
    .bind(hex(chain))
    .bind(now)
    .bind(known.session as i64)
    .bind(known.applied_seq as i64)
    .execute(&mut **tx)
    .await?;
    if moved.rows_affected() == 1 { Ok(()) } else { Err(IngestError::Damaged("the mark moved under a lock")) }
}

fn reply(message: Message) -> proto::UsageReply {
    proto::UsageReply { message: Some(message) }
}

fn rejected(incarnation: Vec<u8>, code: &str, detail: &str) -> proto::UsageReply {
    reply(Message::Rejected(proto::UsageRejected { incarnation, code: code.to_owned(), detail: detail.to_owned() }))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn hash(text: &str) -> Option<Hash> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (place, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[place * 2..place * 2 + 2], 16).ok()?;
    }
    Some(out)
}
