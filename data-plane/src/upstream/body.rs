//! A request body made of slices: the caller's bytes around the few that changed, never joined.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::usage::journal::{Gate, Unwritable};

/// Slices to be sent one after the other with a known total length, behind a [`Gate`].
///
/// hyper asks for the first of them before it sends the head, so that both leave in one write: a gate
/// that refuses keeps the whole request back.
#[derive(Debug, Clone)]
pub struct SliceBody {
    gate: Option<Gate>,
    slices: std::vec::IntoIter<Bytes>,
    left: u64,
}

impl SliceBody {
    /// `len` must be the sum of the slices' lengths.
    pub fn new(gate: Gate, slices: Vec<Bytes>, len: usize) -> Self {
        Self { gate: Some(gate), slices: slices.into_iter(), left: len as u64 }
    }

    /// See [`Gate::pass`]; once is enough.
    pub fn pass_gate(&mut self) -> Result<(), Unwritable> {
        if let Some(gate) = &self.gate {
            gate.pass()?;
            self.gate = None;
        }
        Ok(())
    }
}

impl Body for SliceBody {
    type Data = Bytes;
    type Error = Unwritable;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Unwritable>>> {
        self.pass_gate()?;
        let Some(slice) = self.slices.next() else { return Poll::Ready(None) };
        self.left = self.left.saturating_sub(slice.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.gate.is_none() && self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
