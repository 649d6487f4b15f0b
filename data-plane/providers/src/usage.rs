//! A provider's count of tokens in our classes, which do not overlap. A count that cannot be true
//! is treated as none, and says so.

use shared::usage::Tokens;

/// What a request used, and how far that is to be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The count.
    pub tokens: Tokens,
    /// The provider did not report (or not sanely): the count is our own estimate.
    pub estimated: bool,
    /// The provider reported numbers that cannot be true.
    pub rejected: bool,
    /// `service_tier` as the provider says; empty when it does not. At most 64 bytes.
    pub service_tier: String,
}

use crate::json::{self, Shallow};
use crate::quirks::Quirks;

/// Tokens of one class above this are no count: a thousand times any model's context.
const MOST_TOKENS: u64 = 1_000_000_000;
/// Bytes of a service tier's name that are kept.
const MOST_TIER_BYTES: usize = 64;

impl Usage {
    /// Our own count: the request's estimate of its prompt, and a quarter of the produced text's
    /// bytes, rounded up.
    pub fn estimate(prompt_tokens: u64, text_bytes: u64) -> Self {
        let tokens = Tokens { input: prompt_tokens, output: text_bytes.div_ceil(4), ..Tokens::default() };
        Self { tokens, estimated: true, rejected: false, service_tier: String::new() }
    }
}

/// A tier's name as records keep it.
pub(crate) fn tier(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(MOST_TIER_BYTES / 4).collect()
}

/// What a `usage` object says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reported {
    /// Nothing about tokens.
    Nothing,
    /// Numbers that cannot be true: negative, fractional, beyond all measure.
    Nonsense,
    /// A count.
    Count(Tokens),
}

/// Reads the `usage` object `raw`.
pub(crate) fn read(raw: &str, quirks: Quirks) -> Reported {
    let mut counts = Counts::default();
    json::members(raw).for_each(|(key, value)| counts.take(&key, value));
    if counts.nonsense {
        return Reported::Nonsense;
    }
    counts.tokens(quirks).map_or(Reported::Nothing, Reported::Count)
}

/// The numbers under the names that vendors use.
#[derive(Debug, Default)]
struct Counts {
    prompt: Option<u64>,
    completion: Option<u64>,
    total: Option<u64>,
    cached: Option<u64>,
    cache_write: Option<u64>,
    audio_input: Option<u64>,
    reasoning: Option<u64>,
    audio_output: Option<u64>,
    nonsense: bool,
}

impl Counts {
    fn take(&mut self, key: &str, raw: &str) {
        match key {
            "prompt_tokens" => self.prompt = self.number(raw),
            "completion_tokens" => self.completion = self.number(raw),
            "total_tokens" => self.total = self.number(raw),
            // DeepSeek; Moonshot; Mistral. OpenAI's own place, read below, wins when it has a number.
            "prompt_cache_hit_tokens" | "cached_tokens" | "num_cached_tokens" => {
                self.cached = self.cached.or(self.number(raw));
            }
            "prompt_tokens_details" => json::members(raw).for_each(|(key, raw)| match &*key {
                "cached_tokens" => self.cached = self.number(raw).or(self.cached),
                "cache_write_tokens" => self.cache_write = self.number(raw),
                "audio_tokens" => self.audio_input = self.number(raw),
                _ => {}
            }),
            "completion_tokens_details" => json::members(raw).for_each(|(key, raw)| match &*key {
                "reasoning_tokens" => self.reasoning = self.number(raw),
                "audio_tokens" => self.audio_output = self.number(raw),
                _ => {}
            }),
            _ => {}
        }
    }

    fn number(&mut self, raw: &str) -> Option<u64> {
        let count = match Shallow::of(raw) {
            Shallow::Null => return None,
            Shallow::Natural(count) => Some(count),
            // Some servers print 12 as 12.0.
            Shallow::Number(count) if count.fract() == 0.0 && (0.0..=MOST_TOKENS as f64).contains(&count) => {
                Some(count as u64)
            }
            Shallow::Number(_) | Shallow::Bool(_) | Shallow::Text(_) | Shallow::Array | Shallow::Object => None,
        };
        let count = count.filter(|count| *count <= MOST_TOKENS);
        self.nonsense |= count.is_none();
        count
    }

    fn tokens(&self, quirks: Quirks) -> Option<Tokens> {
        let known = |part: Option<u64>| self.total?.checked_sub(part?);
        let prompt = self.prompt.or_else(|| known(self.completion)).or(self.total)?;
        let completion = self.completion.or_else(|| known(Some(prompt))).unwrap_or(0);
        let reported = self.reasoning.unwrap_or(0);
        // What the total holds beyond both parts was produced, and stands in neither.
        let beyond = self.total.map(|total| total.saturating_sub(prompt + completion));
        let outside = match beyond {
            Some(beyond) if quirks.reasoning_outside_completion => Some(beyond),
            Some(beyond) if reported > 0 && beyond == reported => Some(beyond),
            Some(_) => None,
            None => quirks.reasoning_outside_completion.then_some(reported),
        };
        let audio_output = self.audio_output.unwrap_or(0).min(completion);
        let visible = completion - audio_output;
        let (output, reasoning) = match outside {
            Some(outside) if outside > 0 => (visible, outside),
            Some(_) | None => (visible.saturating_sub(reported), reported.min(visible)),
        };
        // Parts of the prompt; what they leave was read at full price. A part larger than the rest
        // is cut down to it: the whole is what is billed.
        let mut input = prompt;
        let mut part = |count: Option<u64>| {
            let count = count.unwrap_or(0).min(input);
            input -= count;
            count
        };
        let cache_read = part(self.cached);
        let cache_write_5m = part(self.cache_write);
        let audio_input = part(self.audio_input);
        let cache_write_1h = 0;
        Some(Tokens { input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, audio_input, audio_output })
    }
}
