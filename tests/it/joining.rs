//! How a node gets its certificate: one token, one node, the right authority.

use std::time::Duration;

use tests::binaries;
use tests::house::{Builder, House};
use tests::process::{Launch, Program};

/// Starts a node with this token; how it ended, if it did.
async fn join(house: &House, name: &str, token: &str) -> Result<std::process::ExitStatus, Program> {
    let grpc = house.grpc_url.clone().expect("a gRPC port");
    let dir = house.path(name).display().to_string();
    let args = [
        "--data-dir",
        &dir,
        "--control-plane",
        &grpc,
        "--join-token",
        token,
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--output",
        "json",
    ];
    let launch = Launch::new(&binaries::program("data-plane").expect("built"), args);
    let mut program = Program::start(&launch).expect("started");
    match program.ended(Duration::from_secs(15)).await {
        Ok(status) => Ok(status),
        Err(_) => Err(program),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_join_and_serve_the_same() {
    let mut house = Builder::apart(2).start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    let ids: Vec<String> =
        house.nodes.iter().filter_map(|n| Some(n.first_line["node_id"].as_str()?.to_owned())).collect();
    assert!(ids.len() == 2 && ids[0] != ids[1] && ids[0].starts_with("node_"), "{ids:?}");
    let listed = house.admin.get("/nodes").await.expect("an answer").good().expect("a list").text();
    assert!(ids.iter().all(|id| listed.contains(id.as_str())), "{listed}");
    // Their open streams do not keep it from stopping.
    assert!(house.control.stop().await.expect("it ends").success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_let_nobody_in() {
    let mut house = Builder::apart(0).start().await.expect("a house");
    let used = house.join_token().await.expect("a token");
    let grpc = house.grpc_url.clone().expect("a gRPC port");
    house.add_node_at(&grpc, &used).await.expect("the first joins");
    let fresh = house.join_token().await.expect("a token");
    let (secret, authority) = fresh.split_once('.').expect("a token names its authority");
    let cases = [
        ("used", used.clone()),
        ("foreign-authority", format!("{secret}.{}", "0".repeat(64))),
        ("unknown", format!("pmj_{}_000000.{authority}", "A".repeat(43))),
        ("nonsense", "nonsense".to_owned()),
    ];
    for (name, token) in cases {
        match join(&house, name, &token).await {
            Ok(status) => assert!(!status.success(), "{name}: {status}"),
            Err(mut program) => {
                // A node may also wait and complain; it must not become ready.
                assert!(program.first_line(Duration::from_millis(10)).is_err(), "{name} let a node in");
            }
        }
    }
    let listed = house.admin.get("/nodes").await.expect("an answer").good().expect("a list").json();
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(1), "{listed}");
}
