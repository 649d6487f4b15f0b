//! The guard of one request's usage: it writes the intent, then settles exactly once, whatever way
//! the request ends. Dropping it (caller gone, panic, task cancelled) settles too.
//!
//! It does not count tokens and does not price them; the pipeline puts both into the record.

use std::time::Duration;

use runtime::clock;
use shared::proto::{self, Outcome};
use shared::usage::Tokens;

use super::journal::{Unwritable, Writer};

/// Longest text in a record, in bytes: callers choose model names and identities.
pub const MAX_TEXT: usize = 256;
/// A checkpoint is due after this many bytes...
pub const CHECKPOINT_BYTES: u64 = 64 * 1024;
/// ...or after this time, whichever is first.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(2);

/// One request's usage, settled when it is finished or dropped.
#[derive(Debug)]
pub struct Meter {
    journal: Writer,
    record: proto::UsageRecord,
    started: Duration,
    last_checkpoint: Duration,
    bytes_since: u64,
    settled: bool,
}

impl Meter {
    /// Starts metering: writes the intent. `record` names the request, who it is for and, as far as
    /// known, who will serve it. Until told otherwise by [`Meter::if_dropped`], a drop settles it as
    /// cancelled with status 499.
    ///
    /// # Errors
    /// When the journal cannot take it: refuse the request with 503 and [`Unwritable::code`].
    pub fn begin(journal: &Writer, mut record: proto::UsageRecord) -> Result<Self, Unwritable> {
        clip_texts(&mut record);
        journal.intent(&record)?;
        record.status = 499;
        record.outcome = Outcome::Cancelled.into();
        let now = clock::monotonic();
        Ok(Self {
            journal: journal.clone(),
            record,
            started: now,
            last_checkpoint: now,
            bytes_since: 0,
            settled: false,
        })
    }

    /// What will be settled, as far as known.
    pub fn record(&self) -> &proto::UsageRecord {
        &self.record
    }

    /// The same, to fill in: provider, credential, status, tokens, price, cost. `total_us` is set at
    /// the end from the time since [`Meter::begin`] unless it was set here.
    pub fn record_mut(&mut self) -> &mut proto::UsageRecord {
        &mut self.record
    }

    /// Writes the intent again with the record's present provider, after a fallback chose another.
    ///
    /// # Errors
    /// When the journal cannot take it: do not call that provider.
    pub fn redirect(&mut self) -> Result<(), Unwritable> {
        clip_texts(&mut self.record);
        self.journal.intent(&self.record)
    }

    /// Notes that `bytes` more went to the caller. When a checkpoint is due, asks for the tokens used
    /// up to now and writes them; a journal that fails is logged there and does not end the stream.
    pub fn progress(&mut self, bytes: u64, tokens: impl FnOnce() -> Tokens) {
        self.bytes_since += bytes;
        let now = clock::monotonic();
        if self.bytes_since < CHECKPOINT_BYTES && now.saturating_sub(self.last_checkpoint) < CHECKPOINT_EVERY {
            return;
        }
        self.bytes_since = 0;
        self.last_checkpoint = now;
        self.record.tokens = Some(tokens().into());
        _ = self.journal.checkpoint(&self.record);
    }

    /// How a drop from now on settles: for example as cut once a deadline has passed.
    pub fn if_dropped(&mut self, outcome: Outcome, status: u16, code: &str) {
        self.record.outcome = outcome.into();
        self.record.status = status.into();
        code.clone_into(&mut self.record.code);
    }

    /// Ends the request; call it before the caller's last byte leaves. Gives back the record as it was
    /// written, and the number of the final.
    ///
    /// The number is an error when the record could not be kept at all; it is counted as lost.
    pub fn finish(mut self, outcome: Outcome) -> (proto::UsageRecord, Result<u64, Unwritable>) {
        self.record.outcome = outcome.into();
        let number = self.settle();
        (std::mem::take(&mut self.record), number)
    }

    fn settle(&mut self) -> Result<u64, Unwritable> {
        self.settled = true;
        if self.record.total_us == 0 {
            let total = clock::monotonic().saturating_sub(self.started);
            self.record.total_us = u64::try_from(total.as_micros()).unwrap_or(u64::MAX);
        }
        clip_texts(&mut self.record);
        self.journal.settle(&self.record)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if !self.settled {
            // Counted as lost by the journal; nobody is left to tell.
            _ = self.settle();
        }
    }
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
