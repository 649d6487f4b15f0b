//! One node's stream as a state machine without I/O: events and the time go in, messages come out.
//!
//! S5: at most one unacknowledged update per scope and 32 per node, the newest wins, nothing queues.
//! S6: only nonces of this stream confirm. S2: nothing older than what the node holds is sent. It
//! remembers what the node refused and why, and offers the next revision only.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use prost::Message;

use shared::digest::StateHash;
use shared::ids::NodeId;
use shared::proto::{self, NackCode};
use shared::snapshot::{SCHEMA, SHARED_SCOPE, limits};

use super::published::{Board, Held, Offer, Published, ScopeName};

/// Both sides send a heartbeat this often.
pub const HEARTBEAT_MS: u64 = 10_000;
/// A side that was not heard for this long is lost.
pub const LOST_MS: u64 = 3 * HEARTBEAT_MS;
/// How long an unanswered full state keeps its place among those that are sent at once.
const FULL_PATIENCE_MS: u64 = 60_000;
/// Scopes that a Hello may name.
const MAX_HELD: usize = 100_000;
/// Labels of a node, and bytes of any text it says about itself.
const MAX_LABELS: usize = 64;
const MAX_TEXT: usize = 256;

/// A message to the node; updates stay as shared bytes.
#[derive(Clone, PartialEq)]
pub enum Outgoing {
    /// Answer to Hello.
    Welcome(proto::Welcome),
    /// A chunk of an update.
    Update {
        /// Of this stream.
        nonce: u64,
        /// Confirmed past the guard.
        force: bool,
        /// An encoded `Update` without these two.
        body: Bytes,
    },
    /// Still here.
    Heartbeat(proto::Heartbeat),
    /// Come back later.
    GoAway(proto::GoAway),
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Welcome(m) => write!(f, "{m:?}"),
            Self::Update { nonce, force, body } => write!(f, "Update({nonce}, force: {force}, {} bytes)", body.len()),
            Self::Heartbeat(m) => write!(f, "{m:?}"),
            Self::GoAway(m) => write!(f, "{m:?}"),
        }
    }
}

impl Outgoing {
    /// Writes the `ControlMessage`. The order of fields inside a message is free, so what differs
    /// between nodes stands in front of the shared bytes.
    pub fn encode(&self, to: &mut impl BufMut) {
        use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
        use proto::control_message::Message as M;
        let (nonce, force, body) = match self {
            Self::Update { nonce, force, body } => (*nonce, *force, body),
            Self::Welcome(m) => return whole(M::Welcome(m.clone()), to),
            Self::Heartbeat(m) => return whole(M::Heartbeat(*m), to),
            Self::GoAway(m) => return whole(M::GoAway(m.clone()), to),
        };
        let forced = if force { 2 } else { 0 };
        let len = 1 + encoded_len_varint(nonce) + forced + body.len();
        encode_key(2, WireType::LengthDelimited, to);
        encode_varint(len as u64, to);
        encode_key(1, WireType::Varint, to);
        encode_varint(nonce, to);
        if force {
            encode_key(10, WireType::Varint, to);
            encode_varint(1, to);
        }
        to.put_slice(body);
    }
}

fn whole(message: proto::control_message::Message, to: &mut impl BufMut) {
    // The buffer grows as needed, so there is always room.
    _ = proto::ControlMessage { message: Some(message) }.encode(to);
}

/// What the caller must do after an event, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send this.
    Send(Outgoing),
    /// The node serves this revision now.
    Serves {
        /// Of which scope.
        scope: ScopeName,
        /// Which.
        revision: u64,
        /// When it was committed, milliseconds since 1970.
        committed_at_ms: i64,
    },
    /// The node dropped the scope.
    Dropped(ScopeName),
    /// The node refused this revision and serves what it had.
    Refused(Refusal),
    /// The node holds this very revision with another content: it must be published anew.
    Diverged {
        /// Of which scope.
        scope: ScopeName,
        /// Which.
        revision: u64,
    },
    /// What the node says about itself.
    Beat(proto::Heartbeat),
    /// An answer to nothing that waits for one; it had no effect.
    Ignored,
    /// End the stream. Nothing follows.
    Close(Closing),
}

/// Why a node did not take an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Of which scope.
    pub scope: ScopeName,
    /// Which it refused.
    pub revision: u64,
    /// Why.
    pub code: NackCode,
    /// Resource and field.
    pub path: String,
    /// For a person.
    pub detail: String,
}

/// Why a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// The node broke the protocol.
    Protocol(&'static str),
    /// It cannot read any schema that we write.
    Schema,
    /// Nothing heard for [`LOST_MS`].
    Lost,
    /// The connection is as old as it may become; another replica may take the next one.
    Aged,
}

#[derive(Debug, Clone)]
struct InFlight {
    scope: ScopeName,
    revision: u64,
    state_hash: StateHash,
    committed_at_ms: i64,
    full: bool,
    removal: bool,
    sent_ms: u64,
}

/// A scope that a node is to drop.
struct Removal {
    scope: ScopeName,
    /// 0 = of no revision of this lineage.
    to: u64,
    committed_at_ms: i64,
    /// An operator asked for it.
    force: bool,
}

/// One node's stream.
#[derive(Debug)]
pub struct Session {
    board: Arc<Board>,
    /// Revision 0: it holds something, of another lineage.
    held: HashMap<ScopeName, Held>,
    /// To be looked at; "shared" sorts before every workspace.
    dirty: BTreeSet<ScopeName>,
    waiting_full: BTreeSet<ScopeName>,
    in_flight: BTreeMap<u64, InFlight>,
    by_scope: HashMap<ScopeName, u64>,
    refused: HashMap<ScopeName, (u64, NackCode)>,
    full_next: HashSet<ScopeName>,
    seen_version: u64,
    next_nonce: u64,
    admitted: bool,
    heard_ms: u64,
    beat_ms: u64,
    ends_ms: u64,
    spread_ms: u64,
}

impl Session {
    /// Opens a stream with its first message. `certified` is who the connection belongs to, `now_ms`
    /// a monotonic clock, `random` spreads the connection's age.
    ///
    /// # Errors
    /// Why the stream must end at once.
    pub fn open(
        hello: &proto::Hello,
        certified: NodeId,
        lineage: &[u8; 16],
        board: Arc<Board>,
        now_ms: u64,
        random: u64,
    ) -> Result<(Self, Vec<Output>), Closing> {
        check_hello(hello, certified)?;
        let (version, _) = board.moved_since(u64::MAX - 1);
        let same = hello.lineage == lineage;
        let held = hello.held.iter().map(|held| {
            let hash = StateHash::from_slice(&held.state_hash).unwrap_or_default();
            let revision = if same { held.revision } else { 0 };
            (ScopeName::from(held.scope.as_str()), (revision, hash))
        });
        let held: HashMap<_, _> = held.collect();
        let published = board.all();
        let dirty = held.keys().cloned().chain(published.iter().map(|p| p.scope().clone())).collect();
        // 30 minutes, 20 % more or less, and a second to come back in.
        let age_ms = 24 * 60_000 + random % (12 * 60_000);
        let mut session = Self {
            board,
            held,
            dirty,
            waiting_full: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            by_scope: HashMap::new(),
            refused: HashMap::new(),
            full_next: HashSet::new(),
            seen_version: version,
            next_nonce: 1,
            admitted: false,
            heard_ms: now_ms,
            beat_ms: now_ms,
            ends_ms: now_ms.saturating_add(age_ms),
            spread_ms: random % 1000,
        };
        let welcome = proto::Welcome {
            lineage: lineage.to_vec(),
            schema: SCHEMA.min(hello.schema_max),
            heartbeat_ms: HEARTBEAT_MS,
            scopes: session.board.live_scopes() as u64,
        };
        let mut out = vec![Output::Send(Outgoing::Welcome(welcome))];
        session.pump(now_ms, &mut out);
        Ok((session, out))
    }

    /// A message of the node.
    pub fn message(&mut self, message: proto::NodeMessage, now_ms: u64) -> Vec<Output> {
        use proto::node_message::Message as M;
        self.heard_ms = now_ms;
        let mut out = Vec::new();
        match message.message {
            Some(M::Ack(ack)) => self.ack(&ack, &mut out),
            Some(M::Nack(nack)) => self.nack(nack, &mut out),
            Some(M::Heartbeat(beat)) => out.push(Output::Beat(beat)),
            Some(M::Hello(_)) => return vec![Output::Close(Closing::Protocol("a second Hello"))],
            None => return vec![Output::Close(Closing::Protocol("a message of no known kind"))],
        }
        self.pump(now_ms, &mut out);
        out
    }

    /// The board moved.
    pub fn moved(&mut self, now_ms: u64) -> Vec<Output> {
        let (version, moved) = self.board.moved_since(self.seen_version);
        self.seen_version = version;
        match moved {
            Some(scopes) => self.dirty.extend(scopes),
            None => self.dirty.extend(self.board.all().iter().map(|p| p.scope().clone())),
        }
        let mut out = Vec::new();
        self.pump(now_ms, &mut out);
        out
    }

    /// Time passed.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Output> {
        let mut out = Vec::new();
        if now_ms.saturating_sub(self.heard_ms) >= LOST_MS {
            return vec![Output::Close(Closing::Lost)];
        }
        if now_ms >= self.ends_ms {
            let reason = "the connection has reached its age".into();
            let go = proto::GoAway { reason, retry_after_ms: self.spread_ms };
            return vec![Output::Send(Outgoing::GoAway(go)), Output::Close(Closing::Aged)];
        }
        if now_ms.saturating_sub(self.beat_ms) >= HEARTBEAT_MS {
            self.beat_ms = now_ms;
            out.push(Output::Send(Outgoing::Heartbeat(proto::Heartbeat::default())));
        }
        out
    }

    /// Whether full states wait for [`Session::admit`].
    pub fn waits_for_full(&self) -> bool {
        !self.waiting_full.is_empty()
    }

    /// This node may be sent full states now.
    pub fn admit(&mut self, now_ms: u64) -> Vec<Output> {
        self.admitted = true;
        self.dirty.append(&mut self.waiting_full);
        let mut out = Vec::new();
        self.pump(now_ms, &mut out);
        out
    }

    /// Whether the place given by [`Session::admit`] is free again; it is given back with this call.
    pub fn gives_back(&mut self, now_ms: u64) -> bool {
        let busy = |f: &InFlight| f.full && now_ms.saturating_sub(f.sent_ms) < FULL_PATIENCE_MS;
        if self.admitted && !self.in_flight.values().any(busy) {
            self.admitted = false;
        }
        !self.admitted
    }

    /// Updates that wait for an answer.
    pub fn unacked(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether nothing is left to send or to wait for: the node has all that there is, or refused it.
    pub fn is_settled(&self) -> bool {
        self.dirty.is_empty() && self.waiting_full.is_empty() && self.in_flight.is_empty()
    }

    /// What the node serves, as far as it is known: scope and revision.
    pub fn serves(&self) -> impl Iterator<Item = (&ScopeName, u64)> {
        self.held.iter().filter(|(_, (revision, _))| *revision > 0).map(|(scope, (revision, _))| (scope, *revision))
    }

    fn ack(&mut self, ack: &proto::Ack, out: &mut Vec<Output>) {
        let Some(sent) = self.in_flight.get(&ack.nonce) else {
            out.push(Output::Ignored);
            return;
        };
        let same_hash = sent.removal || ack.state_hash == sent.state_hash.as_bytes();
        if *ack.scope != *sent.scope || (!sent.removal && ack.revision != sent.revision) {
            out.push(Output::Ignored);
            return;
        }
        let Some(sent) = self.take(ack.nonce) else { return };
        let scope = sent.scope.clone();
        if !same_hash {
            // It applied something else than was meant; only everything is sure to mend it.
            let hash = StateHash::from_slice(&ack.state_hash).unwrap_or_default();
            self.held.insert(scope.clone(), (ack.revision, hash));
            self.full_next.insert(scope);
            return;
        }
        self.refused.remove(&scope);
        self.full_next.remove(&scope);
        if sent.removal {
            self.held.remove(&scope);
            out.push(Output::Dropped(scope));
            return;
        }
        self.held.insert(scope.clone(), (sent.revision, sent.state_hash));
        if *scope == *SHARED_SCOPE {
            self.retry_dangling();
        }
        out.push(Output::Serves { scope, revision: sent.revision, committed_at_ms: sent.committed_at_ms });
    }

    fn nack(&mut self, nack: proto::Nack, out: &mut Vec<Output>) {
        let matches = self.in_flight.get(&nack.nonce).is_some_and(|sent| *sent.scope == *nack.scope);
        let Some(sent) = matches.then(|| self.take(nack.nonce)).flatten() else {
            out.push(Output::Ignored);
            return;
        };
        let code = nack.code();
        let scope = sent.scope.clone();
        if !sent.removal {
            let hash = StateHash::from_slice(&nack.held_state_hash).unwrap_or_default();
            match nack.held_revision {
                0 => _ = self.held.remove(&scope),
                revision => _ = self.held.insert(scope.clone(), (revision, hash)),
            }
        }
        if code == NackCode::HashMismatch && !sent.full && !sent.removal {
            self.full_next.insert(scope);
            return;
        }
        self.refused.insert(scope.clone(), (sent.revision, code));
        let cut = |mut text: String| {
            let end = (0..=limits::MAX_DETAIL_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
            text.truncate(end.unwrap_or_default());
            text
        };
        let (path, detail) = (cut(nack.path), cut(nack.detail));
        out.push(Output::Refused(Refusal { scope, revision: sent.revision, code, path, detail }));
    }

    fn take(&mut self, nonce: u64) -> Option<InFlight> {
        let sent = self.in_flight.remove(&nonce)?;
        self.by_scope.remove(&sent.scope);
        // Whatever moved meanwhile was skipped: look again.
        self.dirty.insert(sent.scope.clone());
        Some(sent)
    }

    /// A workspace may have been refused only because the catalogue was behind it.
    fn retry_dangling(&mut self) {
        let again: Vec<_> = self
            .refused
            .iter()
            .filter(|(_, (_, code))| *code == NackCode::DanglingRef)
            .map(|(s, _)| s.clone())
            .collect();
        for scope in again {
            self.refused.remove(&scope);
            self.dirty.insert(scope);
        }
    }

    fn pump(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        while self.in_flight.len() < limits::MAX_UNACKED {
            let Some(scope) = self.dirty.first().cloned() else { break };
            // Workspaces are linked to the catalogue: it goes first, and they wait for the answer.
            let shared_open = self.by_scope.contains_key(SHARED_SCOPE) || self.waiting_full.contains(SHARED_SCOPE);
            if shared_open && *scope != *SHARED_SCOPE {
                break;
            }
            self.dirty.remove(&scope);
            if !self.by_scope.contains_key(&scope) {
                self.offer(scope, now_ms, out);
            }
        }
    }

    fn offer(&mut self, scope: ScopeName, now_ms: u64, out: &mut Vec<Output>) {
        let held = self.held.get(&scope).copied();
        let Some(published) = self.board.get(&scope) else {
            // Within a lineage a scope that this replica does not know is one it has yet to hear of.
            if held.is_some_and(|(revision, _)| revision == 0) {
                self.send_removal(Removal { scope, to: 0, committed_at_ms: 0, force: false }, now_ms, out);
            }
            return;
        };
        let target = published.revision();
        if self.refused.get(&scope).is_some_and(|(revision, _)| *revision == target) {
            return;
        }
        if published.is_removed() {
            if let Some((revision, _)) = held {
                let to = if target > revision { target } else { 0 };
                let (committed_at_ms, force) = (published.committed_at_ms(), published.is_confirmed_since(revision));
                self.send_removal(Removal { scope, to, committed_at_ms, force }, now_ms, out);
            }
            return;
        }
        let known = held.filter(|(revision, _)| *revision > 0);
        if let Some((revision, hash)) = known {
            if revision > target || (revision == target && hash == published.state_hash()) {
                return;
            }
            if revision == target {
                out.push(Output::Diverged { scope, revision });
                return;
            }
        }
        let offer = match self.full_next.contains(&scope) {
            true => published.offer_full(known.map(|(revision, _)| revision).unwrap_or_default()),
            false => published.offer(known),
        };
        if offer.encoded.from == 0 && !self.admitted {
            self.waiting_full.insert(scope);
            return;
        }
        self.send(&published, offer, now_ms, out);
    }

    fn send(&mut self, published: &Published, offer: Offer, now_ms: u64, out: &mut Vec<Output>) {
        let nonce = self.nonce();
        let Offer { encoded, force } = offer;
        let sent = InFlight {
            scope: published.scope().clone(),
            revision: encoded.to,
            state_hash: published.state_hash(),
            committed_at_ms: published.committed_at_ms(),
            full: encoded.from == 0,
            removal: false,
            sent_ms: now_ms,
        };
        self.by_scope.insert(sent.scope.clone(), nonce);
        self.in_flight.insert(nonce, sent);
        let chunks = encoded.chunks.iter().map(|body| Outgoing::Update { nonce, force, body: body.clone() });
        out.extend(chunks.map(Output::Send));
    }

    fn send_removal(&mut self, removal: Removal, now_ms: u64, out: &mut Vec<Output>) {
        let Removal { scope, to, committed_at_ms, force } = removal;
        // A removal of an unknown scope has no revision: refused once is refused for this stream.
        if self.refused.get(&scope).is_some_and(|(revision, _)| *revision == to) {
            return;
        }
        let nonce = self.nonce();
        let update = proto::Update {
            scope: scope.to_string(),
            to,
            last: true,
            scope_removed: true,
            committed_at_ms,
            ..Default::default()
        };
        let body = Bytes::from(update.encode_to_vec());
        let sent = InFlight {
            scope: scope.clone(),
            revision: to,
            state_hash: StateHash::default(),
            committed_at_ms,
            full: false,
            removal: true,
            sent_ms: now_ms,
        };
        self.by_scope.insert(scope, nonce);
        self.in_flight.insert(nonce, sent);
        out.push(Output::Send(Outgoing::Update { nonce, force, body }));
    }

    fn nonce(&mut self) -> u64 {
        let nonce = self.next_nonce;
        self.next_nonce += 1;
        nonce
    }
}

fn check_hello(hello: &proto::Hello, certified: NodeId) -> Result<(), Closing> {
    let short = |text: &str| text.len() <= MAX_TEXT;
    let labels = |hello: &proto::Hello| hello.labels.iter().all(|(k, v)| short(k) && short(v));
    let rules = [
        (hello.node_id == certified.to_string(), "the node id differs from the certificate's"),
        (hello.boot_id.len() == 16, "boot_id must be 16 bytes"),
        (matches!(hello.lineage.len(), 0 | 16), "lineage must be 16 bytes or empty"),
        (short(&hello.version) && short(&hello.display_name), "version or display_name is too long"),
        (hello.labels.len() <= MAX_LABELS && labels(hello), "too many or too long labels"),
        (
            hello.held.len() <= MAX_HELD && hello.held.iter().all(|h| short(&h.scope)),
            "too many or too long held scopes",
        ),
        (hello.held.iter().all(|h| matches!(h.state_hash.len(), 0 | 32)), "a state hash must be 32 bytes"),
        (hello.schema_min <= hello.schema_max, "schema_min is above schema_max"),
    ];
    if let Some((_, broken)) = rules.iter().find(|(holds, _)| !holds) {
        return Err(Closing::Protocol(broken));
    }
    // There is one schema yet; a newer program writes the newest that both know.
    if hello.schema_min > SCHEMA || hello.schema_max == 0 {
        return Err(Closing::Schema);
    }
    Ok(())
}
