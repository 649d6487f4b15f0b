//! Cases that are data: `fixtures/` against what this crate makes of them.

mod errors;
mod replies;
mod requests;
mod streams;

use serde::de::DeserializeOwned;
use serde_json::Value;
use shared::usage::Tokens;

/// Rows of one file of `fixtures/`.
fn rows<T: DeserializeOwned>(text: &str) -> Vec<T> {
    serde_json::from_str(text).expect("a fixture is an array of rows")
}

/// A body: a string, `{"hex": …}`, or `{"parts": [[text, times], …]}`.
fn body(given: &Value) -> Vec<u8> {
    if let Some(text) = given.as_str() {
        return text.into();
    }
    if let Some(hex) = given.get("hex").and_then(Value::as_str) {
        let digit = |at: usize| u8::from_str_radix(hex.get(at..at + 2).expect("pairs"), 16).expect("hex digits");
        return (0..hex.len()).step_by(2).map(digit).collect();
    }
    let parts: Vec<(String, usize)> = serde_json::from_value(given["parts"].clone()).expect("parts");
    parts.iter().map(|(text, times)| text.repeat(*times)).collect::<String>().into()
}

/// The request's own estimate in all cases.
const PROMPT_TOKENS: u64 = 7;

fn tokens(given: &Value) -> Tokens {
    serde_json::from_value(given.clone()).expect("names of classes")
}

/// The catalogue must not name what this crate does not know.
#[test]
fn the_catalogue_speaks_of_known_dialects_endpoints_and_quirks() {
    for row in shared::catalog::builtin().expect("the files are right").vendors {
        assert!(crate::Dialect::from_name(&row.vendor.dialect).is_some(), "{}", row.vendor.dialect);
        for endpoint in &row.vendor.endpoints {
            assert!(crate::Endpoint::ALL.iter().any(|e| e.name() == endpoint.endpoint), "{}", endpoint.endpoint);
        }
        for quirk in &row.vendor.quirks {
            assert!(crate::quirks::NAMES.contains(&quirk.as_str()), "{quirk}");
        }
    }
}
