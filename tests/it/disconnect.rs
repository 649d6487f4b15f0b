//! A caller that leaves: the upstream call ends too, and what was used is settled.

use std::time::Duration;

use serde_json::json;
use tests::house::{Builder, House};
use tests::provider::{Delivery, Script};
use tests::wait;

/// From the caller's leaving to the provider's noticing.
const NOTICED: Duration = Duration::from_secs(1);

async fn left(house: &House) {
    let noticed = wait::until(NOTICED * 3, "the provider sees the caller leave", || async {
        house.provider.seen().pop().filter(|s| matches!(s.delivery, Delivery::Left(_)))
    });
    noticed.await.expect("noticed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_stream() {
    let mut house = Builder::together().start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    house.provider.on_model("chat", Script::slow_stream(2_000, 20));
    let body = json!({"model": "scripted/chat", "stream": true, "messages": [{"role": "user", "content": "x"}]});
    let mut stream = house.caller().open("/v1/chat/completions", &body).await.expect("a stream");
    for _ in 0..3 {
        stream.event().await.expect("an event").expect("not the end");
    }
    drop(stream);
    left(&house).await;
    crate::usage_exact::ledger_requests(&house, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_answer() {
    let mut house = Builder::together().start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    house.provider.on_model("chat", Script::delayed(60_000));
    let body = json!({"model": "scripted/chat", "messages": [{"role": "user", "content": "x"}]});
    let caller = house.caller();
    let asked = tokio::spawn(async move { caller.post("/v1/chat/completions", &body).await });
    wait::until(Duration::from_secs(10), "the provider is asked", || async {
        (house.provider.count() == 1).then_some(())
    })
    .await
    .expect("asked");
    asked.abort();
    left(&house).await;
}
