//! A sorted map that is cheap to clone and to change in few places: rows in chunks, chunks shared
//! between versions. One more key among a hundred thousand copies pointers to a few hundred rows.

use std::sync::Arc;

use bytes::Bytes;

use crate::digest::Hash;

/// A chunk that grows past this is split in two.
const MAX_CHUNK: usize = 256;
/// A chunk that shrinks below this joins its neighbour.
const MIN_CHUNK: usize = 32;

/// One resource.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) kind: Box<str>,
    pub(super) id: Box<str>,
    pub(super) hash: Hash,
    pub(super) body: Bytes,
}

impl Row {
    fn name(&self) -> (&str, &str) {
        (&self.kind, &self.id)
    }
}

type Chunk = Vec<Arc<Row>>;

/// Rows in order of kind and id, each name once. No chunk is ever empty.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows {
    chunks: Vec<Arc<Chunk>>,
    len: usize,
}

impl Rows {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, kind: &str, id: &str) -> Option<&Arc<Row>> {
        let chunk = self.chunks.get(self.chunk_of((kind, id))?)?;
        let at = chunk.binary_search_by(|row| row.name().cmp(&(kind, id))).ok()?;
        chunk.get(at)
    }

    /// Adds or replaces; gives back what was there.
    pub(super) fn insert(&mut self, row: Row) -> Option<Arc<Row>> {
        let row = Arc::new(row);
        let Some(index) = self.chunk_of(row.name()) else {
            self.chunks.push(Arc::new(vec![row]));
            self.len += 1;
            return None;
        };
        let chunk = Arc::make_mut(&mut self.chunks[index]);
        match chunk.binary_search_by(|held| held.name().cmp(&row.name())) {
            Ok(at) => Some(std::mem::replace(&mut chunk[at], row)),
            Err(at) => {
                chunk.insert(at, row);
                self.len += 1;
                if chunk.len() > MAX_CHUNK {
                    let upper = chunk.split_off(MAX_CHUNK / 2);
                    self.chunks.insert(index + 1, Arc::new(upper));
                }
                None
            }
        }
    }

    /// Removes; gives back what was there.
    pub(super) fn remove(&mut self, kind: &str, id: &str) -> Option<Arc<Row>> {
        let index = self.chunk_of((kind, id))?;
        let at = self.chunks[index].binary_search_by(|row| row.name().cmp(&(kind, id))).ok()?;
        let chunk = Arc::make_mut(&mut self.chunks[index]);
        let gone = chunk.remove(at);
        self.len -= 1;
        if chunk.len() < MIN_CHUNK {
            self.join(index);
        }
        Some(gone)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// All rows of one kind.
    pub(super) fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Arc<Row>> {
        let from = self.chunk_of((kind, "")).unwrap_or(0);
        let chunks = self.chunks.get(from..).unwrap_or_default();
        chunks
            .iter()
            .flat_map(|chunk| chunk.iter())
            .skip_while(move |row| *row.kind < *kind)
            .take_while(move |row| *row.kind == *kind)
    }

    /// The chunk that holds this name or would: the last one that does not begin after it.
    fn chunk_of(&self, name: (&str, &str)) -> Option<usize> {
        if self.chunks.is_empty() {
            return None;
        }
        let after = self.chunks.partition_point(|chunk| chunk.first().is_some_and(|row| row.name() <= name));
        Some(after.saturating_sub(1))
    }

    fn join(&mut self, index: usize) {
        if self.chunks[index].is_empty() {
            self.chunks.remove(index);
            return;
        }
        let left = index.saturating_sub(1);
        let (Some(a), Some(b)) = (self.chunks.get(left), self.chunks.get(left + 1)) else { return };
        if a.len() + b.len() <= MAX_CHUNK / 2 {
            let right = self.chunks.remove(left + 1);
            Arc::make_mut(&mut self.chunks[left]).extend(right.iter().cloned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn row(kind: u8, id: u16, body: u8) -> Row {
        Row {
            kind: kind.to_string().into(),
            id: format!("{id:05}").into(),
            hash: [body; 32],
            body: Bytes::from(vec![body]),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// The same answers as a plain sorted map, whatever is added and removed; a clone taken on
        /// the way keeps its own.
        #[test]
        fn like_a_sorted_map(steps in prop::collection::vec((0_u8..3, 0_u16..900, any::<u8>(), 0_u8..10), 1..3000)) {
            let mut rows = Rows::default();
            let mut model: BTreeMap<(String, String), u8> = BTreeMap::new();
            let half = steps.len() / 2;
            let mut earlier = None;
            // Growing first, then shrinking: chunks split and join.
            for (step, (kind, id, body, dice)) in steps.into_iter().enumerate() {
                let name = (kind.to_string(), format!("{id:05}"));
                let adds = if step < half { dice < 9 } else { dice < 2 };
                let (was, is) = if adds {
                    (rows.insert(row(kind, id, body)), model.insert(name, body))
                } else {
                    (rows.remove(&name.0, &name.1), model.remove(&name))
                };
                prop_assert_eq!(was.map(|row| row.body[0]), is);
                if step == half {
                    earlier = Some((rows.clone(), model.clone()));
                }
            }
            for (rows, model) in earlier.into_iter().chain([(rows, model)]) {
                let all: Vec<_> = rows.iter().map(|r| ((r.kind.to_string(), r.id.to_string()), r.body[0])).collect();
                prop_assert_eq!(rows.len(), all.len());
                prop_assert_eq!(all, model.clone().into_iter().collect::<Vec<_>>());
                for kind in ["", "0", "1", "2", "3"] {
                    let listed = rows.of_kind(kind).count();
                    prop_assert_eq!(listed, model.keys().filter(|(k, _)| k == kind).count());
                }
                for ((kind, id), body) in &model {
                    prop_assert_eq!(rows.get(kind, id).map(|r| r.body[0]), Some(*body));
                }
                prop_assert!(rows.chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= MAX_CHUNK));
            }
        }
    }
}
