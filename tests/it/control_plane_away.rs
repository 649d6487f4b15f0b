//! The control plane gone: traffic flows, a restarted node serves from its disk, usage is kept.

use std::time::{Duration, Instant};

use tests::house::Builder;
use tests::http::Http;

use crate::load::{Load, Shape};

const SHAPE: Shape = Shape { plain: 3, fresh: 2, streams: 3, rest: Duration::from_millis(5) };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_a_whole_run() {
    let mut house = Builder::apart(2).start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    house.provider.keep_bodies(false);
    // A node writes its state to disk at most once a second.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    house.control.kill().expect("killed");

    let load = Load::start(&house.data_url(), &house.api_key, "scripted/chat", SHAPE);
    // The other node starts from nothing but its disk, again and again: each time it answered, so this
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
    house.serves("later/chat").await.expect("both nodes are current again");
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
