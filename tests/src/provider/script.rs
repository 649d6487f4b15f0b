//! What the provider does with one request, as data: made in Rust, or sent as JSON in `x_script`.

use serde::{Deserialize, Serialize};

/// One behaviour. The default is a good answer at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// HTTP status.
    pub status: u16,
    /// Further headers of the answer, such as `retry-after`.
    pub headers: Vec<(String, String)>,
    /// What the body is.
    pub content: Content,
    /// Milliseconds before the first byte of the answer.
    pub first_byte_ms: u64,
    /// Milliseconds between two events of a stream, or two pieces of a plain body.
    pub gap_ms: u64,
    /// Pieces of text in a stream.
    pub chunks: usize,
    /// Text of the answer; absent = made from the request.
    pub text: Option<String>,
    /// How the answer ends.
    pub end: End,
    /// What is said about tokens.
    pub report: Report,
    /// Only for the first so many requests with the same body; 0 = for all.
    pub first: u32,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            content: Content::Answer,
            first_byte_ms: 0,
            gap_ms: 0,
            chunks: 5,
            text: None,
            end: End::Whole,
            report: Report::Counted,
            first: 0,
        }
    }
}

/// What the body of an answer is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// What was asked for; an error object when the status is not 2xx.
    Answer,
    /// An error object, whatever the status.
    Error {
        /// `error.code`.
        code: String,
    },
    /// A web page.
    Html,
    /// Nothing.
    Empty,
    /// These bytes, with the status and headers of the script; `content-type: application/json`.
    Body(String),
    /// These bytes as an event stream.
    Events(Vec<u8>),
    /// These bytes instead of a whole HTTP answer; the connection is closed after them.
    Raw(Vec<u8>),
}

/// How an answer ends. Positions count events of a stream, bytes of a plain body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// As the protocol wants it.
    Whole,
    /// The connection is reset after so many.
    Cut(usize),
    /// A stream is cut inside a character of several bytes.
    CutInCharacter,
    /// Nothing more after so many, connection open.
    Stall(usize),
    /// An error event after so many, then the end.
    ErrorEvent(usize),
    /// A stream without `[DONE]`, otherwise whole.
    NoDone,
    /// One byte at a time, `gap_ms` between them.
    Drip,
}

/// What the provider says about tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// What it counted.
    Counted,
    /// Nothing.
    Absent,
    /// Exactly this.
    Exactly {
        /// `prompt_tokens`, cached ones included.
        prompt: u64,
        /// `prompt_tokens_details.cached_tokens`.
        cached: u64,
        /// `completion_tokens`, reasoning included.
        completion: u64,
        /// `completion_tokens_details.reasoning_tokens`.
        reasoning: u64,
    },
    /// This JSON in place of the usage object.
    Json(serde_json::Value),
    /// The usage chunk of a stream comes before the last text, and again at the end.
    Twice,
}

impl Script {
    /// A good answer.
    pub fn ok() -> Self {
        Self::default()
    }

    /// An error of this status.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// 429 with `retry-after` in seconds.
    pub fn rate_limited(retry_after_s: u64) -> Self {
        Self { headers: vec![("retry-after".into(), retry_after_s.to_string())], ..Self::status(429) }
    }

    /// A stream of so many events with a pause between them.
    pub fn slow_stream(chunks: usize, gap_ms: u64) -> Self {
        Self { chunks, gap_ms, ..Self::default() }
    }

    /// No byte of an answer before so many milliseconds.
    pub fn delayed(first_byte_ms: u64) -> Self {
        Self { first_byte_ms, ..Self::default() }
    }

    /// The same, with another end.
    pub fn ending(self, end: End) -> Self {
        Self { end, ..self }
    }

    /// The same, with another body.
    pub fn with(self, content: Content) -> Self {
        Self { content, ..self }
    }

    /// The same, with another report of tokens.
    pub fn reporting(self, report: Report) -> Self {
        Self { report, ..self }
    }
}
