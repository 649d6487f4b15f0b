//! Reads finals from disk in their order, up to what is durable and no further: a record that was
//! reported can then not vanish in a power cut, and its number cannot be given twice.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::Spool;
use super::frame::{self, Kind, Next};

/// Bytes read at once; several of the longest frames.
const CHUNK: usize = 256 * 1024;

/// A final as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Final {
    /// Its count since the folder was made; the first is 1.
    pub ordinal: u64,
    /// An encoded `UsageRecord`.
    pub record: Vec<u8>,
}

/// Why a journal cannot be read on.
#[derive(Debug)]
pub enum TailError {
    /// The system refuses.
    Io(io::Error),
    /// What was durable is damaged. The next start salvages what can be read.
    Damaged {
        /// Number of the segment.
        segment: u64,
        /// Where the frame begins that cannot be read.
        offset: u64,
    },
}

impl fmt::Display for TailError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Damaged { segment, offset } => write!(f, "segment {segment} is damaged at byte {offset}"),
        }
    }
}

impl std::error::Error for TailError {}

impl From<io::Error> for TailError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A place in a journal.
#[derive(Debug)]
pub struct Tail {
    spool: Arc<Spool>,
    file: Option<(u64, File)>,
    segment: u64,
    offset: u64,
    ordinal: u64,
    after: u64,
    chunk: Vec<u8>,
}

impl Tail {
    /// Stands after the first `after` finals.
    pub fn after(spool: &Arc<Spool>, after: u64) -> Self {
        let first = spool.segment_of(after);
        Self {
            spool: spool.clone(),
            file: None,
            segment: first.map_or(0, |segment| segment.number),
            offset: frame::SEGMENT_HEADER as u64,
            ordinal: first.map_or(0, |segment| segment.finals_before),
            after,
            chunk: Vec::new(),
        }
    }

    /// Appends the next finals to `out`, until it holds `max_records` or at least `max_bytes`, or
    /// until no more are durable.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged; the place stays before the damage.
    pub fn read(&mut self, max_records: usize, max_bytes: usize, out: &mut Vec<Final>) -> Result<(), TailError> {
        let mut bytes: usize = out.iter().map(|f| f.record.len()).sum();
        while out.len() < max_records && bytes < max_bytes {
            let Some(limit) = self.limit() else { return Ok(()) };
            self.fill(limit)?;
            let mut at = 0;
            while out.len() < max_records && bytes < max_bytes {
                let Next::Frame { kind, payload, end } = frame::next(&self.chunk, at) else { break };
                at = end;
                if kind != Kind::Final {
                    continue;
                }
                self.ordinal += 1;
                if self.ordinal > self.after {
                    bytes += payload.len();
                    out.push(Final { ordinal: self.ordinal, record: payload.to_vec() });
                }
            }
            if at == 0 {
                return Err(TailError::Damaged { segment: self.segment, offset: self.offset });
            }
            self.offset += at as u64;
        }
        Ok(())
    }

    /// Where reading must stop in the segment it stands in, after stepping over finished segments;
    /// `None` when everything durable was read.
    fn limit(&mut self) -> Option<u64> {
        loop {
            let (durable, offset) = self.spool.durable();
            let here = self.spool.segment_from(self.segment)?;
            if here.number != self.segment {
                // Trimmed under us: only confirmed finals lay there.
                self.enter(here.number, here.finals_before);
            }
            if self.segment > durable || (self.segment == durable && self.offset >= offset) {
                return None;
            }
            if self.segment == durable {
                return Some(offset);
            }
            if self.offset < here.end {
                return Some(here.end);
            }
            let next = self.spool.segment_from(self.segment + 1)?;
            self.enter(next.number, next.finals_before);
        }
    }

    fn enter(&mut self, segment: u64, finals_before: u64) {
        self.segment = segment;
        self.offset = frame::SEGMENT_HEADER as u64;
        self.ordinal = finals_before;
    }

    fn fill(&mut self, limit: u64) -> io::Result<()> {
        let file = match self.file.take() {
            Some((number, file)) if number == self.segment => file,
            Some(_) | None => File::open(self.spool.segment_path(self.segment))?,
        };
        let len = usize::try_from(limit - self.offset).unwrap_or(CHUNK).min(CHUNK);
        self.chunk.resize(len, 0);
        let read = file.read_exact_at(&mut self.chunk, self.offset);
        self.file = Some((self.segment, file));
        read
    }
}
