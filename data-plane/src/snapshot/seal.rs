//! Sealing of state on disk: a header in the clear, the rest under AES-256-GCM with a key of this
//! node. State holds providers' keys.
//!
//! The key lies in a file beside the state, readable by the node's user only. That protects copies,
//! backups and disks that lack the key file; it does not protect against who can read both.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey};
use shared::digest::{Hash, StateHash};

use super::store::Lineage;

/// First bytes of every sealed file.
const MAGIC: &[u8; 8] = b"PMSTATE\0";
/// Form of what follows; a file of another form is not read.
const FORMAT: u32 = 1;
/// Length of the part in the clear.
pub const HEADER_BYTES: usize = 8 + 4 + 16 + 8 + 32 + 8 + NONCE_LEN;

/// What a sealed file says in the clear. Changing any of it makes the file unreadable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which database the revision counts for.
    pub lineage: Lineage,
    /// The scope's revision.
    pub revision: u64,
    /// The scope's hash.
    pub state_hash: StateHash,
}

/// Why a file cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Too short, or not one of ours.
    NotSealed,
    /// Written by a program of another format.
    Format(u32),
    /// Length differs from what the header says.
    Torn,
    /// Changed since, or sealed with another key or for another scope.
    Seal,
    /// Sealed well, but what is inside is not the state that the header names.
    Content,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotSealed => f.write_str("not a sealed file"),
            Self::Format(format) => write!(f, "format {format} is not known"),
            Self::Torn => f.write_str("torn"),
            Self::Seal => f.write_str("changed, or sealed with another key"),
            Self::Content => f.write_str("the content is not what the header says"),
        }
    }
}

/// The key of one node's files.
pub struct SealKey(LessSafeKey);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey")
    }
}

impl SealKey {
    /// Reads the key, or makes one when there is none. A damaged key file is set aside: what it
    /// sealed is lost, the node is not.
    ///
    /// # Errors
    /// When the file can be neither read nor written.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        match fs::read(path) {
            Ok(bytes) => match <[u8; 32]>::try_from(bytes.as_slice()) {
                Ok(bytes) => return Self::new(&bytes),
                Err(_) => {
                    tracing::error!(path = %path.display(), "the key file is damaged and is set aside; stored state is lost");
                    fs::rename(path, path.with_extension("damaged"))?;
                }
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let bytes = runtime::random::bytes::<32>();
        write_whole(path, &bytes)?;
        Self::new(&bytes)
    }

    fn new(bytes: &[u8; 32]) -> io::Result<Self> {
        let key = UnboundKey::new(&AES_256_GCM, bytes).map_err(|_| io::Error::other("not an AES-256 key"))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Header and sealed `content` of one scope's state, as a file holds them.
    ///
    /// # Errors
    /// Never for content below 64 GiB.
    pub fn seal(&self, scope: &str, header: &Header, content: &[u8]) -> io::Result<Vec<u8>> {
        let nonce: [u8; NONCE_LEN] = runtime::random::bytes();
        let mut out = Vec::with_capacity(HEADER_BYTES + content.len() + MAX_TAG_LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&header.lineage);
        out.extend_from_slice(&header.revision.to_le_bytes());
        out.extend_from_slice(header.state_hash.as_bytes());
        out.extend_from_slice(&((content.len() + MAX_TAG_LEN) as u64).to_le_bytes());
        out.extend_from_slice(&nonce);
        let aad = Aad::from([out.as_slice(), scope.as_bytes()].concat());
        let mut body = content.to_vec();
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut body)
            .map_err(|_| io::Error::other("sealing failed"))?;
        out.extend_from_slice(&body);
        Ok(out)
    }

    /// The header and content of a file of this scope.
    ///
    /// # Errors
    /// When one bit of it, or its scope, differs from what was sealed.
    pub fn open(&self, scope: &str, mut file: Vec<u8>) -> Result<(Header, Vec<u8>), Damage> {
        let (header, nonce) = read_header(&file)?;
        let mut body = file.split_off(HEADER_BYTES);
        let aad = Aad::from([file.as_slice(), scope.as_bytes()].concat());
        let length =
            self.0.open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut body).map_err(|_| Damage::Seal)?.len();
        body.truncate(length);
        Ok((header, body))
    }
}

fn read_header(file: &[u8]) -> Result<(Header, [u8; NONCE_LEN]), Damage> {
    let (magic, rest) = take::<8>(file)?;
    if magic != *MAGIC {
        return Err(Damage::NotSealed);
    }
    let (format, rest) = take::<4>(rest)?;
    let format = u32::from_le_bytes(format);
    if format != FORMAT {
        return Err(Damage::Format(format));
    }
    let (lineage, rest) = take::<16>(rest)?;
    let (revision, rest) = take::<8>(rest)?;
    let (state_hash, rest): (Hash, _) = take::<32>(rest)?;
    let (length, rest) = take::<8>(rest)?;
    let (nonce, body) = take::<NONCE_LEN>(rest)?;
    if u64::from_le_bytes(length) != body.len() as u64 {
        return Err(Damage::Torn);
    }
    let state_hash = StateHash::from_slice(&state_hash).ok_or(Damage::NotSealed)?;
    Ok((Header { lineage, revision: u64::from_le_bytes(revision), state_hash }, nonce))
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), Damage> {
    bytes.split_first_chunk().map(|(head, rest)| (*head, rest)).ok_or(Damage::NotSealed)
}

/// Writes a file that only this user can read, so that it is there whole or not at all.
///
/// # Errors
/// What the file system said; the file of that name is then as it was.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = create_private(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(path)
}

/// As [`write_whole`], for what has to survive the process but not the machine: nothing is synced.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    create_private(&temporary)?.write_all(content)?;
    fs::rename(&temporary, path)
}

/// An empty file that only this user can read, in place of one of that name.
pub(super) fn create_private(path: &Path) -> io::Result<File> {
    // Opening would keep the mode of one that is there already.
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Makes a rename in the folder of `path` durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
