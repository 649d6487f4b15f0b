//! The reporter over a real gRPC stream, against a ledger that loses answers, breaks streams, is
//! restored from a backup, or knows a copy of the journal.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use runtime::rpc::Dialer;
use runtime::shutdown;
use shared::proto;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::server::StreamingService;
use tonic::{Request, Response, Status, Streaming};

use super::folder::{AtOnce, Folder, Opened, begun, done, inline};
use super::ledger::Ledger;
use crate::usage::reporter::{Options, Reporter};

/// The ledger, and how it misbehaves: after how many messages a stream breaks, and whether the last
/// answer before that is lost.
#[derive(Clone)]
struct Server {
    ledger: Arc<Mutex<Ledger>>,
    break_after: Arc<Mutex<Vec<usize>>>,
}

type Answers =
    Pin<Box<dyn Future<Output = Result<Response<ReceiverStream<Result<proto::UsageReply, Status>>>, Status>> + Send>>;

impl StreamingService<proto::UsageMessage> for Server {
    type Response = proto::UsageReply;
    type ResponseStream = ReceiverStream<Result<proto::UsageReply, Status>>;
    type Future = Answers;

    fn call(&mut self, request: Request<Streaming<proto::UsageMessage>>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            let (answers, stream) = mpsc::channel(16);
            let limit = server.break_after.lock().expect("lock").pop().unwrap_or(usize::MAX);
            let mut inbound = request.into_inner();
            runtime::task::spawn("test ledger", async move {
                let mut count = 0;
                while let Ok(Some(message)) = inbound.message().await {
                    let reply = server.ledger.lock().expect("lock").on_message(message);
                    count += 1;
                    // Applied, and the answer lost with the stream.
                    if count > limit {
                        _ = answers.send(Err(Status::unavailable("on purpose"))).await;
                        return;
                    }
                    if answers.send(Ok(reply)).await.is_err() {
                        return;
                    }
                }
            });
            Ok(Response::new(ReceiverStream::new(stream)))
        })
    }
}

impl tonic::server::NamedService for Server {
    const NAME: &'static str = "pointsman.v1.Usage";
}

impl tower_service::Service<http::Request<tonic::body::Body>> for Server {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::default());
            Ok(grpc.streaming(service, request).await)
        })
    }
}

impl Server {
    fn new(ledger: Ledger, break_after: &[usize]) -> Self {
        Self { ledger: Arc::new(Mutex::new(ledger)), break_after: Arc::new(Mutex::new(break_after.to_vec())) }
    }

    /// Runs a reporter over these journals until everything is confirmed, then stops it.
    async fn drain(&self, opened: &Opened) {
        let (dialer, ends) = Dialer::in_process();
        let serving = tonic::transport::Server::builder()
            .add_service(self.clone())
            .serve_with_incoming(ReceiverStream::new(ends).map(Ok::<_, std::io::Error>));
        let serving = runtime::task::spawn("test server", serving);
        let options = Options { poll: Duration::from_millis(5), drain: Duration::from_secs(20) };
        let reporter = Reporter::new(&opened.spools, dialer, options);
        let status = reporter.status();
        let (trigger, shutdown) = shutdown::channel();
        let running = runtime::task::spawn("reporter", reporter.run(shutdown));
        // Asked to stop, it still reports everything.
        trigger.fire();
        running.await.expect("no panic");
        assert_eq!(status.unacked(), 0);
        assert_eq!(status.oldest_unacked(runtime::clock::monotonic()), Duration::ZERO);
        serving.abort();
    }

    fn state(&self) -> Ledger {
        self.ledger.lock().expect("lock").clone()
    }
}

fn settle(opened: &Opened, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let writer = &opened.writers[n as usize % opened.writers.len()];
        writer.intent(&begun(n)).expect("room");
        writer.settle(&done(n));
    }
}

#[tokio::test]
async fn everything_is_reported_once_over_broken_streams() {
    let folder = Folder::new();
    let opened = folder.open_for(3, &inline(2000));
    let server = Server::new(Ledger::default(), &[7, 3, 5, 1, 0]);
    settle(&opened, 0..5000);
    server.drain(&opened).await;
    let state = server.state();
    assert!(state.applied.iter().copied().eq(0..5000));
    assert_eq!((state.duplicates, state.journals(), state.gaps), (0, 3, 0));
    let segments = folder.segments().len();
    assert!(segments <= 2, "confirmed segments are deleted, {segments} are left");
}

#[tokio::test]
async fn a_restart_goes_on_where_the_ledger_is() {
    let folder = Folder::new();
    let server = Server::new(Ledger::default(), &[]);
    for start in 0..4 {
        let opened = folder.open(&inline(2000));
        settle(&opened, start * 10..start * 10 + 10);
        server.drain(&opened).await;
        // The mark is only written before trimming: the ledger is asked.
    }
    let state = server.state();
    assert_eq!((state.applied.len(), state.duplicates, state.journals()), (40, 0, 1));
}

/// F22: the copy begins a new incarnation and reports what only it has.
#[tokio::test]
async fn a_copied_folder_reports_under_a_new_name() {
    let folder = Folder::new();
    let server = Server::new(Ledger::default(), &[]);
    let original = folder.open(&inline(1 << 20));
    settle(&original, 0..10);
    server.drain(&original).await;
    let folder_of_copy = folder.copy();
    let copy = folder_of_copy.open(&inline(1 << 20));
    settle(&original, 10..15);
    settle(&copy, 20..29);
    server.drain(&original).await;
    server.drain(&copy).await;
    let state = server.state();
    assert!(state.applied.iter().copied().eq((0..15).chain(20..29)));
    assert_eq!((state.journals(), state.duplicates), (2, 10));
}

/// F30: the ledger forgot what it had confirmed. What is still held comes again.
#[tokio::test]
async fn a_ledger_restored_from_a_backup_gets_what_is_left() {
    let folder = Folder::new();
    let opened = folder.open(&inline(1000));
    let server = Server::new(Ledger::default(), &[]);
    settle(&opened, 0..10);
    server.drain(&opened).await;
    let backup = server.state();
    settle(&opened, 10..60);
    server.drain(&opened).await;
    settle(&opened, 60..70);
    let restored = Server::new(backup, &[]);
    restored.drain(&opened).await;
    let state = restored.state();
    assert!((60..70).all(|n| state.applied.contains(&n)));
    assert_eq!((state.gaps, state.journals()), (1, 2));
    let held_again = state.applied.len();
    assert!((20..70).contains(&held_again), "{held_again}");
}
