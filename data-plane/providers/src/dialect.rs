//! Which functions read and write which wire format. One dialect exists, so this is an enum with
//! methods; every caller goes through it, so that a second one is a second variant.

use bytes::Bytes;
use http::HeaderMap;
pub use shared::endpoint::Endpoint;
use shared::failure::Failure;

use crate::head::{BadRequest, Head};
use crate::openai_chat::{self, reply::ReplyFacts, stream::Tap};
use crate::openai_embeddings;
use crate::quirks::Quirks;

/// What a 200 carries, by its `content-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    /// `text/event-stream`.
    Events,
    /// `application/json` or `…+json`, or nothing said.
    Json,
    /// Something else: no answer.
    Foreign,
}

/// A wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// OpenAI's `/chat/completions` and `/embeddings`.
    OpenAi,
}

impl Dialect {
    /// From `Vendor.dialect`; `None` = this program does not speak it.
    pub fn from_name(name: &str) -> Option<Self> {
        (name == "openai").then_some(Self::OpenAi)
    }

    /// Its name in the catalogue.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
        }
    }

    /// Reads a caller's whole body, once. What it gives borrows from `body`.
    pub fn read_request(self, endpoint: Endpoint, body: &[u8]) -> Result<Head<'_>, BadRequest> {
        match (self, endpoint) {
            (Self::OpenAi, Endpoint::ChatCompletions) => openai_chat::request::read(body),
            (Self::OpenAi, Endpoint::Embeddings) => openai_embeddings::request::read(body),
        }
    }

    /// Reads the whole body of a 200 that is no stream. `prompt_tokens` is the request's own
    /// estimate, used when the provider does not report.
    pub fn read_reply(
        self,
        endpoint: Endpoint,
        body: &[u8],
        quirks: Quirks,
        prompt_tokens: u64,
    ) -> Result<ReplyFacts, Failure> {
        match (self, endpoint) {
            (Self::OpenAi, Endpoint::ChatCompletions) => openai_chat::reply::read(body, quirks, prompt_tokens),
            (Self::OpenAi, Endpoint::Embeddings) => openai_embeddings::reply::read(body, quirks, prompt_tokens),
        }
    }

    /// What a streamed 200 flows through. `strip_usage`: [`crate::Outgoing::usage_added`];
    /// `choices`: the request's `n`.
    pub fn tap(self, quirks: Quirks, strip_usage: bool, choices: u32) -> Tap {
        match self {
            Self::OpenAi => Tap::new(quirks, strip_usage, choices),
        }
    }

    /// What a provider's answer that is no success means. `secret`: the credential that was sent,
    /// so that it can be kept out of the message. `now_ms`: milliseconds since 1970.
    pub fn classify(
        self,
        status: u16,
        headers: &HeaderMap,
        body: &[u8],
        secret: Option<&[u8]>,
        now_ms: u64,
    ) -> Failure {
        match self {
            Self::OpenAi => openai_chat::error::classify(status, headers, body, secret, now_ms),
        }
    }

    /// Takes the credential that was sent out of a failure that was made where it was not known: by
    /// [`Dialect::read_reply`] or a [`Tap`].
    pub fn hide(self, failure: &mut Failure, secret: &[u8]) {
        match self {
            Self::OpenAi => openai_chat::error::hide(failure, secret),
        }
    }

    /// Whether the provider's own error body may reach the caller byte for byte.
    pub fn may_forward(self, failure: &Failure, body: &[u8], secret: Option<&[u8]>) -> bool {
        match self {
            Self::OpenAi => openai_chat::error::may_forward(failure, body, secret),
        }
    }

    /// The body of an error of our own.
    pub fn error_body(self, type_: &str, code: &str, param: Option<&str>, message: &str) -> Bytes {
        match self {
            Self::OpenAi => openai_chat::error::envelope(type_, code, param, message),
        }
    }

    /// The last bytes of a stream that fails after its first byte: one error event. Nothing follows
    /// it, no end marker either: the answer is not whole.
    pub fn error_event(self, type_: &str, code: &str, message: &str) -> Bytes {
        match self {
            Self::OpenAi => openai_chat::error::event(type_, code, message),
        }
    }

    /// What a 200 with these headers carries.
    pub fn carries(self, headers: &HeaderMap) -> Carries {
        let Some(value) = headers.get(http::header::CONTENT_TYPE) else { return Carries::Json };
        let value = value.as_bytes();
        let media = value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        let suffix = media.get(media.len().saturating_sub(5)..).unwrap_or_default();
        if media.eq_ignore_ascii_case(b"text/event-stream") {
            Carries::Events
        } else if media.eq_ignore_ascii_case(b"application/json") || suffix.eq_ignore_ascii_case(b"+json") {
            Carries::Json
        } else {
            Carries::Foreign
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types() {
        let cases = [
            (None, Carries::Json),
            (Some("application/json"), Carries::Json),
            (Some("Application/JSON; charset=utf-8"), Carries::Json),
            (Some("application/problem+json"), Carries::Json),
            (Some("text/event-stream;charset=utf-8"), Carries::Events),
            (Some("text/html"), Carries::Foreign),
            (Some(""), Carries::Foreign),
        ];
        for (text, expected) in cases {
            let mut headers = HeaderMap::new();
            if let Some(text) = text {
                headers.insert("content-type", text.parse().expect("a header value"));
            }
            assert_eq!(Dialect::OpenAi.carries(&headers), expected, "{text:?}");
        }
    }

    #[test]
    fn names_are_distinct() {
        assert_eq!(Dialect::from_name(Dialect::OpenAi.name()), Some(Dialect::OpenAi));
        assert_eq!(Dialect::from_name("anthropic"), None);
    }
}
