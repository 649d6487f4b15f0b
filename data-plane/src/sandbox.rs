//! The vendor built into every node, so that a first request answers without an account. It is no
//! model: it echoes, counts words as tokens, and does what it is told inside double brackets.
//!
//! It is reached like any other vendor, over HTTP, only that the connection never leaves the process.
//!
//! | in the last user message | what happens |
//! | --- | --- |
//! | `[[delay:500]]` | waits 500 ms before answering (at most 60 s) |
//! | `[[pace:50]]` | waits 50 ms between the chunks of a stream (at most 10 s) |
//! | `[[fail:429]]` | answers with this status and an error body, `retry-after: 1` for 429 and 503 |
//! | `[[cut]]` | breaks a stream off in the middle |
//! | `[[tool:get_weather {"city":"Paris"}]]` | calls this tool with these arguments |
//! | `[[words:200]]` | answers with so many words instead of the echo (at most 100,000) |

mod orders;
mod replies;

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::DuplexStream;

use orders::Orders;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

const MAX_BODY: usize = 64 * 1024 * 1024;
/// Least pause before a stream breaks.
const BREAK: Duration = Duration::from_millis(50);

/// A connection to the sandbox. It is served on this thread until its other end is dropped.
pub fn connect() -> DuplexStream {
    let (near, far) = tokio::io::duplex(256 * 1024);
    runtime::task::spawn("sandbox", async move {
        let service = service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
        // A caller that leaves breaks the connection; nobody is left to tell.
        _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service).await;
    });
    near
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    let body = match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return error(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body is too large"),
    };
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        return error(StatusCode::BAD_REQUEST, "invalid_json", "the body is not JSON");
    };
    match (method, path.as_str()) {
        (Method::POST, "/v1/chat/completions") => chat(&body).await,
        (Method::POST, "/v1/embeddings") => reply(&replies::embeddings(&body)),
        _ => error(StatusCode::NOT_FOUND, "not_found", "the sandbox serves chat completions and embeddings"),
    }
}

async fn chat(body: &Value) -> Response<Body> {
    let orders = Orders::read(&orders::last_user_text(body));
    tokio::time::sleep(orders.delay).await;
    if let Some(status) = orders.fail {
        return error(status, "sandbox_failure", "the sandbox was told to fail");
    }
    let answer = replies::Answer::new(body, &orders);
    if body.get("stream").and_then(Value::as_bool) != Some(true) {
        return reply(&answer.whole());
    }
    let include_usage = body.pointer("/stream_options/include_usage").and_then(Value::as_bool) == Some(true);
    stream(answer.chunks(include_usage), orders.pace, orders.cut)
}

fn stream(mut events: Vec<Value>, pace: Duration, cut: bool) -> Response<Body> {
    if cut {
        events.truncate(events.len() / 2);
    }
    let mut frames: Vec<Result<Bytes, std::io::Error>> =
        events.into_iter().map(|event| Ok(Bytes::from(format!("data: {event}\n\n")))).collect();
    frames.push(match cut {
        true => Err(std::io::ErrorKind::ConnectionReset.into()),
        false => Ok(Bytes::from_static(b"data: [DONE]\n\n")),
    });
    let frames = futures_util::stream::unfold((frames.into_iter(), true), move |(mut rest, first)| async move {
        let next = rest.next()?;
        // What stands before a break is to arrive.
        let pace = if next.is_err() { pace.max(BREAK) } else { pace };
        if !first && !pace.is_zero() {
            tokio::time::sleep(pace).await;
        }
        Some((next.map(Frame::data), (rest, false)))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let event_stream = http::HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, event_stream);
    response
}

fn reply(body: &Value) -> Response<Body> {
    let full = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {});
    let mut response = Response::new(full.boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let kind = match status {
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    };
    let body = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
    let mut response = reply(&body);
    *response.status_mut() = status;
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        response.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from_static("1"));
    }
    response
}
