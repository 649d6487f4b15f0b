//! The body of an answer to a caller: bytes that are there, or a stream on its way through.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::client_io::InRequest;
use crate::relay::Relay;

/// What hyper sends.
pub struct ReplyBody {
    kind: Kind,
    /// The request is over when its body is.
    _running: InRequest,
}

enum Kind {
    Whole(Bytes),
    Stream(Box<Relay>),
}

impl ReplyBody {
    /// Bytes that are there; sent with `content-length`.
    pub fn whole(bytes: Bytes, running: InRequest) -> Self {
        Self { kind: Kind::Whole(bytes), _running: running }
    }

    /// A stream.
    pub fn stream(relay: Box<Relay>, running: InRequest) -> Self {
        Self { kind: Kind::Stream(relay), _running: running }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.kind {
            Kind::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Stream(relay) => relay.poll_next(cx).map(|next| next.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(bytes) => bytes.is_empty(),
            Kind::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(_) => SizeHint::default(),
        }
    }
}
