//! The Usage service: one stream per node, every message answered in its order.

use std::sync::Arc;

use runtime::shutdown::Shutdown;
use shared::ids::NodeId;
use shared::proto::{self, usage_message, usage_reply::Message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Ingest, IngestError};
use crate::publish::authority::Peer;
use crate::rpc::usage_server::Usage;

/// Answers that may wait for a slow node; then its next message waits.
const ANSWERS: usize = 16;

/// Serves nodes. The listener must have put the [`Peer`] into the request's extensions.
#[derive(Clone)]
pub struct UsageService {
    ingest: Ingest,
    is_denied: Arc<dyn Fn(NodeId) -> bool + Send + Sync>,
    shutdown: Shutdown,
}

impl UsageService {
    /// Over this writer. `is_denied` is asked at every message: a revoked node may report no more.
    /// Streams end when `shutdown` asks, between two messages.
    pub fn new(ingest: Ingest, is_denied: impl Fn(NodeId) -> bool + Send + Sync + 'static, shutdown: Shutdown) -> Self {
        Self { ingest, is_denied: Arc::new(is_denied), shutdown }
    }

    fn admit(&self, node: NodeId) -> Result<(), Status> {
        if (self.is_denied)(node) {
            return Err(Status::permission_denied("this node was revoked"));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Usage for UsageService {
    type ReportStream = ReceiverStream<Result<proto::UsageReply, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<proto::UsageMessage>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let node = request.extensions().get::<Peer>().and_then(|peer| peer.node);
        let node = node.ok_or_else(|| Status::unauthenticated("the connection names no node"))?;
        self.admit(node)?;
        let (answers, stream) = mpsc::channel(ANSWERS);
        let (service, inbound) = (self.clone(), request.into_inner());
        runtime::task::spawn("usage stream", async move {
            if let Err(status) = serve(&service, node, inbound, &answers).await {
                // The node may be gone already.
                _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

async fn serve(
    service: &UsageService,
    node: NodeId,
    mut inbound: Streaming<proto::UsageMessage>,
    answers: &mpsc::Sender<Result<proto::UsageReply, Status>>,
) -> Result<(), Status> {
    let ingest = &service.ingest;
    loop {
        let message = tokio::select! {
            message = inbound.message() => message?,
            () = service.shutdown.asked() => return Err(Status::unavailable("the control plane stops")),
        };
        let Some(message) = message else { return Ok(()) };
        service.admit(node)?;
        let answer = match message.message {
            Some(usage_message::Message::Open(open)) => ingest.open(node, &open).await,
            Some(usage_message::Message::Batch(batch)) => ingest.apply(node, &batch).await,
            // From a newer node; it will see that it gets no answer.
            None => continue,
        };
        let answer = answer.map_err(|error| status(node, &error))?;
        let fenced = matches!(&answer.message, Some(Message::Rejected(rejected)) if rejected.code == "fenced");
        if answers.send(Ok(answer)).await.is_err() {
            return Ok(());
        }
        if fenced {
            return Err(Status::aborted("a newer stream reports this journal"));
        }
    }
}

/// What a node learns: whether coming again helps, and nothing of the database.
fn status(node: NodeId, error: &IngestError) -> Status {
    match error {
        IngestError::Database(error) => {
            tracing::warn!(%node, %error, "usage could not be applied; the node will send it again");
            Status::unavailable("the ledger cannot be written")
        }
        IngestError::Malformed(what) => Status::invalid_argument(*what),
        IngestError::Damaged(what) => {
            tracing::error!(%node, what, "usage could not be applied");
            Status::internal("the ledger cannot be written")
        }
    }
}
