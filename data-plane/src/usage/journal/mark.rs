//! A journal's small file: which incarnation it is, and how far the ledger has confirmed it.
//!
//! It is written only where a restart must know it: when an incarnation begins and before segments
//! are deleted. In between, the ledger is asked again and the chain computed again from the records.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use shared::digest::Hash;

const FILE: &str = "mark";
const MAGIC: &[u8; 4] = b"PMM1";
const LEN: usize = 4 + 16 + 8 + 8 + 32 + 4;

/// 16 random bytes, made when a journal is created or has to be numbered anew.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Incarnation(pub [u8; 16]);

impl Incarnation {
    /// A new one that nobody else has.
    pub fn random() -> Self {
        Self(runtime::random::bytes())
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How the finals of a journal are numbered for the ledger, and how far it has confirmed them.
/// Finals are counted from the making of the folder; sequence number = count - `offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Under which name they are reported.
    pub incarnation: Incarnation,
    /// Finals before sequence number 1.
    pub offset: u64,
    /// Finals, counted from the making of the folder, that the ledger has.
    pub acked: u64,
    /// Chain value after them.
    pub chain: Hash,
}

impl Mark {
    /// A new incarnation whose sequence number 1 is the final after the first `offset`.
    pub fn fresh(offset: u64) -> Self {
        Self { incarnation: Incarnation::random(), offset, acked: offset, chain: [0; 32] }
    }

    /// The mark of a folder; `None` when there is none that is whole and correct.
    pub fn read(dir: &Path) -> Option<Self> {
        Self::decode(&fs::read(dir.join(FILE)).ok()?)
    }

    /// Writes it, durable when this returns, whole or not at all.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let temporary = dir.join("mark.tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&self.encode())?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(FILE))?;
        sync_dir(dir)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.incarnation.0);
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.acked.to_le_bytes());
        out.extend_from_slice(&self.chain);
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(LEN - 4)?;
        if !body.starts_with(MAGIC) || sum != crc32c::crc32c(body).to_le_bytes() {
            return None;
        }
        let number = |at: usize| body[at..at + 8].try_into().ok().map(u64::from_le_bytes);
        Some(Self {
            incarnation: Incarnation(body[4..20].try_into().ok()?),
            offset: number(20)?,
            acked: number(28)?,
            chain: body[36..68].try_into().ok()?,
        })
    }
}

/// Makes the names in a folder durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_round_trip_and_refuse_damage() {
        let mark = Mark { acked: 12, chain: [3; 32], ..Mark::fresh(5) };
        let good = mark.encode();
        assert_eq!(Mark::decode(&good), Some(mark));
        for byte in 0..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 1;
            assert_eq!(Mark::decode(&bad), None, "byte {byte}");
            assert_eq!(Mark::decode(&good[..byte]), None, "cut at {byte}");
        }
    }
}
