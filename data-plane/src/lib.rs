//! The data plane: decides each request in memory, calls a provider, reports what it used.
//!
//! It knows only what its snapshot says, asks nobody while a request runs, and never opens SQL.
//! [`start`] brings up one node: a thread per core that serves requests, and one more for
//! everything else (snapshots, usage reports, the admin port).

mod admin;
mod client_io;
pub mod config;
mod drain;
mod egress;
mod exchange;
mod execute;
mod gather;
mod headers;
mod identify;
pub mod identity;
mod ingress;
mod node;
mod observe;
mod pipeline;
mod relay;
mod reply;
pub mod rpc;
mod sandbox;
pub mod snapshot;
mod upstream;
pub mod usage;
mod worker;

#[cfg(test)]
mod tests;

pub use node::{Control, Running, start};
