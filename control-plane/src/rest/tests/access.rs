//! Who may do what, and who may know of what: other tenants' objects, roles on every route, and what
//! an admin token can and cannot do.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::auth::permit::{Role, permits};
use crate::rest::{Access, routes};
use crate::testing::{Answer, House};

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
        let path = route.path.replace("{workspace}", "aaa").replace("{id}", "missing").replace(['{', '}'], "x");
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
