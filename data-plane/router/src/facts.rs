//! What is known of a request before anything is decided. Filled in by ingress from the body, the
//! headers and the connection; nothing here is looked up.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

pub use shared::endpoint::Endpoint;
use shared::snapshot::{ApiKey, Workspace};

/// One request, as far as a decision needs it.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Whose request it is.
    pub key: &'a ApiKey,
    /// The key's workspace.
    pub workspace: &'a Arc<Workspace>,
    /// What was called.
    pub endpoint: Endpoint,
    /// `model` of the body.
    pub model: &'a str,
    /// Inline `models` of the body, tried in order; `model` is ignored when there are any. At most
    /// [`MAX_INLINE_MODELS`].
    pub models: &'a [Cow<'a, str>],
    /// The answer is to be streamed.
    pub stream: bool,
    /// Tools are offered.
    pub tools: bool,
    /// An image is part of the prompt.
    pub vision: bool,
    /// Audio is part of the prompt.
    pub audio_input: bool,
    /// The answer is to be heard.
    pub audio_output: bool,
    /// A PDF is part of the prompt.
    pub pdf: bool,
    /// The answer must follow a JSON schema.
    pub json_schema: bool,
    /// Bytes of text in the prompt as they stand in the JSON body, without embedded files. Too low
    /// is safe, too high refuses what would fit; 0 = not counted.
    pub prompt_text_bytes: u64,
    /// Most tokens the caller wants produced.
    pub max_tokens: Option<u64>,
    /// Environment tag the caller asks for: credentials tagged otherwise are left alone.
    pub environment: Option<&'a str>,
    /// Where the request came from.
    pub peer: IpAddr,
    /// How long ago the control plane was last heard, in milliseconds.
    pub config_age_ms: u64,
    /// Longest the whole request may take, in milliseconds: the node's default or less. A provider
    /// with a total timeout of its own goes before it.
    pub total_ms: u64,
}

impl Facts<'_> {
    /// The name to put into records: `model`, or the first of `models`.
    pub fn requested(&self) -> &str {
        self.models.first().map_or(self.model, |first| first)
    }
}

/// Longest inline `models` list.
pub const MAX_INLINE_MODELS: usize = 5;

/// Both clocks, read once. Decisions about dates use the first, everything about durations the
/// second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since 1970.
    pub wall_ms: i64,
    /// Milliseconds since any fixed moment; never goes back.
    pub mono_ms: u64,
}
