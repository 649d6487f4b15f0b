//! Random bytes for keys and ids, and fast seeds for routing decisions.
//!
//! Anything that must not be guessed comes from [`bytes`]; [`seed`] is for choices only.

use std::cell::Cell;

use ring::rand::{SecureRandom, SystemRandom};

/// `N` unpredictable bytes from the operating system.
///
/// # Panics
/// When the operating system has no randomness to give, which leaves nothing safe to do.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    fill(&mut out);
    out
}

/// Fills `out` with unpredictable bytes. Panics as [`bytes`] does.
pub fn fill(out: &mut [u8]) {
    SystemRandom::new().fill(out).expect("the operating system gives random bytes");
}

/// A seed for one decision: fast, well spread, predictable by who knows an earlier one. Each thread
/// has its own sequence.
pub fn seed() -> u64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(u64::from_le_bytes(bytes()));
    }
    STATE.with(|state| {
        let (next, out) = splitmix64(state.get());
        state.set(next);
        out
    })
}

/// One step of SplitMix64 (Steele, Lea, Flood 2014): the next state and the number it gives.
pub fn splitmix64(state: u64) -> (u64, u64) {
    let next = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = next;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (next, z ^ (z >> 31))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn splitmix64_gives_the_published_numbers() {
        let mut state = 1_234_567;
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423_u64];
        for number in expected {
            let (next, out) = splitmix64(state);
            assert_eq!(out, number);
            state = next;
        }
    }

    #[test]
    fn threads_and_calls_differ() {
        let per_thread = || (0..100).map(|_| seed()).collect::<Vec<_>>();
        let other = crate::task::thread("other", per_thread)
            .expect("threads exist")
            .join()
            .expect("the thread only draws numbers");
        let all: HashSet<u64> = per_thread().into_iter().chain(other).collect();
        assert_eq!(all.len(), 200);
        assert_ne!(bytes::<32>(), bytes::<32>());
    }
}
