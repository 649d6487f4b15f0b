//! The last good state of every scope, on disk (S8). A scope is a folder; a state is a sealed file
//! that is there whole or not at all. Three generations are kept, and one more that has proved
//! itself.
//!
//! It reads and writes; which state serves is decided in `boot`, when to write in `keeper`.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use prost::Message;
use shared::proto;
use shared::snapshot::{SHARED_SCOPE, Scope, ScopeDelta};

use super::boot::{Start, Stored};
use super::seal::{self, Damage, Header, SealKey};
use super::store::Lineage;

/// Generations kept per scope, beside the good one.
pub const GENERATIONS: usize = 3;

const EXTENSION: &str = "state";
const CONTACT: &str = "contact";
const GOOD: &str = "good.state";
const CANDIDATE: &str = "candidate.link";

/// A node's folder of states. One process at a time may hold it.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
    key: SealKey,
    /// Two threads change the record of starts.
    starts: Mutex<()>,
    /// Held for its lock.
    _lock: File,
}

/// One file of a scope.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation {
    /// Where it is.
    pub path: PathBuf,
    /// Grows with every write; `None` for the good one, which is a copy of some generation.
    pub number: Option<u64>,
}

/// Steps of a write, in order. A process may end after any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Created,
    HalfWritten,
    Written,
    Synced,
    Renamed,
    FolderSynced,
    Pruned,
}

impl Disk {
    /// Opens the folder, making it and the node's key when they are not there.
    ///
    /// # Errors
    /// When it cannot be made or read, or when another process holds it.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let scopes = folder.join("scopes");
        fs::create_dir_all(&scopes)?;
        private(folder)?;
        let lock = File::options().create(true).truncate(false).write(true).open(folder.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let text = format!("{} is in use by another process", folder.display());
                return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
            }
            Err(TryLockError::Error(e)) => return Err(e),
        }
        let key = SealKey::load_or_create(&folder.join("seal.key"))?;
        let disk = Self { folder: folder.to_owned(), key, starts: Mutex::new(()), _lock: lock };
        disk.clear_remains();
        Ok(disk)
    }

    /// When the control plane was last heard, milliseconds since 1970, as [`Disk::note_contact`] was
    /// told; 0 = not known.
    pub fn contact_ms(&self) -> i64 {
        let text = fs::read_to_string(self.folder.join(CONTACT)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Remembers when the control plane was last heard. Survives the process, not a power cut: then
    /// an earlier time may be found, which is on the safe side.
    ///
    /// # Errors
    /// What the file system said.
    pub fn note_contact(&self, now_ms: i64) -> io::Result<()> {
        let next = self.folder.join("contact.next");
        fs::write(&next, format!("{now_ms}\n"))?;
        fs::rename(next, self.folder.join(CONTACT))
    }

    /// Names of all scopes with a folder, sorted.
    pub fn scopes(&self) -> Vec<String> {
        let mut names: Vec<String> = entries(&self.folder.join("scopes"))
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
            .filter(|name| is_scope(name))
            .collect();
        names.sort();
        names
    }

    /// The files of a scope, newest first, the good one last. Says nothing about whether they can
    /// be read.
    pub fn generations(&self, scope: &str) -> Vec<Generation> {
        let mut found: Vec<Generation> = entries(&self.scope_folder(scope))
            .filter(|path| path.extension().is_some_and(|e| e == EXTENSION))
            .filter_map(|path| {
                let stem = path.file_stem()?.to_str()?;
                let number = if stem == "good" { None } else { Some(u64::from_str_radix(stem, 16).ok()?) };
                Some(Generation { path, number })
            })
            .collect();
        found.sort_by_key(|generation| std::cmp::Reverse(generation.number));
        found
    }

    /// Reads one file: opened, decoded, and of the hash that its header names.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(&self, scope: &str, generation: &Generation) -> Result<Stored, Damage> {
        let file = fs::read(&generation.path).map_err(|_| Damage::NotSealed)?;
        let (header, content) = self.key.open(scope, file)?;
        let update = proto::Update::decode(content.as_slice()).map_err(|_| Damage::Content)?;
        let mut held = Scope::default();
        held.apply(&ScopeDelta { upserts: update.upserts, removals: Vec::new() }, header.revision);
        if held.state_hash() != header.state_hash || update.scope != scope || update.to != header.revision {
            return Err(Damage::Content);
        }
        Ok(Stored { lineage: header.lineage, scope: held, path: generation.path.clone() })
    }

    /// Writes the next generation of a scope and drops the oldest. Gives its path.
    ///
    /// # Errors
    /// What the file system said. All earlier generations are then still there.
    pub fn write(&self, scope: &str, lineage: Lineage, state: &Scope) -> io::Result<PathBuf> {
        self.write_step_by_step(scope, lineage, state, &mut |_| Ok(()))
    }

    pub(super) fn write_step_by_step(
        &self,
        scope: &str,
        lineage: Lineage,
        state: &Scope,
        after: &mut dyn FnMut(Step) -> io::Result<()>,
    ) -> io::Result<PathBuf> {
        if !is_scope(scope) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a scope's name"));
        }
        let header = Header { lineage, revision: state.revision(), state_hash: state.state_hash() };
        // A file holds what the wire would bring: one parser for both.
        let update = proto::Update {
            scope: scope.to_owned(),
            to: state.revision(),
            upserts: state.resources().collect(),
            state_hash: state.state_hash().as_bytes().to_vec(),
            last: true,
            ..Default::default()
        };
        let sealed = self.key.seal(scope, &header, &update.encode_to_vec())?;
        let folder = self.scope_folder(scope);
        fs::create_dir_all(&folder)?;
        let newest = self.generations(scope).first().and_then(|g| g.number).unwrap_or(0);
        let path = folder.join(format!("{:016x}.{EXTENSION}", newest.saturating_add(1)));
        let temporary = path.with_extension("tmp");
        let mut file = seal::create_private(&temporary)?;
        after(Step::Created)?;
        let (first, second) = sealed.split_at(sealed.len() / 2);
        file.write_all(first)?;
        after(Step::HalfWritten)?;
        file.write_all(second)?;
        after(Step::Written)?;
        file.sync_all()?;
        after(Step::Synced)?;
        fs::rename(&temporary, &path)?;
        after(Step::Renamed)?;
        seal::sync_folder(&path)?;
        if newest == 0 {
            seal::sync_folder(&folder)?;
        }
        after(Step::FolderSynced)?;
        // Oldest first: ending in between leaves more than needed, never a gap.
        let mut numbered = self.generations(scope);
        numbered.retain(|g| g.number.is_some());
        for old in numbered.iter().skip(GENERATIONS).rev() {
            fs::remove_file(&old.path)?;
        }
        after(Step::Pruned)?;
        Ok(path)
    }

    /// Remembers a file as the one that becomes good if the process lives. Cheap: another name for
    /// the same bytes, which stays when the generation is dropped.
    pub(super) fn nominate(&self, scope: &str, path: &Path) -> io::Result<()> {
        let candidate = self.scope_folder(scope).join(CANDIDATE);
        match fs::remove_file(&candidate) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        fs::hard_link(path, &candidate).or_else(|_| fs::copy(path, &candidate).map(drop))
    }

    /// Makes the nominated file the good one.
    pub(super) fn confirm(&self, scope: &str) -> io::Result<()> {
        let folder = self.scope_folder(scope);
        let (candidate, good) = (folder.join(CANDIDATE), folder.join(GOOD));
        fs::rename(&candidate, &good)?;
        // Two names of one file: renaming one to the other leaves both.
        _ = fs::remove_file(&candidate);
        seal::sync_folder(&good)
    }

    /// Forgets a scope. Its folder leaves in one step: if files went one by one, ending in between
    /// would bring an older state back.
    ///
    /// # Errors
    /// What the file system said.
    pub fn remove(&self, scope: &str) -> io::Result<()> {
        let folder = self.scope_folder(scope);
        if !folder.exists() {
            return Ok(());
        }
        let gone = self.folder.join(format!("removed-{scope}"));
        _ = fs::remove_dir_all(&gone);
        fs::rename(&folder, &gone)?;
        seal::sync_folder(&folder)?;
        fs::remove_dir_all(&gone)
    }

    /// Starts of the process that did not last, as last written. A damaged record reads as none.
    pub(super) fn starts(&self) -> Vec<Start> {
        let text = fs::read_to_string(self.folder.join("starts")).unwrap_or_default();
        text.lines().filter_map(Start::parse).collect()
    }

    /// Replaces the record of starts.
    pub(super) fn write_starts(&self, starts: &[Start]) -> io::Result<()> {
        seal::write_whole(&self.folder.join("starts"), lines(starts).as_bytes())
    }

    /// Drops those from the record of starts that are not to be kept. Written when it returns, but not
    /// synced: it has to survive the process, and after a power cut a start counted too many is harmless.
    pub(super) fn retain_starts(&self, keep: impl FnMut(&Start) -> bool) -> io::Result<()> {
        let _one_at_a_time = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut starts = self.starts();
        let before = starts.len();
        starts.retain(keep);
        if starts.len() == before {
            return Ok(());
        }
        seal::replace(&self.folder.join("starts"), lines(&starts).as_bytes())
    }

    fn scope_folder(&self, scope: &str) -> PathBuf {
        self.folder.join("scopes").join(scope)
    }

    /// What a process that ended in the middle left behind. Failing to remove it harms nobody.
    fn clear_remains(&self) {
        for path in entries(&self.folder).filter(|path| name_of(path).starts_with("removed-")) {
            _ = fs::remove_dir_all(path);
        }
        for scope in self.scopes() {
            for path in entries(&self.scope_folder(&scope)) {
                if path.extension().is_some_and(|e| e == "tmp") || name_of(&path) == CANDIDATE {
                    _ = fs::remove_file(path);
                }
            }
        }
    }
}

/// Names that may become folders: what a scope can be called, and nothing that leads elsewhere.
fn is_scope(name: &str) -> bool {
    name == SHARED_SCOPE || name.parse::<shared::ids::WorkspaceId>().is_ok()
}

fn lines(starts: &[Start]) -> String {
    starts.iter().map(|start| format!("{start}\n")).collect()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok().map(|entry| entry.path()))
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}
