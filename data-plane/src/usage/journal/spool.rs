//! What the writing worker, the syncing thread and the reporter share of one journal: how far it is
//! written, how far it is durable, which segments exist, how far the ledger has it.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::mark::{Mark, sync_dir};
use super::{Options, frame};

/// Sums over all journals of a node.
#[derive(Debug, Default)]
pub struct Total {
    bytes: AtomicU64,
    /// Finals that could be kept nowhere.
    pub lost: AtomicU64,
    /// Writes that the disk refused.
    pub write_errors: AtomicU64,
    /// `fdatasync` calls that failed.
    pub sync_errors: AtomicU64,
    /// Segments set aside because they were damaged.
    pub damaged_segments: AtomicU64,
    /// Torn tails cut at a start.
    pub torn_tails: AtomicU64,
    /// Requests closed at a start because the process had died.
    pub interrupted: AtomicU64,
}

impl Total {
    /// Bytes on disk of all journals.
    pub fn used(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn grew(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// One segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its place in the order.
    pub number: u64,
    /// Finals in all segments before it.
    pub finals_before: u64,
    /// Where its last whole frame ends; meaningless for the one being written.
    pub end: u64,
}

/// The shared part of one journal. Holds the folder's lock.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    options: Options,
    total: Arc<Total>,
    /// Segment and offset, packed: see [`pack`].
    written: AtomicU64,
    synced: AtomicU64,
    finals: AtomicU64,
    oldest_open: AtomicU64,
    segments: Mutex<VecDeque<Segment>>,
    unsynced: Mutex<VecDeque<(u64, Arc<File>)>>,
    mark: Mutex<Mark>,
    _lock: File,
}

impl Spool {
    pub(super) fn new(dir: PathBuf, options: Options, total: Arc<Total>, lock: File, mark: Mark) -> Self {
        Self {
            dir,
            options,
            total,
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            finals: AtomicU64::new(0),
            oldest_open: AtomicU64::new(u64::MAX),
            segments: Mutex::default(),
            unsynced: Mutex::default(),
            mark: Mutex::new(mark),
            _lock: lock,
        }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Sizes and times.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Sums over all journals of the node.
    pub fn total(&self) -> &Arc<Total> {
        &self.total
    }

    /// Finals written since the folder was made.
    pub fn finals(&self) -> u64 {
        self.finals.load(Ordering::Acquire)
    }

    /// Numbering and confirmation as they are now.
    pub fn mark(&self) -> Mark {
        *locked(&self.mark)
    }

    /// Finals that the ledger has not confirmed.
    pub fn unacked(&self) -> u64 {
        self.finals().saturating_sub(self.mark().acked)
    }

    /// The ledger has everything up to `acked` finals, with this chain value. Never goes back.
    pub fn ack(&self, acked: u64, chain: shared::digest::Hash) {
        let mut mark = locked(&self.mark);
        if acked > mark.acked {
            mark.acked = acked;
            mark.chain = chain;
        }
    }

    /// Deletes the segments in which everything is confirmed and no request is open, after writing
    /// the mark. Gives how many.
    ///
    /// # Errors
    /// When the mark cannot be written; nothing is deleted then.
    pub fn trim(&self) -> io::Result<usize> {
        let mark = self.mark();
        let keep = self.oldest_open.load(Ordering::Acquire);
        let count = {
            let segments = locked(&self.segments);
            let done = |next: &Segment| next.finals_before <= mark.acked;
            segments.iter().zip(segments.iter().skip(1)).take_while(|(s, next)| s.number < keep && done(next)).count()
        };
        if count == 0 {
            return Ok(0);
        }
        mark.write(&self.dir)?;
        for _ in 0..count {
            let Some(first) = locked(&self.segments).front().copied() else { break };
            let path = self.segment_path(first.number);
            let bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
            fs::remove_file(&path)?;
            self.total.bytes.fetch_sub(bytes.min(self.total.used()), Ordering::Relaxed);
            locked(&self.segments).pop_front();
        }
        Ok(count)
    }

    /// Begins a new incarnation that holds every final still on disk, numbered from 1. Records that
    /// the ledger already has are recognised there by their request id.
    ///
    /// # Errors
    /// When the mark cannot be written; the old incarnation stays.
    pub fn renumber(&self) -> io::Result<Mark> {
        let held_from = locked(&self.segments).front().map_or(0, |first| first.finals_before);
        let fresh = Mark::fresh(held_from);
        fresh.write(&self.dir)?;
        *locked(&self.mark) = fresh;
        Ok(fresh)
    }

    /// The first sequence number that can still be sent.
    pub fn held_from(&self) -> u64 {
        let mark = self.mark();
        mark.acked.saturating_sub(mark.offset) + 1
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// When the disk refuses; [`Total::sync_errors`] counts it.
    pub fn sync(&self) -> io::Result<()> {
        let upto = self.written.load(Ordering::Acquire);
        if upto == self.synced.load(Ordering::Acquire) {
            return Ok(());
        }
        let files: Vec<_> = locked(&self.unsynced).iter().cloned().collect();
        let synced = files
            .iter()
            .try_for_each(|(_, file)| file.sync_data())
            // A new segment's name must be durable before its records count as durable.
            .and_then(|()| if files.len() > 1 { sync_dir(&self.dir) } else { Ok(()) });
        if let Err(error) = synced {
            self.total.sync_errors.fetch_add(1, Ordering::Relaxed);
            return Err(error);
        }
        locked(&self.unsynced).retain(|(number, _)| *number >= unpack(upto).0);
        self.synced.fetch_max(upto, Ordering::AcqRel);
        Ok(())
    }

    /// (segment, offset) up to which everything is durable.
    pub(super) fn durable(&self) -> (u64, u64) {
        unpack(self.synced.load(Ordering::Acquire))
    }

    /// The first segment with a number of at least `number`.
    pub(super) fn segment_from(&self, number: u64) -> Option<Segment> {
        locked(&self.segments).iter().find(|segment| segment.number >= number).copied()
    }

    /// The last segment in which the final after the first `finals` may lie.
    pub(super) fn segment_of(&self, finals: u64) -> Option<Segment> {
        let segments = locked(&self.segments);
        segments.iter().rev().find(|segment| segment.finals_before <= finals).or(segments.front()).copied()
    }

    pub(super) fn segment_path(&self, number: u64) -> PathBuf {
        segment_path(&self.dir, number)
    }

    pub(super) fn begin_segment(&self, number: u64, finals_before: u64) -> io::Result<(Arc<File>, u64)> {
        let path = self.segment_path(number);
        let begun = OpenOptions::new().append(true).create_new(true).open(&path).and_then(|mut file| {
            file.write_all(&frame::header(number, finals_before))?;
            Ok(file)
        });
        let file = match begun {
            Ok(file) => Arc::new(file),
            Err(error) => {
                // Half a header would look like damage at the next start.
                _ = fs::remove_file(&path);
                return Err(error);
            }
        };
        let end = frame::SEGMENT_HEADER as u64;
        let (last, last_end) = unpack(self.written.load(Ordering::Acquire));
        let mut segments = locked(&self.segments);
        if let Some(previous) = segments.iter_mut().find(|segment| segment.number == last) {
            previous.end = last_end;
        }
        segments.push_back(Segment { number, finals_before, end });
        drop(segments);
        locked(&self.unsynced).push_back((number, file.clone()));
        self.written(number, end, end);
        Ok((file, end))
    }

    /// Registers a segment found at the start, durable up to its end.
    pub(super) fn found(&self, segment: Segment, bytes: u64) {
        locked(&self.segments).push_back(segment);
        self.total.grew(bytes);
        let at = pack(segment.number, segment.end);
        self.written.store(at, Ordering::Release);
        self.synced.store(at, Ordering::Release);
    }

    pub(super) fn written(&self, segment: u64, offset: u64, grown: u64) {
        self.total.grew(grown);
        self.written.store(pack(segment, offset), Ordering::Release);
    }

    pub(super) fn settled(&self, finals: u64) {
        self.finals.store(finals, Ordering::Release);
    }

    pub(super) fn oldest_open(&self, segment: u64) {
        self.oldest_open.store(segment, Ordering::Release);
    }
}

/// Where a segment of this number lies.
pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.segment"))
}

/// Both in one word, so that one store publishes them together. A segment stays far below 4 GiB, and
/// 2^32 segments are 32 PiB.
fn pack(segment: u64, offset: u64) -> u64 {
    segment << 32 | offset & 0xffff_ffff
}

fn unpack(at: u64) -> (u64, u64) {
    (at >> 32, at & 0xffff_ffff)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
