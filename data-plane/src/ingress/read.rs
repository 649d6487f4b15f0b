//! A caller's body, whole, within bounds of size and time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, timeout_at};

use super::render::Problem;
use crate::upstream::next_data;

/// Bounds of a body.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// Bytes.
    pub size: usize,
    /// Between two pieces.
    pub idle: Duration,
    /// From the first to the last.
    pub total: Duration,
}

/// Refuses by the headers what would not be read anyway.
pub fn check_headers(headers: &HeaderMap, declared: Option<u64>, limits: &BodyLimits) -> Result<(), Problem> {
    let encodings = headers.get_all(header::CONTENT_ENCODING);
    if encodings.iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let message = "The request body must not be compressed.";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_encoding_not_supported", message));
    }
    if let Some(value) = headers.get(header::CONTENT_TYPE)
        && !is_json(value.as_bytes())
    {
        let message = "The content type must be application/json.";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type_not_supported", message));
    }
    if declared.is_some_and(|length| length > limits.size as u64) {
        return Err(too_large(limits));
    }
    Ok(())
}

/// Reads it. One that arrives in one piece is not copied.
pub async fn whole(body: Incoming, limits: &BodyLimits) -> Result<Bytes, Problem> {
    let mut body = body;
    let hint = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX).min(limits.size);
    let deadline = Instant::now() + limits.total;
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    while !body.is_end_stream() {
        let until = deadline.min(Instant::now() + limits.idle);
        let piece = match timeout_at(until, next_data(&mut body)).await {
            Ok(Some(Ok(piece))) => piece,
            Ok(Some(Err(error))) => return Err(unreadable(&error)),
            Ok(None) => break,
            Err(_) => {
                let message = "The request body did not arrive in time.";
                return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message).closing());
            }
        };
        let so_far = rest.as_ref().map_or(first.len(), BytesMut::len);
        if so_far + piece.len() > limits.size {
            return Err(too_large(limits));
        }
        match &mut rest {
            None if first.is_empty() => first = piece,
            None => {
                let mut buffer = BytesMut::with_capacity(hint.max(first.len() + piece.len()));
                buffer.extend_from_slice(&first);
                buffer.extend_from_slice(&piece);
                rest = Some(buffer);
            }
            Some(buffer) => buffer.extend_from_slice(&piece),
        }
    }
    Ok(rest.map_or(first, BytesMut::freeze))
}

fn is_json(value: &[u8]) -> bool {
    let media = value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    // Some SDKs and `curl -d` leave their defaults in place; the body is read as JSON all the same.
    media.is_empty()
        || media.eq_ignore_ascii_case(b"application/json")
        || media.eq_ignore_ascii_case(b"text/plain")
        || media.eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
}

fn too_large(limits: &BodyLimits) -> Problem {
    let message = format!("The request body is larger than {} bytes.", limits.size);
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message).closing()
}

fn unreadable(error: &hyper::Error) -> Problem {
    let mut problem = Problem::bad_http("The request body could not be read.");
    problem.gone = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
    problem
}
