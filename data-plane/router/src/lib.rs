//! What happens to a request: which offerings may take it and in which order, what follows a failed
//! attempt, and what it costs. Pure: time, randomness and the health of the fleet are arguments, so
//! the same inputs give the same decision, in a test, in production and in a replay.
//!
//! It refuses to know wire formats, sockets and clocks. It keeps two things apart: [`plan()`] and
//! `retry::next` only read; what they read of the past is written by [`retry::Attempts`].
#![deny(clippy::wildcard_enum_match_arm, clippy::match_wildcard_for_single_variants)]

pub mod admit;
mod dice;
pub mod explain;
pub mod facts;
pub mod health;
pub mod listing;
pub mod name;
pub mod plan;
pub mod price;
pub mod refusal;
mod resolve;
pub mod retry;

#[cfg(test)]
mod tests;

pub use admit::{Permission, admit};
pub use facts::{Endpoint, Facts, Now};
pub use health::Fleet;
pub use name::Name;
pub use plan::{Access, Candidate, Decision, DropReason, Dropped, Limits, Plan, Reason, Slot, plan};
pub use refusal::{Refusal, RefusalKind};
pub use retry::{Attempts, Next, Stop};
