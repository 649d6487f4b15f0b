//! A worker's way to its journal. It shares writes between requests and decides nothing else.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shared::proto;
use shared::usage::Tokens;

use super::{Journal, Unwritable};

/// The journal of this thread, for futures that must be `Send`. Only one thread uses it, so the lock
/// is never contended; it is never held across an await.
#[derive(Debug, Clone)]
pub struct Writer(Arc<Mutex<Journal>>);

impl Writer {
    /// A journal behind a lock.
    pub fn new(journal: Journal) -> Self {
        Self(Arc::new(Mutex::new(journal)))
    }

    /// See [`Journal::queue_intent`]. The provider may be called when [`Writer::written`] says so.
    pub fn queue_intent(&self, record: &proto::UsageRecord) -> Result<(), Unwritable> {
        self.lock().queue_intent(record)
    }

    /// See [`Journal::queue_final`]. The caller's last byte may leave after [`Writer::written`] or
    /// [`Writer::flush`].
    pub fn queue_final(&self, record: &proto::UsageRecord) {
        self.lock().queue_final(record);
    }

    /// See [`Journal::queue_checkpoint`]; written at once, with all that is queued.
    pub fn checkpoint(&self, request: &[u8; 16], tokens: Tokens) {
        let mut journal = self.lock();
        journal.queue_checkpoint(request, tokens);
        journal.flush();
    }

    /// Writes what is queued.
    pub fn flush(&self) {
        self.lock().flush();
    }

    /// Waits until what is queued now is written: until the other requests that this thread is busy
    /// with have come as far, for one `write` takes as long as many records in it. Whoever stops
    /// waiting earlier has it written on the way out.
    ///
    /// # Errors
    /// When the intent of `request` was not written: the provider must not be called.
    pub async fn written(&self, request: &[u8; 16]) -> Result<(), Unwritable> {
        let due = Due { writer: self, flushes: self.flushes() };
        tokio::task::yield_now().await;
        drop(due);
        self.lock().take_refusal(request).map_or(Ok(()), Err)
    }

    /// See [`Journal::flushes`].
    pub fn flushes(&self) -> u64 {
        self.lock().flushes()
    }

    /// Finals handed in since the folder was made; see [`Journal::finals`].
    #[cfg(test)]
    pub fn finals(&self) -> u64 {
        self.lock().finals()
    }

    fn lock(&self) -> MutexGuard<'_, Journal> {
        // Nothing inside panics; if it did, serving on is better than never recording again.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is queued must be written when this goes.
struct Due<'a> {
    writer: &'a Writer,
    flushes: u64,
}

impl Drop for Due<'_> {
    fn drop(&mut self) {
        let mut journal = self.writer.lock();
        if journal.flushes() == self.flushes {
            journal.flush();
        }
    }
}
