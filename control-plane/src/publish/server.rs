//! `Distribution.Sync`: carries a node's messages to its [`Session`] and the session's to the node.
//! All decisions are the session's and the fleet's.
//!
//! The service is written out by hand where generated code would do, for one reason: updates are
//! encoded once for all nodes, and generated servers encode every message anew.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstDecoder;

use runtime::clock::monotonic_ms;
use shared::ids::NodeId;
use shared::proto::{self, NodeMessage};
use shared::snapshot::limits;

use super::Publish;
use super::authority::Peer;
use super::fleet::{self, Kick, Place, Serving};
use super::session::{Closing, Outgoing, Output, Session};
use crate::app::App;

/// Nodes that are sent full states at the same time.
pub const MAX_FULL_SYNCS: usize = 32;
/// How long a stream may wait for its first message, or for the first compilation.
const OPENING: Duration = Duration::from_secs(10);
/// Messages that wait between a session and its connection.
const OUTBOX: usize = 8;
/// How often time is looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often a connected node's row is written.
const NOTE_EVERY_MS: u64 = 60_000;

/// The gRPC service. Cheap to clone.
#[derive(Clone)]
pub struct Distribution {
    app: App,
    publish: Arc<Publish>,
    full_syncs: Arc<Semaphore>,
}

impl std::fmt::Debug for Distribution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Distribution")
    }
}

type Answers = ReceiverStream<Result<Outgoing, Status>>;

/// Other replicas count this one's nodes as gone.
fn cut_off() -> Status {
    Status::unavailable("this control plane cannot reach its database; another one may")
}

impl Distribution {
    /// Over what the compile task publishes.
    pub fn new(app: App, publish: Arc<Publish>) -> Self {
        Self { app, publish, full_syncs: Arc::new(Semaphore::new(MAX_FULL_SYNCS)) }
    }

    async fn sync(self, request: Request<Streaming<NodeMessage>>) -> Result<Response<Answers>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let certified = peer.node.ok_or_else(|| Status::unauthenticated("a node certificate is needed"))?;
        if self.publish.fleet.is_denied(certified) {
            return Err(Status::permission_denied("this node was revoked"));
        }
        if self.publish.replicas.is_cut_off() {
            return Err(cut_off());
        }
        let (answers, receiver) = mpsc::channel(OUTBOX);
        let inbound = request.into_inner();
        runtime::task::spawn("sync", async move {
            if let Err(status) = self.serve(certified, inbound, &answers).await {
                tracing::info!(node = %certified, code = ?status.code(), reason = status.message(), "a node's stream ends");
                // A node that does not read cannot be told; the connection ends anyway.
                _ = tokio::time::timeout(TICK, answers.send(Err(status))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn serve(
        self,
        id: NodeId,
        mut inbound: Streaming<NodeMessage>,
        answers: &mpsc::Sender<Result<Outgoing, Status>>,
    ) -> Result<(), Status> {
        let hello = self.opening(&mut inbound).await?;
        let board = self.publish.board.clone();
        let moved = board.listen();
        let random = runtime::random::seed();
        let opened = Session::open(&hello, id, &self.app.lineage, board, monotonic_ms(), random);
        let (session, first) = opened.map_err(status)?;
        let place = self.publish.fleet.connect(id, &hello, self.app.now_ms());
        let number = place.number;
        self.publish.meters.connected.set(self.publish.fleet.connected_count() as i64);
        let known: Vec<_> = session.serves().map(|(scope, revision)| (scope.clone(), revision)).collect();
        self.publish.fleet.change(id, number, |node| {
            let held = |(scope, revision)| (scope, Serving { revision, since_ms: 0, convergence_ms: None });
            node.serves = known.into_iter().map(held).collect();
        });
        tracing::info!(node = %id, version = hello.version, held = hello.held.len(), "a node connects");
        let mut link =
            Link { server: &self, id, number, session, queue: VecDeque::new(), noted_ms: 0, settled_ms: None };
        let ended = match link.take(first) {
            Ok(()) => link.run(inbound, answers, place, moved).await,
            Err(ended) => Err(ended),
        };
        link.note_seen().await;
        self.publish.fleet.disconnect(id, number, self.app.now_ms());
        self.publish.meters.connected.set(self.publish.fleet.connected_count() as i64);
        ended
    }

    /// The first message, once there is something to answer it with.
    async fn opening(&self, inbound: &mut Streaming<NodeMessage>) -> Result<proto::Hello, Status> {
        let mut moved = self.publish.board.listen();
        let complete = async { moved.wait_for(|_| self.publish.board.is_complete()).await.is_ok() };
        if !tokio::time::timeout(OPENING, complete).await.unwrap_or(false) {
            return Err(Status::unavailable("the first compilation is not done"));
        }
        let first = tokio::time::timeout(OPENING, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello"))??;
        match first.and_then(|m| m.message) {
            Some(proto::node_message::Message::Hello(hello)) => Ok(hello),
            Some(_) | None => Err(Status::invalid_argument("the first message must be Hello")),
        }
    }
}

/// A session, its node, and what waits to be sent.
struct Link<'a> {
    server: &'a Distribution,
    id: NodeId,
    number: u64,
    session: Session,
    queue: VecDeque<Outgoing>,
    noted_ms: u64,
    /// Since when the node has had everything at least once on this stream, milliseconds since 1970.
    settled_ms: Option<i64>,
}

impl Link<'_> {
    async fn run(
        &mut self,
        mut inbound: Streaming<NodeMessage>,
        answers: &mpsc::Sender<Result<Outgoing, Status>>,
        mut place: Place,
        mut moved: tokio::sync::watch::Receiver<u64>,
    ) -> Result<(), Status> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let shutdown = self.server.app.shutdown.clone();
        let mut permit: Option<OwnedSemaphorePermit> = None;
        self.note_seen().await;
        loop {
            if permit.is_some() && self.session.gives_back(monotonic_ms()) {
                permit = None;
            }
            let wants_place = permit.is_none() && self.session.waits_for_full();
            let outputs = tokio::select! {
                message = inbound.message() => match message? {
                    Some(message) => self.session.message(message, monotonic_ms()),
                    None => return Ok(()),
                },
                slot = answers.reserve(), if !self.queue.is_empty() => {
                    let Ok(slot) = slot else { return Ok(()) };
                    if let Some(message) = self.queue.pop_front() {
                        slot.send(Ok(message));
                    }
                    continue;
                }
                _ = moved.changed() => self.session.moved(monotonic_ms()),
                acquired = self.server.full_syncs.clone().acquire_owned(), if wants_place => {
                    permit = acquired.ok();
                    self.session.admit(monotonic_ms())
                }
                _ = ticks.tick() => {
                    if monotonic_ms().saturating_sub(self.noted_ms) >= NOTE_EVERY_MS {
                        self.note_seen().await;
                    }
                    self.session.tick(monotonic_ms())
                }
                _ = place.kick.changed() => return Err(match *place.kick.borrow() {
                    Some(Kick::Revoked) => Status::permission_denied("this node was revoked"),
                    Some(Kick::CutOff) => cut_off(),
                    Some(Kick::Superseded) | None => Status::aborted("the node opened another stream"),
                }),
                () = shutdown.asked() => {
                    let retry_after_ms = runtime::random::seed() % 1000;
                    let go = proto::GoAway { reason: "the control plane stops".into(), retry_after_ms };
                    self.queue.push_back(Outgoing::GoAway(go));
                    self.flush(answers).await;
                    return Ok(());
                }
            };
            if let Err(ended) = self.take(outputs) {
                self.flush(answers).await;
                return if ended.code() == tonic::Code::Ok { Ok(()) } else { Err(ended) };
            }
        }
    }

    /// Carries out what the session wants. An error ends the stream with that status.
    fn take(&mut self, outputs: Vec<Output>) -> Result<(), Status> {
        let publish = &self.server.publish;
        let now_ms = self.server.app.now_ms();
        for output in outputs {
            match output {
                Output::Send(message) => {
                    if let Outgoing::Update { body, .. } = &message {
                        publish.meters.sent_bytes.inc_by(body.len() as u64);
                    }
                    self.queue.push_back(message);
                }
                Output::Serves { scope, revision, committed_at_ms } => {
                    publish.meters.acks.inc();
                    // What was committed before the node had caught up says how long it was away, and
                    // nothing of how fast changes arrive.
                    let live = self.settled_ms.is_some_and(|since| committed_at_ms >= since);
                    let convergence_ms = live.then(|| now_ms.saturating_sub(committed_at_ms).max(0));
                    if let Some(ms) = convergence_ms {
                        publish.meters.convergence.observe(ms as f64 / 1000.0);
                    }
                    publish.fleet.change(self.id, self.number, |node| {
                        node.refused.remove(&scope);
                        node.serves.insert(scope, Serving { revision, since_ms: now_ms, convergence_ms });
                    });
                }
                Output::Dropped(scope) => {
                    publish.meters.acks.inc();
                    publish.fleet.change(self.id, self.number, |node| {
                        node.refused.remove(&scope);
                        node.serves.remove(&scope);
                    });
                }
                Output::Refused(refusal) => {
                    publish.meters.nacked(refusal.code);
                    tracing::warn!(node = %self.id, scope = %refusal.scope, revision = refusal.revision,
                        code = refusal.code.as_str_name(), path = refusal.path, detail = refusal.detail,
                        "a node refused a revision");
                    publish.fleet.change(self.id, self.number, |node| {
                        node.refused.insert(refusal.scope.clone(), (refusal, now_ms));
                    });
                }
                Output::Diverged { scope, revision } => publish.ask_for_anew(scope, revision),
                Output::Beat(beat) => publish.fleet.change(self.id, self.number, |node| {
                    node.beat = beat;
                    node.last_seen_ms = now_ms;
                }),
                Output::Ignored => {
                    publish.meters.ignored.inc();
                    publish.fleet.change(self.id, self.number, |node| node.ignored += 1);
                }
                Output::Close(closing) => return Err(status(closing)),
            }
        }
        if self.settled_ms.is_none() && self.session.is_settled() {
            self.settled_ms = Some(now_ms);
        }
        Ok(())
    }

    async fn flush(&mut self, answers: &mpsc::Sender<Result<Outgoing, Status>>) {
        let all = async {
            for message in self.queue.drain(..) {
                if answers.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        };
        // A node that does not read must not keep the stream open.
        _ = tokio::time::timeout(TICK, all).await;
    }

    async fn note_seen(&mut self) {
        self.noted_ms = monotonic_ms();
        let Some(node) = self.server.publish.fleet.get(self.id) else { return };
        let app = &self.server.app;
        if let Err(e) = fleet::note_seen(&app.db, self.id, &node, app.now_ms()).await {
            tracing::warn!(node = %self.id, error = %e, "a node's row cannot be written");
        }
    }
}

fn status(closing: Closing) -> Status {
    match closing {
        Closing::Protocol(why) => Status::invalid_argument(why),
        Closing::Schema => Status::failed_precondition("UNSUPPORTED_SCHEMA: no schema that both sides know"),
        Closing::Lost => Status::deadline_exceeded("nothing heard for 30 s"),
        Closing::Aged => Status::ok(""),
    }
}

/// Writes [`Outgoing`], reads [`NodeMessage`].
#[derive(Debug, Clone, Copy, Default)]
struct SyncCodec;

/// The writing half.
#[derive(Debug, Clone, Copy)]
struct SyncEncoder;

impl Codec for SyncCodec {
    type Encode = Outgoing;
    type Decode = NodeMessage;
    type Encoder = SyncEncoder;
    type Decoder = ProstDecoder<NodeMessage>;

    fn encoder(&mut self) -> Self::Encoder {
        SyncEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

impl Encoder for SyncEncoder {
    type Item = Outgoing;
    type Error = Status;

    fn encode(&mut self, item: Outgoing, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(to);
        Ok(())
    }
}

/// The one method.
struct Sync(Distribution);

impl tonic::server::StreamingService<NodeMessage> for Sync {
    type Response = Outgoing;
    type ResponseStream = Answers;
    type Future = BoxFuture<'static, Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<NodeMessage>>) -> Self::Future {
        Box::pin(self.0.clone().sync(request))
    }
}

impl tonic::server::NamedService for Distribution {
    const NAME: &'static str = crate::rpc::distribution_server::SERVICE_NAME;
}

impl<B> tower_service::Service<http::Request<B>> for Distribution
where
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != "/pointsman.v1.Distribution/Sync" {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let most = Some(limits::MAX_MESSAGE_BYTES);
            let mut grpc = tonic::server::Grpc::new(SyncCodec).apply_max_message_size_config(most, most);
            Ok(grpc.streaming(Sync(service), request).await)
        })
    }
}
