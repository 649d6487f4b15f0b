//! A provider's errors, understood; and our own, in the same envelope.
//!
//! Status first, then what the body says: vendors disagree about statuses more than about words.

use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Value, json};
use shared::failure::{Failure, FailureKind};

use crate::json;
use crate::{json::Shallow, redact, retry_after};

/// Bytes of an error body that are read.
const MOST_BYTES: usize = 64 * 1024;

/// What an answer that is no success means. Also for a 200 whose body is an error. `secret`: the
/// credential that was sent, kept out of the message. `now_ms`: milliseconds since 1970.
pub fn classify(status: u16, headers: &HeaderMap, body: &[u8], secret: Option<&[u8]>, now_ms: u64) -> Failure {
    let said = Said::read(body);
    let status_said = if (200..300).contains(&status) { said.status() } else { Some(status) };
    let kind = match status_said {
        Some(status) => by_status(status, &said),
        None => said.kind().unwrap_or(FailureKind::BadReply),
    };
    let limited = matches!(kind, FailureKind::RateLimited);
    let message = match said.message.trim() {
        "" => default_message(status).to_owned(),
        text => redact::message(text, secret),
    };
    Failure {
        kind,
        status: Some(status_said.unwrap_or(status)),
        retry_after_ms: retry_after::read(headers, said.retry_delay.as_deref(), limited, now_ms),
        message,
        context: redact::message(&format!("type {:?}, code {:?}", said.kind_name, said.code), secret),
    }
}

/// The failure behind an error event. Until something of the answer came it means what the same
/// error would have meant as a status; afterwards it is a stream that broke.
pub(crate) fn in_stream(data: &[u8], content_started: bool) -> Failure {
    let mut failure = classify(200, &HeaderMap::new(), data, None, 0);
    if content_started || failure.kind == FailureKind::BadReply {
        failure.kind = FailureKind::StreamError;
    }
    failure
}

/// Takes `secret` out of a failure that was made where it was not known: one from a stream or from
/// the body of a 200.
pub fn hide(failure: &mut Failure, secret: &[u8]) {
    failure.message = redact::message(&failure.message, Some(secret));
    failure.context = redact::message(&failure.context, Some(secret));
}

/// Whether the provider's own error body may reach the caller byte for byte: it speaks of the
/// caller's mistake, in OpenAI's envelope, and quotes no key.
pub fn may_forward(failure: &Failure, body: &[u8], secret: Option<&[u8]>) -> bool {
    let callers = match failure.kind {
        FailureKind::InvalidRequest | FailureKind::ContextLength | FailureKind::ContentFilter => true,
        FailureKind::Connect
        | FailureKind::EgressDenied
        | FailureKind::Timeout(_)
        | FailureKind::Reset
        | FailureKind::Unauthorized
        | FailureKind::PaymentRequired
        | FailureKind::Forbidden
        | FailureKind::RateLimited
        | FailureKind::QuotaExhausted
        | FailureKind::Overloaded
        | FailureKind::ProviderTimeout
        | FailureKind::ServerError
        | FailureKind::ModelNotFound
        | FailureKind::BadReply
        | FailureKind::StreamError
        | FailureKind::StreamCut => false,
    };
    let status = failure.status.is_some_and(|status| (400..500).contains(&status));
    callers && status && body.len() <= MOST_BYTES && is_envelope(body) && redact::is_clean(body, secret)
}

fn is_envelope(body: &[u8]) -> bool {
    matches!(serde_json::from_slice::<Value>(body), Ok(Value::Object(body))
        if body.get("error").is_some_and(|e| e.get("message").is_some_and(Value::is_string)))
}

/// The body of an error of our own: `{"error":{"message","type","param","code"}}`.
pub fn envelope(type_: &str, code: &str, param: Option<&str>, message: &str) -> Bytes {
    let error = json!({ "message": message, "type": type_, "param": param, "code": code });
    json!({ "error": error }).to_string().into()
}

/// The same as the last event of a stream. No end marker may follow: official clients raise on the
/// event, and a client that does not must not take the answer for whole.
pub fn event(type_: &str, code: &str, message: &str) -> Bytes {
    let mut event = b"data: ".to_vec();
    event.extend_from_slice(&envelope(type_, code, None, message));
    event.extend_from_slice(b"\n\n");
    event.into()
}

/// `status_code` of a `base_resp` (MiniMax) that is not zero.
pub(crate) fn base_resp_status(raw: &str) -> Option<u64> {
    let (_, raw) = json::members(raw).filter(|(key, _)| key == "status_code").last()?;
    match Shallow::of(raw) {
        Shallow::Natural(code) if code != 0 => Some(code),
        Shallow::Natural(_)
        | Shallow::Null
        | Shallow::Bool(_)
        | Shallow::Number(_)
        | Shallow::Text(_)
        | Shallow::Array
        | Shallow::Object => None,
    }
}

/// What an error body says, wherever it says it.
#[derive(Debug, Default)]
struct Said {
    message: String,
    /// Lower case.
    kind_name: String,
    /// Lower case; numbers as text.
    code: String,
    retry_delay: Option<String>,
}

impl Said {
    fn read(body: &[u8]) -> Self {
        let body = body.get(..MOST_BYTES).unwrap_or(body);
        let Ok(mut value) = serde_json::from_slice::<Value>(body) else {
            let text = String::from_utf8_lossy(body);
            // A page for browsers says nothing to a caller.
            let page = text.trim_start().starts_with('<');
            return Self { message: if page { String::new() } else { text.into_owned() }, ..Self::default() };
        };
        // Gemini's list of one.
        if let Value::Array(list) = &mut value {
            value = list.first_mut().map(Value::take).unwrap_or_default();
        }
        let mut said = Self::default();
        for place in [Some(&value), value.get("base_resp"), value.pointer("/errors/0"), value.get("error")] {
            said.take(place.unwrap_or(&Value::Null));
        }
        said
    }

    /// What stands further in is more exact, and replaces what was found further out.
    fn take(&mut self, place: &Value) {
        if let Value::String(text) = place {
            self.message.clone_from(text);
        }
        let set = |into: &mut String, names: &[&str]| {
            if let Some(text) = names.iter().find_map(|name| place.get(name).and_then(scalar)) {
                *into = text;
            }
        };
        set(&mut self.message, &["message", "detail", "status_msg", "error_message"]);
        set(&mut self.kind_name, &["type", "status"]);
        set(&mut self.code, &["code", "status_code", "error_code"]);
        // What names the reason of a blocked prompt (Azure), or of a bad key (Google).
        let reason = place.pointer("/innererror/code").or(place.pointer("/details/0/reason")).and_then(scalar);
        if let Some(reason) = reason {
            self.kind_name = reason;
        }
        // FastAPI's list of what is wrong.
        if let Some(detail) = place.pointer("/detail/0/msg").and_then(scalar) {
            self.message = detail;
        }
        let details = place.get("details").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        if let Some(delay) = details.iter().find_map(|d| d.get("retryDelay").and_then(Value::as_str)) {
            self.retry_delay = Some(delay.to_owned());
        }
        self.kind_name.make_ascii_lowercase();
        self.code.make_ascii_lowercase();
    }

    /// The status that an error inside a 200 names.
    fn status(&self) -> Option<u16> {
        self.code.parse().ok().filter(|status| (400..600).contains(status))
    }

    fn names(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.code == *word || self.kind_name == *word)
    }

    fn mentions(&self, phrases: &[&str]) -> bool {
        let message = self.message.to_ascii_lowercase();
        phrases.iter().any(|phrase| message.contains(phrase))
    }

    /// What the words alone mean; `None` when they mean nothing known.
    fn kind(&self) -> Option<FailureKind> {
        if self.is_context_length() {
            return Some(FailureKind::ContextLength);
        }
        if self.is_content_filter() {
            return Some(FailureKind::ContentFilter);
        }
        if self.is_bad_key() {
            return Some(FailureKind::Unauthorized);
        }
        if self.is_no_money() {
            return Some(FailureKind::QuotaExhausted);
        }
        let table: [(FailureKind, &[&str]); 8] = [
            (FailureKind::ModelNotFound, &["model_not_found", "deploymentnotfound", "not_found_error", "not_found"]),
            (
                FailureKind::RateLimited,
                &[
                    "rate_limit_error",
                    "rate_limit_exceeded",
                    "ratelimitreached",
                    "resource_exhausted",
                    "tokens",
                    "requests",
                    "rate_limited",
                    "too_many_requests",
                    "1002",
                ],
            ),
            (FailureKind::Overloaded, &["overloaded_error", "overloaded", "engine_overloaded_error", "unavailable"]),
            (FailureKind::ProviderTimeout, &["timeout_error", "timeout", "deadline_exceeded"]),
            (FailureKind::PaymentRequired, &["billing_error", "payment_required", "1008"]),
            (FailureKind::Forbidden, &["permission_error", "permission_denied", "1004"]),
            (
                FailureKind::ServerError,
                &["server_error", "api_error", "internal_server_error", "internal", "internal_error"],
            ),
            (FailureKind::InvalidRequest, &["invalid_request_error", "invalid_argument", "badrequesterror", "2013"]),
        ];
        table.into_iter().find(|(_, words)| self.names(words)).map(|(kind, _)| kind)
    }

    fn is_context_length(&self) -> bool {
        self.names(&[
            "context_length_exceeded",
            "too_many_tokens",
            "too_many_prompt_tokens",
            "model_context_window_exceeded",
        ]) || self.mentions(&[
            "maximum context length",
            "context length exceeded",
            "prompt is too long",
            "prompt too long",
            "input is too long",
            "maximum prompt length",
            "exceeds the context window",
            "reduce the length of the",
        ]) || (self.mentions(&["input token count", "number of input tokens"]) && self.mentions(&["exceed"]))
    }

    fn is_content_filter(&self) -> bool {
        self.names(&[
            "content_filter",
            "content_policy_violation",
            "responsibleaipolicyviolation",
            "data_inspection_failed",
            "moderation_blocked",
            "image_content_policy_violation",
        ]) || self.mentions(&["content management policy", "flagged by moderation", "violates our usage guidelines"])
    }

    fn is_bad_key(&self) -> bool {
        self.names(&[
            "invalid_api_key",
            "api_key_invalid",
            "authentication_error",
            "unauthenticated",
            "invalid_authentication",
            "account_deactivated",
        ]) || self.mentions(&["incorrect api key", "invalid api key", "api key not valid", "api key expired"])
    }

    fn is_no_money(&self) -> bool {
        self.names(&["insufficient_quota", "billing_hard_limit_reached", "insufficient_balance", "quota_exceeded"])
            || self.mentions(&[
                "insufficient balance",
                "insufficient credits",
                "credit balance is too low",
                "exceeded your current quota, please check your plan",
                "used all available credits",
                "billing details",
                "spending limit",
            ])
    }
}

/// The kind for a status that is no success, with what the body adds.
fn by_status(status: u16, said: &Said) -> FailureKind {
    match status {
        401 => FailureKind::Unauthorized,
        402 => FailureKind::PaymentRequired,
        403 if said.is_content_filter() => FailureKind::ContentFilter,
        403 => FailureKind::Forbidden,
        // A wrong path is as good as a missing model: this offering is not to be had there.
        404 | 405 | 410 => FailureKind::ModelNotFound,
        408 | 499 | 504 | 522 | 524 => FailureKind::ProviderTimeout,
        // Two requests got in each other's way at the provider; clients retry it.
        409 => FailureKind::ServerError,
        429 if said.is_no_money() => FailureKind::QuotaExhausted,
        429 if said.names(&["overloaded_error", "overloaded", "engine_overloaded_error"]) => FailureKind::Overloaded,
        429 => FailureKind::RateLimited,
        // 424: the model behind the provider failed. 498: Groq has no room for flex.
        424 => FailureKind::ServerError,
        425 | 498 | 503 | 529 => FailureKind::Overloaded,
        400..=499 => said.kind().and_then(|kind| of_callers(kind, said)).unwrap_or(FailureKind::InvalidRequest),
        500..=599 if said.is_no_money() => FailureKind::QuotaExhausted,
        500..=599 if said.names(&["overloaded_error", "overloaded", "engine_overloaded_error"]) => {
            FailureKind::Overloaded
        }
        500..=599 => FailureKind::ServerError,
        _ => FailureKind::BadReply,
    }
}

/// What the words of a 4xx make of it: only what is more exact than "a mistake".
fn of_callers(kind: FailureKind, said: &Said) -> Option<FailureKind> {
    match kind {
        FailureKind::ContextLength
        | FailureKind::ContentFilter
        | FailureKind::Unauthorized
        | FailureKind::PaymentRequired => Some(kind),
        FailureKind::QuotaExhausted => Some(FailureKind::PaymentRequired),
        // A bare "not found" with a 400 may be a file or a tool.
        FailureKind::ModelNotFound => (said.code != "not_found").then_some(kind),
        FailureKind::Connect
        | FailureKind::EgressDenied
        | FailureKind::Timeout(_)
        | FailureKind::Reset
        | FailureKind::Forbidden
        | FailureKind::RateLimited
        | FailureKind::Overloaded
        | FailureKind::ProviderTimeout
        | FailureKind::ServerError
        | FailureKind::InvalidRequest
        | FailureKind::BadReply
        | FailureKind::StreamError
        | FailureKind::StreamCut => None,
    }
}

fn default_message(status: u16) -> &'static str {
    match status {
        300..=399 => "The provider answered with a redirect, which is never followed.",
        200..=299 => "The provider answered with an error.",
        400..=499 => "The provider refused the request without saying why.",
        500..=599 => "The provider failed without saying why.",
        _ => "The provider answered with a status that means nothing.",
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}
