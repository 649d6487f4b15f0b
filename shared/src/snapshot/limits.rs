//! How large a scope may be and how far one change may go. The control plane refuses to publish
//! past these and a node refuses to take it, from the same constants and functions (S11, S12).

use prost::Message;

use super::scope::Extent;
use crate::digest::{self, Hash};
use crate::proto;

/// Largest sum of kinds, ids and bodies of one scope.
pub const MAX_SCOPE_BYTES: u64 = 64 * 1024 * 1024;
/// Most resources of one scope.
pub const MAX_RESOURCES: u64 = 200_000;
/// Largest body of one resource.
pub const MAX_RESOURCE_BYTES: u64 = 1024 * 1024;
/// Longest kind, and longest id, of a resource.
pub const MAX_NAME_BYTES: usize = 512;
/// Sum of the encoded resources of one chunk of an update. gRPC's default limit for a message is
/// 4 MiB, and one resource of the largest size must fit beside others.
pub const CHUNK_BYTES: usize = 1024 * 1024;
/// Largest encoded message between the planes: a chunk, one more resource of the largest size, and
/// room for its envelope.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Updates of one node that may wait for an answer.
pub const MAX_UNACKED: usize = 32;
/// Longest `detail` of a rejection.
pub const MAX_DETAIL_BYTES: usize = 4 * 1024;
/// Longest of a provider's time limits: a day.
pub const MAX_TIMEOUT_MS: u64 = 24 * 60 * 60 * 1000;

/// Below this many, any number may go at once.
const SHRINK_FROM: usize = 20;
/// Below this size, any growth is fine.
const GROWTH_FROM: u64 = 1024 * 1024;

/// What a program built from this source can take.
pub fn own() -> proto::Limits {
    proto::Limits {
        max_scope_bytes: MAX_SCOPE_BYTES,
        max_resources: MAX_RESOURCES,
        max_resource_bytes: MAX_RESOURCE_BYTES,
    }
}

/// S11: why going from `before` to `after` needs a person's confirmation; `None` when it does not.
/// A scope that held nothing may become anything.
pub fn needs_force(before: Extent, after: Extent) -> Option<String> {
    if before.resources == 0 {
        return None;
    }
    if after.resources == 0 {
        return Some(format!("all {} resources would be removed", before.resources));
    }
    let halved = |before: usize, after: usize| before > SHRINK_FROM && after < before.div_ceil(2);
    if halved(before.resources, after.resources) {
        return Some(format!("{} of {} resources would be left", after.resources, before.resources));
    }
    if halved(before.keys, after.keys) {
        return Some(format!("{} of {} API keys would be left", after.keys, before.keys));
    }
    if after.bytes > GROWTH_FROM && after.bytes > before.bytes.saturating_mul(2) {
        return Some(format!("the size would grow from {} to {} bytes", before.bytes, after.bytes));
    }
    None
}

/// `Update.checksum`: SHA-256 over the encoded upserts of all chunks, one after the other.
pub fn checksum<'a>(upserts: impl IntoIterator<Item = &'a proto::Resource>) -> Hash {
    let mut sum = digest::Sum::default();
    let mut buffer = Vec::new();
    for resource in upserts {
        buffer.clear();
        // A vector takes any length, so encoding cannot fail.
        _ = resource.encode(&mut buffer);
        sum.update(&buffer);
    }
    sum.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_force() {
        let extent = |resources, keys, bytes| Extent { resources, keys, bytes };
        let mib = 1024 * 1024;
        let cases = [
            ("the first state", extent(0, 0, 0), extent(100_000, 99_000, 60 * mib), false),
            ("emptied", extent(1, 0, 10), extent(0, 0, 0), true),
            ("few may go", extent(20, 15, 1000), extent(1, 0, 10), false),
            ("half may go", extent(40, 30, 1000), extent(20, 15, 500), false),
            ("more than half of all", extent(40, 0, 1000), extent(19, 0, 500), true),
            ("more than half of an odd number", extent(41, 0, 1000), extent(20, 0, 500), true),
            ("more than half of the keys", extent(1000, 40, 1000), extent(979, 19, 900), true),
            ("small growth", extent(2, 1, 100), extent(5000, 4000, mib), false),
            ("doubled", extent(10, 1, mib), extent(10, 1, 2 * mib), false),
            ("more than doubled", extent(10, 1, mib), extent(10, 1, 2 * mib + 1), true),
        ];
        for (name, before, after, forced) in cases {
            assert_eq!(needs_force(before, after).is_some(), forced, "{name}");
        }
    }

    #[test]
    fn the_checksum_is_over_the_concatenation() {
        let row = |id: &str| proto::Resource { kind: "k".into(), id: id.into(), body: vec![1, 2].into() };
        let joined = [row("a").encode_to_vec(), row("b").encode_to_vec()].concat();
        assert_eq!(checksum(&[row("a"), row("b")]), digest::sha256(&[&joined]));
        assert_ne!(checksum(&[row("b"), row("a")]), digest::sha256(&[&joined]));
    }
}
