//! Good answers in OpenAI's form, made from the request alone: the same request gives the same bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use serde_json::{Value, json};

use super::book::Reported;
use super::script::{Report, Script};

/// A made-up but fixed time, so that answers are reproducible.
const CREATED: u64 = 1_750_000_000;
/// Length of embedding vectors.
const DIMENSIONS: usize = 8;

/// The events of a stream, and what they report.
pub struct Stream {
    /// Bodies of `data:` lines, `[DONE]` not included.
    pub events: Vec<String>,
    /// Index of the first event that reports tokens, and what it says.
    pub reported: Option<(usize, Reported)>,
}

/// A chat completion in one piece.
pub fn chat(request: &Value, script: &Script, number: u64) -> (String, Option<Reported>) {
    let said = said(request, script);
    let (usage, reported) = usage(request, script, said.text.len());
    let mut message = json!({"role": "assistant", "content": said.text, "refusal": null});
    let mut finish = "stop";
    if let Some((name, arguments)) = &said.tool {
        message["content"] = Value::Null;
        message["tool_calls"] = json!([{"id": "call_1", "type": "function",
            "function": {"name": name, "arguments": arguments}}]);
        finish = "tool_calls";
    }
    let mut body = json!({
        "id": format!("chatcmpl-{number}"), "object": "chat.completion", "created": CREATED,
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": finish}],
        "x_vendor_extra": {"kept": true},
    });
    if let Some(usage) = usage {
        body["usage"] = usage;
    }
    (body.to_string(), reported)
}

/// The same as events.
pub fn chat_stream(request: &Value, script: &Script, number: u64) -> Stream {
    let said = said(request, script);
    let event = |delta: Value, finish: Value| {
        json!({
            "id": format!("chatcmpl-{number}"), "object": "chat.completion.chunk", "created": CREATED,
            "model": request["model"],
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        })
    };
    let mut events = vec![event(json!({"role": "assistant", "content": ""}), Value::Null)];
    let finish = if let Some((name, arguments)) = &said.tool {
        events.push(event(
            json!({"tool_calls": [{"index": 0, "id": "call_1", "type": "function",
                "function": {"name": name, "arguments": ""}}]}),
            Value::Null,
        ));
        for piece in pieces(arguments, 3) {
            events.push(event(json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}), Value::Null));
        }
        "tool_calls"
    } else {
        for piece in pieces(&said.text, script.chunks.max(1)) {
            events.push(event(json!({"content": piece}), Value::Null));
        }
        "stop"
    };
    events.push(event(json!({}), json!(finish)));
    let mut reported_at = None;
    let asked = request["stream_options"]["include_usage"] == json!(true);
    if asked && let (Some(usage), reported) = usage(request, script, said.text.len()) {
        let mut chunk = event(json!({}), Value::Null);
        chunk["choices"] = json!([]);
        chunk["usage"] = usage;
        if script.report == Report::Twice {
            events.insert(events.len().saturating_sub(2), chunk.clone());
        }
        reported_at = reported.map(|r| (events.len(), r));
        events.push(chunk);
    }
    Stream { events: events.iter().map(Value::to_string).collect(), reported: reported_at }
}

/// Embeddings of one or several inputs, as floats or base64.
pub fn embeddings(request: &Value, script: &Script) -> (String, Option<Reported>) {
    let inputs: Vec<&Value> = match &request["input"] {
        Value::Array(items) if items.first().is_some_and(|i| !i.is_number()) => items.iter().collect(),
        one => vec![one],
    };
    let packed = request["encoding_format"] == json!("base64");
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            let vector = vector(&input.to_string());
            let embedding = if packed {
                let bytes: Vec<u8> = vector.iter().flat_map(|f| f.to_le_bytes()).collect();
                json!(STANDARD.encode(bytes))
            } else {
                json!(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let mut body = json!({"object": "list", "data": data, "model": request["model"]});
    let (usage, reported) = usage(request, script, 0);
    if let Some(mut usage) = usage {
        if let Some(fields) = usage.as_object_mut() {
            fields.retain(|name, _| name == "prompt_tokens" || name == "total_tokens");
        }
        body["usage"] = usage;
    }
    (body.to_string(), reported)
}

/// An error object in OpenAI's form.
pub fn error(status: u16, code: &str) -> String {
    let kind = if status == 429 { "rate_limit_error" } else { "server_error" };
    json!({"error": {"message": format!("scripted {code}"), "type": kind, "param": null, "code": code}}).to_string()
}

/// The models a client sees when it asks this provider directly.
pub fn models() -> String {
    json!({"object": "list", "data": [{"id": "scripted", "object": "model", "created": CREATED, "owned_by": "tests"}]})
        .to_string()
}

struct Said {
    text: String,
    tool: Option<(String, String)>,
}

/// A tool is called when one is offered and the user spoke last; a schema is filled in; else an echo.
fn said(request: &Value, script: &Script) -> Said {
    if let Some(text) = &script.text {
        return Said { text: text.clone(), tool: None };
    }
    let last = request["messages"].as_array().and_then(|m| m.last()).cloned().unwrap_or(Value::Null);
    let tool = &request["tools"][0]["function"];
    if tool.is_object() && last["role"] == json!("user") && request["tool_choice"] != json!("none") {
        let name = tool["name"].as_str().unwrap_or_default().to_owned();
        return Said { text: String::new(), tool: Some((name, instance(&tool["parameters"]).to_string())) };
    }
    let schema = &request["response_format"]["json_schema"]["schema"];
    if schema.is_object() {
        return Said { text: instance(schema).to_string(), tool: None };
    }
    let heard = last["content"].as_str().unwrap_or("something");
    let heard: String = heard.chars().take(200).collect();
    Said { text: format!("You said: {heard} \u{2014} \u{1f980} done"), tool: None }
}

/// The smallest value that a JSON schema admits, for the schemas that tests use.
fn instance(schema: &Value) -> Value {
    if let Some(first) = schema["enum"].get(0) {
        return first.clone();
    }
    match schema["type"].as_str() {
        Some("object") => {
            let fields = schema["properties"].as_object();
            let fields = fields.into_iter().flatten().map(|(name, of)| (name.clone(), instance(of)));
            Value::Object(fields.collect())
        }
        Some("array") => json!([instance(&schema["items"])]),
        Some("integer") => json!(7),
        Some("number") => json!(1.5),
        Some("boolean") => json!(true),
        Some("null") | None => Value::Null,
        Some(_) => json!("Paris"),
    }
}

fn usage(request: &Value, script: &Script, produced_bytes: usize) -> (Option<Value>, Option<Reported>) {
    let counted = Reported {
        prompt: 1 + words(&request["messages"]) + words(&request["input"]),
        cached: 0,
        completion: u64::try_from(produced_bytes.div_ceil(4)).unwrap_or(u64::MAX),
        reasoning: 0,
    };
    let told = match &script.report {
        Report::Counted | Report::Twice => counted,
        Report::Absent => return (None, None),
        Report::Exactly { prompt, cached, completion, reasoning } => {
            Reported { prompt: *prompt, cached: *cached, completion: *completion, reasoning: *reasoning }
        }
        Report::Json(value) => return (Some(value.clone()), None),
    };
    let json = json!({
        "prompt_tokens": told.prompt, "completion_tokens": told.completion,
        "total_tokens": told.prompt.saturating_add(told.completion),
        "prompt_tokens_details": {"cached_tokens": told.cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": told.reasoning, "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
    });
    (Some(json), Some(told))
}

/// A stand-in for a tokenizer: words of all strings, one for anything else.
fn words(value: &Value) -> u64 {
    match value {
        Value::String(text) => u64::try_from(text.split_whitespace().count()).unwrap_or(u64::MAX),
        Value::Array(items) => items.iter().map(words).sum(),
        Value::Object(fields) => fields.values().map(words).sum(),
        Value::Null => 0,
        Value::Bool(_) | Value::Number(_) => 1,
    }
}

/// Cuts a text into about `count` pieces, never inside a character.
fn pieces(text: &str, count: usize) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    let size = characters.len().div_ceil(count).max(1);
    let mut out: Vec<String> = characters.chunks(size).map(|c| c.iter().collect()).collect();
    // Short texts still make as many events as the script asks for.
    while out.len() < count {
        out.push(".".to_owned());
    }
    out
}

fn vector(text: &str) -> Vec<f32> {
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    // Multiples of 1/256 are exact in f32 and short in JSON.
    hash.as_ref().iter().take(DIMENSIONS).map(|b| f32::from(*b) / 256.0 - 0.5).collect()
}
