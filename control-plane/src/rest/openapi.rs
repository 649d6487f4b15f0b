//! The OpenAPI 3.1 document, from the route table and the documents' own schemas.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use utoipa::{PartialSchema as _, ToSchema as _};

use super::{Access, Route};
use crate::error::{Code, Fault, Problem};

/// The document of a route table.
pub fn document(routes: &[Route]) -> Value {
    let mut schemas: BTreeMap<String, Value> = BTreeMap::new();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    let mut tags = BTreeSet::new();
    schemas.insert("Problem".into(), problem_schema());
    schemas.insert(Fault::name().into_owned(), json!(Fault::schema()));
    for route in routes {
        for (name, schema) in &route.doc.schemas {
            schemas.insert(name.clone(), json!(schema));
        }
        tags.insert(route.doc.tag);
        let method = route.method.as_str().to_ascii_lowercase();
        paths.entry(route.path).or_default().insert(method, operation(route));
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Pointsman management API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "tags": tags.iter().map(|tag| json!({ "name": tag })).collect::<Vec<_>>(),
        "security": [{ "admin_token": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "admin_token": { "type": "http", "scheme": "bearer", "description": "An admin token, `pma_…`" },
            },
        },
    });
    open_parts(&mut document);
    document
}

/// A schema that is a part of others must not forbid what they add. Bodies say at their own level that
/// nothing else may be in them.
fn open_parts(document: &mut Value) {
    let mut parts = BTreeSet::new();
    parts_of(document, &mut parts);
    for name in &parts {
        if let Some(part) = document["components"]["schemas"][name].as_object_mut() {
            part.remove("additionalProperties");
        }
    }
    let operations =
        document["paths"].as_object_mut().into_iter().flatten().filter_map(|(_, path)| path.as_object_mut());
    for (_, operation) in operations.flatten() {
        let content = operation.pointer_mut("/requestBody/content").and_then(Value::as_object_mut);
        for schema in content.into_iter().flatten().filter_map(|(_, body)| body["schema"].as_object_mut()) {
            let part = schema.get("$ref").is_some_and(|name| parts.contains(name_of(name)));
            if part || schema.contains_key("allOf") {
                schema.insert("unevaluatedProperties".into(), json!(false));
            }
        }
    }
}

/// Names of schemas that stand in an `allOf`.
fn parts_of(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for part in fields.get("allOf").and_then(Value::as_array).into_iter().flatten() {
                names.extend(part.get("$ref").map(|name| name_of(name).to_owned()));
            }
            fields.values().for_each(|value| parts_of(value, names));
        }
        Value::Array(values) => values.iter().for_each(|value| parts_of(value, names)),
        _ => {}
    }
}

/// `Alias` of `#/components/schemas/Alias`.
fn name_of(reference: &Value) -> &str {
    reference.as_str().and_then(|path| path.rsplit('/').next()).unwrap_or_default()
}

/// The body of a merge patch (RFC 7396) for documents of this schema: every field may be left out or
/// `null`.
fn merge_patch(route: &Route, body: &Value) -> Value {
    let mut fields = Map::new();
    let whole = [body.clone()];
    for part in body["allOf"].as_array().map_or(&whole[..], Vec::as_slice) {
        let named = route.doc.schemas.iter().find(|(name, _)| name == name_of(&part["$ref"]));
        let part = named.map_or_else(|| part.clone(), |(_, schema)| json!(schema));
        for (name, field) in part["properties"].as_object().into_iter().flatten() {
            let mut field = field.clone();
            if let Some(schema) = field.as_object_mut() {
                // What a new document begins with is not what a change does.
                schema.remove("default");
            }
            fields.insert(name.clone(), json!({ "anyOf": [field, { "type": "null" }] }));
        }
    }
    json!({ "type": "object", "properties": fields, "additionalProperties": false })
}

const DESCRIPTION: &str = "\
Every write answers with the id of its change (`change_id`, and the header `x-pointsman-change`); \
`GET /api/v1/changes/{id}` says when it serves on every node. Objects carry an `ETag`; `If-Match` makes a \
write conditional. `Idempotency-Key` makes any write repeatable. Lists are paged with `limit` and `after`. \
Refusals are problem documents (RFC 9457) with a stable `code`.";

fn problem_schema() -> Value {
    let mut schema = json!(Problem::schema());
    if let Some(code) = schema.pointer_mut("/properties/code").and_then(Value::as_object_mut) {
        code.insert("enum".into(), Code::ALL.iter().map(|code| code.as_str()).collect());
    }
    schema
}

fn operation(route: &Route) -> Value {
    let doc = &route.doc;
    let mut operation = json!({
        "operationId": operation_id(route),
        "tags": [doc.tag],
        "summary": doc.summary,
        "parameters": parameters(route),
        "responses": responses(route),
    });
    if let Some(fields) = operation.as_object_mut() {
        if !doc.description.is_empty() {
            fields.insert("description".into(), json!(doc.description));
        }
        if let Some(body) = &doc.body {
            let mut content = json!({ "application/json": { "schema": body } });
            if route.method == http::Method::PATCH {
                let schema = merge_patch(route, body);
                content = json!({ "application/json": { "schema": schema }, "application/merge-patch+json": { "schema": schema } });
            }
            fields.insert("requestBody".into(), json!({ "required": true, "content": content }));
        }
        if route.access == Access::Public {
            fields.insert("security".into(), json!([]));
        }
    }
    operation
}

/// `get_workspaces_by_workspace_api_keys_by_id`: stable as long as the path is.
fn operation_id(route: &Route) -> String {
    let path = route.path.trim_start_matches("/api/v1").replace(['-', '.'], "_");
    let words = path.split('/').filter(|s| !s.is_empty()).map(|segment| {
        match segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
            Some(name) => format!("_by_{name}"),
            None => format!("_{segment}"),
        }
    });
    format!("{}{}", route.method.as_str().to_ascii_lowercase(), words.collect::<String>())
}

fn path_parameters(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
}

fn parameters(route: &Route) -> Vec<Value> {
    let parameter = |place: &str, name: &str, description: &str, required: bool| json!({ "in": place, "name": name, "description": description, "required": required, "schema": schema_of(route, name) });
    let mut all: Vec<Value> = path_parameters(route.path)
        .map(|name| {
            let description = match name {
                "workspace" => "Id or key of the workspace",
                _ => "Id",
            };
            parameter("path", name, description, true)
        })
        .collect();
    all.extend(route.doc.query.iter().map(|(name, text)| parameter("query", name, text, false)));
    all.extend(route.doc.headers.iter().map(|(name, text)| parameter("header", name, text, false)));
    if is_write(route) {
        let text = "1 to 255 characters: the same request with the same key has one effect and one answer, for a day";
        all.push(parameter("header", "Idempotency-Key", text, false));
    }
    all
}

fn schema_of(route: &Route, parameter: &str) -> Value {
    const ETAGS: &str = r#"^(\*|(W/)?"[^"]*"( *, *(W/)?"[^"]*")*)$"#;
    match parameter {
        "limit" if route.path.ends_with("/usage") => {
            json!({ "type": "integer", "minimum": 1, "maximum": 10_000, "default": 1_000 })
        }
        "limit" => json!({ "type": "integer", "minimum": 1, "maximum": 200, "default": 50 }),
        "wait_ms" => json!({ "type": "integer", "minimum": 0, "maximum": 60_000, "default": 0 }),
        "after" => json!({ "type": "string", "minLength": 1 }),
        "grain" => json!({ "type": "string", "enum": ["none", "minute", "hour", "day", "month"], "default": "none" }),
        "disabled" => json!({ "type": "boolean" }),
        "If-Match" | "If-None-Match" => json!({ "type": "string", "pattern": ETAGS }),
        "Idempotency-Key" => json!({ "type": "string", "pattern": "^[!-~]{1,255}$" }),
        _ => json!({ "type": "string" }),
    }
}

fn is_write(route: &Route) -> bool {
    route.method != http::Method::GET && route.access != Access::Public
}

fn responses(route: &Route) -> Map<String, Value> {
    let mut all = Map::new();
    for answer in &route.doc.answers {
        let mut response = json!({ "description": answer.description });
        if let Some(schema) = &answer.schema {
            response["content"] = json!({ route.produces: { "schema": schema } });
        } else if answer.status == 200 {
            response["content"] = json!({ route.produces: { "schema": { "type": "string" } } });
        }
        all.insert(answer.status.to_string(), response);
    }
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in refusals(route) {
        by_status.entry(code.status().as_u16()).or_default().push(code);
    }
    for (status, codes) in by_status {
        let text = codes.iter().map(|code| format!("`{}`: {}", code.as_str(), code.title())).collect::<Vec<_>>();
        let content = json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
        all.insert(status.to_string(), json!({ "description": text.join("; "), "content": content }));
    }
    all
}

/// What every route of this kind refuses with, and what it adds.
fn refusals(route: &Route) -> Vec<Code> {
    let mut all = vec![Code::NotAcceptable, Code::Internal, Code::Unavailable, Code::InvalidQuery];
    match route.access {
        Access::Public => {}
        Access::Fleet(_) => all.extend([Code::Unauthenticated, Code::Forbidden]),
        Access::Workspace(_) => all.extend([Code::Unauthenticated, Code::Forbidden, Code::NotFound]),
    }
    if path_parameters(route.path).next().is_some() {
        all.push(Code::NotFound);
    }
    if route.doc.query.iter().any(|(name, _)| *name == "after") {
        all.push(Code::InvalidCursor);
    }
    if is_write(route) {
        all.extend([
            Code::InvalidHeader,
            Code::IdempotencyInProgress,
            Code::WriteConflict,
            Code::LimitExceeded,
            Code::IdempotencyKeyReused,
            Code::BodyTooLarge,
            Code::RequestTimeout,
        ]);
    }
    if route.doc.body.is_some() {
        all.extend([Code::InvalidJson, Code::UnsupportedMediaType, Code::InvalidDocument]);
    }
    all.extend(&route.doc.refusals);
    all.sort_by_key(|code| code.as_str());
    all.dedup();
    all
}
