//! The same house on its second database engine, in a database of its own.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Executor};
use tests::house::Builder;
use tests::require;
use tokio::task::LocalSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_house_on_postgresql() {
    let Some(url) = require::or_skip("PostgreSQL", require::postgres()) else { return };
    let server = PgPool::connect(&url).await.expect("PostgreSQL answers");
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
    let name = format!("pointsman_house_{}_{nanos}", std::process::id());
    // A name that we made of digits: identifiers cannot be bound.
    server.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.expect("a database");

    let (base, _) = url.rsplit_once('/').expect("a URL with a database");
    // A task of its own, so that its panic does not leave the database behind.
    let through = through_the_house(format!("{base}/{name}"));
    let outcome = LocalSet::new().run_until(async { tokio::task::spawn_local(through).await }).await;

    let dropped = server.execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await;
    outcome.expect("the house works on PostgreSQL");
    dropped.expect("the database is dropped");
}

async fn through_the_house(database_url: String) {
    let mut house = Builder::apart(1).control_args(&["--database-url", &database_url]).start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    for number in 0..20 {
        let body = crate::load::chat("scripted/chat", &format!("t{number}"));
        assert_eq!(house.caller().post("/v1/chat/completions", &body).await.expect("an answer").status, 200);
    }
    crate::usage_exact::ledger_equals_provider(&house, "chat").await;
    house.control.kill().expect("killed");
    house.control.start_again().expect("starts again");
    house.create("aliases", json!({"name": "after", "targets": ["scripted/chat"]})).await.expect("REST works");
    house.serves("after").await.expect("the node is current again");
}
