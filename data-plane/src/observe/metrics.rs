//! Prometheus metrics of requests. Labels come from the catalogue and from closed sets, never from
//! callers; past a number of series, new models count as `other`.
//!
//! Requests come in batches and are counted by group: making label sets for every single one would
//! cost more than deciding it did.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use shared::proto::{self, Outcome};
use shared::usage::Tokens;

use super::Observation;

/// Models that get series of their own.
const MOST_MODELS: usize = 500;
/// What later ones are called.
const OTHER: &str = "other";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByModel {
    endpoint: String,
    provider: String,
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    endpoint: String,
    provider: String,
    model: String,
    status: u32,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAttempt {
    provider: String,
    model: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByClass {
    provider: String,
    model: String,
    class: &'static str,
}

/// The families.
pub struct Metrics {
    requests: Family<ByResult, Counter>,
    attempts: Family<ByAttempt, Counter>,
    duration: Family<ByModel, Histogram>,
    first_byte: Family<ByModel, Histogram>,
    overhead: Histogram,
    tokens: Family<ByClass, Counter>,
    cost: Family<ByModel, Counter>,
    unpriced: Counter,
    dropped: Counter,
    models: HashSet<(String, String)>,
}

impl Metrics {
    /// Registered in `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.005, 2.0, 16));
        let metrics = Self {
            requests: Family::default(),
            attempts: Family::default(),
            duration: Family::new_with_constructor(seconds),
            first_byte: Family::new_with_constructor(seconds),
            overhead: Histogram::new(exponential_buckets(0.000_01, 2.0, 16)),
            tokens: Family::default(),
            cost: Family::default(),
            unpriced: Counter::default(),
            dropped: Counter::default(),
            models: HashSet::new(),
        };
        let m = &metrics;
        registry.register(
            "requests",
            "Requests that reached a plan, by who served them and how they ended",
            m.requests.clone(),
        );
        registry.register("attempts", "Upstream calls by result", m.attempts.clone());
        registry.register_with_unit(
            "request_duration",
            "From arrival to the last byte",
            Unit::Seconds,
            m.duration.clone(),
        );
        registry.register_with_unit(
            "first_byte",
            "From arrival to the first byte of the answer",
            Unit::Seconds,
            m.first_byte.clone(),
        );
        registry.register_with_unit(
            "overhead",
            "Our own part of a request: its time less that of upstream calls",
            Unit::Seconds,
            m.overhead.clone(),
        );
        registry.register("tokens", "Tokens by class", m.tokens.clone());
        registry.register("cost_nanodollars", "Cost in nano-dollars", m.cost.clone());
        registry.register("unpriced_requests", "Requests served by a model without a price", m.unpriced.clone());
        registry.register(
            "observations_dropped",
            "Observations lost because collecting fell behind; usage is not affected",
            m.dropped.clone(),
        );
        metrics
    }

    /// Counts requests.
    pub fn observe(&mut self, batch: &[Observation]) {
        let mut groups: HashMap<(&str, &str, &str), Vec<&proto::UsageRecord>> = HashMap::new();
        let mut attempts: HashMap<(&str, &str, &'static str), u64> = HashMap::new();
        for Observation { record, attempts: tried, .. } in batch {
            groups.entry((&record.endpoint, &record.provider, &record.model)).or_default().push(record);
            for attempt in tried {
                let result = attempt.failure.map_or("ok", |failure| failure.code());
                *attempts.entry((&attempt.provider.slug, &attempt.offering.model, result)).or_default() += 1;
            }
        }
        for ((endpoint, provider, model), records) in groups {
            self.count(endpoint, provider, model, &records);
        }
        for ((provider, model, result), count) in attempts {
            let (provider, model) = self.name(provider, model);
            self.attempts.get_or_create(&ByAttempt { provider, model, result }).inc_by(count);
        }
    }

    /// Counts observations that were dropped.
    pub fn lost(&self, count: u64) {
        self.dropped.inc_by(count);
    }

    /// Requests of one endpoint and model.
    fn count(&mut self, endpoint: &str, provider: &str, model: &str, records: &[&proto::UsageRecord]) {
        let (provider, model) = self.name(provider, model);
        let labels = ByModel { endpoint: endpoint.to_owned(), provider: provider.clone(), model: model.clone() };
        let seconds = |micros: u64| Duration::from_micros(micros).as_secs_f64();
        let mut results: HashMap<(u32, Outcome), u64> = HashMap::new();
        let mut sum = Tokens::default();
        let mut cost = 0_u64;
        {
            let duration = self.duration.get_or_create(&labels);
            let first_byte = self.first_byte.get_or_create(&labels);
            for record in records {
                duration.observe(seconds(record.total_us));
                self.overhead.observe(seconds(record.total_us.saturating_sub(record.upstream_us)));
                if record.first_byte_us > 0 {
                    first_byte.observe(seconds(record.first_byte_us));
                }
                *results.entry((record.status, record.outcome())).or_default() += 1;
                cost = cost.saturating_add(u64::try_from(record.cost_nanos).unwrap_or(0));
                if let Some(tokens) = &record.tokens {
                    add(&mut sum, tokens);
                    self.unpriced.inc_by(u64::from(record.price_id.is_empty()));
                }
            }
        }
        self.cost.get_or_create(&labels).inc_by(cost);
        for ((status, outcome), count) in results {
            let (endpoint, provider, model) = (endpoint.to_owned(), provider.clone(), model.clone());
            let labels = ByResult { endpoint, provider, model, status, outcome: outcome_name(outcome) };
            self.requests.get_or_create(&labels).inc_by(count);
        }
        let classes = [
            ("input", sum.input),
            ("cache_read", sum.cache_read),
            ("cache_write", sum.cache_write_5m.saturating_add(sum.cache_write_1h)),
            ("output", sum.output),
            ("reasoning", sum.reasoning),
            ("audio", sum.audio_input.saturating_add(sum.audio_output)),
        ];
        for (class, count) in classes.into_iter().filter(|(_, count)| *count > 0) {
            let labels = ByClass { provider: provider.clone(), model: model.clone(), class };
            self.tokens.get_or_create(&labels).inc_by(count);
        }
    }

    fn name(&mut self, provider: &str, model: &str) -> (String, String) {
        let name = (provider.to_owned(), model.to_owned());
        if self.models.len() >= MOST_MODELS && !self.models.contains(&name) {
            return (OTHER.to_owned(), OTHER.to_owned());
        }
        self.models.insert(name.clone());
        name
    }
}

fn add(sum: &mut Tokens, more: &proto::Tokens) {
    let pairs = [
        (&mut sum.input, more.input),
        (&mut sum.cache_read, more.cache_read),
        (&mut sum.cache_write_5m, more.cache_write_5m),
        (&mut sum.cache_write_1h, more.cache_write_1h),
        (&mut sum.output, more.output),
        (&mut sum.reasoning, more.reasoning),
        (&mut sum.audio_input, more.audio_input),
        (&mut sum.audio_output, more.audio_output),
    ];
    for (total, count) in pairs {
        *total = total.saturating_add(count);
    }
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unspecified => "unspecified",
        Outcome::Completed => "completed",
        Outcome::Failed => "failed",
        Outcome::Cut => "cut",
        Outcome::Cancelled => "cancelled",
        Outcome::Interrupted => "interrupted",
    }
}
