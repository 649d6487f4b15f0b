//! From the answer of REST to serving: how long, in what order, and how a script waits for it.

use std::time::{Duration, Instant};

use serde_json::json;
use tests::house::Builder;
use tests::http::Http;
use tests::wait;

/// Of one change on one node; the promise is half a second, a busy machine gets more.
const ONE_CHANGE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_change_serves_soon() {
    let mut house = Builder::apart(2).start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    let mut times = Vec::new();
    for number in 0..20 {
        let name = format!("alias-{number}");
        house.create("aliases", json!({"name": name, "targets": ["scripted/chat"]})).await.expect("created");
        let answered = Instant::now();
        house.serves(&name).await.expect("serves on both nodes");
        times.push(answered.elapsed());
    }
    times.sort();
    let slowest = times[times.len() - 1];
    println!("serving after: median {:?}, slowest {slowest:?}", times[times.len() / 2]);
    assert!(slowest < ONE_CHANGE, "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_ends_in_its_last_state() {
    let mut house = Builder::apart(1).start().await.expect("a house");
    house.connect(&["chat", "second"]).await.expect("connected");
    let alias =
        house.create("aliases", json!({"name": "moving", "targets": ["scripted/chat"]})).await.expect("created");
    let path = format!("/workspaces/default/aliases/{}", alias["id"].as_str().expect("an id"));
    for number in 0..100 {
        let target = if number % 2 == 0 { "scripted/second" } else { "scripted/chat" };
        let body = json!({"targets": [target]});
        house.admin.patch(&path, &body).await.expect("an answer").good().expect("changed");
    }
    let body = json!({"targets": ["scripted/second"]});
    house.admin.patch(&path, &body).await.expect("an answer").good().expect("changed");
    let caller = house.caller();
    let ask = json!({"model": "moving", "messages": [{"role": "user", "content": "x"}]});
    wait::until(ONE_CHANGE * 3, "the last state serves", || async {
        let answer = caller.post("/v1/chat/completions", &ask).await.ok()?;
        (answer.json()["model"] == json!("second")).then_some(())
    })
    .await
    .expect("serves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_key_is_refused_within_a_second() {
    let mut house = Builder::apart(2).start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    let made = house.create("api-keys", json!({"name": "short-lived"})).await.expect("made");
    let key = made["key"].as_str().expect("a key").to_owned();
    house.secrets.push(key.clone());
    let callers: Vec<Http> = house
        .nodes
        .iter()
        .map(|n| Http::new(&n.data_url()).header("authorization", &format!("Bearer {key}")))
        .collect();
    for caller in &callers {
        wait::until(ONE_CHANGE, "the key works", || async {
            caller.get("/v1/models").await.ok().filter(|a| a.status == 200)
        })
        .await
        .expect("works");
    }
    let path = format!("/workspaces/default/api-keys/{}", made["id"].as_str().expect("an id"));
    house.admin.delete(&path).await.expect("an answer").good().expect("deleted");
    let revoked = Instant::now();
    for caller in &callers {
        wait::until(Duration::from_secs(1), "the key is refused", || async {
            caller.get("/v1/models").await.ok().filter(|a| a.status == 401)
        })
        .await
        .expect("refused");
    }
    println!("refused on all nodes after {:?}", revoked.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_can_wait_for_its_change() {
    let mut house = Builder::apart(1).start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    let body = json!({"name": "awaited", "targets": ["scripted/chat"]});
    let answer = house.admin.post("/workspaces/default/aliases", &body).await.expect("an answer").good().expect("made");
    let change = answer.header("x-pointsman-change").to_owned();
    assert!(change.starts_with("chg_"), "{:?}", answer.headers);
    let state = house
        .admin
        .get(&format!("/changes/{change}?wait_ms=10000"))
        .await
        .expect("an answer")
        .good()
        .expect("known")
        .json();
    // No further waiting: that was the waiting.
    let model = house.caller().get("/v1/models/awaited").await.expect("an answer");
    assert_eq!(model.status, 200, "{state}");
    let nodes = house.admin.get("/nodes").await.expect("an answer").good().expect("a list").json();
    assert_eq!(nodes["data"].as_array().map(Vec::len), Some(1), "{nodes}");
}
