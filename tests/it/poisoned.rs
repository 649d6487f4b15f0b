//! A bad object forced into the database: it is set aside and named, its last good version serves,
//! and everyone else converges, in its workspace and in others.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tests::house::{Builder, House};
use tests::http::Http;
use tests::wait;

const SEEN: Duration = Duration::from_secs(20);

/// The database of the control plane: the one SQLite file in its folder.
fn database(folder: &Path) -> PathBuf {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a data folder").flatten() {
        let path = entry.path();
        let head = std::fs::read(&path).unwrap_or_default();
        if head.starts_with(b"SQLite format 3\0") {
            found.push(path);
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Writes a document past every check, as a restored backup or a hand in the database would.
async fn poison(house: &House, id: &str, doc: &str) {
    let file = SqliteConnectOptions::new().filename(database(&house.control.data_dir));
    let pool = SqlitePool::connect_with(file).await.expect("the database opens");
    let mut transaction = pool.begin().await.expect("a transaction");
    let scope: String = sqlx::query_scalar("SELECT scope FROM objects WHERE id = $1")
        .bind(id)
        .fetch_one(&mut *transaction)
        .await
        .expect("the object");
    sqlx::query("UPDATE scopes SET revision = revision + 1 WHERE scope = $1")
        .bind(&scope)
        .execute(&mut *transaction)
        .await
        .expect("written");
    let changed = sqlx::query(
        "UPDATE objects SET doc = $1, revision = (SELECT revision FROM scopes WHERE scopes.scope = $2) WHERE id = $3",
    );
    let changed = changed.bind(doc).bind(&scope).bind(id).execute(&mut *transaction).await.expect("written");
    assert_eq!(changed.rows_affected(), 1);
    transaction.commit().await.expect("committed");
    pool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_object_is_set_aside() {
    let mut house = Builder::apart(2).start().await.expect("a house");
    house.connect(&["chat", "second"]).await.expect("connected");
    let alias = house.create("aliases", json!({"name": "fine", "targets": ["scripted/chat"]})).await.expect("made");
    house.serves("fine").await.expect("served");
    let other = json!({"key": "neighbour", "display_name": "Neighbour"});
    house.admin.post("/workspaces", &other).await.expect("an answer").good().expect("made");
    let key = house.admin.post("/workspaces/neighbour/api-keys", &json!({"name": "k"})).await.expect("an answer");
    let key = key.good().expect("made").json()["key"].as_str().expect("a key").to_owned();

    let id = alias["id"].as_str().expect("an id").to_owned();
    for (number, doc) in ["{not json", "{}", "{\"name\":\"fine\",\"targets\":[]}", "[]", "null"].into_iter().enumerate()
    {
        poison(&house, &id, doc).await;
        // A good change behind the bad one arrives all the same.
        let later = format!("later-{number}");
        house.create("aliases", json!({"name": later, "targets": ["scripted/second"]})).await.expect("made");
        house.serves(&later).await.expect("the workspace converges");
        house.serves("fine").await.expect("the last good version serves");
        // It is named where an operator looks.
        wait::until(SEEN, &format!("{doc:?} is reported"), async || {
            let status = house.admin.get("/workspaces/default/status").await.ok()?.json();
            let named = status["quarantined"].as_array()?.iter().any(|q| q.to_string().contains(&id));
            named.then_some(())
        })
        .await
        .expect("reported");
    }
    // The neighbour noticed nothing.
    let node = house.nodes[0].data_url();
    let neighbour = Http::new(&node).header("authorization", &format!("Bearer {key}"));
    assert_eq!(neighbour.get("/v1/models").await.expect("an answer").status, 200);

    // Put right over REST, it is in force again.
    let body = json!({"name": "fine", "targets": ["scripted/second"]});
    let path = format!("/workspaces/default/aliases/{id}");
    let put = house.admin.send(http::Method::PUT, &path, body.to_string().into(), &[]).await.expect("an answer");
    put.good().expect("replaced");
    let caller = house.caller();
    let ask = json!({"model": "fine", "messages": [{"role": "user", "content": "x"}]});
    wait::until(SEEN, "the repaired alias serves", async || {
        let answer = caller.post("/v1/chat/completions", &ask).await.ok()?;
        (answer.json()["model"] == json!("second")).then_some(())
    })
    .await
    .expect("serves");
}
