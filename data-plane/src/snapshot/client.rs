//! The node's end of the Distribution stream: connects, carries out what `session` decides, and
//! comes back after every loss. Runs on the configuration thread; no request ever waits for it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use runtime::backoff::Backoff;
use runtime::rpc::Dialer;
use runtime::shutdown::Shutdown;
use runtime::{clock, random, task};
use shared::proto::{self, node_message};
use shared::snapshot::{Rejection, SCHEMA, limits};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use super::session::{Close, Session, Step};
use super::store::{Applied, Store};
use crate::rpc::distribution_client::DistributionClient;

/// Messages to the control plane that may wait to be sent: an answer to each open update, and room
/// for heartbeats.
const OUTBOX: usize = limits::MAX_UNACKED + 8;
/// How long opening the stream may take, beyond connecting.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Who this node is, and how it reaches the control plane.
pub struct Options {
    /// How to connect.
    pub dialer: Dialer,
    /// As the certificate names it; inside one process, any.
    pub node_id: String,
    /// Name that operators see.
    pub display_name: String,
    /// The program's version.
    pub version: String,
    /// Limits which workspaces the node gets.
    pub labels: HashMap<String, String>,
    /// Fills in what a heartbeat says about usage and load; the time is set by the client.
    pub load: Arc<dyn Fn() -> proto::Heartbeat + Send + Sync>,
}

/// Keeps the store current. One per process.
pub struct Client {
    store: Arc<Store>,
    options: Options,
    boot_id: [u8; 16],
}

/// Why a stream was lost, and whether the control plane said when to return.
enum Lost {
    Transport(tonic::transport::Error),
    Status(Box<tonic::Status>),
    Timeout,
    Ended,
    Unread,
    Closed(Close),
    Shutdown,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(e) => write!(f, "cannot connect: {}", runtime::rpc::cause(e)),
            Self::Status(status) => write!(f, "{:?}: {}", status.code(), status.message()),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Ended => f.write_str("the control plane ended the stream"),
            Self::Unread => f.write_str("the control plane does not read"),
            Self::Closed(close) => close.fmt(f),
            Self::Shutdown => f.write_str("stopping"),
        }
    }
}

impl Client {
    /// A client with a new boot id. Does nothing before [`Client::run`].
    pub fn new(store: Arc<Store>, options: Options) -> Self {
        Self { store, options, boot_id: random::bytes() }
    }

    /// Connects, and connects again, until asked to stop. Inside a tokio runtime with timers.
    pub async fn run(self, shutdown: Shutdown) {
        let status = self.store.status().clone();
        let mut backoff = Backoff::default();
        while !shutdown.is_asked() {
            let mut welcomed_at = None;
            let lost = self.stream(&mut welcomed_at, &shutdown).await;
            status.connected.store(false, Ordering::Relaxed);
            let seed = random::seed();
            let wait = match welcomed_at {
                Some(at) => backoff.after_loss(clock::monotonic().saturating_sub(at), seed),
                None => {
                    status.connect_failures.fetch_add(1, Ordering::Relaxed);
                    backoff.after_failure(seed)
                }
            };
            let wait = match &lost {
                Lost::Shutdown => return,
                Lost::Closed(Close::GoAway { retry_after, .. }) => wait.max(*retry_after),
                Lost::Transport(_) | Lost::Status(_) | Lost::Timeout | Lost::Ended | Lost::Unread | Lost::Closed(_) => {
                    wait
                }
            };
            tracing::warn!(target = self.options.dialer.target(), reason = %lost, ?wait, "control plane lost; serving on");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.asked() => return,
            }
        }
    }

    async fn stream(&self, welcomed_at: &mut Option<Duration>, shutdown: &Shutdown) -> Lost {
        let opening = tokio::select! {
            opening = self.open() => opening,
            () = shutdown.asked() => return Lost::Shutdown,
        };
        let mut stream = match opening {
            Ok(stream) => stream,
            Err(lost) => return lost,
        };
        let lost = loop {
            let tick = stream.session.next_tick().saturating_sub(clock::monotonic());
            let steps = tokio::select! {
                // Answers first: a flood of updates must not hold acknowledgements back.
                biased;
                () = shutdown.asked() => break Lost::Shutdown,
                done = finished(&mut stream.applying), if stream.applying.is_some() => {
                    stream.applying = None;
                    stream.on_applied(done, &self.store)
                }
                () = tokio::time::sleep(tick) => {
                    let load = || proto::Heartbeat { sent_at_ms: clock::now_ms(), ..(self.options.load)() };
                    stream.session.on_tick(load, clock::monotonic())
                }
                message = stream.inbound.message() => match message {
                    Ok(Some(message)) => {
                        self.store.heard(clock::now_ms());
                        stream.session.on_message(message, clock::monotonic())
                    }
                    Ok(None) => break Lost::Ended,
                    Err(status) => break Lost::Status(Box::new(status)),
                },
            };
            if let Some(lost) = self.carry_out(&mut stream, steps, welcomed_at) {
                break lost;
            }
        };
        // The next Hello says what is held; that must not change under it.
        if let Some(applying) = stream.applying.take() {
            _ = applying.await;
        }
        lost
    }

    fn carry_out(&self, stream: &mut Stream, steps: Vec<Step>, welcomed_at: &mut Option<Duration>) -> Option<Lost> {
        let status = self.store.status();
        let mut steps = VecDeque::from(steps);
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Send(message) => {
                    if stream.outbox.try_send(message).is_err() {
                        return Some(Lost::Unread);
                    }
                }
                Step::Welcomed(lineage) => {
                    self.store.welcome(lineage);
                    *welcomed_at = Some(clock::monotonic());
                    status.connected.store(true, Ordering::Relaxed);
                    status.connects.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(target = self.options.dialer.target(), "connected to the control plane");
                }
                Step::Apply(update) => stream.waiting.push_back((*update, clock::monotonic())),
                Step::Refuse(update, rejection) => {
                    self.store.note_refused(&update, &rejection);
                    let done = Done { update: *update, received: clock::monotonic(), outcome: Err(rejection) };
                    steps.extend(stream.on_applied(Some(done), &self.store));
                }
                Step::Synchronised => self.store.mark_ready(),
                Step::Ignored => _ = status.ignored.fetch_add(1, Ordering::Relaxed),
                Step::Close(close) => return Some(Lost::Closed(close)),
            }
        }
        stream.apply_next(&self.store);
        None
    }

    async fn open(&self) -> Result<Stream, Lost> {
        let channel = self.options.dialer.connect().await.map_err(Lost::Transport)?;
        let (lineage, held) = self.store.held();
        let session = Session::new(lineage, &held, clock::monotonic());
        let (outbox, queued) = mpsc::channel(OUTBOX);
        // There is room: the queue is new.
        _ = outbox.try_send(self.hello(lineage.to_vec(), held));
        let mut client = DistributionClient::new(channel).max_decoding_message_size(limits::MAX_MESSAGE_BYTES);
        let opening = tokio::time::timeout(OPEN_TIMEOUT, client.sync(ReceiverStream::new(queued))).await;
        let inbound = opening.map_err(|_| Lost::Timeout)?.map_err(|status| Lost::Status(Box::new(status)))?;
        Ok(Stream { session, inbound: inbound.into_inner(), outbox, waiting: VecDeque::new(), applying: None })
    }

    fn hello(&self, lineage: Vec<u8>, held: Vec<proto::Held>) -> proto::NodeMessage {
        let hello = proto::Hello {
            node_id: self.options.node_id.clone(),
            boot_id: self.boot_id.to_vec(),
            version: self.options.version.clone(),
            schema_min: SCHEMA,
            schema_max: SCHEMA,
            limits: Some(limits::own()),
            labels: self.options.labels.clone(),
            lineage: if held.is_empty() { Vec::new() } else { lineage },
            held,
            degraded: self.store.status().degraded.load(Ordering::Relaxed),
            display_name: self.options.display_name.clone(),
        };
        proto::NodeMessage { message: Some(node_message::Message::Hello(hello)) }
    }
}

/// An open stream, and updates on their way into the store.
struct Stream {
    session: Session,
    inbound: tonic::Streaming<proto::ControlMessage>,
    outbox: mpsc::Sender<proto::NodeMessage>,
    /// At most as many as the session lets through.
    waiting: VecDeque<(proto::Update, Duration)>,
    applying: Option<JoinHandle<Done>>,
}

struct Done {
    update: proto::Update,
    received: Duration,
    outcome: Result<Applied, Rejection>,
}

impl Stream {
    /// Starts on the next update, off this thread: heartbeats go on while it is checked.
    fn apply_next(&mut self, store: &Arc<Store>) {
        if self.applying.is_some() {
            return;
        }
        if let Some((update, received)) = self.waiting.pop_front() {
            let store = store.clone();
            self.applying = Some(task::spawn_blocking("apply snapshot", move || {
                let outcome = store.apply(&update);
                Done { update, received, outcome }
            }));
        }
    }

    fn on_applied(&mut self, done: Option<Done>, store: &Store) -> Vec<Step> {
        let Some(Done { update, received, outcome }) = done else {
            // The store catches panics, so this is the runtime going away.
            return vec![Step::Close(Close::Violation("applying was given up"))];
        };
        let (revision, state_hash) = store.held_scope(&update.scope);
        let held = proto::Held { scope: update.scope.clone(), revision, state_hash: state_hash.as_bytes().to_vec() };
        let now = clock::monotonic();
        self.session.on_outcome(&update, outcome, held, now.saturating_sub(received), now)
    }
}

async fn finished(applying: &mut Option<JoinHandle<Done>>) -> Option<Done> {
    match applying {
        Some(handle) => handle.await.ok(),
        None => std::future::pending().await,
    }
}
