//! Two counts over the last ten seconds, in steps of one. Knows nothing of what it counts.

const STEPS: usize = 10;
const STEP_MS: u64 = 1_000;

/// Ten seconds, each with two counts. A step remembers which second it belongs to, so nothing has
/// to run for old ones to lapse.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    steps: [Step; STEPS],
}

#[derive(Debug, Clone, Copy)]
struct Step {
    second: u64,
    first: u32,
    second_count: u32,
}

impl Default for Window {
    fn default() -> Self {
        Self { steps: [Step { second: u64::MAX, first: 0, second_count: 0 }; STEPS] }
    }
}

impl Window {
    /// One more of the first kind.
    pub(super) fn add_first(&mut self, mono_ms: u64) {
        if let Some(step) = self.step(mono_ms) {
            step.first = step.first.saturating_add(1);
        }
    }

    /// One more of the second kind.
    pub(super) fn add_second(&mut self, mono_ms: u64) {
        if let Some(step) = self.step(mono_ms) {
            step.second_count = step.second_count.saturating_add(1);
        }
    }

    /// Both sums over the ten seconds that end now, the running one included.
    pub(super) fn sums(&self, mono_ms: u64) -> (u32, u32) {
        let now = mono_ms / STEP_MS;
        self.steps
            .iter()
            .filter(|step| step.second <= now && now - step.second < STEPS as u64)
            .fold((0, 0), |(a, b), step| (a.saturating_add(step.first), b.saturating_add(step.second_count)))
    }

    fn step(&mut self, mono_ms: u64) -> Option<&mut Step> {
        let second = mono_ms / STEP_MS;
        let step = self.steps.get_mut((second % STEPS as u64) as usize)?;
        if step.second != second {
            *step = Step { second, first: 0, second_count: 0 };
        }
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ten_seconds_old_no_longer_counts() {
        let mut window = Window::default();
        assert_eq!(window.sums(0), (0, 0));
        window.add_first(0);
        window.add_second(9_999);
        window.add_second(9_999);
        assert_eq!(window.sums(9_999), (1, 2));
        assert_eq!(window.sums(10_000), (0, 2));
        assert_eq!(window.sums(18_999), (0, 2));
        assert_eq!(window.sums(19_000), (0, 0));
        window.add_first(1_000_000);
        assert_eq!(window.sums(1_000_000), (1, 0));
    }
}
