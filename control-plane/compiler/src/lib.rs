//! Resources as administrators describe them -> resources as nodes read them, or diagnostics.
//!
//! Pure: documents in, bytes out. The same input gives the same bytes on every replica.

pub mod check;
pub mod input;
pub mod lower;
