//! `cases/*.json`: snapshot, request and fleet to plan or refusal.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use shared::failure::{Deadline, Failure, FailureKind};

use super::house::{House, standard_json};
use crate::explain::{Explanation, explain};
use crate::facts::{Endpoint, Facts, Now};
use crate::health::{Circuit, Fleet, Outcome};
use crate::plan::plan;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    /// Replaces top-level parts of the standard house.
    #[serde(default)]
    with: serde_json::Map<String, Value>,
    request: Request,
    /// What the fleet went through before.
    #[serde(default)]
    fleet: Vec<Event>,
    #[serde(default = "second")]
    now_ms: u64,
    #[serde(default)]
    seed: u64,
    expect: Expect,
}

fn second() -> u64 {
    1_000
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Request {
    key: String,
    endpoint: String,
    model: String,
    models: Vec<String>,
    needs: Vec<String>,
    prompt_text_bytes: u64,
    max_tokens: Option<u64>,
    environment: Option<String>,
    peer: String,
    config_age_ms: u64,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            key: "any".into(),
            endpoint: "chat_completions".into(),
            model: String::new(),
            models: Vec::new(),
            needs: Vec::new(),
            prompt_text_bytes: 0,
            max_tokens: None,
            environment: None,
            peer: "192.0.2.1".into(),
            config_age_ms: 0,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    provider: String,
    model: String,
    #[serde(default)]
    credential: Option<String>,
    /// A failure code, "answered", or "open" for an attempt that has not ended.
    outcome: String,
    #[serde(default)]
    retry_after_ms: Option<u64>,
    #[serde(default = "once")]
    times: u32,
    #[serde(default)]
    at_ms: u64,
}

fn once() -> u32 {
    1
}

/// What is not said is expected to be absent, except `reason`, `total_ms` and the last four.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Expect {
    /// "level name credential,credential", in order.
    plan: Vec<String>,
    last_resort: bool,
    /// "name: reason".
    dropped: Vec<String>,
    reason: Option<String>,
    total_ms: Option<u64>,
    /// "status code".
    refusal: Option<String>,
    param: Option<String>,
    did_you_mean: Option<Vec<String>>,
    message: Option<String>,
    retry_after_ms: Option<u64>,
}

#[test]
fn decisions() {
    let files = [
        ("names", include_str!("../../cases/names.json")),
        ("keys", include_str!("../../cases/keys.json")),
        ("filters", include_str!("../../cases/filters.json")),
        ("fallbacks", include_str!("../../cases/fallbacks.json")),
        ("credentials", include_str!("../../cases/credentials.json")),
        ("health", include_str!("../../cases/health.json")),
    ];
    let mut count = 0;
    for (file, text) in files {
        let cases: Vec<Case> = serde_json::from_str(text).unwrap_or_else(|e| panic!("{file}.json: {e}"));
        for case in &cases {
            check(&format!("{file}: {}", case.name), case);
            count += 1;
        }
    }
    assert!(count >= 60, "{count} cases were read");
}

fn check(name: &str, case: &Case) {
    let mut json = standard_json();
    for (part, value) in &case.with {
        json[part] = value.clone();
    }
    let house = House::parse(json);
    let fleet = lived_through(&house, &case.fleet);
    let models: Vec<Cow<'_, str>> = case.request.models.iter().map(Into::into).collect();
    let facts = facts(&house, &case.request, &models);
    let now = Now { wall_ms: 1_000, mono_ms: case.now_ms };
    let decision = plan(&house.snapshot, &facts, &fleet, now, case.seed);
    let explained = explain(&decision);
    let text = serde_json::to_string(&explained).expect("an explanation is JSON");
    assert!(!text.contains("secret-of-"), "{name}: an explanation shows a secret: {text}");
    compare(name, &explained, &case.expect);
    let again = plan(&house.snapshot, &facts, &fleet, now, case.seed);
    assert_eq!(explain(&again), explained, "{name}: the same inputs");
}

fn compare(name: &str, got: &Explanation, expect: &Expect) {
    match got {
        Explanation::Plan { revision, shared_revision, reason, candidates, dropped, limits, last_resort } => {
            let lines: Vec<String> = candidates
                .iter()
                .map(|c| {
                    let credentials: Vec<&str> =
                        c.credentials.iter().map(|c| if c.id.is_some() { c.name.as_str() } else { "-" }).collect();
                    format!("{} {} {}", c.level, c.name, credentials.join(","))
                })
                .collect();
            assert_eq!(lines, expect.plan, "{name}: {got:?}");
            assert_eq!(expect.refusal, None, "{name}: {got:?}");
            assert_eq!(drops(dropped), expect.dropped, "{name}");
            assert_eq!(*last_resort, expect.last_resort, "{name}");
            assert_eq!((*revision, *shared_revision), (42, 7), "{name}");
            if let Some(expected) = &expect.reason {
                assert_eq!(reason, expected, "{name}");
            }
            if let Some(expected) = expect.total_ms {
                assert_eq!(limits.total_ms, expected, "{name}");
            }
        }
        Explanation::Refusal { code, status, param, did_you_mean, dropped, retry_after_ms, message, .. } => {
            assert_eq!(Some(format!("{status} {code}")), expect.refusal, "{name}: {got:?}");
            assert_eq!(expect.plan, Vec::<String>::new(), "{name}");
            assert_eq!(drops(dropped), expect.dropped, "{name}");
            assert_eq!(*retry_after_ms, expect.retry_after_ms, "{name}");
            if let Some(expected) = &expect.param {
                assert_eq!(*param, Some(expected.as_str()), "{name}");
            }
            if let Some(expected) = &expect.did_you_mean {
                assert_eq!(did_you_mean, expected, "{name}");
            }
            if let Some(expected) = &expect.message {
                assert_eq!(message, expected, "{name}");
            }
        }
    }
}

fn drops(dropped: &[crate::explain::ExplainedDrop]) -> Vec<String> {
    dropped
        .iter()
        .map(|d| {
            let json = serde_json::to_value(d.dropped.reason).expect("a reason is JSON");
            format!("{}: {}", d.dropped.name, json["code"].as_str().unwrap_or_default())
        })
        .collect()
}

fn facts<'a>(house: &'a House, request: &'a Request, models: &'a [Cow<'a, str>]) -> Facts<'a> {
    let needs = |what: &str| request.needs.iter().any(|need| need == what);
    Facts {
        key: house.key(&request.key),
        workspace: &house.workspace,
        endpoint: match request.endpoint.as_str() {
            "chat_completions" => Endpoint::ChatCompletions,
            "embeddings" => Endpoint::Embeddings,
            other => panic!("no endpoint {other}"),
        },
        model: &request.model,
        models,
        stream: false,
        tools: needs("tools"),
        vision: needs("vision"),
        audio_input: needs("audio_input"),
        audio_output: needs("audio_output"),
        pdf: needs("pdf"),
        json_schema: needs("json_schema"),
        prompt_text_bytes: request.prompt_text_bytes,
        max_tokens: request.max_tokens,
        environment: request.environment.as_deref(),
        peer: request.peer.parse().expect("an address"),
        config_age_ms: request.config_age_ms,
        total_ms: 600_000,
    }
}

fn lived_through(house: &House, events: &[Event]) -> Fleet {
    let mut fleet = Fleet::default();
    for event in events {
        let provider = house.workspace.providers.get(event.provider.as_str()).expect("a provider of the house");
        let offering = provider.offering(&event.model).expect("an offering of the house");
        let credential = event
            .credential
            .as_deref()
            .map(|name| provider.credentials.iter().find(|c| *c.name == *name).expect("a credential of the house"));
        let circuit = Circuit::new(provider, offering, credential.map(|c| &**c));
        let now = Now { wall_ms: 0, mono_ms: event.at_ms };
        for _ in 0..event.times {
            let ticket = fleet.started(&circuit, now);
            let mut failure;
            let outcome = match event.outcome.as_str() {
                "open" => continue,
                "answered" => Outcome::Answered,
                code => {
                    failure = Failure::new(kind(code), "");
                    failure.retry_after_ms = event.retry_after_ms;
                    Outcome::Failed(&failure)
                }
            };
            fleet.ended(&circuit, ticket, outcome, now, 0);
        }
    }
    fleet
}

pub(super) const KINDS: [FailureKind; 22] = [
    FailureKind::Connect,
    FailureKind::EgressDenied,
    FailureKind::Timeout(Deadline::Connect),
    FailureKind::Timeout(Deadline::FirstToken),
    FailureKind::Timeout(Deadline::Idle),
    FailureKind::Timeout(Deadline::Total),
    FailureKind::Reset,
    FailureKind::Unauthorized,
    FailureKind::PaymentRequired,
    FailureKind::Forbidden,
    FailureKind::RateLimited,
    FailureKind::QuotaExhausted,
    FailureKind::Overloaded,
    FailureKind::ProviderTimeout,
    FailureKind::ServerError,
    FailureKind::ModelNotFound,
    FailureKind::ContextLength,
    FailureKind::ContentFilter,
    FailureKind::InvalidRequest,
    FailureKind::BadReply,
    FailureKind::StreamError,
    FailureKind::StreamCut,
];

pub(super) fn kind(code: &str) -> FailureKind {
    KINDS.into_iter().find(|kind| kind.code() == code).unwrap_or_else(|| panic!("no failure {code}"))
}
