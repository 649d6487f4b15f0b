//! Storms: thousands of overlapping requests against providers in trouble, on a simulated clock.
//! Rows F9 and F10 of the fault table.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use shared::failure::{Deadline, Failure, FailureKind};

use super::house::House;
use super::retries::planned;
use crate::dice;
use crate::facts::Now;
use crate::health::{Fleet, RETRY_FLOOR};
use crate::plan::{Decision, Plan, Slot};
use crate::retry::{Attempts, Next};

const REQUESTS: usize = 10_000;
/// 200 a second.
const ARRIVAL_MS: u64 = 5;

/// How a provider behaves.
#[derive(Clone, Copy)]
struct Weather {
    /// Of a thousand attempts, how many fail.
    failing: u64,
    kind: FailureKind,
    retry_after_ms: Option<u64>,
    /// Until a failure, and until an answer.
    fails_ms: u64,
    answers_ms: u64,
}

const FINE: Weather =
    Weather { failing: 0, kind: FailureKind::ServerError, retry_after_ms: None, fails_ms: 0, answers_ms: 300 };

#[derive(Debug, Default)]
struct Tally {
    answered: usize,
    refused: usize,
    failed: usize,
    attempts: usize,
    at_groq: usize,
    first_at_groq: usize,
    ends_ms: u64,
}

impl Tally {
    fn success(&self) -> f64 {
        self.answered as f64 / REQUESTS as f64
    }

    /// What the retry budget allows over the whole run for one provider.
    fn retries_allowed(&self) -> usize {
        // Any ten seconds have their floor, and windows need not line up with the run.
        let windows = self.ends_ms.div_ceil(10_000) as usize + 1;
        self.first_at_groq / 10 + RETRY_FLOOR as usize * windows
    }
}

struct Running {
    plan: Plan,
    attempts: Attempts,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives,
    Begins { candidate: usize, access: usize },
    Ends,
}

fn storm(models: &[&str], groq: Weather, seed: u64) -> Tally {
    let house = House::standard();
    let mut fleet = Fleet::default();
    let mut tally = Tally::default();
    let mut running: HashMap<usize, Running> = HashMap::new();
    let mut queue: BinaryHeap<Reverse<(u64, usize, Event)>> =
        (0..REQUESTS).map(|n| Reverse((1_000_000 + n as u64 * ARRIVAL_MS, n, Event::Arrives))).collect();
    while let Some(Reverse((mono_ms, n, event))) = queue.pop() {
        let now = Now { wall_ms: 0, mono_ms };
        let seed = dice::roll(seed, n as u64);
        tally.ends_ms = mono_ms - 1_000_000;
        let weather_of = |running: &Running, slot: Slot| match &*running.plan.candidates[slot.candidate].provider.slug {
            "groq" => groq,
            _ => FINE,
        };
        let fails = |weather: Weather, count: u32| dice::below(1_000, seed, 1_000 + u64::from(count)) < weather.failing;
        match event {
            Event::Arrives => match planned(&house, models, 60_000, &fleet, now, seed) {
                Decision::Refusal(_) => {
                    tally.refused += 1;
                    continue;
                }
                Decision::Plan(plan) => {
                    running.insert(n, Running { plan, attempts: Attempts::new(now) });
                }
            },
            Event::Begins { candidate, access } => {
                let slot = Slot { candidate, access };
                let Some(run) = running.get_mut(&n) else { continue };
                tally.attempts += 1;
                let weather = weather_of(run, slot);
                if run.plan.candidates[candidate].provider.slug.as_ref() == "groq" {
                    tally.at_groq += 1;
                    tally.first_at_groq += usize::from(run.attempts.count() == 0);
                }
                run.attempts.begin(&run.plan, slot, &mut fleet, now);
                let failing = fails(weather, run.attempts.count());
                let takes_ms = if failing { weather.fails_ms } else { weather.answers_ms };
                queue.push(Reverse((mono_ms + takes_ms, n, Event::Ends)));
                continue;
            }
            Event::Ends => {
                let Some(run) = running.get_mut(&n) else { continue };
                let slot = run.attempts.tried().last().expect("it began").slot;
                let weather = weather_of(run, slot);
                if !fails(weather, run.attempts.count()) {
                    run.attempts.answered(&run.plan, &mut fleet, now);
                    tally.answered += 1;
                    running.remove(&n);
                    continue;
                }
                let mut failure = Failure::new(weather.kind, "");
                failure.retry_after_ms = weather.retry_after_ms;
                run.attempts.fail(&run.plan, &failure, &mut fleet, now, seed);
            }
        }
        // Arrived or failed: what now?
        let Some(run) = running.get(&n) else { continue };
        let (at_ms, slot) = match run.attempts.step(&run.plan, &mut fleet, now, seed) {
            Next::Try(slot) => (mono_ms, slot),
            Next::Wait { ms, slot } => (mono_ms + ms, slot),
            Next::Stop(_) => {
                tally.failed += 1;
                running.remove(&n);
                continue;
            }
        };
        queue.push(Reverse((at_ms, n, Event::Begins { candidate: slot.candidate, access: slot.access })));
    }
    tally
}

fn weathers() -> [(&'static str, Weather); 6] {
    let bad = |kind, fails_ms| Weather { failing: 1_000, kind, fails_ms, ..FINE };
    [
        ("503 at once", bad(FailureKind::Overloaded, 20)),
        ("500 after a second", bad(FailureKind::ServerError, 1_000)),
        ("429 with a time", Weather { retry_after_ms: Some(1_000), ..bad(FailureKind::RateLimited, 20) }),
        ("429 without one", bad(FailureKind::RateLimited, 20)),
        ("refused connections", bad(FailureKind::Connect, 1)),
        ("a partition", bad(FailureKind::Timeout(Deadline::Connect), 2_000)),
    ]
}

#[test]
fn with_a_second_provider_a_storm_is_hardly_felt() {
    for (name, weather) in weathers() {
        for seed in 0..3 {
            let tally = storm(&["groq/llama-3", "openai/gpt-4o"], weather, seed);
            assert!(tally.success() >= 0.999, "{name}: {tally:?}");
            assert!(tally.attempts <= REQUESTS * 11 / 10 + RETRY_FLOOR as usize, "{name}: {tally:?}");
        }
    }
}

#[test]
fn alone_a_storm_is_not_made_worse() {
    for (name, weather) in weathers() {
        let tally = storm(&["groq/llama-3"], weather, 1);
        assert_eq!(tally.answered + tally.failed + tally.refused, REQUESTS, "{name}: {tally:?}");
        assert!(tally.attempts <= REQUESTS * 11 / 10 + RETRY_FLOOR as usize, "{name}: {tally:?}");
    }
}

/// Too few failures for the breaker: the second provider takes them, and the first is not asked for
/// more than its budget.
#[test]
fn a_drizzle_is_carried_by_the_second_provider() {
    for failing in [50, 200, 400] {
        let weather = Weather { failing, kind: FailureKind::ServerError, fails_ms: 50, ..FINE };
        let tally = storm(&["groq/llama-3", "openai/gpt-4o"], weather, 1);
        assert!(tally.success() >= 0.999, "{failing}: {tally:?}");
        assert!(tally.at_groq - tally.first_at_groq <= tally.retries_allowed(), "{failing}: {tally:?}");
    }
}

/// The storm ends: the circuit closes again and the first choice is back.
#[test]
fn a_provider_that_came_back_is_used_again() {
    let house = House::standard();
    let mut fleet = Fleet::default();
    let mut now = Now { wall_ms: 0, mono_ms: 1_000_000 };
    let mut levels = Vec::new();
    for n in 0..200u64 {
        now.mono_ms += 200;
        let Decision::Plan(plan) = planned(&house, &["groq/llama-3", "openai/gpt-4o"], 60_000, &fleet, now, n) else {
            panic!("refused")
        };
        let mut attempts = Attempts::new(now);
        while let Next::Try(slot) | Next::Wait { slot, .. } = attempts.step(&plan, &mut fleet, now, n) {
            attempts.begin(&plan, slot, &mut fleet, now);
            let stormy = n < 50 && slot.candidate == 0 && plan.candidates[0].level == 0;
            if stormy {
                attempts.fail(&plan, &Failure::new(FailureKind::ServerError, ""), &mut fleet, now, n);
            } else {
                attempts.answered(&plan, &mut fleet, now);
                levels.push(plan.candidates[slot.candidate].level);
            }
        }
    }
    assert_eq!(levels.len(), 200);
    assert!(levels[..50].iter().all(|level| *level == 1));
    // The longest rest it can be in by then is the second, ten seconds: fifty requests.
    assert!(levels[110..].iter().all(|level| *level == 0), "{levels:?}");
}
