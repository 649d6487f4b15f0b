//! The only reader of clocks. Pure crates get readings as arguments; `clippy.toml` bans the rest.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Wall clock: milliseconds since 1970, UTC. Jumps when the machine's clock is set; 0 before 1970.
#[expect(clippy::disallowed_methods, reason = "this is the one reader")]
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Time since the first call in this process. Never goes back; runs on while the process is stopped.
pub fn monotonic() -> Duration {
    start().elapsed()
}

/// When [`monotonic`] showed, or shows, `at`.
pub fn instant(at: Duration) -> Instant {
    start() + at
}

fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// [`monotonic`] in whole milliseconds.
pub fn monotonic_ms() -> u64 {
    u64::try_from(monotonic().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_run() {
        // 2020-01-01: a wall clock in seconds or microseconds would be far off.
        assert!((1_577_836_800_000..4_102_444_800_000).contains(&now_ms()));
        let earlier = monotonic();
        assert!(monotonic() >= earlier);
        assert!(instant(earlier) <= Instant::now() && instant(earlier).elapsed() < Duration::from_secs(60));
    }
}
