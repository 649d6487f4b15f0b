//! What handlers take from a request and give back, checked the same way everywhere.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::unique::Unique;
use crate::error::{ApiError, Code};

/// Largest body in bytes.
pub const MAX_BODY: usize = 1024 * 1024;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Rows of a page unless asked otherwise, and at most.
const PAGE: (i64, i64) = (50, 200);

/// The query parameters that the route declares; others were refused before the handler ran.
#[derive(Debug, Clone, Default)]
pub struct Params(BTreeMap<String, String>);

impl Params {
    /// Reads a query string; every name must be one of `known`, and appear once.
    pub(crate) fn parse(query: &str, known: &[(&'static str, &'static str)]) -> Result<Self, ApiError> {
        let wrong = |name: &str, code, message: &str| {
            ApiError::new(Code::InvalidQuery, format!("{name}: {message}")).at(name, code, message)
        };
        let mut params = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text| percent_decode(text).ok_or_else(|| wrong("", "invalid_value", "not UTF-8 text"));
            let (name, value) = (decode(name)?, decode(value)?);
            if !known.iter().any(|(k, _)| *k == name) {
                let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                let message = format!("unknown parameter; this path knows: {}", names.join(", "));
                return Err(wrong(&name, "unknown_parameter", &message));
            }
            if params.insert(name.clone(), value).is_some() {
                return Err(wrong(&name, "invalid_value", "given more than once"));
            }
        }
        Ok(Self(params))
    }

    /// The value of a parameter, if given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The parsed value of a parameter, if given.
    ///
    /// # Errors
    /// [`Code::InvalidQuery`] when it cannot be parsed; `expected` says what it should be.
    pub fn parsed<T: std::str::FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let message = format!("must be {expected}");
        let wrong = || {
            ApiError::new(Code::InvalidQuery, format!("{name}: {message}")).at(name, "invalid_value", message.clone())
        };
        text.parse().map(Some).map_err(|_| wrong())
    }

    /// `limit`: 1 to 200, default 50.
    ///
    /// # Errors
    /// [`Code::InvalidQuery`] outside of that.
    pub fn limit(&self) -> Result<i64, ApiError> {
        let expected = format!("a number from 1 to {}", PAGE.1);
        match self.parsed::<i64>("limit", &expected)? {
            None => Ok(PAGE.0),
            Some(limit) if (1..=PAGE.1).contains(&limit) => Ok(limit),
            Some(_) => Err(ApiError::new(Code::InvalidQuery, format!("limit: must be {expected}")).at(
                "limit",
                "invalid_value",
                format!("must be {expected}"),
            )),
        }
    }

    /// All but paging, in a fixed order: what a cursor is bound to.
    pub(crate) fn filters(&self) -> String {
        let given = self.0.iter().filter(|(name, _)| *name != "limit" && *name != "after");
        given.map(|(name, value)| format!("{name}={value:?};")).collect()
    }
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}

/// `None` when the bytes are not UTF-8 or an escape is cut short.
fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

/// The JSON body of a request.
pub struct Body(pub Value);

impl Body {
    /// The body as a type, unknown fields refused where the type says so.
    ///
    /// # Errors
    /// [`Code::InvalidDocument`] with the path of the field.
    pub fn parse<T: DeserializeOwned>(self) -> Result<T, ApiError> {
        from_value(self.0)
    }
}

/// A value as a type.
///
/// # Errors
/// [`Code::InvalidDocument`] with the path of the field.
pub fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let mut path = e.path().to_string();
        let message = e.inner().to_string();
        // serde names the field in its text only.
        let named = message.split('`').nth(1).unwrap_or_default();
        let (code, field) = if message.starts_with("unknown field") {
            ("unknown_field", named)
        } else if message.starts_with("missing field") {
            ("required", named)
        } else {
            ("invalid_value", "")
        };
        if path == "." {
            path.clear();
        }
        // Which of the two serde's path holds already depends on the nesting.
        if !field.is_empty() && path != field && !path.ends_with(&format!(".{field}")) {
            path = if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
        }
        ApiError::new(Code::InvalidDocument, "the fields in errors must be corrected").at(path, code, message)
    })
}

impl<S: Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let kind = request.headers().get(CONTENT_TYPE).map_or(Ok(""), HeaderValue::to_str).unwrap_or("?");
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if !matches!(kind.as_str(), "application/json" | "application/merge-patch+json") {
            return Err(ApiError::new(Code::UnsupportedMediaType, "send Content-Type: application/json"));
        }
        let bytes = read_body(request.into_body()).await?;
        // serde_json bounds the depth at 128.
        let Unique(value) = serde_json::from_slice(&bytes)
            .map_err(|e| ApiError::new(Code::InvalidJson, format!("the body is not valid JSON: {e}")))?;
        Ok(Self(value))
    }
}

/// The whole body, bounded in size and time.
pub(crate) async fn read_body(body: axum::body::Body) -> Result<Bytes, ApiError> {
    let too_slow = |_| ApiError::new(Code::RequestTimeout, "the body did not arrive within 30 seconds");
    let read = Limited::new(body, MAX_BODY).collect();
    match tokio::time::timeout(BODY_TIMEOUT, read).await.map_err(too_slow)? {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => {
            Err(ApiError::new(Code::BodyTooLarge, "the body must not be larger than 1 MiB"))
        }
        Err(_) => Err(ApiError::new(Code::InvalidJson, "the body could not be read")),
    }
}

/// A successful answer as plain data: it can be stored and sent again.
#[derive(Debug, Clone)]
pub struct Reply {
    /// 2xx or 304.
    pub status: StatusCode,
    /// Names and values, ASCII.
    pub headers: Vec<(Cow<'static, str>, String)>,
    /// JSON text; empty = none.
    pub body: String,
}

impl Reply {
    /// With a JSON body.
    ///
    /// # Errors
    /// When the value cannot be written as JSON.
    pub fn json(status: StatusCode, value: &impl Serialize) -> Result<Self, ApiError> {
        let body = serde_json::to_string(value).map_err(ApiError::internal)?;
        Ok(Self { status, headers: Vec::new(), body })
    }

    /// Without a body.
    pub fn empty(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), body: String::new() }
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The ETag of a revision.
    pub fn etag(self, revision: i64) -> Self {
        self.header("etag", format!("\"{revision}\""))
    }

    /// Where what was made can be read.
    pub fn location(self, path: impl Into<String>) -> Self {
        self.header("location", path)
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if !self.body.is_empty() {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        for (name, value) in &self.headers {
            let name: Result<http::HeaderName, _> = name.parse();
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
                response.headers_mut().insert(name, value);
            }
        }
        *response.body_mut() = self.body.into();
        response
    }
}

/// Refuses when `If-Match` names other revisions than the current one.
pub(crate) fn check_if_match(headers: &HeaderMap, current: i64) -> Result<(), ApiError> {
    match etags(headers, IF_MATCH)? {
        None => Ok(()),
        Some(tags) if tags.matches(current) => Ok(()),
        Some(_) => Err(ApiError::new(
            Code::RevisionMismatch,
            format!("the current revision is \"{current}\"; read it, apply your change to it, send that"),
        )),
    }
}

/// Whether `If-None-Match` says that the caller has this revision.
pub(crate) fn is_not_modified(headers: &HeaderMap, current: i64) -> Result<bool, ApiError> {
    Ok(etags(headers, IF_NONE_MATCH)?.is_some_and(|tags| tags.matches(current)))
}

struct Etags {
    any: bool,
    tags: Vec<String>,
}

impl Etags {
    fn matches(&self, revision: i64) -> bool {
        let own = format!("\"{revision}\"");
        self.any || self.tags.iter().any(|tag| tag.strip_prefix("W/").unwrap_or(tag) == own)
    }
}

fn etags(headers: &HeaderMap, name: http::HeaderName) -> Result<Option<Etags>, ApiError> {
    let wrong = || ApiError::new(Code::InvalidHeader, format!("{name} must hold ETags such as \"42\", or *"));
    let mut etags = Etags { any: false, tags: Vec::new() };
    let mut given = false;
    for value in headers.get_all(&name) {
        given = true;
        for tag in value.to_str().map_err(|_| wrong())?.split(',').map(str::trim) {
            let bare = tag.strip_prefix("W/").unwrap_or(tag);
            match bare {
                "*" => etags.any = true,
                _ if bare.len() >= 2 && bare.starts_with('"') && bare.ends_with('"') => etags.tags.push(tag.to_owned()),
                _ => return Err(wrong()),
            }
        }
    }
    Ok(given.then_some(etags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_strict() {
        let known = [("limit", ""), ("name", "")];
        let parse = |query: &str| Params::parse(query, &known);
        let ok = parse("name=a%20b%2Bc&limit=7").expect("known parameters");
        assert_eq!((ok.get("name"), ok.limit().ok()), (Some("a b+c"), Some(7)));
        for bad in ["nam=x", "name=a&name=b", "name=%ff", "name=%4", "name=%zz"] {
            assert_eq!(parse(bad).map_err(|e| e.code).err(), Some(Code::InvalidQuery), "{bad}");
        }
        for bad in ["0", "201", "-1", "1000000000", "x", "", "1e3"] {
            let params = parse(&format!("limit={bad}")).expect("known parameter");
            assert_eq!(params.limit().map_err(|e| e.code), Err(Code::InvalidQuery), "{bad}");
        }
    }

    #[test]
    fn etags_match_by_revision() {
        let check = |value: &str| {
            let headers = HeaderMap::from_iter([(IF_MATCH, HeaderValue::from_str(value).expect(value))]);
            check_if_match(&headers, 7).map_err(|e| e.code)
        };
        for ok in ["\"7\"", "*", "\"6\", \"7\"", "W/\"7\""] {
            assert_eq!(check(ok), Ok(()), "{ok}");
        }
        assert_eq!(check("\"6\""), Err(Code::RevisionMismatch));
        for bad in ["7", "\"", "\"7", ""] {
            assert_eq!(check(bad), Err(Code::InvalidHeader), "{bad}");
        }
    }
}
