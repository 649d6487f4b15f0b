//! What was used, and the money in it: each record of a node applied exactly once.
//!
//! [`ingest`] is the only writer. It takes nothing on trust but the name of the node, prices every
//! record again from its tokens, and moves a journal's mark in the transaction that applies its
//! records. [`query`] reads sums and records. Nobody here changes or deletes an entry.

pub mod api;
pub mod entries;
pub mod ingest;
mod period;
pub mod prices;
pub mod query;
mod sql;

pub use api::routes;
pub use ingest::{Ingest, UsageService};

#[cfg(test)]
mod tests;
