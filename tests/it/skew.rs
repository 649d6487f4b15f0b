//! S18: neighbouring versions work together, in both directions, and through an upgrade in place.

use std::path::Path;

use serde_json::json;
use tests::house::{Builder, House};
use tests::require;

use crate::load::chat;
use crate::usage_exact::ledger_equals_provider;

/// Requests, changes and usage pass through the house.
async fn works(house: &House, alias: &str) {
    let body = json!({"name": alias, "targets": ["scripted/chat"]});
    let made = house.admin.post("/workspaces/default/aliases", &body).await.expect("an answer").good().expect("made");
    let change = made.header("x-pointsman-change").to_owned();
    let state = house.admin.get(&format!("/changes/{change}?wait_ms=20000")).await.expect("an answer");
    assert_eq!(state.good().expect("known").json()["serving"], true, "the change serves");
    // That speaks of connected nodes; one that is on its way back follows.
    house.serves(alias).await.expect("the alias serves");
    for _ in 0..20 {
        let answer = house.caller().post("/v1/chat/completions", &chat(alias, "hello")).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    ledger_equals_provider(house, "chat").await;
}

async fn mixed(program: &str, previous: &Path) {
    let mut house = Builder::apart(1).program_from(program, previous).start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    works(&house, "mixed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_the_version_before() {
    let Some(previous) = require::previous() else { return };
    mixed("data-plane", &previous).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_of_the_version_before() {
    let Some(previous) = require::previous() else { return };
    mixed("control-plane", &previous).await;
}

/// First the control plane, over its own database; then the node, over its own disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_in_place() {
    let Some(previous) = require::previous() else { return };
    let builder = Builder::apart(1).program_from("data-plane", &previous).program_from("control-plane", &previous);
    let mut house = builder.start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    works(&house, "before").await;
    house.control.upgrade().expect("the control plane starts over the old database");
    works(&house, "between").await;
    house.node(0).upgrade().expect("the node starts over the old disk");
    works(&house, "after").await;
}
