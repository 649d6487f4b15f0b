//! Prometheus metrics of requests. Labels come from the catalogue and from closed sets, never from
//! callers; past a number of series, new models count as `other`.

use std::collections::HashSet;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use shared::proto::Outcome;

use super::Observation;

/// Models that get series of their own.
const MOST_MODELS: usize = 500;

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
        registry.register("requests", "Requests that reached a plan, by who served them and how they ended", metrics.requests.clone());
        registry.register("attempts", "Upstream calls by result", metrics.attempts.clone());
        registry.register_with_unit("request_duration", "From arrival to the last byte", Unit::Seconds, metrics.duration.clone());
        registry.register_with_unit("first_byte", "From arrival to the first byte of the answer", Unit::Seconds, metrics.first_byte.clone());
        registry.register_with_unit("overhead", "Our own part of a request: its time less that of upstream calls", Unit::Seconds, metrics.overhead.clone());
        registry.register("tokens", "Tokens by class", metrics.tokens.clone());
        registry.register("cost_nanodollars", "Cost in nano-dollars", metrics.cost.clone());
        registry.register("unpriced_requests", "Requests served by a model without a price", metrics.unpriced.clone());
        registry.register("observations_dropped", "Observations lost because collecting fell behind; usage is not affected", metrics.dropped.clone());
        metrics
    }

    /// Counts one request.
    pub fn observe(&mut self, observation: &Observation) {
        let record = &observation.record;
        let (provider, model) = self.name(&record.provider, &record.model);
        let by_model = ByModel { endpoint: record.endpoint.clone(), provider: provider.clone(), model: model.clone() };
        self.requests
            .get_or_create(&ByResult {
                endpoint: record.endpoint.clone(),
                provider: provider.clone(),
                model: model.clone(),
                status: record.status,
                outcome: outcome(record.outcome()),
            })
            .inc();
        let seconds = |micros: u64| Duration::from_micros(micros).as_secs_f64();
        self.duration.get_or_create(&by_model).observe(seconds(record.total_us));
        if record.first_byte_us > 0 {
            self.first_byte.get_or_create(&by_model).observe(seconds(record.first_byte_us));
        }
        self.overhead.observe(seconds(record.total_us.saturating_sub(record.upstream_us)));
        self.count_tokens(observation, &provider, &model);
        if record.price_id.is_empty() && record.tokens.is_some() {
            self.unpriced.inc();
        }
        self.cost.get_or_create(&by_model).inc_by(u64::try_from(record.cost_nanos).unwrap_or(0));
        for attempt in &observation.attempts {
            let (provider, model) = self.name(&attempt.provider.slug, &attempt.offering.model);
            let result = attempt.failure.map_or("ok", |failure| failure.code());
            self.attempts.get_or_create(&ByAttempt { provider, model, result }).inc();
        }
    }

    /// Counts observations that were dropped.
    pub fn lost(&self, count: u64) {
        self.dropped.inc_by(count);
    }

    fn count_tokens(&self, observation: &Observation, provider: &str, model: &str) {
        let Some(tokens) = &observation.record.tokens else { return };
        let classes = [
            ("input", tokens.input),
            ("cache_read", tokens.cache_read),
            ("cache_write", tokens.cache_write_5m.saturating_add(tokens.cache_write_1h)),
            ("output", tokens.output),
            ("reasoning", tokens.reasoning),
            ("audio", tokens.audio_input.saturating_add(tokens.audio_output)),
        ];
        for (class, count) in classes {
            if count > 0 {
                let labels = ByClass { provider: provider.to_owned(), model: model.to_owned(), class };
                self.tokens.get_or_create(&labels).inc_by(count);
            }
        }
    }

    fn name(&mut self, provider: &str, model: &str) -> (String, String) {
        let name = (provider.to_owned(), model.to_owned());
        if self.models.contains(&name) {
            return name;
        }
        if self.models.len() >= MOST_MODELS {
            return ("other".to_owned(), "other".to_owned());
        }
        self.models.insert(name.clone());
        name
    }
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unspecified => "unspecified",
        Outcome::Completed => "completed",
        Outcome::Failed => "failed",
        Outcome::Cut => "cut",
        Outcome::Cancelled => "cancelled",
        Outcome::Interrupted => "interrupted",
    }
}
