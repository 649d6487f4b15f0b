//! Several control planes over one PostgreSQL. They wake one another when something is committed, and
//! ask one another about the nodes that are connected elsewhere. All of it goes through the database,
//! so that no replica needs to reach another. On SQLite there is one process, and nothing to do.
//!
//! A question is a row that every other replica answers with a row of its own; notifications only make
//! it fast, and a look every [`SEEN_EVERY`] is the floor under them. Clocks of replicas are never
//! compared: times are the database's.

use std::time::Duration;

use runtime::clock::monotonic;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shared::ids::NodeId;
use shared::proto;
use shared::snapshot::limits;
use sqlx::postgres::PgListener;
use tokio::sync::Notify;

use super::api;
use super::outbox::unsigned;
use crate::app::App;
use crate::auth::token::hex;
use crate::db::Engine;

/// Commits of any replica; sent with each.
pub const CHANGES: &str = "pointsman_changes";
/// Questions and answers.
const FLEET: &str = "pointsman_fleet";

/// How often a replica says that it is there.
const SEEN_EVERY: Duration = Duration::from_secs(2);
/// A replica that was not seen for this long is gone, and its nodes with it.
const LOST_AFTER_MS: i64 = 10_000;
/// Rows of replicas and questions that nobody tidied up are deleted after this time.
const FORGET_AFTER_MS: i64 = 60_000;
/// How long a question waits for the answers of all.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A waiting question looks for answers at least this often.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Pause after the connection for notifications is lost.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// Milliseconds since 1970 by the clock of PostgreSQL.
const NOW: &str = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";

/// This process among its replicas.
#[derive(Debug)]
pub struct Replicas {
    id: String,
    asked: Notify,
    answered: Notify,
}

impl Default for Replicas {
    fn default() -> Self {
        Self { id: hex(&runtime::random::bytes::<16>()), asked: Notify::new(), answered: Notify::new() }
    }
}

/// What the other replicas are asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Those of these nodes that are connected there.
    Nodes(Vec<NodeId>),
    /// How far the nodes connected there are with a scope.
    Change {
        /// Workspace id, or "shared".
        scope: String,
        /// What they should serve.
        revision: u64,
    },
}

/// What the others said.
#[derive(Debug)]
pub struct Answers<T> {
    /// Of all that answered.
    pub found: Vec<T>,
    /// Replicas that are there and did not answer in time: what their nodes do is not known.
    pub silent: usize,
}

/// Starts listening, answering and being seen.
pub fn spawn(app: &App) {
    if app.db.engine() == Engine::Postgres {
        runtime::task::spawn("replica-listen", listen(app.clone()));
        runtime::task::spawn("replica-answer", answer_all(app.clone()));
    }
}

/// Asks every other replica, and waits for their answers.
///
/// # Errors
/// When the database fails.
pub async fn ask<T: DeserializeOwned>(app: &App, question: &Question) -> Result<Answers<T>, sqlx::Error> {
    let mut answers = Answers { found: Vec::new(), silent: 0 };
    let mut silent = match app.db.engine() {
        Engine::Sqlite => Vec::new(),
        Engine::Postgres => others(app).await?,
    };
    if silent.is_empty() {
        return Ok(answers);
    }
    let id = hex(&runtime::random::bytes::<16>());
    let insert = format!("INSERT INTO fleet_questions (id, asked_by, asked_ms, question) VALUES ($1, $2, {NOW}, $3)");
    sqlx::query(sqlx::AssertSqlSafe(insert))
        .bind(&id)
        .bind(&app.publish.replicas.id)
        // Ids and names only: it cannot fail.
        .bind(serde_json::to_string(question).unwrap_or_default())
        .execute(app.db.pool())
        .await?;
    let asked_at = monotonic();
    notify(app, "asked").await?;
    while !silent.is_empty() && monotonic().saturating_sub(asked_at) < ANSWER_WITHIN {
        let answered = app.publish.replicas.answered.notified();
        for (replica, answer) in answers_to(app, &id).await? {
            let Some(at) = silent.iter().position(|waiting| *waiting == replica) else { continue };
            silent.swap_remove(at);
            match serde_json::from_str::<Vec<T>>(&answer) {
                Ok(found) => answers.found.extend(found),
                // Another version that says it in other words: as good as silent.
                Err(error) => {
                    tracing::warn!(replica, %error, "another replica's answer cannot be read");
                    answers.silent += 1;
                }
            }
        }
        if !silent.is_empty() {
            _ = tokio::time::timeout(LOOK_AGAIN, answered).await;
        }
    }
    answers.silent += silent.len();
    sqlx::query("DELETE FROM fleet_questions WHERE id = $1").bind(&id).execute(app.db.pool()).await?;
    Ok(answers)
}

async fn answers_to(app: &App, question: &str) -> Result<Vec<(String, String)>, sqlx::Error> {
    sqlx::query_as("SELECT replica_id, answer FROM fleet_answers WHERE question_id = $1")
        .bind(question)
        .fetch_all(app.db.pool())
        .await
}

/// Replicas that were seen lately, without this one.
async fn others(app: &App) -> Result<Vec<String>, sqlx::Error> {
    let text = format!("SELECT id FROM replicas WHERE id <> $1 AND seen_ms > {NOW} - $2");
    let rows: Vec<(String,)> = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(&app.publish.replicas.id)
        .bind(LOST_AFTER_MS)
        .fetch_all(app.db.pool())
        .await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

/// Hears of what other replicas commit and ask, for as long as the process runs.
async fn listen(app: App) {
    let url = app.config.database_url.clone().unwrap_or_default();
    loop {
        let lost = tokio::select! {
            lost = hear(&app, &url) => lost,
            () = app.shutdown.asked() => return,
        };
        if let Err(error) = lost {
            tracing::warn!(%error, "other replicas are heard of late: no notifications from the database");
        }
        // What was committed meanwhile was not heard of.
        app.wake();
        tokio::select! {
            () = tokio::time::sleep(LISTEN_AGAIN) => {}
            () = app.shutdown.asked() => return,
        }
    }
}

async fn hear(app: &App, url: &str) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect(url).await?;
    listener.listen_all([CHANGES, FLEET]).await?;
    app.wake();
    let replicas = &app.publish.replicas;
    while let Some(heard) = listener.try_recv().await? {
        match (heard.channel(), heard.payload()) {
            (CHANGES, _) => app.wake(),
            (_, "asked") => replicas.asked.notify_one(),
            (_, _) => replicas.answered.notify_waiters(),
        }
    }
    Ok(())
}

/// Answers what others ask, and says that this replica is there.
async fn answer_all(app: App) {
    let mut seen_at = None;
    loop {
        let due = seen_at.is_none_or(|at| monotonic().saturating_sub(at) >= SEEN_EVERY);
        if due {
            seen_at = Some(monotonic());
        }
        let done = async {
            if due {
                seen(&app).await?;
            }
            answer(&app).await
        };
        if let Err(error) = done.await {
            tracing::error!(%error, "other replicas are not told of the nodes connected here");
        }
        tokio::select! {
            () = app.publish.replicas.asked.notified() => {}
            () = tokio::time::sleep(SEEN_EVERY) => {}
            () = app.shutdown.asked() => break,
        }
    }
    // At once rather than after a while: nobody need wait for our answers any more.
    let gone = sqlx::query("DELETE FROM replicas WHERE id = $1").bind(&app.publish.replicas.id).execute(app.db.pool());
    if let Err(error) = gone.await {
        tracing::debug!(%error, "this replica stays listed for a while");
    }
}

/// Says that this replica is there and what its nodes take, learns what those of others take, and
/// tidies up.
async fn seen(app: &App) -> Result<(), sqlx::Error> {
    let own = app.publish.fleet.local_limits();
    let column = |limit: u64| i64::try_from(limit).unwrap_or(i64::MAX);
    let text = format!(
        "INSERT INTO replicas (id, seen_ms, max_scope_bytes, max_resources, max_resource_bytes)
         VALUES ($1, {NOW}, $2, $3, $4)
         ON CONFLICT (id) DO UPDATE SET seen_ms = excluded.seen_ms, max_scope_bytes = excluded.max_scope_bytes,
             max_resources = excluded.max_resources, max_resource_bytes = excluded.max_resource_bytes"
    );
    sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(&app.publish.replicas.id)
        .bind(column(own.max_scope_bytes))
        .bind(column(own.max_resources))
        .bind(column(own.max_resource_bytes))
        .execute(app.db.pool())
        .await?;
    let text = format!(
        "SELECT max_scope_bytes, max_resources, max_resource_bytes FROM replicas
         WHERE id <> $1 AND seen_ms > {NOW} - $2"
    );
    let rows: Vec<(i64, i64, i64)> = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(&app.publish.replicas.id)
        .bind(LOST_AFTER_MS)
        .fetch_all(app.db.pool())
        .await?;
    let limits = rows.into_iter().map(|(scope_bytes, resources, resource_bytes)| proto::Limits {
        max_scope_bytes: unsigned(scope_bytes),
        max_resources: unsigned(resources),
        max_resource_bytes: unsigned(resource_bytes),
    });
    app.publish.fleet.set_limits_elsewhere(limits.reduce(super::fleet::smaller).unwrap_or_else(limits::own));
    for (table, column) in [("replicas", "seen_ms"), ("fleet_questions", "asked_ms")] {
        let text = format!("DELETE FROM {table} WHERE {column} < {NOW} - $1");
        sqlx::query(sqlx::AssertSqlSafe(text)).bind(FORGET_AFTER_MS).execute(app.db.pool()).await?;
    }
    Ok(())
}

/// Answers every question that this replica has not answered.
async fn answer(app: &App) -> Result<(), sqlx::Error> {
    let own = &app.publish.replicas.id;
    let questions: Vec<(String, String)> = sqlx::query_as(
        "SELECT id, question FROM fleet_questions
         WHERE asked_by <> $1 AND id NOT IN (SELECT question_id FROM fleet_answers WHERE replica_id = $1)",
    )
    .bind(own)
    .fetch_all(app.db.pool())
    .await?;
    for (id, text) in &questions {
        // One that a newer version asks stays unanswered, and its asker counts us as silent.
        let Ok(question) = serde_json::from_str(text) else { continue };
        let answer = api::answer(app, question).await?;
        // Its asker may have lost patience and deleted it.
        sqlx::query(
            "INSERT INTO fleet_answers (question_id, replica_id, answer)
             SELECT id, $2, $3 FROM fleet_questions WHERE id = $1 ON CONFLICT DO NOTHING",
        )
        .bind(id)
        .bind(own)
        .bind(answer.to_string())
        .execute(app.db.pool())
        .await?;
    }
    if !questions.is_empty() {
        notify(app, "answered").await?;
    }
    Ok(())
}

async fn notify(app: &App, payload: &str) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT CAST(pg_notify($1, $2) AS TEXT)").bind(FLEET).bind(payload).execute(app.db.pool()).await?;
    Ok(())
}
