//! Whole answers: what they used, and which are none.

use serde::Deserialize;
use serde_json::Value;

use crate::{Dialect, Endpoint, Quirks};

#[derive(Deserialize)]
struct Row {
    name: String,
    endpoint: String,
    quirks: Vec<String>,
    body: Value,
    failure: Option<String>,
    status: Option<u16>,
    tokens: Option<Value>,
    estimated: Option<bool>,
    rejected: Option<bool>,
    service_tier: Option<String>,
}

#[test]
fn every_answer_is_counted_or_refused_as_it_says() {
    let mut wrong = Vec::new();
    for row in super::rows::<Row>(include_str!("../../fixtures/replies.json")) {
        let endpoint = if row.endpoint == "chat" { Endpoint::ChatCompletions } else { Endpoint::Embeddings };
        let quirks = Quirks::from_names(row.quirks.iter().map(String::as_str));
        match (Dialect::OpenAi.read_reply(endpoint, &super::body(&row.body), quirks, super::PROMPT_TOKENS), row.failure)
        {
            (Ok(facts), None) => {
                let expected = (
                    super::tokens(&row.tokens.expect("given")),
                    row.estimated.unwrap_or(false),
                    row.rejected.unwrap_or(false),
                    row.service_tier.unwrap_or_default(),
                );
                let found = (facts.usage.tokens, facts.usage.estimated, facts.usage.rejected, facts.usage.service_tier);
                if found != expected {
                    wrong.push(format!("{}: {found:?}, not {expected:?}", row.name));
                }
            }
            (Err(failure), Some(kind)) => {
                if format!("{:?}", failure.kind) != kind || row.status.is_some_and(|s| failure.status != Some(s)) {
                    wrong.push(format!("{}: {failure:?}, not {kind}", row.name));
                }
            }
            (outcome, kind) => wrong.push(format!("{}: {outcome:?}, not {kind:?}", row.name)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
