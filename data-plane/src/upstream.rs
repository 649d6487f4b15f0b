//! Calls to providers over this thread's own HTTP/1.1 connections.
//!
//! It opens connections (resolve, check the address, TCP, TLS), keeps idle ones, sends a request
//! and gives back the head of the answer. It follows no redirect, reads no proxy variable and
//! decides nothing: what went wrong is a [`Failure`], what to do about it is `router::retry`'s.

mod body;
mod connect;
mod resolve;

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use foldhash::HashMap;
use futures_util::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use shared::failure::{Deadline, Failure, FailureKind};
use shared::snapshot::BaseUrl;
use tokio::time::{Instant, timeout_at};

use crate::egress::Egress;
use crate::gather::{Gather, TooLarge};
pub use body::SliceBody;
use connect::Connector;

/// Bounds of the pool.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// Idle connections kept per host.
    pub idle_per_host: usize,
    /// How long an idle connection is kept, and up to two rounds of [`Upstream::prune`]. Together below
    /// the usual 60 s of providers' own balancers, so that we are the side that closes.
    pub idle_for: Duration,
}

/// Until when each part of a call must have happened.
#[derive(Debug, Clone, Copy)]
pub struct CallDeadlines {
    /// When the call begins.
    pub now: Instant,
    /// TCP and TLS.
    pub connect: Duration,
    /// From sending to the head of the answer, and its first bytes.
    pub first_token: Duration,
    /// The whole request.
    pub total: Instant,
}

/// This thread's connections to providers.
pub struct Upstream {
    connector: Connector,
    limits: PoolLimits,
    idle: Rc<RefCell<Pool>>,
}

/// By [`BaseUrl::origin`].
type Pool = HashMap<Arc<str>, Vec<Idle>>;

struct Idle {
    sender: SendRequest<SliceBody>,
    /// When [`Upstream::prune`] first saw it idle.
    since: Option<Instant>,
}

/// The head of an answer. Its connection goes back to the pool when the body was read to its end,
/// and is closed when this is dropped earlier: that is how a call is cancelled.
pub struct Reply {
    /// Status, headers, body.
    pub response: Response<Incoming>,
    /// Give it back with [`Returning::keep`] once the body ended.
    pub connection: Returning,
    /// Until when its first event must be there.
    pub first_token_by: Instant,
}

/// A connection that is in use.
pub struct Returning {
    sender: Option<SendRequest<SliceBody>>,
    origin: Arc<str>,
    pool: Rc<RefCell<Pool>>,
    limits: PoolLimits,
}

impl Returning {
    /// The answer was read to its end: keep the connection for the next call.
    pub fn keep(mut self) {
        let Some(sender) = self.sender.take() else { return };
        if sender.is_closed() {
            return;
        }
        let mut pool = self.pool.borrow_mut();
        let idle = Idle { sender, since: None };
        match pool.get_mut(&self.origin) {
            Some(others) if others.len() < self.limits.idle_per_host => others.push(idle),
            Some(_) => {}
            None => _ = pool.insert(self.origin.clone(), vec![idle]),
        }
    }
}

impl Upstream {
    /// An empty pool.
    pub fn new(tls: Arc<rustls::ClientConfig>, egress: Egress, limits: PoolLimits) -> Self {
        Self { connector: Connector::new(tls, egress), limits, idle: Rc::default() }
    }

    /// Sends one request and waits for the head of the answer. A kept connection that turns out
    /// closed before it took the request is replaced silently; one that breaks afterwards is a
    /// failure, as the provider may have begun to work.
    pub async fn call(
        &self,
        to: &BaseUrl,
        request: Request<SliceBody>,
        deadlines: &CallDeadlines,
    ) -> Result<Reply, Failure> {
        let mut request = request;
        loop {
            let (mut sender, fresh) = match self.take_idle(&to.origin) {
                Some(sender) => (sender, false),
                None => {
                    // A connection takes longer than a write, and would be opened for nothing.
                    request
                        .body_mut()
                        .pass_gate()
                        .map_err(|refused| Failure::new(FailureKind::Reset, refused.to_string()))?;
                    // Rare and large: boxed, so that every other request's future stays small.
                    (Box::pin(self.connect(to, deadlines)).await?, true)
                }
            };
            let now = if fresh { Instant::now() } else { deadlines.now };
            let until = deadlines.total.min(now + deadlines.first_token);
            let sent = match timeout_at(until, sender.try_send_request(request)).await {
                Ok(sent) => sent,
                Err(_) => return Err(late(until == deadlines.total, Deadline::FirstToken)),
            };
            match sent {
                Ok(response) => {
                    let connection = self.returning(sender, to.origin.clone());
                    return Ok(Reply { response, connection, first_token_by: until });
                }
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) if !fresh => request = unsent,
                    Some(_) | None => return Err(broken(failed.error())),
                },
            }
        }
    }

    /// Closes connections that were idle for too long.
    pub fn prune(&self) {
        let mut pool = self.idle.borrow_mut();
        let now = Instant::now();
        pool.retain(|_, idle| {
            idle.retain_mut(|i| !i.sender.is_closed() && now - *i.since.get_or_insert(now) < self.limits.idle_for);
            !idle.is_empty()
        });
    }

    fn take_idle(&self, origin: &str) -> Option<SendRequest<SliceBody>> {
        let mut pool = self.idle.borrow_mut();
        let idle = pool.get_mut(origin)?;
        // The last one used is the one most likely alive. How long it has been idle is `prune`'s question.
        while let Some(candidate) = idle.pop() {
            if candidate.sender.is_ready() {
                return Some(candidate.sender);
            }
        }
        None
    }

    async fn connect(&self, to: &BaseUrl, deadlines: &CallDeadlines) -> Result<SendRequest<SliceBody>, Failure> {
        let until = deadlines.total.min(Instant::now() + deadlines.connect);
        match timeout_at(until, self.connector.connect(to.scheme, &to.authority)).await {
            Ok(connected) => connected,
            Err(_) => Err(late(until == deadlines.total, Deadline::Connect)),
        }
    }

    fn returning(&self, sender: SendRequest<SliceBody>, origin: Arc<str>) -> Returning {
        Returning { sender: Some(sender), origin, pool: self.idle.clone(), limits: self.limits }
    }
}

fn late(total: bool, deadline: Deadline) -> Failure {
    let deadline = if total { Deadline::Total } else { deadline };
    let message = match deadline {
        Deadline::Connect => "the provider did not accept a connection in time",
        Deadline::FirstToken => "the provider did not begin to answer in time",
        Deadline::Idle => "the provider stopped sending",
        Deadline::Total => "the request took longer than it may",
    };
    Failure::new(FailureKind::Timeout(deadline), message)
}

/// A deadline that ran out while an answer was read.
pub fn too_late(deadline: Deadline) -> Failure {
    late(false, deadline)
}

/// A connection that broke.
pub fn broken(error: &hyper::Error) -> Failure {
    let kind = if error.is_parse() { FailureKind::BadReply } else { FailureKind::Reset };
    let message = match kind {
        FailureKind::BadReply => "the provider's answer is not HTTP",
        _ => "the connection to the provider broke",
    };
    Failure::new(kind, message).context(format!("{error:?}"))
}

/// Reads a whole body, at most `limit` bytes.
pub async fn read_whole(body: Incoming, limit: usize, until: Instant) -> Result<Bytes, Failure> {
    let mut body = body;
    let too_large =
        |TooLarge| Failure::new(FailureKind::BadReply, format!("the provider's answer is larger than {limit} bytes"));
    let mut gather = Gather::new(limit, http_body::Body::size_hint(&body).lower()).map_err(too_large)?;
    while !http_body::Body::is_end_stream(&body) {
        // Mostly it came with the head, and no timer need be set.
        let next = match next_data(&mut body).now_or_never() {
            Some(next) => Ok(next),
            None => timeout_at(until, next_data(&mut body)).await,
        };
        match next {
            Ok(Some(Ok(piece))) => gather.push(piece).map_err(too_large)?,
            Ok(Some(Err(error))) => return Err(broken(&error)),
            Ok(None) => break,
            Err(_) => return Err(late(false, Deadline::Total)),
        }
    }
    Ok(gather.finish())
}

/// The next data frame; trailers are skipped.
pub fn next_data<B>(body: &mut B) -> impl Future<Output = Option<Result<Bytes, B::Error>>>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    std::future::poll_fn(move |cx| poll_data(Pin::new(&mut *body), cx))
}

/// As [`next_data`], for bodies that are polled.
pub fn poll_data<B>(mut body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, B::Error>>>
where
    B: http_body::Body<Data = Bytes>,
{
    loop {
        match body.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => return Poll::Ready(Some(Ok(data))),
                Err(_) => continue,
            },
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => return Poll::Pending,
        }
    }
}
