//! The sandbox's answers in OpenAI's form. Tokens are words, so that usage can be checked by hand.

use serde_json::{Value, json};

use super::orders::{Orders, text_of};

/// What it answers to one chat request.
pub struct Answer {
    model: Value,
    text: String,
    tool: Option<(String, String)>,
    prompt_tokens: usize,
}

impl Answer {
    /// The echo of the last user message, or what the orders say.
    pub fn new(body: &Value, orders: &Orders) -> Self {
        let messages = body.get("messages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let texts = messages.iter().map(|m| text_of(m.get("content").unwrap_or(&Value::Null)));
        let text = match orders.words {
            Some(words) => vec!["word"; words].join(" "),
            None if body.pointer("/response_format/type").and_then(Value::as_str).is_some_and(|t| t != "text") => {
                json!({"echo": orders.text}).to_string()
            }
            None => orders.text.clone(),
        };
        Self {
            model: body.get("model").cloned().unwrap_or_default(),
            text,
            tool: orders.tool.clone(),
            prompt_tokens: texts.map(|text| words(&text)).sum(),
        }
    }

    /// As one body.
    pub fn whole(&self) -> Value {
        let (message, finish) = match &self.tool {
            Some((name, arguments)) => {
                let call = json!({"id": "call_sandbox", "type": "function", "function": {"name": name, "arguments": arguments}});
                (json!({"role": "assistant", "content": null, "tool_calls": [call]}), "tool_calls")
            }
            None => (json!({"role": "assistant", "content": self.text}), "stop"),
        };
        json!({
            "id": "chatcmpl-sandbox", "object": "chat.completion", "created": 0, "model": self.model,
            "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": finish}],
            "usage": self.usage(),
        })
    }

    /// As a stream: a word a chunk.
    pub fn chunks(&self, include_usage: bool) -> Vec<Value> {
        let chunk = |delta: Value, finish: Option<&str>| {
            let choices = json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
            self.chunk(choices, Value::Null, include_usage)
        };
        let mut chunks = vec![chunk(json!({"role": "assistant", "content": ""}), None)];
        let finish = match &self.tool {
            Some((name, arguments)) => {
                let function = json!({"name": name, "arguments": arguments});
                let call = json!({"index": 0, "id": "call_sandbox", "type": "function", "function": function});
                chunks.push(chunk(json!({"tool_calls": [call]}), None));
                "tool_calls"
            }
            None => {
                chunks.extend(self.text.split_inclusive(' ').map(|word| chunk(json!({"content": word}), None)));
                "stop"
            }
        };
        chunks.push(chunk(json!({}), Some(finish)));
        if include_usage {
            chunks.push(self.chunk(json!([]), self.usage(), true));
        }
        chunks
    }

    fn chunk(&self, choices: Value, usage: Value, with_usage: bool) -> Value {
        let mut chunk = json!({
            "id": "chatcmpl-sandbox", "object": "chat.completion.chunk", "created": 0, "model": self.model,
            "choices": choices,
        });
        if with_usage && let Some(fields) = chunk.as_object_mut() {
            fields.insert("usage".into(), usage);
        }
        chunk
    }

    fn usage(&self) -> Value {
        let produced = match &self.tool {
            Some((_, arguments)) => 1 + words(arguments),
            None => words(&self.text),
        };
        json!({
            "prompt_tokens": self.prompt_tokens, "completion_tokens": produced,
            "total_tokens": self.prompt_tokens + produced,
        })
    }
}

/// A vector of eight numbers per input, the same for the same text.
pub fn embeddings(body: &Value) -> Value {
    let inputs = match body.get("input") {
        Some(Value::Array(many)) if many.iter().all(|v| !v.is_number()) => many.clone(),
        Some(one) => vec![one.clone()],
        None => Vec::new(),
    };
    let base64 = body.get("encoding_format").and_then(Value::as_str) == Some("base64");
    let tokens: usize = inputs.iter().map(|i| i.as_str().map_or(1, words)).sum();
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            let vector = vector(&input.to_string());
            let embedding = match base64 {
                true => {
                    use base64::Engine as _;
                    let bytes: Vec<u8> = vector.iter().flat_map(|f| f.to_le_bytes()).collect();
                    json!(base64::engine::general_purpose::STANDARD.encode(bytes))
                }
                false => json!(vector),
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    json!({
        "object": "list", "data": data, "model": body.get("model").cloned().unwrap_or_default(),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })
}

fn vector(text: &str) -> Vec<f32> {
    let hash = shared::digest::sha256(&[text.as_bytes()]);
    hash.iter().take(8).map(|byte| f32::from(*byte) / 128.0 - 1.0).collect()
}

fn words(text: &str) -> usize {
    text.split_whitespace().count()
}
