//! The usage of one request on its way into the journal: the intent, checkpoints while a stream
//! runs, the final record. Whoever holds a meter must finish it, whatever way the request ends;
//! `Exchange` does, on drop too.
//!
//! It does not count tokens and does not price them. Records are filled into one of this thread and
//! encoded from there, so that a request builds none of its own.

use std::cell::RefCell;
use std::time::Duration;

use prost::Message;
use shared::proto;
use shared::usage::Tokens;

use super::journal::{Unwritable, Writer};

/// Longest text in a record, in bytes: callers choose model names and identities.
pub const MAX_TEXT: usize = 256;
/// A checkpoint is due after this many bytes...
pub const CHECKPOINT_BYTES: u64 = 64 * 1024;
/// ...or after this time, whichever is first.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(2);

thread_local! {
    /// Keeps its texts' memory from one record to the next.
    static RECORD: RefCell<proto::UsageRecord> = RefCell::default();
}

/// One request's usage.
#[derive(Debug)]
pub struct Meter {
    journal: Writer,
    request_id: [u8; 16],
    last_checkpoint: Duration,
    bytes_since: u64,
}

impl Meter {
    /// Starts metering at `now`, monotonic: queues the intent. `fill` gets an empty record but for
    /// its id, and names who the request is for and, as far as known, who will serve it.
    ///
    /// # Errors
    /// When the journal cannot take it: refuse the request with 503 and [`Unwritable::code`].
    pub fn begin(
        journal: &Writer,
        request_id: [u8; 16],
        now: Duration,
        fill: impl FnOnce(&mut proto::UsageRecord),
    ) -> Result<Self, Unwritable> {
        filled(&request_id, fill, |record| journal.queue_intent(record))?;
        Ok(Self { journal: journal.clone(), request_id, last_checkpoint: now, bytes_since: 0 })
    }

    /// Notes that `bytes` more went to the caller at `now`. When a checkpoint is due, asks for the
    /// tokens used up to now and writes them; a journal that fails is logged there and does not end
    /// the stream.
    pub fn progress(&mut self, bytes: u64, now: Duration, tokens: impl FnOnce() -> Tokens) {
        self.bytes_since += bytes;
        if self.bytes_since < CHECKPOINT_BYTES && now.saturating_sub(self.last_checkpoint) < CHECKPOINT_EVERY {
            return;
        }
        self.bytes_since = 0;
        self.last_checkpoint = now;
        self.journal.checkpoint(&self.request_id, tokens());
    }

    /// Ends the request: queues the final record, to be written before the caller's last byte leaves.
    /// `fill` gets an empty record but for its id; `then` sees it as it is queued.
    pub fn finish<T>(
        self,
        fill: impl FnOnce(&mut proto::UsageRecord),
        then: impl FnOnce(&proto::UsageRecord) -> T,
    ) -> T {
        filled(&self.request_id, fill, |record| {
            self.journal.queue_final(record);
            then(record)
        })
    }
}

/// Hands this thread's record, filled and with its texts clipped, to `use_it`.
fn filled<T>(
    request_id: &[u8; 16],
    fill: impl FnOnce(&mut proto::UsageRecord),
    use_it: impl FnOnce(&proto::UsageRecord) -> T,
) -> T {
    RECORD.with_borrow_mut(|record| {
        record.clear();
        record.request_id.extend_from_slice(request_id);
        fill(record);
        clip_texts(record);
        use_it(record)
    })
}

/// Cuts every text at [`MAX_TEXT`] bytes, on a character's border.
fn clip_texts(record: &mut proto::UsageRecord) {
    let texts = [
        &mut record.workspace_id,
        &mut record.project_id,
        &mut record.api_key_id,
        &mut record.identity,
        &mut record.endpoint,
        &mut record.requested_model,
        &mut record.provider_id,
        &mut record.provider,
        &mut record.vendor,
        &mut record.model,
        &mut record.credential_id,
        &mut record.credential_owner,
        &mut record.router,
        &mut record.policy,
        &mut record.code,
        &mut record.price_id,
        &mut record.service_tier,
        &mut record.region,
    ];
    for text in texts {
        if text.len() > MAX_TEXT {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
        }
    }
}
