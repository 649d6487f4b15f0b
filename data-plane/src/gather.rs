//! A body that arrives in pieces, put together within a bound. One that comes in a single piece, as
//! most do, is not copied.

use bytes::{Bytes, BytesMut};

/// Pieces so far.
pub struct Gather {
    limit: usize,
    expected: usize,
    first: Bytes,
    rest: Option<BytesMut>,
}

/// More than the limit arrived, or was announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

impl Gather {
    /// Takes at most `limit` bytes; `announced` is what the sender says will come.
    ///
    /// # Errors
    /// When that is too much already.
    pub fn new(limit: usize, announced: u64) -> Result<Self, TooLarge> {
        let expected = usize::try_from(announced).ok().filter(|bytes| *bytes <= limit).ok_or(TooLarge)?;
        Ok(Self { limit, expected, first: Bytes::new(), rest: None })
    }

    /// The next piece.
    ///
    /// # Errors
    /// When it goes past the limit.
    pub fn push(&mut self, piece: Bytes) -> Result<(), TooLarge> {
        let so_far = self.rest.as_ref().map_or(self.first.len(), BytesMut::len);
        if so_far + piece.len() > self.limit {
            return Err(TooLarge);
        }
        match &mut self.rest {
            None if self.first.is_empty() => self.first = piece,
            None => {
                let mut whole = BytesMut::with_capacity(self.expected.max(so_far + piece.len()));
                whole.extend_from_slice(&self.first);
                whole.extend_from_slice(&piece);
                self.rest = Some(whole);
            }
            Some(whole) => whole.extend_from_slice(&piece),
        }
        Ok(())
    }

    /// All of it.
    pub fn finish(self) -> Bytes {
        self.rest.map_or(self.first, BytesMut::freeze)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_joined_within_the_limit() {
        let mut gather = Gather::new(5, 0).expect("nothing is announced");
        for piece in ["ab", "", "c", "de"] {
            gather.push(Bytes::from_static(piece.as_bytes())).expect("it fits");
        }
        assert_eq!(gather.push(Bytes::from_static(b"f")), Err(TooLarge));
        assert_eq!(gather.finish(), "abcde");
        assert!(Gather::new(5, 6).is_err());
    }

    #[test]
    fn a_single_piece_is_not_copied() {
        let piece = Bytes::from(vec![7; 100]);
        let mut gather = Gather::new(100, 100).expect("it fits");
        gather.push(piece.clone()).expect("it fits");
        assert_eq!(gather.finish().as_ptr(), piece.as_ptr());
    }
}
