//! JSON that is well formed and makes no sense as a chat or an embedding.

use serde_json::{Value, json};

use super::json::with;
use super::{Row, Target, good_chat};

pub fn rows(target: &Target) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut bad = |name: &str, body: String, status: u16, code: &'static str| {
        rows.push(Row::refused(name, target.chat(body.as_bytes()), status, code));
    };
    let messages = |messages: Value| with("messages", &messages.to_string());
    let part = |part: Value| with("messages", &json!([{"role": "user", "content": [part]}]).to_string());
    let image = |url: &str| part(json!({"type": "image_url", "image_url": {"url": url}}));
    let without = |field: &str| {
        let mut good = good_chat();
        if let Some(fields) = good.as_object_mut() {
            fields.remove(field);
        }
        good.to_string()
    };

    bad("no model", without("model"), 400, "missing_required_parameter");
    bad("no messages", without("messages"), 400, "missing_required_parameter");
    bad("an empty object", "{}".into(), 400, "missing_required_parameter");
    bad("a message that is null", messages(json!([null])), 400, "invalid_type");
    bad("a message that is text", messages(json!(["hello"])), 400, "invalid_type");
    bad("a message without role", messages(json!([{"content": "x"}])), 400, "missing_required_parameter");
    bad("an unknown role", messages(json!([{"role": "wizard", "content": "x"}])), 400, "invalid_value");
    bad("a role in capitals", messages(json!([{"role": "User", "content": "x"}])), 400, "invalid_value");
    bad("an empty role", messages(json!([{"role": "", "content": "x"}])), 400, "invalid_value");
    bad("a role that is a number", messages(json!([{"role": 1, "content": "x"}])), 400, "invalid_type");
    bad("content that is a number", messages(json!([{"role": "user", "content": 5}])), 400, "invalid_type");
    bad("content that is an object", messages(json!([{"role": "user", "content": {}}])), 400, "invalid_type");
    bad("a part that is text", messages(json!([{"role": "user", "content": ["x"]}])), 400, "invalid_type");
    bad("a part without type", part(json!({"text": "x"})), 400, "missing_required_parameter");
    bad("a part whose type is a number", part(json!({"type": 1})), 400, "invalid_type");
    bad(
        "role twice",
        with("messages", r#"[{"role":"user","role":"system","content":"x"}]"#),
        400,
        "duplicate_parameter",
    );
    bad(
        "content twice",
        with("messages", r#"[{"role":"user","content":"x","content":"y"}]"#),
        400,
        "duplicate_parameter",
    );
    bad(
        "70 thousand messages",
        messages(Value::Array(vec![json!({"role": "user", "content": ""}); 70_000])),
        400,
        "invalid_value",
    );

    for (name, value) in
        [("zero", "0"), ("negative", "-5"), ("huge", "18446744073709551616"), ("above any model", "100000000")]
    {
        bad(&format!("max_tokens {name}"), with("max_tokens", value), 400, "invalid_value");
        bad(&format!("max_completion_tokens {name}"), with("max_completion_tokens", value), 400, "invalid_value");
    }
    bad("n zero", with("n", "0"), 400, "invalid_value");
    bad("n a million", with("n", "1000000"), 400, "invalid_value");
    bad("stream yes", with("stream", "\"yes\""), 400, "invalid_type");
    bad("stream as text", with("stream", "\"true\""), 400, "invalid_type");
    bad("stream 1", with("stream", "1"), 400, "invalid_type");
    bad("include_usage yes", with("stream_options", r#"{"include_usage":"yes"}"#), 400, "invalid_type");
    bad(
        "include_usage twice",
        with("stream_options", r#"{"include_usage":true,"include_usage":false}"#),
        400,
        "duplicate_parameter",
    );
    bad(
        "10 thousand tools",
        with("tools", &json!(vec![json!({"type": "function"}); 10_000]).to_string()),
        400,
        "invalid_value",
    );
    bad("a tool that is text", with("tools", "[\"x\"]"), 400, "invalid_type");
    bad("tool_choice unknown", with("tool_choice", "\"perhaps\""), 400, "invalid_value");
    bad("response_format as text", with("response_format", "\"json\""), 400, "invalid_type");
    bad("response_format without type", with("response_format", "{}"), 400, "missing_required_parameter");
    bad("response_format type 1", with("response_format", r#"{"type":1}"#), 400, "invalid_type");
    bad("user of 2 KiB", with("user", &json!("u".repeat(2048)).to_string()), 400, "invalid_value");
    bad("six fallbacks", with("models", r#"["a","b","c","d","e","f"]"#), 400, "invalid_value");
    bad("an unknown route", with("route", "\"shortest\""), 400, "invalid_value");

    for url in [
        "file:///etc/passwd",
        "ftp://example.com/x.png",
        "gopher://example.com",
        "javascript:alert(1)",
        "//example.com/x",
        "http://127.0.0.1/x",
        "http://localhost/x",
        "http://LOCALHOST./x",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://172.16.0.1/",
        "http://100.64.0.1/",
        "http://0.0.0.0/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[fd00::1]/",
        "http://[fe80::1]/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://user@127.0.0.1/",
        "http://metadata.google.internal/",
        "http:///",
        " http://127.0.0.1/",
        "HTTP://127.0.0.1/",
        "http:\\\\127.0.0.1\\x",
    ] {
        bad(&format!("image at {url:?}"), image(url), 400, "invalid_value");
    }

    bad("model empty", with("model", "\"\""), 400, "invalid_value");
    bad("model of 10 KiB", with("model", &json!("m".repeat(10_240)).to_string()), 400, "invalid_value");
    bad("model with a line end", with("model", "\"scripted/chat\\r\\nX-Evil: 1\""), 400, "invalid_value");
    bad("model with NUL", with("model", "\"scripted/chat\\u0000\""), 400, "invalid_value");
    let names = [
        "scripted/nothing",
        "nobody/chat",
        "scripted/../chat",
        "../scripted/chat",
        "scripted/chat/../chat",
        "chat/",
        "SCRIPTED/CHAT",
        "scripted/chat ",
        " scripted/chat",
        "other@scripted/chat",
        "scripted\\chat",
        "scripted//chat",
        "'; drop table models; --",
        "<script>",
        "scripted/%63hat",
        "\u{202e}tahc",
        "default@@scripted/chat",
        "/",
        "@",
        "//",
    ];
    for name in names {
        let body = with("model", &json!(name).to_string());
        let mut row = Row::refused(format!("model {name:?}"), target.chat(body.as_bytes()), 404, "model_not_found");
        row.want = super::Want::Refused {
            statuses: vec![400, 404],
            codes: vec!["model_not_found", "invalid_model_name", "invalid_value"],
            param: Some("model".into()),
        };
        rows.push(row);
    }

    let embed = |body: Value| target.post("/v1/embeddings", body.to_string().as_bytes());
    let mut bad = |name: &str, body: Value, code: &'static str| rows.push(Row::refused(name, embed(body), 400, code));
    let model = "scripted/embed";
    bad("embedding of nothing", json!({"model": model}), "missing_required_parameter");
    bad("embedding of null", json!({"model": model, "input": null}), "invalid_type");
    bad("embedding of a number", json!({"model": model, "input": 5}), "invalid_type");
    bad("embedding of an object", json!({"model": model, "input": {}}), "invalid_type");
    bad("embedding of an empty list", json!({"model": model, "input": []}), "invalid_value");
    bad("embedding of an empty text", json!({"model": model, "input": ""}), "invalid_value");
    bad("embedding of text and numbers", json!({"model": model, "input": ["a", 1]}), "invalid_type");
    bad("embedding of negative tokens", json!({"model": model, "input": [-1]}), "invalid_type");
    bad("embedding as hex", json!({"model": model, "input": "x", "encoding_format": "hex"}), "invalid_value");
    rows
}
