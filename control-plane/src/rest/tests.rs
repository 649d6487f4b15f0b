//! The management interface as callers meet it: requests and what they must get, as data.

use std::collections::BTreeSet;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Access, document, router_of, routes};
use crate::auth::permit::{Action, Role, permits};
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
    let cases: Vec<(Vec<(&str, &str)>, Vec<u8>, u16, &str)> = vec![
        (vec![auth, json_type], b"{".to_vec(), 400, "invalid_json"),
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

/// A workspace with one object of every kind, and a token of each role for it.
struct Tenancy {
    workspace: String,
    ids: Vec<(&'static str, String)>,
    admin: String,
    viewer: String,
}

async fn tenancy(house: &House, key: &str) -> Tenancy {
    let workspace = house.made("/api/v1/workspaces", json!({ "key": key })).await;
    let path = |noun: &str| format!("/api/v1/workspaces/{key}/{noun}");
    let provider = house.made(&path("providers"), json!({ "vendor": "sandbox" })).await;
    let ids = vec![
        ("projects", house.made(&path("projects"), json!({ "key": "p" })).await),
        ("credentials", house.made(&path("credentials"), json!({ "provider_id": provider, "name": "a" })).await),
        (
            "models",
            house
                .made(&path("models"), json!({ "provider_id": provider, "name": "m", "private": true, "type": "chat" }))
                .await,
        ),
        ("aliases", house.made(&path("aliases"), json!({ "name": "a", "targets": ["sandbox/echo"] })).await),
        ("api-keys", house.made(&path("api-keys"), json!({ "name": "k" })).await),
        ("providers", provider),
    ];
    let token = |role: &'static str| async move {
        let body = json!({ "name": role, "role": role, "workspace": key });
        house.call("POST", "/api/v1/admin-tokens", Some(body)).await.at("/token")
    };
    let (admin, viewer) = (token("workspace_admin").await, token("workspace_viewer").await);
    Tenancy { workspace, ids, admin, viewer }
}

/// The answer without what differs between any two requests.
fn essence(answer: &Answer) -> (StatusCode, Value) {
    let mut json: Value = serde_json::from_str(&answer.text).unwrap_or_default();
    if let Some(fields) = json.as_object_mut() {
        fields.remove("request_id");
    }
    (answer.status, json)
}

/// T1: with A's token every workspace route answers for B's workspace, and for B's objects under A's
/// workspace, exactly as for what does not exist.
#[tokio::test]
async fn other_tenants_things_look_like_missing_ones() {
    for house in House::each().await {
        let (a, b) = (tenancy(&house, "aaa").await, tenancy(&house, "bbb").await);
        let before = house.dump().await;
        let missing_id = "zzz_00000000000000000000000000000000";
        let mut tried = 0;
        for route in routes().iter().filter(|r| matches!(r.access, Access::Workspace(_))) {
            let method = route.method.as_str();
            let body = (method != "GET" && method != "DELETE").then(|| json!({}));
            let noun = route.path.split('/').nth(5).unwrap_or_default();
            let fill = |workspace: &str, id: &str| {
                let path = route.path.replace("{workspace}", workspace);
                let (mut filled, mut rest) = (String::new(), path.as_str());
                while let Some((head, tail)) = rest.split_once('{') {
                    let (_, after) = tail.split_once('}').expect("a closed placeholder");
                    filled = format!("{filled}{head}{id}");
                    rest = after;
                }
                filled + rest
            };
            let theirs = b.ids.iter().find(|(name, _)| *name == noun).map_or(missing_id, |(_, id)| id.as_str());
            let missing = house.call_as(&a.admin, method, &fill("missing", missing_id), body.clone()).await;
            assert_eq!(missing.status, StatusCode::NOT_FOUND, "{method} {}", route.path);
            for workspace in [b.workspace.as_str(), "bbb"] {
                let other = house.call_as(&a.admin, method, &fill(workspace, theirs), body.clone()).await;
                assert_eq!(essence(&other), essence(&missing), "{method} {}", route.path);
                tried += 1;
            }
            if route.path.contains("{id}") && theirs != missing_id {
                let own_missing = house.call_as(&a.admin, method, &fill("aaa", missing_id), body.clone()).await;
                let smuggled = house.call_as(&a.admin, method, &fill("aaa", theirs), body.clone()).await;
                assert_eq!(smuggled.status, StatusCode::NOT_FOUND, "{method} {}", route.path);
                assert_eq!(essence(&smuggled), essence(&own_missing), "{method} {}", route.path);
                tried += 1;
            }
        }
        assert!(tried > 60, "{tried}");
        // Their ids inside a body are unknown references, like made-up ones.
        let id = |noun: &str| b.ids.iter().find(|(name, _)| *name == noun).map(|(_, id)| id.clone()).expect("made");
        let bodies = [
            ("credentials", json!({ "provider_id": id("providers"), "name": "x", "secret": "s" }), "provider_id"),
            (
                "models",
                json!({ "provider_id": id("providers"), "name": "x", "private": true, "type": "chat" }),
                "provider_id",
            ),
            ("api-keys", json!({ "name": "x", "project_id": id("projects") }), "project_id"),
        ];
        for (noun, body, field) in bodies {
            let refused = house.call_as(&a.admin, "POST", &format!("/api/v1/workspaces/aaa/{noun}"), Some(body)).await;
            assert_eq!(
                (refused.at("/errors/0/path"), refused.at("/errors/0/code")),
                (field.into(), "unknown_reference".into())
            );
        }
        // Lists across workspaces show one's own only.
        let list = house.call_as(&a.admin, "GET", "/api/v1/workspaces", None).await;
        assert!(list.text.contains(&a.workspace) && !list.text.contains(&b.workspace));
        assert_eq!(house.dump().await, before, "nothing was changed by trying");
        house.close().await;
    }
}

/// T10: every role on every route: refused exactly where the table says so. And T19: without a token
/// nothing but the public pages answers.
#[tokio::test]
async fn roles_may_what_the_table_says_on_every_route() {
    let house = House::sqlite().await;
    let t = tenancy(&house, "aaa").await;
    let tokens =
        [(Role::Operator, &house.admin_token), (Role::WorkspaceAdmin, &t.admin), (Role::WorkspaceViewer, &t.viewer)];
    for route in routes() {
        let path =
            route.path.replace("{workspace}", "aaa").replace("{id}", "missing").replace('{', "x").replace('}', "x");
        let action = match route.access {
            Access::Public => {
                assert!(!path.contains("workspaces"), "{path}");
                continue;
            }
            Access::Fleet(action) | Access::Workspace(action) => action,
        };
        let nobody = house.call_with(route.method.as_str(), &path, &[], None).await;
        assert_eq!(nobody.status, StatusCode::UNAUTHORIZED, "{} {path}", route.method);
        // Removing the workspace would pull the floor away.
        if route.method == Method::DELETE && path == "/api/v1/workspaces/aaa" {
            continue;
        }
        for (role, token) in tokens {
            // An unknown parameter: nobody gets further than the guard.
            let answer = house.call_as(token, route.method.as_str(), &format!("{path}?unknown=1"), None).await;
            let expected = if permits(role, action) { StatusCode::BAD_REQUEST } else { StatusCode::FORBIDDEN };
            assert_eq!(answer.status, expected, "{role:?} {} {path}: {}", route.method, answer.text);
        }
    }
    house.close().await;
}

#[tokio::test]
async fn tokens_expire_are_switched_off_and_grant_no_more_than_they_have() {
    for house in House::each().await {
        let t = tenancy(&house, "aaa").await;
        house.made("/api/v1/workspaces", json!({ "key": "bbb" })).await;
        let tokens = "/api/v1/admin-tokens";
        let cases = [
            (json!({ "name": "x", "role": "operator" }), 403, "forbidden"),
            (json!({ "name": "x", "role": "operator", "workspace": "aaa" }), 422, "invalid_document"),
            (json!({ "name": "x", "role": "workspace_admin", "workspace": "bbb" }), 422, "invalid_document"),
        ];
        for (body, status, code) in cases {
            let answer = house.call_as(&t.admin, "POST", tokens, Some(body.clone())).await;
            assert_eq!((answer.status.as_u16(), answer.at("/code").as_str()), (status, code), "{body}");
        }
        // Issue, then use: the token has its own workspace and nothing else.
        let soon = house.app.now_ms() + 60_000;
        let issued = house
            .call_as(
                &t.admin,
                "POST",
                tokens,
                Some(json!({ "name": "v", "role": "workspace_viewer", "expires_at_ms": soon })),
            )
            .await;
        assert_eq!((issued.status, issued.at("/workspace_id")), (StatusCode::CREATED, t.workspace.clone()));
        let (token, id) = (issued.at("/token"), issued.at("/id"));
        assert_eq!(house.call_as(&token, "GET", "/api/v1/workspaces/aaa/projects", None).await.status, StatusCode::OK);
        assert_eq!(
            house.call_as(&token, "GET", "/api/v1/workspaces/bbb/projects", None).await.status,
            StatusCode::NOT_FOUND
        );
        assert_eq!(house.call_as(&token, "GET", tokens, None).await.status, StatusCode::FORBIDDEN);
        house.pass(61_000);
        assert_eq!(
            house.call_as(&token, "GET", "/api/v1/workspaces/aaa/projects", None).await.status,
            StatusCode::UNAUTHORIZED
        );
        assert_eq!(house.call_as(&t.admin, "DELETE", &format!("{tokens}/{id}"), None).await.status, StatusCode::OK);
        // The first start's token is the last that can repair everything.
        let all = house.call("GET", &format!("{tokens}?limit=200"), None).await.json();
        let operator =
            all["data"].as_array().and_then(|rows| rows.iter().find(|r| r["role"] == "operator")).expect("one").clone();
        let path = format!("{tokens}/{}", operator["id"].as_str().expect("text"));
        for (method, body) in [
            ("DELETE", None),
            ("PATCH", Some(json!({ "disabled": true }))),
            ("PATCH", Some(json!({ "expires_at_ms": 5 }))),
        ] {
            assert_eq!(house.call(method, &path, body).await.at("/code"), "protected");
        }
        assert_eq!(house.call_as(&t.admin, "GET", &path, None).await.status, StatusCode::NOT_FOUND);
        let second =
            house.call("POST", tokens, Some(json!({ "name": "second", "role": "operator" }))).await.at("/token");
        assert_eq!(house.call("PATCH", &path, Some(json!({ "disabled": true }))).await.status, StatusCode::OK);
        assert_eq!(
            house.call("GET", tokens, None).await.status,
            StatusCode::UNAUTHORIZED,
            "from the very next request"
        );
        let dump = house.dump().await;
        assert!(!dump.contains(&second) && !dump.contains(&token));
        house.close().await;
    }
}

#[tokio::test]
async fn a_removed_workspace_is_gone_and_frees_its_key() {
    for house in House::each().await {
        let made = house.call("POST", "/api/v1/workspaces", Some(json!({ "key": "acme" }))).await;
        let path = "/api/v1/workspaces/acme";
        assert_eq!(house.call("GET", &format!("{path}/projects/default"), None).await.status, StatusCode::OK);
        assert_eq!(house.call("DELETE", path, None).await.status, StatusCode::OK);
        for gone in [path.to_owned(), format!("{path}/projects"), format!("/api/v1/workspaces/{}", made.at("/id"))] {
            assert_eq!(house.call("GET", &gone, None).await.status, StatusCode::NOT_FOUND);
        }
        let again = house.made("/api/v1/workspaces", json!({ "key": "acme" })).await;
        assert_ne!(again, made.at("/id"));
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
