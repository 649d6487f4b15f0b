//! Bytes to frames, however they were cut on the way.

pub mod sse;
