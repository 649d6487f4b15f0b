//! Nodes that only listen: a real join, a real stream over mutual TLS, every update acknowledged, and
//! of each resource the moment at which it was known. Many of them fit in one process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use data_plane::identity::Identity;
use data_plane::rpc::distribution_client::DistributionClient;
use runtime::shutdown;
use shared::proto::{self, control_message, node_message};
use tests::house::House;
use tests::wait;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

/// What a node heard of one resource last, and when.
#[derive(Debug, Clone, Copy)]
pub struct Heard {
    pub at: Instant,
    pub there: bool,
}

/// One listening node.
pub struct Listener {
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// By (kind, id).
    heard: HashMap<(String, String), Heard>,
    updates: u64,
    ended: Option<String>,
}

impl Listener {
    /// Joins and listens until dropped.
    pub async fn join(house: &mut House, name: &str) -> Result<Self> {
        let token = house.join_token().await?;
        let authority = house.grpc_url.clone().context("no gRPC port")?.replace("https://", "");
        let folder = house.path(name);
        let (_trigger, shutdown) = shutdown::channel();
        let identity = Identity::load_or_join(&folder, &authority, Some(&token), name, &shutdown).await?;
        let channel = identity.dialer(&authority).connect().await?;
        let state: Arc<Mutex<State>> = Arc::default();
        let (shared, node_id) = (state.clone(), identity.node_id().to_string());
        let task = tokio::spawn(async move {
            let end = listen(DistributionClient::new(channel), node_id, &shared).await;
            lock(&shared).ended = Some(format!("{end:?}"));
        });
        Ok(Self { state, task })
    }

    /// When it heard that the resource is there (or gone), if it did.
    pub fn heard(&self, kind: &str, id: &str, there: bool) -> Option<Instant> {
        let state = lock(&self.state);
        assert!(state.ended.is_none(), "a simulated node's stream ended: {:?}", state.ended);
        let heard = state.heard.get(&(kind.to_owned(), id.to_owned()))?;
        (heard.there == there).then_some(heard.at)
    }

    /// Resources of a kind that are there.
    pub fn count(&self, kind: &str) -> usize {
        lock(&self.state).heard.iter().filter(|((k, _), h)| k == kind && h.there).count()
    }

    /// Updates so far.
    pub fn updates(&self) -> u64 {
        lock(&self.state).updates
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits until all have heard; how long each took after `since`, sorted.
pub async fn all_heard(
    nodes: &[Listener],
    kind: &str,
    id: &str,
    there: bool,
    since: Instant,
    limit: Duration,
) -> Result<Vec<Duration>> {
    let what = format!("{kind} {id} known to {} nodes", nodes.len());
    let times = wait::until(limit, &what, async || {
        nodes.iter().map(|n| n.heard(kind, id, there)).collect::<Option<Vec<Instant>>>()
    });
    let mut times: Vec<Duration> = times.await?.into_iter().map(|at| at.saturating_duration_since(since)).collect();
    times.sort();
    Ok(times)
}

async fn listen<T>(mut client: DistributionClient<T>, node_id: String, state: &Mutex<State>) -> Result<()>
where
    T: tonic::client::GrpcService<tonic::body::Body>,
    T::Error: Into<tonic::codegen::StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = tonic::codegen::Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
{
    let (send, receive) = mpsc::channel(64);
    let hello = proto::Hello {
        boot_id: vec![7; 16],
        version: "0.1.0".into(),
        schema_min: 1,
        schema_max: 1,
        limits: Some(proto::Limits {
            max_scope_bytes: 256 << 20,
            max_resources: 1_000_000,
            max_resource_bytes: 1 << 20,
        }),
        display_name: node_id.clone(),
        node_id,
        ..proto::Hello::default()
    };
    send.send(message(node_message::Message::Hello(hello))).await?;
    let mut incoming = client.sync(ReceiverStream::new(receive)).await?.into_inner();
    while let Some(received) = incoming.message().await? {
        match received.message.context("an empty message")? {
            control_message::Message::Welcome(_) => {}
            control_message::Message::Heartbeat(_) => {
                send.send(message(node_message::Message::Heartbeat(proto::Heartbeat::default()))).await?;
            }
            control_message::Message::GoAway(away) => anyhow::bail!("asked to go away: {}", away.reason),
            control_message::Message::Update(update) => {
                note(&mut lock(state), &update);
                if update.last {
                    let ack = proto::Ack {
                        nonce: update.nonce,
                        scope: update.scope,
                        revision: update.to,
                        state_hash: update.state_hash,
                        apply_us: 1,
                    };
                    send.send(message(node_message::Message::Ack(ack))).await?;
                }
            }
        }
    }
    anyhow::bail!("the control plane ended the stream")
}

fn note(state: &mut State, update: &proto::Update) {
    let at = Instant::now();
    state.updates += u64::from(update.last);
    for resource in &update.upserts {
        state.heard.insert((resource.kind.clone(), resource.id.clone()), Heard { at, there: true });
    }
    for gone in &update.removals {
        state.heard.insert((gone.kind.clone(), gone.id.clone()), Heard { at, there: false });
    }
}

fn message(message: node_message::Message) -> proto::NodeMessage {
    proto::NodeMessage { message: Some(message) }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
