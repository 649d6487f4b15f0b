//! JSON looked at without building a tree: one checking pass over a text (RFC 8259), then members and
//! elements as slices of it.
//!
//! Our own, because what passes through here is mostly long strings that nobody looks into, and
//! parsers walk them byte by byte: at 200 KB that was more than half of a request's instructions. Here
//! strings are jumped over by vector search. A property holds the check to serde_json's judgement.

use std::borrow::Cow;
use std::ops::Range;

use crate::head::MAX_DEPTH;

/// Bytes of a string that are looked at a word at a time.
const SHORT: usize = 32;
/// Levels whose kind fits one word.
const WORD: usize = 128;

/// Why a text is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Not UTF-8, or beginning with a byte order mark.
    Encoding,
    /// Too many levels of arrays and objects.
    Depth,
    /// An escape that is half of a surrogate pair. Parsers disagree about those, so what one reads
    /// as one text another reads as another or not at all.
    Surrogate,
    /// Not JSON, from this byte on.
    Grammar(usize),
}

/// Whose text it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It goes to readers we do not know: not too deep, and no half of a surrogate pair.
    ByCaller,
    /// It goes to the caller as it is: any JSON.
    ByProvider,
}

/// Checks that `body` is one JSON value in UTF-8, and gives its text without the blanks around it.
pub(crate) fn check(body: &[u8], sent: Sent) -> Result<&str, Flaw> {
    if body.starts_with(b"\xef\xbb\xbf") {
        return Err(Flaw::Encoding);
    }
    let text = std::str::from_utf8(body).map_err(|_| Flaw::Encoding)?;
    check_grammar(body, sent)?;
    Ok(text.trim_matches([' ', '\t', '\n', '\r']))
}

fn check_grammar(text: &[u8], sent: Sent) -> Result<(), Flaw> {
    let mut depth = 0;
    // One bit for each open container, the innermost last: set for objects. The outer ones of a
    // depth that callers may not reach lie in words of their own.
    let (mut objects, mut outer) = (0u128, Vec::new());
    let mut at = blank(text, 0);
    loop {
        // A value begins here.
        match text.get(at) {
            Some(open @ (b'{' | b'[')) => {
                if depth == MAX_DEPTH && sent == Sent::ByCaller {
                    return Err(Flaw::Depth);
                }
                if depth > 0 && depth % WORD == 0 {
                    outer.push(objects);
                }
                depth += 1;
                let object = *open == b'{';
                objects = objects << 1 | u128::from(object);
                at = blank(text, at + 1);
                match text.get(at) {
                    // Empty: closed below.
                    Some(b'}') if object => {}
                    Some(b']') if !object => {}
                    _ if object => {
                        at = checked_key(text, at, sent)?;
                        continue;
                    }
                    _ => continue,
                }
            }
            Some(b'"') => at = checked_string(text, at, sent)?,
            Some(b't') => at = checked_word(text, at, b"true")?,
            Some(b'f') => at = checked_word(text, at, b"false")?,
            Some(b'n') => at = checked_word(text, at, b"null")?,
            Some(b'-' | b'0'..=b'9') => at = checked_number(text, at)?,
            _ => return Err(Flaw::Grammar(at)),
        }
        // A value has ended, or a container is empty: to the next value, or to the end.
        loop {
            at = blank(text, at);
            let object = objects & 1 == 1;
            match text.get(at) {
                None if depth == 0 => return Ok(()),
                Some(b',') if depth > 0 => {
                    at = blank(text, at + 1);
                    if object {
                        at = checked_key(text, at, sent)?;
                    }
                    break;
                }
                Some(close @ (b'}' | b']')) if depth > 0 && object == (*close == b'}') => {
                    depth -= 1;
                    objects >>= 1;
                    if depth > 0 && depth % WORD == 0 {
                        objects = outer.pop().unwrap_or_default();
                    }
                    at += 1;
                }
                _ => return Err(Flaw::Grammar(at)),
            }
        }
    }
}

/// From a key's quote to its value.
fn checked_key(text: &[u8], at: usize, sent: Sent) -> Result<usize, Flaw> {
    if text.get(at) != Some(&b'"') {
        return Err(Flaw::Grammar(at));
    }
    let colon = blank(text, checked_string(text, at, sent)?);
    match text.get(colon) {
        Some(b':') => Ok(blank(text, colon + 1)),
        _ => Err(Flaw::Grammar(colon)),
    }
}

/// Behind the string whose opening quote stands at `open`.
fn checked_string(text: &[u8], open: usize, sent: Sent) -> Result<usize, Flaw> {
    let mut from = open + 1;
    // Where the second half of a surrogate pair must stand.
    let mut low_due = None;
    loop {
        let at = plain_end::<true>(text, from);
        match text.get(at) {
            Some(b'"') if low_due.is_some() => return Err(Flaw::Surrogate),
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => {}
            // A control character, or the end.
            Some(_) | None => return Err(Flaw::Grammar(at)),
        }
        match text.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => from = at + 2,
            Some(b'u') => {
                from = at + 6;
                let unit = text.get(at + 2..from).and_then(hex).ok_or(Flaw::Grammar(at))?;
                match (unit, low_due.take()) {
                    _ if sent == Sent::ByProvider => {}
                    (0xdc00..=0xdfff, Some(due)) if due == at => {}
                    (0xdc00..=0xdfff, _) | (_, Some(_)) => return Err(Flaw::Surrogate),
                    (0xd800..=0xdbff, None) => low_due = Some(from),
                    (_, None) => {}
                }
            }
            _ => return Err(Flaw::Grammar(at)),
        }
    }
}

/// Where the run of bytes from `from` on ends that stand for themselves in a string: at a quote, a
/// backslash, the end, or a control character; unless `CONTROLS`, those may be passed over.
fn plain_end<const CONTROLS: bool>(text: &[u8], from: usize) -> usize {
    let rest = text.get(from..).unwrap_or_default();
    let mut at = 0;
    // Most strings end here; preparing a vector search would cost more than they do.
    while at < SHORT
        && let Some(word) = rest.get(at..).and_then(<[u8]>::first_chunk)
    {
        let special = special(u64::from_le_bytes(*word));
        if special != 0 {
            return from + at + (special.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    let rest = rest.get(at..).unwrap_or_default();
    let found = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
    let run = rest.get(..found).filter(|_| CONTROLS).unwrap_or_default();
    // Without an early exit: whole vectors at a time.
    let control = match run.iter().fold(false, |any, byte| any | (*byte < b' ')) {
        true => run.iter().position(|byte| *byte < b' '),
        false => None,
    };
    from + at + control.unwrap_or(found)
}

/// The high bit of each byte of `word` that is a quote, a backslash or a control character; above
/// the lowest of them also of others. (Mycroft's test for a zero byte, three times.)
fn special(word: u64) -> u64 {
    const EACH: u64 = u64::MAX / 0xff;
    let zero = |word: u64| word.wrapping_sub(EACH) & !word;
    let control = word.wrapping_sub(EACH * 0x20) & !word;
    (control | zero(word ^ (EACH * 0x22)) | zero(word ^ (EACH * 0x5c))) & (EACH << 7)
}

/// Four hex digits.
fn hex(digits: &[u8]) -> Option<u16> {
    let value = |digit: &u8| char::from(*digit).to_digit(16);
    let unit = digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | value(digit)?))?;
    u16::try_from(unit).ok()
}

fn checked_word(text: &[u8], at: usize, word: &[u8]) -> Result<usize, Flaw> {
    let end = at + word.len();
    if text.get(at..end) == Some(word) { Ok(end) } else { Err(Flaw::Grammar(at)) }
}

fn checked_number(text: &[u8], start: usize) -> Result<usize, Flaw> {
    let digits = |from: usize| {
        let rest = text.get(from..).unwrap_or_default();
        let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 { Err(Flaw::Grammar(from)) } else { Ok(from + count) }
    };
    let mut at = start + usize::from(text.get(start) == Some(&b'-'));
    let whole = digits(at)?;
    if text.get(at) == Some(&b'0') && whole > at + 1 {
        return Err(Flaw::Grammar(at));
    }
    at = whole;
    if text.get(at) == Some(&b'.') {
        at = digits(at + 1)?;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        at += 1 + usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        at = digits(at)?;
    }
    Ok(at)
}

/// The first place from `at` on that is no blank.
fn blank(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\t' | b'\n' | b'\r') = text.get(at) {
        at += 1;
    }
    at
}

/// The index behind the string whose opening quote stands at `open`; the text's length when it does
/// not end.
pub(crate) fn string_end(body: &[u8], open: usize) -> usize {
    let mut from = open + 1;
    loop {
        let at = plain_end::<false>(body, from);
        match body.get(at) {
            Some(b'"') => return at + 1,
            Some(b'\\') => from = at + 2,
            // A control character: no JSON, but what looks at it must come to an end.
            Some(_) => from = at + 1,
            None => return body.len(),
        }
    }
}

/// The index behind the value at `at`.
fn value_end(text: &[u8], at: usize) -> usize {
    let mut depth = 0usize;
    let mut from = at;
    while let Some(byte) = text.get(from) {
        match byte {
            b'"' => from = string_end(text, from),
            b'{' | b'[' => {
                depth += 1;
                from += 1;
            }
            b'}' | b']' if depth > 0 => {
                depth -= 1;
                from += 1;
            }
            // The end of what holds this value, or of a number or a word.
            b'}' | b']' | b',' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => break,
            _ => {
                from += 1;
                continue;
            }
        }
        if depth == 0 {
            break;
        }
    }
    from
}

/// The members of an object, each its key and its value's text; of anything else none. What is not
/// JSON gives nothing sensible, and ends.
pub(crate) fn members(object: &str) -> Members<'_> {
    let at = if object.starts_with('{') { 1 } else { object.len() };
    Members { text: object, at }
}

/// See [`members`].
pub(crate) struct Members<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Iterator for Members<'a> {
    type Item = (Cow<'a, str>, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.text.as_bytes();
        let quote = next_item(bytes, self.at);
        if bytes.get(quote) != Some(&b'"') {
            return None;
        }
        let end = string_end(bytes, quote);
        let raw = self.text.get(quote..end)?;
        // A provider's key may hold half a surrogate pair: no name of ours, so it stays as written.
        let key = text_of(raw).unwrap_or(Cow::Borrowed(raw));
        let start = blank(bytes, blank(bytes, end) + 1);
        self.at = value_end(bytes, start);
        Some((key, self.text.get(start..self.at)?))
    }
}

/// The elements of an array; of anything else none. As with [`members`].
pub(crate) fn elements(array: &str) -> Elements<'_> {
    let at = if array.starts_with('[') { 1 } else { array.len() };
    Elements { text: array, at }
}

/// See [`elements`].
pub(crate) struct Elements<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.text.as_bytes();
        let start = next_item(bytes, self.at);
        self.at = value_end(bytes, start);
        self.text.get(start..self.at).filter(|element| !element.is_empty())
    }
}

/// Over blanks and the comma between two items.
fn next_item(text: &[u8], at: usize) -> usize {
    let at = blank(text, at);
    if text.get(at) == Some(&b',') { blank(text, at + 1) } else { at }
}

/// Where `part`, a slice of `whole`, stands in it.
pub(crate) fn span(whole: &[u8], part: &str) -> Range<usize> {
    let start = (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
    start..start + part.len()
}

/// What a JSON string stands for; `None` when it is none.
pub(crate) fn text_of(raw: &str) -> Option<Cow<'_, str>> {
    let inside = raw.strip_prefix('"')?.strip_suffix('"')?;
    match inside.as_bytes().contains(&b'\\') {
        false => Some(Cow::Borrowed(inside)),
        true => serde_json::from_str(raw).ok().map(Cow::Owned),
    }
}

/// Bytes of the text that the JSON string `raw` stands for.
pub(crate) fn text_len(raw: &str) -> usize {
    let inside = raw.as_bytes().get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    let (mut len, mut from) = (inside.len(), 0);
    while let Some(found) = inside.get(from..).and_then(|rest| memchr::memchr(b'\\', rest)) {
        let at = from + found;
        let unit = inside.get(at + 2..at + 6).filter(|_| inside.get(at + 1) == Some(&b'u')).and_then(hex);
        let (written, means) = match unit {
            None => (2, 1),
            Some(0..0x80) => (6, 1),
            // Half of a pair that stands for four bytes.
            Some(0x80..0x800 | 0xd800..=0xdfff) => (6, 2),
            Some(_) => (6, 3),
        };
        len = len.saturating_sub(written - means);
        from = at + written;
    }
    len
}

/// A value; what arrays and objects hold is asked for with [`elements`] and [`members`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shallow<'a> {
    /// `null`.
    Null,
    /// A boolean.
    Bool(bool),
    /// A whole number that is not negative.
    Natural(u64),
    /// Any other number; beyond all measure, infinity.
    Number(f64),
    /// A string.
    Text(Cow<'a, str>),
    /// An array.
    Array,
    /// An object.
    Object,
}

impl<'a> Shallow<'a> {
    /// The value that `raw`, checked and without blanks around it, stands for.
    pub(crate) fn of(raw: &'a str) -> Self {
        match raw.as_bytes() {
            [b'"', ..] => Self::Text(text_of(raw).unwrap_or_default()),
            [b'{', ..] => Self::Object,
            [b'[', ..] => Self::Array,
            [b't', ..] => Self::Bool(true),
            [b'f', ..] => Self::Bool(false),
            [b'n', ..] => Self::Null,
            _ => match raw.parse() {
                Ok(natural) => Self::Natural(natural),
                Err(_) => Self::Number(raw.parse().unwrap_or(f64::INFINITY)),
            },
        }
    }

    /// What it is, for a message.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Natural(_) => "an integer",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

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
            (format!("[{}]", ["[[],[],[]]"; 100].join(",")), Ok(())),
        ];
        for (text, expected) in cases {
            let head: String = text.chars().take(40).collect();
            assert_eq!(check(text.as_bytes(), Sent::ByCaller).map(|_| ()), expected, "{head}");
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
            assert_eq!(check(text.as_bytes(), Sent::ByCaller).map(|_| ()), expected, "{text}");
        }
    }

    #[test]
    fn encodings_other_than_plain_utf8_are_refused() {
        for bytes in [&b"\xef\xbb\xbf{}"[..], b"\xff\xfe{\0}\0", b"\"\xc0\xaf\"", b"\"\xed\xa0\x80\""] {
            assert_eq!(check(bytes, Sent::ByCaller), Err(Flaw::Encoding), "{bytes:?}");
        }
    }

    /// Bytes that JSON is made of, more often together than by chance.
    fn nearly_json() -> impl Strategy<Value = String> {
        let pieces = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\"a\"",
            "\"a\":",
            " ",
            "\n",
            "\t",
            "true",
            "false",
            "null",
            "0",
            "-",
            "1",
            "12",
            "01",
            "abcdefghijabcdefghijabcdefghijabcdefghij",
            ".",
            ".5",
            "e",
            "E+",
            "e-3",
            "\\",
            "\\n",
            "\\u",
            "\\u00e9",
            "\\ud83d",
            "\\ude00",
            "é",
            "\u{1}",
            "x",
            "\u{a0}",
        ]);
        prop::collection::vec(pieces, 0..24).prop_map(|pieces| pieces.concat())
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i32>().prop_map(|n| (f64::from(n) / 8.0).into()),
            ".{0,80}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((".{0,12}", inner), 0..6).prop_map(|pairs| pairs.into_iter().collect()),
            ]
        })
    }

    /// What the slices say, as a tree again.
    fn rebuilt(raw: &str) -> Value {
        match Shallow::of(raw) {
            Shallow::Array => elements(raw).map(rebuilt).collect::<Vec<_>>().into(),
            Shallow::Object => members(raw).map(|(key, value)| (key.into_owned(), rebuilt(value))).collect(),
            Shallow::Text(text) => Value::from(text),
            Shallow::Null | Shallow::Bool(_) | Shallow::Natural(_) | Shallow::Number(_) => {
                serde_json::from_str(raw).expect("a scalar")
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// Which takes half a surrogate pair as long as it need not decode it.
        #[test]
        fn the_check_judges_as_serde_json_does(text in nearly_json()) {
            let skipped = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(check(text.as_bytes(), Sent::ByProvider).is_ok(), skipped);
            match check(text.as_bytes(), Sent::ByCaller) {
                // A number beyond all measure is JSON all the same.
                Ok(_) => prop_assert!(serde_json::from_str::<Value>(&text).is_ok() || text.contains(['e', 'E'])),
                Err(_) => prop_assert!(serde_json::from_str::<Value>(&text).is_err()),
            }
        }

        #[test]
        fn the_slices_hold_what_the_tree_holds(tree in tree(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&tree) } else { serde_json::to_string(&tree) };
            let text = text.expect("a tree prints");
            prop_assert_eq!(check(text.as_bytes(), Sent::ByCaller), Ok(text.as_str()));
            prop_assert_eq!(rebuilt(&text), tree);
        }

        #[test]
        fn a_text_is_as_long_as_it_says(text in any::<String>(), escaped in any::<bool>()) {
            let mut raw = serde_json::to_string(&text).expect("a text prints");
            if escaped {
                let units = |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|u| format!("\\u{u:04x}")).collect::<String>();
                raw = format!("\"{}\"", text.chars().map(units).collect::<String>());
            }
            prop_assert_eq!(text_len(&raw), text.len());
        }

        #[test]
        fn what_is_no_json_does_no_harm(text in nearly_json()) {
            for _ in members(&text).chain(elements(&text).map(|e| (Cow::Borrowed(""), e))).take(1000) {}
            prop_assert!(members(&text).count() + elements(&text).count() <= text.len());
        }
    }
}
