//! Three nodes behind a balancer, restarted one after the other under load: no request fails.

use std::time::Duration;

use tests::house::Builder;
use tests::provider::Script;

use crate::load::{Load, Shape};

const SHAPE: Shape = Shape { plain: 4, fresh: 4, streams: 8, rest: Duration::from_millis(2) };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails() {
    let mut house = Builder::apart(3).threads(1).start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    house.provider.keep_bodies(false);
    house.provider.on_model("chat", Script::slow_stream(20, 20));
    let balancer = house.balancer().await.expect("a balancer");

    let load = Load::start(&balancer.url(), &house.api_key, "scripted/chat", SHAPE);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for node in 0..3 {
        let status = house.node(node).stop().await.expect("it drains and ends");
        assert!(status.success(), "{status}");
        house.node(node).start_again().expect("starts again");
        balancer.all_ready(Duration::from_secs(20)).await.expect("ready again");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let outcomes = load.stop().await;
    outcomes.none_failed(500);
    crate::usage_exact::ledger_equals_provider(&house, "chat").await;
}
