//! What follows which failure: every kind once, then whole sequences.

use std::borrow::Cow;

use shared::failure::{Failure, FailureKind};

use super::cases::{KINDS, kind};
use super::house::House;
use crate::facts::{Endpoint, Facts, Now};
use crate::health::{Fleet, RETRY_FLOOR};
use crate::plan::{Decision, Plan, plan};
use crate::retry::{Attempts, Next, next};

/// What a request for these models gets from a fleet.
pub(super) fn planned(house: &House, models: &[&str], total_ms: u64, fleet: &Fleet, now: Now, seed: u64) -> Decision {
    let models: Vec<Cow<'_, str>> = models.iter().map(|m| Cow::Borrowed(*m)).collect();
    let facts = Facts {
        key: house.key("any"),
        workspace: &house.workspace,
        endpoint: Endpoint::ChatCompletions,
        model: "",
        models: &models,
        stream: false,
        tools: false,
        vision: false,
        audio_input: false,
        audio_output: false,
        pdf: false,
        json_schema: false,
        prompt_text_bytes: 0,
        max_tokens: None,
        environment: Some("production"),
        peer: [127, 0, 0, 1].into(),
        config_age_ms: 0,
        total_ms,
    };
    plan(&house.snapshot, &facts, fleet, now, seed)
}

pub(super) fn expect_plan(decision: Decision) -> Plan {
    match decision {
        Decision::Plan(plan) => plan,
        Decision::Refusal(refusal) => panic!("refused: {refusal}"),
    }
}

/// "code" or "code+milliseconds of retry-after".
fn failure(text: &str) -> Failure {
    let (code, wait) = text.split_once('+').unwrap_or((text, ""));
    let mut failure = Failure::new(kind(code), "");
    failure.retry_after_ms = wait.parse().ok();
    failure
}

/// Runs a request whose attempts fail as listed, each after `attempt_ms`, and writes down what
/// happened: "provider/credential" per attempt, "~" before one that waited, "stop:why" at the end;
/// nothing at the end when the attempt after the listed failures goes well.
fn trace(models: &[&str], failures: &[&str], fleet: &mut Fleet, total_ms: u64, attempt_ms: u64) -> String {
    let house = House::standard();
    let mut now = Now { wall_ms: 0, mono_ms: 1_000_000 };
    let plan = expect_plan(planned(&house, models, total_ms, fleet, now, 5));
    let mut attempts = Attempts::new(now);
    let mut steps = Vec::new();
    let mut failures = failures.iter();
    loop {
        let (slot, mark) = match attempts.step(&plan, fleet, now, 5) {
            Next::Try(slot) => (slot, ""),
            Next::Wait { ms, slot } => {
                now.mono_ms += ms;
                (slot, "~")
            }
            Next::Stop(stop) => {
                steps.push(format!("stop:{}", stop.code()));
                return steps.join(" ");
            }
        };
        let (candidate, access) = plan.at(slot).expect("a slot of the plan");
        let credential = access.credential.as_ref().map_or("-", |c| &c.name);
        steps.push(format!("{mark}{}/{credential}", candidate.provider.slug));
        attempts.begin(&plan, slot, fleet, now);
        now.mono_ms += attempt_ms;
        match failures.next() {
            Some(text) => attempts.fail(&plan, &failure(text), fleet, now, 5),
            None => {
                attempts.answered(&plan, fleet, now);
                return steps.join(" ");
            }
        }
    }
}

/// After one failure: alone, with another credential, with another candidate.
#[test]
fn every_kind_of_failure_has_its_answer() {
    let table = [
        ("upstream_connect_failed", "again", "again", "again"),
        ("upstream_address_denied", "stop:nothing_left", "stop:nothing_left", "moves"),
        ("upstream_connect_timeout", "again", "again", "moves"),
        ("upstream_first_token_timeout", "again", "again", "moves"),
        ("upstream_idle_timeout", "again", "again", "moves"),
        ("request_timeout", "stop:final", "stop:final", "stop:final"),
        ("upstream_reset", "again", "again", "again"),
        ("upstream_credential_rejected", "stop:nothing_left", "spare", "moves"),
        ("upstream_payment_required", "stop:nothing_left", "spare", "moves"),
        ("upstream_forbidden", "stop:nothing_left", "spare", "moves"),
        ("upstream_rate_limited", "again", "spare", "again"),
        ("upstream_quota_exhausted", "stop:nothing_left", "spare", "moves"),
        ("upstream_overloaded", "again", "again", "again"),
        ("upstream_timeout", "again", "again", "moves"),
        ("upstream_error", "again", "again", "again"),
        ("upstream_model_not_found", "stop:nothing_left", "stop:nothing_left", "moves"),
        ("context_length_exceeded", "stop:nothing_left", "stop:nothing_left", "moves"),
        ("content_filter", "stop:final", "stop:final", "stop:final"),
        ("upstream_invalid_request", "stop:final", "stop:final", "stop:final"),
        ("bad_upstream", "again", "again", "again"),
        ("upstream_stream_error", "again", "again", "again"),
        ("upstream_stream_cut", "again", "again", "again"),
    ];
    assert_eq!(table.map(|row| kind(row.0)), KINDS, "every kind, in order");
    for (code, alone, pooled, backed) in table {
        let run = |models: &[&str]| trace(models, &[code], &mut Fleet::default(), 60_000, 10);
        let expect = |models: &[&str], first: &str, word: &str, second: &str| {
            let rest = match word {
                "again" => format!("~{first}"),
                "moves" | "spare" => second.to_owned(),
                stop => stop.to_owned(),
            };
            assert_eq!(run(models), format!("{first} {rest}"), "{code} with {models:?}");
        };
        expect(&["groq/llama-3"], "groq/g", alone, "");
        expect(&["openai/gpt-4o"], "openai/main", pooled, "openai/spare");
        expect(&["groq/llama-3", "openai/gpt-4o"], "groq/g", backed, "openai/main");
    }
}

#[test]
fn sequences() {
    let both: &[&str] = &["groq/llama-3", "openai/gpt-4o"];
    let cases: &[(&str, &[&str], &[&str], &str)] = &[
        ("twice here, then there", both, &["upstream_error", "upstream_overloaded"], "groq/g ~groq/g openai/main"),
        (
            "each candidate twice, six in all",
            &["openai/gpt-4o", "azure/gpt-4o", "together/meta-llama/Llama-3-70b", "groq/llama-3"],
            &["upstream_error"; 9],
            "openai/main ~openai/main azure/prod ~azure/prod together/t ~together/t stop:attempts_spent",
        ),
        (
            "credentials first, then the next candidate",
            &["openai/gpt-4o", "groq/llama-3"],
            &["upstream_credential_rejected", "upstream_quota_exhausted"],
            "openai/main openai/spare groq/g",
        ),
        (
            "a rejected credential is not tried for a fallback either",
            &["openai/gpt-4o", "openai/gpt-4o-mini"],
            &["upstream_payment_required", "upstream_payment_required"],
            "openai/main openai/spare stop:nothing_left",
        ),
        ("a short limit is waited out", &["groq/llama-3"], &["upstream_rate_limited+900"], "groq/g ~groq/g"),
        ("a long one is not when somebody else is free", both, &["upstream_rate_limited+5000"], "groq/g openai/main"),
        ("a long one is when nobody is", &["groq/llama-3"], &["upstream_rate_limited+20000"], "groq/g ~groq/g"),
        (
            "a very long one is the caller's to wait for",
            &["groq/llama-3"],
            &["upstream_rate_limited+30001"],
            "groq/g stop:nothing_left",
        ),
        ("an overloaded provider's wish is granted", both, &["upstream_overloaded+2001"], "groq/g openai/main"),
        ("more room helps", both, &["context_length_exceeded"], "groq/g openai/main"),
        (
            "no more room does not",
            &["openai/gpt-4o", "azure/gpt-4o", "groq/llama-3"],
            &["context_length_exceeded"],
            "openai/main stop:nothing_left",
        ),
        (
            "the roomier of two",
            &["openai/gpt-4o", "azure/gpt-4o", "together/meta-llama/Llama-3-70b"],
            &["context_length_exceeded"],
            "openai/main together/t",
        ),
        (
            "the last failure decides",
            &["openai/gpt-4o", "azure/gpt-4o"],
            &["upstream_error", "upstream_invalid_request"],
            "openai/main ~openai/main stop:final",
        ),
    ];
    for (name, models, failures, expected) in cases {
        assert_eq!(trace(models, failures, &mut Fleet::default(), 60_000, 10), *expected, "{name}");
    }
}

#[test]
fn one_deadline_for_everything() {
    let run = |total_ms, failures: &[&str]| {
        trace(&["groq/llama-3", "openai/gpt-4o"], failures, &mut Fleet::default(), total_ms, 600)
    };
    assert_eq!(run(600, &["upstream_error"]), "groq/g stop:time_spent");
    // Less is left than a wait takes, but enough to move on at once.
    assert_eq!(run(601, &["upstream_error"]), "groq/g openai/main");
    assert_eq!(
        trace(&["groq/llama-3"], &["upstream_rate_limited+500"], &mut Fleet::default(), 1_100, 600),
        "groq/g stop:time_spent"
    );
}

#[test]
fn a_provider_gets_no_more_retries_than_its_budget() {
    let mut fleet = Fleet::default();
    for _ in 0..RETRY_FLOOR {
        // Answers between failures keep the breaker out of it.
        trace(&["groq/llama-3"], &[], &mut fleet, 60_000, 10);
        assert_eq!(trace(&["groq/llama-3"], &["upstream_error"], &mut fleet, 60_000, 10), "groq/g ~groq/g");
    }
    for _ in 0..9 {
        trace(&["groq/llama-3"], &[], &mut fleet, 60_000, 10);
    }
    // 29 requests by then, and this is the thirtieth: two more than the floor.
    assert_eq!(trace(&["groq/llama-3"], &["upstream_error"], &mut fleet, 60_000, 10), "groq/g ~groq/g");
    assert_eq!(trace(&["groq/llama-3"], &["upstream_error"], &mut fleet, 60_000, 10), "groq/g ~groq/g");
    let spent = trace(&["groq/llama-3"], &["upstream_error"], &mut fleet, 60_000, 10);
    // 32 requests make 13.
    assert_eq!(spent, "groq/g ~groq/g");
    assert_eq!(trace(&["groq/llama-3"], &["upstream_error"], &mut fleet, 60_000, 10), "groq/g stop:budget_spent");
    // Somebody else costs nothing.
    let backed = trace(&["groq/llama-3", "openai/gpt-4o"], &["upstream_error"], &mut fleet, 60_000, 10);
    assert_eq!(backed, "groq/g openai/main");
}

#[test]
fn nothing_follows_the_first_byte() {
    let house = House::standard();
    let mut fleet = Fleet::default();
    let now = Now { wall_ms: 0, mono_ms: 1_000 };
    let plan = expect_plan(planned(&house, &["groq/llama-3", "openai/gpt-4o"], 60_000, &fleet, now, 0));
    let mut attempts = Attempts::new(now);
    let Next::Try(slot) = next(&plan, &attempts, &fleet, now, 0) else { panic!("a first attempt") };
    attempts.begin(&plan, slot, &mut fleet, now);
    attempts.answered(&plan, &mut fleet, now);
    assert_eq!(next(&plan, &attempts, &fleet, now, 0), Next::Stop(crate::Stop::NotFailed));
    attempts.commit();
    attempts.fail(&plan, &Failure::new(FailureKind::StreamCut, ""), &mut fleet, now, 0);
    assert_eq!(next(&plan, &attempts, &fleet, now, 0), Next::Stop(crate::Stop::Committed));
}

#[test]
fn an_attempt_that_is_dropped_is_nobodys_fault_and_frees_its_place() {
    let house = House::standard();
    let mut fleet = Fleet::default();
    let now = Now { wall_ms: 0, mono_ms: 1_000 };
    let plan = expect_plan(planned(&house, &["groq/llama-3"], 60_000, &fleet, now, 0));
    let slot = crate::Slot { candidate: 0, access: 0 };
    let circuit = plan.candidates[0].accesses[0].circuit;
    for _ in 0..50 {
        let mut attempts = Attempts::new(now);
        attempts.begin(&plan, slot, &mut fleet, now);
        assert_eq!(fleet.waiting(&circuit), 1);
        attempts.abandon(&plan, &mut fleet, now);
        attempts.abandon(&plan, &mut fleet, now);
        assert_eq!(fleet.waiting(&circuit), 0);
    }
    assert_eq!(fleet.standing(&circuit, 1_000), crate::health::Standing::Live);
}
