//! A node by hand against the whole publishing side: database, compile task, board, stream, REST.

mod joining;

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::uri::PathAndQuery;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use runtime::rpc::Dialer;
use shared::digest::StateHash;
use shared::ids::NodeId;
use shared::proto::{self, control_message::Message as Control, node_message::Message as FromNode};
use shared::snapshot::{Change, Scope, ScopeDelta, Snapshot};

use super::authority::Enrolment;
use super::{compile_task, distribution, listener};
use crate::app::App;
use crate::testing::House;

const NODE: NodeId = NodeId::from_u128(42);
const PATIENCE: Duration = Duration::from_secs(20);

fn routes(app: &App) -> tonic::service::Routes {
    let authority = app.publish.authority().expect("publishing was started").clone();
    distribution(app, Enrolment::new(app.clone(), app.publish.clone(), authority))
}

/// A call without generated code: the client of the contract lives in the other plane.
async fn call<Q, A>(channel: &Channel, path: &'static str, request: Q) -> Result<A, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let codec: ProstCodec<Q, A> = ProstCodec::default();
    Ok(grpc.unary(Request::new(request), PathAndQuery::from_static(path), codec).await?.into_inner())
}

/// A node by hand: what it holds, and the snapshot it would serve from.
struct Hand {
    id: NodeId,
    send: mpsc::Sender<proto::NodeMessage>,
    receive: Streaming<proto::ControlMessage>,
    scopes: std::collections::BTreeMap<String, Scope>,
    snapshot: Snapshot,
}

impl Hand {
    async fn open(channel: &Channel, hello: proto::Hello) -> Result<Self, Status> {
        let (send, outbound) = mpsc::channel(8);
        let id = hello.node_id.parse().unwrap_or(NODE);
        send.send(proto::NodeMessage { message: Some(FromNode::Hello(hello)) }).await.expect("the receiver is here");
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let codec: ProstCodec<proto::NodeMessage, proto::ControlMessage> = ProstCodec::default();
        let path = PathAndQuery::from_static("/pointsman.v1.Distribution/Sync");
        let receive = grpc.streaming(Request::new(ReceiverStream::new(outbound)), path, codec).await?.into_inner();
        Ok(Self { id, send, receive, scopes: Default::default(), snapshot: Snapshot::default() })
    }

    async fn next(&mut self) -> Result<Control, Status> {
        let message = tokio::time::timeout(PATIENCE, self.receive.message()).await.expect("an answer in time")?;
        message.and_then(|m| m.message).ok_or_else(|| Status::cancelled("the stream ended"))
    }

    /// Takes the next update as a node does, without answering.
    async fn take(&mut self) -> Result<proto::Update, Status> {
        loop {
            match self.next().await? {
                Control::Update(update) => {
                    assert!(update.last, "the test's scopes fit one chunk");
                    self.apply(&update);
                    return Ok(update);
                }
                Control::Heartbeat(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn apply(&mut self, update: &proto::Update) {
        let previous = self.scopes.get(&update.scope).cloned().unwrap_or_default();
        assert!(update.from == 0 || update.from == previous.revision(), "{update:?}");
        let mut next = if update.from == 0 { Scope::default() } else { previous.clone() };
        next.apply(&ScopeDelta { upserts: update.upserts.clone(), removals: update.removals.clone() }, update.to);
        assert_eq!(StateHash::from_slice(&update.state_hash), Some(next.state_hash()));
        let delta = previous.delta_to(&next);
        let change = Change { scope: &update.scope, next: &next, previous: &previous, delta: &delta };
        self.snapshot = self.snapshot.apply(&change).expect("what is published serves");
        self.scopes.insert(update.scope.clone(), next);
    }

    async fn answer(&self, update: &proto::Update) {
        let ack = proto::Ack {
            nonce: update.nonce,
            scope: update.scope.clone(),
            revision: update.to,
            state_hash: update.state_hash.clone(),
            apply_us: 1,
        };
        self.send.send(proto::NodeMessage { message: Some(FromNode::Ack(ack)) }).await.expect("the stream is open");
    }

    async fn follow(&mut self) -> proto::Update {
        let update = self.take().await.expect("an update");
        self.answer(&update).await;
        update
    }
}

fn hello(id: NodeId) -> proto::Hello {
    proto::Hello {
        node_id: id.to_string(),
        boot_id: vec![1; 16],
        version: "0.1.0".into(),
        schema_min: 1,
        schema_max: 1,
        display_name: "by hand".into(),
        ..Default::default()
    }
}

async fn in_process(app: &App) -> Channel {
    let (dialer, ends) = Dialer::in_process();
    runtime::task::spawn("in-process", listener::serve_in_process(app.clone(), routes(app), ends, NODE));
    dialer.connect().await.expect("the in-process channel opens")
}

/// The only workspace after the first start.
async fn workspace(house: &House) -> String {
    house.call("GET", "/api/v1/workspaces", None).await.at("/data/0/id")
}

#[tokio::test]
async fn a_change_reaches_a_node_and_is_seen_to() {
    for house in House::each().await {
        super::start(&house.app).await.expect("publishing starts");
        let channel = in_process(&house.app).await;
        let mut node = Hand::open(&channel, hello(NODE)).await.expect("the stream opens");
        let Control::Welcome(welcome) = node.next().await.expect("a welcome") else { panic!("first a welcome") };
        assert_eq!((welcome.lineage.as_slice(), welcome.scopes), (house.app.lineage.as_slice(), 2));
        assert_eq!(node.follow().await.scope, "shared");
        let ws = workspace(&house).await;
        let first = node.follow().await;
        assert_eq!((first.scope.as_str(), first.from), (ws.as_str(), 0));
        assert!(node.snapshot.key_count() > 0, "the first key serves");
        // Only what is committed after the node's answers arrived is measured.
        let arrived = async {
            let (shown, revision) = (format!("/api/v1/nodes/{NODE}"), format!("/scopes/{ws}/revision"));
            while house.call("GET", &shown, None).await.at(&revision) != first.to.to_string() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, arrived).await.expect("the answers arrive");

        let path = format!("/api/v1/workspaces/{ws}/aliases");
        let made = house.call("POST", &path, Some(json!({"name": "quick", "targets": ["sandbox/echo"]}))).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        let id: Value = house.call("GET", &format!("/api/v1/workspaces/{ws}/audit"), None).await.json();
        let line =
            id["data"].as_array().expect("lines").iter().find(|l| l["kind"] == "alias").expect("the change").clone();
        let change = format!("/api/v1/changes/{}", line["change_id"].as_str().expect("an id"));

        let update = node.take().await.expect("a delta");
        assert_eq!((update.from, update.upserts.len(), update.upserts[0].kind.as_str()), (first.to, 1, "alias"));
        let pending = house.call("GET", &change, None).await;
        assert_eq!((pending.at("/serving"), pending.at("/nodes/0/state")), ("false".into(), "pending".into()));
        let waiting = format!("{change}?wait_ms=20000");
        let (answer, ()) = tokio::join!(house.call("GET", &waiting, None), node.answer(&update));
        assert_eq!(answer.at("/serving"), "true", "{}", answer.text);
        assert_eq!(answer.at("/nodes/0/state"), "serving");

        let shown = house.call("GET", &format!("/api/v1/nodes/{NODE}"), None).await;
        assert_eq!((shown.at("/connected"), shown.at("/version")), ("true".into(), "0.1.0".into()));
        assert_eq!(shown.at(&format!("/scopes/{ws}/revision")), update.to.to_string());
        assert_eq!(shown.at(&format!("/scopes/{ws}/lag_ms")), "0");
        assert!(house.app.metrics.page().contains("pointsman_config_convergence_seconds_count 1\n"));

        let revoked = house.call("DELETE", &format!("/api/v1/nodes/{NODE}"), None).await;
        assert_eq!((revoked.status, revoked.at("/revoked")), (StatusCode::OK, "true".into()));
        let ended = loop {
            match node.next().await {
                Ok(_) => {}
                Err(ended) => break ended,
            }
        };
        assert_eq!(ended.code(), Code::PermissionDenied);
        let again = Hand::open(&channel, hello(NODE)).await.map(|_| ()).expect_err("it is revoked");
        assert_eq!(again.code(), Code::PermissionDenied);
        house.close().await;
    }
}

#[tokio::test]
async fn what_a_node_missed_says_nothing_of_how_fast_changes_arrive() {
    let house = House::sqlite().await;
    super::start(&house.app).await.expect("publishing starts");
    let channel = in_process(&house.app).await;
    let ws = workspace(&house).await;
    let change = async |name: &str| {
        let body = json!({"name": name, "targets": ["sandbox/echo"]});
        let made = house.call("POST", &format!("/api/v1/workspaces/{ws}/aliases"), Some(body)).await;
        format!("/api/v1/changes/{}?wait_ms=20000", made.at("/change_id"))
    };
    let mut node = Hand::open(&channel, hello(NODE)).await.expect("the stream opens");
    for _ in 0..3 {
        // A welcome and two scopes.
        if let Control::Update(update) = node.next().await.expect("a message") {
            node.apply(&update);
            node.answer(&update).await;
        }
    }
    let held = |(scope, state): (&String, &Scope)| proto::Held {
        scope: scope.clone(),
        revision: state.revision(),
        state_hash: state.state_hash().as_bytes().to_vec(),
    };
    let back = proto::Hello {
        lineage: house.app.lineage.to_vec(),
        held: node.scopes.iter().map(held).collect(),
        ..hello(NODE)
    };
    drop(node);
    let missed = change("missed").await;
    let mut node = Hand::open(&channel, back).await.expect("the stream opens");
    let Control::Welcome(_) = node.next().await.expect("a welcome") else { panic!("first a welcome") };
    let shown = async |pointer: &str| {
        let shown = house.call("GET", &format!("/api/v1/nodes/{NODE}"), None).await;
        shown.at(&format!("/scopes/{ws}/{pointer}"))
    };
    for (measured, waiting) in [(0, missed), (1, String::new())] {
        let waiting = if waiting.is_empty() { change("live").await } else { waiting };
        let Control::Update(update) = node.next().await.expect("an update") else { panic!("an update") };
        assert_eq!((update.scope.as_str(), update.from > 0), (ws.as_str(), true));
        node.answer(&update).await;
        assert_eq!(house.call("GET", &waiting, None).await.at("/serving"), "true");
        assert_ne!(shown("serving_since").await, "null");
        assert_eq!(shown("convergence_ms").await != "null", measured == 1);
        let line = format!("pointsman_config_convergence_seconds_count {measured}\n");
        assert!(house.app.metrics.page().contains(&line), "{line}");
    }
    house.close().await;
}

/// Writes into the database past every check, as a fault would.
async fn poison(house: &House, scope: &str, kind: &str, id: &str, doc: &str) {
    let mut tx = house.app.db.begin().await.expect("a transaction");
    let (revision,): (i64,) =
        sqlx::query_as("UPDATE scopes SET revision = revision + 1 WHERE scope = $1 RETURNING revision")
            .bind(scope)
            .fetch_one(&mut *tx)
            .await
            .expect("the scope exists");
    sqlx::query("UPDATE objects SET doc = $1, revision = $2 WHERE scope = $3 AND kind = $4 AND id = $5")
        .bind(doc)
        .bind(revision)
        .bind(scope)
        .bind(kind)
        .bind(id)
        .execute(&mut *tx)
        .await
        .expect("the object exists");
    tx.commit().await.expect("it commits");
    house.app.wake();
}

#[tokio::test]
async fn a_poisoned_object_is_named_and_keeps_serving_as_it_was() {
    let house = House::sqlite().await;
    let ws = workspace(&house).await;
    let providers = house.call("GET", &format!("/api/v1/workspaces/{ws}/providers"), None).await;
    let provider = providers.at("/data/0/id");
    let mut compiler = compile_task::Compiler::new(house.app.clone());
    assert!(!compiler.pass().await.expect("the database is there"));
    let before = house.app.publish.board.get(&ws).expect("published");
    poison(&house, &ws, "provider", &provider, "{ poison").await;
    compiler.pass().await.expect("the database is there");
    let after = house.app.publish.board.get(&ws).expect("published");
    assert_eq!(after.revision(), before.revision() + 1);
    assert_eq!(after.state_hash(), before.state_hash(), "the last good version stays in force");
    let status = house.call("GET", &format!("/api/v1/workspaces/{ws}/status"), None).await;
    assert_eq!(
        (status.at("/quarantined/0/id"), status.at("/quarantined/0/code")),
        (provider.clone(), "invalid_json".into())
    );
    assert_ne!(status.at("/quarantined/0/serving_revision"), "null");
    let object = house.call("GET", &format!("/api/v1/workspaces/{ws}/providers/{provider}"), None).await;
    assert_eq!(
        (object.at("/status/state"), object.at("/status/code")),
        ("quarantined".into(), "invalid_json".into()),
        "{}",
        object.text
    );
    let others = house.call("GET", &format!("/api/v1/workspaces/{ws}/projects"), None).await;
    assert_eq!(others.at("/data/0/status/state"), "serving", "{}", others.text);

    let other = house.made("/api/v1/workspaces", json!({"key": "other"})).await;
    compiler.pass().await.expect("the database is there");
    assert!(house.app.publish.board.get(&other).is_some(), "everyone else converges");
    assert_eq!(house.app.publish.status(&other).expect("compiled").quarantined, []);

    // A poisoned workspace object, which has no other version that compiles: nothing newer is published.
    sqlx::query("DELETE FROM object_history WHERE scope = $1 AND kind = 'workspace'")
        .bind(&other)
        .execute(house.app.db.pool())
        .await
        .expect("it deletes");
    let held = house.app.publish.board.get(&other).expect("published").revision();
    poison(&house, &other, "workspace", &other, "null").await;
    compiler.pass().await.expect("the database is there");
    assert_eq!(house.app.publish.board.get(&other).expect("published").revision(), held);
    assert!(house.app.publish.status(&other).expect("compiled").held_back.is_some());
    house.close().await;
}

#[tokio::test]
async fn a_row_that_cannot_be_read_harms_its_own_workspace_only() {
    // Only SQLite keeps bytes in a text column.
    let house = House::sqlite().await;
    let ws = workspace(&house).await;
    let mut compiler = compile_task::Compiler::new(house.app.clone());
    compiler.pass().await.expect("the database is there");
    sqlx::query("UPDATE objects SET doc = CAST(x'ff00' AS BLOB), revision = revision + 1 WHERE scope = $1 AND kind = 'provider'")
        .bind(&ws)
        .execute(house.app.db.pool())
        .await
        .expect("sql");
    sqlx::query("UPDATE scopes SET revision = revision + 100 WHERE scope = $1")
        .bind(&ws)
        .execute(house.app.db.pool())
        .await
        .expect("sql");
    let zebra = house.made("/api/v1/workspaces", json!({"key": "zebra"})).await;
    let mut after_restart = house.app.clone();
    after_restart.publish = Arc::new(super::Publish::new(&crate::metrics::Metrics::default()));
    for (app, published) in [(house.app.clone(), true), (after_restart, false)] {
        let mut compiler = compile_task::Compiler::new(app.clone());
        compiler.pass().await.expect("others are not held up");
        assert!(app.publish.board.is_complete() && app.publish.board.get(&zebra).is_some());
        assert_eq!(app.publish.board.get(&ws).is_some(), published, "what was published stays");
        assert!(app.publish.status(&ws).expect("tried").held_back.is_some());
    }
    house.close().await;
}

#[tokio::test]
async fn one_revision_is_one_content_across_restarts() {
    let house = House::sqlite().await;
    let ws = workspace(&house).await;
    let mut first = compile_task::Compiler::new(house.app.clone());
    first.pass().await.expect("the database is there");
    let published = house.app.publish.board.get(&ws).expect("published");
    // Another program compiled the same revision to something else.
    sqlx::query("UPDATE published SET state_hash = 'other' WHERE scope = $1")
        .bind(&ws)
        .execute(house.app.db.pool())
        .await
        .expect("it updates");
    let mut restarted = house.app.clone();
    restarted.publish = Arc::new(super::Publish::new(&crate::metrics::Metrics::default()));
    let mut second = compile_task::Compiler::new(restarted.clone());
    assert!(second.pass().await.expect("the database is there"), "a new revision was made");
    assert!(restarted.publish.board.get(&ws).is_none(), "the old number is not used for the new content");
    second.pass().await.expect("the database is there");
    let anew = restarted.publish.board.get(&ws).expect("published");
    assert_eq!((anew.revision(), anew.state_hash()), (published.revision() + 1, published.state_hash()));
    house.close().await;
}

#[tokio::test]
async fn sudden_shrinking_is_held_back_until_it_is_confirmed() {
    let house = House::sqlite().await;
    let ws = workspace(&house).await;
    for n in 0..40 {
        let body = json!({"name": format!("a{n}"), "targets": ["sandbox/echo"]});
        house.made(&format!("/api/v1/workspaces/{ws}/aliases"), body).await;
    }
    let mut compiler = compile_task::Compiler::new(house.app.clone());
    compiler.pass().await.expect("the database is there");
    let before = house.app.publish.board.get(&ws).expect("published");
    let mut tx = house.app.db.begin().await.expect("a transaction");
    sqlx::query("UPDATE scopes SET revision = revision + 1 WHERE scope = $1")
        .bind(&ws)
        .execute(&mut *tx)
        .await
        .expect("sql");
    sqlx::query("UPDATE objects SET deleted = 1, revision = $1 WHERE scope = $2 AND kind = 'alias'")
        .bind(i64::try_from(before.revision() + 1).expect("small"))
        .bind(&ws)
        .execute(&mut *tx)
        .await
        .expect("sql");
    tx.commit().await.expect("it commits");
    compiler.pass().await.expect("the database is there");
    assert_eq!(house.app.publish.board.get(&ws).expect("published").revision(), before.revision());
    let why = house.app.publish.status(&ws).expect("compiled").held_back.expect("held back");
    assert!(why.contains("confirm"), "{why}");

    let status = house.call("GET", &format!("/api/v1/workspaces/{ws}/status"), None).await;
    assert_eq!(status.at("/held_back"), why);

    let confirm = format!("/api/v1/workspaces/{ws}/publish");
    for body in [json!({}), json!({"force": false}), json!({"force": true, "more": 1})] {
        let refused = house.call("POST", &confirm, Some(body)).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", refused.text);
    }
    let confirmed = house.call("POST", &confirm, Some(json!({"force": true}))).await;
    assert_eq!(confirmed.status, StatusCode::OK, "{}", confirmed.text);
    assert_eq!(confirmed.at("/revision"), (before.revision() + 2).to_string());
    let audit = house.call("GET", &format!("/api/v1/workspaces/{ws}/audit?limit=1"), None).await;
    assert_eq!((audit.at("/data/0/action"), audit.at("/data/0/kind")), ("confirm".into(), "workspace".into()));
    assert_eq!(audit.at("/data/0/change_id"), confirmed.at("/change_id"));
    let verdict = house.call("GET", &format!("/api/v1/workspaces/{ws}/audit/verification"), None).await;
    assert_eq!(verdict.at("/intact"), "true", "{}", verdict.text);
    compiler.pass().await.expect("the database is there");
    let after = house.app.publish.board.get(&ws).expect("published");
    assert_eq!(after.revision(), before.revision() + 2);
    assert!(after.offer(Some((before.revision(), before.state_hash()))).force, "nodes are told that it is confirmed");
    house.close().await;
}

#[tokio::test]
async fn a_workspace_removed_by_an_operator_is_removed_with_their_word() {
    let house = House::sqlite().await;
    let ws = house.made("/api/v1/workspaces", json!({"key": "acme"})).await;
    super::start(&house.app).await.expect("publishing starts");
    let channel = in_process(&house.app).await;
    let mut node = Hand::open(&channel, hello(NODE)).await.expect("the stream opens");
    let Control::Welcome(welcome) = node.next().await.expect("a welcome") else { panic!("first a welcome") };
    for _ in 0..welcome.scopes {
        node.follow().await;
    }
    assert_eq!(house.call("DELETE", &format!("/api/v1/workspaces/{ws}"), None).await.status, StatusCode::OK);
    let Control::Update(update) = node.next().await.expect("an update") else { panic!("an update") };
    assert_eq!((update.scope.as_str(), update.scope_removed, update.force), (ws.as_str(), true, true));
    house.close().await;
}

#[tokio::test]
async fn broken_streams_end_without_effect() {
    let house = House::sqlite().await;
    super::start(&house.app).await.expect("publishing starts");
    let channel = in_process(&house.app).await;
    let first = |message: Option<FromNode>| {
        let channel = channel.clone();
        async move {
            let (send, outbound) = mpsc::channel(1);
            send.send(proto::NodeMessage { message }).await.expect("the receiver is here");
            let mut grpc = tonic::client::Grpc::new(channel);
            grpc.ready().await.expect("the channel is open");
            let codec: ProstCodec<proto::NodeMessage, proto::ControlMessage> = ProstCodec::default();
            let path = PathAndQuery::from_static("/pointsman.v1.Distribution/Sync");
            let mut stream =
                grpc.streaming(Request::new(ReceiverStream::new(outbound)), path, codec).await?.into_inner();
            tokio::time::timeout(PATIENCE, stream.message()).await.expect("an answer in time").map(|_| ())
        }
    };
    for message in
        [None, Some(FromNode::Heartbeat(proto::Heartbeat::default())), Some(FromNode::Ack(proto::Ack::default()))]
    {
        assert_eq!(first(message).await.expect_err("no Hello").code(), Code::InvalidArgument);
    }
    let old = proto::Hello { schema_min: 7, schema_max: 9, ..hello(NODE) };
    assert_eq!(first(Some(FromNode::Hello(old))).await.expect_err("no schema").code(), Code::FailedPrecondition);
    assert_eq!(house.app.publish.fleet.connected_count(), 0);
    let huge = proto::Nack { detail: "x".repeat(5 * 1024 * 1024), ..Default::default() };
    assert!(huge.encoded_len() > shared::snapshot::limits::MAX_MESSAGE_BYTES);
    let mut node = Hand::open(&channel, hello(NODE)).await.expect("the stream opens");
    node.send.send(proto::NodeMessage { message: Some(FromNode::Nack(huge)) }).await.expect("the stream is open");
    let ended = loop {
        match node.next().await {
            Ok(_) => {}
            Err(ended) => break ended,
        }
    };
    assert_eq!(ended.code(), Code::OutOfRange);
    house.close().await;
}
