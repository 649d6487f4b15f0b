//! Tokens by class. The classes do not overlap, so a total never counts a token twice whatever the
//! provider's own habit is (OpenAI and Gemini count cached tokens inside the prompt, Anthropic
//! beside it); dialects normalise on reading.

use serde::{Deserialize, Serialize};

use crate::proto;

/// What one request used. The sum of all fields is the provider's total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tokens {
    /// Prompt tokens read at full price: neither from a cache nor audio.
    pub input: u64,
    /// Prompt tokens read from the provider's cache.
    pub cache_read: u64,
    /// Prompt tokens written to the provider's cache for five minutes (or its default time).
    pub cache_write_5m: u64,
    /// Prompt tokens written to the provider's cache for an hour.
    pub cache_write_1h: u64,
    /// Produced tokens, without reasoning and audio.
    pub output: u64,
    /// Produced tokens that the caller may not see.
    pub reasoning: u64,
    /// Audio tokens of the prompt.
    pub audio_input: u64,
    /// Audio tokens produced.
    pub audio_output: u64,
}

impl Tokens {
    /// The whole prompt, cached and written parts included. Saturates.
    pub fn prompt(&self) -> u64 {
        self.input
            .saturating_add(self.cache_read)
            .saturating_add(self.cache_write_5m)
            .saturating_add(self.cache_write_1h)
            .saturating_add(self.audio_input)
    }

    /// Everything produced. Saturates.
    pub fn produced(&self) -> u64 {
        self.output.saturating_add(self.reasoning).saturating_add(self.audio_output)
    }

    /// Adds another count, class by class. Saturates.
    pub fn add(&mut self, more: &Self) {
        let classes = [
            (&mut self.input, more.input),
            (&mut self.cache_read, more.cache_read),
            (&mut self.cache_write_5m, more.cache_write_5m),
            (&mut self.cache_write_1h, more.cache_write_1h),
            (&mut self.output, more.output),
            (&mut self.reasoning, more.reasoning),
            (&mut self.audio_input, more.audio_input),
            (&mut self.audio_output, more.audio_output),
        ];
        for (sum, count) in classes {
            *sum = sum.saturating_add(count);
        }
    }

    /// Everything. Saturates.
    pub fn total(&self) -> u64 {
        self.prompt().saturating_add(self.produced())
    }
}

impl From<Tokens> for proto::Tokens {
    fn from(t: Tokens) -> Self {
        Self {
            input: t.input,
            cache_read: t.cache_read,
            cache_write_5m: t.cache_write_5m,
            cache_write_1h: t.cache_write_1h,
            output: t.output,
            reasoning: t.reasoning,
            audio_input: t.audio_input,
            audio_output: t.audio_output,
        }
    }
}

impl From<&proto::Tokens> for Tokens {
    fn from(t: &proto::Tokens) -> Self {
        Self {
            input: t.input,
            cache_read: t.cache_read,
            cache_write_5m: t.cache_write_5m,
            cache_write_1h: t.cache_write_1h,
            output: t.output,
            reasoning: t.reasoning,
            audio_input: t.audio_input,
            audio_output: t.audio_output,
        }
    }
}
