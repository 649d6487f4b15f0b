//! The list of all routes, and what every request passes through before and after its handler.
//!
//! One table ([`routes`]) gives both the router and the OpenAPI document, so neither can know a route
//! that the other does not. Whether a caller may, which workspace is meant, whether the query is known
//! and whether the request is a repetition is decided here from the route's entry: a handler cannot
//! forget it. Handlers decide nothing about authentication.

mod guard;
mod idempotency;
mod input;
mod listener;
mod openapi;
mod outer;
mod page;
#[cfg(test)]
mod tests;
mod unique;

use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, MethodRouter, on};
use http::Method;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

use crate::app::App;
use crate::auth::permit::Action;
use crate::error::{ApiError, Code};

pub use idempotency::Claim;
pub use idempotency::forget_old;
pub use input::{Body, MAX_BODY, Params, Reply, from_value};
pub(crate) use input::{check_if_match, is_not_modified};
pub use listener::serve;
pub use openapi::document;

/// One method on one path: the handler, who may call it, and what the document says about it.
///
/// ```ignore
/// pub fn routes() -> Vec<Route> {
///     vec![
///         Route::get("/api/v1/nodes", Access::Fleet(Action::ReadFleet), list_nodes)
///             .tag("nodes")
///             .summary("Lists the nodes")
///             .paged()
///             .answers::<NodeList>(200, "The nodes"),
///         Route::get("/api/v1/workspaces/{workspace}/usage", Access::Workspace(Action::ReadUsage), usage)
///             .query("grain", "`minute`, `hour` or `day`")
///             .answers::<Usage>(200, "What was used"),
///     ]
/// }
/// ```
///
/// Handlers are axum handlers over `State<App>`. They may take [`crate::auth::Principal`],
/// [`crate::auth::Tenant`] (paths with `{workspace}` only), [`Params`] (the declared query parameters),
/// [`Body`] (the JSON body) and [`Claim`] (to store the answer to an `Idempotency-Key` in their own
/// transaction), and return `Result<_, ApiError>`.
#[derive(Clone)]
pub struct Route {
    /// GET answers HEAD too.
    pub method: Method,
    /// `/api/v1/…/{id}`. A path that holds `{workspace}` must have [`Access::Workspace`].
    pub path: &'static str,
    /// Who may.
    pub access: Access,
    /// Media type of its answers.
    pub produces: &'static str,
    pub(crate) handler: MethodRouter<App>,
    pub(crate) doc: Doc,
}

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone, without a token.
    Public,
    /// Tokens whose role allows the action, over whatever the token reaches: the handler narrows
    /// lists by [`crate::auth::Principal::reach`].
    Fleet(Action),
    /// Tokens whose role allows the action and that reach the path's `{workspace}`.
    Workspace(Action),
}

/// What the OpenAPI document says of a route.
#[derive(Clone, Default)]
pub(crate) struct Doc {
    pub tag: &'static str,
    pub summary: &'static str,
    pub description: String,
    pub query: Vec<(&'static str, &'static str)>,
    pub headers: Vec<(&'static str, &'static str)>,
    pub body: Option<Value>,
    pub answers: Vec<Answer>,
    pub refusals: Vec<Code>,
    pub schemas: Vec<(String, RefOr<Schema>)>,
}

#[derive(Clone)]
pub(crate) struct Answer {
    pub status: u16,
    pub description: &'static str,
    pub schema: Option<Value>,
}

impl Route {
    fn new<H, T>(method: Method, filter: MethodFilter, path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        let handler = on(filter, handler);
        Self { method, path, access, produces: "application/json", handler, doc: Doc::default() }
    }

    /// Reads.
    pub fn get<H: Handler<T, App>, T: 'static>(path: &'static str, access: Access, handler: H) -> Self {
        Self::new(Method::GET, MethodFilter::GET, path, access, handler)
    }

    /// Creates, or acts.
    pub fn post<H: Handler<T, App>, T: 'static>(path: &'static str, access: Access, handler: H) -> Self {
        Self::new(Method::POST, MethodFilter::POST, path, access, handler)
    }

    /// Replaces.
    pub fn put<H: Handler<T, App>, T: 'static>(path: &'static str, access: Access, handler: H) -> Self {
        Self::new(Method::PUT, MethodFilter::PUT, path, access, handler)
    }

    /// Changes in part.
    pub fn patch<H: Handler<T, App>, T: 'static>(path: &'static str, access: Access, handler: H) -> Self {
        Self::new(Method::PATCH, MethodFilter::PATCH, path, access, handler)
    }

    /// Removes.
    pub fn delete<H: Handler<T, App>, T: 'static>(path: &'static str, access: Access, handler: H) -> Self {
        Self::new(Method::DELETE, MethodFilter::DELETE, path, access, handler)
    }

    /// Group in the document.
    pub fn tag(mut self, tag: &'static str) -> Self {
        self.doc.tag = tag;
        self
    }

    /// One line.
    pub fn summary(mut self, summary: &'static str) -> Self {
        self.doc.summary = summary;
        self
    }

    /// More than one line, Markdown.
    pub fn describe(mut self, text: impl Into<String>) -> Self {
        self.doc.description = text.into();
        self
    }

    /// A query parameter that the handler knows. All others are refused before the handler runs.
    pub fn query(mut self, name: &'static str, description: &'static str) -> Self {
        self.doc.query.push((name, description));
        self
    }

    /// `limit` and `after`, as every list has them.
    pub fn paged(self) -> Self {
        self.query("limit", "Page size, 1 to 200; default 50").query("after", "`next` of the page before")
    }

    /// A request header worth mentioning.
    pub fn header(mut self, name: &'static str, description: &'static str) -> Self {
        self.doc.headers.push((name, description));
        self
    }

    /// The JSON body it takes.
    pub fn body<T: ToSchema>(mut self) -> Self {
        self.doc.body = Some(self.reference::<T>());
        self
    }

    /// A successful answer with a JSON body.
    pub fn answers<T: ToSchema>(mut self, status: u16, description: &'static str) -> Self {
        let schema = Some(self.reference::<T>());
        self.doc.answers.push(Answer { status, description, schema });
        self
    }

    /// A successful answer with no body, or with one that is not JSON.
    pub fn answers_plain(mut self, status: u16, description: &'static str) -> Self {
        self.doc.answers.push(Answer { status, description, schema: None });
        self
    }

    /// A successful answer with a body of this JSON schema.
    pub(crate) fn answers_schema(mut self, status: u16, description: &'static str, schema: Value) -> Self {
        self.doc.answers.push(Answer { status, description, schema: Some(schema) });
        self
    }

    pub(crate) fn body_schema(mut self, schema: Value) -> Self {
        self.doc.body = Some(schema);
        self
    }

    /// Refusals beyond those that every route has.
    pub fn refuses(mut self, codes: &[Code]) -> Self {
        self.doc.refusals.extend_from_slice(codes);
        self
    }

    /// Answers with this media type instead of JSON.
    pub fn produces(mut self, media_type: &'static str) -> Self {
        self.produces = media_type;
        self
    }

    /// Adds the type to the document's schemas and gives a reference to it.
    pub(crate) fn reference<T: ToSchema>(&mut self) -> Value {
        let name = T::name().into_owned();
        self.doc.schemas.push((name.clone(), T::schema()));
        T::schemas(&mut self.doc.schemas);
        serde_json::json!({ "$ref": format!("#/components/schemas/{name}") })
    }
}

/// THE list: every route of the administration listener.
pub fn routes() -> Vec<Route> {
    let mut all = page::routes();
    all.extend(crate::auth::routes());
    all.extend(crate::resources::routes());
    all.extend(crate::publish::api::routes());
    all.extend(crate::ledger::routes());
    all.extend(crate::metrics::routes());
    all
}

/// The router over [`routes`], with everything that surrounds a handler.
pub fn router(app: &App) -> Router {
    router_of(app, routes())
}

/// The router over a given table; tests add routes of their own.
pub fn router_of(app: &App, routes: Vec<Route>) -> Router {
    let mut router = Router::new();
    for route in routes {
        let handler = guard::around(app, &route);
        router = router.route(route.path, handler);
    }
    let router = router
        .fallback(|| async { ApiError::not_found() })
        .method_not_allowed_fallback(|| async {
            ApiError::new(Code::MethodNotAllowed, "see the Allow header for the methods of this path")
        })
        .with_state(app.clone());
    outer::around(app, router)
}
