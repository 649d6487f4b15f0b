//! Several control planes over one PostgreSQL. They wake one another when something is committed, and
//! ask one another about the nodes that are connected elsewhere. All of it goes through the database,
//! so that no replica needs to reach another. On SQLite there is one process, and nothing to do.
//!
//! A question is a row that every other replica answers with a row of its own; notifications only make
//! it fast, and a look every second is the floor under them. Who is there is judged by the database's
//! clock alone.
//!
//! **A replica that others do not see serves no nodes.** After 45 s they take its nodes for gone, and
//! say that a change serves everywhere without asking it. By then its streams have ended: a process that
//! hangs is left by its nodes after 30 s of silence, and one that cannot reach the database ends them
//! itself after 30 s.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use runtime::clock::{monotonic, monotonic_ms};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shared::ids::NodeId;
use shared::proto;
use shared::snapshot::limits;
use sqlx::postgres::PgListener;
use sqlx::{AnyConnection, Connection};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::api;
use super::outbox::unsigned;
use crate::app::App;
use crate::auth::token::hex;
use crate::db::Engine;

/// Commits of any replica; sent with each.
pub const CHANGES: &str = "pointsman_changes";
/// Questions and answers.
const FLEET: &str = "pointsman_fleet";

/// How often a replica says that it is there, and looks for questions that it did not hear of.
const SEEN_EVERY: Duration = Duration::from_secs(1);
/// How long saying so may take.
const SEEN_WITHIN: Duration = Duration::from_secs(10);
/// A replica that could not say that it is there for so long ends the streams of its nodes.
const CUT_OFF_AFTER: Duration = Duration::from_secs(30);
/// One that was not seen for so long is gone, and its nodes with it.
const LOST_AFTER: Duration = Duration::from_secs(45);
/// How long a question waits for the answers of all.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A waiting question looks for answers at least this often.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Questions whose asker went away are deleted after this time, rows of replicas that are gone too.
const FORGET_AFTER: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(600)];
/// After so long without a notification the connection for them is taken for dead.
const QUIET: Duration = Duration::from_secs(30);
/// Pause after the connection for notifications is lost.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// This process among its replicas.
#[derive(Debug)]
pub struct Replicas {
    id: String,
    asked: Notify,
    answered: Notify,
    /// When others could last see it, monotonic milliseconds.
    seen_ms: AtomicU64,
}

/// [`Replicas::seen_ms`] of a process that has no replicas.
const ALONE: u64 = u64::MAX;

impl Default for Replicas {
    fn default() -> Self {
        Self {
            id: hex(&runtime::random::bytes::<16>()),
            asked: Notify::new(),
            answered: Notify::new(),
            seen_ms: AtomicU64::new(ALONE),
        }
    }
}

impl Replicas {
    /// Whether others may soon take this replica for gone: it must serve no nodes.
    pub fn is_cut_off(&self) -> bool {
        let seen_ms = self.seen_ms.load(Ordering::Relaxed);
        seen_ms != ALONE && monotonic_ms().saturating_sub(seen_ms) >= ms(CUT_OFF_AFTER).unsigned_abs()
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

/// Is seen by the others before the first node can connect, and goes on being seen, listening and
/// answering.
///
/// # Errors
/// When the database fails.
pub async fn start(app: &App) -> Result<(), sqlx::Error> {
    if app.db.engine() == Engine::Postgres {
        let mut connection = connect(app).await?;
        seen(app, &mut connection).await?;
        runtime::task::spawn("replica-seen", stay_seen(app.clone(), connection));
        runtime::task::spawn("replica-listen", listen(app.clone()));
        runtime::task::spawn("replica-answer", answer_all(app.clone()));
    }
    Ok(())
}

/// Tells the others not to wait for this replica any more.
pub async fn leave(app: &App) {
    if app.db.engine() == Engine::Postgres {
        let gone = sqlx::query("DELETE FROM replicas WHERE id = $1").bind(&app.publish.replicas.id);
        if let Err(error) = gone.execute(app.db.pool()).await {
            tracing::warn!(%error, "other replicas will wait for this one for a while");
        }
    }
}

/// A connection of its own: a busy pool must not make this replica look gone.
async fn connect(app: &App) -> Result<AnyConnection, sqlx::Error> {
    AnyConnection::connect(&app.db.url()).await
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
    sqlx::query(
        "INSERT INTO fleet_questions (id, asked_by, asked_ms, question)
         VALUES ($1, $2, CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT), $3)",
    )
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
            _ = timeout(LOOK_AGAIN, answered).await;
        }
    }
    answers.silent += silent.len();
    // When the caller leaves earlier, it is forgotten after a while.
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
    let rows: Vec<(String,)> = sqlx::query_as(
        "SELECT id FROM replicas
         WHERE id <> $1 AND seen_ms > CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) - $2",
    )
    .bind(&app.publish.replicas.id)
    .bind(ms(LOST_AFTER))
    .fetch_all(app.db.pool())
    .await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

/// Hears of what other replicas commit and ask, for as long as the process runs.
async fn listen(app: App) {
    loop {
        let lost = tokio::select! {
            lost = hear(&app) => lost,
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

async fn hear(app: &App) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect(&app.db.url()).await?;
    listener.listen_all([CHANGES, FLEET]).await?;
    app.wake();
    let replicas = &app.publish.replicas;
    // A connection that died without a word looks like one on which nothing happens.
    while let Ok(heard) = timeout(QUIET, listener.try_recv()).await {
        let Some(heard) = heard? else { break };
        match (heard.channel(), heard.payload()) {
            (CHANGES, _) => app.wake(),
            (_, "asked") => replicas.asked.notify_one(),
            (_, _) => replicas.answered.notify_waiters(),
        }
    }
    Ok(())
}

/// Says that this replica is there, for as long as the process runs.
async fn stay_seen(app: App, connection: AnyConnection) {
    let mut connection = Some(connection);
    while !app.shutdown.is_asked() {
        let said = async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => connect(&app).await?,
            };
            seen(&app, &mut open).await?;
            Ok::<_, sqlx::Error>(open)
        };
        match timeout(SEEN_WITHIN, said).await {
            Ok(Ok(open)) => connection = Some(open),
            Ok(Err(error)) => tracing::error!(%error, "other replicas cannot see this one"),
            Err(_) => tracing::error!("other replicas cannot see this one: the database does not answer"),
        }
        if app.publish.replicas.is_cut_off() {
            app.publish.fleet.end_streams();
        }
        tokio::select! {
            () = tokio::time::sleep(SEEN_EVERY) => {}
            () = app.shutdown.asked() => {}
        }
    }
}

/// Says that this replica is there and what its nodes take, learns what those of others take, and
/// tidies up.
async fn seen(app: &App, connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    let own = app.publish.fleet.local_limits();
    let at_ms = monotonic_ms();
    let column = |limit: u64| i64::try_from(limit).unwrap_or(i64::MAX);
    sqlx::query(
        "INSERT INTO replicas (id, seen_ms, max_scope_bytes, max_resources, max_resource_bytes)
         VALUES ($1, CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT), $2, $3, $4)
         ON CONFLICT (id) DO UPDATE SET seen_ms = excluded.seen_ms, max_scope_bytes = excluded.max_scope_bytes,
             max_resources = excluded.max_resources, max_resource_bytes = excluded.max_resource_bytes",
    )
    .bind(&app.publish.replicas.id)
    .bind(column(own.max_scope_bytes))
    .bind(column(own.max_resources))
    .bind(column(own.max_resource_bytes))
    .execute(&mut *connection)
    .await?;
    app.publish.replicas.seen_ms.store(at_ms, Ordering::Relaxed);
    let rows: Vec<(i64, i64, i64)> = sqlx::query_as(
        "SELECT max_scope_bytes, max_resources, max_resource_bytes FROM replicas
         WHERE id <> $1 AND seen_ms > CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) - $2",
    )
    .bind(&app.publish.replicas.id)
    .bind(ms(LOST_AFTER))
    .fetch_all(&mut *connection)
    .await?;
    let limits = rows.into_iter().map(|(scope_bytes, resources, resource_bytes)| proto::Limits {
        max_scope_bytes: unsigned(scope_bytes),
        max_resources: unsigned(resources),
        max_resource_bytes: unsigned(resource_bytes),
    });
    app.publish.fleet.set_limits_elsewhere(limits.reduce(super::fleet::smaller).unwrap_or_else(limits::own));
    let old = [
        "DELETE FROM fleet_questions
         WHERE asked_ms < CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) - $1",
        "DELETE FROM replicas
         WHERE seen_ms < CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) - $1",
    ];
    for (statement, after) in old.into_iter().zip(FORGET_AFTER) {
        sqlx::query(statement).bind(ms(after)).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Answers what others ask, for as long as the process runs.
async fn answer_all(app: App) {
    while !app.shutdown.is_asked() {
        if let Err(error) = answer(&app).await {
            tracing::error!(%error, "other replicas are not told of the nodes connected here");
        }
        tokio::select! {
            () = app.publish.replicas.asked.notified() => {}
            () = tokio::time::sleep(SEEN_EVERY) => {}
            () = app.shutdown.asked() => {}
        }
    }
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
        if let Err(error) = answer_one(app, id, question).await {
            tracing::warn!(%error, "a question of another replica stays unanswered for now");
        }
    }
    if !questions.is_empty() {
        notify(app, "answered").await?;
    }
    Ok(())
}

async fn answer_one(app: &App, id: &str, question: Question) -> Result<(), sqlx::Error> {
    let answer = api::answer(app, question).await?;
    // Its asker may lose patience and delete it at any time: not while this holds it.
    sqlx::query(
        "INSERT INTO fleet_answers (question_id, replica_id, answer)
         SELECT id, $2, $3 FROM fleet_questions WHERE id = $1 FOR KEY SHARE ON CONFLICT DO NOTHING",
    )
    .bind(id)
    .bind(&app.publish.replicas.id)
    .bind(answer.to_string())
    .execute(app.db.pool())
    .await?;
    Ok(())
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

async fn notify(app: &App, payload: &str) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT CAST(pg_notify($1, $2) AS TEXT)").bind(FLEET).bind(payload).execute(app.db.pool()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_cut_off_before_others_take_it_for_gone() {
        assert!(CUT_OFF_AFTER + SEEN_WITHIN < LOST_AFTER);
        let replicas = Replicas::default();
        assert!(!replicas.is_cut_off(), "alone");
        replicas.seen_ms.store(monotonic_ms(), Ordering::Relaxed);
        assert!(!replicas.is_cut_off());
    }
}
