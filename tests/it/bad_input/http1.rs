//! Heads and framing that break HTTP/1.1, or bend it.

use super::{Row, Target, good_chat};

pub fn rows(target: &Target) -> Vec<Row> {
    let body = good_chat().to_string();
    let length = body.len();
    let head = target.head("POST", "/v1/chat/completions");
    let typed = format!("{head}Content-Type: application/json\r\n");
    let with = |header: &str| format!("{typed}{header}\r\nContent-Length: {length}\r\n\r\n{body}");
    let chunked = |chunks: &str| format!("{typed}Transfer-Encoding: chunked\r\n\r\n{chunks}");
    let whole_chunk = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");
    let line = |line: &str| format!("{line}\r\nHost: house\r\nContent-Length: 0\r\n\r\n");
    let key = &target.key;

    let mut rows = vec![
        // Two framings: a front and we could disagree about where the next request begins.
        Row::dropped("length and chunked", with("Transfer-Encoding: chunked")),
        Row::dropped("two lengths, different", with("Content-Length: 1")),
        Row::dropped("length with sign", format!("{typed}Content-Length: +{length}\r\n\r\n{body}")),
        Row::dropped("length negative", format!("{typed}Content-Length: -1\r\n\r\n{body}")),
        Row::dropped("length hex", format!("{typed}Content-Length: 0x10\r\n\r\n{body}")),
        Row::dropped("length list, different", format!("{typed}Content-Length: {length}, 5\r\n\r\n{body}")),
        Row::dropped("length of 2^64", format!("{typed}Content-Length: 18446744073709551616\r\n\r\n{body}")),
        Row::dropped("length empty", format!("{typed}Content-Length: \r\n\r\n{body}")),
        Row::dropped("encoding chunked, identity", chunk_head(&typed, "chunked, identity", &whole_chunk)),
        Row::dropped("encoding identity, chunked", chunk_head(&typed, "identity, chunked", &whole_chunk)),
        Row::dropped("encoding gzip, chunked", chunk_head(&typed, "gzip, chunked", &whole_chunk)),
        Row::dropped("encoding xchunked", chunk_head(&typed, "xchunked", &whole_chunk)),
        Row::dropped("encoding with a tab", chunk_head(&typed, "\tchunked\t, x", &whole_chunk)),
        Row::dropped("encoding twice", chunk_head(&typed, "chunked\r\nTransfer-Encoding: chunked, x", &whole_chunk)),
        Row::dropped("chunk size 0x", chunked(&format!("0x{length:x}\r\n{body}\r\n0\r\n\r\n"))),
        Row::dropped("chunk size negative", chunked(&format!("-1\r\n{body}\r\n0\r\n\r\n"))),
        Row::dropped("chunk size 2^64", chunked(&format!("10000000000000000\r\n{body}\r\n0\r\n\r\n"))),
        Row::dropped("chunk size not hex", chunked(&format!("zz\r\n{body}\r\n0\r\n\r\n"))),
        Row::dropped("chunk size empty", chunked(&format!("\r\n{body}\r\n0\r\n\r\n"))),
        Row::dropped("chunk without its end", chunked(&format!("{length:x}\r\n{body}xx0\r\n\r\n"))),
        Row::dropped(
            "chunk extension of 64 KiB",
            chunked(&format!("{length:x};{}\r\n{body}\r\n0\r\n\r\n", "x".repeat(65_536))),
        ),
        // Lines.
        Row::dropped("folded header", with("X-Folded: a\r\n b")),
        Row::dropped("space before colon", with("X-Space : a")),
        Row::dropped("header without colon", with("X-Nothing")),
        Row::dropped("header without name", with(": a")),
        Row::dropped("NUL in a value", with("X-Nul: a\0b")),
        Row::dropped("CR in a value", with("X-Cr: a\rb")),
        Row::dropped("control character in a value", with("X-Bell: a\x07b")),
        Row::dropped("NUL in a name", with("X-\0Nul: a")),
        Row::dropped("space in a name", with("X Y: a")),
        Row::dropped("non-ASCII name", with("X-\u{fc}: a")),
        Row::dropped("150 headers", with(&many_headers(150))),
        Row::dropped("1000 headers", with(&many_headers(1000))),
        Row::dropped("header of 1 MiB", with(&format!("X-Long: {}", "a".repeat(1 << 20)))),
        Row::dropped("name of 100 KiB", with(&format!("X-{}: a", "a".repeat(100_000)))),
        // Request lines.
        Row::dropped("version 0.9", "GET /v1/models\r\n\r\n".to_owned()),
        Row::dropped("version 1.2", line("GET /v1/models HTTP/1.2")),
        Row::dropped("version 2.0", line("GET /v1/models HTTP/2.0")),
        Row::dropped("version 3.9", line("GET /v1/models HTTP/3.9")),
        Row::dropped("no version", line("GET /v1/models")),
        Row::dropped("no path", line("GET HTTP/1.1")),
        Row::dropped("two paths", line("GET /v1/models /v1/models HTTP/1.1")),
        Row::dropped("space in the path", line("GET /v1/mod els HTTP/1.1")),
        Row::dropped("path without slash", line("GET v1/models HTTP/1.1")),
        Row::dropped("NUL in the path", line("GET /v1/\0models HTTP/1.1")),
        Row::dropped("lower-case protocol", line("GET /v1/models http/1.1")),
        Row::dropped("method of 1 KiB", line(&format!("{} /v1/models HTTP/1.1", "A".repeat(1024)))),
        Row::dropped("method with a comma", line("GE,T /v1/models HTTP/1.1")),
        Row::dropped("method empty", line(" /v1/models HTTP/1.1")),
        Row::dropped("absolute form", line("GET http://other/v1/models HTTP/1.1")),
        Row::dropped("authority form", line("CONNECT other:443 HTTP/1.1")),
        Row::dropped("path of 100 KiB", line(&format!("GET /v1/{} HTTP/1.1", "a".repeat(100_000)))),
        Row::dropped("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(40)),
        Row::dropped(
            "random bytes",
            (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<u8>>(),
        ),
        Row::dropped("two hosts", with("Host: other")),
        Row::dropped("no host", format!("GET /v1/models HTTP/1.1\r\nAuthorization: Bearer {key}\r\n\r\n")),
    ];
    rows.extend([
        Row::refused("asterisk form", line("OPTIONS * HTTP/1.1"), 400, "bad_http"),
        Row::refused("path of 20 KiB", line(&format!("GET /v1/{} HTTP/1.1", "a".repeat(20_000))), 414, "uri_too_long"),
        Row::refused("unknown path", line("POST /v1/nothing HTTP/1.1"), 404, "not_found"),
        Row::refused("unknown version of the API", line("POST /v9/chat/completions HTTP/1.1"), 404, "not_found"),
        Row::refused("dots in the path", line("GET /v1/../v1/models HTTP/1.1"), 404, "not_found"),
        Row::refused("encoded dots", line("GET /v1/%2e%2e/admin HTTP/1.1"), 404, "not_found"),
        Row::refused("two slashes", line("GET //v1/models HTTP/1.1"), 404, "not_found"),
        Row::refused("trailing slash", line("POST /v1/chat/completions/ HTTP/1.1"), 404, "not_found"),
        Row::refused("REST on the data port", line("GET /api/v1/workspaces HTTP/1.1"), 404, "not_found"),
        Row::refused("metrics on the data port", line("GET /metrics HTTP/1.1"), 404, "not_found"),
        Row::refused("snapshot on the data port", line("GET /snapshot HTTP/1.1"), 404, "not_found"),
        Row::refused("GET of chat", line("GET /v1/chat/completions HTTP/1.1"), 405, "method_not_allowed"),
        Row::refused("PUT of chat", line("PUT /v1/chat/completions HTTP/1.1"), 405, "method_not_allowed"),
        Row::refused("DELETE of chat", line("DELETE /v1/chat/completions HTTP/1.1"), 405, "method_not_allowed"),
        Row::refused("TRACE of chat", line("TRACE /v1/chat/completions HTTP/1.1"), 405, "method_not_allowed"),
        Row::refused("BREW of chat", line("BREW /v1/chat/completions HTTP/1.1"), 405, "method_not_allowed"),
        Row::refused("GET of embeddings", line("GET /v1/embeddings HTTP/1.1"), 405, "method_not_allowed"),
        Row::refused("POST of models", line("POST /v1/models HTTP/1.1"), 405, "method_not_allowed"),
        Row::refused("gzip", with("Content-Encoding: gzip"), 415, "content_encoding_not_supported"),
        Row::refused("br", with("Content-Encoding: br"), 415, "content_encoding_not_supported"),
        Row::refused("gzip twice", with("Content-Encoding: gzip, gzip"), 415, "content_encoding_not_supported"),
        Row::refused(
            "multipart",
            format!("{head}Content-Type: multipart/form-data\r\nContent-Length: {length}\r\n\r\n{body}"),
            415,
            "content_type_not_supported",
        ),
        Row::refused(
            "XML",
            format!("{head}Content-Type: application/xml\r\nContent-Length: {length}\r\n\r\n{body}"),
            415,
            "content_type_not_supported",
        ),
        Row::refused("upgrade", with("Connection: upgrade\r\nUpgrade: websocket"), 501, "upgrade_not_supported"),
        Row::refused(
            "body of 1 GiB declared",
            format!("{typed}Content-Length: 1073741824\r\n\r\n"),
            413,
            "body_too_large",
        ),
        Row::refused("no body", format!("{typed}Content-Length: 0\r\n\r\n"), 400, "invalid_json"),
        Row::refused("no length", format!("{typed}\r\n"), 400, "invalid_json"),
        // Odd, and right.
        Row::served("length twice, equal in one line is odd but chunked is right", chunked(&whole_chunk), 200),
        Row::served(
            "trailer that names a key",
            chunked(&format!("{length:x}\r\n{body}\r\n0\r\nAuthorization: Bearer x\r\n\r\n")),
            200,
        ),
        Row::served("expect 100-continue", with("Expect: 100-continue"), 200),
        Row::served("connection names authorization", with("Connection: authorization"), 200),
        Row::served("header name with underscore", with("X_Under: a"), 200),
        Row::served(
            "Latin-1 value",
            [with("X-Latin: ").replacen("X-Latin: ", "X-Latin: ~", 1).into_bytes()].concat(),
            200,
        ),
        Row::served("Last-Event-ID", with("Last-Event-ID: 7"), 200),
        Row::served("GET of the root", line("GET / HTTP/1.1"), 200),
        Row::served(
            "charset in the type",
            format!("{head}Content-Type: application/json; charset=utf-8\r\nContent-Length: {length}\r\n\r\n{body}"),
            200,
        ),
    ]);
    rows
}

fn chunk_head(typed: &str, encoding: &str, chunks: &str) -> String {
    format!("{typed}Transfer-Encoding: {encoding}\r\n\r\n{chunks}")
}

fn many_headers(count: usize) -> String {
    (0..count).map(|i| format!("X-Header-{i}: a")).collect::<Vec<_>>().join("\r\n")
}
