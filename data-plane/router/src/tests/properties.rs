//! What holds for all inputs.

use std::borrow::Cow;
use std::collections::HashMap;

use proptest::prelude::*;
use shared::failure::Failure;
use shared::ids::{ApiKeyId, ProjectId, WorkspaceId};
use shared::snapshot::{ApiKey, ModelRules};

use super::cases::KINDS;
use super::house::House;
use super::retries::{expect_plan, planned};
use crate::explain::explain;
use crate::facts::{Endpoint, Facts, Now};
use crate::health::Fleet;
use crate::plan::{Decision, plan};
use crate::retry::{Attempts, Next, next};

const NAMES: &[&str] = &[
    "openai/gpt-4o",
    "openai/gpt-4o-mini",
    "openai/ft-acme",
    "azure/gpt-4o",
    "groq/llama-3",
    "gpt-4o",
    "gpt-4o-mini",
    "fast",
    "smart",
    "ours",
    "bare",
    "llama-3",
    "twice",
    "acme@local/llama3:8b",
    "local/llama3:8b",
    "acme@openai/ft-acme",
    "ft-acme",
    "together/meta-llama/Llama-3-70b",
    "off/solo",
    "keyless/solo",
    "auto",
    "policy/x",
    "",
    "x/y",
];

const RULES: &[&str] = &[
    "openai/*",
    "openai/gpt-4o",
    "fast",
    "sm*",
    "acme@*",
    "acme@local/*",
    "local/llama3:8b",
    "groq/*",
    "together/meta-llama/*",
    "gpt-4o-mini",
    "*/gpt-4o",
    "ours",
    "azure/gpt-4o",
];

fn pick(from: &'static [&'static str], most: usize) -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(prop::sample::select(from), 0..=most)
}

proptest! {
    /// No plan holds a model that the key may not use, and the same inputs give the same plan.
    #[test]
    fn a_plan_stays_inside_the_allow_list(
        rules in pick(RULES, 4), model in prop::sample::select(NAMES), inline in pick(NAMES, 5), seed in any::<u64>(),
        embeddings in prop::bool::weighted(0.1), tools in any::<bool>(), bytes in 0u64..1_000_000,
    ) {
        let house = House::standard();
        let key = ApiKey {
            id: ApiKeyId::from_u128(9), workspace: WorkspaceId::from_u128(1), project: ProjectId::from_u128(1),
            name: "".into(), inference: true, list_models: true, models: Some(ModelRules::new(rules.iter().copied())),
            expires_at_ms: 0, addresses: None, disabled: false,
        };
        let models: Vec<Cow<'_, str>> = inline.iter().map(|name| Cow::Borrowed(*name)).collect();
        let facts = Facts {
            key: &key, workspace: &house.workspace,
            endpoint: if embeddings { Endpoint::Embeddings } else { Endpoint::ChatCompletions },
            model, models: &models, stream: false, tools, vision: false, audio_input: false, audio_output: false, pdf: false, json_schema: false,
            prompt_text_bytes: bytes, max_tokens: None, environment: None, peer: [127, 0, 0, 1].into(), config_age_ms: 0, total_ms: 1_000,
        };
        let now = Now { wall_ms: 1_000, mono_ms: 0 };
        let decision = plan(&house.snapshot, &facts, &Fleet::default(), now, seed);
        let again = plan(&house.snapshot, &facts, &Fleet::default(), now, seed);
        prop_assert_eq!(explain(&decision), explain(&again));
        let Decision::Plan(plan) = decision else { return Ok(()) };
        prop_assert!(!plan.candidates.is_empty());
        let written: Vec<&str> = if inline.is_empty() { vec![model] } else { inline };
        // Said independently of the code under test, from the rules as text.
        let granted = |name: &str| rules.iter().any(|rule| match rule.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == *rule,
        });
        for candidate in &plan.candidates {
            prop_assert!(!candidate.accesses.is_empty());
            let full = candidate.name().to_string().into_boxed_str();
            let private = format!("acme@{full}");
            let alias = |name: &&&str| house.workspace.aliases.get(**name).is_some_and(|alias| {
                alias.targets.iter().any(|target| {
                    *target == full || **target == *private || **target == *candidate.offering.model
                })
            });
            prop_assert!(
                granted(&full)
                    || candidate.offering.private && granted(&private)
                    || written.iter().filter(alias).any(|name| granted(name)),
                "{} with {:?}", full, rules
            );
        }
    }

    /// Whatever fails, in whatever order: bounded in number and time, each access at most twice,
    /// candidates only forward, nothing after the commit point.
    #[test]
    fn attempts_are_bounded_and_end_at_the_commit_point(
        failures in prop::collection::vec((0usize..KINDS.len(), prop::option::of(0u64..40_000), 0u64..3_000), 32),
        commit_at in 0usize..10, seed in any::<u64>(), total_ms in 1u64..60_000,
    ) {
        let house = House::standard();
        let mut fleet = Fleet::default();
        let mut now = Now { wall_ms: 0, mono_ms: 77_777 };
        let models = ["openai/gpt-4o", "azure/gpt-4o", "groq/llama-3", "together/meta-llama/Llama-3-70b", "openai/gpt-4o-mini"];
        let plan = expect_plan(planned(&house, &models, total_ms, &fleet, now, seed));
        let limits = plan.limits;
        let mut attempts = Attempts::new(now);
        let mut per_slot: HashMap<(usize, usize), u32> = HashMap::new();
        let mut furthest = 0;
        for (n, (which, retry_after_ms, took_ms)) in failures.into_iter().enumerate() {
            let step = next(&plan, &attempts, &fleet, now, seed);
            prop_assert_eq!(step, attempts.step(&plan, &mut fleet, now, seed));
            let slot = match step {
                Next::Try(slot) => slot,
                Next::Wait { ms, slot } => {
                    prop_assert!(ms <= limits.longest_wait_ms);
                    prop_assert!(now.mono_ms + ms < 77_777 + limits.total_ms);
                    let asked = attempts.tried().last().and_then(|t| t.retry_after_ms).unwrap_or(0);
                    prop_assert!(ms >= asked, "Retry-After is honoured");
                    now.mono_ms += ms;
                    slot
                }
                Next::Stop(_) => return Ok(()),
            };
            prop_assert!(!attempts.committed());
            prop_assert!(attempts.count() == 0 || now.mono_ms < 77_777 + limits.total_ms);
            prop_assert!(slot.candidate >= furthest);
            furthest = slot.candidate;
            let count = per_slot.entry((slot.candidate, slot.access)).or_default();
            *count += 1;
            prop_assert!(*count <= limits.attempts_per_access);
            attempts.begin(&plan, slot, &mut fleet, now);
            prop_assert!(attempts.count() <= limits.attempts);
            if n == commit_at {
                attempts.answered(&plan, &mut fleet, now);
                attempts.commit();
            }
            now.mono_ms += took_ms;
            let mut failure = Failure::new(KINDS[which], "");
            failure.retry_after_ms = retry_after_ms;
            attempts.fail(&plan, &failure, &mut fleet, now, seed);
        }
        prop_assert!(false, "never stopped");
    }
}

#[test]
fn first_choices_follow_the_weights() {
    let house = House::parse(serde_json::json!({
        "vendors": [{"slug": "v", "endpoints": ["chat_completions"], "models": [{"name": "m"}]}],
        "workspace": {"key": "acme"}, "projects": [{"key": "default"}], "keys": [{"name": "any"}],
        "providers": [{"slug": "p", "vendor": "v", "credentials": [
            {"name": "seven", "weight": 7}, {"name": "two", "weight": 2}, {"name": "one", "weight": 1},
            {"name": "last", "weight": 0}, {"name": "late", "weight": 0}]}],
    }));
    let (mut first, mut fourth) = (HashMap::new(), HashMap::new());
    const RUNS: u32 = 20_000;
    for seed in 0..RUNS {
        let now = Now::default();
        let plan = expect_plan(planned(&house, &["p/m"], 1_000, &Fleet::default(), now, seed.into()));
        let names: Vec<String> = plan.candidates[0]
            .accesses
            .iter()
            .filter_map(|a| a.credential.as_ref().map(|c| c.name.to_string()))
            .collect();
        assert_eq!(names.len(), 5);
        *first.entry(names[0].clone()).or_insert(0u32) += 1;
        *fourth.entry(names[3].clone()).or_insert(0u32) += 1;
    }
    for (name, share) in [("seven", 0.7), ("two", 0.2), ("one", 0.1)] {
        let seen = f64::from(first[name]) / f64::from(RUNS);
        assert!((seen - share).abs() < 0.015, "{name}: {seen}");
    }
    assert_eq!(first.len(), 3, "the weightless are never first: {first:?}");
    for name in ["last", "late"] {
        let seen = f64::from(fourth[name]) / f64::from(RUNS);
        assert!((seen - 0.5).abs() < 0.015, "{name}: {seen}");
    }
}

/// A table that is full forgets what lies idle, and never grows past its bound.
#[test]
fn a_fleet_is_bounded() {
    let models: Vec<_> = (0..9_000).map(|n| serde_json::json!({"name": format!("m{n}"), "private": true})).collect();
    let house = House::parse(serde_json::json!({
        "vendors": [{"slug": "v", "endpoints": ["chat_completions"], "credential_optional": true}],
        "workspace": {"key": "acme"}, "projects": [{"key": "default"}], "keys": [{"name": "any"}],
        "providers": [{"slug": "p", "vendor": "v", "base_url": "http://localhost:1", "models": models}],
    }));
    let provider = &house.workspace.providers["p"];
    let mut fleet = Fleet::default();
    let touch = |fleet: &mut Fleet, n: u32, mono_ms| {
        let offering = provider.offering(&format!("m{n}")).expect("a model of the house");
        let circuit = crate::health::Circuit::new(provider, offering, None);
        let now = Now { wall_ms: 0, mono_ms };
        let ticket = fleet.started(&circuit, now);
        fleet.ended(&circuit, ticket, crate::health::Outcome::Answered, now, 0);
        circuit
    };
    for n in 0..9_000 {
        let circuit = touch(&mut fleet, n, 1_000);
        assert_eq!(fleet.standing(&circuit, 1_000), crate::health::Standing::Live);
    }
    assert_eq!(fleet.len(), crate::health::MAX_ENTRIES);
    touch(&mut fleet, 8_999, 700_000);
    assert_eq!(fleet.len(), 1);
}
