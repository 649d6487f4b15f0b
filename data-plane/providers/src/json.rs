//! What is asked of any JSON before a parser sees it, and values looked at without building a tree.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Why a text is refused before it is parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Not UTF-8, or beginning with a byte order mark.
    Encoding,
    /// Too many levels of arrays and objects.
    Depth,
    /// An escape that is half of a surrogate pair. Parsers disagree about those, so what one reads
    /// as one text another reads as another or not at all.
    Surrogate,
}

/// Checks what a parser would not, or only after having recursed: encoding, depth, surrogates. It
/// does not check the grammar; a text that is no JSON may pass.
pub(crate) fn check(body: &[u8], max_depth: usize) -> Result<&str, Flaw> {
    if body.starts_with(b"\xef\xbb\xbf") {
        return Err(Flaw::Encoding);
    }
    let text = std::str::from_utf8(body).map_err(|_| Flaw::Encoding)?;
    check_depth(body, max_depth)?;
    check_surrogates(body)?;
    Ok(text)
}

/// Bytes that end a run of uninteresting ones outside of strings.
const STRUCTURE: [bool; 256] = {
    let mut table = [false; 256];
    table[b'"' as usize] = true;
    table[b'{' as usize] = true;
    table[b'[' as usize] = true;
    table[b'}' as usize] = true;
    table[b']' as usize] = true;
    table
};

fn check_depth(body: &[u8], max_depth: usize) -> Result<(), Flaw> {
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(skipped) = body.get(at..).and_then(|rest| rest.iter().position(|b| STRUCTURE[usize::from(*b)])) {
        at += skipped;
        match body.get(at) {
            Some(b'"') => {
                at = string_end(body, at);
                continue;
            }
            Some(b'{' | b'[') => depth += 1,
            _ => depth = depth.saturating_sub(1),
        }
        if depth > max_depth {
            return Err(Flaw::Depth);
        }
        at += 1;
    }
    Ok(())
}

/// The index behind the string whose opening quote stands at `open`; the text's length when it does
/// not end.
pub(crate) fn string_end(body: &[u8], open: usize) -> usize {
    let mut from = open + 1;
    while let Some(found) = body.get(from..).and_then(|rest| memchr::memchr(b'"', rest)) {
        let quote = from + found;
        if !escaped(body, quote, open + 1) {
            return quote + 1;
        }
        from = quote + 1;
    }
    body.len()
}

/// Whether an odd number of backslashes stands before `at`; none is looked for before `start`.
fn escaped(body: &[u8], at: usize, start: usize) -> bool {
    let before = body.get(start..at).unwrap_or_default();
    before.iter().rev().take_while(|b| **b == b'\\').count() % 2 == 1
}

fn check_surrogates(body: &[u8]) -> Result<(), Flaw> {
    // Where a low half must stand.
    let mut low_due = None;
    for found in memchr::memmem::find_iter(body, b"\\u") {
        if escaped(body, found, 0) {
            continue;
        }
        let digits = body.get(found + 2..found + 6).and_then(|d| std::str::from_utf8(d).ok());
        let Some(unit) = digits.and_then(|d| u16::from_str_radix(d, 16).ok()) else { continue };
        match (unit, low_due.take()) {
            (0xdc00..=0xdfff, Some(due)) if due == found => {}
            (0xdc00..=0xdfff, _) | (_, Some(_)) => return Err(Flaw::Surrogate),
            (0xd800..=0xdbff, None) => low_due = Some(found + 6),
            (_, None) => {}
        }
    }
    if low_due.is_some() { Err(Flaw::Surrogate) } else { Ok(()) }
}

/// Where `part`, a slice of `whole`, stands in it.
pub(crate) fn span(whole: &str, part: &str) -> Range<usize> {
    let start = (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
    start..start + part.len()
}

/// A value, one level deep: arrays and objects are read over.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shallow<'a> {
    /// `null`.
    Null,
    /// A boolean.
    Bool(bool),
    /// A whole number that is not negative.
    Natural(u64),
    /// Any other number.
    Number(f64),
    /// A string.
    Text(Cow<'a, str>),
    /// An array, and how many elements it has.
    Array(usize),
    /// An object.
    Object,
}

impl Shallow<'_> {
    /// What it is, for a message.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Natural(_) => "an integer",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object => "an object",
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Shallow<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ShallowVisitor)
    }
}

struct ShallowVisitor;

impl<'de> Visitor<'de> for ShallowVisitor {
    type Value = Shallow<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Shallow::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Shallow::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Shallow::Natural(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Shallow::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Shallow::Number(value))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Shallow::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Shallow::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut len = 0;
        while seq.next_element::<IgnoredAny>()?.is_some() {
            len += 1;
        }
        Ok(Shallow::Array(len))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Shallow::Object)
    }
}

/// An object's key, borrowed when it holds no escape.
pub(crate) struct Key<'a>(pub(crate) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(value)))
            }

            fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(value.to_owned())))
            }
        }
        from.deserialize_str(KeyVisitor)
    }
}

/// Hands each member of the object `raw`, valid JSON, to `take`: its key and its value's text.
pub(crate) fn members<'a>(raw: &'a str, take: impl FnMut(&str, &'a str)) {
    struct Each<T>(T);
    impl<'de, T: FnMut(&str, &'de str)> Visitor<'de> for Each<T> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
                (self.0)(&key, value.get());
            }
            Ok(())
        }
    }
    // Nothing to report: the caller has checked that this is an object.
    let _ = serde_json::Deserializer::from_str(raw).deserialize_map(Each(take));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_of_strings_only() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        let cases = [
            (nested(128), Ok(())),
            (nested(129), Err(Flaw::Depth)),
            (nested(1_000_000), Err(Flaw::Depth)),
            (format!("{{\"a\":\"{}\"}}", "[".repeat(500)), Ok(())),
            (format!("{{\"a\":\"\\\\\\\"{}\"}}", "[".repeat(500)), Ok(())),
            (format!("{{\"a\":\"\\\\\",\"b\":{}}}", nested(128)), Err(Flaw::Depth)),
            ("[[],[],[]]".repeat(100), Ok(())),
        ];
        for (text, expected) in cases {
            let head: String = text.chars().take(40).collect();
            assert_eq!(check(text.as_bytes(), 128).map(|_| ()), expected, "{head}");
        }
    }

    #[test]
    fn surrogates_come_in_pairs_or_not_at_all() {
        let cases = [
            (r#""\ud83d\ude00""#, Ok(())),
            (r#""\uD83D\uDE00\uD83D\uDE00""#, Ok(())),
            (r#""\ud83d""#, Err(Flaw::Surrogate)),
            (r#""\ude00""#, Err(Flaw::Surrogate)),
            (r#""\ud83d \ude00""#, Err(Flaw::Surrogate)),
            (r#""\ud83d\u0041""#, Err(Flaw::Surrogate)),
            (r#""\ud83d\ud83d\ude00""#, Err(Flaw::Surrogate)),
            (r#""\\ud83d""#, Ok(())),
            (r#""\\\ud83d""#, Err(Flaw::Surrogate)),
            (r#""\u00e9""#, Ok(())),
        ];
        for (text, expected) in cases {
            assert_eq!(check(text.as_bytes(), 128).map(|_| ()), expected, "{text}");
        }
    }

    #[test]
    fn encodings_other_than_plain_utf8_are_refused() {
        for bytes in [&b"\xef\xbb\xbf{}"[..], b"\xff\xfe{\0}\0", b"\"\xc0\xaf\"", b"\"\xed\xa0\x80\""] {
            assert_eq!(check(bytes, 128), Err(Flaw::Encoding), "{bytes:?}");
        }
    }
}
