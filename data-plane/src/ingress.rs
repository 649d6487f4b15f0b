//! The data port: which path is which endpoint, what a body may be, and how every answer and error
//! looks to a caller. Decides nothing about routing.

pub mod models;
pub mod read;
pub mod render;
pub mod unread;

use http::{Method, Request, StatusCode, header};
use providers::Endpoint;

pub use render::Problem;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// A call to a model.
    Call(Endpoint),
    /// The models that the key may use.
    ListModels,
    /// One of them, by name.
    GetModel,
    /// `GET` or `HEAD /`: some clients ask it to see whether anybody is there.
    Root,
}

/// Prefixes under which the same endpoints stand.
const PREFIXES: [&str; 2] = ["/v1/", "/v3/router/"];

/// Longest URI.
const MAX_URI_BYTES: usize = 16 * 1024;

/// The route of a request, or how to refuse it.
pub fn route<B>(request: &Request<B>) -> Result<Route, Problem> {
    check_head(request)?;
    let path = request.uri().path();
    if path == "/" {
        return method(request, &[Method::GET, Method::HEAD]).map(|()| Route::Root);
    }
    let Some(rest) = PREFIXES.iter().find_map(|prefix| path.strip_prefix(prefix)) else {
        return Err(Problem::not_found(path));
    };
    match rest {
        "chat/completions" => method(request, &[Method::POST]).map(|()| Route::Call(Endpoint::ChatCompletions)),
        "embeddings" => method(request, &[Method::POST]).map(|()| Route::Call(Endpoint::Embeddings)),
        "models" => method(request, &[Method::GET]).map(|()| Route::ListModels),
        other if other.strip_prefix("models/").is_some_and(|name| !name.is_empty()) => {
            method(request, &[Method::GET]).map(|()| Route::GetModel)
        }
        _ => Err(Problem::not_found(path)),
    }
}

/// The part of a [`Route::GetModel`]'s path behind `models/`, percent-decoded.
pub fn model_name(path: &str) -> Option<String> {
    let rest = PREFIXES.iter().find_map(|prefix| path.strip_prefix(prefix))?.strip_prefix("models/")?;
    let mut out = Vec::with_capacity(rest.len());
    let mut bytes = rest.bytes();
    while let Some(byte) = bytes.next() {
        let decoded = match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            plain => plain,
        };
        out.push(decoded);
    }
    String::from_utf8(out).ok()
}

/// What hyper leaves to us of a request's head.
fn check_head<B>(request: &Request<B>) -> Result<(), Problem> {
    let uri = request.uri();
    let length = uri.path_and_query().map_or(0, |p| p.as_str().len());
    if length > MAX_URI_BYTES {
        return Err(Problem::new(StatusCode::URI_TOO_LONG, "uri_too_long", "The URI is too long."));
    }
    // Origin form only: a proxy's forms would name another host than the one that is spoken to.
    if uri.authority().is_some() || !uri.path().starts_with('/') {
        return Err(Problem::bad_http("The request target must be a path."));
    }
    let headers = request.headers();
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() == http::Version::HTTP_11) {
        return Err(Problem::bad_http("There must be exactly one Host header."));
    }
    if headers.contains_key(header::UPGRADE) {
        let message = "Upgrading the connection is not supported.";
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, "upgrade_not_supported", message));
    }
    if headers.get_all(header::TRANSFER_ENCODING).iter().any(|v| !v.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        let message = "Only the transfer encoding chunked is supported.";
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, "transfer_encoding_not_supported", message));
    }
    Ok(())
}

fn method<B>(request: &Request<B>, allowed: &'static [Method]) -> Result<(), Problem> {
    if allowed.contains(request.method()) {
        return Ok(());
    }
    let mut problem =
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "This path does not take that method.");
    problem.allow = Some(allowed);
    Err(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_methods() {
        let call = |e| Ok(Route::Call(e));
        let cases = [
            ("POST", "/v1/chat/completions", call(Endpoint::ChatCompletions)),
            ("POST", "/v3/router/chat/completions?x=1", call(Endpoint::ChatCompletions)),
            ("POST", "/v1/embeddings", call(Endpoint::Embeddings)),
            ("GET", "/v1/models", Ok(Route::ListModels)),
            ("GET", "/v1/models/openai/gpt-4o", Ok(Route::GetModel)),
            ("HEAD", "/", Ok(Route::Root)),
            ("GET", "/v1/chat/completions", Err(405)),
            ("DELETE", "/v1/models", Err(405)),
            ("GET", "/v1/models/", Err(404)),
            ("POST", "/v1/chat/completions/", Err(404)),
            ("POST", "/v2/chat/completions", Err(404)),
            ("POST", "http://other/v1/embeddings", Err(400)),
        ];
        for (method, uri, expected) in cases {
            let request = Request::builder().method(method).uri(uri).header("host", "h").body(()).expect(uri);
            let found = route(&request).map_err(|problem| problem.status.as_u16());
            assert_eq!(found, expected, "{method} {uri}");
        }
    }

    #[test]
    fn names_in_paths_are_decoded_once() {
        let cases = [
            ("/v1/models/openai/gpt-4o", Some("openai/gpt-4o")),
            ("/v3/router/models/a%2Fb%20c", Some("a/b c")),
            ("/v1/models/%2525", Some("%25")),
            ("/v1/models/%zz", None),
            ("/v1/models/%f", None),
            ("/v1/models/%ff", None),
        ];
        for (path, expected) in cases {
            assert_eq!(model_name(path).as_deref(), expected, "{path}");
        }
    }
}
