//! Prometheus metrics of requests. Labels come from the catalogue and from closed sets, never from
//! callers; past a number of series, new models count as `other`.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Registry, Unit};
use shared::proto::Outcome;

use super::tally::{Buckets, First, LATENCY, OVERHEAD, Row, Tally};

/// Models that get series of their own.
const MOST_MODELS: usize = 500;
/// What later ones are called.
const OTHER: &str = "other";

/// A histogram that threads' tallies are added to.
#[derive(Debug, Clone)]
struct Histogram {
    first: First,
    buckets: Arc<Mutex<Buckets>>,
}

impl Histogram {
    fn new(first: First) -> Self {
        Self { first, buckets: Arc::default() }
    }

    fn merge(&self, more: &Buckets) {
        self.lock().merge(more);
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let buckets = *self.lock();
        let counts: Vec<(f64, u64)> = Buckets::bounds(self.first).zip(buckets.counts).collect();
        let (sum, count) = (buckets.sum_us as f64 / 1e6, buckets.counts.iter().sum());
        encoder.encode_histogram::<NoLabelSet>(sum, count, &counts, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByModel {
    endpoint: &'static str,
    provider: String,
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    endpoint: &'static str,
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
        let seconds = || Histogram::new(LATENCY);
        let metrics = Self {
            requests: Family::default(),
            attempts: Family::default(),
            duration: Family::new_with_constructor(seconds),
            first_byte: Family::new_with_constructor(seconds),
            overhead: Histogram::new(OVERHEAD),
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
            "Log lines and spans lost because collecting fell behind; metrics and usage are not affected",
            m.dropped.clone(),
        );
        metrics
    }

    /// Adds what a thread counted.
    pub fn add(&mut self, tally: Tally) {
        for row in tally.into_rows() {
            self.add_row(&row);
        }
    }

    /// Counts observations that were dropped.
    pub fn lost(&self, count: u64) {
        self.dropped.inc_by(count);
    }

    fn add_row(&mut self, row: &Row) {
        let (provider, model) = self.name(&row.provider.slug, &row.offering.model);
        for (result, count) in &row.attempts {
            let labels = ByAttempt { provider: provider.clone(), model: model.clone(), result };
            self.attempts.get_or_create(&labels).inc_by(*count);
        }
        for ((status, outcome), count) in &row.results {
            let (endpoint, outcome) = (row.endpoint, outcome_name(*outcome));
            let labels =
                ByResult { endpoint, provider: provider.clone(), model: model.clone(), status: *status, outcome };
            self.requests.get_or_create(&labels).inc_by(*count);
        }
        let labels = ByModel { endpoint: row.endpoint, provider: provider.clone(), model: model.clone() };
        if !row.results.is_empty() {
            self.duration.get_or_create(&labels).merge(&row.duration);
            self.first_byte.get_or_create(&labels).merge(&row.first_byte);
            self.overhead.merge(&row.overhead);
            self.cost.get_or_create(&labels).inc_by(row.cost);
            self.unpriced.inc_by(row.unpriced);
        }
        let tokens = &row.tokens;
        let classes = [
            ("input", tokens.input),
            ("cache_read", tokens.cache_read),
            ("cache_write", tokens.cache_write_5m.saturating_add(tokens.cache_write_1h)),
            ("output", tokens.output),
            ("reasoning", tokens.reasoning),
            ("audio", tokens.audio_input.saturating_add(tokens.audio_output)),
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
