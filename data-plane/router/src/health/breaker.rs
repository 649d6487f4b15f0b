//! The state machine of one circuit: closed, open, half-open. Refuses to know why an attempt went
//! well or badly; it is given a verdict.

use super::window::Window;
use crate::dice;

/// Attempts in the window before a ratio means anything.
const ENOUGH_CALLS: u32 = 10;
/// Connections that failed one after the other.
const CONNECTIONS_IN_A_ROW: u32 = 5;
/// First rest of an open circuit; doubles with every opening up to the longest.
const FIRST_REST_MS: u64 = 5_000;
const LONGEST_REST_MS: u64 = 60_000;
/// A circuit that stayed closed for so long starts again with the first rest.
const FORGIVEN_AFTER_MS: u64 = 60_000;
/// Good probes that close a circuit.
const PROBES_TO_CLOSE: u8 = 2;
/// A probe that never reported back.
const PROBE_LOST_MS: u64 = 60_000;
/// Longest time a provider's `Retry-After` keeps a circuit shut for other requests.
const LONGEST_LIMIT_MS: u64 = 60_000;

/// Whether a circuit takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Live,
    /// The next request is the probe.
    Probe,
    /// It does not.
    Shut {
        /// Monotonic time at which that may change.
        until_ms: u64,
    },
}

/// Proof of an attempt that began; ties its outcome to the state it began in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    epoch: u32,
    probe: bool,
}

impl Ticket {
    /// For a circuit that is not kept.
    pub(super) const UNTRACKED: Self = Self { epoch: u32::MAX, probe: false };
}

/// What an outcome says.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict {
    Good,
    Bad,
    NoConnection,
    Limited { for_ms: u64 },
    Unknown,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed { since_ms: u64 },
    Open { until_ms: u64 },
    HalfOpen { good: u8, probe_ms: Option<u64> },
}

#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Counts changes of state: an attempt that began before one says nothing about what follows.
    epoch: u32,
    /// Good and bad outcomes.
    window: Window,
    connections_failed: u32,
    /// Openings since it was last forgiven.
    openings: u32,
    limited_until_ms: u64,
    used_ms: u64,
    /// Attempts without an answer yet.
    pub(super) waiting: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: State::Closed { since_ms: 0 },
            epoch: 0,
            window: Window::default(),
            connections_failed: 0,
            openings: 0,
            limited_until_ms: 0,
            used_ms: 0,
            waiting: 0,
        }
    }
}

impl Breaker {
    pub(super) fn standing(&self, mono_ms: u64) -> Standing {
        let limited = self.limited_until_ms;
        match self.state {
            State::Open { until_ms } if mono_ms < until_ms => Standing::Shut { until_ms: until_ms.max(limited) },
            State::HalfOpen { probe_ms: Some(began), .. } if mono_ms < began + PROBE_LOST_MS => {
                Standing::Shut { until_ms: mono_ms.max(limited) }
            }
            State::Closed { .. } | State::Open { .. } | State::HalfOpen { .. } if mono_ms < limited => {
                Standing::Shut { until_ms: limited }
            }
            State::Closed { .. } => Standing::Live,
            State::Open { .. } | State::HalfOpen { .. } => Standing::Probe,
        }
    }

    pub(super) fn started(&mut self, mono_ms: u64) -> Ticket {
        if mono_ms > self.used_ms + PROBE_LOST_MS {
            // Nothing began or ended for a minute: whatever still counts as waiting was lost or is
            // so slow that it proves nothing.
            self.waiting = 0;
        }
        self.used_ms = mono_ms;
        self.waiting = self.waiting.saturating_add(1);
        let probe = self.standing(mono_ms) == Standing::Probe;
        if probe {
            let good = match self.state {
                State::HalfOpen { good, .. } => good,
                State::Closed { .. } | State::Open { .. } => 0,
            };
            if matches!(self.state, State::Open { .. }) {
                self.epoch = self.epoch.wrapping_add(1);
            }
            self.state = State::HalfOpen { good, probe_ms: Some(mono_ms) };
        }
        Ticket { epoch: self.epoch, probe }
    }

    pub(super) fn ended(&mut self, ticket: Ticket, verdict: Verdict, mono_ms: u64, seed: u64) {
        self.used_ms = mono_ms;
        self.waiting = self.waiting.saturating_sub(1);
        if ticket.epoch != self.epoch {
            return;
        }
        if ticket.probe
            && let State::HalfOpen { probe_ms, .. } = &mut self.state
        {
            *probe_ms = None;
        }
        self.judge(verdict, mono_ms, seed);
    }

    /// An answer that had begun broke off: it was counted as good already.
    pub(super) fn broke_off(&mut self, verdict: Verdict, mono_ms: u64, seed: u64) {
        if matches!(self.state, State::Closed { .. }) {
            self.judge(verdict, mono_ms, seed);
        }
    }

    /// Whether it may be forgotten: unused since `before_ms` and shut for nobody now.
    pub(super) fn idle_since(&self, before_ms: u64, mono_ms: u64) -> bool {
        self.used_ms < before_ms
            && match self.standing(mono_ms) {
                Standing::Live | Standing::Probe => true,
                Standing::Shut { .. } => false,
            }
    }

    fn judge(&mut self, verdict: Verdict, mono_ms: u64, seed: u64) {
        match verdict {
            Verdict::Unknown => {}
            Verdict::Good => self.good(mono_ms),
            Verdict::Bad => self.bad(false, mono_ms, seed),
            Verdict::NoConnection => self.bad(true, mono_ms, seed),
            Verdict::Limited { for_ms } => {
                let until_ms = mono_ms.saturating_add(for_ms.min(LONGEST_LIMIT_MS));
                self.limited_until_ms = self.limited_until_ms.max(until_ms);
            }
        }
    }

    fn good(&mut self, mono_ms: u64) {
        self.connections_failed = 0;
        match self.state {
            State::Closed { .. } => self.window.add_first(mono_ms),
            // A last resort that went well is as good as a probe.
            State::Open { .. } => self.become_state(State::HalfOpen { good: 1, probe_ms: None }),
            State::HalfOpen { good, .. } if good + 1 >= PROBES_TO_CLOSE => {
                self.window = Window::default();
                self.become_state(State::Closed { since_ms: mono_ms });
            }
            State::HalfOpen { good, probe_ms } => self.state = State::HalfOpen { good: good + 1, probe_ms },
        }
    }

    fn bad(&mut self, no_connection: bool, mono_ms: u64, seed: u64) {
        self.connections_failed = if no_connection { self.connections_failed.saturating_add(1) } else { 0 };
        match self.state {
            State::Open { .. } => {}
            State::HalfOpen { .. } => self.open(mono_ms, seed),
            State::Closed { since_ms } => {
                self.window.add_second(mono_ms);
                let (good, bad) = self.window.sums(mono_ms);
                let calls = good.saturating_add(bad);
                if (calls >= ENOUGH_CALLS && bad >= calls.div_ceil(2))
                    || self.connections_failed >= CONNECTIONS_IN_A_ROW
                {
                    if mono_ms.saturating_sub(since_ms) > FORGIVEN_AFTER_MS {
                        self.openings = 0;
                    }
                    self.open(mono_ms, seed);
                }
            }
        }
    }

    fn open(&mut self, mono_ms: u64, seed: u64) {
        let rest_ms = (FIRST_REST_MS << self.openings.min(10)).min(LONGEST_REST_MS);
        // Up to a fifth less, so that workers do not probe in step.
        let rest_ms = rest_ms - dice::below(rest_ms / 5, seed, 0xb4ea);
        self.openings = self.openings.saturating_add(1);
        self.connections_failed = 0;
        self.become_state(State::Open { until_ms: mono_ms + rest_ms });
    }

    fn become_state(&mut self, state: State) {
        self.epoch = self.epoch.wrapping_add(1);
        self.state = state;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(breaker: &mut Breaker, mono_ms: u64, verdict: Verdict) {
        let ticket = breaker.started(mono_ms);
        breaker.ended(ticket, verdict, mono_ms, 1);
    }

    /// Each case: outcomes one millisecond apart as letters (g good, b bad, c no connection,
    /// u unknown), and whether the circuit is shut afterwards.
    #[test]
    fn what_opens_a_circuit() {
        let cases = [
            ("bbbbbbbbb", false),
            ("bbbbbbbbbb", true),
            ("gggggbbbbb", true),
            ("ggggggbbbb", false),
            ("ggggggbbbbbb", true),
            ("cccc", false),
            ("ccccc", true),
            ("ccgccc", false),
            ("ccbccc", false),
            ("uuuuuuuuuuuuuuu", false),
            ("bbbbbbbbbu", false),
        ];
        for (outcomes, shut) in cases {
            let mut breaker = Breaker::default();
            for (at, letter) in (1_000..).zip(outcomes.chars()) {
                let verdict = match letter {
                    'g' => Verdict::Good,
                    'b' => Verdict::Bad,
                    'c' => Verdict::NoConnection,
                    _ => Verdict::Unknown,
                };
                run(&mut breaker, at, verdict);
            }
            assert_eq!(breaker.standing(1_500) != Standing::Live, shut, "{outcomes}");
        }
    }

    fn opened(mono_ms: u64) -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..5 {
            run(&mut breaker, mono_ms, Verdict::NoConnection);
        }
        breaker
    }

    fn until(breaker: &Breaker, mono_ms: u64) -> u64 {
        match breaker.standing(mono_ms) {
            Standing::Shut { until_ms } => until_ms,
            Standing::Live | Standing::Probe => panic!("not shut at {mono_ms}: {breaker:?}"),
        }
    }

    #[test]
    fn one_probe_at_a_time_and_two_good_ones_close() {
        let mut breaker = opened(1_000);
        let until_ms = until(&breaker, 1_000);
        assert!((5_000..=6_000).contains(&until_ms), "{until_ms}");
        assert_eq!(breaker.standing(until_ms), Standing::Probe);
        let probe = breaker.started(until_ms);
        assert!(matches!(breaker.standing(until_ms), Standing::Shut { .. }));
        breaker.ended(probe, Verdict::Good, until_ms + 5, 1);
        assert_eq!(breaker.standing(until_ms + 5), Standing::Probe);
        run(&mut breaker, until_ms + 5, Verdict::Good);
        assert_eq!(breaker.standing(until_ms + 5), Standing::Live);
    }

    #[test]
    fn a_bad_probe_doubles_the_rest_up_to_a_minute() {
        let mut breaker = opened(1_000);
        let mut at = until(&breaker, 1_000);
        for most in [10_000, 20_000, 40_000, 60_000, 60_000] {
            run(&mut breaker, at, Verdict::Bad);
            let rest = until(&breaker, at) - at;
            assert!(rest <= most && rest >= most * 4 / 5, "{rest} of {most}");
            at += rest;
        }
        // Closed for long enough, it starts again with the short rest.
        run(&mut breaker, at, Verdict::Good);
        run(&mut breaker, at, Verdict::Good);
        at += FORGIVEN_AFTER_MS + 1;
        for _ in 0..5 {
            run(&mut breaker, at, Verdict::NoConnection);
        }
        assert!(until(&breaker, at) - at <= FIRST_REST_MS);
    }

    #[test]
    fn a_lost_or_abandoned_probe_does_not_block_for_ever() {
        let mut breaker = opened(1_000);
        let at = until(&breaker, 1_000);
        breaker.started(at);
        assert_eq!(breaker.standing(at + PROBE_LOST_MS), Standing::Probe);
        let second = breaker.started(at + PROBE_LOST_MS);
        breaker.ended(second, Verdict::Unknown, at + PROBE_LOST_MS, 1);
        assert_eq!(breaker.standing(at + PROBE_LOST_MS), Standing::Probe);
    }

    #[test]
    fn what_began_before_the_opening_says_nothing_afterwards() {
        let mut breaker = Breaker::default();
        let early = breaker.started(1_000);
        for _ in 0..5 {
            run(&mut breaker, 1_000, Verdict::NoConnection);
        }
        breaker.ended(early, Verdict::Good, 1_001, 1);
        assert!(matches!(breaker.state, State::Open { .. }));
        assert_eq!(breaker.waiting, 0);
    }

    #[test]
    fn a_limit_holds_as_long_as_asked_and_no_longer_than_a_minute() {
        let mut breaker = Breaker::default();
        run(&mut breaker, 1_000, Verdict::Limited { for_ms: 3_000 });
        assert_eq!(breaker.standing(3_999), Standing::Shut { until_ms: 4_000 });
        assert_eq!(breaker.standing(4_000), Standing::Live);
        run(&mut breaker, 5_000, Verdict::Limited { for_ms: u64::MAX });
        assert_eq!(until(&breaker, 5_000), 65_000);
    }
}
