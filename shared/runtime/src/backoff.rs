//! When to try again: full jitter, as AWS's "Exponential Backoff and Jitter" describes it.
//!
//! It neither sleeps nor draws random numbers: the caller passes a number and gets a time to wait.

use std::time::Duration;

/// First window of a reconnect.
pub const BASE: Duration = Duration::from_millis(200);
/// Widest window of a reconnect.
pub const CAP: Duration = Duration::from_secs(30);
/// How long a connection must have held before its loss counts as the first failure again.
pub const STABLE: Duration = Duration::from_secs(60);

/// Waits between tries of one thing.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(BASE, CAP)
    }
}

impl Backoff {
    /// Windows of `base`, twice `base`, four times ... up to `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// The wait before the next try, after one more failure: evenly between nothing and
    /// min(cap, base * 2^failures), chosen by `random`.
    pub fn after_failure(&mut self, random: u64) -> Duration {
        let window = self.base.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        let nanos = (u128::from(random) * window.as_nanos()) >> 64;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The wait after a connection that held for `lasted` was lost. Only a stable one is forgiven:
    /// a server that accepts and drops must not be called every 200 ms.
    pub fn after_loss(&mut self, lasted: Duration, random: u64) -> Duration {
        if lasted >= STABLE {
            self.failures = 0;
        }
        self.after_failure(random)
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn windows_double_up_to_the_cap() {
        let mut backoff = Backoff::default();
        let windows: Vec<u64> =
            (0..10).map(|_| (backoff.after_failure(u64::MAX).as_micros() as u64).div_ceil(1000)).collect();
        assert_eq!(windows, [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        assert_eq!(backoff.after_failure(0), Duration::ZERO);
    }

    #[test]
    fn only_a_stable_connection_is_forgiven() {
        let mut backoff = Backoff::default();
        (0..5).for_each(|_| _ = backoff.after_failure(1));
        backoff.after_loss(STABLE - Duration::from_millis(1), 1);
        assert_eq!(backoff.failures(), 6);
        backoff.after_loss(STABLE, 1);
        assert_eq!(backoff.failures(), 1);
    }

    proptest! {
        #[test]
        fn never_beyond_the_window(failures in 0_u32..200, random in any::<u64>()) {
            let mut backoff = Backoff::default();
            let mut wait = Duration::ZERO;
            for _ in 0..=failures {
                wait = backoff.after_failure(random);
            }
            prop_assert!(wait <= CAP);
            prop_assert!(u128::from(failures) > 8 || wait <= BASE * (1 << failures));
        }
    }
}
