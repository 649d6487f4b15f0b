//! The client over a real gRPC stream inside the process, against a control plane of a few lines
//! that says what each test tells it to.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use runtime::rpc::Dialer;
use runtime::{shutdown, task};
use shared::proto::{self, NackCode, control_message, node_message};
use shared::snapshot::{SCHEMA, SHARED_SCOPE};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::NamedService;

use super::client::{Client, Options};
use super::fixture::{delta, full, shared_scope, workspace_id, workspace_scope};
use super::{Status, Store};

const PATIENCE: Duration = Duration::from_secs(20);

/// The control plane's end of one stream.
struct Peer {
    inbound: tonic::Streaming<proto::NodeMessage>,
    outbound: mpsc::Sender<Result<proto::ControlMessage, tonic::Status>>,
}

impl Peer {
    async fn next(&mut self) -> node_message::Message {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.inbound.message()).await.expect("the node speaks in time");
            let message = next.expect("the stream holds").expect("the node does not end it");
            match message.message.expect("a known kind") {
                node_message::Message::Heartbeat(_) => {}
                other => return other,
            }
        }
    }

    async fn say(&self, message: control_message::Message) {
        let message = proto::ControlMessage { message: Some(message) };
        self.outbound.send(Ok(message)).await.expect("the node listens");
    }

    async fn hello(&mut self, scopes: u64) -> proto::Hello {
        let node_message::Message::Hello(hello) = self.next().await else { panic!("Hello comes first") };
        let welcome = proto::Welcome { lineage: vec![5; 16], schema: SCHEMA, heartbeat_ms: 200, scopes };
        self.say(control_message::Message::Welcome(welcome)).await;
        hello
    }

    async fn answer(&mut self, update: proto::Update) -> Result<proto::Ack, proto::Nack> {
        self.say(control_message::Message::Update(update)).await;
        match self.next().await {
            node_message::Message::Ack(ack) => Ok(ack),
            node_message::Message::Nack(nack) => Err(nack),
            other => panic!("{other:?}"),
        }
    }
}

#[derive(Clone)]
struct Distribution(mpsc::Sender<Peer>);

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl NamedService for Distribution {
    const NAME: &'static str = "pointsman.v1.Distribution";
}

impl tower_service::Service<http::Request<Body>> for Distribution {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = Sync(self.0.clone());
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<proto::ControlMessage, proto::NodeMessage>::default();
            Ok(tonic::server::Grpc::new(codec).streaming(method, request).await)
        })
    }
}

struct Sync(mpsc::Sender<Peer>);

impl tonic::server::StreamingService<proto::NodeMessage> for Sync {
    type Response = proto::ControlMessage;
    type ResponseStream = ReceiverStream<Result<proto::ControlMessage, tonic::Status>>;
    type Future = Answer<Result<tonic::Response<Self::ResponseStream>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<tonic::Streaming<proto::NodeMessage>>) -> Self::Future {
        let peers = self.0.clone();
        Box::pin(async move {
            let (outbound, messages) = mpsc::channel(64);
            let peer = Peer { inbound: request.into_inner(), outbound };
            peers.send(peer).await.map_err(|_| tonic::Status::unavailable("the test is over"))?;
            Ok(tonic::Response::new(ReceiverStream::new(messages)))
        })
    }
}

struct House {
    store: Arc<Store>,
    peers: mpsc::Receiver<Peer>,
    _stop: shutdown::Trigger,
}

impl House {
    fn new() -> Self {
        let (dialer, incoming) = Dialer::in_process();
        let (sender, peers) = mpsc::channel(4);
        let incoming = ReceiverStream::new(incoming).map(Ok::<_, Infallible>);
        task::spawn("fake control plane", async move {
            _ = tonic::transport::Server::builder()
                .add_service(Distribution(sender))
                .serve_with_incoming(incoming)
                .await;
        });
        let store = Arc::new(Store::in_memory(None).expect("threads exist"));
        let options = Options {
            dialer,
            node_id: "node_1".into(),
            display_name: "test".into(),
            version: "0".into(),
            labels: [("region".to_owned(), "eu".to_owned())].into(),
            load: Arc::new(|| proto::Heartbeat { requests_in_flight: 7, ..Default::default() }),
        };
        let (stop, shutdown) = shutdown::channel();
        task::spawn("client", Client::new(store.clone(), options).run(shutdown));
        Self { store, peers, _stop: stop }
    }

    async fn peer(&mut self) -> Peer {
        let next = tokio::time::timeout(PATIENCE, self.peers.recv()).await;
        next.expect("the node connects in time").expect("the control plane runs")
    }

    fn status(&self) -> &Status {
        self.store.status()
    }
}

/// An update in chunks of one resource each.
fn chunks(update: proto::Update) -> Vec<proto::Update> {
    let upserts = update.upserts.clone();
    let mut parts: Vec<_> = upserts
        .into_iter()
        .map(|resource| proto::Update {
            nonce: update.nonce,
            scope: update.scope.clone(),
            to: update.to,
            upserts: vec![resource],
            ..Default::default()
        })
        .collect();
    parts.push(proto::Update { upserts: Vec::new(), ..update });
    parts
}

#[tokio::test]
async fn a_node_synchronises_loses_the_stream_and_resumes() {
    let mut house = House::new();
    let name = workspace_id(1).to_string();
    let mut peer = house.peer().await;
    let hello = peer.hello(2).await;
    assert_eq!((hello.node_id.as_str(), hello.schema_max, hello.boot_id.len()), ("node_1", SCHEMA, 16));
    assert!(hello.held.is_empty() && hello.lineage.is_empty() && hello.limits.is_some());
    assert_eq!(hello.labels["region"], "eu");

    let shared = proto::Update { nonce: 1, ..full(SHARED_SCOPE, &shared_scope(3)) };
    peer.answer(shared).await.expect("it is valid");
    assert!(!house.store.is_ready(), "one scope of two");
    let whole = proto::Update { nonce: 2, ..full(&name, &workspace_scope(1, 4, 5, "A")) };
    let mut parts = chunks(whole);
    let last = parts.pop().expect("there is a last one");
    for part in parts {
        peer.say(control_message::Message::Update(part)).await;
    }
    let ack = peer.answer(last).await.expect("it is valid");
    assert_eq!((ack.nonce, ack.revision), (2, 4));
    assert_eq!(ack.state_hash, workspace_scope(1, 4, 5, "A").state_hash().as_bytes());
    assert_eq!(house.store.load().key_count(), 5, "an ack means that it serves");
    while !house.store.is_ready() {
        tokio::task::yield_now().await;
    }

    drop(peer);
    let mut peer = house.peer().await;
    let again = peer.hello(2).await;
    assert_eq!((again.lineage, again.boot_id), (vec![5; 16], hello.boot_id));
    let held: Vec<_> = again.held.iter().map(|held| (held.scope.as_str(), held.revision)).collect();
    assert_eq!(held, [(SHARED_SCOPE, 3), (&*name, 4)]);
    let next = delta(&name, &workspace_scope(1, 4, 5, "A"), &workspace_scope(1, 5, 6, "B"));
    peer.answer(next).await.expect("it continues what is held");
    assert_eq!(house.status().connects.load(Ordering::Relaxed), 2);
    assert!(house.status().connected.load(Ordering::Relaxed));
}

#[tokio::test]
async fn refusals_are_answered_and_full_state_heals() {
    let mut house = House::new();
    let name = workspace_id(1).to_string();
    let mut peer = house.peer().await;
    peer.hello(2).await;
    peer.answer(proto::Update { nonce: 1, ..full(SHARED_SCOPE, &shared_scope(1)) }).await.expect("valid");
    let first = workspace_scope(1, 1, 5, "A");
    peer.answer(proto::Update { nonce: 2, ..full(&name, &first) }).await.expect("valid");
    let second = workspace_scope(1, 2, 6, "A");
    let damaged = proto::Update { nonce: 3, checksum: vec![1; 32], ..delta(&name, &first, &second) };
    let nack = peer.answer(damaged).await.expect_err("it was damaged");
    assert_eq!((nack.code(), nack.nonce, nack.revision, nack.held_revision), (NackCode::BadChecksum, 3, 2, 1));
    assert_eq!(nack.held_state_hash, first.state_hash().as_bytes());
    let elsewhere = proto::Update { nonce: 4, from: 9, to: 10, ..delta(&name, &first, &second) };
    let nack = peer.answer(elsewhere).await.expect_err("it starts elsewhere");
    assert_eq!(nack.code(), NackCode::HashMismatch);
    peer.answer(proto::Update { nonce: 5, ..full(&name, &second) }).await.expect("full state heals");
    assert_eq!(house.status().rejected.load(Ordering::Relaxed), 2);
    // Chunks that do not belong together are refused as one.
    let first_chunk = proto::Update { nonce: 6, last: false, ..full(&name, &second) };
    peer.say(control_message::Message::Update(first_chunk)).await;
    let other = proto::Update { nonce: 6, ..full(SHARED_SCOPE, &shared_scope(9)) };
    let nack = peer.answer(other).await.expect_err("two updates in one");
    assert_eq!((nack.code(), nack.held_revision), (NackCode::BadChecksum, 2));
    assert_eq!(house.status().rejected.load(Ordering::Relaxed), 3);
    // A replayed nonce gets no answer; the next real one does.
    peer.say(control_message::Message::Update(proto::Update { nonce: 5, ..full(&name, &second) })).await;
    let third = workspace_scope(1, 3, 6, "B");
    let ack = peer.answer(proto::Update { nonce: 7, ..delta(&name, &second, &third) }).await.expect("valid");
    assert_eq!(ack.nonce, 7);
    assert_eq!(house.status().ignored.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn heartbeats_carry_the_load_and_silence_is_noticed() {
    let mut house = House::new();
    let mut peer = house.peer().await;
    peer.hello(1).await;
    let beat = tokio::time::timeout(PATIENCE, peer.inbound.message()).await.expect("in time");
    let Ok(Some(proto::NodeMessage { message: Some(node_message::Message::Heartbeat(beat)) })) = beat else {
        panic!("{beat:?}")
    };
    assert_eq!(beat.requests_in_flight, 7);
    assert!(beat.sent_at_ms > 0);
    // The control plane says nothing more: the node gives it up and comes back.
    let mut peer = house.peer().await;
    peer.hello(1).await;
    peer.say(control_message::Message::GoAway(proto::GoAway { reason: "restart".into(), retry_after_ms: 1 })).await;
    house.peer().await.hello(1).await;
}
