//! A caller's body, whole, within bounds of size and time.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, StatusCode, header};
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, timeout_at};

use super::render::Problem;
use crate::gather::{Gather, TooLarge};
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

/// Reads it.
pub async fn whole(body: Incoming, limits: &BodyLimits) -> Result<Bytes, Problem> {
    let mut body = body;
    let mut gather = Gather::new(limits.size, body.size_hint().lower()).map_err(|TooLarge| too_large(limits))?;
    let mut deadline = None;
    while !body.is_end_stream() {
        // Mostly it came with the head, and no clock need be read.
        let next = match next_data(&mut body).now_or_never() {
            Some(next) => Ok(next),
            None => {
                let now = Instant::now();
                let until = *deadline.get_or_insert(now + limits.total);
                timeout_at(until.min(now + limits.idle), next_data(&mut body)).await
            }
        };
        match next {
            Ok(Some(Ok(piece))) => gather.push(piece).map_err(|TooLarge| too_large(limits))?,
            // Broken chunking, or the caller left: nobody may read this.
            Ok(Some(Err(_))) => return Err(Problem::bad_http("The request body could not be read.")),
            Ok(None) => break,
            Err(_) => {
                let message = "The request body did not arrive in time.";
                return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message).closing());
            }
        }
    }
    Ok(gather.finish())
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
