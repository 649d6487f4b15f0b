//! The life of one request, on one screen: route, identify, read, decide, carry out, answer.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use providers::{Dialect, Endpoint, Head};
use router::{Decision, Facts, Now, Permission};
use runtime::clock;
use shared::proto::Outcome;
use shared::snapshot::{ApiKey, Snapshot, Workspace};

use crate::client_io::{Activity, InRequest};
use crate::drain::{InFlight, Phase};
use crate::exchange::{Arrival, Asked, Exchange};
use crate::execute::{self, Answered, Failed, Unanswered};
use crate::headers;
use crate::identify::identify;
use crate::ingress::{self, Problem, Route, models, read};
use crate::relay::Relay;
use crate::reply::ReplyBody;
use crate::worker::Worker;

/// The wire format of this port's paths.
const DIALECT: Dialect = Dialect::OpenAi;

/// Answers one request, whatever it is. The connection counts as busy until the answer's last byte.
pub async fn serve(
    worker: Rc<Worker>,
    peer: IpAddr,
    request: Request<Incoming>,
    activity: Activity,
) -> Response<ReplyBody> {
    let arrival = Arrival::begin();
    let running = activity.request();
    let head_only = request.method() == Method::HEAD;
    // A defect ends one request, not the process: the guards inside settle as the stack unwinds.
    let answered = AssertUnwindSafe(answer(&worker, peer, arrival, request)).catch_unwind().await;
    let answered = answered.unwrap_or_else(|panic| {
        let text = runtime::task::panic_text(&*panic);
        tracing::error!(request = %arrival.id, panic = text, "a request panicked");
        Err(Problem::internal().into())
    });
    let mut response = match answered {
        Ok(Reply::Whole { status, headers, body }) => whole(status, headers, body, running),
        Ok(Reply::Stream { headers, relay }) => {
            let mut response = Response::new(ReplyBody::stream(relay, running));
            *response.headers_mut() = headers;
            response
        }
        Err(Refused { problem, mut headers }) => {
            worker.node.counters.refused(problem.code);
            problem.headers(&mut headers);
            let body = if head_only { Bytes::new() } else { problem.body(DIALECT) };
            whole(problem.status, headers, body, running)
        }
    };
    headers::identify(response.headers_mut(), &arrival.id);
    // A kept connection would be closed a moment later, perhaps under the caller's next request.
    if worker.node.drain.phase() > Phase::Open {
        headers::close(response.headers_mut());
    }
    response
}

/// An answer without what every answer has.
enum Reply {
    Whole { status: StatusCode, headers: HeaderMap, body: Bytes },
    Stream { headers: HeaderMap, relay: Box<Relay> },
}

/// A problem, and what is known of the route it took.
struct Refused {
    problem: Problem,
    headers: HeaderMap,
}

impl<P: Into<Problem>> From<P> for Refused {
    fn from(problem: P) -> Self {
        Self { problem: problem.into(), headers: HeaderMap::new() }
    }
}

async fn answer(
    worker: &Rc<Worker>,
    peer: IpAddr,
    arrival: Arrival,
    request: Request<Incoming>,
) -> Result<Reply, Refused> {
    let route = ingress::route(&request)?;
    if route == Route::Root {
        let body = Bytes::from_static(b"{\"service\":\"pointsman\"}");
        return Ok(Reply::Whole { status: StatusCode::OK, headers: headers::json(HeaderMap::new()), body });
    }
    if !worker.node.store.is_ready() {
        return Err(Problem::no_snapshot().into());
    }
    let snapshot = worker.node.store.load();
    let (key, workspace) = identify(request.headers(), &snapshot)?;
    let permission = match route {
        Route::Call(_) => Permission::Inference,
        Route::ListModels | Route::GetModel | Route::Root => Permission::ListModels,
    };
    let now = arrival.clocks_at(arrival.at);
    let config_age_ms = worker.node.store.age_ms(now.wall_ms);
    router::admit(&key, &workspace, permission, peer, config_age_ms, now)?;
    match route {
        Route::Call(endpoint) => {
            let caller = Caller { key: &key, workspace: &workspace, peer, config_age_ms };
            let (parts, body) = request.into_parts();
            Box::pin(call(worker, &snapshot, caller, arrival, endpoint, parts.headers, body)).await
        }
        Route::ListModels | Route::Root => Ok(json(models::list(&workspace, &key, now))),
        Route::GetModel => {
            let name = ingress::model_name(request.uri().path());
            let found = name.as_deref().and_then(|name| models::get(&workspace, &key, name, now));
            found.map(json).ok_or_else(|| models::missing(name.as_deref().unwrap_or_default()).into())
        }
    }
}

struct Caller<'a> {
    key: &'a Arc<ApiKey>,
    workspace: &'a Arc<Workspace>,
    peer: IpAddr,
    config_age_ms: u64,
}

async fn call(
    worker: &Rc<Worker>,
    snapshot: &Snapshot,
    caller: Caller<'_>,
    arrival: Arrival,
    endpoint: Endpoint,
    headers: HeaderMap,
    body: Incoming,
) -> Result<Reply, Refused> {
    if worker.node.drain.in_flight() >= worker.node.limits.requests_in_flight {
        return Err(Problem::too_busy().into());
    }
    // From here on it holds memory and time: bodies that are being read count too.
    let in_flight = worker.node.drain.enter();
    read::check_headers(&headers, body.size_hint().exact(), &worker.node.limits.body)?;
    let body = read::whole(body, &worker.node.limits.body).await?;
    let head = DIALECT.read_request(endpoint, &body)?;
    let mut exchange = decide(worker, snapshot, &caller, arrival, endpoint, &head, headers, in_flight)?;
    let job = execute::Job { dialect: DIALECT, endpoint, head: &head, body: &body };
    match Box::pin(execute::run(&mut exchange, &job)).await {
        Ok(Answered::Whole { body, usage }) => {
            let cost = exchange.settle_together(Outcome::Completed, 200, "", Some(&usage)).await;
            let mut headers = headers::json(std::mem::take(&mut exchange.spare));
            headers::routed(&mut headers, &exchange, cost);
            Ok(Reply::Whole { status: StatusCode::OK, headers, body })
        }
        Ok(Answered::Stream(source)) => {
            let mut headers = headers::event_stream(std::mem::take(&mut exchange.spare));
            headers::routed(&mut headers, &exchange, None);
            exchange.commit();
            Ok(Reply::Stream { headers, relay: Box::new(Relay::new(exchange, *source, DIALECT)) })
        }
        Err(Unanswered::Failed(failed)) => Err(refuse(exchange, *failed)),
        Err(Unanswered::Unwritable(reason)) => Err(Problem::unwritable(reason).into()),
    }
}

/// Routes a request that is read, and begins it when there is somewhere to go.
#[expect(clippy::too_many_arguments, reason = "all that is known of a request; each is used once")]
fn decide(
    worker: &Rc<Worker>,
    snapshot: &Snapshot,
    caller: &Caller<'_>,
    arrival: Arrival,
    endpoint: Endpoint,
    head: &Head<'_>,
    mut headers: HeaderMap,
    in_flight: InFlight,
) -> Result<Box<Exchange>, Refused> {
    let facts = facts(caller, endpoint, head, worker.node.limits.total_ms);
    let now = arrival.now();
    let plan = match router::plan(snapshot, &facts, &worker.health.lock(), now, runtime::random::seed()) {
        Decision::Plan(plan) => plan,
        Decision::Refusal(refusal) => return Err(refusal.into()),
    };
    let trace = headers::trace(&headers);
    headers.clear();
    let asked = Asked {
        arrival,
        key: caller.key,
        endpoint: endpoint.name(),
        identity: head.user.as_deref().unwrap_or_default(),
        stream: head.stream,
        prompt_tokens: head.prompt_tokens_estimate,
        trace,
        spare: headers,
    };
    Ok(Exchange::begin(worker, plan, asked, now, in_flight).map_err(Problem::unwritable)?)
}

/// Nothing more is tried.
fn refuse(mut exchange: Box<Exchange>, failed: Failed) -> Refused {
    let mut problem = Problem::from(&failed.failure);
    if failed.forward.is_some() {
        problem.body = failed.forward;
    }
    exchange.settle(Outcome::Failed, problem.status.as_u16(), problem.code, None);
    let mut headers = HeaderMap::new();
    headers::routed(&mut headers, &exchange, None);
    Refused { problem, headers }
}

fn facts<'a>(caller: &'a Caller<'a>, endpoint: Endpoint, head: &'a Head<'a>, total_ms: u64) -> Facts<'a> {
    Facts {
        key: caller.key,
        workspace: caller.workspace,
        endpoint,
        model: head.model.as_deref().unwrap_or_default(),
        models: &head.models,
        stream: head.stream,
        tools: head.needs.tools,
        vision: head.needs.vision,
        audio_input: head.needs.audio_input,
        audio_output: head.needs.audio_output,
        pdf: head.needs.pdf_input,
        json_schema: head.needs.json_schema,
        // The estimate is a quarter of the text's bytes.
        prompt_text_bytes: head.prompt_tokens_estimate.saturating_mul(4),
        max_tokens: head.max_output_tokens,
        environment: None,
        peer: caller.peer,
        config_age_ms: caller.config_age_ms,
        total_ms,
    }
}

fn json(body: Bytes) -> Reply {
    Reply::Whole { status: StatusCode::OK, headers: headers::json(HeaderMap::new()), body }
}

fn whole(status: StatusCode, headers: HeaderMap, body: Bytes, running: InRequest) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::whole(body, running));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Routes a request for every provider's first model through a snapshot that is about to serve, as a
/// caller would. Only a panic or a defect of the snapshot fails it: that nothing can be routed yet
/// is a fair state.
pub struct SelfTest;

impl crate::snapshot::SelfTest for SelfTest {
    fn check(&self, next: &Snapshot, scope: &str) -> Result<(), shared::snapshot::Rejection> {
        let Some(workspace) = scope.parse().ok().and_then(|id| next.workspace(&id)) else { return Ok(()) };
        let body = Bytes::from_static(br#"{"model":"m","messages":[{"role":"user","content":"self-test"}]}"#);
        let Ok(head) = DIALECT.read_request(Endpoint::ChatCompletions, &body) else { return Ok(()) };
        let now = Now { wall_ms: clock::now_ms(), mono_ms: clock::monotonic_ms() };
        let key = Arc::new(ApiKey::unlimited(workspace));
        let caller = Caller { key: &key, workspace, peer: IpAddr::from([127, 0, 0, 1]), config_age_ms: 0 };
        let facts = facts(&caller, Endpoint::ChatCompletions, &head, 1_000);
        let fleet = router::Fleet::default();
        for provider in workspace.providers.values().take(64) {
            let Some(offering) = provider.offerings().next() else { continue };
            let model = format!("{}/{}", provider.slug, offering.model);
            let decision = router::plan(next, &Facts { model: &model, ..facts }, &fleet, now, 0);
            let Decision::Plan(plan) = decision else { continue };
            if plan.candidates.is_empty() {
                return Err(shared::snapshot::Rejection {
                    code: shared::proto::NackCode::SelfTest,
                    path: format!("provider/{}", provider.id),
                    detail: "a plan without candidates".to_owned(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size4<A, B, C, D, R>(_: impl Fn(A, B, C, D) -> R) -> usize {
        std::mem::size_of::<R>()
    }

    /// The future of a request is moved when it is made, and common C libraries copy what is larger
    /// than 2 KiB many times slower. What would make it larger is boxed in pieces below that.
    #[test]
    fn the_future_of_a_request_stays_small() {
        let size = size4(serve);
        assert!(size <= 2 * 1024, "{size} bytes");
    }
}
