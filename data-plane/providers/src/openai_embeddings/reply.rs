//! A whole answer of embeddings: whether it is one, and what it used.

use shared::failure::Failure;

use crate::openai_chat::reply::{ReplyFacts, read_list};
use crate::quirks::Quirks;

/// Reads the whole body of a 200. One without `data` is a `BadReply`, one that holds an error is
/// what that error means. `prompt_tokens`: the request's own estimate, for when the provider does
/// not report.
pub fn read(body: &[u8], quirks: Quirks, prompt_tokens: u64) -> Result<ReplyFacts, Failure> {
    read_list(body, "data", quirks, prompt_tokens)
}
