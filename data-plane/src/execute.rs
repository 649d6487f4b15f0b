//! Runs a plan: asks `router::retry` what comes next, makes the attempt, tells how it went. Decides
//! nothing itself.

use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};
use hyper::body::Incoming;
use providers::dialect::Carries;
use providers::openai_chat::stream::{End, Tap};
use providers::{Dialect, Endpoint, Head, Quirks, Usage};
use router::{Access, Candidate, Next, Slot};
use runtime::clock;
use shared::failure::{Deadline, Failure, FailureKind};
use shared::snapshot::Credential;
use tokio::time::{Instant, timeout_at};

use crate::exchange::Exchange;
use crate::headers::Trace;
use crate::upstream::{self, CallDeadlines, Reply, Returning, SliceBody};
use crate::usage::journal::Unwritable;

/// What is to be sent, whoever it goes to.
pub struct Job<'a> {
    /// The caller's wire format.
    pub dialect: Dialect,
    /// What was called.
    pub endpoint: Endpoint,
    /// What the body says.
    pub head: &'a Head<'a>,
    /// The caller's bytes.
    pub body: &'a Bytes,
}

/// A good answer.
pub enum Answered {
    /// All of it.
    Whole {
        /// The provider's bytes.
        body: Bytes,
        /// What it used.
        usage: Usage,
    },
    /// Its beginning.
    Stream(Box<Source>),
}

/// A stream whose first event is there.
pub struct Source {
    /// What may go to the caller already.
    pub ready: Vec<Bytes>,
    /// Reads along.
    pub tap: Tap,
    /// The rest; `None` when it has been read to its end.
    pub body: Option<Incoming>,
    /// Where the body comes from.
    pub connection: Returning,
    /// Longest pause between chunks.
    pub idle: Duration,
    /// The request's end.
    pub until: Instant,
}

/// Why there is no answer.
pub enum Unanswered {
    /// Nothing more is tried.
    Failed(Box<Failed>),
    /// It could not be written down that something would be tried.
    Unwritable(Unwritable),
}

/// The last failure.
pub struct Failed {
    /// What went wrong.
    pub failure: Failure,
    /// The provider's own error body, where the caller may see it.
    pub forward: Option<Bytes>,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, forward: None }
    }
}

/// Tries until there is an answer or nothing left to try.
pub async fn run(exchange: &mut Exchange, job: &Job<'_>) -> Result<Answered, Unanswered> {
    let until =
        Instant::from_std(clock::instant(exchange.arrival.at)) + Duration::from_millis(exchange.plan.limits.total_ms);
    let mut last: Option<Failed> = None;
    loop {
        let (seed, now) = (runtime::random::seed(), clock::monotonic());
        let (slot, now) = match exchange.next_attempt(now, seed) {
            Next::Try(slot) => (slot, now),
            Next::Wait { ms, slot } => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                let now = clock::monotonic();
                exchange.attempt_begins(slot, now);
                (slot, now)
            }
            Next::Stop(stop) => {
                tracing::debug!(request = %exchange.arrival.id, stop = stop.code(), "no further attempt");
                return Err(Unanswered::Failed(Box::new(last.unwrap_or_else(|| nothing_tried().into()))));
            }
        };
        match attempt(exchange, job, slot, Instant::from_std(clock::instant(now)), until).await {
            Ok(answered) => {
                exchange.attempt_answered();
                return Ok(answered);
            }
            Err(mut failed) => {
                if let Some(reason) = exchange.withdraw() {
                    return Err(Unanswered::Unwritable(reason));
                }
                exchange.hide_secret(job.dialect, &mut failed.failure);
                let (id, attempt) = (&exchange.arrival.id, exchange.attempts.count());
                tracing::info!(request = %id, attempt, failure = ?failed.failure, "an attempt failed");
                exchange.attempt_failed(&failed.failure);
                last = Some(failed);
            }
        }
    }
}

/// The plan holds at least one access, but its breaker may have shut since.
fn nothing_tried() -> Failure {
    Failure::new(FailureKind::Overloaded, "no provider of the model can be reached now")
}

async fn attempt(
    exchange: &mut Exchange,
    job: &Job<'_>,
    slot: Slot,
    now: Instant,
    until: Instant,
) -> Result<Answered, Failed> {
    let spare = std::mem::take(&mut exchange.spare);
    let Some((candidate, access)) = exchange.plan.at(slot) else { return Err(nothing_tried().into()) };
    let worker = &exchange.worker;
    let quirks = Quirks::from_names(candidate.provider.vendor.quirks.iter().map(|q| &**q));
    let deadlines = deadlines(candidate, &worker.node.limits.call, now, until);
    let outgoing = job.head.outgoing(job.body, &candidate.offering.upstream_model, quirks);
    let usage_added = outgoing.usage_added;
    let body = SliceBody::new(exchange.gate(), outgoing.slices, outgoing.len);
    let request = request(candidate, access, job, body, exchange.trace.as_ref(), spare)?;
    let mut reply = worker.upstream.call(candidate.base_url(), request, &deadlines).await?;
    let secret = access.credential.as_deref().and_then(Credential::secret);
    if reply.response.status() != http::StatusCode::OK {
        return Err(Box::pin(refused(job.dialect, reply, secret, deadlines.total)).await);
    }
    let carries = job.dialect.carries(reply.response.headers());
    let prompt_tokens = exchange.prompt_tokens;
    match (carries, job.head.stream) {
        (Carries::Json, false) => {
            exchange.spare = emptied(reply.response.headers_mut());
            let body = upstream::read_whole(reply.response.into_body(), worker.node.limits.reply_bytes, until).await?;
            reply.connection.keep();
            let facts = job.dialect.read_reply(job.endpoint, &body, quirks, prompt_tokens)?;
            Ok(Answered::Whole { body, usage: facts.usage })
        }
        (Carries::Events, true) => {
            exchange.spare = emptied(reply.response.headers_mut());
            let tap = job.dialect.tap(quirks, usage_added, job.head.choices);
            let idle = call_deadline(candidate.provider.timeouts.idle_ms, worker.node.limits.call.idle);
            begin_stream(reply, tap, idle, until).await
        }
        (Carries::Events, false) => Err(not_asked("a stream, which was not asked for").into()),
        (Carries::Json, true) => Err(not_asked("one body, where a stream was asked for").into()),
        (Carries::Foreign, _) => Err(not_asked("something that is neither JSON nor a stream").into()),
    }
}

/// Takes a map that is not needed any more, for its memory.
fn emptied(headers: &mut HeaderMap) -> HeaderMap {
    headers.clear();
    std::mem::take(headers)
}

fn not_asked(what: &str) -> Failure {
    Failure::new(FailureKind::BadReply, format!("the provider answered with {what}"))
}

/// Waits for the first event: until then another provider may still be asked.
async fn begin_stream(reply: Reply, mut tap: Tap, idle: Duration, until: Instant) -> Result<Answered, Failed> {
    let mut body = reply.response.into_body();
    let mut ready = Vec::new();
    while ready.is_empty() {
        match timeout_at(reply.first_token_by, upstream::next_data(&mut body)).await {
            Ok(Some(Ok(chunk))) => tap.feed(chunk, &mut ready)?,
            Ok(Some(Err(error))) => return Err(upstream::broken(&error).into()),
            Ok(None) => match tap.finish(true, &mut ready)? {
                End::Completed if !ready.is_empty() => {
                    let source = Source { ready, tap, body: None, connection: reply.connection, idle, until };
                    return Ok(Answered::Stream(Box::new(source)));
                }
                End::Completed | End::Cut => return Err(not_asked("an empty stream").into()),
            },
            Err(_) if reply.first_token_by >= until => return Err(upstream::too_late(Deadline::Total).into()),
            Err(_) => return Err(upstream::too_late(Deadline::FirstToken).into()),
        }
    }
    let source = Source { ready, tap, body: Some(body), connection: reply.connection, idle, until };
    Ok(Answered::Stream(Box::new(source)))
}

/// An answer that is no success.
async fn refused(dialect: Dialect, reply: Reply, secret: Option<&[u8]>, until: Instant) -> Failed {
    const ENOUGH: usize = 256 * 1024;
    let (parts, body) = reply.response.into_parts();
    let until = until.min(Instant::now() + Duration::from_secs(5));
    // What it means is in the status already; a body that does not come changes little.
    let body = match upstream::read_whole(body, ENOUGH, until).await {
        Ok(body) => {
            reply.connection.keep();
            body
        }
        Err(_) => Bytes::new(),
    };
    let now_ms = u64::try_from(clock::now_ms()).unwrap_or(0);
    let failure = dialect.classify(parts.status.as_u16(), &parts.headers, &body, secret, now_ms);
    let forward = dialect.may_forward(&failure, &body, secret).then_some(body);
    Failed { failure, forward }
}

fn deadlines(candidate: &Candidate, defaults: &Defaults, now: Instant, total: Instant) -> CallDeadlines {
    let own = &candidate.provider.timeouts;
    CallDeadlines {
        now,
        connect: call_deadline(own.connect_ms, defaults.connect),
        first_token: call_deadline(own.first_token_ms, defaults.first_token),
        total,
    }
}

fn call_deadline(own_ms: u64, default: Duration) -> Duration {
    if own_ms == 0 { default } else { Duration::from_millis(own_ms) }
}

/// Deadlines of a call where a provider sets none.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// TCP and TLS.
    pub connect: Duration,
    /// To the first byte of the answer.
    pub first_token: Duration,
    /// Between chunks of a stream.
    pub idle: Duration,
}

/// Built from typed parts only: nothing of the caller's head is copied but its trace. `headers` is
/// empty.
fn request(
    candidate: &Candidate,
    access: &Access,
    job: &Job<'_>,
    body: SliceBody,
    trace: Option<&Trace>,
    mut headers: HeaderMap,
) -> Result<Request<SliceBody>, Failure> {
    let url = candidate.base_url();
    let vendor = &candidate.provider.vendor;
    let path = vendor.endpoints.get(job.endpoint.name()).map(|path| &**path).unwrap_or_default();
    let bad = |what: &str| Failure::new(FailureKind::Connect, format!("the provider's {what} cannot be sent"));
    headers.insert(header::HOST, url.host.clone());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let accept = if job.head.stream { "text/event-stream" } else { "application/json" };
    headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("pointsman/", env!("CARGO_PKG_VERSION"))));
    if let Some(value) = access.credential.as_deref().and_then(|c| c.header.clone()) {
        headers.insert(HeaderName::clone(&vendor.auth_header), value);
    }
    if let Some(trace) = trace {
        trace.forward(&mut headers);
    }
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    let target = Bytes::from([&*url.path, path].concat());
    *request.uri_mut() = PathAndQuery::from_maybe_shared(target).map_err(|_| bad("path"))?.into();
    *request.headers_mut() = headers;
    Ok(request)
}
