//! What a worker thread writes down about requests before it acts: an intent before the provider is
//! called, checkpoints while a stream runs, the final record before the caller's last byte.
//!
//! One journal per worker, a folder of append-only segments (the module `frame` has the bytes). A record
//! is handed to the kernel with one `write` and no buffering here, so a killed process loses nothing;
//! one background thread makes all journals durable every few milliseconds. Finals are numbered by
//! their order on disk; numbers are derived again at each start and never stored beside them.
//!
//! It refuses new intents when the node's journals reach their limit. Finals are never refused for
//! that reason: what was spent is written down. It does not know who reads it, and forgets only what
//! [`Spool`] is told to trim.

mod frame;
mod mark;
mod open;
mod spool;
mod sync;
mod tail;

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::HashMap;
use prost::Message;
use shared::proto;
use shared::usage::Tokens;

use frame::Kind;
pub use mark::{Incarnation, Mark};
pub use open::{OpenError, Opened, open};
pub use spool::{Segment, Spool, Total};
pub use sync::Syncer;
pub use tail::{Final, Tail, TailError};

/// Segments that an intent may lie behind the newest one before it is copied forward. Trimming
/// deletes whole segments, so without the copy one long request would keep everything after it.
const CARRY_AFTER: u64 = 4;

/// Finals kept in memory while the disk refuses them.
const LATE_FINALS: usize = 4096;

/// Sizes and times of all journals of a node.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes on disk of all journals together beyond which intents are refused.
    pub limit_bytes: u64,
    /// Size at which a new segment is begun.
    pub segment_bytes: u64,
    /// Between two `fdatasync`; zero syncs every record before the call returns.
    pub sync_interval: Duration,
}

impl Default for Options {
    /// 1 GiB, 8 MiB, 50 ms.
    fn default() -> Self {
        Self { limit_bytes: 1 << 30, segment_bytes: 8 << 20, sync_interval: Duration::from_millis(50) }
    }
}

/// Why a record was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwritable {
    /// The journals have reached their limit, or the disk is full.
    Full,
    /// The disk reports errors.
    Failed,
}

impl Unwritable {
    /// The code that a caller sees, with status 503.
    pub fn code(self) -> &'static str {
        match self {
            Self::Full => "usage_journal_full",
            Self::Failed => "usage_journal_failed",
        }
    }
}

impl fmt::Display for Unwritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the usage journal is full",
            Self::Failed => "the usage journal cannot be written",
        })
    }
}

impl std::error::Error for Unwritable {}

/// A worker's way to its journal, for futures that must be `Send`. Only one thread uses it, so the
/// lock is never contended; it is never held across an await because no method is async.
#[derive(Debug, Clone)]
pub struct Writer(Arc<Mutex<Journal>>);

impl Writer {
    /// See [`Journal::intent`].
    pub fn intent(&self, record: &proto::UsageRecord) -> Result<(), Unwritable> {
        self.lock().intent(record)
    }

    /// See [`Journal::checkpoint`].
    pub fn checkpoint(&self, request_id: &[u8; 16], tokens: Tokens) -> Result<(), Unwritable> {
        self.lock().checkpoint(request_id, tokens)
    }

    /// See [`Journal::settle`].
    pub fn settle(&self, record: &proto::UsageRecord) -> Result<u64, Unwritable> {
        self.lock().settle(record)
    }

    /// A journal behind a lock.
    pub fn new(journal: Journal) -> Self {
        Self(Arc::new(Mutex::new(journal)))
    }

    fn lock(&self) -> MutexGuard<'_, Journal> {
        // A panic inside leaves at worst an unwritten record, which the next call does not touch.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a request's intent lies, and what is known of it since.
#[derive(Debug, Clone, Copy)]
struct OpenIntent {
    segment: u64,
    offset: u64,
    len: u32,
    tokens: Tokens,
}

/// The writing end of one worker's journal.
pub struct Journal {
    spool: Arc<Spool>,
    file: Arc<File>,
    segment: u64,
    offset: u64,
    /// Finals written since the folder was made.
    ordinal: u64,
    open: HashMap<[u8; 16], OpenIntent>,
    /// How many of `open` lie in each segment, oldest first.
    open_in: VecDeque<(u64, usize)>,
    buffer: Vec<u8>,
    late: VecDeque<Vec<u8>>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journal({}, segment {}, {} finals)", self.spool.dir().display(), self.segment, self.ordinal)
    }
}

impl Journal {
    /// Writes that a request is about to cost something. `record` holds what is known so far, its
    /// `request_id` of 16 bytes above all; a second intent of the same request replaces the first
    /// (another provider is tried).
    ///
    /// # Errors
    /// When the journals are full or the disk fails: the provider must not be called.
    pub fn intent(&mut self, record: &proto::UsageRecord) -> Result<(), Unwritable> {
        self.write_late()?;
        let id = request_id(record).ok_or(Unwritable::Failed)?;
        self.encode(Kind::Intent, record);
        if self.spool.total().used() + self.buffer.len() as u64 > self.spool.options().limit_bytes {
            return Err(Unwritable::Full);
        }
        let (segment, offset) = self.append()?;
        let len = self.buffer.len() as u32;
        self.opened(id, OpenIntent { segment, offset, len, tokens: Tokens::default() });
        Ok(())
    }

    /// Writes what a running request has used up to now, for the case that the process dies. Without
    /// an intent it does nothing.
    ///
    /// # Errors
    /// When the disk fails. The request may go on: its last checkpoint stands.
    pub fn checkpoint(&mut self, request_id: &[u8; 16], tokens: Tokens) -> Result<(), Unwritable> {
        self.write_late()?;
        let Some(known) = self.open.get_mut(request_id) else { return Ok(()) };
        known.tokens = tokens;
        self.encode_checkpoint(request_id, tokens);
        self.append().map(drop)
    }

    /// Writes the end of a request, with or without an intent before it. Gives the final's number:
    /// one more than the last, without gaps.
    ///
    /// While the disk refuses, finals wait in memory (at most 4096) and are written before anything
    /// else as soon as it accepts again.
    ///
    /// # Errors
    /// When the disk fails and the memory is full too: this record is lost, and counted as lost.
    pub fn settle(&mut self, record: &proto::UsageRecord) -> Result<u64, Unwritable> {
        let earlier = self.write_late();
        if let Some(id) = request_id(record) {
            self.closed(&id);
        }
        self.encode(Kind::Final, record);
        match earlier.and_then(|()| self.append()) {
            Ok(_) => {
                self.ordinal += 1;
                self.spool.settled(self.ordinal);
                Ok(self.ordinal)
            }
            Err(_) if self.late.len() < LATE_FINALS => {
                self.late.push_back(self.buffer.clone());
                Ok(self.ordinal + self.late.len() as u64)
            }
            Err(error) => {
                self.spool.total().lost.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// The reading side of this journal.
    pub fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }

    /// Requests that have an intent and no final yet.
    pub fn open_requests(&self) -> usize {
        self.open.len()
    }

    fn encode(&mut self, kind: Kind, record: &proto::UsageRecord) {
        frame::begin(&mut self.buffer, kind);
        // A Vec grows as needed, so encoding cannot fail.
        _ = record.encode(&mut self.buffer);
        frame::seal(&mut self.buffer);
    }

    fn encode_checkpoint(&mut self, id: &[u8; 16], tokens: Tokens) {
        frame::begin(&mut self.buffer, Kind::Checkpoint);
        self.buffer.extend_from_slice(id);
        _ = proto::Tokens::from(tokens).encode(&mut self.buffer);
        frame::seal(&mut self.buffer);
    }

    /// Appends `buffer`; gives where it lies.
    fn append(&mut self) -> Result<(u64, u64), Unwritable> {
        if self.buffer.len() > frame::MAX_FRAME {
            return Err(Unwritable::Failed);
        }
        if self.offset > frame::SEGMENT_HEADER as u64
            && self.offset + self.buffer.len() as u64 > self.spool.options().segment_bytes
        {
            self.rotate()?;
        }
        let at = self.offset;
        if let Err(error) = (&*self.file).write_all(&self.buffer) {
            return Err(self.undo(at, &error));
        }
        self.offset += self.buffer.len() as u64;
        self.spool.written(self.segment, self.offset, self.buffer.len() as u64);
        if self.spool.options().sync_interval.is_zero() && self.spool.sync().is_err() {
            return Err(Unwritable::Failed);
        }
        Ok((self.segment, at))
    }

    /// Takes back what a failed write may have left, so that the segment ends with a whole record.
    fn undo(&mut self, at: u64, error: &io::Error) -> Unwritable {
        self.spool.total().write_errors.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.file.set_len(at) {
            tracing::error!(journal = %self.spool.dir().display(), %error, "a half-written usage record stays; it will be cut at the next start");
        }
        tracing::warn!(journal = %self.spool.dir().display(), %error, "a usage record could not be written");
        unwritable(error)
    }

    fn write_late(&mut self) -> Result<(), Unwritable> {
        while let Some(record) = self.late.pop_front() {
            let current = std::mem::replace(&mut self.buffer, record);
            let written = self.append();
            let record = std::mem::replace(&mut self.buffer, current);
            if let Err(error) = written {
                self.late.push_front(record);
                return Err(error);
            }
            self.ordinal += 1;
            self.spool.settled(self.ordinal);
        }
        Ok(())
    }

    /// Begins the next segment and copies forward the intents that lie too far behind.
    fn rotate(&mut self) -> Result<(), Unwritable> {
        let next = self.segment + 1;
        let (file, offset) = self.spool.begin_segment(next, self.ordinal).map_err(|error| unwritable(&error))?;
        self.file = file;
        self.segment = next;
        self.offset = offset;
        let held = std::mem::take(&mut self.buffer);
        let carried = self.carry(next.saturating_sub(CARRY_AFTER));
        self.buffer = held;
        carried
    }

    fn carry(&mut self, before: u64) -> Result<(), Unwritable> {
        if self.open_in.front().is_none_or(|(oldest, _)| *oldest >= before) {
            return Ok(());
        }
        let old: Vec<_> = self.open.iter().filter(|(_, o)| o.segment < before).map(|(id, o)| (*id, *o)).collect();
        for (id, intent) in old {
            let mut bytes = vec![0; intent.len as usize];
            let read = File::open(self.spool.segment_path(intent.segment))
                .and_then(|file| file.read_exact_at(&mut bytes, intent.offset));
            if let Err(error) = read {
                tracing::error!(journal = %self.spool.dir().display(), %error, "an intent cannot be read again; its segment stays");
                continue;
            }
            self.buffer = bytes;
            let (segment, offset) = self.append()?;
            self.opened(id, OpenIntent { segment, offset, ..intent });
            if intent.tokens != Tokens::default() {
                self.encode_checkpoint(&id, intent.tokens);
                self.append()?;
            }
        }
        Ok(())
    }

    fn opened(&mut self, id: [u8; 16], intent: OpenIntent) {
        let segment = intent.segment;
        if let Some(before) = self.open.insert(id, intent) {
            self.leave(before.segment);
        }
        match self.open_in.back_mut() {
            Some((last, count)) if *last == segment => *count += 1,
            Some(_) | None => self.open_in.push_back((segment, 1)),
        }
        self.publish_oldest();
    }

    fn closed(&mut self, id: &[u8; 16]) {
        if let Some(intent) = self.open.remove(id) {
            self.leave(intent.segment);
            self.publish_oldest();
        }
    }

    fn leave(&mut self, segment: u64) {
        if let Some((_, count)) = self.open_in.iter_mut().find(|(number, _)| *number == segment) {
            *count -= 1;
        }
        while self.open_in.front().is_some_and(|(_, count)| *count == 0) {
            self.open_in.pop_front();
        }
    }

    fn publish_oldest(&self) {
        self.spool.oldest_open(self.open_in.front().map_or(u64::MAX, |(segment, _)| *segment));
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let flushed = self.write_late().and_then(|()| self.spool.sync().map_err(|error| unwritable(&error)));
        if let Err(error) = flushed {
            tracing::error!(journal = %self.spool.dir().display(), %error, "the usage journal could not be closed cleanly");
        }
    }
}

fn request_id(record: &proto::UsageRecord) -> Option<[u8; 16]> {
    record.request_id.as_slice().try_into().ok()
}

fn unwritable(error: &io::Error) -> Unwritable {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Unwritable::Full,
        _ => Unwritable::Failed,
    }
}
