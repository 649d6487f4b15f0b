//! Opening a node's journals: lock, scan, cut a torn tail, set damaged segments aside, close what a
//! dead process left open.
//!
//! Nothing that can still be read is thrown away. After damage the surviving finals get a new
//! incarnation, because their numbers may have moved; the ledger knows them by their request ids.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prost::Message;
use shared::proto::{self, Outcome};

use super::frame::{self, Kind, Next};
use super::mark::{Mark, sync_dir};
use super::spool::{Segment, segment_path};
use super::sync::Syncer;
use super::{Journal, Options, Spool, Total, request_id};

/// Folders that are read at most: workers of this start and of earlier ones.
const MAX_FOLDERS: usize = 4096;

/// Why the journals cannot be opened. The node must not start without them.
#[derive(Debug)]
pub enum OpenError {
    /// Another process has this folder open.
    Locked(PathBuf),
    /// The system refuses.
    Io(PathBuf, io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked(dir) => {
                write!(
                    f,
                    "another process uses the usage journal {}; two nodes must not share a data folder",
                    dir.display()
                )
            }
            Self::Io(path, error) => write!(f, "usage journal {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for OpenError {}

/// All journals of a node. Keep `syncer` until the journals are gone.
#[derive(Debug)]
pub struct Opened {
    /// One per worker thread, in their order.
    pub journals: Vec<Journal>,
    /// Every journal, also of workers that this start does not have.
    pub spools: Vec<Arc<Spool>>,
    /// Makes them durable until dropped.
    pub syncer: Syncer,
}

/// Opens `<data_dir>/journal/<n>/` for `workers` workers and for every folder left by a start with
/// more of them.
///
/// # Errors
/// When another process holds a folder, or the system refuses.
pub fn open(data_dir: &Path, workers: usize, options: &Options) -> Result<Opened, OpenError> {
    let root = data_dir.join("journal");
    make_dir(&root)?;
    let total = Arc::new(Total::default());
    let mut opened = BTreeMap::new();
    for number in folders(&root, workers)? {
        let journal = open_one(&root.join(number.to_string()), options, &total)?;
        opened.insert(number, journal);
    }
    let spools: Vec<_> = opened.values().map(|journal| journal.spool.clone()).collect();
    let syncer = Syncer::start(spools.clone(), options.sync_interval).map_err(|error| OpenError::Io(root, error))?;
    // Journals of workers that no longer exist are closed for writing here, and still reported.
    let journals = opened.into_iter().filter(|(number, _)| *number < workers).map(|(_, journal)| journal);
    Ok(Opened { journals: journals.collect(), spools, syncer })
}

fn folders(root: &Path, workers: usize) -> Result<Vec<usize>, OpenError> {
    let failed = |error| OpenError::Io(root.to_owned(), error);
    let mut numbers: Vec<usize> = (0..workers).collect();
    for entry in fs::read_dir(root).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|name| name.parse::<usize>().ok()).filter(|number| *number >= workers);
        numbers.extend(number);
    }
    numbers.sort_unstable();
    numbers.truncate(MAX_FOLDERS.max(workers));
    Ok(numbers)
}

fn make_dir(dir: &Path) -> Result<(), OpenError> {
    let failed = |error| OpenError::Io(dir.to_owned(), error);
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir).map_err(failed)?;
    dir.parent().map_or(Ok(()), |parent| sync_dir(parent).map_err(failed))
}

/// One journal, ready to be written.
pub(super) fn open_one(dir: &Path, options: &Options, total: &Arc<Total>) -> Result<Journal, OpenError> {
    make_dir(dir)?;
    let lock = lock(dir)?;
    recover(dir, options, total, lock).map_err(|error| OpenError::Io(dir.to_owned(), error))
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let failed = |error| OpenError::Io(path.clone(), error);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// What a scan found: segments in order, requests left open, and whether numbers may have moved.
#[derive(Default)]
struct Scan {
    segments: Vec<Segment>,
    finals: u64,
    open: HashMap<[u8; 16], proto::UsageRecord>,
    moved: bool,
}

fn recover(dir: &Path, options: &Options, total: &Arc<Total>, lock: File) -> io::Result<Journal> {
    let mark = Mark::read(dir);
    let scan = scan(dir, total)?;
    let first = scan.segments.first().map_or(0, |segment| segment.finals_before);
    let mark = match mark {
        Some(mark) if !scan.moved && (first..=scan.finals).contains(&mark.acked) && mark.offset <= mark.acked => mark,
        known => {
            if let Some(old) = known {
                tracing::error!(journal = %dir.display(), incarnation = %old.incarnation, "the usage journal was damaged; it is numbered anew");
            }
            let fresh = Mark::fresh(first);
            fresh.write(dir)?;
            fresh
        }
    };
    let spool = Arc::new(Spool::new(dir.to_owned(), options.clone(), total.clone(), lock, mark));
    for segment in &scan.segments {
        File::open(segment_path(dir, segment.number))?.sync_data()?;
        spool.found(*segment, segment.end);
    }
    sync_dir(dir)?;
    spool.settled(scan.finals);
    let next = scan.segments.last().map_or(1, |last| last.number + 1);
    let (file, offset) = spool.begin_segment(next, scan.finals)?;
    sync_dir(dir)?;
    let mut journal = Journal {
        spool,
        file,
        segment: next,
        offset,
        ordinal: scan.finals,
        open: foldhash::HashMap::default(),
        open_in: Default::default(),
        queue: Vec::with_capacity(4096),
        queued: Vec::new(),
        flushes: 0,
        refused: Vec::new(),
        late: Default::default(),
        failing: false,
    };
    close_interrupted(&mut journal, scan.open)?;
    Ok(journal)
}

/// Closes the requests that a dead process left open, at their last checkpoint and never at what
/// they might have cost.
fn close_interrupted(journal: &mut Journal, open: HashMap<[u8; 16], proto::UsageRecord>) -> io::Result<()> {
    for (_, mut record) in open {
        record.outcome = Outcome::Interrupted.into();
        // Nobody knows any more whether the caller saw one.
        record.status = 0;
        record.estimated = true;
        journal.queue_final(&record);
        journal.spool.total().interrupted.fetch_add(1, Ordering::Relaxed);
    }
    journal.flush();
    // Finals kept in memory would be forgotten by another crash together with their intents.
    journal.write_late().map_err(io::Error::other)?;
    journal.spool.sync()
}

fn scan(dir: &Path, total: &Total) -> io::Result<Scan> {
    let mut found = Scan::default();
    let numbers = segment_numbers(dir)?;
    let last = numbers.last().copied();
    for number in numbers {
        let path = segment_path(dir, number);
        let bytes = fs::read(&path)?;
        let header = frame::read_header(&bytes).filter(|(own, _)| *own == number);
        let empty = bytes.len() <= frame::SEGMENT_HEADER;
        // The process died while making it, or after making it and before using it.
        if empty && Some(number) == last && (header.is_none() || !found.segments.is_empty()) {
            fs::remove_file(&path)?;
            continue;
        }
        scan_one(dir, number, &bytes, header.map(|(_, before)| before), &mut found, total)?;
    }
    Ok(found)
}

fn segment_numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let hex = name.to_str().and_then(|name| name.strip_suffix(".segment"));
        numbers.extend(hex.and_then(|hex| u64::from_str_radix(hex, 16).ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn scan_one(
    dir: &Path,
    number: u64,
    bytes: &[u8],
    before: Option<u64>,
    found: &mut Scan,
    total: &Total,
) -> io::Result<()> {
    if found.segments.is_empty() {
        found.finals = before.unwrap_or(0);
    }
    let misnumbered = before != Some(found.finals);
    let finals_before = found.finals;
    let start = if before.is_some() { frame::SEGMENT_HEADER } else { 0 };
    let (good, damaged) = read_frames(bytes, start, found);
    let path = segment_path(dir, number);
    let mut end = good.last().map_or(frame::SEGMENT_HEADER, |range| range.end) as u64;
    if damaged || before.is_none() {
        tracing::error!(segment = %path.display(), "a usage journal segment is damaged; it is set aside and what can be read is kept");
        total.damaged_segments.fetch_add(1, Ordering::Relaxed);
        let kept: Vec<u8> = good.iter().flat_map(|range| &bytes[range.clone()]).copied().collect();
        end = salvage(dir, number, finals_before, &kept)?;
        found.moved = true;
    } else {
        if end < bytes.len() as u64 {
            tracing::warn!(segment = %path.display(), bytes = bytes.len() as u64 - end, "cut a torn tail of the usage journal");
            total.torn_tails.fetch_add(1, Ordering::Relaxed);
            OpenOptions::new().write(true).open(&path)?.set_len(end)?;
        }
        if misnumbered {
            found.moved = true;
            OpenOptions::new().write(true).open(&path)?.write_all_at(&frame::header(number, finals_before), 0)?;
        }
    }
    found.segments.push(Segment { number, finals_before, end });
    Ok(())
}

/// The ranges of whole frames, and whether some lie after a damaged place. Takes note of what the
/// frames say.
fn read_frames(bytes: &[u8], start: usize, found: &mut Scan) -> (Vec<std::ops::Range<usize>>, bool) {
    let mut good: Vec<std::ops::Range<usize>> = Vec::new();
    let mut damaged = false;
    let mut at = start;
    loop {
        match frame::next(bytes, at) {
            Next::End => return (good, damaged),
            Next::Frame { kind, payload, end } => {
                note(kind, payload, found);
                match good.last_mut() {
                    Some(range) if range.end == at => range.end = end,
                    Some(_) | None => good.push(at..end),
                }
                at = end;
            }
            Next::Bad => match frame::resync(bytes, at) {
                Some(next) => {
                    damaged = true;
                    at = next;
                }
                None => return (good, damaged),
            },
        }
    }
}

fn note(kind: Kind, payload: &[u8], found: &mut Scan) {
    match kind {
        Kind::Intent => {
            let record = proto::UsageRecord::decode(payload).ok();
            if let Some((id, record)) = record.and_then(|record| Some((request_id(&record)?, record))) {
                found.open.insert(id, record);
            }
        }
        Kind::Checkpoint => {
            let parts = payload.split_first_chunk::<16>();
            if let Some((id, tokens)) = parts
                && let Some(record) = found.open.get_mut(id)
                && let Ok(tokens) = proto::Tokens::decode(tokens)
            {
                record.tokens = Some(tokens);
            }
        }
        Kind::Final => {
            found.finals += 1;
            if let Some(id) = proto::UsageRecord::decode(payload).ok().as_ref().and_then(request_id) {
                found.open.remove(&id);
            }
        }
    }
}

/// Keeps the damaged file under another name and puts a segment with the readable frames in its
/// place. Gives that segment's length.
fn salvage(dir: &Path, number: u64, finals_before: u64, frames: &[u8]) -> io::Result<u64> {
    let path = segment_path(dir, number);
    let aside = path.with_extension(format!("damaged-{}", runtime::clock::now_ms()));
    fs::hard_link(&path, &aside)?;
    let temporary = dir.join("salvage.tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&frame::header(number, finals_before))?;
    file.write_all(frames)?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    sync_dir(dir)?;
    Ok((frame::SEGMENT_HEADER + frames.len()) as u64)
}
