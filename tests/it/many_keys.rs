//! Ten thousand keys in a workspace and a hundred nodes: one more key, one key less, in time, and no
//! request notices.

use std::time::{Duration, Instant};

use serde_json::json;
use tests::house::Builder;
use tests::http::Http;
use tests::wait;

use crate::load::{Load, Shape};
use crate::simulated_node::{Listener, all_heard};

/// Connections over which keys are made.
const MAKERS: usize = 8;
/// The promise: one more key serves on all nodes within 2 s at p99.
const SERVES: Duration = Duration::from_secs(2);
/// The promise for revoked keys.
const REFUSED: Duration = Duration::from_secs(1);

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_more_and_one_less() {
    let (keys, nodes) = (setting("POINTSMAN_TEST_KEYS", 10_000), setting("POINTSMAN_TEST_NODES", 100));
    let mut house = Builder::apart(1).threads(1).start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    house.provider.keep_bodies(false);
    let begun = Instant::now();
    make_keys(&house.admin, keys).await;
    println!("{keys} keys made in {:?}", begun.elapsed());

    let mut fleet = Vec::new();
    for number in 0..nodes {
        fleet.push(Listener::join(&mut house, &format!("listener{number}")).await.expect("joins"));
    }
    wait::until(Duration::from_secs(60), "all nodes have all keys", async || {
        fleet.iter().all(|n| n.count("api_key") > keys).then_some(())
    })
    .await
    .expect("all are current");

    let shape = Shape { plain: 2, fresh: 0, streams: 0, rest: Duration::from_millis(5) };
    let load = Load::start(&house.data_url(), &house.api_key, "scripted/chat", shape);
    let mut serving = Vec::new();
    for number in 0..5 {
        let made = house.create("api-keys", json!({"name": format!("one-more-{number}")})).await.expect("made");
        let answered = Instant::now();
        let (id, key) = (made["id"].as_str().expect("an id"), made["key"].as_str().expect("a key"));
        let caller = Http::new(&house.data_url()).header("authorization", &format!("Bearer {key}"));
        wait::until(SERVES, "the key serves", async || caller.get("/v1/models").await.ok().filter(|a| a.status == 200))
            .await
            .expect("serves");
        serving.extend(all_heard(&fleet, "api_key", id, true, answered, SERVES * 3).await.expect("all heard"));

        house
            .admin
            .delete(&format!("/workspaces/default/api-keys/{id}"))
            .await
            .expect("an answer")
            .good()
            .expect("gone");
        let revoked = Instant::now();
        wait::until(REFUSED, "the key is refused", async || {
            caller.get("/v1/models").await.ok().filter(|a| a.status == 401)
        })
        .await
        .expect("refused");
        let gone = all_heard(&fleet, "api_key", id, false, revoked, REFUSED * 5).await.expect("all heard");
        println!("revoked on {} nodes within {:?}", gone.len(), gone[gone.len() - 1]);
        assert!(gone[gone.len() - 1] <= REFUSED, "{:?}", gone[gone.len() - 1]);
    }
    serving.sort();
    let p99 = serving[serving.len() * 99 / 100];
    println!("a key on {nodes} nodes: median {:?}, p99 {p99:?}", serving[serving.len() / 2]);
    assert!(p99 <= SERVES, "{p99:?}");
    load.stop().await.none_failed(50);
}

async fn make_keys(admin: &Http, count: usize) {
    let mut makers = Vec::new();
    for maker in 0..MAKERS {
        let admin = admin.clone();
        makers.push(tokio::spawn(async move {
            for number in (maker..count).step_by(MAKERS) {
                let body = json!({"name": format!("key-{number}")});
                let answer = admin.post("/workspaces/default/api-keys", &body).await.expect("an answer");
                assert_eq!(answer.status, 201, "{}", answer.text());
            }
        }));
    }
    for maker in makers {
        maker.await.expect("no panic");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_changes_is_few_updates() {
    let mut house = Builder::apart(0).start().await.expect("a house");
    let node = Listener::join(&mut house, "listener").await.expect("joins");
    make_keys(&house.admin, 200).await;
    let last = house.create("api-keys", json!({"name": "last"})).await.expect("made");
    let id = last["id"].as_str().expect("an id");
    all_heard(std::slice::from_ref(&node), "api_key", id, true, Instant::now(), SERVES).await.expect("heard");
    assert!(node.count("api_key") > 200);
    assert!(node.updates() < 200, "{} updates for 201 changes", node.updates());
}
