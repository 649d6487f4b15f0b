//! The bytes of a segment: a header, then frames.
//!
//! Header, 32 bytes: `PMJ1`, 4 zero bytes, segment number, finals in earlier segments (both u64 LE),
//! CRC32C of those 24 bytes (u32 LE), 4 zero bytes.
//! Frame: length of kind and payload (u32 LE), CRC32C of the length, kind and payload (u32 LE), kind
//! (1 byte), payload.
//!
//! Reading never trusts a length it has not checked, and gives no frame whose checksum is wrong.

/// Bytes before the first frame.
pub const SEGMENT_HEADER: usize = 32;
/// Longest frame that is written or accepted.
pub const MAX_FRAME: usize = 64 * 1024;

const FRAME_HEADER: usize = 8;
const MAGIC: &[u8; 8] = b"PMJ1\0\0\0\0";

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A `UsageRecord` with what is known before the provider is called.
    Intent = 1,
    /// 16 bytes request id, then `Tokens`.
    Checkpoint = 2,
    /// A `UsageRecord`, settled.
    Final = 3,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Intent, Self::Checkpoint, Self::Final].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Appends a frame whose payload is what `payload` appends.
pub fn append(out: &mut Vec<u8>, kind: Kind, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER]);
    out.push(kind as u8);
    payload(out);
    let frame = &mut out[start..];
    let len = (frame.len() - FRAME_HEADER) as u32;
    frame[..4].copy_from_slice(&len.to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&frame[..4]), &frame[FRAME_HEADER..]);
    frame[4..FRAME_HEADER].copy_from_slice(&sum.to_le_bytes());
}

/// What stands at a place of a segment.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// A whole frame; the next one begins at `end`.
    Frame {
        /// What it holds.
        kind: Kind,
        /// Its payload, without the kind.
        payload: &'a [u8],
        /// Where the next frame begins.
        end: usize,
    },
    /// The bytes end exactly here.
    End,
    /// Not a whole and correct frame.
    Bad,
}

/// The frame that begins at `at`.
pub fn next(bytes: &[u8], at: usize) -> Next<'_> {
    let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) else { return Next::End };
    parse(rest).map_or(Next::Bad, |(kind, payload, len)| Next::Frame { kind, payload, end: at + len })
}

/// The first place after `from` where a whole and correct frame begins.
pub fn resync(bytes: &[u8], from: usize) -> Option<usize> {
    (from + 1..bytes.len()).find(|at| matches!(next(bytes, *at), Next::Frame { .. }))
}

/// A segment's header.
pub fn header(number: u64, finals_before: u64) -> [u8; SEGMENT_HEADER] {
    let mut out = [0; SEGMENT_HEADER];
    out[..8].copy_from_slice(MAGIC);
    out[8..16].copy_from_slice(&number.to_le_bytes());
    out[16..24].copy_from_slice(&finals_before.to_le_bytes());
    let sum = crc32c::crc32c(&out[..24]);
    out[24..28].copy_from_slice(&sum.to_le_bytes());
    out
}

/// (number, finals in earlier segments) of a segment; `None` unless the header is whole and correct.
pub fn read_header(bytes: &[u8]) -> Option<(u64, u64)> {
    let head = bytes.get(..SEGMENT_HEADER)?;
    let sum = crc32c::crc32c(&head[..24]);
    if head[..8] != *MAGIC || head[24..28] != sum.to_le_bytes() {
        return None;
    }
    let number = |at: usize| head[at..at + 8].try_into().ok().map(u64::from_le_bytes);
    Some((number(8)?, number(16)?))
}

fn parse(rest: &[u8]) -> Option<(Kind, &[u8], usize)> {
    let head = rest.get(..FRAME_HEADER)?;
    let len = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    if len == 0 || len > MAX_FRAME {
        return None;
    }
    let body = rest.get(FRAME_HEADER..FRAME_HEADER + len)?;
    let sum = crc32c::crc32c_append(crc32c::crc32c(&head[..4]), body);
    if head[4..] != sum.to_le_bytes() {
        return None;
    }
    let (kind, payload) = body.split_first()?;
    Some((Kind::from_byte(*kind)?, payload, FRAME_HEADER + len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(kind: Kind, payload: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::new();
        append(&mut buffer, kind, |out| out.extend_from_slice(payload));
        buffer
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_seen() {
        let first = sealed(Kind::Intent, b"abc");
        let whole = [first.clone(), sealed(Kind::Final, b"")].concat();
        assert_eq!(next(&whole, 0), Next::Frame { kind: Kind::Intent, payload: b"abc", end: first.len() });
        assert_eq!(next(&whole, first.len()), Next::Frame { kind: Kind::Final, payload: b"", end: whole.len() });
        assert_eq!(next(&whole, whole.len()), Next::End);
        for cut in 1..first.len() {
            assert_eq!(next(&first[..cut], 0), Next::Bad, "cut at {cut}");
        }
        for bit in 0..first.len() * 8 {
            let mut bad = whole.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(next(&bad, 0), Next::Bad, "bit {bit}");
            assert_eq!(resync(&bad, 0), Some(first.len()), "bit {bit}");
        }
        assert_eq!(next(&[0; 64], 0), Next::Bad);
    }

    #[test]
    fn headers_round_trip_and_refuse_damage() {
        let good = header(7, 9);
        assert_eq!(read_header(&good), Some((7, 9)));
        for byte in 0..28 {
            let mut bad = good;
            bad[byte] ^= 1;
            assert_eq!(read_header(&bad), None, "byte {byte}");
        }
        assert_eq!(read_header(&good[..31]), None);
    }
}
