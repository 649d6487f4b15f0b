//! The control plane: holds the description, compiles it, pushes it, takes back usage.
//!
//! It never calls a provider, and no request of a caller ever waits for it.

pub mod app;
pub mod auth;
pub mod config;
pub mod db;
pub mod error;
pub mod ledger;
pub mod metrics;
pub mod resources;
pub mod rest;
pub mod publish;
#[expect(missing_docs, reason = "generated from proto/, documented there")]
pub mod rpc;
pub mod start;
#[cfg(test)]
mod testing;
pub mod vault;

pub use config::{Config, Environment};
pub use resources::seed::FirstStart;
pub use start::{Running, StartError, start};
