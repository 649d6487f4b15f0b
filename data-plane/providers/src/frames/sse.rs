//! Server-sent events: bytes to whole events, however they were cut. Lines may end in LF, CRLF or
//! CR. An event is given with all its bytes, blank line included; nothing is decoded or changed.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// Bytes that one event may have.
pub const MAX_EVENT_BYTES: usize = 10 * 1024 * 1024;

/// An event is larger than [`MAX_EVENT_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

/// A whole event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// It stands in the chunk, here.
    Here(Range<usize>),
    /// It began in an earlier chunk and was put together.
    Joined(Bytes),
}

/// Finds events in chunks. Holds at most one unfinished event.
#[derive(Debug)]
pub struct Framer {
    held: BytesMut,
    /// The line that is being read has no byte yet.
    line_empty: bool,
    /// The last byte was a carriage return: a line feed right behind it belongs to it.
    after_return: bool,
}

impl Default for Framer {
    fn default() -> Self {
        Self { held: BytesMut::new(), line_empty: true, after_return: false }
    }
}

impl Framer {
    /// Whether `chunk` begins with the line feed of an event that was already given: its carriage
    /// return was the last byte of the chunk before. To be asked first for each chunk; such a byte
    /// must not be given to [`Framer::next`].
    pub fn owed_line_feed(&mut self, chunk: &[u8]) -> bool {
        if !self.after_return || !self.held.is_empty() || chunk.is_empty() {
            return false;
        }
        self.after_return = false;
        chunk.first() == Some(&b'\n')
    }

    /// The next whole event of `chunk` from `at` on, and moves `at` behind it. `None`: the rest of
    /// the chunk is the beginning of an event and is held.
    pub fn next(&mut self, chunk: &Bytes, at: &mut usize) -> Result<Option<Frame>, TooLarge> {
        let start = *at;
        let mut from = start;
        if self.after_return && from < chunk.len() {
            self.after_return = false;
            from += usize::from(chunk.get(from) == Some(&b'\n'));
        }
        while let Some(found) = chunk.get(from..).and_then(|rest| memchr::memchr2(b'\n', b'\r', rest)) {
            let blank = self.line_empty && found == 0;
            let end = self.line_end(chunk, from + found);
            self.line_empty = true;
            from = end;
            if blank {
                *at = end;
                return self.whole(chunk, start..end).map(Some);
            }
        }
        self.line_empty &= from >= chunk.len();
        *at = chunk.len();
        let rest = chunk.get(start..).unwrap_or_default();
        if self.held.len() + rest.len() > MAX_EVENT_BYTES {
            return Err(TooLarge);
        }
        self.held.extend_from_slice(rest);
        Ok(None)
    }

    /// What is held of an event that never ended.
    pub fn take(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    /// The index behind the line end that begins at `at`.
    fn line_end(&mut self, chunk: &[u8], at: usize) -> usize {
        if chunk.get(at) == Some(&b'\n') {
            return at + 1;
        }
        match chunk.get(at + 1) {
            Some(b'\n') => at + 2,
            Some(_) => at + 1,
            None => {
                self.after_return = true;
                at + 1
            }
        }
    }

    fn whole(&mut self, chunk: &Bytes, range: Range<usize>) -> Result<Frame, TooLarge> {
        if self.held.len() + range.len() > MAX_EVENT_BYTES {
            return Err(TooLarge);
        }
        if self.held.is_empty() {
            return Ok(Frame::Here(range));
        }
        self.held.extend_from_slice(chunk.get(range).unwrap_or_default());
        Ok(Frame::Joined(self.take()))
    }
}

/// What an event says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Payload<'a> {
    /// Its `event` field; empty when there is none.
    pub name: &'a [u8],
    /// Its `data` lines, joined by line feeds; `None` for comments and blank lines only.
    pub data: Option<Cow<'a, [u8]>>,
}

/// Reads the fields of one event.
pub fn payload(event: &[u8]) -> Payload<'_> {
    // Almost every event is one data line.
    if event.starts_with(b"data:")
        && let Some(end) = memchr::memchr2(b'\n', b'\r', event)
        && event.get(end..).is_some_and(|rest| rest.iter().all(|b| matches!(b, b'\n' | b'\r')))
    {
        return Payload { name: &[], data: event.get(5..end).map(|value| Cow::Borrowed(unspaced(value))) };
    }
    let mut found = Payload::default();
    let event = event.strip_prefix(b"\xef\xbb\xbf").unwrap_or(event);
    for line in event.split(|b| matches!(b, b'\n' | b'\r')) {
        let colon = memchr::memchr(b':', line).unwrap_or(line.len());
        let value = unspaced(line.get(colon + 1..).unwrap_or_default());
        match line.get(..colon).unwrap_or_default() {
            b"event" => found.name = value,
            b"data" => match &mut found.data {
                None => found.data = Some(Cow::Borrowed(value)),
                Some(data) => {
                    data.to_mut().push(b'\n');
                    data.to_mut().extend_from_slice(value);
                }
            },
            _ => {}
        }
    }
    found
}

/// Without the one space that may stand behind a field's colon.
fn unspaced(value: &[u8]) -> &[u8] {
    value.strip_prefix(b" ").unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Events as whole byte strings, the late line feed of one put back behind it.
    fn events(chunks: &[Bytes]) -> (Vec<Vec<u8>>, Bytes) {
        let mut framer = Framer::default();
        let mut events: Vec<Vec<u8>> = Vec::new();
        for chunk in chunks {
            let mut at = 0;
            if framer.owed_line_feed(chunk) {
                at = 1;
                events.last_mut().expect("an event was given").push(b'\n');
            }
            while let Some(frame) = framer.next(chunk, &mut at).expect("small") {
                events.push(match frame {
                    Frame::Here(range) => chunk.get(range).expect("inside").to_vec(),
                    Frame::Joined(bytes) => bytes.to_vec(),
                });
            }
        }
        (events, framer.take())
    }

    #[test]
    fn line_ends_and_fields() {
        let cases: [(&str, &[&str], &str); 8] = [
            ("data: a\n\ndata: b\n\n", &["data: a\n\n", "data: b\n\n"], ""),
            ("data: a\r\n\r\ndata: b\r\n\r\n", &["data: a\r\n\r\n", "data: b\r\n\r\n"], ""),
            ("data: a\r\rdata: b\r\r", &["data: a\r\r", "data: b\r\r"], ""),
            ("\n\r\n\r: hi\n\n", &["\n", "\r\n", "\r", ": hi\n\n"], ""),
            ("data: a\n\ndata: b\n", &["data: a\n\n"], "data: b\n"),
            ("data: a\ndata: b\n\r\n", &["data: a\ndata: b\n\r\n"], ""),
            ("data", &[], "data"),
            ("", &[], ""),
        ];
        for (text, expected, rest) in cases {
            let (found, held) = events(&[Bytes::from_static(text.as_bytes())]);
            let expected: Vec<Vec<u8>> = expected.iter().map(|e| e.as_bytes().to_vec()).collect();
            assert_eq!((found, &held[..]), (expected, rest.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn payloads() {
        let cases: [(&str, &str, Option<&str>); 9] = [
            ("data: a\n\n", "", Some("a")),
            ("data:a\r\n\r\n", "", Some("a")),
            ("data:  a\r\r", "", Some(" a")),
            ("data: a\ndata: b\n\n", "", Some("a\nb")),
            ("data: a\r\ndata\r\ndata: b\r\n\r\n", "", Some("a\n\nb")),
            ("event: error\ndata: x\n\n", "error", Some("x")),
            ("\u{feff}data: a\n\n", "", Some("a")),
            (": comment\n\n", "", None),
            ("data", "", Some("")),
        ];
        for (event, name, data) in cases {
            let found = payload(event.as_bytes());
            assert_eq!((found.name, found.data.as_deref()), (name.as_bytes(), data.map(str::as_bytes)), "{event:?}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused_at_the_limit() {
        let chunk = Bytes::from(vec![b'x'; 1 << 20]);
        let mut framer = Framer::default();
        let outcomes: Vec<_> = (0..11).map(|_| framer.next(&chunk, &mut 0)).collect();
        assert_eq!(outcomes.iter().filter(|o| o.is_err()).count(), 1);
        assert_eq!(outcomes.last(), Some(&Err(TooLarge)));
    }

    proptest! {
        /// Cutting never matters, not even between CR and LF.
        #[test]
        fn any_split_gives_the_same_events(picks in prop::collection::vec(0usize..6, 0..60),
                                           cuts in prop::collection::vec(0usize..120, 0..12)) {
            let alphabet = ["\r", "\n", "\r\n", "data:", "x", ":"];
            let text: String = picks.iter().filter_map(|p| alphabet.get(*p)).copied().collect();
            let whole = Bytes::from(text);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(whole.len())).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([whole.len()]) {
                chunks.push(whole.slice(from..cut));
                from = cut;
            }
            prop_assert_eq!(events(&chunks), events(&[whole]));
        }
    }
}
