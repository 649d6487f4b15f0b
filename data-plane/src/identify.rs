//! From the headers of a request to the key it carries. Looks nothing up but the pinned snapshot.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, header};
use router::Refusal;
use shared::snapshot::{ApiKey, Snapshot, Workspace};

/// The header names that SDKs put a key into, besides `authorization`.
static KEY_HEADERS: [HeaderName; 2] = [HeaderName::from_static("x-api-key"), HeaderName::from_static("api-key")];

/// Longest text that can be a key; longer ones are not hashed.
const MAX_KEY_BYTES: usize = 128;

/// Whose request this is. Missing, malformed and unknown keys are refused in the same words, after
/// the same work.
pub fn identify(headers: &HeaderMap, snapshot: &Snapshot) -> Result<(Arc<ApiKey>, Arc<Workspace>), Refusal> {
    let presented = presented_key(headers).unwrap_or_default();
    let hash = shared::digest::sha256(&[presented]);
    match snapshot.key(&hash) {
        Some((key, workspace)) => Ok((key.clone(), workspace.clone())),
        None => Err(Refusal::invalid_api_key()),
    }
}

/// The one key of the request; `None` when there is none, or more than one and they differ.
fn presented_key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearers = headers.get_all(header::AUTHORIZATION).iter().map(|value| bearer(value.as_bytes()));
    let others = KEY_HEADERS.iter().flat_map(|name| headers.get_all(name)).map(|value| Some(value.as_bytes()));
    let mut keys = bearers.chain(others);
    let first = keys.next()??;
    let same = keys.all(|other| other == Some(first));
    (same && !first.is_empty() && first.len() <= MAX_KEY_BYTES).then_some(first)
}

/// RFC 6750: the scheme's name is case-insensitive, one or more spaces follow.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_key_a_request_carries() {
        type Case = (&'static [(&'static str, &'static str)], Option<&'static str>);
        let cases: &[Case] = &[
            (&[("authorization", "Bearer k1")], Some("k1")),
            (&[("authorization", "bearer  k1")], Some("k1")),
            (&[("x-api-key", "k1")], Some("k1")),
            (&[("api-key", "k1"), ("authorization", "Bearer k1")], Some("k1")),
            (&[("authorization", "Bearer k1"), ("authorization", "Bearer k2")], None),
            (&[("authorization", "Bearer k1"), ("x-api-key", "k2")], None),
            (&[("authorization", "Bearer")], None),
            (&[("authorization", "Bearer ")], None),
            (&[("authorization", "Basic k1")], None),
            (&[], None),
        ];
        for (headers, expected) in cases {
            let mut map = HeaderMap::new();
            for (name, value) in *headers {
                map.append(*name, value.parse().expect("a header value"));
            }
            assert_eq!(presented_key(&map), expected.map(str::as_bytes), "{headers:?}");
        }
    }
}
