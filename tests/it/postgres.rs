//! The same house on its second database engine, in a database of its own; one control plane, and two.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Executor};
use tests::house::Builder;
use tests::http::Http;
use tests::{require, wait};
use tokio::task::LocalSet;

const LONG: Duration = Duration::from_secs(20);
/// From a revocation's answer at one replica to the first refusal at a node of the other.
const REVOKED: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_house_on_postgresql() {
    on_a_database(through_the_house).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_of_the_control_plane() {
    on_a_database(through_two_replicas).await;
}

async fn on_a_database<F: Future<Output = ()> + 'static>(story: impl FnOnce(String) -> F) {
    let Some(url) = require::or_skip("PostgreSQL", require::postgres()) else { return };
    let server = PgPool::connect(&url).await.expect("PostgreSQL answers");
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
    let name = format!("pointsman_house_{}_{nanos}", std::process::id());
    // A name that we made of digits: identifiers cannot be bound.
    server.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.expect("a database");

    let (base, _) = url.rsplit_once('/').expect("a URL with a database");
    // A task of its own, so that its panic does not leave the database behind.
    let through = story(format!("{base}/{name}"));
    let outcome = LocalSet::new().run_until(async { tokio::task::spawn_local(through).await }).await;

    let dropped = server.execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await;
    outcome.expect("the house works on PostgreSQL");
    dropped.expect("the database is dropped");
}

async fn through_the_house(database_url: String) {
    let mut house = Builder::apart(1).control_args(&["--database-url", &database_url]).start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    for number in 0..20 {
        let body = crate::load::chat("scripted/chat", &format!("t{number}"));
        assert_eq!(house.caller().post("/v1/chat/completions", &body).await.expect("an answer").status, 200);
    }
    crate::usage_exact::ledger_equals_provider(&house, "chat").await;
    house.control.kill().expect("killed");
    house.control.start_again().expect("starts again");
    house.create("aliases", json!({"name": "after", "targets": ["scripted/chat"]})).await.expect("REST works");
    house.serves("after").await.expect("the node is current again");
}

/// What replicas seal with; each has a data folder of its own.
const KEK: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

async fn through_two_replicas(database_url: String) {
    let house = Builder::apart(1).control_args(&["--database-url", &database_url]).env("POINTSMAN_KEK", KEK);
    let mut house = house.start().await.expect("a house");
    let (mut replica, at_replica) = house.add_replica().expect("a second control plane");
    let token = house.join_token().await.expect("a token");
    let grpc = replica.first_line["grpc_url"].as_str().expect("a port for nodes").to_owned();
    house.add_node_at(&grpc, &token).await.expect("a node joins there with a token from here");
    house.connect(&["chat"]).await.expect("both nodes serve what was changed here");

    // Either replica knows what runs at the other.
    for rest in [&house.admin, &at_replica] {
        let nodes = rest.get("/nodes").await.expect("an answer").good().expect("a list").json();
        let nodes = nodes["data"].as_array().expect("rows").clone();
        assert_eq!(nodes.len(), 2);
        for node in nodes {
            assert_eq!(node["connected"], true, "{node}");
            let shared = &node["scopes"]["shared"];
            assert!(shared["revision"].as_u64() > Some(0) && shared["lag_ms"] == 0, "{node}");
        }
    }

    // A change made at one is waited for at all nodes, and is there when the answer is.
    let after_change = Http::new(&house.nodes[1].data_url());
    for n in 0..10 {
        let (name, rest) = (format!("alias{n}"), [&house.admin, &at_replica][n % 2]);
        let body = json!({"name": name, "targets": ["scripted/chat"]});
        let made = rest.post("/workspaces/default/aliases", &body).await.expect("an answer").good().expect("made");
        let change = serving(&house.admin, made.header("x-pointsman-change"), 5_000).await;
        assert_eq!((&change["serving"], change["nodes"].as_array().map(Vec::len)), (&json!(true), Some(2)), "{change}");
        for node in &house.nodes {
            let caller = Http::new(&node.data_url()).header("authorization", &format!("Bearer {}", house.api_key));
            assert_eq!(caller.get(&format!("/v1/models/{name}")).await.expect("an answer").status, 200, "{name}");
        }
    }

    // A key that is revoked here is refused there within a second.
    let made = house.create("api-keys", json!({"name": "short"})).await.expect("a key");
    let key = made["key"].as_str().expect("shown once").to_owned();
    let short = after_change.header("authorization", &format!("Bearer {key}"));
    wait::until(LONG, "the key serves", async || short.get("/v1/models").await.ok().filter(|a| a.status == 200))
        .await
        .expect("serves");
    let path = format!("/workspaces/default/api-keys/{}", made["id"].as_str().expect("an id"));
    house.admin.delete(&path).await.expect("an answer").good().expect("revoked");
    wait::until(REVOKED, "the key is refused", async || short.get("/v1/models").await.ok().filter(|a| a.status == 401))
        .await
        .expect("refused");

    // A replica that says nothing is not taken for one whose nodes serve.
    replica.program().signal("STOP").expect("stopped");
    let body = json!({"name": "silent", "targets": ["scripted/chat"]});
    let made = house.admin.post("/workspaces/default/aliases", &body).await.expect("an answer").good().expect("made");
    let change = made.header("x-pointsman-change").to_owned();
    let answer = serving(&house.admin, &change, 500).await;
    assert_eq!((&answer["serving"], &answer["silent_replicas"]), (&json!(false), &json!(1)), "{answer}");
    replica.program().signal("CONT").expect("goes on");
    let answer = serving(&house.admin, &change, 20_000).await;
    assert_eq!((&answer["serving"], &answer["silent_replicas"]), (&json!(true), &json!(0)), "{answer}");
    assert!(replica.stop().await.expect("it ends").success());
}

/// `GET /changes/{id}` after waiting so long.
async fn serving(rest: &Http, change: &str, wait_ms: u32) -> serde_json::Value {
    let answer = rest.get(&format!("/changes/{change}?wait_ms={wait_ms}")).await.expect("an answer");
    answer.good().expect("known").json()
}
