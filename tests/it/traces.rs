//! Spans over OTLP, as a collector gets them: one of a server per request, below the caller's own, and
//! below it one of a client per attempt. Nothing of prompts, answers or keys is in them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;
use tests::house::Builder;
use tests::provider::Script;
use tests::wait;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// Exporters send in batches, every few seconds.
const EXPORTED: Duration = Duration::from_secs(20);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        self.0.lock().expect("lock").extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves on a port of its own; gives its URL.
    async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        url
    }

    fn spans(&self, kind: SpanKind) -> Vec<Span> {
        self.0.lock().expect("lock").iter().filter(|span| span.kind() == kind).cloned().collect()
    }
}

fn attributes(span: &Span) -> HashMap<&str, String> {
    let text = |value: &Option<Value>| match value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    };
    span.attributes.iter().map(|a| (a.key.as_str(), text(&a.value.clone().and_then(|v| v.value)))).collect()
}

fn hex(id: &[u8]) -> String {
    tests::http::hex(id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_and_its_attempts() {
    let collector = Collector::default();
    let endpoint = format!("--otlp-endpoint={}", collector.serve().await);
    let mut house = Builder::apart(1).node_args(&[&endpoint]).start().await.expect("a house");
    house.connect(&["first", "second"]).await.expect("connected");
    let alias = json!({"name": "both", "targets": ["scripted/first", "scripted/second"]});
    house.create("aliases", alias).await.expect("an alias");
    house.serves("both").await.expect("served");
    house.provider.on_model("first", Script::status(500));

    let body = json!({"model": "both", "messages": [{"role": "user", "content": "canary-of-a-prompt"}]});
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [("traceparent", parent.as_str()), ("content-type", "application/json")];
    let path = "/v1/chat/completions";
    let answer = house.caller().send(Method::POST, path, Bytes::from(body.to_string()), &headers).await;
    let answer = answer.expect("an answer").good().expect("the second answers");
    let asked = house.provider.seen().pop().expect("asked").headers;
    assert!(asked.contains(&("traceparent".to_owned(), parent)), "the trace goes on: {asked:?}");

    let served = wait::until(EXPORTED, "the request's span", async || collector.spans(SpanKind::Server).pop());
    let served = served.await.expect("exported");
    assert_eq!((hex(&served.trace_id), hex(&served.parent_span_id)), (TRACE.to_owned(), CALLER.to_owned()));
    let attempts = wait::until(EXPORTED, "the attempts' spans", async || {
        Some(collector.spans(SpanKind::Client)).filter(|spans| spans.len() >= 3)
    });
    let attempts = attempts.await.expect("exported");
    let expected = [("first", "500"), ("first", "500"), ("second", "200")];
    assert_eq!(attempts.len(), expected.len());
    for (span, (model, status)) in attempts.iter().zip(expected) {
        assert_eq!((&span.trace_id, &span.parent_span_id), (&served.trace_id, &served.span_id), "{span:?}");
        let told = attributes(span);
        assert_eq!((&*told["gen_ai.request.model"], &*told["http.response.status_code"]), (model, status));
        assert_eq!(told.contains_key("error.type"), status == "500", "{told:?}");
        assert!(served.start_time_unix_nano <= span.start_time_unix_nano, "{span:?}");
        assert!(span.end_time_unix_nano <= served.end_time_unix_nano + 1_000_000, "{span:?}");
    }
    let told = attributes(&served);
    let expected = [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "both"),
        ("gen_ai.response.model", "second"),
        ("http.response.status_code", "200"),
        ("pointsman.attempts", "3"),
        ("pointsman.fallback_level", "1"),
        ("pointsman.request_id", answer.header("x-request-id")),
    ];
    for (name, value) in expected {
        assert_eq!(told[name], value, "{name}");
    }
    let usage = &answer.json()["usage"];
    assert_eq!(told["gen_ai.usage.input_tokens"], usage["prompt_tokens"].to_string());
    assert_eq!(told["gen_ai.usage.output_tokens"], usage["completion_tokens"].to_string());
    let all = format!("{:?}", collector.0.lock().expect("lock"));
    for secret in ["canary", &house.api_key] {
        assert!(!all.contains(secret), "{secret} in {all}");
    }
}
