//! The management interface as callers meet it: requests and what they must get, as data.

mod access;

use std::collections::BTreeSet;

use http::StatusCode;
use serde_json::{Value, json};

use super::{Access, document, router_of, routes};
use crate::auth::permit::Action;
use crate::error::Code;
use crate::testing::{Answer, House};

const W: &str = "/api/v1/workspaces/default";

/// Method, path, body, expected status, expected code, expected path of the first fault.
type Case<'a> = (&'a str, String, Value, u16, &'a str, &'a str);

async fn check(house: &House, cases: &[Case<'_>]) {
    for (method, path, body, status, code, fault) in cases {
        let sent = (!body.is_null()).then(|| body.clone());
        let answer = house.call(method, path, sent).await;
        assert_eq!(answer.status.as_u16(), *status, "{method} {path} {body}: {}", answer.text);
        if *status >= 400 {
            assert_eq!(answer.header("content-type"), "application/problem+json", "{method} {path}");
            assert_eq!(answer.at("/code"), *code, "{method} {path} {body}: {}", answer.text);
            assert_eq!(answer.at("/request_id"), answer.header("x-request-id"));
            assert_eq!(answer.at("/status"), status.to_string());
            if !fault.is_empty() {
                assert_eq!(answer.at("/errors/0/path"), *fault, "{method} {path} {body}: {}", answer.text);
            }
        }
    }
}

fn at(path: &str) -> String {
    format!("{W}{path}")
}

#[tokio::test]
async fn bad_input_is_refused_with_a_code_and_a_path() {
    let house = House::sqlite().await;
    let provider = house.call("GET", &at("/providers/sandbox"), None).await.at("/id");
    let none = Value::Null;
    let unknown = "prv_00000000000000000000000000000000";
    let sandbox_model = |more: Value| {
        let mut doc = json!({ "provider_id": provider, "name": "m", "private": true, "type": "chat" });
        doc.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        doc
    };
    let cases: Vec<Case<'_>> = vec![
        ("GET", "/".into(), none.clone(), 404, "not_found", ""),
        ("GET", "/api/v1/nothing".into(), none.clone(), 404, "not_found", ""),
        ("GET", at("/projects/nothing"), none.clone(), 404, "not_found", ""),
        ("GET", at("/projects/%ff"), none.clone(), 404, "not_found", ""),
        ("GET", "/api/v1/workspaces/nothing/projects".into(), none.clone(), 404, "not_found", ""),
        ("GET", "/api/v1/workspaces/shared".into(), none.clone(), 404, "not_found", ""),
        ("DELETE", at("/projects"), none.clone(), 405, "method_not_allowed", ""),
        ("POST", at("/projects"), none.clone(), 415, "unsupported_media_type", ""),
        ("GET", at("/projects?limit=0"), none.clone(), 400, "invalid_query", "limit"),
        ("GET", at("/projects?limit=1000000000"), none.clone(), 400, "invalid_query", "limit"),
        ("GET", at("/projects?limit=1&limit=2"), none.clone(), 400, "invalid_query", "limit"),
        ("GET", at("/projects?sort=name"), none.clone(), 400, "invalid_query", "sort"),
        ("GET", at("/projects?disabled=maybe"), none.clone(), 400, "invalid_query", "disabled"),
        ("GET", at("/projects?after=AAAA"), none.clone(), 400, "invalid_cursor", ""),
        ("GET", at("/projects/default?x=1"), none.clone(), 400, "invalid_query", "x"),
        ("POST", at("/projects"), json!([]), 422, "invalid_document", ""),
        ("POST", at("/projects"), json!("x"), 422, "invalid_document", ""),
        ("POST", at("/projects"), json!({}), 422, "invalid_document", "key"),
        ("POST", at("/projects"), json!({ "key": 5 }), 422, "invalid_document", "key"),
        ("POST", at("/projects"), json!({ "key": "a", "role": "operator" }), 422, "invalid_document", "role"),
        ("POST", at("/projects"), json!({ "key": "a", "id": "prj_1" }), 422, "invalid_document", "id"),
        ("POST", at("/projects"), json!({ "key": "a", "created_at": "now" }), 422, "invalid_document", "created_at"),
        ("POST", at("/projects"), json!({ "key": "a\u{202e}" }), 422, "invalid_document", "key"),
        ("POST", at("/projects"), json!({ "key": "default" }), 409, "already_exists", "key"),
        ("PATCH", at("/projects/default"), json!({ "key": "other" }), 422, "invalid_document", "key"),
        ("PATCH", at("/projects/default"), json!({ "id": "prj_1" }), 422, "invalid_document", "id"),
        (
            "PATCH",
            at("/projects/default"),
            json!({ "display_name": "z".repeat(201) }),
            422,
            "invalid_document",
            "display_name",
        ),
        ("DELETE", at("/projects/default"), none.clone(), 409, "protected", ""),
        ("POST", at("/providers"), json!({ "vendor": "nobody" }), 422, "invalid_document", "vendor"),
        ("POST", at("/providers"), json!({ "vendor": "sandbox" }), 409, "already_exists", "slug"),
        (
            "POST",
            at("/providers"),
            json!({ "vendor": "openai", "base_url": "http://user@host" }),
            422,
            "invalid_document",
            "base_url",
        ),
        (
            "POST",
            at("/providers"),
            json!({ "vendor": "openai", "base_url": "http://2130706433" }),
            422,
            "invalid_document",
            "base_url",
        ),
        (
            "POST",
            at("/providers"),
            json!({ "vendor": "openai", "base_url": "sandbox://x" }),
            422,
            "invalid_document",
            "base_url",
        ),
        (
            "POST",
            at("/providers"),
            json!({ "vendor": "openai", "timeouts": { "connect_ms": 0 } }),
            422,
            "invalid_document",
            "timeouts.connect_ms",
        ),
        (
            "POST",
            at("/providers"),
            json!({ "vendor": "openai", "timeouts": { "x": 0 } }),
            422,
            "invalid_document",
            "timeouts.x",
        ),
        ("POST", at("/providers"), json!({ "vendor": "vllm" }), 422, "invalid_document", "base_url"),
        ("POST", at("/providers"), json!({ "vendor": "azure" }), 422, "invalid_document", "parameters.resource"),
        (
            "POST",
            at("/credentials"),
            json!({ "provider_id": unknown, "name": "x", "secret": "s" }),
            422,
            "invalid_document",
            "provider_id",
        ),
        (
            "POST",
            at("/credentials"),
            json!({ "provider_id": "x", "name": "x" }),
            422,
            "invalid_document",
            "provider_id",
        ),
        (
            "POST",
            at("/credentials"),
            json!({ "provider_id": provider, "name": "x", "secret": 5 }),
            422,
            "invalid_document",
            "secret",
        ),
        (
            "POST",
            at("/credentials"),
            json!({ "provider_id": provider, "name": "x", "secret_version": 1 }),
            422,
            "invalid_document",
            "secret_version",
        ),
        (
            "POST",
            at("/models"),
            sandbox_model(json!({ "prices": [{ "input": "-1", "output": "1" }] })),
            422,
            "invalid_document",
            "prices[0].input",
        ),
        (
            "POST",
            at("/models"),
            sandbox_model(json!({ "prices": [{ "input": "1e30", "output": "1" }] })),
            422,
            "invalid_document",
            "prices[0].input",
        ),
        (
            "POST",
            at("/models"),
            sandbox_model(json!({ "prices": [{ "input": 1, "output": "1" }] })),
            422,
            "invalid_document",
            "prices[0].input",
        ),
        (
            "POST",
            at("/models"),
            sandbox_model(json!({ "capabilities": ["flying"] })),
            422,
            "invalid_document",
            "capabilities[0]",
        ),
        (
            "POST",
            at("/aliases"),
            json!({ "name": "x", "targets": ["sandbox/none"] }),
            422,
            "invalid_document",
            "targets[0]",
        ),
        (
            "POST",
            at("/aliases"),
            json!({ "name": "x", "targets": ["nobody/x"] }),
            422,
            "invalid_document",
            "targets[0]",
        ),
        (
            "POST",
            at("/aliases"),
            json!({ "name": "a/b", "targets": ["sandbox/echo"] }),
            422,
            "invalid_document",
            "name",
        ),
        ("POST", at("/api-keys"), json!({ "name": "x", "hash": "00" }), 422, "invalid_document", "hash"),
        (
            "POST",
            at("/api-keys"),
            json!({ "name": "x", "addresses": ["10.0.0.0/33"] }),
            422,
            "invalid_document",
            "addresses[0]",
        ),
        ("POST", at("/api-keys"), json!({ "name": "x", "scopes": ["admin"] }), 422, "invalid_document", "scopes[0]"),
        (
            "POST",
            at("/api-keys"),
            json!({ "name": "x", "project_id": "prj_00000000000000000000000000000000" }),
            422,
            "invalid_document",
            "project_id",
        ),
        ("POST", "/api/v1/workspaces".into(), json!({ "key": "default" }), 409, "already_exists", "key"),
        ("POST", "/api/v1/workspaces".into(), json!({ "key": "shared" }), 422, "invalid_document", "key"),
        ("POST", "/api/v1/admin-tokens".into(), json!({ "name": "x", "role": "god" }), 422, "invalid_document", "role"),
        (
            "POST",
            "/api/v1/admin-tokens".into(),
            json!({ "name": "", "role": "operator" }),
            422,
            "invalid_document",
            "name",
        ),
        (
            "POST",
            "/api/v1/admin-tokens".into(),
            json!({ "name": "x", "role": "workspace_admin" }),
            422,
            "invalid_document",
            "workspace",
        ),
    ];
    let before = house.dump().await;
    check(&house, &cases).await;
    assert_eq!(house.dump().await, before, "a refused request leaves nothing");
    house.close().await;
}

#[tokio::test]
async fn bodies_and_headers_are_bounded_and_understood() {
    let house = House::sqlite().await;
    let bearer = format!("Bearer {}", house.admin_token);
    let auth = ("authorization", bearer.as_str());
    let json_type = ("content-type", "application/json");
    let path = at("/projects");
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    type Headers<'a> = Vec<(&'a str, &'a str)>;
    let cases: Vec<(Headers<'_>, Vec<u8>, u16, &str)> = vec![
        (vec![auth, json_type], b"{".to_vec(), 400, "invalid_json"),
        (vec![auth, json_type], br#"{"key":"a","key":"b"}"#.to_vec(), 400, "invalid_json"),
        (vec![auth, json_type], b"\xff\xfe".to_vec(), 400, "invalid_json"),
        (vec![auth, json_type], deep.into_bytes(), 400, "invalid_json"),
        (vec![auth, json_type], vec![b' '; super::MAX_BODY + 1], 413, "body_too_large"),
        (vec![auth, ("content-type", "text/plain")], b"{}".to_vec(), 415, "unsupported_media_type"),
        (vec![auth, json_type, ("accept", "text/html")], b"{}".to_vec(), 406, "not_acceptable"),
        (vec![auth, json_type, ("idempotency-key", "")], b"{}".to_vec(), 400, "invalid_header"),
        (vec![json_type], b"{}".to_vec(), 401, "unauthenticated"),
        (vec![("authorization", "Basic eDp5"), json_type], b"{}".to_vec(), 401, "unauthenticated"),
        (vec![("authorization", "Bearer "), json_type], b"{}".to_vec(), 401, "unauthenticated"),
        (vec![auth, auth, json_type], b"{}".to_vec(), 401, "unauthenticated"),
    ];
    for (headers, body, status, code) in cases {
        let answer = house.call_raw("POST", &path, &headers, body).await;
        assert_eq!((answer.status.as_u16(), answer.at("/code").as_str()), (status, code), "{headers:?}");
    }
    let wrong = house.call_as(&house.api_key, "GET", &path, None).await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED, "a caller's key opens nothing here");
    house.close().await;
}

#[tokio::test]
async fn every_noun_is_made_read_replaced_changed_and_removed() {
    for house in House::each().await {
        let provider = house.made(&at("/providers"), json!({ "vendor": "openai", "slug": "oa" })).await;
        let nouns = [
            ("/projects", json!({ "key": "chat" }), json!({ "display_name": "Chat" })),
            ("/providers", json!({ "vendor": "groq" }), json!({ "timeouts": { "idle_ms": 5 } })),
            (
                "/credentials",
                json!({ "provider_id": provider, "name": "a", "secret": "sk-1" }),
                json!({ "name": "b", "weight": 3 }),
            ),
            (
                "/models",
                json!({ "provider_id": provider, "name": "mine", "private": true, "type": "chat" }),
                json!({ "prices": [{ "input": "0.15", "output": "0.6" }] }),
            ),
            (
                "/aliases",
                json!({ "name": "fast", "targets": ["sandbox/echo"] }),
                json!({ "targets": ["sandbox/tools", "sandbox/echo"] }),
            ),
            ("/api-keys", json!({ "name": "app" }), json!({ "models": ["sandbox/*"], "expires_at_ms": 5 })),
        ];
        for (path, body, patch) in nouns {
            let made = house.call("POST", &at(path), Some(body.clone())).await;
            assert_eq!(made.status, StatusCode::CREATED, "{path}: {}", made.text);
            let item = at(&format!("{path}/{}", made.at("/id")));
            assert_eq!(made.header("location"), item.replace("default", &house.call("GET", W, None).await.at("/id")));
            assert_eq!(made.header("etag"), format!("\"{}\"", made.at("/revision")));
            let read = house.call("GET", &item, None).await;
            let unchanged = house.call_more("GET", &item, &[("if-none-match", read.header("etag"))], None).await;
            assert_eq!((unchanged.status, unchanged.text.as_str()), (StatusCode::NOT_MODIFIED, ""));
            // What was read can be sent back as it is.
            let replaced = house.call("PUT", &item, Some(read.json())).await;
            assert_eq!(replaced.status, StatusCode::OK, "{path}: {}", replaced.text);
            let mut expected = read.json();
            for volatile in ["revision", "updated_at", "change_id"] {
                expected[volatile] = replaced.json()[volatile].clone();
            }
            let status = expected.as_object_mut().and_then(|fields| fields.remove("status"));
            assert_eq!(status, Some(json!({ "state": "pending" })), "nothing compiles here");
            assert_eq!(replaced.json(), expected, "{path}");
            let stale =
                house.call_more("PATCH", &item, &[("if-match", read.header("etag"))], Some(patch.clone())).await;
            assert_eq!(stale.at("/code"), "revision_mismatch");
            let changed =
                house.call_more("PATCH", &item, &[("if-match", replaced.header("etag"))], Some(patch.clone())).await;
            assert_eq!(changed.status, StatusCode::OK, "{path}: {}", changed.text);
            for (field, value) in patch.as_object().expect("an object") {
                assert_eq!(&changed.json()[field], value, "{path}");
            }
            let removed = house.call("DELETE", &item, None).await;
            assert_eq!(removed.status, StatusCode::OK, "{path}: {}", removed.text);
            assert_eq!(house.call("GET", &item, None).await.status, StatusCode::NOT_FOUND);
            assert_eq!(house.call("DELETE", &item, None).await.status, StatusCode::NOT_FOUND);
        }
        house.close().await;
    }
}

#[tokio::test]
async fn what_is_in_use_stays() {
    let house = House::sqlite().await;
    let provider = house.made(&at("/providers"), json!({ "vendor": "openai" })).await;
    let credential =
        house.made(&at("/credentials"), json!({ "provider_id": provider, "name": "a", "secret": "sk-1" })).await;
    let model = json!({ "provider_id": provider, "name": "mine", "private": true, "type": "chat" });
    let model = house.made(&at("/models"), model).await;
    let alias = house.made(&at("/aliases"), json!({ "name": "x", "targets": ["openai/mine"] })).await;
    let project = house.made(&at("/projects"), json!({ "key": "p" })).await;
    let key = house.made(&at("/api-keys"), json!({ "name": "k", "project_id": project })).await;
    let steps = [("/providers", &provider, &credential), ("/models", &model, &alias), ("/projects", &project, &key)];
    for (path, id, user) in steps {
        let refused = house.call("DELETE", &at(&format!("{path}/{id}")), None).await;
        assert_eq!(refused.at("/code"), "in_use");
        assert!(refused.at("/detail").contains(user.as_str()), "{}", refused.text);
    }
    for (path, id) in [
        ("/aliases", alias),
        ("/models", model),
        ("/credentials", credential),
        ("/providers", provider),
        ("/api-keys", key),
        ("/projects", project),
    ] {
        let removed = house.call("DELETE", &at(&format!("{path}/{id}")), None).await;
        assert_eq!(removed.status, StatusCode::OK, "{path}: {}", removed.text);
    }
    house.close().await;
}

#[tokio::test]
async fn pages_follow_each_other_and_cursors_are_bound_to_their_list() {
    for house in House::each().await {
        for number in 0..5 {
            house.made(&at("/projects"), json!({ "key": format!("p{number}"), "disabled": number % 2 == 0 })).await;
        }
        let walk = |query: &'static str| {
            let house = &house;
            async move {
                let (mut keys, mut after) = (Vec::new(), String::new());
                loop {
                    let page = house.call("GET", &at(&format!("/projects?limit=2{query}{after}")), None).await.json();
                    let rows = page["data"].as_array().expect("rows").clone();
                    keys.extend(rows.iter().map(|row| row["key"].as_str().expect("a key").to_owned()));
                    match page["next"].as_str() {
                        Some(next) => after = format!("&after={next}"),
                        None => return keys,
                    }
                }
            }
        };
        assert_eq!(walk("").await, ["default", "p0", "p1", "p2", "p3", "p4"]);
        assert_eq!(walk("&disabled=true").await, ["p0", "p2", "p4"]);
        assert_eq!(walk("&disabled=false").await, ["default", "p1", "p3"]);
        assert_eq!(walk("&key=p3").await, ["p3"]);
        let next = house.call("GET", &at("/projects?limit=1"), None).await.at("/next");
        let tampered = format!("{}A", &next[..next.len() - 1]);
        for wrong in [
            format!("/projects?disabled=true&after={next}"),
            format!("/providers?after={next}"),
            format!("/projects?after={tampered}B"),
        ] {
            assert_eq!(house.call("GET", &at(&wrong), None).await.at("/code"), "invalid_cursor", "{wrong}");
        }
        house.close().await;
    }
}

#[tokio::test]
async fn the_same_key_has_one_effect_and_one_answer() {
    for house in House::each().await {
        let path = at("/api-keys");
        let send = |key: &'static str, name: &'static str| {
            let (house, path) = (&house, path.as_str());
            async move { house.call_more("POST", path, &[("idempotency-key", key)], Some(json!({ "name": name }))).await }
        };
        let (first, again) = (send("k1", "a").await, send("k1", "a").await);
        assert_eq!(first.status, StatusCode::CREATED, "{}", first.text);
        assert_eq!(
            (again.status, &again.text),
            (first.status, &first.text),
            "the secret is shown again, not made again"
        );
        assert_eq!(again.header("idempotency-replayed"), "true");
        for header in ["location", "etag", "x-pointsman-change"] {
            assert_eq!(first.header(header), again.header(header));
        }
        assert_eq!(send("k1", "b").await.at("/code"), "idempotency_key_reused");
        let listed = house.call("GET", &path, None).await.json();
        assert_eq!(listed["data"].as_array().map(Vec::len), Some(2), "the first start's and one more");
        assert!(!house.dump().await.contains(&first.at("/key")));

        // Refusals are answers too.
        let project = |key: &'static str| {
            let house = &house;
            async move {
                house
                    .call_more("POST", &at("/projects"), &[("idempotency-key", "p1")], Some(json!({ "key": key })))
                    .await
            }
        };
        let refused = project("default").await;
        let again = project("default").await;
        assert_eq!((again.at("/code"), again.at("/errors")), ("already_exists".into(), refused.at("/errors")));
        assert_eq!(again.header("idempotency-replayed"), "true");

        // A claim without an answer: in progress for a minute, then its process is taken to be gone.
        sqlx::query("UPDATE idempotency SET status = 0 WHERE key = 'k1'")
            .execute(house.app.db.pool())
            .await
            .expect("no fault");
        assert_eq!(send("k1", "a").await.at("/code"), "idempotency_in_progress");
        house.pass(61_000);
        assert_eq!(send("k1", "a").await.status, StatusCode::CREATED);
        // After a day the key is free.
        house.pass(25 * 3_600_000);
        assert_eq!(send("k1", "b").await.status, StatusCode::CREATED);
        house.close().await;
    }
}

#[tokio::test]
async fn a_key_used_at_once_by_many_has_one_effect() {
    for house in House::each().await {
        let path = at("/projects");
        let sends =
            (0..8).map(|_| house.call_more("POST", &path, &[("idempotency-key", "k")], Some(json!({ "key": "one" }))));
        let answers: Vec<Answer> = futures_util::future::join_all(sends).await;
        for answer in &answers {
            let in_progress = answer.status == StatusCode::CONFLICT && answer.at("/code") == "idempotency_in_progress";
            assert!(in_progress || answer.status == StatusCode::CREATED, "{}", answer.text);
        }
        let made: BTreeSet<String> =
            answers.iter().filter(|a| a.status == StatusCode::CREATED).map(|a| a.at("/id")).collect();
        assert_eq!(made.len(), 1);
        house.close().await;
    }
}

#[tokio::test]
async fn a_panic_is_an_answer() {
    async fn boom() -> StatusCode {
        panic!("canary")
    }
    let mut house = House::sqlite().await;
    let route = super::Route::get("/boom", Access::Fleet(Action::ReadFleet), boom);
    house.router = router_of(&house.app, vec![route]);
    let answer = house.call("GET", "/boom", None).await;
    assert_eq!((answer.status, answer.at("/code")), (StatusCode::INTERNAL_SERVER_ERROR, "internal".into()));
    assert!(!answer.text.contains("canary") && answer.header("x-request-id").starts_with("req_"));
    house.close().await;
}

#[tokio::test]
async fn public_pages_answer_without_a_token() {
    let house = House::sqlite().await;
    for (path, kind) in [
        ("/api/v1/openapi.json", "application/json"),
        ("/api/v1/docs", "text/html; charset=utf-8"),
        ("/metrics", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("/healthz", "application/json"),
    ] {
        let answer = house.call_with("GET", path, &[], None).await;
        assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, kind), "{path}");
        assert!(!answer.header("x-request-id").is_empty());
    }
    let metrics = house.call_with("GET", "/metrics", &[("accept", "text/plain")], None).await;
    assert!(
        metrics.text.contains("pointsman_rest_requests_total{method=\"GET\",route=\"/healthz\",status=\"200\"} 1"),
        "{}",
        metrics.text
    );
    let page = house.call_with("GET", "/api/v1/docs", &[], None).await.text;
    assert!(
        page.contains("/api/v1/workspaces/{workspace}/api-keys")
            && !page.contains("<script")
            && !page.contains("http://")
    );
    house.close().await;
}

#[test]
fn the_document_covers_the_routes_and_every_reference_leads_somewhere() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                    found.insert(reference.to_owned());
                }
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let routes = routes();
    let document = document(&routes);
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = BTreeSet::new();
    for route in &routes {
        let operation = &document["paths"][route.path][route.method.as_str().to_ascii_lowercase()];
        assert!(ids.insert(operation["operationId"].to_string()), "{} twice", operation["operationId"]);
        let named = operation["summary"].as_str().is_some_and(|s| !s.is_empty());
        assert!(named && operation["tags"][0] != "", "{} {} is not described", route.method, route.path);
        let answers = operation["responses"].as_object().expect("answers");
        assert!(answers.keys().any(|status| status.starts_with('2')), "{} {}", route.method, route.path);
        assert_eq!(route.path.contains("{workspace}"), matches!(route.access, Access::Workspace(_)), "{}", route.path);
    }
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
    assert_eq!(
        Code::ALL.len(),
        document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"].as_array().map_or(0, Vec::len)
    );
}
