//! A scope's resources as bytes: what the wire and the disk carry, and what hashes are taken over.
//!
//! The control plane builds one per scope to make deltas from, a node holds one per scope to apply
//! them to. It knows nothing of what the bodies mean.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::digest::{self, Hash, StateHash};
use crate::proto;

/// The resources of one scope at one revision.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    revision: u64,
    state_hash: StateHash,
    bytes: u64,
    resources: BTreeMap<Name, Held>,
}

/// (kind, id).
type Name = (Box<str>, Box<str>);

#[derive(Debug, Clone)]
struct Held {
    hash: Hash,
    body: Bytes,
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
        self.resources.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// The body of one resource.
    pub fn get(&self, kind: &str, id: &str) -> Option<&Bytes> {
        self.resources.get(&(kind.into(), id.into())).map(|held| &held.body)
    }

    /// All resources in order of kind and id. Bodies are shared, not copied.
    pub fn resources(&self) -> impl Iterator<Item = proto::Resource> + '_ {
        self.resources.iter().map(|((kind, id), held)| proto::Resource {
            kind: kind.to_string(),
            id: id.to_string(),
            body: held.body.clone(),
        })
    }

    /// Id and body of every resource of one kind, in order of id.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a Bytes)> {
        self.resources
            .range((Box::<str>::from(kind), Box::default())..)
            .take_while(move |((k, _), _)| **k == *kind)
            .map(|((_, id), held)| (&**id, &held.body))
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
        let (mut hash, mut bytes, mut count) = (self.state_hash, self.bytes, self.resources.len());
        for ((kind, id), new) in last {
            if let Some(old) = self.resources.get(&(kind.into(), id.into())) {
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
        let changed = |(name, held): &(&Name, &Held)| {
            self.resources.get(*name).is_none_or(|old| old.hash != held.hash)
        };
        let upserts = next.resources.iter().filter(changed).map(|((kind, id), held)| proto::Resource {
            kind: kind.to_string(),
            id: id.to_string(),
            body: held.body.clone(),
        });
        let gone = self.resources.keys().filter(|name| !next.resources.contains_key(*name));
        ScopeDelta {
            upserts: upserts.collect(),
            removals: gone
                .map(|(kind, id)| proto::ResourceRef { kind: kind.to_string(), id: id.to_string() })
                .collect(),
        }
    }

    fn upsert(&mut self, resource: &proto::Resource) {
        self.remove(&resource.kind, &resource.id);
        let hash = digest::resource(&resource.kind, &resource.id, &resource.body);
        self.state_hash.add(&hash);
        self.bytes += size(&resource.kind, &resource.id, &resource.body);
        let name = (resource.kind.as_str().into(), resource.id.as_str().into());
        self.resources.insert(name, Held { hash, body: resource.body.clone() });
    }

    fn remove(&mut self, kind: &str, id: &str) {
        if let Some(old) = self.resources.remove(&(kind.into(), id.into())) {
            self.state_hash.remove(&old.hash);
            self.bytes = self.bytes.saturating_sub(size(kind, id, &old.body));
        }
    }
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
