//! Every dollar once, the node's side: a meter per request, a journal per worker thread, a reporter
//! for all of them.
//!
//! The journal is the only source of what is reported: a request whose final record was not written
//! did not end, and the reporter reads from disk what a restart would read. Nothing here prices a
//! request or decides whether one may run.

pub mod journal;
pub mod meter;
pub mod reporter;

#[cfg(test)]
mod tests;
