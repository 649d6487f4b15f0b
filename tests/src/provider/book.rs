//! The provider's own record: who asked what, what was answered, how many tokens were reported.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;

/// Requests kept with all detail; further ones are only counted.
const KEPT: usize = 300_000;
/// A request's body above this is kept as a hash only.
const KEPT_BODY: usize = 4 * 1024 * 1024;

/// Tokens as the provider said them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Reported {
    /// Whole prompt, cached part included.
    pub prompt: u64,
    /// Part of the prompt read from a cache.
    pub cached: u64,
    /// Everything produced, reasoning included.
    pub completion: u64,
    /// Part of what was produced.
    pub reasoning: u64,
}

/// How far an answer got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Still being written.
    Open,
    /// Every byte of the script was written.
    Done,
    /// The router closed the connection first, after this time.
    Left(Duration),
}

/// One request and its answer.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Order of arrival, from 0.
    pub number: u64,
    /// When its head was read.
    pub at: Instant,
    /// "POST".
    pub method: String,
    /// "/v1/chat/completions".
    pub path: String,
    /// As received, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body, unless it is too large or bodies are not kept.
    pub body: Bytes,
    /// SHA-256 of the body, hex.
    pub body_hash: String,
    /// Field `model`; "" when there is none.
    pub model: String,
    /// Without "Bearer ".
    pub credential: String,
    /// Field `user` of the body: how tests name a request.
    pub tag: String,
    /// HTTP status answered.
    pub status: u16,
    /// Reported to the router, when the bytes that say so were written.
    pub reported: Option<Reported>,
    /// SHA-256 of the answer's body (events without chunk framing), hex; "" until done.
    pub answer_hash: String,
    /// How far it got.
    pub delivery: Delivery,
}

impl Seen {
    /// First header of this name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// Sums over the answers of one model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Requests that arrived.
    pub requests: u64,
    /// Answers in which tokens were reported.
    pub answers: u64,
    /// Sum of what was reported.
    pub tokens: Reported,
}

/// All records.
#[derive(Debug)]
pub struct Book {
    /// Whether bodies are kept.
    pub keep_bodies: bool,
    seen: Vec<Seen>,
    totals: HashMap<String, Totals>,
    count: u64,
}

impl Default for Book {
    fn default() -> Self {
        Self { keep_bodies: true, seen: Vec::new(), totals: HashMap::new(), count: 0 }
    }
}

impl Book {
    /// Adds a request and gives its number.
    pub fn arrived(&mut self, mut seen: Seen) -> u64 {
        let number = self.count;
        self.count += 1;
        self.totals.entry(seen.model.clone()).or_default().requests += 1;
        seen.number = number;
        if !self.keep_bodies || seen.body.len() > KEPT_BODY {
            seen.body = Bytes::new();
        }
        if self.seen.len() < KEPT {
            self.seen.push(seen);
        }
        number
    }

    /// Tokens were written to the router.
    pub fn reported(&mut self, number: u64, model: &str, tokens: Reported) {
        let totals = self.totals.entry(model.to_owned()).or_default();
        totals.answers += 1;
        totals.tokens.prompt += tokens.prompt;
        totals.tokens.cached += tokens.cached;
        totals.tokens.completion += tokens.completion;
        totals.tokens.reasoning += tokens.reasoning;
        self.change(number, |seen| seen.reported = Some(tokens));
    }

    /// The answer is over.
    pub fn ended(&mut self, number: u64, delivery: Delivery, status: u16, answer_hash: String) {
        self.change(number, |seen| {
            seen.delivery = delivery;
            seen.status = status;
            seen.answer_hash = answer_hash;
        });
    }

    /// Every kept request.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.clone()
    }

    /// Requests that arrived.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Sums by model.
    pub fn totals(&self) -> HashMap<String, Totals> {
        self.totals.clone()
    }

    fn change(&mut self, number: u64, change: impl FnOnce(&mut Seen)) {
        if let Some(seen) = usize::try_from(number).ok().and_then(|n| self.seen.get_mut(n)) {
            change(seen);
        }
    }
}
