//! When a change serves: `GET /api/v1/changes/{id}` waits for every connected node, here and at other
//! replicas.

use std::time::Duration;

use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;

use shared::ids::NodeId;

use super::api::{NodeRefusal, QuarantinedObject, quarantined, refusal_view};
use super::fleet::Progress;
use super::outbox::unsigned;
use super::replicas::{self, Question};
use crate::app::App;
use crate::auth::permit::Action;
use crate::auth::{Principal, Reach};
use crate::error::{ApiError, Code};
use crate::resources::rfc3339;
use crate::rest::{Access, Params, Reply, Route};

/// Longest wait for a change.
const MAX_WAIT_MS: u64 = 60_000;
/// A waiter looks again at most this often.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A waiter asks other replicas again after this time.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// The route.
pub(super) fn route() -> Route {
    Route::get("/api/v1/changes/{id}", Access::Fleet(Action::ReadChange), change)
        .tag("nodes")
        .summary("Tells where a change serves")
        .describe(
            "With `wait_ms` the answer waits until the change serves on every connected node, or the time is up. \
             Nodes that do not serve it yet, or refused it, are named.",
        )
        .query("wait_ms", "How long to wait, 0 to 60000; default 0")
        .answers::<Change>(200, "Where it serves")
}

/// Where a change serves.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Change {
    /// Its id.
    id: String,
    /// Workspace id, or "shared".
    scope: String,
    /// Revision that it made.
    revision: u64,
    /// RFC 3339.
    committed_at: String,
    /// Published, and serving on every connected node.
    serving: bool,
    /// Whether nodes are given it, or a later revision.
    published: bool,
    /// Why it is held back; null when it is not.
    held_back: Option<String>,
    /// Objects of the scope that do not compile.
    quarantined: Vec<QuarantinedObject>,
    /// Connected nodes.
    nodes: Vec<NodeChange>,
    /// Replicas of the control plane that are there and did not say what their nodes serve. Until
    /// they do, the change does not count as serving.
    silent_replicas: usize,
}

/// A change on one node.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NodeChange {
    /// The node.
    id: String,
    /// As it calls itself.
    display_name: String,
    /// How far it is.
    state: NodeChangeState,
    /// Revision that it serves.
    revision: u64,
    /// Why it refused.
    refusal: Option<NodeRefusal>,
}

/// How far a node is with a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeChangeState {
    /// It serves it, or a later revision.
    Serving,
    /// It has not answered yet.
    Pending,
    /// It refused it.
    Refused,
}

async fn change(
    State(app): State<App>,
    principal: Principal,
    params: Params,
    Path(id): Path<String>,
) -> Result<Reply, ApiError> {
    let expected = format!("a number from 0 to {MAX_WAIT_MS}");
    let wait_ms = params.parsed::<u64>("wait_ms", &expected)?.unwrap_or_default();
    if wait_ms > MAX_WAIT_MS {
        let detail = format!("wait_ms: must be {expected}");
        return Err(ApiError::new(Code::InvalidQuery, detail).at(
            "wait_ms",
            "invalid_value",
            format!("must be {expected}"),
        ));
    }
    let row: Option<(String, i64, i64)> =
        sqlx::query_as("SELECT scope, revision, committed_at_ms FROM outbox WHERE change_id = $1")
            .bind(&id)
            .fetch_optional(app.db.pool())
            .await?;
    let (scope, revision, committed_at_ms) = row.ok_or_else(ApiError::not_found)?;
    let within_reach = match principal.reach {
        Reach::All => true,
        Reach::One(own) => own.to_string() == scope,
    };
    if !within_reach {
        return Err(ApiError::not_found());
    }
    let deadline = Instant::now() + Duration::from_millis(wait_ms);
    let (mut fleet, mut board) = (app.publish.fleet.listen(), app.publish.board.listen());
    loop {
        fleet.mark_unchanged();
        board.mark_unchanged();
        let mut found = look(&app, &id, &scope, unsigned(revision), committed_at_ms);
        let over = Instant::now() >= deadline;
        // Other replicas are asked when there is nothing left to wait for here.
        let asked = found.serving || over;
        if asked {
            look_elsewhere(&app, &mut found).await?;
        }
        if found.serving || over {
            return Reply::json(StatusCode::OK, &found);
        }
        let pause = if asked { ASK_AGAIN } else { LOOK_AGAIN };
        tokio::select! {
            // What moves at other replicas is not heard of here.
            () = std::future::ready(()), if asked => {}
            _ = fleet.changed(), if !asked => {}
            _ = board.changed(), if !asked => {}
            () = tokio::time::sleep_until(deadline) => continue,
            () = app.shutdown.asked() => return Reply::json(StatusCode::OK, &found),
        }
        tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
    }
}

/// A change as it is on the nodes connected here.
fn look(app: &App, id: &str, scope: &str, revision: u64, committed_at_ms: i64) -> Change {
    let published = app.publish.board.get(scope);
    let is_published = published.as_ref().is_some_and(|p| p.revision() >= revision);
    let nodes = nodes_of(app, scope, revision);
    Change {
        id: id.to_owned(),
        scope: scope.to_owned(),
        revision,
        committed_at: rfc3339(committed_at_ms),
        serving: is_published && nodes.iter().all(|n| n.state == NodeChangeState::Serving),
        published: is_published,
        held_back: app.publish.status(scope).filter(|_| !is_published).and_then(|s| s.held_back),
        quarantined: quarantined(app, scope),
        nodes,
        silent_replicas: 0,
    }
}

/// Adds what the nodes of other replicas serve.
async fn look_elsewhere(app: &App, change: &mut Change) -> Result<(), ApiError> {
    let question = Question::Change { scope: change.scope.clone(), revision: change.revision };
    let answers = replicas::ask::<NodeChange>(app, &question).await?;
    change.silent_replicas = answers.silent;
    // Looked at again: a node may have come here from one of them meanwhile.
    change.nodes = nodes_of(app, &change.scope, change.revision);
    change.nodes.extend(answers.found);
    // Of a node that is listed twice, because it went from one to another, what is less far counts.
    change.nodes.sort_by(|a, b| (&a.id, a.revision).cmp(&(&b.id, b.revision)));
    change.nodes.dedup_by(|later, first| later.id == first.id);
    let all_serve = change.nodes.iter().all(|node| node.state == NodeChangeState::Serving);
    change.serving = change.published && change.silent_replicas == 0 && all_serve;
    Ok(())
}

/// How far the nodes connected here are.
pub(super) fn nodes_of(app: &App, scope: &str, revision: u64) -> Vec<NodeChange> {
    let gone = app.publish.board.get(scope).is_some_and(|p| p.is_removed());
    let node = |(id, progress): (NodeId, Progress)| {
        let serves = progress.serving.map(|s| s.revision).unwrap_or_default();
        let refusal = progress.refusal.filter(|(refusal, _)| refusal.revision >= revision);
        let state = match (serves >= revision || (gone && serves == 0), &refusal) {
            (true, _) => NodeChangeState::Serving,
            (false, Some(_)) => NodeChangeState::Refused,
            (false, None) => NodeChangeState::Pending,
        };
        NodeChange {
            id: id.to_string(),
            display_name: progress.display_name,
            state,
            revision: serves,
            refusal: refusal.map(|(refusal, at_ms)| refusal_view(&refusal, at_ms)),
        }
    };
    app.publish.fleet.progress(scope).into_iter().map(node).collect()
}
