//! OpenAI's embeddings: request and answer. Errors are those of chat completions.

pub mod reply;
pub mod request;
