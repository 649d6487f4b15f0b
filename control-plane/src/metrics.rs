//! The registry of the control plane's metrics and the page that Prometheus reads.
//!
//! Label values come from closed sets (route, method, status class), never from callers' text.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::app::App;
use crate::error::ApiError;
use crate::rest::{Access, Route};

/// Cheap to clone; all clones are one registry.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    requests: Family<RestLabels, Counter>,
    seconds: Family<RestLabels, Histogram, fn() -> Histogram>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RestLabels {
    method: &'static str,
    route: &'static str,
    status: u16,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("pointsman");
        let requests = Family::default();
        // 1 ms to about 16 s.
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let seconds = Family::new_with_constructor(histogram);
        registry.register("rest_requests", "Requests of the management interface", requests.clone());
        registry.register("rest_request_seconds", "Their duration", seconds.clone());
        Self { registry: Arc::new(Mutex::new(registry)), requests, seconds }
    }
}

impl Metrics {
    /// Runs `register` on the registry; names get the prefix `pointsman_`.
    pub fn register(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The page, in OpenMetrics text form.
    pub fn page(&self) -> String {
        let mut page = String::new();
        // Writing to a string cannot fail, so an error could only be a metric's own.
        let written = encode(&mut page, &self.registry.lock().unwrap_or_else(PoisonError::into_inner));
        if written.is_err() {
            tracing::error!("a metric cannot be encoded");
        }
        page
    }

    /// Counts an answered request. `method` and `route` are from the route table.
    pub(crate) fn answered(&self, method: &'static str, route: &'static str, status: u16, took: Duration) {
        let labels = RestLabels { method, route, status };
        self.requests.get_or_create(&labels).inc();
        self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

/// `GET /metrics`.
pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/metrics", Access::Public, page)
            .tag("operation")
            .summary("Metrics for Prometheus")
            .produces("application/openmetrics-text")
            .answers_plain(200, "OpenMetrics text"),
    ]
}

async fn page(State(app): State<App>) -> Result<Response, ApiError> {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], app.metrics.page()).into_response())
}
