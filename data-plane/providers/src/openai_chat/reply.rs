//! A whole answer, looked at in one pass: whether it is one, and what it used. Its bytes go to the
//! caller as they came.

use http::HeaderMap;
use shared::failure::{Failure, FailureKind};

use super::{error, glance::glance};
use crate::json::{self, Flaw, Sent};
use crate::quirks::Quirks;
use crate::usage::{self, Reported, Usage};

/// What must be known of a whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyFacts {
    /// What it used.
    pub usage: Usage,
}

/// Reads the whole body of a 200. One that is no chat completion is a `BadReply`, one that holds an
/// error is what that error means. `prompt_tokens`: the request's own estimate, for when the
/// provider does not report.
pub fn read(body: &[u8], quirks: Quirks, prompt_tokens: u64) -> Result<ReplyFacts, Failure> {
    read_list(body, "choices", quirks, prompt_tokens)
}

/// The same for any answer whose content is the array under `list`.
pub(crate) fn read_list(body: &[u8], list: &str, quirks: Quirks, prompt_tokens: u64) -> Result<ReplyFacts, Failure> {
    let bad = |what: &str| Failure::new(FailureKind::BadReply, format!("The provider's answer {what}."));
    if body.trim_ascii().is_empty() {
        return Err(bad("is empty"));
    }
    let text = match json::check(body, Sent::ByProvider) {
        Ok(text) if text.starts_with('{') => text,
        Ok(_) => return Err(bad("is not a JSON object")),
        Err(Flaw::Encoding) => return Err(bad("is not UTF-8 without a byte order mark")),
        Err(flaw) => return Err(bad("is not a JSON object").context(format!("{flaw:?}"))),
    };
    let reply = Reply::read(text, list);
    if reply.error {
        return Err(error::classify(200, &HeaderMap::new(), body, None, 0));
    }
    match reply.list.map(|raw| raw.strip_prefix('[').map(str::trim_start)) {
        None => return Err(bad(&format!("has no {list}"))),
        Some(None) => return Err(bad(&format!("has {list} that are no array"))),
        Some(Some(rest)) if rest.starts_with(']') => return Err(bad(&format!("has no {list}"))),
        Some(Some(_)) => {}
    }
    let reported = reply.usage.map_or(Reported::Nothing, |raw| usage::read(raw, quirks));
    let mut usage = match reported {
        Reported::Count(tokens) => Usage { tokens, estimated: false, rejected: false, service_tier: String::new() },
        Reported::Nothing | Reported::Nonsense => Usage::estimate(prompt_tokens, glance(body, b"message").text_bytes),
    };
    usage.rejected = reported == Reported::Nonsense;
    usage.service_tier = reply.tier;
    Ok(ReplyFacts { usage })
}

/// The members that matter.
#[derive(Default)]
struct Reply<'a> {
    list: Option<&'a str>,
    usage: Option<&'a str>,
    error: bool,
    tier: String,
}

impl<'a> Reply<'a> {
    fn read(text: &'a str, list: &str) -> Self {
        let mut reply = Self::default();
        for (key, raw) in json::members(text) {
            match &*key {
                "usage" => reply.usage = Some(raw).filter(|raw| raw.starts_with('{')),
                "error" => reply.error |= !matches!(raw, "null" | "false" | "\"\""),
                "object" => reply.error |= raw == "\"error\"",
                "base_resp" => reply.error |= error::base_resp_status(raw).is_some(),
                "service_tier" => reply.tier = json::text_of(raw).map(|name| usage::tier(&name)).unwrap_or_default(),
                key if key == list => reply.list = Some(raw),
                _ => {}
            }
        }
        reply
    }
}
