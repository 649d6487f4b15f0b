//! A caller's request for embeddings: read once for what routes, limits and bills.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::head::{BadRequest, Head};
use crate::json::Shallow;
use crate::reading::{Members, Place, Reading, Seen, natural, shallow, shared_member, skip};

/// Fields that are read. Each may stand in a body once.
const FIELDS: [&str; 5] = ["model", "user", "input", "dimensions", "encoding_format"];
/// Value of `dimensions`: above what any model has.
const MAX_DIMENSIONS: u64 = 1_000_000;
/// Entries of `input`.
const MAX_INPUTS: u32 = 65_536;

/// Reads a body. Refuses what is not JSON, what has the wrong type in a field that is read, and what
/// is outside the limits of [`crate::head`].
pub fn read(body: &[u8]) -> Result<Head<'_>, BadRequest> {
    let mut request = Request { head: Head { choices: 1, ..Head::default() }, ..Request::default() };
    let open = Reading::all(body, &mut request)?;
    let missing = |name| Place::Field(name).refuse(BadRequest::MISSING, "must be given");
    let Request { mut head, found, .. } = request;
    if head.model.is_none() {
        return Err(missing("model"));
    }
    let found = found.ok_or_else(|| missing("input"))?;
    head.parts = found.count;
    head.prompt_tokens_estimate = found.text_bytes.div_ceil(4) + found.tokens;
    head.spans.open = open;
    Ok(head)
}

#[derive(Default)]
struct Request<'a> {
    head: Head<'a>,
    seen: Seen,
    found: Option<Found>,
}

/// What `input` holds.
#[derive(Debug, Default)]
struct Found {
    count: u32,
    text_bytes: u64,
    tokens: u64,
}

impl<'a> Members<'a> for Request<'a> {
    fn member<A: MapAccess<'a>>(&mut self, key: &str, map: &mut A, on: &Reading<'a>) -> Result<(), A::Error> {
        let Some(name) = self.seen.field(key, &FIELDS).map_err(|e| on.refuse(e))? else { return skip(map) };
        if shared_member(&mut self.head, name, map, on)? {
            return Ok(());
        }
        let place = Place::Field(name);
        match name {
            "input" => {
                on.expect(place, "a string, or an array of strings, of integers, or of arrays of integers");
                self.found = Some(map.next_value_seed(Input { on, tokens_only: false })?);
            }
            "dimensions" => {
                let (value, _) = on.shallow(map)?;
                natural(&value, place, MAX_DIMENSIONS).map_err(|e| on.refuse(e))?;
            }
            // The last of FIELDS: "encoding_format".
            _ => {
                let (value, _) = on.shallow(map)?;
                encoding(&value, place).map_err(|e| on.refuse(e))?;
            }
        }
        Ok(())
    }
}

fn encoding(value: &Shallow<'_>, place: Place) -> Result<(), BadRequest> {
    match value {
        Shallow::Null => Ok(()),
        Shallow::Text(text) if text == "float" || text == "base64" => Ok(()),
        Shallow::Text(_) => Err(place.refuse(BadRequest::INVALID_VALUE, "must be \"float\" or \"base64\"")),
        other => Err(place.wrong_type("a string", other)),
    }
}

/// `input`, read over.
struct Input<'r, 'a> {
    on: &'r Reading<'a>,
    /// Inside an array: only token numbers may follow.
    tokens_only: bool,
}

impl<'a> DeserializeSeed<'a> for Input<'_, 'a> {
    type Value = Found;

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<Found, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Input<'_, 'a> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an array")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Found, E> {
        if text.is_empty() {
            return Err(self.on.refuse(Place::Field("input").refuse(BadRequest::INVALID_VALUE, "must not be empty")));
        }
        Ok(Found { count: 1, text_bytes: text.len() as u64, tokens: 0 })
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<Found, A::Error> {
        let mut found = Found::default();
        let mut elements = 0u32;
        let mut first = None;
        while let Some(raw) = seq.next_element::<&'a RawValue>()? {
            let kind = self.element(raw.get(), elements, &mut found).map_err(|e| self.on.refuse(e))?;
            if *first.get_or_insert(kind) != kind {
                let place = Place::Element("input", elements);
                let what = "must be of the same type as the elements before it";
                return Err(self.on.refuse(place.refuse(BadRequest::INVALID_TYPE, what)));
            }
            elements += 1;
        }
        match first {
            None => Err(self.on.refuse(Place::Field("input").refuse(BadRequest::INVALID_VALUE, "must not be empty"))),
            // Numbers are the tokens of one text.
            Some(Kind::Token) => Ok(Found { count: 1, ..found }),
            Some(Kind::Text | Kind::Tokens) if elements > MAX_INPUTS => {
                let what = format!("must not hold more than {MAX_INPUTS} texts");
                Err(self.on.refuse(Place::Field("input").refuse(BadRequest::INVALID_VALUE, what)))
            }
            Some(Kind::Text | Kind::Tokens) => Ok(Found { count: elements, ..found }),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Token,
    Tokens,
}

impl<'a> Input<'_, 'a> {
    fn element(&self, raw: &'a str, index: u32, found: &mut Found) -> Result<Kind, BadRequest> {
        let place = Place::Element("input", index);
        match raw.as_bytes().first() {
            Some(b'"') if !self.tokens_only => {
                if raw.len() == 2 {
                    return Err(place.refuse(BadRequest::INVALID_VALUE, "must not be empty"));
                }
                found.text_bytes += raw.len() as u64 - 2;
                Ok(Kind::Text)
            }
            Some(b'[') if !self.tokens_only => {
                let inner = Input { on: self.on, tokens_only: true };
                let outcome = inner.deserialize(&mut serde_json::Deserializer::from_str(raw));
                found.tokens += outcome.map_err(|_| self.on.taken(place))?.tokens;
                Ok(Kind::Tokens)
            }
            Some(b'0'..=b'9') if raw.bytes().all(|b| b.is_ascii_digit()) => {
                found.tokens += 1;
                Ok(Kind::Token)
            }
            _ => Err(place.wrong_type("a string, an integer or an array of integers", &shallow(raw))),
        }
    }
}
