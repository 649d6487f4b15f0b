//! One event's JSON looked at without being parsed: strings and brackets only, no allocation. What
//! is not JSON gives nothing, or nothing sensible, and goes on to the caller as it came.

use crate::json::string_end;

/// What an event (or a whole answer) shows at a glance.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Glance<'a> {
    /// Bytes of text produced: content, reasoning, refusal, arguments, transcript.
    pub text_bytes: u64,
    /// Something of the answer itself is in it: text, sound, a tool call.
    pub content: bool,
    /// Number of choices with a finish reason.
    pub finished: u32,
    /// `usage` is an object.
    pub usage: bool,
    /// There is an `error` that is not null, or the object calls itself one.
    pub error: bool,
    /// `choices` is an empty array.
    pub bare: bool,
    /// `service_tier`, as it stands between its quotes.
    pub tier: Option<&'a [u8]>,
}

/// Looks at `json`. `carrier`: the member of a choice that holds the answer, `delta` or `message`.
pub(super) fn glance<'a>(json: &'a [u8], carrier: &[u8]) -> Glance<'a> {
    let mut seen = Glance::default();
    let (mut at, mut depth, mut carried) = (0, 0usize, false);
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => {
                let end = string_end(json, at);
                let colon = skip_blank(json, end);
                if json.get(colon) != Some(&b':') {
                    at = end;
                    continue;
                }
                let key = json.get(at + 1..end.saturating_sub(1)).unwrap_or_default();
                let value = skip_blank(json, colon + 1);
                match depth {
                    1 => seen.top(json, key, value),
                    2 => seen.usage |= key == b"usage" && json.get(value) == Some(&b'{'),
                    3 => {
                        carried = key == carrier;
                        seen.finished += u32::from(key == b"finish_reason" && !text(json, value).is_empty());
                    }
                    _ if carried => seen.carried(json, key, value),
                    _ => {}
                }
                at = value;
            }
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            _ => at += 1,
        }
    }
    seen
}

impl<'a> Glance<'a> {
    fn top(&mut self, json: &'a [u8], key: &[u8], value: usize) {
        let rest = json.get(value..).unwrap_or_default();
        match key {
            b"usage" => self.usage |= rest.starts_with(b"{"),
            b"choices" => self.bare = rest.starts_with(b"[") && json.get(skip_blank(json, value + 1)) == Some(&b']'),
            b"error" => {
                let empty = [&b"null"[..], b"false", b"\"\""].iter().any(|nothing| rest.starts_with(nothing));
                self.error |= !empty;
            }
            b"object" => self.error |= text(json, value) == b"error",
            b"service_tier" => self.tier = Some(text(json, value)),
            _ => {}
        }
    }

    fn carried(&mut self, json: &[u8], key: &[u8], value: usize) {
        match key {
            b"content" | b"reasoning_content" | b"reasoning" | b"refusal" | b"text" | b"arguments" | b"transcript"
            | b"thinking" => {
                let bytes = text(json, value).len() as u64;
                self.text_bytes += bytes;
                self.content |= bytes > 0;
            }
            b"tool_calls" | b"function_call" => {
                self.content |= matches!(json.get(value), Some(b'[' | b'{'));
            }
            b"data" => self.content |= !text(json, value).is_empty(),
            _ => {}
        }
    }
}

/// What stands between the quotes of the string at `at`; nothing when no string stands there.
fn text(json: &[u8], at: usize) -> &[u8] {
    if json.get(at) != Some(&b'"') {
        return &[];
    }
    json.get(at + 1..string_end(json, at).saturating_sub(1)).unwrap_or_default()
}

fn skip_blank(json: &[u8], mut at: usize) -> usize {
    while json.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_structure_counts_never_text() {
        let cases: [(&str, Glance<'_>); 10] = [
            ("", Glance::default()),
            (r#"{"choices":[],"usage":{"prompt_tokens":1}}"#, Glance { bare: true, usage: true, ..Glance::default() }),
            (r#"{"choices" : [ ] , "usage" : null}"#, Glance { bare: true, ..Glance::default() }),
            (
                r#"{"choices":[{"delta":{"content":"say \"usage\":{ \"error\":{}"}}]}"#,
                Glance { text_bytes: 28, content: true, ..Glance::default() },
            ),
            (r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, Glance::default()),
            (
                r#"{"choices":[{"delta":{},"finish_reason":"stop"},{"finish_reason":null}]}"#,
                Glance { finished: 1, ..Glance::default() },
            ),
            (r#"{"error":{"message":"no"}}"#, Glance { error: true, ..Glance::default() }),
            (r#"{"error":null,"choices":[{}]}"#, Glance::default()),
            (r#"{"service_tier":"flex","x":{"error":1}}"#, Glance { tier: Some(b"flex"), ..Glance::default() }),
            (
                r#"{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{}"}}]}}]}"#,
                Glance { text_bytes: 2, content: true, ..Glance::default() },
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(glance(json.as_bytes(), b"delta"), expected, "{json}");
        }
    }

    #[test]
    fn what_is_no_json_does_no_harm() {
        for text in ["\"", "{\"", "{\"a\":", "}}}}", "{\"error\":\"", "{\"choices\":[", "[[[[\"a\\"] {
            glance(text.as_bytes(), b"delta");
        }
    }
}
