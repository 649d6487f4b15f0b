//! Whole-house scenarios: the real programs as processes, on loopback, each bounded in time.
#![expect(clippy::disallowed_methods, reason = "scenarios run tasks and clocks beside the programs under test")]

mod bad_input;
mod bad_replies;
mod contract;
mod control_plane_away;
mod convergence;
mod disconnect;
mod drain;
mod failover;
mod first_request;
mod full_disk;
mod joining;
mod load;
mod many_keys;
mod new_kek;
mod poisoned;
mod postgres;
mod reconnect;
mod rolling_restart;
mod sdk;
mod simulated_node;
mod skew;
mod traces;
mod usage_exact;
