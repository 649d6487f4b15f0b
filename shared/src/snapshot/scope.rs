//! A scope's resources as bytes: what the wire and the disk carry, and what hashes are taken over.
//!
//! The control plane builds one per scope to make deltas from, a node holds one per scope to apply
//! them to. It knows nothing of what the bodies mean.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::rows::{Row, Rows};
use crate::digest::{self, StateHash};
use crate::proto;

/// The resources of one scope at one revision. A clone shares all rows with the original, so
/// keeping the state before a change costs little.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    revision: u64,
    state_hash: StateHash,
    bytes: u64,
    keys: usize,
    rows: Rows,
}

/// How large a scope is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Number of resources.
    pub resources: usize,
    /// Of which API keys.
    pub keys: usize,
    /// Sum of the sizes of kinds, ids and bodies.
    pub bytes: u64,
}

/// Everything that turns one state of a scope into the next.
#[derive(Debug, Clone, Default)]
pub struct ScopeDelta {
    /// Added or replaced.
    pub upserts: Vec<proto::Resource>,
    /// Removed.
    pub removals: Vec<proto::ResourceRef>,
}

impl Scope {
    /// Revision of the last applied change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Hash over all resources.
    pub fn state_hash(&self) -> StateHash {
        self.state_hash
    }

    /// Sum of the sizes of kinds, ids and bodies.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of resources.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 0
    }

    /// All its sizes.
    pub fn extent(&self) -> Extent {
        Extent { resources: self.rows.len(), keys: self.keys, bytes: self.bytes }
    }

    /// The body of one resource.
    pub fn get(&self, kind: &str, id: &str) -> Option<&Bytes> {
        self.rows.get(kind, id).map(|row| &row.body)
    }

    /// All resources in order of kind and id. Bodies are shared, not copied.
    pub fn resources(&self) -> impl Iterator<Item = proto::Resource> + '_ {
        self.rows.iter().map(|row| resource(row))
    }

    /// Id and body of every resource of one kind, in order of id.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a Bytes)> {
        self.rows.of_kind(kind).map(|row| (&*row.id, &row.body))
    }

    /// Applies a delta and moves to `revision`. Upserting what is there already and removing what
    /// is not change nothing.
    pub fn apply(&mut self, delta: &ScopeDelta, revision: u64) {
        for resource in &delta.upserts {
            self.upsert(resource);
        }
        for removed in &delta.removals {
            self.remove(&removed.kind, &removed.id);
        }
        self.revision = revision;
    }

    /// What applying `delta` would make of the state hash, size and count, without applying it.
    pub fn preview(&self, delta: &ScopeDelta) -> (StateHash, u64, usize) {
        // Later entries of a delta win over earlier ones, as in `apply`.
        let mut last: BTreeMap<(&str, &str), Option<&proto::Resource>> = BTreeMap::new();
        for r in &delta.upserts {
            last.insert((&r.kind, &r.id), Some(r));
        }
        for r in &delta.removals {
            last.insert((&r.kind, &r.id), None);
        }
        let (mut hash, mut bytes, mut count) = (self.state_hash, self.bytes, self.rows.len());
        for ((kind, id), new) in last {
            if let Some(old) = self.rows.get(kind, id) {
                hash.remove(&old.hash);
                bytes = bytes.saturating_sub(size(kind, id, &old.body));
                count -= 1;
            }
            if let Some(new) = new {
                hash.add(&digest::resource(kind, id, &new.body));
                bytes += size(kind, id, &new.body);
                count += 1;
            }
        }
        (hash, bytes, count)
    }

    /// What turns `self` into `next`.
    pub fn delta_to(&self, next: &Scope) -> ScopeDelta {
        let changed =
            |row: &&std::sync::Arc<Row>| self.rows.get(&row.kind, &row.id).is_none_or(|old| old.hash != row.hash);
        let gone = self.rows.iter().filter(|row| next.rows.get(&row.kind, &row.id).is_none());
        ScopeDelta {
            upserts: next.rows.iter().filter(changed).map(|row| resource(row)).collect(),
            removals: gone
                .map(|row| proto::ResourceRef { kind: row.kind.to_string(), id: row.id.to_string() })
                .collect(),
        }
    }

    fn upsert(&mut self, resource: &proto::Resource) {
        self.remove(&resource.kind, &resource.id);
        let hash = digest::resource(&resource.kind, &resource.id, &resource.body);
        self.state_hash.add(&hash);
        self.bytes += size(&resource.kind, &resource.id, &resource.body);
        self.keys += usize::from(resource.kind == KEY);
        let (kind, id) = (resource.kind.as_str().into(), resource.id.as_str().into());
        self.rows.insert(Row { kind, id, hash, body: resource.body.clone() });
    }

    fn remove(&mut self, kind: &str, id: &str) {
        if let Some(old) = self.rows.remove(kind, id) {
            self.state_hash.remove(&old.hash);
            self.bytes = self.bytes.saturating_sub(size(kind, id, &old.body));
            self.keys -= usize::from(kind == KEY);
        }
    }
}

/// The kind that is counted apart.
const KEY: &str = "api_key";

fn resource(row: &Row) -> proto::Resource {
    proto::Resource { kind: row.kind.to_string(), id: row.id.to_string(), body: row.body.clone() }
}

fn size(kind: &str, id: &str, body: &Bytes) -> u64 {
    (kind.len() + id.len() + body.len()) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scope(entries: &[(u8, u8)]) -> Scope {
        let mut scope = Scope::default();
        let upserts = entries
            .iter()
            .map(|(id, body)| proto::Resource {
                kind: "k".into(),
                id: (id % 16).to_string(),
                body: Bytes::from(vec![*body]),
            })
            .collect();
        scope.apply(&ScopeDelta { upserts, removals: Vec::new() }, 1);
        scope
    }

    proptest! {
        /// S7: whatever the two states, the delta leads from one to the other, hash included.
        #[test]
        fn a_delta_leads_where_full_state_leads(a in prop::collection::vec(any::<(u8, u8)>(), 0..40),
                                                b in prop::collection::vec(any::<(u8, u8)>(), 0..40)) {
            let (mut from, to) = (scope(&a), scope(&b));
            let delta = from.delta_to(&to);
            let foreseen = from.preview(&delta);
            from.apply(&delta, 2);
            prop_assert_eq!(from.state_hash(), to.state_hash());
            prop_assert_eq!(foreseen, (to.state_hash(), to.bytes(), to.len()));
            prop_assert_eq!(from.bytes(), to.bytes());
        }
    }
}
