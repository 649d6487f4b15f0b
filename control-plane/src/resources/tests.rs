//! The store suite: what a write leaves behind, on both engines.

use serde_json::{Value, json};

use super::audit::verify;
use super::store::{Actor, Naming, Scope, Writing};
use crate::auth::Tenant;
use crate::db::Engine;
use crate::error::Code;
use crate::rest::{Claim, Reply};
use crate::testing::House;

const PROJECTS: &str = "/api/v1/workspaces/default/projects";
const KEYS: &str = "/api/v1/workspaces/default/api-keys";

async fn default_scope(house: &House) -> Scope {
    let id = house.call("GET", "/api/v1/workspaces/default", None).await.at("/id");
    Scope::of(&Tenant::of_system(id.parse().expect("a workspace id")))
}

async fn count(house: &House, statement: &'static str, scope: &Scope) -> i64 {
    let (count,): (i64,) =
        sqlx::query_as(statement).bind(scope.as_str()).fetch_one(house.app.db.pool()).await.expect("a count");
    count
}

#[tokio::test]
async fn a_first_start_leaves_enough_for_a_first_request_and_happens_once() {
    for house in House::each().await {
        let providers = house.call("GET", "/api/v1/workspaces/default/providers", None).await;
        assert_eq!(providers.at("/data/0/slug"), "sandbox");
        let catalog = shared::catalog::builtin().expect("valid");
        let again = super::seed::first_start(&house.app, &catalog).await.expect("no fault");
        assert!(again.is_none());
        assert!(!super::seed::catalogue(&house.app, &catalog).await.expect("no fault"), "nothing is newer");
        assert_eq!(super::seed::lineage(&house.app.db).await.ok(), Some(house.app.lineage));
        house.close().await;
    }
}

#[tokio::test]
async fn keys_in_the_environment_are_connected() {
    let lookup = |name: &str| match name {
        "OPENAI_API_KEY" => Some("sk-canary-0123456789".to_owned()),
        "MISTRAL_API_KEY" => Some("has a space".to_owned()),
        _ => None,
    };
    for house in House::each_with(crate::Environment::new(lookup)).await {
        let list = house.call("GET", "/api/v1/workspaces/default/credentials", None).await;
        assert_eq!(list.json()["data"].as_array().map(Vec::len), Some(1), "{}", list.text);
        assert_eq!((list.at("/data/0/name"), list.at("/data/0/secret_hint")), ("OPENAI_API_KEY".into(), "6789".into()));
        house.close().await;
    }
}

#[tokio::test]
async fn a_newer_catalogue_adds_changes_and_removes() {
    for house in House::each().await {
        let mut catalog = shared::catalog::builtin().expect("valid");
        catalog.version += 1;
        let gone = catalog.offerings.remove(0);
        catalog.vendors[0].vendor.display_name = "Renamed".into();
        assert!(super::seed::catalogue(&house.app, &catalog).await.expect("no fault"));
        let slug = catalog.vendors[0].vendor.slug.clone();
        let vendors = house.call("GET", "/api/v1/catalog/vendors?limit=200", None).await.json();
        let vendor = vendors["data"].as_array().and_then(|all| all.iter().find(|v| v["slug"] == json!(slug))).cloned();
        let vendor = vendor.expect("still there");
        assert_eq!(vendor["display_name"], "Renamed");
        let time = |field: &str| vendor[field].as_str().expect("a time").to_owned();
        assert!(time("created_at").as_str() > "2020" && time("created_at") < time("updated_at"), "{vendor}");
        let models = house.call("GET", &format!("/api/v1/catalog/models?vendor={}", gone.vendor), None).await;
        assert!(!models.text.contains(&format!("\"{}/{}\"", gone.vendor, gone.model)));
        // One revision for all of it, of which only what changed is part.
        let scope = Scope::shared();
        assert_eq!(count(&house, "SELECT MAX(revision) FROM objects WHERE scope = $1", &scope).await, 2);
        assert_eq!(count(&house, "SELECT COUNT(*) FROM objects WHERE scope = $1 AND revision = 2", &scope).await, 2);
        house.close().await;
    }
}

#[tokio::test]
async fn one_write_one_revision_one_line_of_each() {
    for house in House::each().await {
        let scope = default_scope(&house).await;
        let before = count(&house, "SELECT revision FROM scopes WHERE scope = $1", &scope).await;
        let id = house.made(PROJECTS, json!({ "key": "one" })).await;
        let path = format!("{PROJECTS}/{id}");
        let changed = house.call("PATCH", &path, Some(json!({ "display_name": "One" }))).await;
        assert_eq!(changed.header("x-pointsman-change"), changed.at("/change_id"));
        house.call("DELETE", &path, None).await;
        for statement in [
            "SELECT revision FROM scopes WHERE scope = $1",
            "SELECT COUNT(*) FROM audit WHERE scope = $1",
            "SELECT COUNT(*) FROM outbox WHERE scope = $1",
            "SELECT COUNT(*) FROM object_history WHERE scope = $1",
        ] {
            assert_eq!(count(&house, statement, &scope).await, before + 3, "{statement}");
        }
        let audit = house.call("GET", "/api/v1/workspaces/default/audit?limit=3", None).await;
        let actions: Vec<_> = (0..3).map(|at| audit.at(&format!("/data/{at}/action"))).collect();
        assert_eq!(actions, ["delete", "update", "create"]);
        assert_eq!(audit.at("/data/1/after/display_name"), "One");
        assert_eq!(audit.at("/data/0/after"), "null");
        // The key is free again, and the mark of the old object stays.
        house.made(PROJECTS, json!({ "key": "one" })).await;
        let marks = count(&house, "SELECT COUNT(*) FROM objects WHERE scope = $1 AND deleted = 1", &scope).await;
        assert_eq!(marks, 1);
        house.close().await;
    }
}

#[tokio::test]
async fn a_refused_write_leaves_nothing() {
    for house in House::each().await {
        let before = house.dump().await;
        let cases = [
            ("POST", PROJECTS, json!({ "key": "default" }), 409),
            ("POST", PROJECTS, json!({ "key": "Bad" }), 422),
            ("POST", "/api/v1/workspaces", json!({ "key": "default" }), 409),
            (
                "POST",
                "/api/v1/workspaces/default/credentials",
                json!({ "provider_id": "prv_00000000000000000000000000000000", "name": "x", "secret": "canary-secret-1" }),
                422,
            ),
            ("DELETE", "/api/v1/workspaces/default/projects/default", Value::Null, 409),
        ];
        for (method, path, body, status) in cases {
            let answer = house.call(method, path, (!body.is_null()).then_some(body)).await;
            assert_eq!(answer.status, status, "{path}: {}", answer.text);
        }
        assert_eq!(house.dump().await, before);
        house.close().await;
    }
}

#[tokio::test]
async fn the_audit_shows_no_hash_of_a_key_and_still_covers_it() {
    for house in House::each().await {
        let keys = "/api/v1/workspaces/default/api-keys";
        let id = house.made(keys, json!({ "name": "one" })).await;
        house.call("PATCH", &format!("{keys}/{id}"), Some(json!({ "name": "two" }))).await;
        house.call("DELETE", &format!("{keys}/{id}"), None).await;
        let audit = house.call("GET", "/api/v1/workspaces/default/audit?limit=200", None).await;
        assert_eq!(audit.at("/data/1/after/name"), "two", "{}", audit.text);
        let (hash,): (String,) = sqlx::query_as("SELECT doc FROM objects WHERE id = $1")
            .bind(&id)
            .fetch_one(house.app.db.pool())
            .await
            .expect("the removed key's row stays");
        let stored: Value = serde_json::from_str(&hash).expect("a document");
        let hash = stored["hash"].as_str().expect("keys are kept as hashes");
        assert!(!audit.text.contains(hash));
        for line in audit.json()["data"].as_array().expect("lines") {
            for side in ["before", "after"] {
                assert!(line[side].get("hash").is_none(), "{line}");
            }
        }
        let verdict = house.call("GET", "/api/v1/workspaces/default/audit/verification", None).await;
        assert_eq!(verdict.at("/intact"), "true", "{}", verdict.text);
        house.close().await;
    }
}

/// T20.
#[tokio::test]
async fn a_changed_line_breaks_the_audit() {
    for house in House::each().await {
        let scope = default_scope(&house).await;
        house.made(PROJECTS, json!({ "key": "one" })).await;
        let verdict = verify(&house.app, &scope).await.expect("no fault");
        assert_eq!(verdict.broken_at, None);
        assert!(verdict.lines >= 5);
        let pool = house.app.db.pool();
        let refused =
            sqlx::query("UPDATE audit SET actor = 'mallory' WHERE scope = $1").bind(scope.as_str()).execute(pool).await;
        assert!(refused.is_err(), "the audit is append-only");
        let lift = match house.engine() {
            Engine::Sqlite => "DROP TRIGGER audit_no_update",
            Engine::Postgres => "DROP TRIGGER audit_append_only ON audit",
        };
        sqlx::query(lift).execute(pool).await.expect("an attacker with full access");
        sqlx::query("UPDATE audit SET actor = 'mallory' WHERE scope = $1 AND revision = 3")
            .bind(scope.as_str())
            .execute(pool)
            .await
            .expect("an attacker with full access");
        let answer = house.call("GET", "/api/v1/workspaces/default/audit/verification", None).await;
        assert_eq!((answer.at("/intact"), answer.at("/broken_at")), ("false".into(), "3".into()));
        house.close().await;
    }
}

#[tokio::test]
async fn concurrent_writers_each_get_a_revision_of_their_own() {
    const WRITERS: usize = 12;
    for house in House::each().await {
        let scope = default_scope(&house).await;
        let before = count(&house, "SELECT revision FROM scopes WHERE scope = $1", &scope).await;
        let writes = (0..WRITERS).map(|at| {
            let (app, scope) = (house.app.clone(), scope.clone());
            runtime::task::spawn("writer", async move {
                let mut writing = Writing::begin(&app, scope, Actor::system()).await?;
                // Every third wants the same name.
                let name = if at % 3 == 0 { "same".to_owned() } else { format!("p{at}") };
                let naming = Naming { parent: "", name: &name, field: "key" };
                let made = writing.create("project", &format!("prj_{at}"), naming, &json!({ "key": name })).await?;
                writing.commit(&Claim::default(), &Reply::empty(http::StatusCode::OK)).await?;
                Ok::<i64, crate::error::ApiError>(made.object.revision)
            })
        });
        let writes: Vec<_> = writes.collect();
        let (mut revisions, mut taken) = (Vec::new(), 0);
        for write in writes {
            match write.await.expect("no panic") {
                Ok(revision) => revisions.push(revision),
                Err(e) => {
                    assert_eq!(e.code, Code::AlreadyExists, "{e}");
                    taken += 1;
                }
            }
        }
        revisions.sort_unstable();
        let expected: Vec<i64> = (before + 1..).take(WRITERS - 3).collect();
        assert_eq!((revisions, taken), (expected, 3));
        assert_eq!(verify(&house.app, &scope).await.expect("no fault").broken_at, None);
        house.close().await;
    }
}

#[tokio::test]
async fn a_commit_wakes_whoever_waits() {
    let house = House::sqlite().await;
    let mut changed = house.app.changed.subscribe();
    changed.mark_unchanged();
    house.made(PROJECTS, json!({ "key": "one" })).await;
    assert!(changed.has_changed().expect("the sender lives"));
    house.close().await;
}

/// T2, T4: planted secrets are nowhere but sealed, and a copied seal does not open.
#[tokio::test]
async fn secrets_are_only_sealed_in_the_database() {
    for house in House::each().await {
        let provider = house.made("/api/v1/workspaces/default/providers", json!({ "vendor": "openai" })).await;
        let path = "/api/v1/workspaces/default/credentials";
        let body = json!({ "provider_id": provider, "name": "main", "secret": "sk-canary-first-1234" });
        let made = house.call_more("POST", path, &[("idempotency-key", "c1")], Some(body)).await;
        let id = made.at("/id");
        let put = json!({ "provider_id": provider, "name": "main", "secret": "sk-canary-second-5678" });
        let replaced = house.call("PUT", &format!("{path}/{id}"), Some(put)).await;
        assert_eq!((replaced.at("/secret_version"), replaced.at("/secret_hint")), ("2".into(), "5678".into()));
        let key = house.call_more("POST", KEYS, &[("idempotency-key", "k1")], Some(json!({ "name": "k" }))).await;
        let shown = key.at("/key");
        let refused = json!({ "provider_id": provider, "name": "bad", "secret": "canary with space" });
        let refused = house.call("POST", path, Some(refused)).await;
        assert_eq!(refused.at("/errors/0/path"), "secret");
        let read = house.call("GET", &format!("{path}/{id}"), None).await;
        let listed = house.call("GET", KEYS, None).await;
        let dump = house.dump().await;
        for text in [&dump, &read.text, &replaced.text, &made.text, &listed.text, &refused.text] {
            assert!(!text.contains("canary"), "{text}");
        }
        for secret in [&shown, &house.api_key, &house.admin_token] {
            assert!(!dump.contains(secret.as_str()) && !listed.text.contains(secret.as_str()));
        }
        assert!(!listed.text.contains("\"hash\""));
        let sealed: Vec<(String, i64, String)> =
            sqlx::query_as("SELECT sealed, version, scope FROM secrets WHERE id = $1 ORDER BY version")
                .bind(&id)
                .fetch_all(house.app.db.pool())
                .await
                .expect("rows");
        let open = |at: usize, version: i64, scope: &str| {
            let place = crate::vault::Place { scope, id: &id, version };
            house.app.vault.open(&place, &sealed[at].0).ok().and_then(|s| s.expose_str().map(str::to_owned))
        };
        assert_eq!(open(1, 2, &sealed[1].2).as_deref(), Some("sk-canary-second-5678"));
        assert_eq!((open(1, 1, &sealed[1].2), open(0, 1, "ws_other")), (None, None));
        house.call("DELETE", &format!("{path}/{id}"), None).await;
        let left: (i64,) = sqlx::query_as("SELECT COUNT(*) FROM secrets WHERE id = $1")
            .bind(&id)
            .fetch_one(house.app.db.pool())
            .await
            .expect("a count");
        assert_eq!(left.0, 0, "the sealed secret goes with its object");
        house.close().await;
    }
}
