//! Heads that cannot be read. hyper answers them by itself, with a bare status, before any of our code
//! runs; callers get the form that every other refusal has.

use http::StatusCode;
use providers::Dialect;

use super::Problem;
use crate::exchange::Arrival;

/// How answers of hyper's own begin.
const BARE: &[u8] = b"HTTP/1.1 4";

/// What to send instead of `written`, when that is an answer of hyper's own to a head that it could not
/// read. Only for bytes that belong to no request.
pub fn answer(written: &[u8]) -> Option<Vec<u8>> {
    // What is ours says which request it was.
    if !written.starts_with(BARE) || memchr::memmem::find(written, b"\r\nx-request-id: ").is_some() {
        return None;
    }
    let status = written.get(BARE.len() - 1..BARE.len() + 2).and_then(|digits| StatusCode::from_bytes(digits).ok())?;
    let problem = match status {
        StatusCode::URI_TOO_LONG => Problem::new(status, "uri_too_long", "The URI is too long."),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            Problem::new(status, "head_too_large", "The request's headers are too many or too long.")
        }
        _ => Problem::new(status, "bad_http", "The request is not valid HTTP."),
    };
    let (body, reason) = (problem.body(Dialect::OpenAi), status.canonical_reason().unwrap_or_default());
    let head = format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\nx-request-id: {}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        status.as_u16(),
        Arrival::begin().id,
        body.len()
    );
    Some([head.as_bytes(), &body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bare_refusals_are_replaced() {
        let text = |written: &str| answer(written.as_bytes()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let bad = text("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").expect("replaced");
        assert!(bad.starts_with("HTTP/1.1 400 Bad Request\r\n") && bad.contains("\"code\":\"bad_http\""), "{bad}");
        assert!(bad.contains("\r\nx-request-id: req_"), "{bad}");
        let large = text("HTTP/1.1 431 Request Header Fields Too Large\r\n\r\n").expect("replaced");
        assert!(large.contains("\"code\":\"head_too_large\""), "{large}");
        for ours in [
            "HTTP/1.1 401 Unauthorized\r\nx-request-id: req_1\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "data: HTTP/1.1 400",
            "",
        ] {
            assert_eq!(text(ours), None, "{ours}");
        }
    }
}
