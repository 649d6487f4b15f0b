//! The API's own pages: the OpenAPI document, a reference made from it for people, and a health check.
//! Self-contained: the page loads nothing and runs no script.

use std::fmt::Write as _;

use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use http::StatusCode;
use serde_json::{Value, json};

use super::{Access, Reply, Route, document, routes as all_routes};
use crate::app::App;
use crate::error::ApiError;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/api/v1/openapi.json", Access::Public, openapi)
            .tag("operation")
            .summary("This document")
            .answers_schema(200, "The OpenAPI 3.1 document", json!({ "type": "object" })),
        Route::get("/api/v1/docs", Access::Public, docs)
            .tag("operation")
            .summary("This document, for people")
            .produces("text/html")
            .answers_plain(200, "An HTML page"),
        Route::get("/healthz", Access::Public, healthz)
            .tag("operation")
            .summary("Whether the control plane can reach its database")
            .answers_schema(200, "It can", json!({ "type": "object", "properties": { "status": { "const": "ok" } } })),
    ]
}

async fn openapi() -> Result<Reply, ApiError> {
    Reply::json(StatusCode::OK, &document(&all_routes()))
}

async fn docs() -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    ([("content-security-policy", policy)], Html(html(&document(&all_routes())))).into_response()
}

async fn healthz(State(app): State<App>) -> Result<Reply, ApiError> {
    let _: (i64,) = sqlx::query_as("SELECT COUNT(*) FROM meta").fetch_one(app.db.pool()).await?;
    Reply::json(StatusCode::OK, &json!({ "status": "ok" }))
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}\
h2{border-bottom:1px solid #ddd;margin-top:2.5rem}code,pre{font:13px ui-monospace,monospace;background:#f4f4f2;padding:.1em .3em}\
.m{display:inline-block;width:4.2em;font-weight:700}details{margin:.35rem 0}summary{cursor:pointer}\
table{border-collapse:collapse;margin:.5rem 0}td,th{border:1px solid #ddd;padding:.2rem .5rem;text-align:left;vertical-align:top}\
@media(prefers-color-scheme:dark){body{background:#191919;color:#e4e4e4}code,pre{background:#2a2a2a}td,th,h2{border-color:#444}}";

/// The document as one page.
fn html(document: &Value) -> String {
    let mut page = String::new();
    let info = &document["info"];
    // Writing into a string cannot fail.
    _ = write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style><h1>{title} <small>{version}</small></h1><p>{text}</p>\
         <p>Machine-readable: <a href=openapi.json>openapi.json</a></p>",
        title = escape(&info["title"]),
        version = escape(&info["version"]),
        text = prose(&info["description"]),
    );
    for tag in document["tags"].as_array().into_iter().flatten() {
        _ = write!(page, "<h2>{}</h2>", escape(&tag["name"]));
        for (path, methods) in document["paths"].as_object().into_iter().flatten() {
            for (method, operation) in methods.as_object().into_iter().flatten() {
                if operation["tags"][0] == tag["name"] {
                    operation_html(&mut page, path, method, operation);
                }
            }
        }
    }
    page.push_str("<h2>Schemas</h2>");
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        let text = serde_json::to_string_pretty(schema).unwrap_or_default();
        _ = write!(page, "<details id=\"{name}\"><summary><code>{name}</code></summary>");
        fields_html(&mut page, schema);
        _ = write!(
            page,
            "<details><summary>JSON schema</summary><pre>{}</pre></details></details>",
            escape_text(&text)
        );
    }
    page.push_str("</html>");
    page
}

fn operation_html(page: &mut String, path: &str, method: &str, operation: &Value) {
    _ = write!(
        page,
        "<details><summary><span class=m>{}</span> <code>{}</code> {}</summary><p>{}</p>",
        method.to_ascii_uppercase(),
        escape_text(path),
        escape(&operation["summary"]),
        prose(&operation["description"]),
    );
    let parameters = operation["parameters"].as_array().filter(|list| !list.is_empty());
    if let Some(parameters) = parameters {
        page.push_str("<table><tr><th>Parameter<th>In<th>Meaning");
        for p in parameters {
            let (name, place, text) = (escape(&p["name"]), escape(&p["in"]), prose(&p["description"]));
            _ = write!(page, "<tr><td><code>{name}</code><td>{place}<td>{text}");
        }
        page.push_str("</table>");
    }
    if let Some(body) = operation.pointer("/requestBody/content/application~1json/schema") {
        _ = write!(page, "<p>Body: {}</p>", reference_html(body));
    }
    page.push_str("<table><tr><th>Status<th>Answer<th>Body");
    for (status, answer) in operation["responses"].as_object().into_iter().flatten() {
        let content = answer["content"].as_object().and_then(|c| c.values().next());
        let body = content.map(|c| reference_html(&c["schema"])).unwrap_or_default();
        _ = write!(page, "<tr><td>{status}<td>{}<td>{body}", prose(&answer["description"]));
    }
    page.push_str("</table></details>");
}

/// The first level of a schema's properties.
fn fields_html(page: &mut String, schema: &Value) {
    let parts = schema["allOf"].as_array().cloned().unwrap_or_else(|| vec![schema.clone()]);
    page.push_str("<table>");
    for part in &parts {
        if part.get("$ref").is_some() {
            _ = write!(page, "<tr><td colspan=2>all of {}", reference_html(part));
        }
        for (name, field) in part["properties"].as_object().into_iter().flatten() {
            _ = write!(page, "<tr><td><code>{}</code><td>{}", escape_text(name), prose(&field["description"]));
        }
    }
    page.push_str("</table>");
}

fn reference_html(schema: &Value) -> String {
    match schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()) {
        Some(name) => format!("<a href=\"#{0}\"><code>{0}</code></a>", escape_text(name)),
        None if schema.get("items").is_some() => format!("list of {}", reference_html(&schema["items"])),
        None => format!("<code>{}</code>", escape(&schema["type"])),
    }
}

fn escape(value: &Value) -> String {
    escape_text(value.as_str().unwrap_or_default())
}

fn escape_text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Text with `code` marked.
fn prose(value: &Value) -> String {
    let text = escape(value);
    let marked = text.split('`').enumerate().map(|(at, part)| match at % 2 {
        1 => format!("<code>{part}</code>"),
        _ => part.to_owned(),
    });
    marked.collect()
}
