//! Chance as a function of a seed. The same seed and salt always give the same number, so a decision
//! can be replayed. Not for secrets.

/// 64 well-mixed bits of `seed` and `salt` (SplitMix64).
pub(crate) fn roll(seed: u64, salt: u64) -> u64 {
    let mut z = seed.wrapping_add(salt.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number below `bound`, evenly; 0 when `bound` is 0.
pub(crate) fn below(bound: u64, seed: u64, salt: u64) -> u64 {
    // The high half of a 128-bit product: no modulo bias worth speaking of and no division.
    let product = u128::from(roll(seed, salt)) * u128::from(bound);
    (product >> 64) as u64
}
