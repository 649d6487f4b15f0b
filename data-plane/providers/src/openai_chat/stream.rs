//! A provider's stream on its way to the caller: whole events pass as they came, looked at but not
//! parsed. Only the chunk that carries nothing but usage is taken out, when we asked for it and the
//! caller did not; an error event is taken out and returned.

use std::ops::Range;

use bytes::Bytes;
use shared::failure::{Failure, FailureKind};

use super::error;
use super::glance::glance;
use crate::frames::sse::{self, Frame, Framer};
use crate::json::{self, Sent};
use crate::quirks::Quirks;
use crate::usage::{self, Reported, Usage};

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The whole answer came: the end marker, or an orderly end after every choice's finish reason
    /// (some servers send no marker).
    Completed,
    /// It stopped before its end.
    Cut,
}

/// What one stream flows through.
#[derive(Debug)]
pub struct Tap {
    quirks: Quirks,
    strip_usage: bool,
    choices: u32,
    framer: Framer,
    /// The last event went to the caller, so the rest of its line end does too.
    passed: bool,
    /// Nothing that follows matters: the end marker or a failure came.
    over: bool,
    done: bool,
    finished: u32,
    content_started: bool,
    text_bytes: u64,
    reported: Reported,
    tier: String,
}

/// What to do with an event.
enum Verdict {
    Pass,
    Strip,
    Fail(Failure),
}

impl Tap {
    /// `strip_usage`: take out the chunk that carries only usage. `choices`: the request's `n`.
    pub fn new(quirks: Quirks, strip_usage: bool, choices: u32) -> Self {
        Self {
            quirks,
            strip_usage,
            choices,
            framer: Framer::default(),
            passed: false,
            over: false,
            done: false,
            finished: 0,
            content_started: false,
            text_bytes: 0,
            reported: Reported::Nothing,
            tier: String::new(),
        }
    }

    /// Takes the next bytes of the provider, however they were cut, and appends to `out` what may go
    /// to the caller now: whole events only, slices of `chunk` where possible. What comes after the
    /// end marker is dropped. An error event is not passed on but returned (what came before it is
    /// in `out`), as is an event beyond [`sse::MAX_EVENT_BYTES`]; the stream is over then.
    pub fn feed(&mut self, chunk: Bytes, out: &mut Vec<Bytes>) -> Result<(), Failure> {
        let mut at = 0;
        // Neighbouring events leave as one slice.
        let mut run: Range<usize> = 0..0;
        if self.framer.owed_line_feed(&chunk) {
            at = 1;
            run.end = usize::from(self.passed);
        }
        let mut outcome = Ok(());
        while !self.over && outcome.is_ok() {
            let (verdict, frame) = match self.framer.next(&chunk, &mut at) {
                Ok(None) => break,
                Ok(Some(Frame::Here(range))) => {
                    (self.look(chunk.get(range.clone()).unwrap_or_default()), Frame::Here(range))
                }
                Ok(Some(Frame::Joined(event))) => (self.look(&event), Frame::Joined(event)),
                Err(sse::TooLarge) => {
                    let failure = Failure::new(FailureKind::BadReply, "The provider sent an event that is too large.");
                    (Verdict::Fail(failure), Frame::Here(at..at))
                }
            };
            self.passed = matches!(verdict, Verdict::Pass);
            match (verdict, frame) {
                (Verdict::Pass, Frame::Here(range)) if run.end == range.start => run.end = range.end,
                (Verdict::Pass, Frame::Here(range)) => flush(&chunk, std::mem::replace(&mut run, range), out),
                (Verdict::Pass, Frame::Joined(event)) => out.push(event),
                (Verdict::Strip, _) => {}
                (Verdict::Fail(failure), _) => {
                    self.over = true;
                    outcome = Err(failure);
                }
            }
        }
        flush(&chunk, run, out);
        outcome
    }

    /// The provider's bytes have ended; `clean` = by an orderly end of the body, not by a broken
    /// connection, a deadline or a cancellation. A last event that lacked only its blank line is
    /// completed and appended to `out`; one that is not whole is dropped.
    pub fn finish(&mut self, clean: bool, out: &mut Vec<Bytes>) -> Result<End, Failure> {
        let rest = self.framer.take();
        if !self.over && is_whole(&rest) {
            match self.look(&rest) {
                Verdict::Pass => {
                    let missing: &[u8] = if rest.ends_with(b"\n") || rest.ends_with(b"\r") { b"\n" } else { b"\n\n" };
                    out.extend([rest, Bytes::from_static(missing)]);
                }
                Verdict::Strip => {}
                Verdict::Fail(failure) => {
                    self.over = true;
                    return Err(failure);
                }
            }
        }
        self.over = true;
        let whole = self.done || (clean && self.finished >= self.choices.max(1));
        Ok(if whole { End::Completed } else { End::Cut })
    }

    /// Whether anything of the answer itself (text, reasoning, sound, tool calls) has come.
    pub fn content_started(&self) -> bool {
        self.content_started
    }

    /// Whether the end marker has come: nothing more is worth waiting for.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Bytes of text produced so far.
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// What the stream used so far: the provider's last count, else our own. `prompt_tokens`: the
    /// request's own estimate.
    pub fn usage(&self, prompt_tokens: u64) -> Usage {
        let mut usage = Usage::estimate(prompt_tokens, self.text_bytes);
        match self.reported {
            Reported::Count(tokens) => {
                usage.tokens = tokens;
                usage.estimated = false;
            }
            Reported::Nonsense => usage.rejected = true,
            Reported::Nothing => {}
        }
        usage.service_tier.clone_from(&self.tier);
        usage
    }

    fn look(&mut self, event: &[u8]) -> Verdict {
        let payload = sse::payload(event);
        let Some(data) = payload.data else { return Verdict::Pass };
        if data.trim_ascii() == b"[DONE]" {
            self.done = true;
            self.over = true;
            return Verdict::Pass;
        }
        let seen = glance(&data, b"delta");
        if seen.error || payload.name == b"error" {
            return Verdict::Fail(error::in_stream(&data, self.content_started));
        }
        self.content_started |= seen.content;
        self.text_bytes += seen.text_bytes;
        self.finished = self.finished.saturating_add(seen.finished);
        if let Some(tier) = seen.tier.filter(|tier| !tier.is_empty() && *tier != self.tier.as_bytes()) {
            self.tier = usage::tier(&String::from_utf8_lossy(tier));
        }
        if seen.usage {
            self.count(&data);
        }
        if seen.usage && seen.bare && self.strip_usage { Verdict::Strip } else { Verdict::Pass }
    }

    /// Reads an event that holds a count. The last sane one wins.
    fn count(&mut self, data: &[u8]) {
        // Not checked: what stands behind the count, such as a Python server's NaN, does not matter to it.
        let Ok(text) = std::str::from_utf8(data.trim_ascii()) else { return };
        let usage_in = |object| {
            let counts = json::members(object).filter(|(key, value)| key == "usage" && value.starts_with('{'));
            counts.last().map(|(_, value)| value)
        };
        // Groq's own place, filled whether asked for or not.
        let nested =
            || json::members(text).filter(|(key, _)| key == "x_groq").filter_map(|(_, value)| usage_in(value)).last();
        let Some(raw) = usage_in(text).or_else(nested) else { return };
        match (usage::read(raw, self.quirks), self.reported) {
            (Reported::Count(tokens), _) => self.reported = Reported::Count(tokens),
            (Reported::Nonsense, Reported::Nothing) => self.reported = Reported::Nonsense,
            (Reported::Nonsense | Reported::Nothing, _) => {}
        }
    }
}

fn flush(chunk: &Bytes, run: Range<usize>, out: &mut Vec<Bytes>) {
    if !run.is_empty() {
        out.push(chunk.slice(run));
    }
}

/// Whether an event that lacks its blank line is nevertheless all there.
fn is_whole(event: &[u8]) -> bool {
    let Some(data) = sse::payload(event).data else { return false };
    let data = data.trim_ascii();
    data == b"[DONE]" || (data.starts_with(b"{") && json::check(data, Sent::ByProvider).is_ok())
}
