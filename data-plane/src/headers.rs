//! The headers of our answers, and those that cross from the caller to a provider.

use std::fmt::{self, Write};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use shared::ids::RequestId;
use shared::money::Nanos;

use crate::exchange::Exchange;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REVISION: HeaderName = HeaderName::from_static("x-pointsman-revision");
const RESOLVED_MODEL: HeaderName = HeaderName::from_static("x-pointsman-resolved-model");
const PROVIDER: HeaderName = HeaderName::from_static("x-pointsman-provider");
const FALLBACK_LEVEL: HeaderName = HeaderName::from_static("x-pointsman-fallback-level");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-pointsman-attempts");
const REASON: HeaderName = HeaderName::from_static("x-pointsman-reason");
const COST_USD: HeaderName = HeaderName::from_static("x-pointsman-cost-usd");
const ORCA_RESOLVED_MODEL: HeaderName = HeaderName::from_static("x-orca-resolved-model");
const ORCA_FALLBACK_LEVEL: HeaderName = HeaderName::from_static("x-orca-fallback-level");
const ORCA_FALLBACK_MODEL: HeaderName = HeaderName::from_static("x-orca-fallback-model");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What every answer carries, unless it is there.
pub fn identify(headers: &mut HeaderMap, id: &RequestId) {
    headers.entry(X_REQUEST_ID).or_insert_with(|| {
        let mut text = String::with_capacity(40);
        id.push_to(&mut text);
        // Letters, digits and an underscore.
        HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(HeaderValue::from_static(""))
    });
}

/// Asks the caller to open another connection for its next request.
pub fn close(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// For a JSON body, into an empty map.
pub fn json(mut headers: HeaderMap) -> HeaderMap {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers
}

/// For a stream, into an empty map; tells proxies in between not to hold it back.
pub fn event_stream(mut headers: HeaderMap) -> HeaderMap {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    headers
}

/// Which request it was, which way it went, and what it cost when that is known already.
pub fn routed(headers: &mut HeaderMap, exchange: &Exchange, cost: Option<Nanos>) {
    headers.insert(ATTEMPTS, small(exchange.attempts.count()));
    let tried = exchange.last_slot().and_then(|slot| exchange.plan.at(slot));
    if let Some((candidate, _)) = tried {
        headers.insert(FALLBACK_LEVEL, small(candidate.level));
    }
    let mut texts = Texts { headers, text: BytesMut::with_capacity(256) };
    texts.add(X_REQUEST_ID, exchange.arrival.id);
    texts.add(REVISION, exchange.plan.revision);
    texts.add(REASON, exchange.plan.why());
    if let Some(cost) = cost {
        texts.add(COST_USD, cost);
    }
    if let Some((candidate, _)) = tried {
        texts.add(PROVIDER, &candidate.provider.slug);
        texts.add(RESOLVED_MODEL, candidate.name());
    }
    if let Some((candidate, _)) = tried
        && exchange.worker.node.orca_headers
        && let Some(name) = headers.get(RESOLVED_MODEL).cloned()
    {
        headers.insert(ORCA_FALLBACK_LEVEL, small(candidate.level));
        if candidate.level > 0 {
            headers.insert(ORCA_FALLBACK_MODEL, name.clone());
        }
        headers.insert(ORCA_RESOLVED_MODEL, name);
    }
}

/// Adds headers whose values lie one behind the other in one piece of memory.
struct Texts<'h> {
    headers: &'h mut HeaderMap,
    text: BytesMut,
}

impl Texts<'_> {
    /// Names come from the snapshot and are not all header text: what does not fit is left out.
    fn add(&mut self, name: HeaderName, value: impl fmt::Display) {
        // Memory is added where it is needed.
        _ = write!(self.text, "{value}");
        if let Ok(value) = HeaderValue::from_maybe_shared(self.text.split().freeze()) {
            self.headers.insert(name, value);
        }
    }
}

/// The caller's trace context (W3C Trace Context): `traceparent` and `tracestate`, when well-formed.
pub fn trace(headers: &HeaderMap) -> Option<Trace> {
    let parent = headers.get(&TRACEPARENT)?;
    Trace::parse(parent.as_bytes(), headers.get(&TRACESTATE))
}

/// A caller's trace.
#[derive(Debug, Clone)]
pub struct Trace {
    /// As received.
    pub parent: HeaderValue,
    /// As received.
    pub state: Option<HeaderValue>,
}

impl Trace {
    /// `00-<32 hex>-<16 hex>-<2 hex>`, ids not all zero.
    fn parse(text: &[u8], state: Option<&HeaderValue>) -> Option<Self> {
        let hex = |range: std::ops::Range<usize>| {
            let part = text.get(range)?;
            let lower = part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            (lower && part.iter().any(|b| *b != b'0')).then_some(())
        };
        let dashes = [2, 35, 52].iter().all(|at| text.get(*at) == Some(&b'-'));
        let flags = text.get(53..55)?.iter().all(u8::is_ascii_hexdigit);
        if text.len() != 55 || !text.starts_with(b"00") || !dashes || !flags {
            return None;
        }
        hex(3..35)?;
        hex(36..52)?;
        let state = state.filter(|s| s.len() <= 512).cloned();
        Some(Self { parent: HeaderValue::from_bytes(text).ok()?, state })
    }

    /// Passes it on to a provider.
    pub fn forward(&self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, self.parent.clone());
        if let Some(state) = &self.state {
            headers.insert(TRACESTATE, state.clone());
        }
    }
}

/// Attempts and levels are mostly one digit, which takes no memory of its own.
fn small(number: u32) -> HeaderValue {
    const DIGITS: [&str; 4] = ["0", "1", "2", "3"];
    let digit = usize::try_from(number).ok().and_then(|n| DIGITS.get(n).copied());
    digit.map_or_else(|| HeaderValue::from(number), HeaderValue::from_static)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_traces_pass() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(Trace::parse(good.as_bytes(), None).is_some());
        for bad in [
            "",
            "00",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert!(Trace::parse(bad.as_bytes(), None).is_none(), "{bad}");
        }
    }
}
