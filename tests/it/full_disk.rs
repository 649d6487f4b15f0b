//! A disk that takes no more: what could not be counted is not begun, what was begun is counted.

use std::time::Duration;

use serde_json::json;
use tests::house::Builder;
use tests::provider::Script;
use tests::{require, wait};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_begun_and_nothing_is_lost() {
    let Some(()) = require::or_skip("prlimit", require::prlimit()) else { return };
    // At the limit a write fails only in a process that ignores the signal.
    let mut house = Builder::apart(1).threads(1).nodes_ignore("XFSZ").start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    // Nobody is there: what is refused does not even look.
    house.connect_as("away", "http://127.0.0.1:9/v1", "sk-canary-away-9", &["chat"]).await.expect("connected");
    house.serves("away/chat").await.expect("serves");
    let body = json!({"model": "scripted/chat", "messages": [{"role": "user", "content": "x"}]});
    let caller = house.caller();
    assert_eq!(caller.post("/v1/chat/completions", &body).await.expect("an answer").status, 200);

    house.provider.once("chat", Script::slow_stream(40, 50));
    let streamed = json!({"model": "scripted/chat", "stream": true, "messages": [{"role": "user", "content": "x"}]});
    let mut stream = caller.open("/v1/chat/completions", &streamed).await.expect("a stream");
    stream.event().await.expect("an event").expect("not the end");

    house.node(0).program().limit_files(Some(1)).expect("limited");
    let seen = house.provider.count();
    for model in ["away/chat", "scripted/chat", "scripted/chat", "away/chat", "scripted/chat"] {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "x"}]});
        let answer = caller.post("/v1/chat/completions", &body).await.expect("an answer");
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!("usage_journal_full")));
        assert_eq!(answer.header("retry-after"), "5");
    }
    assert_eq!(house.provider.count(), seen, "requests that could not be written down");
    let events = stream.events().await.expect("no break");
    assert_eq!(events.last().map(String::as_str), Some("data: [DONE]\n\n"), "{} events", events.len());

    house.node(0).program().limit_files(None).expect("unlimited");
    let answered = wait::until(Duration::from_secs(10), "requests are taken again", async || {
        let answer = caller.post("/v1/chat/completions", &body).await.ok()?;
        (answer.status == 200).then_some(())
    });
    answered.await.expect("taken again");
    crate::usage_exact::ledger_requests(&house, 3).await;
    crate::usage_exact::ledger_equals_provider(&house, "chat").await;
}
