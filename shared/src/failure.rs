//! `Failure`: every way an upstream call ends badly, named by what the caller of the call does next.
//!
//! A dialect (or the connector) classifies, `router::retry` decides, ingress renders. Nobody matches
//! with a wildcard: a new kind does not compile until someone says whether it is retried.

use std::fmt;

/// Which of the four deadlines ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Deadline {
    /// No connection (TCP and TLS) in time.
    Connect,
    /// Connected, but no first byte of the answer in time.
    FirstToken,
    /// The stream paused for too long.
    Idle,
    /// The request as a whole, attempts and waits included.
    Total,
}

/// What went wrong, by what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// Name not resolved, refused, unreachable, TLS handshake failed.
    Connect,
    /// The egress rules forbid the address; nothing was sent.
    EgressDenied,
    /// A deadline ran out.
    Timeout(Deadline),
    /// The connection broke after the request was sent and before a whole answer.
    Reset,
    /// 401: this credential is not accepted.
    Unauthorized,
    /// 402: this credential's account has no money left.
    PaymentRequired,
    /// 403: this credential may not do this.
    Forbidden,
    /// 429: this credential is out of its rate, for now.
    RateLimited,
    /// 429 with a code that says the account's quota is gone: waiting does not help.
    QuotaExhausted,
    /// 503, 529 and overload codes.
    Overloaded,
    /// 408, or the provider's own deadline.
    ProviderTimeout,
    /// Any other 5xx.
    ServerError,
    /// 404 of a model or path: this offering does not exist there.
    ModelNotFound,
    /// The prompt does not fit this model's context.
    ContextLength,
    /// The provider's own filter refused the content.
    ContentFilter,
    /// Any other 4xx: the caller's mistake, the same everywhere.
    InvalidRequest,
    /// A 200 that is no answer: not JSON, empty, the wrong type, too large, a redirect.
    BadReply,
    /// An error event inside a stream that had begun.
    StreamError,
    /// The stream ended without its terminator.
    StreamCut,
}

impl FailureKind {
    /// Stable text for metrics, records and error codes.
    pub fn code(self) -> &'static str {
        match self {
            Self::Connect => "upstream_connect_failed",
            Self::EgressDenied => "upstream_address_denied",
            Self::Timeout(Deadline::Connect) => "upstream_connect_timeout",
            Self::Timeout(Deadline::FirstToken) => "upstream_first_token_timeout",
            Self::Timeout(Deadline::Idle) => "upstream_idle_timeout",
            Self::Timeout(Deadline::Total) => "request_timeout",
            Self::Reset => "upstream_reset",
            Self::Unauthorized => "upstream_credential_rejected",
            Self::PaymentRequired => "upstream_payment_required",
            Self::Forbidden => "upstream_forbidden",
            Self::RateLimited => "upstream_rate_limited",
            Self::QuotaExhausted => "upstream_quota_exhausted",
            Self::Overloaded => "upstream_overloaded",
            Self::ProviderTimeout => "upstream_timeout",
            Self::ServerError => "upstream_error",
            Self::ModelNotFound => "upstream_model_not_found",
            Self::ContextLength => "context_length_exceeded",
            Self::ContentFilter => "content_filter",
            Self::InvalidRequest => "upstream_invalid_request",
            Self::BadReply => "bad_upstream",
            Self::StreamError => "upstream_stream_error",
            Self::StreamCut => "upstream_stream_cut",
        }
    }
}

/// One failed upstream call.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure {
    /// What to do about it.
    pub kind: FailureKind,
    /// The provider's HTTP status, when there was one.
    pub status: Option<u16>,
    /// How long the provider asked to wait, in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// May be shown to the caller. Holds nothing of a credential.
    pub message: String,
    /// For logs only.
    pub context: String,
}

impl Failure {
    /// A failure without a provider's answer behind it.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, status: None, retry_after_ms: None, message: message.into(), context: String::new() }
    }

    /// Adds what only the log may say.
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.context = context.into();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.code(), self.message)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} (status {:?}, {})", self.status, self.context)
    }
}

impl std::error::Error for Failure {}
