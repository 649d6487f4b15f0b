//! Brings the journals' finals to the ledger, each exactly once. Runs on the configuration thread; no
//! request ever waits for it.
//!
//! It reads what is on disk and durable, whether written a moment ago or before a crash, and sends it
//! again until the ledger confirms it. Confirmed segments are deleted. It does not look into records.

mod lane;
mod metrics;
mod status;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use runtime::backoff::Backoff;
use runtime::rpc::Dialer;
use runtime::shutdown::Shutdown;
use runtime::{clock, random};
use shared::proto::{self, usage_message, usage_reply};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use self::lane::{Lane, Verdict};
pub use self::metrics::register;
pub use self::status::Status;
use super::journal::Spool;
use crate::rpc::usage_client::UsageClient;

/// How long opening the stream may take, beyond connecting.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long batches may stay unanswered before the stream is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer that is read.
const MAX_REPLY_BYTES: usize = 64 * 1024;

/// Times of the reporter.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often the journals are looked at when nothing else happens.
    pub poll: Duration,
    /// How long after being asked to stop it still reports.
    pub drain: Duration,
}

impl Default for Options {
    /// 250 ms, 5 s.
    fn default() -> Self {
        Self { poll: Duration::from_millis(250), drain: Duration::from_secs(5) }
    }
}

/// Reports all journals of a node over one stream.
pub struct Reporter {
    lanes: Vec<Lane>,
    dialer: Dialer,
    options: Options,
    status: Arc<Status>,
}

/// Why a stream ended.
enum Lost {
    Transport(tonic::transport::Error),
    Status(Box<tonic::Status>),
    Timeout,
    Ended,
    Fenced,
    Drained,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(e) => write!(f, "cannot connect: {}", runtime::rpc::cause(e)),
            Self::Status(status) => write!(f, "{:?}: {}", status.code(), status.message()),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Ended => f.write_str("the control plane ended the stream"),
            Self::Fenced => f.write_str("another stream reports the same journal"),
            Self::Drained => f.write_str("stopping"),
        }
    }
}

impl Reporter {
    /// For these journals. Does nothing before [`Reporter::run`].
    pub fn new(spools: &[Arc<Spool>], dialer: Dialer, options: Options) -> Self {
        let status = Arc::new(Status::new(spools));
        let lanes = spools.iter().map(|spool| Lane::new(spool.clone(), status.clone())).collect();
        Self { lanes, dialer, options, status }
    }

    /// Counters and ages, for metrics and heartbeats.
    pub fn status(&self) -> Arc<Status> {
        self.status.clone()
    }

    /// Connects, and connects again, until asked to stop; then reports what is left for at most
    /// [`Options::drain`]. Inside a tokio runtime with timers.
    pub async fn run(mut self, shutdown: Shutdown) {
        let drained = {
            let (shutdown, drain) = (shutdown.clone(), self.options.drain);
            async move {
                shutdown.asked().await;
                tokio::time::sleep(drain).await;
            }
        };
        let ages = watch_ages(self.status.clone(), self.options.poll);
        tokio::select! {
            () = self.report(&shutdown) => {}
            () = drained => {}
            () = ages => {}
        }
        let left = self.status.unacked();
        self.status.connected.store(false, Ordering::Relaxed);
        if left > 0 {
            tracing::warn!(records = left, "stopped before all usage was reported; it is kept for the next start");
        }
    }

    async fn report(&mut self, shutdown: &Shutdown) {
        let mut backoff = Backoff::default();
        loop {
            let mut opened_at = None;
            let lost = self.stream(&mut opened_at, shutdown).await;
            self.status.connected.store(false, Ordering::Relaxed);
            if matches!(lost, Lost::Drained) {
                return;
            }
            let seed = random::seed();
            let wait = match opened_at {
                Some(at) => backoff.after_loss(clock::monotonic().saturating_sub(at), seed),
                None => backoff.after_failure(seed),
            };
            tracing::warn!(target = self.dialer.target(), reason = %lost, ?wait, "usage reports interrupted; usage is kept");
            tokio::time::sleep(wait).await;
        }
    }

    /// One stream, from connecting to its loss.
    async fn stream(&mut self, opened_at: &mut Option<Duration>, shutdown: &Shutdown) -> Lost {
        let channel = match self.dialer.connect().await {
            Ok(channel) => channel,
            Err(error) => return Lost::Transport(error),
        };
        // Every lane may have an open and a full window waiting.
        let (outbox, queued) = mpsc::channel(self.lanes.len().max(1) * (lane::WINDOW + 1));
        let mut client = UsageClient::new(channel).max_decoding_message_size(MAX_REPLY_BYTES);
        let opening = tokio::time::timeout(OPEN_TIMEOUT, client.report(ReceiverStream::new(queued))).await;
        let mut inbound = match opening {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Lost::Status(Box::new(status)),
            Err(_) => return Lost::Timeout,
        };
        *opened_at = Some(clock::monotonic());
        self.status.connected.store(true, Ordering::Relaxed);
        self.lanes.iter_mut().for_each(Lane::disconnected);
        let mut heard = clock::monotonic();
        loop {
            if shutdown.is_asked() && self.status.unacked() == 0 {
                return Lost::Drained;
            }
            if !self.send(&outbox) {
                return Lost::Ended;
            }
            let waiting = self.lanes.iter().any(Lane::is_waiting);
            tokio::select! {
                reply = inbound.message() => match reply {
                    Ok(Some(reply)) => {
                        heard = clock::monotonic();
                        if self.on_reply(reply) == Verdict::Fenced {
                            return Lost::Fenced;
                        }
                    }
                    Ok(None) => return Lost::Ended,
                    Err(status) => return Lost::Status(Box::new(status)),
                },
                () = tokio::time::sleep(self.options.poll) => {
                    if !waiting {
                        heard = clock::monotonic();
                    } else if clock::monotonic().saturating_sub(heard) > ANSWER_TIMEOUT {
                        return Lost::Timeout;
                    }
                }
            }
        }
    }

    /// Sends whatever the lanes have to say. False when the stream is gone.
    fn send(&mut self, outbox: &mpsc::Sender<proto::UsageMessage>) -> bool {
        for lane in &mut self.lanes {
            while outbox.capacity() > 0 {
                let Some(message) = lane.next_message() else { break };
                if outbox.try_send(message).is_err() {
                    return false;
                }
            }
        }
        !outbox.is_closed()
    }

    fn on_reply(&mut self, reply: proto::UsageReply) -> Verdict {
        use usage_reply::Message;
        let Some(message) = reply.message else { return Verdict::GoOn };
        let incarnation = match &message {
            Message::Opened(m) => &m.incarnation,
            Message::Accepted(m) => &m.incarnation,
            Message::Resend(m) => &m.incarnation,
            Message::Rejected(m) => &m.incarnation,
        };
        // An answer for an incarnation given up in between belongs to no lane.
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.is_called(incarnation)) else { return Verdict::GoOn };
        match message {
            Message::Opened(m) => lane.on_opened(&m),
            Message::Accepted(m) => lane.on_accepted(&m),
            Message::Resend(m) => lane.on_resend(&m),
            Message::Rejected(m) => lane.on_rejected(&m),
        }
    }
}

/// Notes when finals appear, so that the age of the oldest unreported one is known also while nobody
/// can be reached.
async fn watch_ages(status: Arc<Status>, every: Duration) {
    loop {
        status.note(clock::monotonic());
        tokio::time::sleep(every).await;
    }
}

fn message(message: usage_message::Message) -> proto::UsageMessage {
    proto::UsageMessage { message: Some(message) }
}
