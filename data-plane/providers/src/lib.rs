//! What a vendor's wire format means, and nothing else: bytes in, facts and bytes out.
//!
//! A caller's body is read once, in place, for the few fields that route, limit and bill; it goes
//! out as slices of itself. A provider's answer is looked at, not taken apart. Nothing here does
//! I/O, reads a clock, decides about retries, or knows what a snapshot is.

pub mod dialect;
pub mod frames;
pub mod head;
mod json;
pub mod openai_chat;
pub mod openai_embeddings;
pub mod quirks;
mod reading;
mod redact;
mod retry_after;
pub mod splice;
pub mod usage;

pub use dialect::{Dialect, Endpoint};
pub use head::{BadRequest, Head};
pub use quirks::Quirks;
pub use splice::Outgoing;
pub use usage::Usage;

#[cfg(test)]
mod tests;
