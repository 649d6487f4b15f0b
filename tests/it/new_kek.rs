//! A new key-encryption key, as `docs/operations.md` has it: nobody notices, and the old one may go.

use std::fs;
use std::time::Duration;

use tests::house::{Builder, House};
use tests::http::Http;
use tests::wait;

use crate::load::{Load, Shape, chat};

const SHAPE: Shape = Shape { plain: 2, fresh: 1, streams: 1, rest: Duration::from_millis(5) };

/// A new node needs the authority's key to be let in, and a credential to answer.
async fn a_new_node_answers(house: &mut House) {
    let node = house.add_node().await.expect("joined");
    house.node(node).ready(Duration::from_secs(20)).await.expect("ready");
    let caller = Http::new(&house.node(node).data_url()).header("authorization", &format!("Bearer {}", house.api_key));
    let answer = caller.post("/v1/chat/completions", &chat("scripted/chat", "joined")).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takes_over_from_the_old_one() {
    let mut house = Builder::apart(1).start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    house.provider.keep_bodies(false);
    let load = Load::start(&house.data_url(), &house.api_key, "scripted/chat", SHAPE);
    let file = house.control.data_dir.join("kek");
    let old = fs::read_to_string(&file).expect("made at the first start");
    // 32 bytes in base64.
    let new = format!("{}A=", "bmV3".repeat(11).get(..42).expect("44 letters"));
    for keys in [format!("{new}\n{old}\n"), format!("{new}\n")] {
        house.control.stop().await.expect("stops");
        fs::write(&file, keys).expect("written");
        house.control.start_again().expect("starts");
        a_new_node_answers(&mut house).await;
        let enough = load.asked() + 50;
        let served = wait::until(Duration::from_secs(30), "requests", async || (load.asked() > enough).then_some(()));
        served.await.expect("served meanwhile");
    }
    load.stop().await.none_failed(100);

    house.control.stop().await.expect("stops");
    fs::write(&file, old).expect("written");
    let refused = house.control.start_again().expect_err("nothing opens under the old key any more");
    assert!(format!("{refused:#}").contains("key-encryption key that is not present"), "{refused:#}");
}
