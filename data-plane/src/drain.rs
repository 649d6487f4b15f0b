//! How a node stops: not ready, then no new connections, then no new requests, then, when the time
//! is up, streams are ended with an error event that clients understand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// How far the node is in stopping. Only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Open = 0,
    /// Not ready any more, but still accepting: balancers have not noticed yet.
    Leaving = 1,
    /// No new connections; connections close after their present request.
    Draining = 2,
    /// Out of time: what still streams is cut.
    Cutting = 3,
}

/// Shared by all threads of a node.
#[derive(Debug, Clone, Default)]
pub struct Drain(Arc<State>);

#[derive(Debug, Default)]
struct State {
    phase: AtomicU8,
    in_flight: AtomicU64,
}

impl Drain {
    /// The present phase.
    pub fn phase(&self) -> Phase {
        match self.0.phase.load(Ordering::Relaxed) {
            0 => Phase::Open,
            1 => Phase::Leaving,
            2 => Phase::Draining,
            _ => Phase::Cutting,
        }
    }

    /// Moves forward to `phase`; earlier ones are ignored.
    pub fn advance(&self, phase: Phase) {
        self.0.phase.fetch_max(phase as u8, Ordering::Relaxed);
    }

    /// Requests between their head and their last byte.
    pub fn in_flight(&self) -> u64 {
        self.0.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a request until the guard is dropped.
    pub fn enter(&self) -> InFlight {
        self.0.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }
}

/// One request in flight.
pub struct InFlight(Drain);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
