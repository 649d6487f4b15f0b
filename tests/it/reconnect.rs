//! Many nodes whose control plane goes away and comes back: they return spread out, and all are
//! current soon. The nodes are the real client and store of a data plane, many in one process.
//!
//! `POINTSMAN_TEST_RECONNECTING=1000 cargo xtask test reconnect` for the full number.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use data_plane::identity::Identity;
use data_plane::snapshot::{Client, Store, client};
use runtime::shutdown::{self, Trigger};
use serde_json::json;
use shared::proto;
use tests::house::{Builder, House};
use tests::wait;

/// How long the control plane is away.
const AWAY: Duration = Duration::from_secs(10);
/// The promise: all are current so soon after it is back.
const CURRENT: Duration = Duration::from_secs(45);
/// The promise for its memory, whatever comes back at once.
const MOST_MEMORY: u64 = 1 << 30;

struct Node {
    store: Arc<Store>,
    _running: Trigger,
}

impl Node {
    async fn join(house: &mut House, number: usize) -> Result<Self> {
        let token = house.join_token().await?;
        let authority = house.grpc_url.clone().context("no gRPC port")?.replace("https://", "");
        let name = format!("returning{number}");
        let (running, shutdown) = shutdown::channel();
        let identity = Identity::load_or_join(&house.path(&name), &authority, Some(&token), &name, &shutdown).await?;
        let store = Arc::new(Store::in_memory(None)?);
        let options = client::Options {
            dialer: identity.dialer(&authority),
            node_id: identity.node_id().to_string(),
            display_name: name,
            version: "0".to_owned(),
            labels: HashMap::new(),
            load: Arc::new(proto::Heartbeat::default),
        };
        tokio::spawn(Client::new(store.clone(), options).run(shutdown));
        Ok(Self { store, _running: running })
    }

    fn connected(&self) -> bool {
        self.store.status().connected.load(Ordering::Relaxed)
    }

    fn failures(&self) -> u64 {
        self.store.status().connect_failures.load(Ordering::Relaxed)
    }

    fn keys(&self) -> usize {
        self.store.load().key_count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_come_back_and_none_storms() {
    let count = std::env::var("POINTSMAN_TEST_RECONNECTING").ok().and_then(|v| v.parse().ok()).unwrap_or(30_usize);
    let mut house = Builder::apart(0).start().await.expect("a house");
    let begun = Instant::now();
    let mut nodes = Vec::with_capacity(count);
    for number in 0..count {
        nodes.push(Node::join(&mut house, number).await.expect("joins"));
    }
    wait::until(Duration::from_secs(60), "all are current", async || {
        nodes.iter().all(|node| node.connected() && node.keys() > 0).then_some(())
    })
    .await
    .expect("all are current");
    let keys = nodes[0].keys();
    println!("{count} nodes joined and current after {:?}", begun.elapsed());

    house.control.kill().expect("killed");
    wait::until(Duration::from_secs(10), "all notice", async || nodes.iter().all(|n| !n.connected()).then_some(()))
        .await
        .expect("all notice");
    tokio::time::sleep(AWAY).await;
    let tries: u64 = nodes.iter().map(Node::failures).sum();
    println!("{count} nodes tried {tries} times in {AWAY:?}");
    assert!(tries <= count as u64 * AWAY.as_secs(), "more than once a second: {tries}");
    assert!(nodes.iter().all(|node| node.keys() == keys), "what served before still does");

    let back = Instant::now();
    house.control.start_again().expect("starts again");
    house.create("api-keys", json!({"name": "made after the restart"})).await.expect("made");
    let mut most = 0;
    let process = house.control.program().pid();
    wait::until(CURRENT, "all are back and current", async || {
        most = most.max(memory(process));
        nodes.iter().all(|node| node.connected() && node.keys() > keys).then_some(())
    })
    .await
    .expect("all are back and current");
    println!(
        "{count} nodes were current {:?} after the start; the control plane took {} MiB",
        back.elapsed(),
        most >> 20
    );
    assert!(most <= MOST_MEMORY, "{most} bytes");
}

/// Resident bytes of a process.
fn memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}
