//! What both planes must agree on: ids, money, tokens, failures, the snapshot and its wire form.
//!
//! No I/O, no configuration, no helpers: everything here is a value or a pure function.

pub mod catalog;
pub mod digest;
pub mod endpoint;
pub mod failure;
pub mod ids;
pub mod money;
#[expect(missing_docs, clippy::all, reason = "generated from proto/, documented there")]
pub mod proto;
mod redact;
pub mod snapshot;
pub mod usage;
