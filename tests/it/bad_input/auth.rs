//! Keys that are none. All of these look the same from outside.

use super::{Row, Target, good_chat};

pub fn rows(target: &Target) -> Vec<Row> {
    let body = good_chat().to_string();
    let key = &target.key;
    let wrong_end = format!("{}000000", &key[..key.len().saturating_sub(6)]);
    let other = format!("pm_{}_000000", "A".repeat(43));
    let cases: Vec<(&str, String)> = vec![
        ("no key", String::new()),
        ("an empty header", "Authorization:\r\n".into()),
        ("Bearer alone", "Authorization: Bearer\r\n".into()),
        ("Bearer and a space", "Authorization: Bearer \r\n".into()),
        ("the key without Bearer", format!("Authorization: {key}\r\n")),
        ("Basic", format!("Authorization: Basic {key}\r\n")),
        ("Token", format!("Authorization: Token {key}\r\n")),
        ("two headers that differ", format!("Authorization: Bearer {key}\r\nAuthorization: Bearer {other}\r\n")),
        ("two kinds that differ", format!("Authorization: Bearer {key}\r\nx-api-key: {other}\r\n")),
        ("two keys in one header", format!("Authorization: Bearer {key}, Bearer {key}\r\n")),
        ("a key cut short", format!("Authorization: Bearer {}\r\n", &key[..key.len() - 1])),
        ("a key and more", format!("Authorization: Bearer {key}0\r\n")),
        ("a key in capitals", format!("Authorization: Bearer {}\r\n", key.to_uppercase() + "X")),
        ("the right prefix, wrong secret", format!("Authorization: Bearer {other}\r\n")),
        ("a wrong checksum", format!("Authorization: Bearer {wrong_end}\r\n")),
        ("a key of 30 KiB", format!("Authorization: Bearer {}\r\n", "k".repeat(30_000))),
        ("non-ASCII", "Authorization: Bearer \u{1f980}\r\n".into()),
        ("SQL", "Authorization: Bearer ' OR '1'='1\r\n".into()),
        ("a JWT", "Authorization: Bearer eyJhbGciOiJub25lIn0.e30.\r\n".into()),
        ("a provider's key", "Authorization: Bearer sk-canary-of-somebody\r\n".into()),
        ("an admin token", format!("Authorization: Bearer pma_{}_000000\r\n", "A".repeat(43))),
        ("a cookie", format!("Cookie: authorization=Bearer {key}\r\n")),
        ("a forwarded header", format!("X-Forwarded-Authorization: Bearer {key}\r\n")),
        ("a proxy header", format!("Proxy-Authorization: Bearer {key}\r\n")),
    ];
    let mut rows: Vec<Row> = cases
        .into_iter()
        .map(|(name, header)| {
            let bytes = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: house\r\n{header}Content-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            Row::refused(name, bytes, 401, "invalid_api_key")
        })
        .collect();
    for path in ["/v1/models", "/v1/models/scripted/chat", "/v3/router/models"] {
        let bytes = format!("GET {path} HTTP/1.1\r\nHost: house\r\n\r\n");
        rows.push(Row::refused(format!("no key at {path}"), bytes, 401, "invalid_api_key"));
    }
    let query = format!("GET /v1/models?key={key} HTTP/1.1\r\nHost: house\r\n\r\n");
    rows.push(Row::refused("a key in the query", query, 401, "invalid_api_key"));
    rows.push(Row::served(
        "x-api-key is a key too",
        format!("GET /v1/models HTTP/1.1\r\nHost: house\r\nx-api-key: {key}\r\n\r\n"),
        200,
    ));
    rows
}
