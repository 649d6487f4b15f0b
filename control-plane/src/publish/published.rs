//! What is published: per scope the newest compiled state, enough of its past to make deltas, and the
//! encoded form, made once for all nodes. The board holds all scopes and tells who listens which moved.
//!
//! It knows no node and no database; what it holds is bounded by the scopes' own limits and the
//! horizon below.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;

use shared::digest::{StateHash, Sum};
use shared::proto;
use shared::snapshot::limits;
use shared::snapshot::{SHARED_SCOPE, Scope, ScopeDelta};

/// Workspace id, or "shared".
pub type ScopeName = Arc<str>;

/// Earlier revisions that deltas can start from, at most.
const HORIZON_REVISIONS: usize = 512;
/// Changed names kept for them, at most.
const HORIZON_NAMES: usize = 50_000;
/// Encoded forms kept per published state: full, and deltas from the revisions that nodes hold most.
const ENCODED_FORMS: usize = 64;
/// Moves that the board remembers; a listener that missed more looks at every scope.
const RECENT_MOVES: usize = 1024;

/// One scope at its newest published revision. Immutable; the next revision is another value.
#[derive(Debug)]
pub struct Published {
    scope: ScopeName,
    state: Scope,
    removed: bool,
    committed_at_ms: i64,
    forced_at: u64,
    past: VecDeque<Step>,
    encoded: Mutex<HashMap<u64, Arc<Encoded>>>,
}

/// A published revision, and what it changed.
#[derive(Debug, Clone)]
struct Step {
    revision: u64,
    state_hash: StateHash,
    names: Arc<[(Box<str>, Box<str>)]>,
}

/// An update as bytes, without what differs between nodes (the nonce and `force`).
#[derive(Debug)]
pub struct Encoded {
    /// 0 = full state.
    pub from: u64,
    /// Revision that it leads to.
    pub to: u64,
    /// Encoded `Update` messages, in order.
    pub chunks: Vec<Bytes>,
}

impl Encoded {
    /// Size of all chunks.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.len() as u64).sum()
    }
}

/// What a node holds of a scope: revision and state hash.
pub type Held = (u64, StateHash);

/// An update chosen for one node.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The update.
    pub encoded: Arc<Encoded>,
    /// Shrinking or growing past the guard is confirmed, or was checked step by step here.
    pub force: bool,
}

/// What belongs to a revision beside its content.
#[derive(Debug, Clone, Copy, Default)]
pub struct Commit {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Last revision that an operator confirmed past the guard; 0 = none.
    pub forced_at: u64,
}

impl Published {
    /// The first state that this process publishes of a scope.
    pub fn first(scope: ScopeName, state: Scope, commit: Commit) -> Self {
        let step = Step { revision: state.revision(), state_hash: state.state_hash(), names: Arc::default() };
        Self::new(scope, state, commit, VecDeque::from([step]))
    }

    /// The next state; `delta` leads to it from this one.
    pub fn next(&self, state: Scope, delta: &ScopeDelta, commit: Commit) -> Self {
        let upserts = delta.upserts.iter().map(|r| (r.kind.as_str().into(), r.id.as_str().into()));
        let removals = delta.removals.iter().map(|r| (r.kind.as_str().into(), r.id.as_str().into()));
        let mut past = self.past.clone();
        past.push_back(Step {
            revision: state.revision(),
            state_hash: state.state_hash(),
            names: upserts.chain(removals).collect(),
        });
        let mut names: usize = past.iter().map(|step| step.names.len()).sum();
        while past.len() > 1 && (past.len() > HORIZON_REVISIONS || names > HORIZON_NAMES) {
            names -= past.pop_front().map(|step| step.names.len()).unwrap_or_default();
        }
        Self::new(self.scope.clone(), state, commit, past)
    }

    /// The scope is gone as of `revision`.
    pub fn removed(scope: ScopeName, revision: u64, commit: Commit) -> Self {
        let mut state = Scope::default();
        state.apply(&ScopeDelta::default(), revision);
        Self { removed: true, ..Self::new(scope, state, commit, VecDeque::new()) }
    }

    fn new(scope: ScopeName, state: Scope, commit: Commit, past: VecDeque<Step>) -> Self {
        Self {
            scope,
            state,
            removed: false,
            committed_at_ms: commit.at_ms,
            forced_at: commit.forced_at,
            past,
            encoded: Mutex::default(),
        }
    }

    /// Its name.
    pub fn scope(&self) -> &ScopeName {
        &self.scope
    }

    /// Its resources.
    pub fn state(&self) -> &Scope {
        &self.state
    }

    /// Its revision.
    pub fn revision(&self) -> u64 {
        self.state.revision()
    }

    /// Its state hash.
    pub fn state_hash(&self) -> StateHash {
        self.state.state_hash()
    }

    /// Whether the workspace was deleted.
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// When the revision was committed, milliseconds since 1970.
    pub fn committed_at_ms(&self) -> i64 {
        self.committed_at_ms
    }

    /// Whether an operator confirmed this state, or a later one than `held_revision`, past the guard.
    pub fn is_confirmed_since(&self, held_revision: u64) -> bool {
        held_revision < self.forced_at
    }

    /// What brings a node here that holds `held` of the scope: a delta when the past reaches back to
    /// exactly that state, else everything.
    pub fn offer(&self, held: Option<Held>) -> Offer {
        let known = held.and_then(|(revision, hash)| {
            self.past.iter().position(|step| step.revision == revision && step.state_hash == hash)
        });
        let confirmed = held.is_some_and(|(revision, _)| self.is_confirmed_since(revision));
        let encoded = match (known, held) {
            (Some(at), Some((revision, _))) => self.encoded(revision, || self.delta_after(at)),
            (_, _) => self.full(),
        };
        Offer { encoded, force: confirmed || known.is_some() }
    }

    /// Everything, whatever the node holds. `held_revision` decides only whether it is confirmed.
    pub fn offer_full(&self, held_revision: u64) -> Offer {
        let known = self.past.iter().any(|step| step.revision == held_revision);
        Offer { encoded: self.full(), force: self.is_confirmed_since(held_revision) || known }
    }

    fn full(&self) -> Arc<Encoded> {
        self.encoded(0, || ScopeDelta { upserts: self.state.resources().collect(), removals: Vec::new() })
    }

    fn delta_after(&self, step: usize) -> ScopeDelta {
        let changed: BTreeSet<_> = self.past.iter().skip(step + 1).flat_map(|step| step.names.iter()).collect();
        let mut delta = ScopeDelta::default();
        for (kind, id) in changed {
            let (kind, id) = (kind.to_string(), id.to_string());
            match self.state.get(&kind, &id).cloned() {
                Some(body) => delta.upserts.push(proto::Resource { kind, id, body }),
                None => delta.removals.push(proto::ResourceRef { kind, id }),
            }
        }
        delta
    }

    fn encoded(&self, from: u64, delta: impl FnOnce() -> ScopeDelta) -> Arc<Encoded> {
        let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = encoded.get(&from) {
            return found.clone();
        }
        let made = Arc::new(Encoded { from, to: self.revision(), chunks: self.chunks(from, delta()) });
        if encoded.len() < ENCODED_FORMS {
            encoded.insert(from, made.clone());
        }
        made
    }

    fn chunks(&self, from: u64, delta: ScopeDelta) -> Vec<Bytes> {
        let empty = proto::Update {
            scope: self.scope.to_string(),
            from,
            to: self.revision(),
            committed_at_ms: self.committed_at_ms,
            ..Default::default()
        };
        let (mut sum, mut buffer) = (Sum::default(), Vec::new());
        let (mut chunk, mut size) = (empty.clone(), 0);
        let mut done = Vec::new();
        let mut close = |chunk: &mut proto::Update, size: &mut usize, next: usize| {
            if *size > 0 && *size + next > limits::CHUNK_BYTES {
                done.push(Bytes::from(std::mem::replace(chunk, empty.clone()).encode_to_vec()));
                *size = 0;
            }
            *size += next;
        };
        for removal in delta.removals {
            close(&mut chunk, &mut size, removal.encoded_len() + 8);
            chunk.removals.push(removal);
        }
        for resource in delta.upserts {
            buffer.clear();
            // A vector takes any length, so encoding cannot fail.
            _ = resource.encode(&mut buffer);
            sum.update(&buffer);
            close(&mut chunk, &mut size, buffer.len() + 8);
            chunk.upserts.push(resource);
        }
        chunk.state_hash = self.state_hash().as_bytes().to_vec();
        chunk.checksum = sum.finish().to_vec();
        chunk.last = true;
        done.push(chunk.encode_to_vec().into());
        done
    }
}

/// All published scopes.
#[derive(Debug)]
pub struct Board {
    posted: RwLock<Posted>,
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Posted {
    scopes: HashMap<ScopeName, Arc<Published>>,
    /// (version, scope), oldest first.
    moves: VecDeque<(u64, ScopeName)>,
    version: u64,
    complete: bool,
}

impl Default for Board {
    fn default() -> Self {
        Self { posted: RwLock::default(), version: watch::Sender::new(0) }
    }
}

impl Board {
    /// The newest published state of a scope.
    pub fn get(&self, scope: &str) -> Option<Arc<Published>> {
        self.read().scopes.get(scope).cloned()
    }

    /// Every scope that ever was published by this process, removed ones included.
    pub fn all(&self) -> Vec<Arc<Published>> {
        self.read().scopes.values().cloned().collect()
    }

    /// Number of scopes that a node is to hold.
    pub fn live_scopes(&self) -> usize {
        self.read().scopes.values().filter(|p| !p.is_removed()).count()
    }

    /// Puts up a newer state. An older or equal revision than the one there is ignored.
    pub fn post(&self, published: Published) {
        {
            let mut posted = self.posted.write().unwrap_or_else(PoisonError::into_inner);
            let scope = published.scope().clone();
            if posted.scopes.get(&scope).is_some_and(|there| there.revision() >= published.revision()) {
                return;
            }
            posted.scopes.insert(scope.clone(), Arc::new(published));
            posted.version += 1;
            let version = posted.version;
            posted.moves.push_back((version, scope));
            if posted.moves.len() > RECENT_MOVES {
                posted.moves.pop_front();
            }
        }
        self.announce();
    }

    /// Every scope has been compiled once: from now on nodes may be served.
    pub fn complete(&self) {
        {
            let mut posted = self.posted.write().unwrap_or_else(PoisonError::into_inner);
            if std::mem::replace(&mut posted.complete, true) {
                return;
            }
            posted.version += 1;
        }
        self.announce();
    }

    /// Whether [`Board::complete`] was called and the shared scope is there.
    pub fn is_complete(&self) -> bool {
        let posted = self.read();
        posted.complete && posted.scopes.contains_key(SHARED_SCOPE)
    }

    /// Tells when something moved.
    pub fn listen(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The version now, and what moved after `version`; `None` = too long ago to tell.
    pub fn moved_since(&self, version: u64) -> (u64, Option<Vec<ScopeName>>) {
        let posted = self.read();
        let reaches_back = posted.moves.front().is_none_or(|(first, _)| *first <= version + 1);
        let moved = reaches_back
            .then(|| posted.moves.iter().filter(|(v, _)| *v > version).map(|(_, scope)| scope.clone()).collect());
        (posted.version, moved)
    }

    fn announce(&self) {
        let version = self.read().version;
        self.version.send_if_modified(|known| std::mem::replace(known, version) < version);
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Posted> {
        self.posted.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(encoded: &Encoded) -> Vec<proto::Update> {
        encoded.chunks.iter().map(|c| proto::Update::decode(c.clone()).expect("it was encoded here")).collect()
    }

    fn merged(encoded: &Encoded) -> ScopeDelta {
        let chunks = decode(encoded);
        ScopeDelta {
            upserts: chunks.iter().flat_map(|u| u.upserts.clone()).collect(),
            removals: chunks.iter().flat_map(|u| u.removals.clone()).collect(),
        }
    }

    fn delta(entries: &[(u8, Option<u8>)]) -> ScopeDelta {
        let mut delta = ScopeDelta::default();
        // A compiled change names each resource once.
        let unique: std::collections::BTreeMap<_, _> = entries.iter().map(|(id, body)| (id % 8, body)).collect();
        for (id, body) in unique {
            let (kind, id) = ("k".to_owned(), id.to_string());
            match body {
                Some(body) => delta.upserts.push(proto::Resource { kind, id, body: vec![*body].into() }),
                None => delta.removals.push(proto::ResourceRef { kind, id }),
            }
        }
        delta
    }

    proptest! {
        /// S7: from any earlier published state, the offered update leads to the newest one.
        #[test]
        fn every_offer_leads_to_the_published_state(
            steps in prop::collection::vec(prop::collection::vec(any::<(u8, Option<u8>)>(), 0..6), 1..12),
        ) {
            let mut states = vec![Scope::default()];
            let mut published: Option<Published> = None;
            for (revision, step) in (1..).zip(&steps) {
                let delta = delta(step);
                let mut state = states.last().expect("never empty").clone();
                state.apply(&delta, revision);
                published = Some(match published {
                    None => Published::first("ws".into(), state.clone(), Commit::default()),
                    Some(p) => p.next(state.clone(), &delta, Commit::default()),
                });
                states.push(state);
            }
            let published = published.expect("at least one step");
            for mut held in states {
                let offer = published.offer(Some((held.revision(), held.state_hash())));
                if offer.encoded.from == 0 {
                    prop_assert!(held.revision() == 0, "only the unknown needs everything");
                    held = Scope::default();
                }
                held.apply(&merged(&offer.encoded), offer.encoded.to);
                prop_assert_eq!(held.state_hash(), published.state_hash());
                prop_assert_eq!(held.revision(), published.revision());
            }
            let mut wrong = published.state_hash();
            wrong.add(&[1; 32]);
            prop_assert_eq!(published.offer(Some((published.revision(), wrong))).encoded.from, 0);
        }
    }

    #[test]
    fn large_states_come_in_chunks_with_one_checksum() {
        let upserts: Vec<_> = (0..40)
            .map(|n| proto::Resource { kind: "k".into(), id: format!("{n:02}"), body: vec![n; 100_000].into() })
            .collect();
        let mut state = Scope::default();
        state.apply(&ScopeDelta { upserts: upserts.clone(), removals: Vec::new() }, 7);
        let published = Published::first("ws".into(), state, Commit { at_ms: 5, forced_at: 0 });
        let offer = published.offer(None);
        let chunks = decode(&offer.encoded);
        assert_eq!(chunks.len(), 4);
        assert!(offer.encoded.chunks.iter().all(|c| c.len() <= limits::CHUNK_BYTES + 1024));
        let last: Vec<_> = chunks.iter().map(|c| c.last).collect();
        assert_eq!(last, [false, false, false, true]);
        assert!(chunks.iter().all(|c| (c.from, c.to, c.scope.as_str(), c.committed_at_ms) == (0, 7, "ws", 5)));
        assert_eq!(chunks[3].checksum, limits::checksum(&merged(&offer.encoded).upserts));
        assert!(Arc::ptr_eq(&offer.encoded, &published.offer(None).encoded), "encoded once for all nodes");
    }

    #[test]
    fn an_old_past_ends_in_full_state_and_stays_bounded() {
        let step = |revision: u64| delta(&[(0, Some(u8::try_from(revision % 251).expect("below 251")))]);
        let mut state = Scope::default();
        state.apply(&step(1), 1);
        let first = (1, state.state_hash());
        let mut published = Published::first("ws".into(), state.clone(), Commit::default());
        for revision in 2..2_000 {
            state.apply(&step(revision), revision);
            published = published.next(state.clone(), &step(revision), Commit::default());
        }
        assert!(published.past.len() <= HORIZON_REVISIONS);
        assert_eq!(published.offer(Some(first)).encoded.from, 0);
    }

    #[test]
    fn confirmed_shrinking_reaches_nodes_that_were_away() {
        let mut state = Scope::default();
        state.apply(&delta(&[(1, Some(1))]), 9);
        let published = Published::first("ws".into(), state, Commit { at_ms: 0, forced_at: 8 });
        let held = |revision| Some((revision, StateHash::default()));
        assert!(published.offer(held(7)).force);
        assert!(!published.offer(held(8)).force);
        assert!(!published.offer(None).force);
    }

    #[test]
    fn listeners_hear_which_scopes_moved() {
        let board = Board::default();
        let post = |scope: &str, revision| {
            let mut state = Scope::default();
            state.apply(&ScopeDelta::default(), revision);
            board.post(Published::first(scope.into(), state, Commit::default()));
        };
        let heard = board.listen();
        post("a", 2);
        post("b", 1);
        post("a", 1);
        assert_eq!(*heard.borrow(), 2);
        assert_eq!(board.moved_since(0), (2, Some(vec!["a".into(), "b".into()])));
        assert_eq!(board.moved_since(1), (2, Some(vec!["b".into()])));
        assert_eq!(board.get("a").map(|p| p.revision()), Some(2), "an older revision never replaces a newer one");
        (0..2_000).for_each(|n| post("c", n + 1));
        assert_eq!(board.moved_since(1).1, None);
        assert!(!board.is_complete());
    }
}
