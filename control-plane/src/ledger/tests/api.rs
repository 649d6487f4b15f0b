//! Usage over REST, against the same sums made here from the records that went in.

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::Value;
use shared::money::Nanos;
use shared::usage::Tokens;

use super::database::House;
use super::node::{Journal, NOW_MS, cost, price, record};
use crate::ledger::ingest::Ingest;
use crate::ledger::prices;
use crate::resources::rfc3339;
use crate::testing;

const REQUESTS: u64 = 200;
const FROM: &str = "2023-12-31T00:00:00Z";
const TO: &str = "2024-01-02T00:00:00Z";

/// Two workspaces; the first with 200 requests from 23:00 on the last day of 2023, the second with 3.
async fn filled(house: &testing::House) -> (House, House) {
    let db = &house.app.db;
    let (one, two) = (House::number(1).build(db).await, House::number(2).build(db).await);
    let mut tx = db.begin().await.expect("begin");
    prices::record(&mut tx, [&price()]).await.expect("record prices");
    tx.commit().await.expect("commit");
    let ingest = Ingest::new(db.clone(), || NOW_MS);
    let mut journal = Journal::new(1);
    (0..REQUESTS).for_each(|n| journal.settle(&record(&one, n)));
    for n in 0..3 {
        let mut other = record(&two, n);
        other.request_id = (u128::from(n) + (1 << 101)).to_be_bytes().to_vec();
        journal.settle(&other);
    }
    journal.flush(&ingest).await;
    (one, two)
}

/// (bucket, names) -> requests, errors, tokens, cost.
type Totals = BTreeMap<(String, Vec<String>), [i64; 4]>;

fn expected(one: &House, bucket: fn(i64) -> i64, names: fn(&shared::proto::UsageRecord) -> Vec<String>) -> Totals {
    let mut totals = Totals::new();
    for n in 0..REQUESTS {
        let record = record(one, n);
        let tokens = Tokens::from(record.tokens.as_ref().expect("set"));
        let error = i64::from(record.status != 200);
        let sum = totals.entry((rfc3339(bucket(record.started_at_ms)), names(&record))).or_default();
        let parts = [1, error, tokens.total() as i64, cost(&tokens).0];
        sum.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
    }
    totals
}

fn given(rows: &[Value], names: &[&str]) -> Totals {
    let number = |row: &Value, pointer: &str| row.pointer(pointer).and_then(Value::as_i64).expect(pointer);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let lines = rows.iter().map(|row| {
        let cost = number(row, "/cost_nanos");
        assert_eq!(text(&row["cost_usd"]), Nanos(cost).to_string());
        let key = (text(&row["start"]), names.iter().map(|name| text(&row["group"][name])).collect());
        (key, [number(row, "/requests"), number(row, "/errors"), number(row, "/tokens/total"), cost])
    });
    let totals: Totals = lines.collect();
    assert_eq!(totals.len(), rows.len(), "every line once");
    totals
}

#[tokio::test]
async fn sums_by_every_grain_and_name() {
    const MINUTE: i64 = 60_000;
    for house in testing::House::each().await {
        let (one, _) = filled(&house).await;
        let base = format!("/api/v1/workspaces/{}/usage?from={FROM}&to={TO}", one.workspace);
        let month = |ms: i64| if ms < NOW_MS { 1_701_388_800_000 } else { NOW_MS };
        type Names = fn(&shared::proto::UsageRecord) -> Vec<String>;
        let vendor: Names = |r| vec![r.vendor.clone()];
        type Start = fn(i64) -> i64;
        let cases: [(&str, &[&str], Start, Names); 5] = [
            ("minute", &[], |ms| ms - ms % MINUTE, |_| vec![]),
            ("hour", &["vendor"], |ms| ms - ms % (60 * MINUTE), vendor),
            (
                "day",
                &["identity", "vendor"],
                |ms| ms - ms % (1440 * MINUTE),
                |r| vec![r.identity.clone(), r.vendor.clone()],
            ),
            ("month", &["model", "status_class"], month, |r| vec![r.model.clone(), format!("{}xx", r.status / 100)]),
            (
                "day",
                &["api_key", "project"],
                |ms| ms - ms % (1440 * MINUTE),
                |r| vec![r.api_key_id.clone(), r.project_id.clone()],
            ),
        ];
        for (grain, names, bucket, values) in cases {
            let answer = house.call("GET", &format!("{base}&grain={grain}&group_by={}", names.join(",")), None).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
            let rows = answer.json()["data"].as_array().expect("rows").clone();
            assert_eq!(given(&rows, names), expected(&one, bucket, values), "{grain} {names:?}");
        }
        let all = house.call("GET", &base, None).await;
        assert_eq!(
            (all.at("/data/0/requests"), all.at("/data/0/start"), all.at("/next")),
            ("200".into(), "null".into(), "null".into())
        );
        let one_vendor = house.call("GET", &format!("{base}&vendor=mistral"), None).await;
        assert_eq!(one_vendor.at("/data/0/requests"), "100");
        let nothing = house.call("GET", &format!("{base}&vendor=none"), None).await;
        assert_eq!(nothing.at("/data"), "[]");
        house.close().await;
    }
}

#[tokio::test]
async fn pages_and_reach() {
    for house in testing::House::each().await {
        let (one, two) = filled(&house).await;
        let times = format!("from={FROM}&to={TO}");
        let all = house.call("GET", &format!("/api/v1/usage?{times}&group_by=workspace"), None).await;
        assert_eq!((all.at("/data/0/requests"), all.at("/data/1/requests")), ("200".into(), "3".into()));
        assert_eq!(all.at("/data/1/group/workspace"), two.workspace.to_string());
        let base = format!("/api/v1/workspaces/{}/usage?{times}&grain=minute&limit=7", one.workspace);
        let (mut rows, mut after) = (Vec::new(), String::new());
        loop {
            let page = house.call("GET", &format!("{base}{after}"), None).await;
            assert_eq!(page.status, StatusCode::OK, "{}", page.text);
            rows.extend(page.json()["data"].as_array().expect("rows").clone());
            match page.json()["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        assert_eq!(given(&rows, &[]), expected(&one, |ms| ms - ms % 60_000, |_| vec![]));
        let base = format!("/api/v1/workspaces/{}/requests?limit=90", one.workspace);
        let (mut ids, mut after) = (Vec::new(), String::new());
        loop {
            let page = house.call("GET", &format!("{base}{after}"), None).await;
            assert_eq!(page.status, StatusCode::OK, "{}", page.text);
            let data = page.json()["data"].as_array().expect("rows").clone();
            ids.extend(data.iter().map(|row| row["request_id"].as_str().expect("text").to_owned()));
            match page.json()["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        let newest_first: Vec<String> =
            (0..REQUESTS).rev().map(|n| format!("req_{:032x}", u128::from(n) + (1 << 100))).collect();
        assert_eq!(ids, newest_first);
        let path = |house: &House, id: &str| format!("/api/v1/workspaces/{}/requests/{id}", house.workspace);
        let found = house.call("GET", &path(&one, &ids[0]), None).await;
        assert_eq!((found.at("/request_id"), found.at("/vendor")), (ids[0].clone(), "mistral".into()));
        for missing in [path(&two, &ids[0]), path(&one, "req_0"), path(&one, &format!("req_{:032x}", 5))] {
            assert_eq!(house.call("GET", &missing, None).await.status, StatusCode::NOT_FOUND, "{missing}");
        }
        house.close().await;
    }
}

#[tokio::test]
async fn bad_questions_are_refused() {
    let house = testing::House::sqlite().await;
    let one = House::number(1).build(&house.app.db).await;
    let usage = format!("/api/v1/workspaces/{}/usage", one.workspace);
    let requests = format!("/api/v1/workspaces/{}/requests", one.workspace);
    let cases = [
        (&usage, "grain=week"),
        (&usage, "group_by=colour"),
        (&usage, "group_by=model,model"),
        (&usage, "group_by=model;DROP"),
        (&usage, "from=yesterday"),
        (&usage, "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z"),
        (&usage, "from=0&to=1767225600000&grain=minute"),
        (&usage, "limit=0"),
        (&usage, "limit=10001"),
        (&usage, "after=rubbish"),
        (&usage, "workspace=other"),
        (&usage, "unknown=1"),
        (&requests, "limit=201"),
        (&requests, "after=rubbish"),
        (&requests, "to=x"),
        (&requests, "vendor=x"),
    ];
    for (path, query) in cases {
        let answer = house.call("GET", &format!("{path}?{query}"), None).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}: {}", answer.text);
    }
    assert_eq!(house.call("GET", &usage, None).await.at("/data"), "[]");
    house.close().await;
}
