//! Process plumbing that both planes need: telemetry, TLS, channels between the planes, tasks,
//! clocks, randomness, shutdown, backoff.
//!
//! It knows nothing of routing, snapshots or money, and reads no configuration: callers pass values.

pub mod backoff;
pub mod clock;
pub mod random;
pub mod rpc;
pub mod settings;
pub mod shutdown;
pub mod task;
pub mod telemetry;
pub mod tls;
