//! A whole answer, looked at in one pass: whether it is one, and what it used. Its bytes go to the
//! caller as they came.

use std::fmt;

use http::HeaderMap;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use shared::failure::{Failure, FailureKind};

use super::{error, glance::glance};
use crate::json::Key;
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
    let text = std::str::from_utf8(body).map_err(|_| bad("is not UTF-8"))?;
    let mut parser = serde_json::Deserializer::from_str(text);
    let reply = parser
        .deserialize_map(Top { list })
        .and_then(|reply| parser.end().map(|()| reply))
        .map_err(|e| bad("is not a JSON object").context(format!("line {}, column {}", e.line(), e.column())))?;
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

struct Top<'l> {
    list: &'l str,
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = Reply<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut reply = Reply::default();
        while let Some(Key(key)) = map.next_key()? {
            match &*key {
                "usage" => reply.usage = Some(raw(&mut map)?).filter(|raw| raw.starts_with('{')),
                "error" => reply.error |= !matches!(raw(&mut map)?, "null" | "false" | "\"\""),
                "object" => reply.error |= raw(&mut map)? == "\"error\"",
                "base_resp" => reply.error |= error::base_resp_status(raw(&mut map)?).is_some(),
                "service_tier" => {
                    let name: Option<String> = serde_json::from_str(raw(&mut map)?).ok();
                    reply.tier = name.as_deref().map(usage::tier).unwrap_or_default();
                }
                key if key == self.list => reply.list = Some(raw(&mut map)?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(reply)
    }
}

fn raw<'de, A: MapAccess<'de>>(map: &mut A) -> Result<&'de str, A::Error> {
    Ok(map.next_value::<&'de RawValue>()?.get())
}
