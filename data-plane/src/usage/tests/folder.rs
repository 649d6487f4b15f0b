//! Folders for one test each, and records to write into them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::Message;
use shared::proto::{self, Outcome};
use shared::usage::Tokens;

use crate::usage::journal::{self, Options, Spool, Syncer, Tail, Unwritable, Writer, open};

/// Records written one by one.
pub trait AtOnce {
    fn intent(&self, record: &proto::UsageRecord) -> Result<(), Unwritable>;
    /// Gives the final's number.
    fn settle(&self, record: &proto::UsageRecord) -> u64;
}

impl AtOnce for Writer {
    fn intent(&self, record: &proto::UsageRecord) -> Result<(), Unwritable> {
        self.queue_intent(record)?;
        let id = record.request_id.as_slice().try_into().expect("16 bytes");
        let passed = self.gate(id).pass();
        assert_eq!(self.take_refusal(&id), passed.err());
        passed
    }

    fn settle(&self, record: &proto::UsageRecord) -> u64 {
        self.queue_final(record);
        self.flush();
        self.finals()
    }
}

/// Journals that this thread writes.
pub struct Opened {
    pub writers: Vec<Writer>,
    pub spools: Vec<Arc<Spool>>,
    _syncer: Syncer,
}

/// Removed when dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("pointsman-journal-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // In memory where there is such a place: these tests sync thousands of times.
        let memory = Path::new("/dev/shm");
        let path = if memory.is_dir() { memory.join(name) } else { std::env::temp_dir().join(name) };
        _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("temp dir");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Folder of worker 0.
    pub fn journal(&self) -> PathBuf {
        self.0.join("journal/0")
    }

    pub fn open(&self, options: &Options) -> Opened {
        self.open_for(1, options)
    }

    pub fn open_for(&self, workers: usize, options: &Options) -> Opened {
        let journal::Opened { journals, spools, syncer } = open(&self.0, workers, options).expect("open the journals");
        Opened { writers: journals.into_iter().map(Writer::new).collect(), spools, _syncer: syncer }
    }

    /// Segment files of worker 0, oldest first.
    pub fn segments(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(self.journal())
            .expect("the folder")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|e| e == "segment"))
            .collect();
        files.sort();
        files
    }

    /// The same files in another folder.
    pub fn copy(&self) -> Self {
        let copy = Self::new();
        fs::create_dir_all(copy.journal()).expect("temp dir");
        for entry in fs::read_dir(self.journal()).expect("the folder") {
            let path = entry.expect("an entry").path();
            fs::copy(&path, copy.journal().join(path.file_name().expect("a name"))).expect("copy");
        }
        copy
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// Every record durable at once; segments of a few records.
pub fn inline(segment_bytes: u64) -> Options {
    Options { segment_bytes, sync_interval: Duration::ZERO, ..Options::default() }
}

/// Request `n`, as known before the call.
pub fn begun(n: u64) -> proto::UsageRecord {
    proto::UsageRecord {
        request_id: u128::from(n).to_be_bytes().to_vec(),
        workspace_id: "ws_1".into(),
        requested_model: format!("model-{n}"),
        ..Default::default()
    }
}

/// The id of request `n`.
pub fn id(n: u64) -> [u8; 16] {
    begun(n).request_id.try_into().expect("16 bytes")
}

/// So many tokens, produced.
pub fn output(output: u64) -> Tokens {
    Tokens { output, ..Default::default() }
}

/// Request `n`, having produced so many tokens.
fn produced(n: u64, output: u64) -> proto::UsageRecord {
    proto::UsageRecord { tokens: Some(self::output(output).into()), ..begun(n) }
}

/// Request `n`, completed.
pub fn done(n: u64) -> proto::UsageRecord {
    proto::UsageRecord { outcome: Outcome::Completed.into(), status: 200, ..produced(n, 100 + n) }
}

pub fn number(record: &proto::UsageRecord) -> u64 {
    u128::from_be_bytes(record.request_id.as_slice().try_into().expect("16 bytes")) as u64
}

/// All durable finals after the first `after`, checked to be numbered without a gap.
pub fn finals(spool: &Arc<Spool>, after: u64) -> Vec<proto::UsageRecord> {
    let mut tail = Tail::after(spool, after);
    let mut all = Vec::new();
    loop {
        let mut some = Vec::new();
        tail.read(3, usize::MAX, &mut some).expect("readable");
        if some.is_empty() {
            break;
        }
        all.extend(some);
    }
    let numbers: Vec<u64> = all.iter().map(|f| f.ordinal).collect();
    let first = numbers.first().copied().unwrap_or(after + 1);
    assert!(numbers.iter().copied().eq(first..first + numbers.len() as u64), "{numbers:?}");
    all.iter().map(|f| proto::UsageRecord::decode(&*f.record).expect("a record")).collect()
}
