//! Every error that a caller sees, in one form. The only place where a refusal, a failure or a bad
//! request becomes a status and a body.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use providers::{BadRequest, Dialect};
use router::Refusal;
use shared::failure::{Deadline, Failure, FailureKind};

use crate::usage::journal::Unwritable;

/// An error on its way to the caller.
#[derive(Debug, Clone)]
pub struct Problem {
    /// HTTP status.
    pub status: StatusCode,
    /// Whose fault: the envelope's `type`.
    pub error_type: &'static str,
    /// Stable: the envelope's `code`.
    pub code: &'static str,
    /// Field of the body.
    pub param: Option<Cow<'static, str>>,
    /// For the caller.
    pub message: String,
    /// Sent as `retry-after`, in whole seconds, at least one.
    pub retry_after_ms: Option<u64>,
    /// Sent as `allow`.
    pub allow: Option<&'static [Method]>,
    /// The connection cannot be used again.
    pub close: bool,
    /// The provider's own error body, to be sent instead of ours.
    pub body: Option<Bytes>,
}

impl Problem {
    /// With the type that goes with the status.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let error_type = match status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        Self {
            status,
            error_type,
            code,
            param: None,
            message: message.into(),
            retry_after_ms: None,
            allow: None,
            close: false,
            body: None,
        }
    }

    /// The connection ends after this answer.
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// A head or body that breaks HTTP.
    pub fn bad_http(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_http", message).closing()
    }

    /// No such path.
    pub fn not_found(path: &str) -> Self {
        let shown: String = path.chars().filter(|c| !c.is_control()).take(100).collect();
        let message =
            format!("There is no {shown} here. Endpoints are /v1/chat/completions, /v1/embeddings, /v1/models.");
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// The usage journal takes no more: what cannot be counted is not served.
    pub fn unwritable(reason: Unwritable) -> Self {
        let message = "This node cannot record usage at the moment.";
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, reason.code(), message);
        problem.retry_after_ms = Some(5_000);
        problem
    }

    /// More requests at once than this node takes.
    pub fn too_busy() -> Self {
        let message = "This node has as many requests as it can take.";
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "node_overloaded", message);
        problem.retry_after_ms = Some(1_000);
        problem
    }

    /// No configuration has reached this node yet.
    pub fn no_snapshot() -> Self {
        let message = "This node has not received its configuration yet.";
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_snapshot", message);
        problem.retry_after_ms = Some(1_000);
        problem
    }

    /// A defect of ours.
    pub fn internal() -> Self {
        let message = "Something went wrong on our side. The request id identifies this request in the logs.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// The body to send.
    pub fn body(&self, dialect: Dialect) -> Bytes {
        match &self.body {
            Some(own) => own.clone(),
            None => dialect.error_body(self.error_type, self.code, self.param.as_deref(), &self.message),
        }
    }

    /// Adds the headers that belong to it.
    pub fn headers(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(ms) = self.retry_after_ms {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)));
        }
        if let Some(allowed) = self.allow {
            let names: Vec<&str> = allowed.iter().map(Method::as_str).collect();
            if let Ok(value) = HeaderValue::from_str(&names.join(", ")) {
                headers.insert(header::ALLOW, value);
            }
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

impl From<BadRequest> for Problem {
    fn from(bad: BadRequest) -> Self {
        let mut problem = Self::new(StatusCode::BAD_REQUEST, bad.code, bad.message);
        problem.param = bad.param;
        problem
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut problem = Self::new(status, refusal.code(), refusal.message);
        problem.error_type = refusal.kind.row().error_type;
        problem.param = refusal.param.map(Cow::Borrowed);
        problem.retry_after_ms = refusal.retry_after_ms;
        problem
    }
}

impl From<&Failure> for Problem {
    fn from(failure: &Failure) -> Self {
        let (status, error_type) = failure_status(failure);
        let mut problem = Self::new(status, failure.kind.code(), failure.message.clone());
        problem.error_type = error_type;
        problem.retry_after_ms = match failure.kind {
            FailureKind::RateLimited | FailureKind::Overloaded => Some(failure.retry_after_ms.unwrap_or(1_000)),
            _ => failure.retry_after_ms,
        };
        problem
    }
}

/// Status and blame of a failure that nothing could be done about. A provider that refuses *our*
/// credential is not the caller's fault: the caller's key is fine.
fn failure_status(failure: &Failure) -> (StatusCode, &'static str) {
    match failure.kind {
        FailureKind::Connect
        | FailureKind::EgressDenied
        | FailureKind::Reset
        | FailureKind::Unauthorized
        | FailureKind::PaymentRequired
        | FailureKind::Forbidden
        | FailureKind::ServerError
        | FailureKind::BadReply
        | FailureKind::StreamError
        | FailureKind::StreamCut => (StatusCode::BAD_GATEWAY, "upstream_error"),
        FailureKind::Timeout(Deadline::Connect | Deadline::FirstToken | Deadline::Idle | Deadline::Total)
        | FailureKind::ProviderTimeout => (StatusCode::GATEWAY_TIMEOUT, "upstream_error"),
        FailureKind::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error"),
        FailureKind::QuotaExhausted => (StatusCode::TOO_MANY_REQUESTS, "insufficient_quota"),
        FailureKind::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "overloaded_error"),
        FailureKind::ModelNotFound => (StatusCode::NOT_FOUND, "invalid_request_error"),
        FailureKind::ContextLength | FailureKind::ContentFilter => (StatusCode::BAD_REQUEST, "invalid_request_error"),
        FailureKind::InvalidRequest => {
            let own = failure.status.and_then(|s| StatusCode::from_u16(s).ok()).filter(StatusCode::is_client_error);
            (own.unwrap_or(StatusCode::BAD_REQUEST), "invalid_request_error")
        }
    }
}
