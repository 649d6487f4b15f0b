//! OpenAI's chat completions: request, answer, stream, errors. Errors and usage are the same for
//! its other endpoints and are used from there.

pub mod error;
mod glance;
mod messages;
pub mod reply;
pub mod request;
pub mod stream;
