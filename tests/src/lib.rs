//! The harness of the whole-house tests: starts the real programs as processes, plays the provider,
//! the network and the clients around them, and keeps its own count of everything.
//!
//! It knows the programs only from outside: flags, the first line they print, REST, the data port.
//! It never links a plane and never reads their database.
#![expect(clippy::disallowed_methods, reason = "the harness measures and waits in real time, beside the programs")]

pub mod balancer;
pub mod binaries;
pub mod fault;
pub mod folder;
pub mod house;
pub mod http;
pub mod process;
pub mod provider;
pub mod raw;
pub mod require;
pub mod wait;
