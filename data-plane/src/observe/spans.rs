//! Spans of requests: one server span per request, one client span per attempt, with OpenTelemetry's
//! names for generative AI and our own under `pointsman.`. They are made after the fact, from the
//! record that was written, so a request never waits for them. Off unless an exporter is set up.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{
    Span, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
};
use opentelemetry::{Context, KeyValue, global};

use shared::snapshot::{Offering, Provider};

use super::{Attempt, Observation};
use crate::headers::Trace;

/// Makes the spans of one request.
pub fn export(observation: &Observation) {
    let record = &observation.record;
    let tracer = global::tracer("pointsman");
    let parent = observation.trace.as_ref().map_or_else(Context::new, remote);
    let began = at(record.started_at_ms, Duration::ZERO);
    let operation = match record.endpoint.as_str() {
        "chat_completions" => "chat",
        other => other,
    };
    let mut span = SpanBuilder::from_name(format!("{operation} {}", record.requested_model))
        .with_kind(SpanKind::Server)
        .with_start_time(began)
        .with_attributes(request_attributes(observation, operation))
        .start_with_context(&tracer, &parent);
    if record.status >= 500 {
        span.set_status(Status::error(record.code.clone()));
    }
    let context = parent.with_remote_span_context(span.span_context().clone());
    // Attempts are timed by the monotonic clock; the request by both.
    let origin = observation.attempts.first().map(|(first, ..)| first.began);
    for tried in &observation.attempts {
        let (attempt, ..) = tried;
        let lead = record.total_us.saturating_sub(record.upstream_us).min(1_000);
        let offset = attempt.began.saturating_sub(origin.unwrap_or_default()) + Duration::from_micros(lead);
        attempt_span(&tracer, &context, tried, at(record.started_at_ms, offset), operation);
    }
    span.end_with_timestamp(at(record.started_at_ms, Duration::from_micros(record.total_us)));
}

fn attempt_span(
    tracer: &impl Tracer,
    parent: &Context,
    (attempt, provider, offering): &(Attempt, Arc<Provider>, Arc<Offering>),
    began: SystemTime,
    operation: &str,
) {
    let mut attributes = vec![
        KeyValue::new("gen_ai.operation.name", operation.to_owned()),
        KeyValue::new("gen_ai.provider.name", provider.vendor.slug.to_string()),
        KeyValue::new("gen_ai.request.model", offering.upstream_model.to_string()),
        KeyValue::new("pointsman.provider", provider.slug.to_string()),
        KeyValue::new("server.address", provider.base_url.authority.host().to_owned()),
    ];
    if attempt.status != 0 {
        attributes.push(KeyValue::new("http.response.status_code", i64::from(attempt.status)));
    }
    if let Some(failure) = attempt.failure {
        attributes.push(KeyValue::new("error.type", failure.code()));
    }
    let mut span = SpanBuilder::from_name(format!("{operation} {}", offering.model))
        .with_kind(SpanKind::Client)
        .with_start_time(began)
        .with_attributes(attributes)
        .start_with_context(tracer, parent);
    if let Some(failure) = attempt.failure {
        span.set_status(Status::Error { description: Cow::Borrowed(failure.code()) });
    }
    span.end_with_timestamp(began + Duration::from_micros(attempt.micros()));
}

fn request_attributes(observation: &Observation, operation: &str) -> Vec<KeyValue> {
    let record = &observation.record;
    let id = <[u8; 16]>::try_from(record.request_id.as_slice()).map(u128::from_be_bytes).unwrap_or_default();
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let tokens = record.tokens.as_ref().map(shared::usage::Tokens::from).unwrap_or_default();
    let mut attributes = vec![
        KeyValue::new("gen_ai.operation.name", operation.to_owned()),
        KeyValue::new("gen_ai.request.model", record.requested_model.clone()),
        KeyValue::new("gen_ai.response.model", record.model.clone()),
        KeyValue::new("gen_ai.provider.name", record.vendor.clone()),
        KeyValue::new("gen_ai.usage.input_tokens", count(tokens.prompt())),
        KeyValue::new("gen_ai.usage.output_tokens", count(tokens.produced())),
        KeyValue::new("http.request.method", "POST"),
        KeyValue::new("http.response.status_code", i64::from(record.status)),
        KeyValue::new("pointsman.request_id", shared::ids::RequestId::from_u128(id).to_string()),
        KeyValue::new("pointsman.workspace", record.workspace_id.clone()),
        KeyValue::new("pointsman.revision", count(record.revision)),
        KeyValue::new("pointsman.provider", record.provider.clone()),
        KeyValue::new("pointsman.attempts", i64::from(record.attempts)),
        KeyValue::new("pointsman.fallback_level", i64::from(record.fallback_level)),
        KeyValue::new("pointsman.cost_nanodollars", record.cost_nanos),
        KeyValue::new("pointsman.overhead_us", count(record.total_us.saturating_sub(record.upstream_us))),
    ];
    if !record.code.is_empty() {
        attributes.push(KeyValue::new("error.type", record.code.clone()));
    }
    attributes
}

/// The caller's span as a parent.
fn remote(trace: &Trace) -> Context {
    let Ok(text) = trace.parent.to_str() else { return Context::new() };
    let mut parts = text.split('-').skip(1);
    let trace_id = parts.next().and_then(|id| TraceId::from_hex(id).ok());
    let span_id = parts.next().and_then(|id| SpanId::from_hex(id).ok());
    let flags = parts.next().and_then(|flags| u8::from_str_radix(flags, 16).ok());
    match (trace_id, span_id, flags) {
        (Some(trace_id), Some(span_id), Some(flags)) => {
            let flags = TraceFlags::new(flags);
            let remote = SpanContext::new(trace_id, span_id, flags, true, TraceState::default());
            Context::new().with_remote_span_context(remote)
        }
        _ => Context::new(),
    }
}

fn at(wall_ms: i64, offset: Duration) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(wall_ms).unwrap_or(0)) + offset
}
