//! Hashes that both planes compute: of a resource, of a whole scope, of a usage chain.

use ring::digest::{Context, SHA256};

/// 32 bytes of SHA-256.
pub type Hash = [u8; 32];

/// SHA-256 over the concatenation of `parts`.
pub fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// SHA-256 over what comes in pieces.
pub struct Sum(Context);

impl Default for Sum {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Sum {
    /// Adds the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The hash over all pieces.
    pub fn finish(self) -> Hash {
        let mut out = [0; 32];
        out.copy_from_slice(self.0.finish().as_ref());
        out
    }
}

/// Hash of one resource: SHA-256(kind || 0x00 || id || 0x00 || body).
pub fn resource(kind: &str, id: &str, body: &[u8]) -> Hash {
    sha256(&[kind.as_bytes(), &[0], id.as_bytes(), &[0], body])
}

/// Next value of a usage chain: SHA-256(previous || encoded record).
pub fn chain(previous: &Hash, record: &[u8]) -> Hash {
    sha256(&[previous, record])
}

/// `state_hash` of a scope: the sum modulo 2^256 of its resources' hashes, big endian. Adding and
/// removing cost one addition each, whatever the scope's size, and order does not matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateHash(Hash);

impl StateHash {
    /// The hash as the wire carries it; `None` unless exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &Hash {
        &self.0
    }

    /// Counts a resource in.
    pub fn add(&mut self, resource: &Hash) {
        let mut carry = 0u16;
        for (sum, byte) in self.0.iter_mut().zip(resource).rev() {
            let total = u16::from(*sum) + u16::from(*byte) + carry;
            let [high, low] = total.to_be_bytes();
            *sum = low;
            carry = u16::from(high);
        }
    }

    /// Counts a resource out that was counted in before.
    pub fn remove(&mut self, resource: &Hash) {
        let mut borrow = false;
        for (sum, byte) in self.0.iter_mut().zip(resource).rev() {
            let (first, under) = sum.overflowing_sub(*byte);
            let (second, under_again) = first.overflowing_sub(u8::from(borrow));
            *sum = second;
            borrow = under || under_again;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any order of additions, with detours, ends at the same sum.
        #[test]
        fn order_and_detours_do_not_matter(hashes in prop::collection::vec(any::<[u8; 32]>(), 0..12),
                                           detour in any::<[u8; 32]>()) {
            let mut forward = StateHash::default();
            hashes.iter().for_each(|h| forward.add(h));
            let mut backward = StateHash::default();
            backward.add(&detour);
            hashes.iter().rev().for_each(|h| backward.add(h));
            backward.remove(&detour);
            prop_assert_eq!(forward, backward);
        }
    }

    #[test]
    fn carries_and_borrows_run_through() {
        let mut one = [0; 32];
        one[31] = 1;
        let mut sum = StateHash([255; 32]);
        sum.add(&one);
        assert_eq!(sum, StateHash::default());
        sum.remove(&one);
        assert_eq!(sum, StateHash([255; 32]));
    }
}
