//! Before the handler: is the answer's form acceptable, the query known, the caller allowed, the
//! workspace within reach, the request a repetition?

use std::sync::Arc;

use axum::RequestPartsExt as _;
use axum::extract::{RawPathParams, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use http::header::ACCEPT;
use http::{HeaderMap, Method};

use super::input::{Params, read_body};
use super::{Access, Route, idempotency};
use crate::app::App;
use crate::auth::permit::{Action, permits};
use crate::auth::{Principal, Tenant, authenticate};
use crate::error::{ApiError, Code};

/// What the guard needs of a route.
#[derive(Clone)]
struct Entry {
    app: App,
    path: &'static str,
    produces: &'static str,
    access: Access,
    query: Arc<[(&'static str, &'static str)]>,
}

/// Pattern of the route that answered, for metrics.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered(pub &'static str);

/// The route's handler behind its guard.
pub(super) fn around(app: &App, route: &Route) -> MethodRouter<App> {
    let entry = Entry {
        app: app.clone(),
        path: route.path,
        produces: route.produces,
        access: route.access,
        query: route.doc.query.clone().into(),
    };
    route.handler.clone().route_layer(from_fn_with_state(entry, guard))
}

async fn guard(State(entry): State<Entry>, request: Request, next: Next) -> Response {
    let answered = Answered(entry.path);
    let mut response = pass(entry, request, next).await.unwrap_or_else(IntoResponse::into_response);
    response.extensions_mut().insert(answered);
    response
}

async fn pass(entry: Entry, request: Request, next: Next) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    // Who comes first: an unknown caller learns nothing about parameters.
    let principal = match entry.access {
        Access::Public => None,
        Access::Fleet(action) => Some(permitted(&entry.app, &parts.headers, action).await?),
        Access::Workspace(action) => {
            let principal = authenticate(&entry.app, &parts.headers).await?;
            let tenant = tenant(&entry, &mut parts, &principal).await?;
            // After the look-up: for a workspace out of reach the answer is 404, never 403.
            check(&principal, action)?;
            parts.extensions.insert(tenant);
            Some(principal)
        }
    };
    if !accepts(&parts.headers, entry.produces) {
        return Err(ApiError::new(Code::NotAcceptable, format!("this path answers with {}", entry.produces)));
    }
    parts.extensions.insert(Params::parse(parts.uri.query().unwrap_or_default(), &entry.query)?);
    let Some(principal) = principal else {
        return Ok(next.run(Request::from_parts(parts, body)).await);
    };
    let writes = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH | Method::DELETE);
    let key = if writes { idempotency::key(&parts.headers)? } else { None };
    parts.extensions.insert(principal.clone());
    let Some(key) = key else {
        return Ok(next.run(Request::from_parts(parts, body)).await);
    };
    let bytes = read_body(body).await?;
    let hash = idempotency::request_hash(&parts.method, &parts.uri, &principal, &bytes);
    match idempotency::claim(&entry.app, &principal, &key, &hash).await? {
        idempotency::Claimed::Answered(response) => Ok(response),
        idempotency::Claimed::Now(claim) => {
            parts.extensions.insert(claim.clone());
            let response = next.run(Request::from_parts(parts, bytes.into())).await;
            claim.after(&entry.app, response).await
        }
    }
}

async fn permitted(app: &App, headers: &HeaderMap, action: Action) -> Result<Principal, ApiError> {
    let principal = authenticate(app, headers).await?;
    check(&principal, action)?;
    Ok(principal)
}

fn check(principal: &Principal, action: Action) -> Result<(), ApiError> {
    if permits(principal.role, action) {
        return Ok(());
    }
    Err(ApiError::new(Code::Forbidden, format!("a token of role {} may not do this", principal.role.as_str())))
}

async fn tenant(entry: &Entry, parts: &mut http::request::Parts, principal: &Principal) -> Result<Tenant, ApiError> {
    // A segment that is not UTF-8 names nothing.
    let params = parts.extract::<RawPathParams>().await.map_err(|_| ApiError::not_found())?;
    let name = params.iter().find(|(name, _)| *name == "workspace").map(|(_, value)| value);
    let name = name.ok_or_else(|| ApiError::internal(format!("{} has no {{workspace}}", entry.path)))?;
    Tenant::resolve(&entry.app.db, principal, name).await
}

/// Whether one range of the Accept headers covers the media type. Absent = everything.
fn accepts(headers: &HeaderMap, produces: &str) -> bool {
    let mut given = false;
    let (group, _) = produces.split_once('/').unwrap_or((produces, ""));
    for value in headers.get_all(ACCEPT) {
        given = true;
        let Ok(value) = value.to_str() else { return false };
        for range in value.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let refused = parts.any(|p| matches!(p, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
            let covers = kind == "*/*" || kind == produces || kind.strip_suffix("/*") == Some(group);
            // Metrics are asked for as plain text by older scrapers.
            let plain = group != "text" && kind == "text/plain" && produces.contains("openmetrics");
            if (covers || plain) && !refused {
                return true;
            }
        }
    }
    !given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_headers() {
        let cases = [
            ("*/*", true),
            ("application/json", true),
            ("text/html, application/*;q=0.5", true),
            ("application/json;q=0", false),
            ("text/html", false),
            ("APPLICATION/JSON; charset=utf-8", true),
            ("", false),
        ];
        for (value, expected) in cases {
            let headers = HeaderMap::from_iter([(ACCEPT, http::HeaderValue::from_static(value))]);
            assert_eq!(accepts(&headers, "application/json"), expected, "{value}");
        }
        assert!(accepts(&HeaderMap::new(), "application/json"));
    }
}
