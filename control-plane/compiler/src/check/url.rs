//! Addresses of providers: what a tenant may point a node at, and vendors' URL templates.

use std::collections::BTreeMap;

use shared::snapshot::{BaseUrl, Scheme};

const MAX_URL: usize = 2000;

/// What is wrong with an address, if anything. The built-in `sandbox` scheme is for that vendor only.
pub(super) fn base_url(text: &str, vendor: &str) -> Option<String> {
    if text.len() > MAX_URL {
        return Some(format!("must have at most {MAX_URL} characters"));
    }
    if text.contains(['{', '}']) {
        return Some("must not hold { or }".to_owned());
    }
    let url = match BaseUrl::parse(text) {
        Ok(url) => url,
        Err(message) => return Some(message.to_owned()),
    };
    if url.scheme == Scheme::Sandbox && vendor != "sandbox" {
        return Some("must start with https:// or http://".to_owned());
    }
    disguised(url.authority.host()).then(|| "must write an IPv4 address as four decimal numbers".to_owned())
}

/// Numbers that resolvers read as an IPv4 address though they do not look like one: `2130706433`,
/// `0x7f.1`, `0177.0.0.1`.
fn disguised(host: &str) -> bool {
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let hex = |s: &str| s.len() >= 2 && s[..2].eq_ignore_ascii_case("0x");
    let number = !last.is_empty() && (last.bytes().all(|b| b.is_ascii_digit()) || (last.is_ascii() && hex(last)));
    number && host.parse::<std::net::Ipv4Addr>().is_err()
}

/// What is wrong with a template parameter, if anything.
pub(super) fn parameter(value: &str) -> Option<String> {
    let fine = (1..=100).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    (!fine).then(|| "must be 1 to 100 letters, digits, -, _ and .".to_owned())
}

/// Names of the `{placeholders}` of a vendor's address, in order.
pub fn placeholders(template: &str) -> Vec<&str> {
    template.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name).collect()
}

/// A vendor's address with its placeholders replaced; `None` when a value is missing.
pub fn fill_in(template: &str, parameters: &BTreeMap<String, String>) -> Option<String> {
    let mut filled = template.to_owned();
    for name in placeholders(template) {
        filled = filled.replace(&format!("{{{name}}}"), parameters.get(name)?);
    }
    Some(filled)
}
