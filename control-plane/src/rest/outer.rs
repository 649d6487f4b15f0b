//! Around everything: the request's id, caught panics, the one place that writes problem bodies,
//! metrics, and headers that every answer carries.

use std::panic::AssertUnwindSafe;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, StatusCode};
use runtime::clock;
use shared::ids::RequestId;

use super::guard::Answered;
use crate::app::App;
use crate::error::{ApiError, Code};

const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

pub(super) fn around(app: &App, router: Router) -> Router {
    router.layer(from_fn_with_state(app.clone(), outer))
}

async fn outer(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let id = RequestId::new(u64::try_from(app.now_ms()).unwrap_or_default(), runtime::random::bytes());
    let method = known_method(request.method());
    let started = clock::monotonic();
    request.extensions_mut().insert(id);
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let response = answered.unwrap_or_else(|panic| {
        ApiError::internal(format!("panic: {}", runtime::task::panic_text(&*panic))).into_response()
    });
    let route = response.extensions().get::<Answered>().map_or("none", |answered| answered.0);
    let mut response = render(response, &id.to_string());
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        headers.insert("x-request-id", value);
    }
    // Answers may hold a key that is shown once.
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let took = clock::monotonic().saturating_sub(started);
    let status = response.status().as_u16();
    app.metrics.answered(method, route, status, took);
    tracing::debug!(request_id = %id, method, route, status, took_ms = took.as_millis() as u64, "answered");
    response
}

/// Writes the problem body of a refusal, ours or one of the framework's.
fn render(response: Response, id: &str) -> Response {
    if response.status().as_u16() < 400 {
        return response;
    }
    let error = match response.extensions().get::<ApiError>() {
        Some(error) => error.clone(),
        None if response.headers().get(CONTENT_TYPE) == Some(&PROBLEM) => return response,
        None => of_framework(response.status()),
    };
    if error.code.status().is_server_error() {
        tracing::error!(request_id = id, error = %error, "a request failed");
    }
    let body = serde_json::to_string(&error.problem(id)).unwrap_or_default();
    let (mut parts, _) = response.into_parts();
    parts.status = error.code.status();
    parts.headers.insert(CONTENT_TYPE, PROBLEM);
    parts.headers.remove(CONTENT_LENGTH);
    if error.code == Code::Unauthenticated {
        parts.headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    Response::from_parts(parts, body.into())
}

/// A refusal that axum made before a handler of ours ran.
fn of_framework(status: StatusCode) -> ApiError {
    match status {
        StatusCode::METHOD_NOT_ALLOWED => ApiError::new(Code::MethodNotAllowed, "see the Allow header"),
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(Code::BodyTooLarge, "the body must not be larger than 1 MiB"),
        // A path segment that cannot be read names nothing.
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => ApiError::not_found(),
        other => ApiError::internal(format!("the framework answered {other}")),
    }
}

/// Metric labels come from a closed set.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}
