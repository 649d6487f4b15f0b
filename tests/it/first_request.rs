//! What a new user does first, and that bytes pass untouched both ways.

use serde_json::{Value, json};
use tests::house::{Builder, CREDENTIAL};
use tests::http::{Http, hex};
use tests::provider::{Report, Script};

/// JSON as people write it: space, escapes, unknown fields, numbers that a double cannot hold.
const ODD: &str = concat!(
    "{ \"messages\" : [ {\"role\":\"user\",\"content\":\"caf\\u00e9 \u{1f980}\"} ],\r\n",
    "\t\"x_unknown\": [1.0, 12345678901234567890123, 1e-7, {\"deep\": null}], \"temperature\":0.10,\n",
    "  \"model\" :   \"scripted/chat\" , \"logit_bias\": {\"50256\": -100}}"
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandbox_answers_at_once() {
    let mut house = Builder::together().start().await.expect("a house");
    let caller = house.caller();
    let models = caller.get("/v1/models").await.expect("a list").json();
    let names = models["data"].as_array().expect("a list").iter().filter_map(|m| m["id"].as_str());
    let name = names.into_iter().find(|n| n.starts_with("sandbox/")).expect("a sandbox model").to_owned();
    let body = json!({"model": name, "messages": [{"role": "user", "content": "hello"}]});
    let answer = caller.post("/v1/chat/completions", &body).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.json()["choices"][0]["message"]["content"].is_string(), "{}", answer.text());
    assert_eq!(house.provider.count(), 0, "the sandbox is inside");

    // Secrets are printed once.
    house.control.stop().await.expect("stops");
    house.control.start_again().expect("starts again");
    let answer = house.caller().post("/v1/chat/completions", &body).await.expect("an answer");
    assert_eq!(answer.status, 200, "the first key still works: {}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chat_bytes_pass_untouched() {
    let mut house = Builder::together().start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    let caller = house.caller();
    for path in ["/v1/chat/completions", "/v3/router/chat/completions"] {
        let before = house.provider.seen().len();
        let headers = [("cookie", "a=b"), ("x-api-key", house.api_key.as_str())];
        let answer = caller.send(http::Method::POST, path, ODD.into(), &headers).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let seen = house.provider.settled().await.remove(before);
        let expected = ODD.replace("\"scripted/chat\"", "\"chat\"");
        assert_eq!(String::from_utf8_lossy(&seen.body), expected, "only the model's name is changed");
        assert_eq!(answer.body_hash(), seen.answer_hash, "the answer is the provider's, byte for byte");
        assert_eq!(seen.credential, CREDENTIAL);
        let sent = format!("{:?}", seen.headers);
        assert!(!sent.contains(&house.api_key) && !sent.contains("cookie"), "the caller's headers leave: {sent}");
        assert!(answer.header("x-request-id").starts_with("req_"), "{:?}", answer.headers);
        assert!(!answer.header("x-pointsman-revision").is_empty(), "{:?}", answer.headers);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_pass_and_the_usage_chunk_is_for_who_asked() {
    let mut house = Builder::together().start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    let caller = house.caller();
    for asked in [true, false] {
        let mut body =
            json!({"model": "scripted/chat", "stream": true, "messages": [{"role": "user", "content": "x"}]});
        if asked {
            body["stream_options"] = json!({"include_usage": true});
        }
        let mut stream = caller.open("/v1/chat/completions", &body).await.expect("a stream");
        assert_eq!(stream.status, 200);
        assert!(!stream.headers.get("x-request-id").expect("a request id").is_empty());
        let events = stream.events().await.expect("whole");
        assert_eq!(events.last().map(String::as_str), Some("data: [DONE]\n\n"));
        let usage = events.iter().filter(|e| e.contains("\"usage\":{")).count();
        assert_eq!(usage, usize::from(asked), "{events:#?}");
        let seen = house.provider.settled().await.pop().expect("it was asked");
        let forwarded: Value = serde_json::from_slice(&seen.body).expect("JSON");
        assert_eq!(forwarded["stream_options"]["include_usage"], json!(true), "we always ask");
        assert!(seen.reported.is_some());
        if asked {
            assert_eq!(stream.body_hash(), seen.answer_hash, "byte for byte");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embeddings_models_and_wrong_keys() {
    let mut house = Builder::together().start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    let caller = house.caller();
    for encoding in ["float", "base64"] {
        for input in [json!("one"), json!(["one", "two"]), json!([1, 2, 3]), json!([[1, 2], [3]])] {
            let body = json!({"model": "scripted/embed", "input": input, "encoding_format": encoding});
            let answer = caller.post("/v1/embeddings", &body).await.expect("an answer");
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.body_hash(), house.provider.settled().await.pop().expect("asked").answer_hash);
        }
    }
    for prefix in ["/v1", "/v3/router"] {
        let list = caller.get(&format!("{prefix}/models")).await.expect("a list").json();
        let names: Vec<&str> = list["data"].as_array().expect("data").iter().filter_map(|m| m["id"].as_str()).collect();
        assert!(names.contains(&"default@scripted/chat") && names.contains(&"default@scripted/embed"), "{names:?}");
        let one = caller.get(&format!("{prefix}/models/default@scripted/chat")).await.expect("a model");
        assert_eq!((one.status, one.json()["id"].as_str()), (200, Some("default@scripted/chat")));
        assert_eq!(caller.get(&format!("{prefix}/models/scripted/none")).await.expect("an answer").status, 404);
    }
    let stranger = house.caller_with("pm_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA_000000");
    let refused = stranger.get("/v1/models").await.expect("an answer");
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (401, Some("invalid_api_key")));
    assert!(!refused.header("x-request-id").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_provider_counts_is_in_the_ledger() {
    let mut house = Builder::together().start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    let told = Report::Exactly { prompt: 1000, cached: 300, completion: 70, reasoning: 20 };
    house.provider.on_model("chat", Script::ok().reporting(told));
    let caller = house.caller();
    for stream in [false, true] {
        let body = json!({"model": "scripted/chat", "stream": stream, "messages": [{"role": "user", "content": "x"}]});
        let answer = caller.post("/v1/chat/completions", &body).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    crate::usage_exact::ledger_equals_provider(&house, "chat").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_pass() {
    let mut house = Builder::together().start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    let text = "0123456789abcdef".repeat(5 * 65_536);
    let body = json!({"model": "scripted/chat", "messages": [{"role": "user", "content": text}]}).to_string();
    let answer = house.caller().send(http::Method::POST, "/v1/chat/completions", body.clone().into(), &[]).await;
    assert_eq!(answer.expect("an answer").status, 200);
    let seen = house.provider.settled().await.pop().expect("asked");
    let expected = body.replace("\"scripted/chat\"", "\"chat\"");
    let hash = ring::digest::digest(&ring::digest::SHA256, expected.as_bytes());
    assert_eq!(seen.body_hash, hex(hash.as_ref()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_the_control_plane_is_on_the_data_port() {
    let house = Builder::together().start().await.expect("a house");
    let http = Http::new(&house.data_url());
    for path in ["/api/v1/workspaces", "/metrics", "/readyz", "/livez", "/snapshot", "/docs", "/openapi.json"] {
        assert_eq!(http.get(path).await.expect("an answer").status, 404, "{path}");
    }
    // Readiness and metrics are on the node's own port, REST on the third; both want nothing of the other.
    assert_eq!(Http::new(&house.control.admin_url).get("/readyz").await.expect("an answer").status, 200);
    assert!(house.control.metrics().await.expect("metrics").contains("# TYPE"));
    let rest = Http::new(house.admin.base());
    assert_eq!(rest.get("/workspaces").await.expect("an answer").status, 401, "REST without a token");
}
