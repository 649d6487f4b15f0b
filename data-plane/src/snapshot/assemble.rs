//! Chunks of updates put together again, within limits: what does not fit is refused as a whole, and
//! what belongs to no open update is ignored.

use std::collections::BTreeMap;

use shared::proto::{self, NackCode};
use shared::snapshot::{Rejection, limits};

/// Bytes of all updates that are open at once.
const MAX_OPEN_BYTES: u64 = 2 * limits::MAX_SCOPE_BYTES;
/// Counted per resource or reference beside its bytes: what it costs in memory.
const OVERHEAD: u64 = 64;

/// What a chunk leads to.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// More is to come.
    More,
    /// All chunks of an update, as one.
    Whole(Box<proto::Update>),
    /// The update cannot be put together. Given once per update.
    Refused(Box<proto::Update>, Rejection),
    /// The chunk belongs to no open update of this stream.
    Ignored,
    /// More updates are open than the protocol allows.
    TooMany,
}

/// Updates of one stream that are not complete.
#[derive(Debug, Default)]
pub struct Assembler {
    open: BTreeMap<u64, Open>,
    newest: Option<u64>,
    bytes: u64,
}

#[derive(Debug)]
struct Open {
    /// `None`: refused, its further chunks are dropped.
    update: Option<proto::Update>,
    bytes: u64,
}

impl Assembler {
    /// Takes one chunk.
    pub fn take(&mut self, chunk: proto::Update) -> Piece {
        let nonce = chunk.nonce;
        let known = self.open.contains_key(&nonce);
        // Nonces grow: an old one was answered already, or is somebody's replay.
        if !known && self.newest.is_some_and(|newest| nonce <= newest) {
            return Piece::Ignored;
        }
        if !known && self.open.len() >= limits::MAX_UNACKED {
            return Piece::TooMany;
        }
        self.newest = self.newest.max(Some(nonce));
        let last = chunk.last || chunk.scope_removed;
        let open = self.open.entry(nonce).or_insert_with(|| Open { update: Some(empty(&chunk)), bytes: 0 });
        let added = weight(&chunk);
        open.bytes = open.bytes.saturating_add(added);
        self.bytes = self.bytes.saturating_add(added);
        let rejected = open.update.as_mut().and_then(|update| {
            if self.bytes > MAX_OPEN_BYTES {
                let detail = format!("open updates hold more than {MAX_OPEN_BYTES} bytes");
                return Some(reject(NackCode::TooLarge, update, detail));
            }
            merge(update, chunk).err()
        });
        let mut piece = Piece::More;
        if let Some(rejection) = rejected
            && let Some(mut update) = open.update.take()
        {
            update.upserts = Vec::new();
            update.removals = Vec::new();
            self.bytes = self.bytes.saturating_sub(open.bytes);
            open.bytes = 0;
            piece = Piece::Refused(Box::new(update), rejection);
        }
        if open.update.is_none() {
            // Nothing of a refused update is kept, so nothing of it counts.
            self.bytes = self.bytes.saturating_sub(open.bytes);
            open.bytes = 0;
        }
        if last && let Some(done) = self.open.remove(&nonce) {
            self.bytes = self.bytes.saturating_sub(done.bytes);
            if let Some(mut update) = done.update {
                update.last = true;
                piece = Piece::Whole(Box::new(update));
            }
        }
        piece
    }
}

fn empty(chunk: &proto::Update) -> proto::Update {
    proto::Update {
        nonce: chunk.nonce,
        scope: chunk.scope.clone(),
        from: chunk.from,
        to: chunk.to,
        ..Default::default()
    }
}

fn weight(chunk: &proto::Update) -> u64 {
    let upserts = chunk.upserts.iter().map(|r| r.kind.len() + r.id.len() + r.body.len());
    let removals = chunk.removals.iter().map(|r| r.kind.len() + r.id.len());
    upserts.chain(removals).map(|bytes| bytes as u64 + OVERHEAD).sum()
}

/// What one update is about stands in its first chunk; later ones may repeat it but not change it.
fn merge(update: &mut proto::Update, chunk: proto::Update) -> Result<(), Rejection> {
    let differs = (!chunk.scope.is_empty() && chunk.scope != update.scope)
        || (chunk.to != 0 && chunk.to != update.to)
        || (chunk.from != 0 && chunk.from != update.from);
    if differs {
        return Err(reject(NackCode::BadChecksum, update, "chunks of different updates carry the same nonce".into()));
    }
    let count = update.upserts.len() + update.removals.len() + chunk.upserts.len() + chunk.removals.len();
    if count as u64 > limits::MAX_RESOURCES.saturating_mul(2) {
        return Err(reject(NackCode::TooLarge, update, format!("{count} changes in one update")));
    }
    update.upserts.extend(chunk.upserts);
    update.removals.extend(chunk.removals);
    update.scope_removed |= chunk.scope_removed;
    update.force |= chunk.force;
    if !chunk.state_hash.is_empty() {
        update.state_hash = chunk.state_hash;
    }
    if !chunk.checksum.is_empty() {
        update.checksum = chunk.checksum;
    }
    if chunk.committed_at_ms != 0 {
        update.committed_at_ms = chunk.committed_at_ms;
    }
    Ok(())
}

fn reject(code: NackCode, update: &proto::Update, detail: String) -> Rejection {
    Rejection { code, path: format!("scope/{}", update.scope), detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(nonce: u64, ids: &[&str], last: bool) -> proto::Update {
        let resource = |id: &&str| proto::Resource { kind: "k".into(), id: (*id).into(), body: vec![7; 100].into() };
        proto::Update {
            nonce,
            scope: format!("s{nonce}"),
            to: 5,
            upserts: ids.iter().map(resource).collect(),
            state_hash: if last { vec![1; 32] } else { Vec::new() },
            last,
            ..Default::default()
        }
    }

    fn ids(piece: &Piece) -> Vec<String> {
        match piece {
            Piece::Whole(update) => update.upserts.iter().map(|r| r.id.clone()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn interleaved_chunks_find_their_updates() {
        let mut assembler = Assembler::default();
        assert_eq!(assembler.take(chunk(1, &["a"], false)), Piece::More);
        assert_eq!(assembler.take(chunk(2, &["x"], false)), Piece::More);
        assert_eq!(ids(&assembler.take(chunk(1, &["b"], true))), ["a", "b"]);
        assert_eq!(ids(&assembler.take(chunk(2, &[], true))), ["x"]);
        assert_eq!(assembler.bytes, 0);
    }

    #[test]
    fn old_nonces_are_ignored() {
        let mut assembler = Assembler::default();
        assembler.take(chunk(7, &["a"], true));
        assert_eq!(assembler.take(chunk(7, &["a"], true)), Piece::Ignored);
        assert_eq!(assembler.take(chunk(3, &["a"], false)), Piece::Ignored);
        assert_eq!(ids(&assembler.take(chunk(8, &["b"], true))), ["b"]);
    }

    #[test]
    fn a_nonce_cannot_change_what_it_is_about() {
        let mut assembler = Assembler::default();
        assembler.take(chunk(1, &["a"], false));
        let other = proto::Update { scope: "other".into(), ..chunk(1, &["b"], false) };
        assert!(matches!(assembler.take(other), Piece::Refused(_, r) if r.code == NackCode::BadChecksum));
        assert_eq!(assembler.take(chunk(1, &["c"], true)), Piece::More, "refused once, then dropped");
        assert!(assembler.open.is_empty() && assembler.bytes == 0);
    }

    #[test]
    fn memory_is_bounded() {
        let mut assembler = Assembler::default();
        let body = bytes::Bytes::from(vec![0; 1024 * 1024]);
        let big = |nonce| proto::Update {
            upserts: vec![proto::Resource { kind: "k".into(), id: "a".into(), body: body.clone() }],
            ..chunk(nonce, &[], false)
        };
        let mut refused = 0;
        for _ in 0..200 {
            for nonce in 1..=2 {
                refused += usize::from(matches!(assembler.take(big(nonce)), Piece::Refused(..)));
                assert!(assembler.bytes <= MAX_OPEN_BYTES);
            }
        }
        // The first to cross the line gives its room back; the other then crosses it alone.
        assert_eq!(refused, 2);
        assert_eq!(assembler.bytes, 0);
        for nonce in 3..33 {
            assert_eq!(assembler.take(chunk(nonce, &["a"], false)), Piece::More);
        }
        assert_eq!(assembler.take(chunk(40, &["a"], false)), Piece::TooMany);
    }
}
