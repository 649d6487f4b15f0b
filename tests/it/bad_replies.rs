//! Answers that no good provider gives: the caller gets a good answer or an error with a code, never
//! a hang, a panic, a header of the provider's, or a negative bill.

use std::time::Duration;

use serde_json::{Value, json};
use tests::house::Builder;
use tests::provider::{Content, End, Report, Script};

/// What the caller sees.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Want {
    /// This status, with this code when it is not 2xx.
    Plain(u16, &'static str),
    /// A stream that ends in order, with or without an error event.
    Stream { error: bool },
}

fn rows() -> Vec<(&'static str, bool, Script, Want)> {
    use Want::{Plain, Stream};
    let bad = Plain(502, "bad_upstream");
    let ok = Plain(200, "");
    let body = |text: &str| Script::ok().with(Content::Body(text.into()));
    let raw = |text: &str| Script::ok().with(Content::Raw(text.into()));
    let events = |text: &str| Script::ok().with(Content::Events(text.into()));
    let usage = |value: Value| Script::ok().reporting(Report::Json(value));
    let one = r#"{"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}"#;
    let end = r#"{"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    let header = |name: &str, value: &str| Script { headers: vec![(name.into(), value.into())], ..Script::ok() };
    let whole = |status: &str, more: &str| {
        raw(&format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{more}content-length: 2\r\n\r\n{{}}"))
    };
    vec![
        // Bodies.
        ("HTML", false, Script::ok().with(Content::Html), bad),
        ("empty", false, Script::ok().with(Content::Empty), bad),
        ("not JSON", false, body("oops"), bad),
        ("JSON cut", false, body("{\"choices\":["), bad),
        ("null", false, body("null"), bad),
        ("an array", false, body("[]"), bad),
        ("text", false, body("\"hello\""), bad),
        ("deep", false, body(&"[".repeat(100_000)), bad),
        (
            "error inside 200",
            false,
            Script::ok().with(Content::Error { code: "server_error".into() }),
            Plain(502, "upstream_error"),
        ),
        ("no choices", false, body(r#"{"choices":[]}"#), bad),
        ("content null", false, body(r#"{"choices":[{"message":{"content":null}}]}"#), ok),
        // What it says about tokens.
        ("usage absent", false, Script::ok().reporting(Report::Absent), ok),
        ("usage null", false, usage(json!(null)), ok),
        (
            "usage negative",
            false,
            usage(json!({"prompt_tokens": -5, "completion_tokens": -7, "total_tokens": -12})),
            ok,
        ),
        (
            "usage 2^63",
            false,
            usage(json!({"prompt_tokens": 1_u64 << 63, "completion_tokens": 1, "total_tokens": 1})),
            ok,
        ),
        ("usage a fraction", false, usage(json!({"prompt_tokens": 1.5, "completion_tokens": 2.5})), ok),
        ("usage text", false, usage(json!({"prompt_tokens": "5", "completion_tokens": "6"})), ok),
        ("usage a list", false, usage(json!([1, 2])), ok),
        (
            "usage with more cached than prompt",
            false,
            usage(json!({"prompt_tokens": 5, "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 50}})),
            ok,
        ),
        // Framing and heads.
        ("cut in the body", false, Script::ok().ending(End::Cut(20)), Plain(502, "upstream_reset")),
        ("cut in the head", false, raw("HTTP/1.1 200 OK\r\ncontent-"), Plain(502, "upstream_reset")),
        ("not HTTP", false, raw("SSH-2.0-OpenSSH_9.2\r\n"), Plain(502, "")),
        ("status 199 only", false, raw("HTTP/1.1 199 Hm\r\n\r\n"), Plain(502, "")),
        ("status 299", false, whole("299 Odd", ""), Plain(0, "")),
        ("status 399", false, whole("399 Odd", ""), bad),
        ("status 999", false, whole("999 Odd", ""), Plain(0, "")),
        ("redirect to metadata", false, whole("302 Found", "location: http://169.254.169.254/latest\r\n"), bad),
        ("permanent redirect", false, whole("308 Moved", "location: http://127.0.0.1:1/\r\n"), bad),
        (
            "two lengths",
            false,
            raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 5\r\n\r\n{}"),
            Plain(502, ""),
        ),
        ("header of 1 MiB", false, header("x-long", &"a".repeat(1 << 20)), Plain(502, "")),
        (
            "body longer than said",
            false,
            raw("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n{}"),
            bad,
        ),
        (
            "gzip although not asked",
            false,
            Script { headers: vec![("content-encoding".into(), "gzip".into())], ..body("\u{1f}\u{8b}not gzip") },
            bad,
        ),
        (
            "Set-Cookie and Server",
            false,
            Script {
                headers: vec![
                    ("set-cookie".into(), "a=canary".into()),
                    ("server".into(), "canary".into()),
                    ("x-canary".into(), "1".into()),
                ],
                ..Script::ok()
            },
            ok,
        ),
        // Statuses that are the provider's business.
        ("402", false, Script::status(402), Plain(502, "upstream_payment_required")),
        ("403", false, Script::status(403), Plain(502, "upstream_forbidden")),
        ("401", false, Script::status(401), Plain(502, "upstream_credential_rejected")),
        ("404", false, Script::status(404), Plain(404, "")),
        ("429", false, Script::rate_limited(1), Plain(429, "")),
        ("500", false, Script::status(500), Plain(502, "upstream_error")),
        ("501", false, Script::status(501), Plain(502, "upstream_error")),
        ("503", false, Script::status(503), Plain(503, "upstream_overloaded")),
        // Streams.
        ("LF lines", true, events(&format!("data: {one}\n\ndata: {end}\n\ndata: [DONE]\n\n")), Stream { error: false }),
        (
            "CRLF lines",
            true,
            events(&format!("data: {one}\r\n\r\ndata: {end}\r\n\r\ndata: [DONE]\r\n\r\n")),
            Stream { error: false },
        ),
        ("CR lines", true, events(&format!("data: {one}\r\rdata: {end}\r\rdata: [DONE]\r\r")), Stream { error: false }),
        (
            "no space after data:",
            true,
            events(&format!("data:{one}\n\ndata:{end}\n\ndata:[DONE]\n\n")),
            Stream { error: false },
        ),
        (
            "comments",
            true,
            events(&format!("{}data: {one}\n\ndata: {end}\n\ndata: [DONE]\n\n", ": ping\n\n".repeat(1000))),
            Stream { error: false },
        ),
        (
            "other fields",
            true,
            events(&format!("event: m\nid: 7\nretry: 5\ndata: {one}\n\ndata: {end}\n\ndata: [DONE]\n\n")),
            Stream { error: false },
        ),
        (
            "bytes after [DONE]",
            true,
            events(&format!("data: {one}\n\ndata: {end}\n\ndata: [DONE]\n\ndata: {one}\n\n")),
            Stream { error: false },
        ),
        (
            "no blank line at the end",
            true,
            events(&format!("data: {one}\n\ndata: {end}\n\ndata: [DONE]")),
            Stream { error: false },
        ),
        ("no [DONE] after a finish", true, Script::ok().ending(End::NoDone), Stream { error: false }),
        ("usage twice", true, Script::ok().reporting(Report::Twice), Stream { error: false }),
        ("usage absent in a stream", true, Script::ok().reporting(Report::Absent), Stream { error: false }),
        ("drip", true, Script { gap_ms: 0, ..Script::ok().ending(End::Drip) }, Stream { error: false }),
        ("cut after two events", true, Script::ok().ending(End::Cut(2)), Stream { error: true }),
        ("cut in a character", true, Script::ok().ending(End::CutInCharacter), Stream { error: true }),
        ("error event", true, Script::ok().ending(End::ErrorEvent(2)), Stream { error: true }),
        ("stream that is not JSON", true, events(&format!("data: {one}\n\ndata: oops\n\n")), Stream { error: true }),
        (
            "a line of 20 MB",
            true,
            events(&format!("data: {one}\n\ndata: {}", "a".repeat(20_000_000))),
            Stream { error: true },
        ),
        ("HTML for a stream", true, Script::ok().with(Content::Html), bad),
        ("nothing for a stream", true, events(""), Plain(502, "")),
        ("[DONE] only", true, events("data: [DONE]\n\n"), Plain(0, "")),
        (
            "JSON for a stream",
            true,
            body(r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#),
            Plain(0, ""),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_reply() {
    let mut house = Builder::together().start().await.expect("a house");
    let rows = rows();
    // A model each: what one row does to a breaker is not the next row's business.
    let models: Vec<String> = (0..rows.len()).map(|i| format!("row-{i}")).collect();
    let names: Vec<&str> = models.iter().map(String::as_str).collect();
    let provider = house.connect(&names).await.expect("connected").provider;
    let last = house.add_model(&provider, "fine", "chat").await;
    last.expect("added");
    house.serves("scripted/fine").await.expect("served");
    let caller = house.caller();
    let mut wrong = Vec::new();
    for ((name, stream, script, want), model) in rows.into_iter().zip(&models) {
        house.provider.on_model(model, script);
        let body = json!({"model": format!("scripted/{model}"), "stream": stream,
            "messages": [{"role": "user", "content": "x"}]});
        let asked = tokio::time::timeout(Duration::from_secs(30), caller.post("/v1/chat/completions", &body));
        let answer = match asked.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                wrong.push(format!("{name}: {error:#}"));
                continue;
            }
            Err(_) => {
                wrong.push(format!("{name}: no answer"));
                continue;
            }
        };
        let text = answer.text();
        let shown: String = text.chars().take(300).collect();
        let headers = format!("{:?}", answer.headers);
        if headers.contains("canary") || headers.contains("set-cookie") {
            wrong.push(format!("{name}: the provider's headers reach the caller: {headers}"));
        }
        if answer.header("x-request-id").is_empty() {
            wrong.push(format!("{name}: no x-request-id"));
        }
        let code = answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned();
        match want {
            Want::Plain(status, wanted) => {
                if status != 0 && answer.status != status {
                    wrong.push(format!("{name}: status {} instead of {status}: {shown}", answer.status));
                } else if !wanted.is_empty() && code != wanted {
                    wrong.push(format!("{name}: code {code:?} instead of {wanted:?}: {shown}"));
                } else if answer.status >= 400 && code.is_empty() && answer.status != 404 {
                    wrong.push(format!("{name}: an error without a code: {shown}"));
                }
            }
            Want::Stream { error } => {
                let has = text.contains("\"error\"");
                if answer.status != 200 || has != error {
                    wrong.push(format!("{name}: status {}, error event {has}: {shown}", answer.status));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n  {}\n", wrong.len(), models.len(), wrong.join("\n  "));
    let body = json!({"model": "scripted/fine", "messages": [{"role": "user", "content": "x"}]});
    assert_eq!(caller.post("/v1/chat/completions", &body).await.expect("an answer").status, 200);
    crate::usage_exact::nothing_negative(&house).await;
}
