//! Errors of providers: what they mean, what they may say, whether they may pass.

use std::collections::HashMap;

use http::{HeaderMap, HeaderName};
use serde::Deserialize;
use serde_json::Value;

use crate::Dialect;

#[derive(Deserialize)]
struct Row {
    name: String,
    status: u16,
    headers: HashMap<String, String>,
    body: String,
    kind: String,
    retry_after_ms: Option<u64>,
    forward: bool,
    says: Option<String>,
    never: Option<String>,
}

const SECRET: &[u8] = b"the-credential-itself";
const NOW_MS: u64 = 784_111_777_000;

#[test]
fn every_error_means_what_it_says() {
    let mut wrong = Vec::new();
    for row in super::rows::<Row>(include_str!("../../fixtures/errors.json")) {
        let header = |(name, value): (&String, &String)| {
            (name.parse::<HeaderName>().expect("a name"), value.parse().expect("a value"))
        };
        let headers: HeaderMap = row.headers.iter().map(header).collect();
        let body = row.body.as_bytes();
        let failure = Dialect::OpenAi.classify(row.status, &headers, body, Some(SECRET), NOW_MS);
        let forward = Dialect::OpenAi.may_forward(&failure, body, Some(SECRET));
        let found = (format!("{:?}", failure.kind), failure.retry_after_ms, forward, failure.status);
        let expected = (row.kind, row.retry_after_ms, row.forward, Some(row.status));
        if found != expected {
            wrong.push(format!("{}: {found:?}, not {expected:?}", row.name));
        }
        let said = format!("{}{}", failure.message, failure.context);
        if row.says.is_some_and(|says| !said.contains(&says)) || row.never.is_some_and(|never| said.contains(&never)) {
            wrong.push(format!("{}: says {said:?}", row.name));
        }
        assert!(failure.message.len() <= 2_048 && !failure.message.is_empty(), "{}", row.name);
        assert!(!failure.message.chars().any(char::is_control), "{}", row.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn our_own_errors_have_all_four_keys() {
    let body =
        Dialect::OpenAi.error_body("invalid_request_error", "invalid_type", Some("messages[0].\"role\""), "a\nb");
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    let expected = serde_json::json!({"error": {
        "message": "a\nb", "type": "invalid_request_error", "param": "messages[0].\"role\"", "code": "invalid_type",
    }});
    assert_eq!(body, expected);
    let event = Dialect::OpenAi.error_event("upstream_error", "upstream_stream_cut", "It\nbroke");
    let payload = crate::frames::sse::payload(&event);
    let data: Value = serde_json::from_slice(&payload.data.expect("data")).expect("JSON");
    assert_eq!(data["error"]["code"], "upstream_stream_cut");
    assert_eq!(data["error"]["param"], Value::Null);
    assert!(event.ends_with(b"\n\n"));
}

#[test]
fn a_secret_that_comes_back_in_a_stream_can_be_hidden_later() {
    let data = br#"{"error":{"message":"key the-credential-itself","code":"the-credential-itself"}}"#;
    let mut failure = crate::openai_chat::error::in_stream(data, true);
    crate::openai_chat::error::hide(&mut failure, SECRET);
    assert!(!format!("{failure:?}").contains("the-credential-itself"));
}
