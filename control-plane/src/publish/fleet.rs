//! Who runs what: the nodes connected to this process, in memory, and every node that ever joined, in
//! the database. What is connected to another replica, `replicas` asks for. It decides
//! nothing about what nodes are sent.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use shared::ids::NodeId;
use shared::proto;
use shared::snapshot::limits;

use super::published::ScopeName;
use super::session::Refusal;
use crate::db::Db;

/// How long a node that went is kept in memory.
const REMEMBER_MS: i64 = 24 * 60 * 60 * 1000;

/// Nodes by id, and the list of those that may not come back.
#[derive(Debug)]
pub struct Fleet {
    nodes: Mutex<BTreeMap<NodeId, NodeState>>,
    denied: Mutex<HashSet<NodeId>>,
    limits_elsewhere: Mutex<proto::Limits>,
    moved: watch::Sender<u64>,
}

/// What is known of a node since this process started.
#[derive(Debug, Clone, Default)]
pub struct NodeState {
    /// Number of its open stream here; `None` = not connected.
    pub stream: Option<u64>,
    kick: Option<watch::Sender<Option<Kick>>>,
    /// Its process, 16 bytes.
    pub boot_id: Vec<u8>,
    /// Program version.
    pub version: String,
    /// As it calls itself.
    pub display_name: String,
    /// From its configuration.
    pub labels: BTreeMap<String, String>,
    /// It started from an older state because the last one kept crashing it.
    pub degraded: bool,
    /// What it can take.
    pub limits: proto::Limits,
    /// Milliseconds since 1970.
    pub connected_at_ms: i64,
    /// Milliseconds since 1970.
    pub last_seen_ms: i64,
    /// Last heartbeat.
    pub beat: proto::Heartbeat,
    /// Revision it serves per scope.
    pub serves: BTreeMap<ScopeName, Serving>,
    /// Newest refusal per scope, until that scope is taken.
    pub refused: BTreeMap<ScopeName, (Refusal, i64)>,
    /// Answers that confirmed nothing (S6).
    pub ignored: u64,
    last_number: u64,
}

/// A scope as a node serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serving {
    /// Which revision.
    pub revision: u64,
    /// Since when, milliseconds since 1970; 0 = it came with it.
    pub since_ms: i64,
    /// From commit to serving, milliseconds; `None` unless it was committed after the node had caught
    /// up on its stream.
    pub convergence_ms: Option<i64>,
}

/// How far one connected node is with one scope.
#[derive(Debug, Clone)]
pub struct Progress {
    /// As it calls itself.
    pub display_name: String,
    /// What it serves; `None` = nothing of the scope.
    pub serving: Option<Serving>,
    /// Its newest refusal that still stands, and when, milliseconds since 1970.
    pub refusal: Option<(Refusal, i64)>,
}

/// Why somebody else ends a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kick {
    /// The same node opened another stream.
    Superseded,
    /// An operator revoked the node.
    Revoked,
    /// The other replicas cannot see this one.
    CutOff,
}

/// A node's open stream in the fleet.
#[derive(Debug)]
pub struct Place {
    /// Names the stream.
    pub number: u64,
    /// Says when it must end.
    pub kick: watch::Receiver<Option<Kick>>,
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            nodes: Mutex::default(),
            denied: Mutex::default(),
            limits_elsewhere: Mutex::new(limits::own()),
            moved: watch::Sender::new(0),
        }
    }
}

impl Fleet {
    /// A stream opened. An older one of the same node is told to end: its process is gone, or its
    /// connection is and nobody noticed yet.
    pub fn connect(&self, id: NodeId, hello: &proto::Hello, now_ms: i64) -> Place {
        let (sender, kick) = watch::channel(None);
        let number = {
            let mut nodes = self.lock();
            // Nodes come and go for ever; the database remembers those that went.
            nodes.retain(|_, node| node.stream.is_some() || now_ms.saturating_sub(node.last_seen_ms) < REMEMBER_MS);
            let node = nodes.entry(id).or_default();
            if let Some(older) = node.kick.take() {
                older.send_replace(Some(Kick::Superseded));
            }
            let number = node.last_number + 1;
            *node = NodeState {
                stream: Some(number),
                kick: Some(sender),
                boot_id: hello.boot_id.clone(),
                version: hello.version.clone(),
                display_name: hello.display_name.clone(),
                labels: hello.labels.clone().into_iter().collect(),
                degraded: hello.degraded,
                limits: hello.limits.unwrap_or_else(limits::own),
                connected_at_ms: now_ms,
                last_seen_ms: now_ms,
                ignored: node.ignored,
                refused: std::mem::take(&mut node.refused),
                last_number: number,
                ..NodeState::default()
            };
            number
        };
        self.announce();
        Place { number, kick }
    }

    /// The stream ended. Nothing happens when a newer one is open.
    pub fn disconnect(&self, id: NodeId, number: u64, now_ms: i64) {
        self.change(id, number, |node| {
            node.stream = None;
            node.kick = None;
            node.last_seen_ms = now_ms;
        });
    }

    /// Changes what is known of a node through its open stream; others have no say.
    pub fn change(&self, id: NodeId, number: u64, change: impl FnOnce(&mut NodeState)) {
        {
            let mut nodes = self.lock();
            let Some(node) = nodes.get_mut(&id).filter(|node| node.stream == Some(number)) else { return };
            change(node);
        }
        self.announce();
    }

    /// The node may not come back, and its stream ends.
    pub fn deny(&self, id: NodeId) {
        self.denied().insert(id);
        if let Some(kick) = self.lock().get(&id).and_then(|node| node.kick.as_ref()) {
            kick.send_replace(Some(Kick::Revoked));
        }
        self.announce();
    }

    /// Ends all streams: the nodes go to another replica, or come back later.
    pub fn end_streams(&self) {
        for kick in self.lock().values().filter_map(|node| node.kick.as_ref()) {
            kick.send_replace(Some(Kick::CutOff));
        }
    }

    /// Whether the node was revoked. Asked when a stream or call begins.
    pub fn is_denied(&self, id: NodeId) -> bool {
        self.denied().contains(&id)
    }

    /// A copy of what is known of one node.
    pub fn get(&self, id: NodeId) -> Option<NodeState> {
        self.lock().get(&id).cloned()
    }

    /// How far every connected node is with a scope.
    pub fn progress(&self, scope: &str) -> Vec<(NodeId, Progress)> {
        let nodes = self.lock();
        let connected = nodes.iter().filter(|(_, node)| node.stream.is_some());
        let progress = |node: &NodeState| Progress {
            display_name: node.display_name.clone(),
            serving: node.serves.get(scope).copied(),
            refusal: node.refused.get(scope).cloned(),
        };
        connected.map(|(id, node)| (*id, progress(node))).collect()
    }

    /// Number of connected nodes.
    pub fn connected_count(&self) -> usize {
        self.lock().values().filter(|n| n.stream.is_some()).count()
    }

    /// The smallest limits of all nodes, connected here or to another replica, and our own (S12).
    pub fn smallest_limits(&self) -> proto::Limits {
        let elsewhere = *self.limits_elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        smaller(self.local_limits(), elsewhere)
    }

    /// The smallest limits of the nodes connected here, and our own.
    pub fn local_limits(&self) -> proto::Limits {
        let nodes = self.lock();
        nodes.values().filter(|n| n.stream.is_some()).map(|node| node.limits).fold(limits::own(), smaller)
    }

    /// What the nodes connected to other replicas take.
    pub fn set_limits_elsewhere(&self, limits: proto::Limits) {
        *self.limits_elsewhere.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Tells when anything changed.
    pub fn listen(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// Reads the deny list again: another replica may have revoked a node.
    ///
    /// # Errors
    /// When the database cannot be read; the list stays as it was.
    pub async fn refresh_denied(&self, db: &Db) -> Result<(), sqlx::Error> {
        let rows: Vec<(String,)> =
            sqlx::query_as("SELECT id FROM nodes WHERE revoked_at_ms > 0").fetch_all(db.pool()).await?;
        let denied: HashSet<NodeId> = rows.iter().filter_map(|(id,)| id.parse().ok()).collect();
        let news: Vec<NodeId> = denied.difference(&*self.denied()).copied().collect();
        news.into_iter().for_each(|id| self.deny(id));
        Ok(())
    }

    fn announce(&self) {
        self.moved.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, NodeState>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn denied(&self) -> MutexGuard<'_, HashSet<NodeId>> {
        self.denied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What fits both. A zero is no limit.
pub fn smaller(a: proto::Limits, b: proto::Limits) -> proto::Limits {
    let least = |a: u64, b: u64| if a == 0 || b == 0 { a.max(b) } else { a.min(b) };
    proto::Limits {
        max_scope_bytes: least(a.max_scope_bytes, b.max_scope_bytes),
        max_resources: least(a.max_resources, b.max_resources),
        max_resource_bytes: least(a.max_resource_bytes, b.max_resource_bytes),
    }
}

/// Writes down that a node is here, for when this process is not.
///
/// # Errors
/// When the database cannot be written.
pub async fn note_seen(db: &Db, id: NodeId, node: &NodeState, now_ms: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO nodes (id, display_name, version, labels, joined_at_ms, last_seen_ms, certificate_not_after_ms)
         VALUES ($1, $2, $3, '{}', $4, $4, 0)
         ON CONFLICT (id) DO UPDATE SET display_name = excluded.display_name, version = excluded.version,
             last_seen_ms = excluded.last_seen_ms",
    )
    .bind(id.to_string())
    .bind(&node.display_name)
    .bind(&node.version)
    .bind(now_ms)
    .execute(db.pool())
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(boot: u8) -> proto::Hello {
        proto::Hello { boot_id: vec![boot; 16], ..Default::default() }
    }

    #[test]
    fn a_newer_stream_ends_the_older_and_takes_over() {
        let fleet = Fleet::default();
        let id = NodeId::from_u128(1);
        let first = fleet.connect(id, &hello(1), 0);
        let second = fleet.connect(id, &hello(2), 1);
        assert_eq!(*first.kick.borrow(), Some(Kick::Superseded));
        assert_eq!(*second.kick.borrow(), None);
        fleet.change(id, first.number, |_| panic!("an ended stream has no say"));
        fleet.disconnect(id, first.number, 2);
        assert_eq!(fleet.connected_count(), 1);
        fleet.deny(id);
        assert_eq!(*second.kick.borrow(), Some(Kick::Revoked));
        assert!(fleet.is_denied(id));
        fleet.disconnect(id, second.number, 3);
        assert_eq!(fleet.connected_count(), 0);
        assert!(fleet.connect(id, &hello(3), 4).number > second.number, "numbers are never used twice");
    }

    #[test]
    fn the_smallest_limits_of_all_connected_count() {
        let fleet = Fleet::default();
        let with = |bytes, resources| proto::Hello {
            limits: Some(proto::Limits { max_scope_bytes: bytes, max_resources: resources, max_resource_bytes: 0 }),
            ..hello(1)
        };
        fleet.connect(NodeId::from_u128(1), &with(1000, 0), 0);
        let gone = fleet.connect(NodeId::from_u128(2), &with(10, 0), 0);
        fleet.connect(NodeId::from_u128(3), &with(2000, 7), 0);
        assert_eq!(fleet.smallest_limits().max_scope_bytes, 10);
        fleet.disconnect(NodeId::from_u128(2), gone.number, 0);
        let least = fleet.smallest_limits();
        assert_eq!((least.max_scope_bytes, least.max_resources), (1000, 7));
        assert_eq!(least.max_resource_bytes, limits::MAX_RESOURCE_BYTES);
    }
}
