//! One node, without a control plane: it starts from its disk, serves the sandbox and a scripted
//! upstream over real sockets, and writes its journal.

mod upstream;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use clap::Parser;
use runtime::rpc::Dialer;
use runtime::{shutdown, task};
use serde_json::{Value, json};
use shared::ids::{ApiKeyId, CredentialId, ModelId, NodeId, ProjectId, ProviderId, WorkspaceId};
use shared::proto;
use shared::snapshot::SHARED_SCOPE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::Config;
use crate::snapshot::Store;
use crate::snapshot::fixture::{full, resource, scope};
use crate::usage::journal;
use crate::{Control, Running, start};
use upstream::Upstream;

const KEY: &str = "pm_test-key";

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    node: Config,
}

/// A node in a folder of its own.
struct TestNode {
    running: Option<Running>,
    trigger: shutdown::Trigger,
    folder: PathBuf,
    data: SocketAddr,
    admin: SocketAddr,
}

impl TestNode {
    async fn start(upstream: Option<&Upstream>) -> Self {
        Self::start_with(upstream, &[]).await
    }

    async fn start_with(upstream: Option<&Upstream>, flags: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("pointsman-node-{}-{number}", std::process::id()));
        _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        seed(&folder, upstream);
        let fixed = [
            "node",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--threads=1",
            "--egress-allow-private=true",
            "--drain-delay-ms=0",
            "--connect-timeout-ms=500",
        ];
        let mut config = Arguments::parse_from(fixed.iter().chain(flags)).node;
        config.data_dir.clone_from(&folder);
        let (trigger, shutdown) = shutdown::channel();
        let nobody = Dialer::new("nobody", || async {
            Err::<TcpStream, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
        });
        let running = start(config, Control::Local { dialer: nobody, node_id: NodeId::from_u128(1) }, shutdown)
            .await
            .expect("the node starts");
        let (data, admin) = (running.data_addr, running.admin_addr);
        Self { running: Some(running), trigger, folder, data, admin }
    }

    /// Sends a request and reads the whole answer: status, head, body.
    async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
        send_to(self.data, method, path, headers, body).await
    }

    async fn chat(&self, body: &Value) -> (u16, String, String) {
        let headers = format!("authorization: Bearer {KEY}\r\ncontent-type: application/json\r\n");
        self.send("POST", "/v1/chat/completions", &headers, &body.to_string()).await
    }

    /// Stops it and gives the final records of its journal.
    async fn stop(mut self) -> Vec<proto::UsageRecord> {
        self.trigger.fire();
        let running = self.running.take().expect("it runs");
        task::spawn_blocking("stop", move || running.join()).await.expect("it stops");
        let finals = finals_in(&self.folder);
        std::fs::remove_dir_all(&self.folder).expect("the folder is ours");
        finals
    }
}

/// What a restart would read.
fn finals_in(folder: &std::path::Path) -> Vec<proto::UsageRecord> {
    use prost::Message;
    let opened = journal::open(folder, 1, &journal::Options::default()).expect("the node let go of it");
    let mut finals = Vec::new();
    for spool in &opened.spools {
        journal::Tail::after(spool, 0).read(1_000, 1 << 20, &mut finals).expect("it is whole");
    }
    finals.iter().map(|f| proto::UsageRecord::decode(&*f.record).expect("a record")).collect()
}

async fn send_to(to: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(to).await.expect("it listens");
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("it reads");
    // A refusal may come before the body is read.
    _ = stream.write_all(body.as_bytes()).await;
    let mut answer = Vec::new();
    _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("it answers");
    let answer = String::from_utf8(answer).expect("answers here are text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("it has a head");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("it has a status");
    let body = if head.contains("transfer-encoding: chunked") { unchunk(body) } else { body.to_owned() };
    (status, head.to_ascii_lowercase(), body)
}

fn unchunk(body: &str) -> String {
    let mut out = String::new();
    let mut rest = body;
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a chunk size");
        out.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    out
}

/// A catalogue with the sandbox and one vendor at `upstream`, a workspace, a project, a key.
fn seed(folder: &std::path::Path, upstream: Option<&Upstream>) {
    let store = Store::open(&folder.join("snapshot"), None).expect("a store");
    store.welcome([7; 16]);
    let endpoint = |endpoint: &str, path: &str| proto::EndpointPath { endpoint: endpoint.into(), path: path.into() };
    let vendor = |slug: &str, url: &str| proto::Vendor {
        slug: slug.into(),
        dialect: "openai".into(),
        base_url: url.into(),
        auth: Some(proto::Auth { header: "authorization".into(), prefix: "Bearer ".into() }),
        endpoints: vec![endpoint("chat_completions", "/chat/completions"), endpoint("embeddings", "/embeddings")],
        credential_optional: true,
        ..Default::default()
    };
    let url = upstream.map(|u| format!("http://{}/base", u.address)).unwrap_or_default();
    let mut price =
        proto::Price { input: 1_000_000_000, output: 2_000_000_000, reasoning: 2_000_000_000, ..Default::default() };
    price.id = shared::money::price_id(&price);
    let facts =
        |kind: &str| proto::ModelFacts { r#type: kind.into(), prices: vec![price.clone()], ..Default::default() };
    let offering = |vendor: &str, model: &str, kind: &str| {
        let message = proto::CatalogOffering {
            vendor: vendor.into(),
            model: model.into(),
            facts: Some(facts(kind)),
            ..Default::default()
        };
        resource("catalog_offering", &format!("{vendor}/{model}"), &message)
    };
    let shared = scope(
        vec![
            resource("vendor", "sandbox", &vendor("sandbox", "sandbox://sandbox/v1")),
            resource("vendor", "scripted", &vendor("scripted", &url)),
            offering("sandbox", "echo", "chat"),
            offering("sandbox", "embed", "embedding"),
        ],
        1,
    );
    let workspace = WorkspaceId::from_u128(1);
    let project = ProjectId::from_u128(2).to_string();
    let provider = |n: u128, slug: &str, vendor: &str| proto::Provider {
        id: ProviderId::from_u128(n).to_string(),
        slug: slug.into(),
        vendor: vendor.into(),
        ..Default::default()
    };
    let mut resources = vec![
        resource(
            "workspace",
            &workspace.to_string(),
            &proto::Workspace { id: workspace.to_string(), key: "w".into(), ..Default::default() },
        ),
        resource("project", &project, &proto::Project { id: project.clone(), key: "default".into(), disabled: false }),
        resource("provider", &ProviderId::from_u128(3).to_string(), &provider(3, "sandbox", "sandbox")),
    ];
    if upstream.is_some() {
        resources.push(resource(
            "provider",
            &ProviderId::from_u128(4).to_string(),
            &provider(4, "scripted", "scripted"),
        ));
        for (n, name) in [(5, "one"), (6, "two")] {
            let model = proto::Model {
                id: ModelId::from_u128(n).to_string(),
                provider_id: ProviderId::from_u128(4).to_string(),
                name: name.into(),
                private: true,
                facts: Some(facts("chat")),
                ..Default::default()
            };
            resources.push(resource("model", &model.id, &model));
        }
        let credential = proto::Credential {
            id: CredentialId::from_u128(8).to_string(),
            provider_id: ProviderId::from_u128(4).to_string(),
            name: "first".into(),
            secret: "upstream-secret".into(),
            weight: 1,
            owner: "own".into(),
            ..Default::default()
        };
        resources.push(resource("credential", &credential.id, &credential));
    }
    let key = proto::ApiKey {
        id: ApiKeyId::from_u128(7).to_string(),
        project_id: project,
        hash: shared::digest::sha256(&[KEY.as_bytes()]).to_vec(),
        scopes: vec!["inference".into(), "models".into()],
        ..Default::default()
    };
    resources.push(resource("api_key", &key.id, &key));
    for (name, state) in [(SHARED_SCOPE.to_owned(), shared), (workspace.to_string(), scope(resources, 1))] {
        let applied = store.apply(&full(&name, &state));
        applied.unwrap_or_else(|rejection| panic!("{name}: {rejection}"));
    }
    store.flush();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_answers_whole_streamed_and_embedded() {
    let node = TestNode::start(None).await;
    let body = json!({"model": "sandbox/echo", "messages": [{"role": "user", "content": "one two three"}]});
    let (status, head, answer) = node.chat(&body).await;
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer.pointer("/choices/0/message/content"), Some(&json!("one two three")));
    for header in [
        "x-request-id: req_",
        "x-pointsman-resolved-model: sandbox/echo",
        "x-pointsman-attempts: 1",
        "x-pointsman-fallback-level: 0",
        "x-pointsman-cost-usd: 0.000009000",
        "x-pointsman-reason: model:sandbox/echo",
    ] {
        assert!(head.contains(header), "{header} in {head}");
    }
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let (status, head, answer) = node.chat(&streamed).await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    assert!(answer.ends_with("data: [DONE]\n\n") && !answer.contains("\"choices\":[]"), "{answer}");
    let headers = format!("x-api-key: {KEY}\r\n");
    let (status, _, answer) =
        node.send("POST", "/v3/router/embeddings", &headers, r#"{"model":"sandbox/embed","input":"a b"}"#).await;
    assert_eq!(status, 200, "{answer}");
    let (status, _, list) = node.send("GET", "/v1/models", &headers, "").await;
    assert!(status == 200 && list.contains("sandbox/echo"), "{list}");
    let (status, _, one) = node.send("GET", "/v1/models/sandbox%2Fecho", &headers, "").await;
    assert!(status == 200 && one.contains("sandbox/echo"), "{one}");
    let (_, _, metrics) = send_to(node.admin, "GET", "/readyz", "", "").await;
    assert_eq!(metrics, "ready\n");

    let records = node.stop().await;
    let used: Vec<_> = records.iter().map(|r| (r.endpoint.as_str(), r.status, r.cost_nanos, r.stream)).collect();
    assert_eq!(
        used,
        [
            ("chat_completions", 200, 9_000, false),
            ("chat_completions", 200, 9_000, true),
            ("embeddings", 200, 2_000, false)
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_cost_nothing_and_reach_nobody() {
    let upstream = Upstream::start().await;
    let node = TestNode::start(Some(&upstream)).await;
    let auth = format!("authorization: Bearer {KEY}\r\n");
    let good = r#"{"model":"scripted/one","messages":[{"role":"user","content":"x"}]}"#;
    let cases = [
        ("POST", "/v1/chat/completions", "", good, 401, "invalid_api_key"),
        ("POST", "/v1/chat/completions", "authorization: Bearer nope\r\n", good, 401, "invalid_api_key"),
        ("POST", "/v1/chat/completions", &*auth, "{", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", &auth, r#"{"model":"scripted/one"}"#, 400, "missing_required_parameter"),
        (
            "POST",
            "/v1/chat/completions",
            &auth,
            r#"{"model":"none/one","messages":[{"role":"user","content":"x"}]}"#,
            404,
            "model_not_found",
        ),
        (
            "POST",
            "/v1/chat/completions",
            &format!("{auth}content-encoding: gzip\r\n"),
            good,
            415,
            "content_encoding_not_supported",
        ),
        ("GET", "/v1/chat/completions", &auth, "", 405, "method_not_allowed"),
        ("POST", "/v1/nothing", &auth, "", 404, "not_found"),
    ];
    for (method, path, headers, body, status, code) in cases {
        let (found, head, answer) = node.send(method, path, headers, body).await;
        assert_eq!(found, status, "{method} {path} {body}: {answer}");
        let answer: Value = serde_json::from_str(&answer).expect("an envelope");
        assert_eq!(answer.pointer("/error/code"), Some(&json!(code)));
        assert!(head.contains("x-request-id: req_"), "{head}");
    }
    assert_eq!(upstream.requests(), 0);
    assert_eq!(node.stop().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_pass_untouched_and_failures_move_on() {
    let upstream = Upstream::start().await;
    let node = TestNode::start(Some(&upstream)).await;
    upstream.script("one", &["500 {\"error\":{\"message\":\"boom\"}}", "500 {}", "500 {}"]);
    let reply = r#"{"id":"x", "choices":[{"index":0,"message":{"role":"assistant","content":"hi \u00e9"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5},"odd":[1, 2]}"#;
    upstream.script("two", &[&format!("200 {reply}")]);
    let body =
        json!({"models": ["scripted/one", "scripted/two"], "messages": [{"role": "user", "content": "x"}], "top_k": 3});
    let (status, head, answer) = node.chat(&body).await;
    assert_eq!((status, answer.as_str()), (200, reply), "{head}");
    assert!(
        head.contains("x-pointsman-fallback-level: 1") && head.contains("x-pointsman-resolved-model: scripted/two"),
        "{head}"
    );
    let sent = upstream.last_request();
    assert!(
        sent.contains("authorization: Bearer upstream-secret") && sent.starts_with("POST /base/chat/completions"),
        "{sent}"
    );
    assert!(!sent.contains(KEY) && sent.contains("\"top_k\":3") && !sent.contains("\"models\""), "{sent}");
    let (_, _, breakers) = send_to(node.admin, "GET", "/breakers", "", "").await;
    assert!(breakers.starts_with('['), "{breakers}");

    let records = node.stop().await;
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((record.cost_nanos, record.fallback_level, record.model.as_str()), (7_000, 1, "two"));
    assert!(record.attempts >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_ends_with_an_error_event_and_is_metered() {
    let upstream = Upstream::start().await;
    let node = TestNode::start(Some(&upstream)).await;
    upstream.script(
        "one",
        &["stream-cut data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"half an answer\"}}]}\n\n"],
    );
    let body = json!({"model": "scripted/one", "stream": true, "messages": [{"role": "user", "content": "x"}]});
    let (status, _, answer) = node.chat(&body).await;
    assert_eq!(status, 200);
    assert!(
        answer.contains("half an answer") && answer.contains("\"error\"") && !answer.contains("[DONE]"),
        "{answer}"
    );
    let records = node.stop().await;
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(record.outcome(), proto::Outcome::Cut);
    assert!(record.estimated && record.cost_nanos > 0, "{record:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_cancels_the_call() {
    let upstream = Upstream::start().await;
    let node = TestNode::start(Some(&upstream)).await;
    upstream.script("one", &["hang"]);
    let body = json!({"model": "scripted/one", "messages": [{"role": "user", "content": "x"}]}).to_string();
    let mut stream = TcpStream::connect(node.data).await.expect("it listens");
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {KEY}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("it reads");
    upstream.wait_for_requests(1).await;
    drop(stream);
    upstream.wait_for_closed(1).await;
    let records = node.stop().await;
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((record.outcome(), record.status), (proto::Outcome::Cancelled, 499));
}

/// Starts a stream on the node and gives its whole answer once it has ended.
async fn begin_stream(node: &TestNode, order: &str) -> tokio::task::JoinHandle<(u16, String, String)> {
    let messages = json!([{"role": "user", "content": order}]);
    let body = json!({"model": "sandbox/echo", "stream": true, "messages": messages}).to_string();
    let data = node.data;
    let streaming = task::spawn("caller", async move {
        let headers = format!("authorization: Bearer {KEY}\r\n");
        send_to(data, "POST", "/v1/chat/completions", &headers, &body).await
    });
    while !send_to(node.admin, "GET", "/metrics", "", "").await.2.contains("pointsman_requests_in_flight 1") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    streaming
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_finishes_what_it_began() {
    let node = TestNode::start(None).await;
    let streaming = begin_stream(&node, "[[pace:100]] a b c d e").await;
    let records = node.stop().await;
    let (status, _, answer) = streaming.await.expect("the client gets its answer");
    assert!(status == 200 && answer.ends_with("data: [DONE]\n\n"), "{answer}");
    assert_eq!(records.first().map(proto::UsageRecord::outcome), Some(proto::Outcome::Completed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_longer_than_the_drain_ends_with_an_error_event() {
    let node = TestNode::start_with(None, &["--drain-timeout-ms=300"]).await;
    let streaming = begin_stream(&node, "[[pace:500]] [[words:100]]").await;
    let records = node.stop().await;
    let (status, _, answer) = streaming.await.expect("the client gets an answer");
    assert_eq!(status, 200);
    assert!(answer.contains("\"code\":\"node_shutting_down\"") && !answer.contains("[DONE]"), "{answer}");
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((record.outcome(), record.code.as_str()), (proto::Outcome::Cut, "node_shutting_down"));
}

/// The deadlines of callers' connections are not those of requests: one that runs longer than any of
/// them goes on, and costs nothing while it waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_outlives_the_deadlines_of_its_connection() {
    let node = TestNode::start_with(None, &["--head-timeout-ms=100", "--keep-alive-ms=100"]).await;
    let (begun, before) = (tokio::time::Instant::now(), processor_time());
    let words = "one two three four five six seven eight nine ten";
    let body = json!({"model": "sandbox/echo", "stream": true,
        "messages": [{"role": "user", "content": format!("[[pace:150]] {words}")}]});
    let answered = tokio::time::timeout(Duration::from_secs(20), node.chat(&body)).await;
    let (status, _, text) = answered.expect("the stream does not stall");
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("ten") && text.trim_end().ends_with("[DONE]"), "{text}");
    let (took, busy) = (begun.elapsed(), processor_time() - before);
    assert!(took > Duration::from_secs(1), "{took:?}: not longer than the deadlines");
    // nextest runs each test in a process of its own; elsewhere others use the processor too.
    if std::env::var_os("NEXTEST").is_some() {
        assert!(busy * 2 < took, "busy for {busy:?} of {took:?}");
    }
    let finals = node.stop().await;
    assert_eq!((finals.len(), finals[0].outcome()), (1, proto::Outcome::Completed));
}

/// What the sandbox is told to break off breaks off behind its beginning.
#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_breaks_a_stream() {
    let node = TestNode::start(None).await;
    let body = json!({"model": "sandbox/echo", "stream": true,
        "messages": [{"role": "user", "content": "[[cut]] one two three four five six"}]});
    let (status, _, text) = node.chat(&body).await;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("one") && text.contains("\"error\"") && !text.contains("[DONE]"), "{text}");
    let finals = node.stop().await;
    assert_eq!((finals.len(), finals[0].outcome()), (1, proto::Outcome::Cut));
}

/// A connection that is kept for nothing ends, also when the request before outlived every deadline.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_ends() {
    let node = TestNode::start_with(None, &["--head-timeout-ms=100", "--keep-alive-ms=300"]).await;
    for (pause, delay) in [(0, 0), (0, 600), (50, 0), (50, 600)] {
        let body = json!({"model": "sandbox/echo",
            "messages": [{"role": "user", "content": format!("[[delay:{delay}]] x")}]})
        .to_string();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: node\r\nauthorization: Bearer {KEY}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(node.data).await.expect("it listens");
        tokio::time::sleep(Duration::from_millis(pause)).await;
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        ended.unwrap_or_else(|_| panic!("pause {pause}, delay {delay}: kept for ever")).expect("read");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("connection: close"), "{answer}");
    }
    assert_eq!(node.stop().await.len(), 4);
}

/// What this process has used of all processors, in the kernel's ticks of 10 ms.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let behind_name = stat.rsplit(')').next().unwrap_or_default();
    // The state is a letter; user and system time stand eleven and twelve fields behind it.
    let fields: Vec<i64> = behind_name.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    Duration::from_millis(u64::try_from((fields[10] + fields[11]) * 10).unwrap_or(0))
}
