//! Every way a record can arrive, and what the tables say afterwards.

use prost::Message as _;
use shared::proto::{self, usage_reply::Message};
use shared::usage::Tokens;

use super::checks::{self, number};
use super::database::{self, House};
use super::node::{Journal, NOW_MS, cost, price, record};
use crate::db::Db;
use crate::ledger::entries::{self, Entry, PostError, balance};
use crate::ledger::ingest::Ingest;
use crate::ledger::prices;
use shared::money::Nanos;

async fn ledger(db: &Db) -> (Ingest, House) {
    let house = House::number(1).build(db).await;
    let mut tx = db.begin().await.expect("begin");
    prices::record(&mut tx, [&price()]).await.expect("record prices");
    tx.commit().await.expect("commit");
    (Ingest::new(db.clone(), || NOW_MS), house)
}

#[tokio::test]
async fn a_batch_is_applied_once_and_priced_again() {
    for database in database::all().await {
        let db = &database.db;
        let (ingest, house) = ledger(db).await;
        let mut journal = Journal::new(1);
        let mut expected = 0;
        for n in 0..130 {
            let mut record = record(&house, n);
            expected += cost(&Tokens::from(record.tokens.as_ref().expect("set"))).0;
            // The node's own figure does not count.
            record.cost_nanos = 1;
            journal.settle(&record);
        }
        journal.flush(&ingest).await;
        assert_eq!(number(db, "SELECT COUNT(*) FROM usage_records").await, 130);
        checks::hold(db).await;
        let metered = balance(db.pool(), &entries::metered(&house.workspace.to_string())).await.expect("balance");
        assert_eq!(metered, Nanos(-expected));
        // All of it again, as after a lost answer, and on a new stream.
        let again = journal.send(&ingest, &journal.batch(0, 130)).await.expect("works");
        assert!(matches!(again, Message::Accepted(a) if a.applied_seq == 130));
        journal.flush(&ingest).await;
        assert_eq!(number(db, "SELECT CAST(SUM(requests) AS BIGINT) FROM usage_minutes").await, 130);
        checks::hold(db).await;
        database.drop().await;
    }
}

/// Random order, duplicates, losses, lost answers, new streams, a restarted writer; the same seeds on
/// every engine.
#[tokio::test]
async fn whatever_the_network_does_each_record_counts_once() {
    for database in database::all().await {
        let db = &database.db;
        let (mut ingest, house) = ledger(db).await;
        let mut next = 0;
        for seed in 0..12_u64 {
            let mut journal = Journal::new(seed as u8 + 1);
            let mut state = seed;
            let mut draw = |below: usize| {
                let (advanced, number) = runtime::random::splitmix64(state);
                state = advanced;
                (number % below.max(1) as u64) as usize
            };
            let mut wire: Vec<proto::UsageBatch> = Vec::new();
            let mut sent = 0;
            journal.open(&ingest).await;
            for _ in 0..40 {
                match draw(7) {
                    0 | 1 => {
                        for _ in 0..1 + draw(5) {
                            next += 1;
                            journal.settle(&record(&house, next));
                        }
                    }
                    2 if sent < journal.records.len() => {
                        let count = 1 + draw(journal.records.len() - sent);
                        wire.push(journal.batch(sent, count));
                        sent += count;
                    }
                    3 if !wire.is_empty() => {
                        let batch = wire.swap_remove(draw(wire.len()));
                        let answer = journal.send(&ingest, &batch).await.expect("works");
                        if let Message::Resend(resend) = answer {
                            sent = resend.from_seq as usize - 1;
                        }
                    }
                    4 if !wire.is_empty() => wire.push(wire[draw(wire.len())].clone()),
                    5 if !wire.is_empty() => _ = wire.swap_remove(draw(wire.len())),
                    6 => {
                        if draw(3) == 0 {
                            ingest = Ingest::new(db.clone(), || NOW_MS);
                        }
                        journal.open(&ingest).await;
                        sent = journal.applied as usize;
                    }
                    _ => {}
                }
            }
            journal.flush(&ingest).await;
            checks::hold(db).await;
        }
        assert_eq!(number(db, "SELECT COUNT(*) FROM usage_records").await, next as i64, "I2, I5");
        assert_eq!(number(db, "SELECT CAST(SUM(requests) AS BIGINT) FROM usage_minutes").await, next as i64);
        database.drop().await;
    }
}

#[tokio::test]
async fn an_older_stream_is_fenced() {
    for database in database::all().await {
        let (ingest, house) = ledger(&database.db).await;
        let mut old = Journal::new(1);
        old.settle(&record(&house, 1));
        old.open(&ingest).await;
        let mut new = old.clone();
        new.open(&ingest).await;
        let refused = old.send(&ingest, &old.batch(0, 1)).await.expect("works");
        assert!(matches!(refused, Message::Rejected(r) if r.code == "fenced"));
        let taken = new.send(&ingest, &new.batch(0, 1)).await.expect("works");
        assert!(matches!(taken, Message::Accepted(_)));
        let unknown = Journal { session: 1, incarnation: vec![9; 16], ..new };
        let refused = unknown.send(&ingest, &unknown.batch(0, 1)).await.expect("works");
        assert!(matches!(refused, Message::Rejected(r) if r.code == "fenced"));
        database.drop().await;
    }
}

/// F22: both go on under one name, the second to speak is set aside; under new names nothing counts
/// twice and nothing is lost.
#[tokio::test]
async fn a_copied_volume_is_set_aside_and_counts_once() {
    for database in database::all().await {
        let db = &database.db;
        let (ingest, house) = ledger(db).await;
        let mut original = Journal::new(1);
        (0..5).for_each(|n| original.settle(&record(&house, n)));
        original.flush(&ingest).await;
        let mut copy = original.clone();
        (5..8).for_each(|n| original.settle(&record(&house, n)));
        (8..12).for_each(|n| copy.settle(&record(&house, n)));
        original.flush(&ingest).await;
        let refused = copy.flush(&ingest).await;
        assert!(matches!(refused, Message::Rejected(r) if r.code == "chain_mismatch"));
        assert_eq!(number(db, "SELECT COUNT(*) FROM spools WHERE quarantined = 'chain_mismatch'").await, 1);
        assert!(matches!(original.flush(&ingest).await, Message::Rejected(_)), "the name is spent for both");
        for (name, journal) in [(21, &mut original), (22, &mut copy)] {
            *journal = Journal { records: journal.records.clone(), ..Journal::new(name) };
            journal.node = shared::ids::NodeId::from_u128(1);
            journal.flush(&ingest).await;
        }
        assert_eq!(number(db, "SELECT COUNT(*) FROM usage_records").await, 12);
        checks::hold(db).await;
        database.drop().await;
    }
}

/// T17: what cannot be true has no effect and is kept; its neighbours count.
#[tokio::test]
async fn false_records_are_kept_apart() {
    type Change = fn(&mut proto::UsageRecord);
    let foreign: Change = |r| r.workspace_id = House::number(2).workspace.to_string();
    let cases: [(&str, Change); 12] = [
        ("foreign_workspace", foreign),
        ("foreign_workspace", |r| r.project_id = House::number(2).project.to_string()),
        ("foreign_workspace", |r| r.workspace_id = House::number(3).workspace.to_string()),
        ("foreign_workspace", |r| r.api_key_id = House::number(4).key.to_string()),
        ("bad_record", |r| r.api_key_id.clear()),
        ("bad_record", |r| r.cost_nanos = -1),
        ("bad_record", |r| r.cost_nanos = i64::MAX),
        ("bad_record", |r| r.request_id = vec![1; 15]),
        ("bad_record", |r| r.outcome = 99),
        ("bad_record", |r| r.tokens = Some(proto::Tokens { input: u64::MAX, ..Default::default() })),
        ("bad_record", |r| r.started_at_ms = NOW_MS + 100_000_000),
        ("bad_record", |r| r.model = "x".repeat(513)),
    ];
    for database in database::all().await {
        let db = &database.db;
        let (ingest, house) = ledger(db).await;
        House::number(2).build(db).await;
        let mut journal = Journal::new(1);
        let mut expected = Vec::new();
        for (n, (code, change)) in cases.iter().enumerate() {
            let mut bad = record(&house, 1000 + n as u64);
            change(&mut bad);
            journal.settle(&bad);
            expected.push((journal.records.len() as i64, (*code).to_owned()));
            journal.settle(&record(&house, n as u64));
        }
        journal.records.push(b"\xff\xff\xff".to_vec());
        expected.push((journal.records.len() as i64, "bad_record".to_owned()));
        assert!(matches!(journal.flush(&ingest).await, Message::Accepted(a) if a.applied_seq == 25));
        let refused: Vec<(i64, String)> = sqlx::query_as("SELECT seq, code FROM usage_refused ORDER BY seq")
            .fetch_all(db.pool())
            .await
            .expect("refused");
        assert_eq!(refused, expected);
        assert_eq!(number(db, "SELECT COUNT(*) FROM usage_records").await, cases.len() as i64);
        let foreign = "SELECT COUNT(*) FROM usage_minutes WHERE workspace_id NOT LIKE '%0000000001'";
        assert_eq!(number(db, foreign).await, 0);
        checks::hold(db).await;
        database.drop().await;
    }
}

/// Unpriced is reported, never free; a text that PostgreSQL cannot hold does not block the journal.
#[tokio::test]
async fn odd_records_count() {
    for database in database::all().await {
        let db = &database.db;
        let (ingest, house) = ledger(db).await;
        let mut journal = Journal::new(1);
        journal.settle(&proto::UsageRecord { price_id: String::new(), ..record(&house, 1) });
        journal.settle(&proto::UsageRecord { price_id: "0123456789abcdef".into(), ..record(&house, 2) });
        journal.settle(&proto::UsageRecord {
            price_id: String::new(),
            tokens: None,
            cost_nanos: 0,
            ..record(&house, 3)
        });
        journal.settle(&proto::UsageRecord {
            requested_model: "a\0b".into(),
            identity: "\0".into(),
            ..record(&house, 4)
        });
        journal.settle(&record(&house, 4));
        journal.flush(&ingest).await;
        assert_eq!(number(db, "SELECT COUNT(*) FROM usage_records").await, 4, "one request twice in a batch");
        assert_eq!(number(db, "SELECT CAST(SUM(unpriced) AS BIGINT) FROM usage_minutes").await, 2);
        assert_eq!(
            number(db, "SELECT COUNT(*) FROM usage_records WHERE requested_model LIKE 'a_b' AND seq = 4").await,
            1
        );
        checks::hold(db).await;
        database.drop().await;
    }
}

/// F30: the ledger was restored from a backup; what the node no longer holds is noted.
#[tokio::test]
async fn a_gap_is_noted() {
    for database in database::all().await {
        let db = &database.db;
        let (ingest, _) = ledger(db).await;
        let journal = Journal::new(1);
        let open = proto::UsageOpen { incarnation: journal.incarnation.clone(), held_from: 8 };
        for _ in 0..2 {
            ingest.open(journal.node, &open).await.expect("open");
        }
        let gaps: Vec<(i64, i64)> =
            sqlx::query_as("SELECT from_seq, to_seq FROM usage_gaps").fetch_all(db.pool()).await.expect("gaps");
        assert_eq!(gaps, [(1, 7)]);
        database.drop().await;
    }
}

#[tokio::test]
async fn entries_balance_and_stay() {
    for database in database::all().await {
        let db = &database.db;
        let entry = |account: &str, amount| Entry { account: account.into(), amount: Nanos(amount) };
        let good = [entry("a", 5), entry("b", -5)];
        let mut tx = db.begin().await.expect("begin");
        entries::post(&mut tx, "once", "test", &good, 0).await.expect("balanced");
        tx.commit().await.expect("commit");
        let mut tx = db.begin().await.expect("begin");
        let twice = entries::post(&mut tx, "once", "test", &good, 0).await;
        assert!(matches!(twice, Err(PostError::Database(_))), "one name, one transaction");
        drop(tx);
        for bad in [vec![entry("a", 5), entry("b", -4)], vec![], vec![entry("a", i64::MAX), entry("b", i64::MAX)]] {
            let mut tx = db.begin().await.expect("begin");
            assert!(matches!(entries::post(&mut tx, "bad", "test", &bad, 0).await, Err(PostError::Unbalanced)));
        }
        let statements = [
            "UPDATE entries SET amount_nanos = 6",
            "DELETE FROM entries",
            "UPDATE transactions SET kind = 'x'",
            "DELETE FROM transactions",
            "INSERT INTO entries (tx, n, account, amount_nanos, created_at_ms) SELECT id, 9, 'c', 1, 0 FROM transactions",
            // Without a transaction: the commit fails.
            "INSERT INTO entries (tx, n, account, amount_nanos, created_at_ms) VALUES ('none', 0, 'c', 0, 0)",
            "INSERT INTO transactions (id, idem, kind, created_at_ms) VALUES ('empty', 'empty', 'test', 0)",
        ];
        for statement in statements {
            assert!(sqlx::query(statement).execute(db.pool()).await.is_err(), "{statement}");
        }
        let mut tx = db.begin().await.expect("begin");
        let half = "INSERT INTO entries (tx, n, account, amount_nanos, created_at_ms) VALUES ('half', 0, 'c', 1, 0)";
        sqlx::query(half).execute(&mut *tx).await.expect("not judged yet");
        let close = "INSERT INTO transactions (id, idem, kind, created_at_ms) VALUES ('half', 'half', 'test', 0)";
        assert!(sqlx::query(close).execute(&mut *tx).await.is_err(), "entries of one side only");
        drop(tx);
        assert_eq!(balance(db.pool(), "a").await.expect("balance"), Nanos(5));
        checks::number(db, "SELECT COUNT(*) FROM entries").await;
        database.drop().await;
    }
}

#[tokio::test]
async fn price_rows_are_kept_only_under_their_own_id() {
    for database in database::all().await {
        let db = &database.db;
        let forged = proto::Price { id: price().id, input: 0, ..price() };
        let tiered = {
            let mut row = proto::Price { service_tier: "flex".into(), above_input_tokens: 200_000, ..price() };
            row.id = shared::money::price_id(&row);
            row
        };
        let mut tx = db.begin().await.expect("begin");
        prices::record(&mut tx, [&forged, &tiered, &tiered]).await.expect("recorded");
        let found = prices::load(&mut tx, &[&price().id, &tiered.id, "none"]).await.expect("loaded");
        assert_eq!(found.len(), 1);
        assert_eq!(found.get(&tiered.id), Some(&tiered));
        drop(tx);
        database.drop().await;
    }
}

/// `POINTSMAN_TEST_LEDGER_RECORDS=100000 cargo test --release -p control-plane throughput -- --nocapture`
#[tokio::test]
async fn throughput() {
    let count =
        std::env::var("POINTSMAN_TEST_LEDGER_RECORDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2000_u64);
    for database in database::all().await {
        let (ingest, house) = ledger(&database.db).await;
        let mut journal = Journal::new(1);
        journal.open(&ingest).await;
        let batches: Vec<_> = (0..count.div_ceil(1000))
            .map(|batch| {
                let at = |n: u64| proto::UsageRecord {
                    started_at_ms: NOW_MS - 3_600_000 + n as i64 / 10,
                    ..record(&house, n)
                };
                (0..1000).map(|n| at(batch * 1000 + n).encode_to_vec()).collect::<Vec<_>>()
            })
            .collect();
        let began = runtime::clock::monotonic();
        let mut chain = [0; 32];
        for (number, records) in batches.into_iter().enumerate() {
            let next = records.iter().fold(chain, |chain, record| shared::digest::chain(&chain, record));
            let batch = proto::UsageBatch {
                incarnation: journal.incarnation.clone(),
                session: journal.session,
                first_seq: number as u64 * 1000 + 1,
                records,
                prev_hash: chain.to_vec(),
            };
            assert!(matches!(journal.send(&ingest, &batch).await, Ok(Message::Accepted(_))));
            chain = next;
        }
        let took = (runtime::clock::monotonic() - began).as_secs_f64();
        let rate = (count.div_ceil(1000) * 1000) as f64 / took;
        println!("{:?}: {rate:.0} records/s", database.db.engine());
        assert_eq!(number(&database.db, "SELECT COUNT(*) FROM usage_refused").await, 0);
        checks::hold(&database.db).await;
        database.drop().await;
    }
}
