//! The ledger against the provider's own count: equal when nothing dies, and across SIGKILLs every
//! completed request exactly once.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tests::house::{Builder, House};
use tests::provider::Reported;
use tests::wait;

use crate::load::{Load, Shape};

/// From a request's end to its line in the ledger, reconnects included.
const REPORTED: Duration = Duration::from_secs(45);
/// How long the ledger is watched for what should not come.
const SETTLED: Duration = Duration::from_secs(1);
const SHAPE: Shape = Shape { plain: 4, fresh: 0, streams: 4, rest: Duration::ZERO };

/// One line of the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Line {
    pub requests: u64,
    pub tokens: Reported,
    pub cost_nanos: i64,
}

/// The ledger of workspace `default`, grouped by one key.
pub async fn ledger(house: &House, group_by: &str) -> HashMap<String, Line> {
    let mut lines: HashMap<String, Line> = HashMap::new();
    for row in house.usage(group_by).await.expect("usage") {
        let number = |name: &str| row[name].as_u64().unwrap_or_default();
        let tokens = &row["tokens"];
        let of = |name: &str| tokens[name].as_u64().unwrap_or_default();
        let line = lines.entry(row["group"][group_by].as_str().unwrap_or_default().to_owned()).or_default();
        line.requests += number("requests");
        line.tokens.prompt += of("input") + of("cache_read");
        line.tokens.cached += of("cache_read");
        line.tokens.completion += of("output") + of("reasoning");
        line.tokens.reasoning += of("reasoning");
        line.cost_nanos += row["cost_nanos"].as_i64().unwrap_or_default();
    }
    lines
}

/// Waits until the ledger's tokens of `model` are those that the provider reported for it.
pub async fn ledger_equals_provider(house: &House, model: &str) {
    let told = house.provider.totals()[model];
    let mut last = Line::default();
    let equal = wait::until(REPORTED, "the ledger equals the provider's count", async || {
        last = ledger(house, "model").await.get(model).copied().unwrap_or_default();
        (last.tokens == told.tokens && last.requests == told.answers).then_some(())
    });
    let equal = equal.await;
    assert!(equal.is_ok(), "the provider told {told:?}, the ledger has {last:?}");
    // 1 USD per million prompt tokens, 2 per million produced.
    let expected = told.tokens.prompt * 1_000 + told.tokens.completion * 2_000;
    assert_eq!(u64::try_from(last.cost_nanos).ok(), Some(expected), "cost from the price book");
}

/// Waits until the ledger holds this many requests of the model `chat`, and sees that no more come.
pub async fn ledger_requests(house: &House, wanted: u64) {
    let mut last = 0;
    let equal = wait::until(REPORTED, "requests in the ledger", async || {
        last = ledger(house, "model").await.get("chat").map_or(0, |l| l.requests);
        (last >= wanted).then_some(())
    });
    let equal = equal.await;
    assert!(equal.is_ok(), "{last} requests in the ledger instead of {wanted}");
    // A record too many would leave with the next reports, four a second.
    tokio::time::sleep(SETTLED).await;
    last = ledger(house, "model").await.get("chat").map_or(0, |l| l.requests);
    assert_eq!(last, wanted, "requests in the ledger");
}

/// No line of the ledger is below zero or absurd.
pub async fn nothing_negative(house: &House) {
    for (model, line) in ledger(house, "model").await {
        assert!(line.cost_nanos >= 0, "{model}: {line:?}");
        assert!(line.tokens.prompt < 1 << 40 && line.tokens.completion < 1 << 40, "{model}: {line:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn across_kills() {
    let wanted: u64 = std::env::var("POINTSMAN_TEST_REQUESTS").ok().and_then(|v| v.parse().ok()).unwrap_or(4_000);
    let mut house = Builder::apart(1).start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    house.provider.keep_bodies(false);
    let load = Load::start(&house.data_url(), &house.api_key, "scripted/chat", SHAPE);
    let mut kills = 0;
    while load.asked() < wanted || kills < 5 {
        tokio::time::sleep(Duration::from_millis(900)).await;
        house.node(0).kill().expect("killed");
        house.node(0).start_again().expect("starts again");
        kills += 1;
        assert!(kills < 1_000, "{} of {wanted} requests after {kills} kills", load.asked());
    }
    let outcomes = load.stop().await;
    let completed: HashSet<&str> = outcomes.completed.iter().map(String::as_str).collect();
    assert!(completed.len() as u64 > wanted / 2, "{} completed, {kills} kills", completed.len());
    compare(&house, &completed).await;
}

/// What a caller got whole is in the ledger once, with the provider's tokens; what broke is in it at
/// most once; nothing else is.
async fn compare(house: &House, completed: &HashSet<&str>) {
    let told: HashMap<String, Reported> =
        house.provider.seen().into_iter().filter_map(|s| Some((s.tag, s.reported?))).collect();
    let all_there = wait::until(REPORTED, "all completed requests in the ledger", || async {
        let lines = ledger(house, "identity").await;
        completed.iter().all(|tag| lines.contains_key(*tag)).then_some(lines)
    });
    let lines = match all_there.await {
        Ok(lines) => lines,
        Err(_) => {
            let lines = ledger(house, "identity").await;
            let lost: Vec<_> = completed.iter().filter(|t| !lines.contains_key(**t)).take(10).collect();
            panic!("completed, not in the ledger: {lost:?} ({} lines)", lines.len());
        }
    };
    let asked: HashSet<String> = house.provider.seen().into_iter().map(|s| s.tag).collect();
    let mut wrong = Vec::new();
    for (tag, line) in &lines {
        if completed.contains(tag.as_str()) {
            if line.requests != 1 || told.get(tag) != Some(&line.tokens) {
                wrong.push(format!("{tag}: {line:?}, told {:?}", told.get(tag)));
            }
        } else if line.requests > 1 || (line.tokens.completion > 0 && !asked.contains(tag)) {
            wrong.push(format!("{tag} broke: {line:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} lines: {:#?}", wrong.len(), &wrong[..wrong.len().min(10)]);
}
