//! The control plane gone: traffic flows, a restarted node serves from its disk, usage is kept.

use std::time::{Duration, Instant};

use tests::house::{Builder, House};
use tests::http::Http;
use tests::wait;

use crate::load::{Load, Shape};

const SHAPE: Shape = Shape { plain: 3, fresh: 2, streams: 3, rest: Duration::from_millis(5) };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_a_whole_run() {
    let mut house = Builder::apart(3).threads(1).start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    house.provider.keep_bodies(false);
    let balancer = house.balancer().await.expect("a balancer");
    // A node writes its state to disk at most once a second.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    house.control.kill().expect("killed");

    // One of three is restarted under load.
    let load = Load::start(&balancer.url(), &house.api_key, "scripted/chat", SHAPE);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(house.node(2).stop().await.expect("it drains and ends").success());
    house.node(2).start_again().expect("starts without a control plane");
    balancer.all_ready(Duration::from_secs(20)).await.expect("ready again");
    tokio::time::sleep(Duration::from_secs(1)).await;
    load.stop().await.none_failed(100);

    let load = Load::start(&house.data_url(), &house.api_key, "scripted/chat", SHAPE);
    // Another node starts from nothing but its disk, again and again: each time it answered, so this
    // is not taken for a crash loop.
    for _ in 0..10 {
        house.node(1).kill().expect("killed");
        let started = Instant::now();
        house.node(1).start_again().expect("starts without a control plane");
        house.node(1).ready(Duration::from_secs(5)).await.expect("ready");
        let took = started.elapsed();
        assert!(took < Duration::from_secs(5), "ready after {took:?}");
        let second = Http::new(&house.node(1).data_url()).header("authorization", &format!("Bearer {}", house.api_key));
        let answer = second.post("/v1/chat/completions", &crate::load::chat("scripted/chat", "away")).await;
        assert_eq!(answer.expect("an answer").status, 200);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    load.stop().await.none_failed(100);

    house.control.start_again().expect("starts again");
    // Nodes come back by themselves, with what they counted meanwhile.
    crate::usage_exact::ledger_equals_provider(&house, "chat").await;
    let provider = house
        .create(
            "providers",
            serde_json::json!({"vendor": "vllm", "slug": "later",
        "base_url": house.provider.url()}),
        )
        .await
        .expect("REST works");
    let provider = provider["id"].as_str().expect("an id").to_owned();
    house.add_credential(&provider, "main", "sk-canary-later-3").await.expect("added");
    house.add_model(&provider, "chat", "chat").await.expect("added");
    house.serves("later/chat").await.expect("all nodes are current again");
}

/// A workspace that would rather stop than serve keys that may have been revoked meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_longer_than_a_workspace_allows() {
    let mut house = Builder::apart(1).start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    let limit = serde_json::json!({"max_config_age_s": 60});
    let limited = house.admin.patch("/workspaces/default", &limit).await.expect("an answer").good().expect("limited");
    let path = format!("/changes/{}?wait_ms=10000", limited.header("x-pointsman-change"));
    assert_eq!(house.admin.get(&path).await.expect("an answer").json()["serving"], true);
    // A node writes its state to disk at most once a second.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    house.control.kill().expect("killed");
    let ask = async |house: &House| {
        let body = crate::load::chat("scripted/chat", "age");
        house.caller().post("/v1/chat/completions", &body).await.expect("an answer")
    };
    house.node(0).kill().expect("killed");
    house.node(0).start_again().expect("starts without a control plane");
    assert_eq!(ask(&house).await.status, 200, "it was heard a moment ago");
    // A minute later.
    house.node(0).kill().expect("killed");
    let contact = house.node(0).data_dir.join("snapshot/contact");
    let heard: i64 = std::fs::read_to_string(&contact).expect("kept").trim().parse().expect("milliseconds");
    std::fs::write(&contact, (heard - 60_000).to_string()).expect("written");
    house.node(0).start_again().expect("starts");
    let before = house.provider.count();
    let answer = ask(&house).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &serde_json::json!("config_too_old")));
    assert_eq!(house.provider.count(), before);
    house.control.start_again().expect("starts again");
    let served =
        wait::until(Duration::from_secs(30), "served again", async || (ask(&house).await.status == 200).then_some(()));
    served.await.expect("served");
}

/// A node that never had a state is not ready, and says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_node_says_why_it_is_not_ready() {
    let mut house = Builder::apart(1).start().await.expect("a house");
    house.control.kill().expect("killed");
    house.node(0).kill().expect("killed");
    // What it joined with stays, what it knew goes.
    let data_dir = house.node(0).data_dir.clone();
    let mut removed = 0;
    for entry in std::fs::read_dir(&data_dir).expect("a data folder").flatten() {
        if entry.file_name().to_string_lossy().contains("snapshot") {
            let path = entry.path();
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.expect("removed");
            removed += 1;
        }
    }
    assert!(removed > 0, "no snapshot in {:?}", std::fs::read_dir(&data_dir).expect("a folder").collect::<Vec<_>>());
    house.node(0).start_again_unready().expect("starts");
    let admin = Http::without_reuse(&house.node(0).admin_url.clone());
    let answer = tests::wait::until(Duration::from_secs(20), "the admin port answers", || async {
        admin.get("/readyz").await.ok()
    })
    .await
    .expect("answers");
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("no_snapshot"), "{}", answer.text());
    assert_eq!(admin.get("/livez").await.expect("an answer").status, 200);
}
