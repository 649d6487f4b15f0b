//! A worker's way to its journal. It shares writes between requests and decides nothing else.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use shared::proto;
use shared::usage::Tokens;

use super::{Journal, Unwritable};

/// The journal of this thread.
#[derive(Debug, Clone)]
pub struct Writer(Rc<RefCell<Journal>>);

impl Writer {
    /// Of a journal that this thread is to write.
    pub fn new(journal: Journal) -> Self {
        Self(Rc::new(RefCell::new(journal)))
    }

    /// See [`Journal::queue_intent`]. The provider may be sent something behind a [`Gate`].
    pub fn queue_intent(&self, record: &proto::UsageRecord) -> Result<(), Unwritable> {
        self.0.borrow_mut().queue_intent(record)
    }

    /// See [`Journal::queue_final`]. The caller's last byte may leave after [`Writer::written`] or
    /// [`Writer::flush`].
    pub fn queue_final(&self, record: &proto::UsageRecord) {
        self.0.borrow_mut().queue_final(record);
    }

    /// See [`Journal::queue_checkpoint`]; written at once, with all that is queued.
    pub fn checkpoint(&self, request: &[u8; 16], tokens: Tokens) {
        let mut journal = self.0.borrow_mut();
        journal.queue_checkpoint(request, tokens);
        journal.flush();
    }

    /// Writes what is queued.
    pub fn flush(&self) {
        self.0.borrow_mut().flush();
    }

    /// What a request's bytes must pass on their way to a provider.
    pub fn gate(&self, request: [u8; 16]) -> Gate {
        Gate { writer: self.clone(), request }
    }

    /// See [`Journal::take_refusal`].
    pub fn take_refusal(&self, request: &[u8; 16]) -> Option<Unwritable> {
        self.0.borrow_mut().take_refusal(request)
    }

    /// Waits until what is queued now is written: until the other requests that this thread is busy
    /// with have come as far, for one `write` takes as long as many records in it. Whoever stops
    /// waiting earlier has it written on the way out.
    pub async fn written(&self) {
        let due = Due { writer: self, flushes: self.flushes() };
        let mut waited = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut waited, true) {
                return Poll::Ready(());
            }
            // To the end of this thread's queue, without looking for new work first.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        drop(due);
    }

    /// See [`Journal::flushes`].
    pub fn flushes(&self) -> u64 {
        self.0.borrow_mut().flushes()
    }

    /// Finals handed in since the folder was made; see [`Journal::finals`].
    #[cfg(test)]
    pub fn finals(&self) -> u64 {
        self.0.borrow_mut().finals()
    }
}

/// Nothing passes it before the intent of its request is written. It is passed by the task of a
/// provider's connection, when the other requests that this thread is busy with have queued theirs,
/// so one `write` takes them all.
#[derive(Debug, Clone)]
pub struct Gate {
    writer: Writer,
    request: [u8; 16],
}

impl Gate {
    /// Writes what is queued, unless it is written.
    ///
    /// # Errors
    /// When the intent was not written: the provider must not be called.
    pub fn pass(&self) -> Result<(), Unwritable> {
        let mut journal = self.writer.0.borrow_mut();
        journal.flush();
        journal.refusal(&self.request).map_or(Ok(()), Err)
    }
}

/// What is queued must be written when this goes.
struct Due<'a> {
    writer: &'a Writer,
    flushes: u64,
}

impl Drop for Due<'_> {
    fn drop(&mut self) {
        let mut journal = self.writer.0.borrow_mut();
        if journal.flushes() == self.flushes {
            journal.flush();
        }
    }
}
