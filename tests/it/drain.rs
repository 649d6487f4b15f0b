//! SIGTERM: no longer ready, begun streams end whole, then the process ends by itself.

use std::time::{Duration, Instant};

use serde_json::json;
use tests::house::Builder;
use tests::http::Http;
use tests::provider::Script;
use tests::wait;

const STREAMS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_end_whole() {
    let mut house = Builder::apart(1).start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    house.provider.on_model("chat", Script::slow_stream(60, 50));
    let body = json!({"model": "scripted/chat", "stream": true, "messages": [{"role": "user", "content": "x"}]});
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let (caller, body) = (house.caller(), body.clone());
        streams.push(tokio::spawn(async move {
            let mut stream = caller.open("/v1/chat/completions", &body).await?;
            stream.events().await
        }));
    }
    wait::until(Duration::from_secs(10), "all streams run", || async {
        (house.provider.seen().len() == STREAMS).then_some(())
    })
    .await
    .expect("all run");

    let started = Instant::now();
    let admin = Http::without_reuse(&house.node(0).admin_url.clone());
    house.node(0).program().signal("TERM").expect("signalled");
    wait::until(Duration::from_secs(5), "not ready", || async {
        admin.get("/readyz").await.ok().filter(|a| a.status == 503)
    })
    .await
    .expect("readiness goes off on drain");
    for stream in streams {
        let events = stream.await.expect("no panic").expect("no break");
        assert_eq!(events.last().map(String::as_str), Some("data: [DONE]\n\n"), "{} events", events.len());
    }
    let status = house.node(0).program().ended(Duration::from_secs(40)).await.expect("it ends");
    assert!(status.success(), "{status}");
    assert!(started.elapsed() < Duration::from_secs(35), "{:?}", started.elapsed());
    house.node(0).start_again().expect("starts again");
    crate::usage_exact::ledger_equals_provider(&house, "chat").await;
}
