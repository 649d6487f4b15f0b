//! Bodies that are not JSON, not quite JSON, or JSON that two parsers read differently.

use super::{Row, Target, Want, good_chat};

/// What stands in for a field's value when its type is wrong.
const WRONG: [(&str, &str); 9] = [
    ("null", "null"),
    ("a boolean", "true"),
    ("a number", "7"),
    ("a negative number", "-1"),
    ("a fraction", "1.5"),
    ("a string", "\"seven\""),
    ("an array", "[]"),
    ("an array of numbers", "[1]"),
    ("an object", "{}"),
];

/// Fields that are read, and which of [`WRONG`] are not wrong for them.
const FIELDS: [(&str, &[&str]); 13] = [
    ("model", &["a string"]),
    ("messages", &[]),
    ("stream", &["null", "a boolean"]),
    ("stream_options", &["null", "an object"]),
    ("max_tokens", &["null", "a number"]),
    ("max_completion_tokens", &["null", "a number"]),
    ("n", &["null", "a number"]),
    ("tools", &["null", "an array"]),
    ("tool_choice", &["null", "an object"]),
    ("user", &["null", "a string"]),
    ("metadata", &["null", "an object"]),
    ("modalities", &["null", "an array"]),
    ("models", &["null", "an array"]),
];

pub fn rows(target: &Target) -> Vec<Row> {
    let mut rows = not_json(target);
    for (field, fine) in FIELDS {
        for (name, value) in WRONG.iter().filter(|(name, _)| !fine.contains(name)) {
            rows.push(Row {
                name: format!("{field} is {name}"),
                bytes: target.chat(with(field, value).as_bytes()),
                want: Want::Refused {
                    statuses: vec![400],
                    codes: vec!["invalid_type", "invalid_value", "missing_required_parameter"],
                    param: Some(field.to_owned()),
                },
            });
        }
    }
    for field in ["model", "messages", "stream", "max_tokens", "n", "tools", "user", "models", "stream_options"] {
        let first = good_chat().to_string();
        let value = if field == "messages" { "[{\"role\":\"user\",\"content\":\"x\"}]" } else { "null" };
        let body = if first.contains(&format!("\"{field}\":")) {
            format!("{},\"{field}\":{value}}}", first.trim_end_matches('}'))
        } else {
            format!("{},\"{field}\":null,\"{field}\":{value}}}", first.trim_end_matches('}'))
        };
        rows.push(Row::refused(format!("{field} twice"), target.chat(body.as_bytes()), 400, "duplicate_parameter"));
    }
    let escaped = good_chat().to_string().replacen('{', "{\"mod\\u0065l\":\"other\",", 1);
    rows.push(Row::refused("model twice, once escaped", target.chat(escaped.as_bytes()), 400, "duplicate_parameter"));
    let capital = good_chat().to_string().replacen('{', "{\"Model\":\"other\",", 1);
    rows.push(Row::refused("model in capitals too", target.chat(capital.as_bytes()), 400, "duplicate_parameter"));
    rows
}

/// The good request with one field set to this text.
pub fn with(field: &str, value: &str) -> String {
    let mut good = good_chat();
    if let Some(fields) = good.as_object_mut() {
        fields.remove(field);
    }
    good.to_string().replacen('{', &format!("{{\"{field}\":{value},"), 1)
}

fn not_json(target: &Target) -> Vec<Row> {
    let good = good_chat().to_string();
    let deep = |depth: usize| format!("{{\"x\":{}{},{}", "[".repeat(depth), "]".repeat(depth), &good[1..]);
    let mut rows: Vec<Row> = Vec::new();
    let mut bad = |name: &str, body: Vec<u8>, code: &'static str| {
        rows.push(Row::refused(name, target.chat(&body), 400, code));
    };
    bad("empty text", b" ".to_vec(), "invalid_json");
    bad("only a brace", b"{".to_vec(), "invalid_json");
    bad("cut in the middle", good.as_bytes()[..good.len() / 2].to_vec(), "invalid_json");
    bad("cut before the end", good.as_bytes()[..good.len() - 1].to_vec(), "invalid_json");
    bad("something behind it", format!("{good}x").into_bytes(), "invalid_json");
    bad("two documents", format!("{good}{good}").into_bytes(), "invalid_json");
    bad("single quotes", good.replace('"', "'").into_bytes(), "invalid_json");
    bad("a comment", good.replacen('{', "{/* */", 1).into_bytes(), "invalid_json");
    bad("a trailing comma", good.replacen("}]", "},]", 1).into_bytes(), "invalid_json");
    bad("a bare word", b"hello".to_vec(), "invalid_json");
    bad("NaN", with("temperature", "NaN").into_bytes(), "invalid_json");
    bad("Infinity", with("temperature", "Infinity").into_bytes(), "invalid_json");
    bad("a leading zero", with("temperature", "01").into_bytes(), "invalid_json");
    bad("a leading plus", with("temperature", "+1").into_bytes(), "invalid_json");
    bad("a number cut off", with("temperature", "1.").into_bytes(), "invalid_json");
    bad("a raw line end in a string", with("user", "\"a\nb\"").into_bytes(), "invalid_json");
    bad("a NUL in a string", with("user", "\"a\0b\"").into_bytes(), "invalid_json");
    bad("an unknown escape", with("user", "\"\\x41\"").into_bytes(), "invalid_json");
    bad("an escape cut off", with("user", "\"\\u12\"").into_bytes(), "invalid_json");
    bad("a lone surrogate", with("user", "\"\\ud800\"").into_bytes(), "invalid_json");
    bad("a reversed pair", with("user", "\"\\udc00\\ud800\"").into_bytes(), "invalid_json");
    bad("UTF-16", good.encode_utf16().flat_map(u16::to_le_bytes).collect(), "invalid_json");
    bad("a byte order mark", [b"\xef\xbb\xbf".as_slice(), good.as_bytes()].concat(), "invalid_json");
    bad("overlong UTF-8", spoil(&with("user", "\"@@\""), b"\xc0\xaf"), "invalid_json");
    bad("a surrogate in UTF-8", spoil(&with("user", "\"@@@\""), b"\xed\xa0\x80"), "invalid_json");
    bad("a stray continuation byte", spoil(&with("user", "\"@\""), b"\x80"), "invalid_json");
    bad("a character cut off", spoil(&with("user", "\"@@@\""), b"\xf0\x9f\xa6"), "invalid_json");
    bad("depth 129", deep(129).into_bytes(), "nesting_too_deep");
    bad("depth 10 thousand", deep(10_000).into_bytes(), "nesting_too_deep");
    bad("depth a million", deep(1_000_000).into_bytes(), "nesting_too_deep");
    bad("a million open brackets", "[".repeat(1_000_000).into_bytes(), "nesting_too_deep");
    bad("a million open objects", "{\"a\":".repeat(1_000_000).into_bytes(), "nesting_too_deep");
    for (name, body) in
        [("null", "null"), ("an array", "[]"), ("a string", "\"x\""), ("a number", "1"), ("true", "true")]
    {
        let want = Want::Refused { statuses: vec![400], codes: vec!["invalid_type", "invalid_json"], param: None };
        rows.push(Row { name: format!("the body is {name}"), bytes: target.chat(body.as_bytes()), want });
    }
    rows.push(Row::served("depth 100", target.chat(deep(100).as_bytes()), 200));
    rows.push(Row::served("white space around", target.chat(format!("\r\n\t {good} \n").as_bytes()), 200));
    rows.push(Row::served("1e999 where nobody reads", target.chat(with("temperature", "1e999").as_bytes()), 200));
    rows.push(Row::served("an unknown field", target.chat(with("x_unknown", "[1,{\"a\":null}]").as_bytes()), 200));
    rows
}

/// The text with its run of `@` replaced by these bytes.
fn spoil(text: &str, bytes: &[u8]) -> Vec<u8> {
    let at = text.find('@').unwrap_or_default();
    let end = text.rfind('@').map_or(at, |e| e + 1);
    [&text.as_bytes()[..at], bytes, &text.as_bytes()[end..]].concat()
}
