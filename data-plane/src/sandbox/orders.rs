//! What the last user message tells the sandbox to do.

use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

/// Orders found in a message.
#[derive(Debug, Default, PartialEq)]
pub struct Orders {
    /// Before the answer.
    pub delay: Duration,
    /// Between chunks.
    pub pace: Duration,
    /// Answer with this status.
    pub fail: Option<StatusCode>,
    /// Break the stream off.
    pub cut: bool,
    /// Call this tool with these arguments (JSON text).
    pub tool: Option<(String, String)>,
    /// Answer with so many words.
    pub words: Option<usize>,
    /// The message without the orders.
    pub text: String,
}

impl Orders {
    /// Reads all orders; what is none stays text.
    pub fn read(message: &str) -> Self {
        let mut orders = Self::default();
        let mut rest = message;
        while let Some((before, after)) = rest.split_once("[[") {
            orders.text.push_str(before);
            let Some((order, behind)) = after.split_once("]]") else {
                orders.text.push_str("[[");
                rest = after;
                continue;
            };
            if !orders.obey(order) {
                orders.text.push_str(&format!("[[{order}]]"));
            }
            rest = behind;
        }
        orders.text.push_str(rest);
        orders.text = orders.text.trim().to_owned();
        orders
    }

    fn obey(&mut self, order: &str) -> bool {
        let (name, value) = order.split_once(':').unwrap_or((order, ""));
        let millis = |most: u64| value.parse().ok().map(|ms: u64| Duration::from_millis(ms.min(most)));
        match name {
            "delay" => millis(60_000).map(|delay| self.delay = delay).is_some(),
            "pace" => millis(10_000).map(|pace| self.pace = pace).is_some(),
            "fail" => {
                let status = value.parse().ok().and_then(|code: u16| StatusCode::from_u16(code).ok());
                self.fail = status.filter(|s| s.as_u16() >= 400);
                self.fail.is_some()
            }
            "cut" => {
                self.cut = true;
                true
            }
            "tool" => {
                let (name, arguments) = value.split_once(' ').unwrap_or((value, "{}"));
                self.tool = Some((name.to_owned(), arguments.to_owned()));
                !name.is_empty()
            }
            "words" => value.parse().ok().map(|n: usize| self.words = Some(n.min(100_000))).is_some(),
            _ => false,
        }
    }
}

/// Text of the last message of role `user`; empty when there is none.
pub fn last_user_text(body: &Value) -> String {
    let messages = body.get("messages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let last = messages.iter().rev().find(|m| m.get("role").and_then(Value::as_str) == Some("user"));
    last.map(|m| text_of(m.get("content").unwrap_or(&Value::Null))).unwrap_or_default()
}

/// A message's content as text: parts that are no text are left out.
pub fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(|p| p.get("text").and_then(Value::as_str)).collect();
            texts.join("\n")
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_taken_out_of_the_text() {
        let orders = Orders::read("Hi [[delay:5]]there [[fail:429]][[tool:f {\"a\":[1]}]] [[what]] [[open");
        assert_eq!(orders.delay, Duration::from_millis(5));
        assert_eq!(orders.fail, Some(StatusCode::TOO_MANY_REQUESTS));
        assert_eq!(orders.tool, Some(("f".into(), "{\"a\":[1]}".into())));
        assert_eq!(orders.text, "Hi there  [[what]] [[open");
        assert_eq!(Orders::read("[[fail:200]]").fail, None);
    }
}
