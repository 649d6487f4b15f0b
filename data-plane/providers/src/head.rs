//! `Head`: what must be known of a caller's request before it can be routed, limited and metered.
//! It borrows from the body. It holds nothing that only the provider cares about.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// Why a request's body is refused. Rendered as 400 with `type` `invalid_request_error`; nothing is
/// forwarded, reserved or metered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRequest {
    /// Stable: one of the constants of this type.
    pub code: &'static str,
    /// The field, as OpenAI names it: `messages[2].role`. Absent when the body as a whole is wrong.
    pub param: Option<Cow<'static, str>>,
    /// For the caller; at most a few hundred bytes.
    pub message: String,
}

impl BadRequest {
    /// Not JSON in UTF-8, or something behind it.
    pub const INVALID_JSON: &'static str = "invalid_json";
    /// More than [`MAX_DEPTH`] levels of arrays and objects.
    pub const NESTING_TOO_DEEP: &'static str = "nesting_too_deep";
    /// A field that must be there is not.
    pub const MISSING: &'static str = "missing_required_parameter";
    /// A field has the wrong JSON type.
    pub const INVALID_TYPE: &'static str = "invalid_type";
    /// A field has a value that is out of its range.
    pub const INVALID_VALUE: &'static str = "invalid_value";
    /// A field that routes or bills stands twice, or in a spelling that some readers take for it.
    pub const DUPLICATE: &'static str = "duplicate_parameter";

    pub(crate) fn whole(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, param: None, message: message.into() }
    }
}

impl fmt::Display for BadRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.param {
            Some(param) => write!(f, "{} ({param}): {}", self.code, self.message),
            None => write!(f, "{}: {}", self.code, self.message),
        }
    }
}

impl std::error::Error for BadRequest {}

/// Levels of arrays and objects that a body may have.
pub const MAX_DEPTH: usize = 128;
/// Bytes of a model's name.
pub const MAX_MODEL_BYTES: usize = 256;
/// Names in `models`.
pub const MAX_FALLBACKS: usize = 5;
/// Entries of `tools`.
pub const MAX_TOOLS: u32 = 1_024;
/// Entries of `messages`.
pub const MAX_MESSAGES: u32 = 65_536;
/// Value of `n`.
pub const MAX_CHOICES: u64 = 128;
/// Value of `max_tokens` and `max_completion_tokens`: above what any model produces.
pub const MAX_OUTPUT_TOKENS: u64 = 10_000_000;
/// Bytes of `user`.
pub const MAX_USER_BYTES: usize = 1_024;

/// What a request says about itself.
#[derive(Debug, Clone, Default)]
pub struct Head<'a> {
    /// `model`. Absent only when `models` names some.
    pub model: Option<Cow<'a, str>>,
    /// `models`: names to try in this order; `model` is ignored then. At most [`MAX_FALLBACKS`].
    pub models: Vec<Cow<'a, str>>,
    /// Whether the answer is to be a stream of events.
    pub stream: bool,
    /// `stream_options.include_usage`: whether the caller wants the usage chunk.
    pub include_usage: bool,
    /// `max_completion_tokens`, else `max_tokens`: bound on what one choice may produce.
    pub max_output_tokens: Option<u64>,
    /// `n`: answers wanted, 1 to [`MAX_CHOICES`].
    pub choices: u32,
    /// Number of `tools`.
    pub tools: u32,
    /// `tool_choice`.
    pub tool_choice: ToolChoice,
    /// `response_format`.
    pub response_format: ResponseFormat,
    /// What a model must be able to do to take this request.
    pub needs: Needs,
    /// `user`: the end user as the caller names it; at most [`MAX_USER_BYTES`].
    pub user: Option<Cow<'a, str>>,
    /// `metadata`: the object's text as it stands in the body.
    pub metadata: Option<&'a str>,
    /// Number of `messages`, or of inputs of an embeddings request.
    pub parts: u32,
    /// Own estimate of the prompt's tokens: a quarter of its text's bytes, rounded up. Media are not
    /// counted.
    pub prompt_tokens_estimate: u64,
    pub(crate) spans: Spans,
}

/// Who chooses whether a tool is called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// Not said.
    #[default]
    Unset,
    /// `"none"`: no call.
    None,
    /// `"auto"`: the model.
    Auto,
    /// `"required"` (or `"any"`): some call must be made.
    Required,
    /// An object: a named tool or a set of them.
    Named,
}

/// The form of answer that was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ResponseFormat {
    /// Not said, or `text`.
    #[default]
    Text,
    /// `json_object`.
    JsonObject,
    /// `json_schema`.
    JsonSchema,
    /// A form that only some vendor knows.
    Vendor,
}

/// Capabilities, by the names of the catalogue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// `tools` is not empty.
    pub tools: bool,
    /// Some message holds an image.
    pub vision: bool,
    /// Some message holds sound.
    pub audio_input: bool,
    /// `modalities` asks for sound, or `audio` is set.
    pub audio_output: bool,
    /// Some message holds a file (a PDF).
    pub pdf_input: bool,
    /// The answer must follow a JSON schema.
    pub json_schema: bool,
}

/// Where in the body the values stand that may be replaced on the way out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spans {
    /// The `{` that opens the body.
    pub open: usize,
    /// `model`, with its quotes.
    pub model: Option<Range<usize>>,
    /// `stream_options`.
    pub stream_options: Option<Range<usize>>,
    /// `stream_options.include_usage`.
    pub include_usage: Option<Range<usize>>,
    /// `models`.
    pub models: Option<Range<usize>>,
    /// `route`.
    pub route: Option<Range<usize>>,
}
