//! What a worker thread writes down about requests before it acts: an intent before the provider is
//! called, checkpoints while a stream runs, the final record before the caller's last byte.
//!
//! One journal per worker, a folder of append-only segments (the module `frame` has the bytes). Records
//! are queued, and handed to the kernel before anything of the request goes to a provider, or the last of
//! its answer to the caller: requests that run at the same time share one `write`, and a killed process
//! loses nothing that anybody acted on.
//! One background thread makes all journals durable every few milliseconds. Finals are numbered by
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
mod writer;

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use foldhash::HashMap;
use prost::Message;
use shared::ids::RequestId;
use shared::proto;
use shared::usage::Tokens;

use frame::Kind;
pub use mark::{Incarnation, Mark};
pub use open::{OpenError, Opened, open};
pub use spool::{Segment, Spool, Total};
pub use sync::Syncer;
pub use tail::{Final, Tail, TailError};
pub use writer::{Gate, Writer};

/// Segments that an intent may lie behind the newest one before it is copied forward. Trimming
/// deletes whole segments, so without the copy one long request would keep everything after it.
const CARRY_AFTER: u64 = 4;

/// Finals kept in memory while the disk refuses them.
const LATE_FINALS: usize = 4096;

/// Beyond so many bytes the queue is written before anything is added.
const QUEUE: usize = 64 * 1024;

/// Sizes and times of all journals of a node.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes on disk of all journals together beyond which intents are refused.
    pub limit_bytes: u64,
    /// Size at which a new segment is begun.
    pub segment_bytes: u64,
    /// Between two `fdatasync`; zero syncs every write before a request goes on.
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
    /// Whole frames that are not written yet, and what each of them is.
    queue: Vec<u8>,
    queued: Vec<Queued>,
    /// Queues written, or refused by the disk.
    flushes: u64,
    /// Queued intents that were not written, until their request asks.
    refused: Vec<([u8; 16], Unwritable)>,
    late: VecDeque<Vec<u8>>,
    /// The disk refused the last queue.
    failing: bool,
}

/// A frame in the queue.
#[derive(Debug, Clone, Copy)]
struct Queued {
    kind: Kind,
    request: [u8; 16],
    at: usize,
    len: usize,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journal({}, segment {}, {} finals)", self.spool.dir().display(), self.segment, self.ordinal)
    }
}

impl Journal {
    /// Queues that a request is about to cost something. `record` holds what is known so far, its
    /// `request_id` of 16 bytes above all. While the disk refuses, it is tried at once.
    ///
    /// # Errors
    /// When the journals are full, or the disk still refuses: the provider must not be called.
    pub fn queue_intent(&mut self, record: &proto::UsageRecord) -> Result<(), Unwritable> {
        let id = request_id(record).ok_or(Unwritable::Failed)?;
        self.enqueue(Kind::Intent, id, |queue| _ = record.encode(queue))?;
        if self.spool.total().used() + self.queue.len() as u64 > self.spool.options().limit_bytes {
            if let Some(last) = self.queued.pop() {
                self.queue.truncate(last.at);
            }
            return Err(Unwritable::Full);
        }
        if self.failing {
            self.flush();
        }
        self.take_refusal(&id).map_or(Ok(()), Err)
    }

    /// Queues the end of a request, with or without an intent before it.
    pub fn queue_final(&mut self, record: &proto::UsageRecord) {
        let id = request_id(record).unwrap_or_default();
        if let Err(error) = self.enqueue(Kind::Final, id, |queue| _ = record.encode(queue)) {
            self.lost(id, error);
        }
    }

    /// Queues what a running request has used up to now, for the case that the process dies. Without
    /// an intent it does nothing.
    pub fn queue_checkpoint(&mut self, id: &[u8; 16], tokens: Tokens) {
        let Some(known) = self.open.get_mut(id) else { return };
        known.tokens = tokens;
        // Small, so it fits a frame.
        _ = self.enqueue(Kind::Checkpoint, *id, |queue| checkpoint(queue, id, tokens));
    }

    /// Writes what is queued. When the disk refuses, intents are refused (see
    /// [`Journal::take_refusal`]; one that could only not be made durable is closed as interrupted by the
    /// next start), checkpoints forgotten, and finals wait in memory (at most 4096) and
    /// are written before anything else as soon as it accepts again; one that does not fit there is
    /// lost, counted and logged.
    pub fn flush(&mut self) {
        if self.queued.is_empty() {
            return;
        }
        self.flushes += 1;
        let (queue, queued) = (std::mem::take(&mut self.queue), std::mem::take(&mut self.queued));
        let written = self.write_late().and_then(|()| self.append(&queue));
        // What is written but not durable is no reason to write it twice, only to begin nothing new.
        let begin = written.and_then(|at| self.sync_at_once().map(|()| at));
        self.failing = begin.is_err();
        for frame in &queued {
            match (frame.kind, written) {
                (Kind::Intent, _) => match begin {
                    Ok((segment, offset)) => {
                        let (offset, len) = (offset + frame.at as u64, frame.len as u32);
                        self.opened(frame.request, OpenIntent { segment, offset, len, tokens: Tokens::default() });
                    }
                    Err(error) => self.refused.push((frame.request, error)),
                },
                (Kind::Checkpoint, _) => {}
                (Kind::Final, Ok(_)) => {
                    self.closed(&frame.request);
                    self.ordinal += 1;
                }
                (Kind::Final, Err(error)) => {
                    self.closed(&frame.request);
                    let bytes = queue.get(frame.at..frame.at + frame.len).unwrap_or_default();
                    self.keep_late(bytes, frame.request, error);
                }
            }
        }
        self.spool.settled(self.ordinal);
        (self.queue, self.queued) = (queue, queued);
        self.queue.clear();
        self.queued.clear();
    }

    /// How often [`Journal::flush`] had something to write: what is queued now is written when this
    /// has grown.
    pub fn flushes(&self) -> u64 {
        self.flushes
    }

    /// Why the intent of this request was not written, if it was not.
    pub fn refusal(&self, id: &[u8; 16]) -> Option<Unwritable> {
        self.refused.iter().find(|(refused, _)| refused == id).map(|(_, why)| *why)
    }

    /// As [`Journal::refusal`]. Gives it once.
    pub fn take_refusal(&mut self, id: &[u8; 16]) -> Option<Unwritable> {
        let at = self.refused.iter().position(|(refused, _)| refused == id)?;
        Some(self.refused.swap_remove(at).1)
    }

    /// Finals handed in since the folder was made, those that wait in memory included.
    #[cfg(test)]
    pub fn finals(&self) -> u64 {
        self.ordinal + self.late.len() as u64
    }

    /// The reading side of this journal.
    pub fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }

    /// Requests that have an intent and no final yet.
    pub fn open_requests(&self) -> usize {
        self.open.len()
    }

    /// Adds a frame to the queue, unless it is longer than any that is read.
    fn enqueue(&mut self, kind: Kind, request: [u8; 16], payload: impl FnOnce(&mut Vec<u8>)) -> Result<(), Unwritable> {
        if self.queue.len() > QUEUE {
            self.flush();
        }
        let at = self.queue.len();
        frame::append(&mut self.queue, kind, payload);
        let len = self.queue.len() - at;
        if len > frame::MAX_FRAME {
            self.queue.truncate(at);
            return Err(Unwritable::Failed);
        }
        self.queued.push(Queued { kind, request, at, len });
        Ok(())
    }

    /// Appends whole frames; gives where the first lies.
    fn append(&mut self, frames: &[u8]) -> Result<(u64, u64), Unwritable> {
        let len = frames.len() as u64;
        if self.offset > frame::SEGMENT_HEADER as u64 && self.offset + len > self.spool.options().segment_bytes {
            self.rotate()?;
        }
        let at = self.offset;
        if let Err(error) = (&*self.file).write_all(frames) {
            return Err(self.undo(at, &error));
        }
        self.offset += len;
        self.spool.written(self.segment, self.offset, len);
        Ok((self.segment, at))
    }

    fn sync_at_once(&self) -> Result<(), Unwritable> {
        if !self.spool.options().sync_interval.is_zero() {
            return Ok(());
        }
        self.spool.sync().map_err(|_| Unwritable::Failed)
    }

    fn keep_late(&mut self, record: &[u8], request: [u8; 16], error: Unwritable) {
        if self.late.len() < LATE_FINALS {
            self.late.push_back(record.to_vec());
        } else {
            self.lost(request, error);
        }
    }

    fn lost(&self, request: [u8; 16], error: Unwritable) {
        self.spool.total().lost.fetch_add(1, Ordering::Relaxed);
        let request = RequestId::from_u128(u128::from_be_bytes(request));
        tracing::error!(journal = %self.spool.dir().display(), %request, %error, "a usage record was lost");
    }

    /// Takes back what a failed write may have left, so that the segment ends with a whole record that
    /// counts.
    fn undo(&mut self, at: u64, error: &io::Error) -> Unwritable {
        self.spool.total().write_errors.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.file.set_len(at) {
            tracing::error!(journal = %self.spool.dir().display(), %error, "half-written usage records stay; nothing is written behind them");
            // The segment is full: the next record begins another one, and this one ends at `at`.
            self.offset = self.offset.max(self.spool.options().segment_bytes);
        }
        tracing::warn!(journal = %self.spool.dir().display(), %error, "a usage record could not be written");
        unwritable(error)
    }

    fn write_late(&mut self) -> Result<(), Unwritable> {
        while let Some(record) = self.late.pop_front() {
            if let Err(error) = self.append(&record) {
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
        self.carry(next.saturating_sub(CARRY_AFTER))
    }

    fn carry(&mut self, before: u64) -> Result<(), Unwritable> {
        if self.open_in.front().is_none_or(|(oldest, _)| *oldest >= before) {
            return Ok(());
        }
        let old: Vec<_> = self.open.iter().filter(|(_, o)| o.segment < before).map(|(id, o)| (*id, *o)).collect();
        for (id, intent) in old {
            let mut frames = vec![0; intent.len as usize];
            let read = File::open(self.spool.segment_path(intent.segment))
                .and_then(|file| file.read_exact_at(&mut frames, intent.offset));
            if let Err(error) = read {
                tracing::error!(journal = %self.spool.dir().display(), %error, "an intent cannot be read again; its segment stays");
                continue;
            }
            if intent.tokens != Tokens::default() {
                frame::append(&mut frames, Kind::Checkpoint, |frames| checkpoint(frames, &id, intent.tokens));
            }
            let (segment, offset) = self.append(&frames)?;
            self.opened(id, OpenIntent { segment, offset, ..intent });
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
        // It went away before it asked.
        _ = self.take_refusal(id);
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
        self.flush();
        let flushed = self.write_late().and_then(|()| self.spool.sync().map_err(|error| unwritable(&error)));
        if let Err(error) = flushed {
            tracing::error!(journal = %self.spool.dir().display(), %error, "the usage journal could not be closed cleanly");
        }
    }
}

/// The payload of a checkpoint.
fn checkpoint(payload: &mut Vec<u8>, id: &[u8; 16], tokens: Tokens) {
    payload.extend_from_slice(id);
    // A Vec grows as needed, so encoding cannot fail.
    _ = proto::Tokens::from(tokens).encode(payload);
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
