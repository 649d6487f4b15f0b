//! How a node gets, checks, keeps and serves snapshots. `client` talks to the control plane,
//! `store` decides what may serve, `disk` remembers it across restarts.
//!
//! It decides nothing about requests, and a request waits for none of it: a request takes one
//! `Arc<Snapshot>` from the store and keeps it to its last byte.

pub mod assemble;
pub mod boot;
pub mod client;
pub mod disk;
pub mod keeper;
mod reaper;
pub mod seal;
pub mod selftest;
pub mod session;
pub mod status;
pub mod store;

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod disk_tests;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod wire_tests;

pub use client::Client;
pub use selftest::SelfTest;
pub use status::Status;
pub use store::{Applied, Lineage, Store};
