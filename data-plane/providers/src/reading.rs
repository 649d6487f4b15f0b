//! Reading a caller's body: one parse over the top level, and how its errors get their names.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::head::{BadRequest, Head, MAX_DEPTH, MAX_MODEL_BYTES, MAX_USER_BYTES};
use crate::json::{self, Flaw, Key, Shallow};

/// The members of one endpoint's body.
pub(crate) trait Members<'a> {
    /// Takes the value of `key` off `map`, exactly once.
    fn member<A: MapAccess<'a>>(&mut self, key: &str, map: &mut A, on: &Reading<'a>) -> Result<(), A::Error>;
}

/// A body being read: its text, where the parser is, and the refusal that stopped it. The parser's
/// own errors cannot carry one.
pub(crate) struct Reading<'a> {
    /// The whole body.
    pub text: &'a str,
    place: Cell<(Place, &'static str)>,
    refusal: RefCell<Option<BadRequest>>,
}

/// Where in a body something stands.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// The body itself.
    Body,
    /// A field at the top.
    Field(&'static str),
    /// An element of an array at the top.
    Element(&'static str, u32),
    /// A field of a message, or ("") the message.
    Message(u32, &'static str),
    /// A field of a part of a message's content, or ("") the part.
    Part(u32, u32, &'static str),
}

impl Place {
    /// As OpenAI names it.
    pub fn param(self) -> Option<Cow<'static, str>> {
        let dot = |field: &str| if field.is_empty() { String::new() } else { format!(".{field}") };
        match self {
            Self::Body => None,
            Self::Field(name) => Some(name.into()),
            Self::Element(name, index) => Some(format!("{name}[{index}]").into()),
            Self::Message(index, field) => Some(format!("messages[{index}]{}", dot(field)).into()),
            Self::Part(index, part, field) => Some(format!("messages[{index}].content[{part}]{}", dot(field)).into()),
        }
    }

    /// The refusal of what stands here.
    pub fn refuse(self, code: &'static str, what: impl fmt::Display) -> BadRequest {
        let param = self.param();
        let message = match &param {
            Some(param) => format!("'{param}': {what}."),
            None => format!("The body: {what}."),
        };
        BadRequest { code, param, message }
    }

    /// The refusal of a value of the wrong type.
    pub fn wrong_type(self, expected: &str, got: &Shallow<'_>) -> BadRequest {
        self.refuse(BadRequest::INVALID_TYPE, format_args!("expected {expected}, but got {}", got.type_name()))
    }
}

impl<'a> Reading<'a> {
    /// Reads a whole body into `members`.
    pub fn all<M: Members<'a>>(body: &'a [u8], members: &mut M) -> Result<usize, BadRequest> {
        let text = json::check(body, MAX_DEPTH).map_err(flaw)?;
        let place = Cell::new((Place::Body, "an object"));
        let reading = Self { text, place, refusal: RefCell::new(None) };
        let mut parser = serde_json::Deserializer::from_str(text);
        let outcome = Top { reading: &reading, members }.deserialize(&mut parser).and_then(|()| parser.end());
        outcome.map_err(|error| reading.name(&error))?;
        Ok(memchr::memchr(b'{', body).unwrap_or(0))
    }

    /// Says what comes next, for the error when it is something else.
    pub fn expect(&self, place: Place, expected: &'static str) {
        self.place.set((place, expected));
    }

    /// Stops the parser with a refusal.
    pub fn refuse<E: Error>(&self, refusal: BadRequest) -> E {
        self.refusal.replace(Some(refusal));
        E::custom("refused")
    }

    /// The refusal that stopped a parser inside this one.
    pub fn taken(&self, place: Place) -> BadRequest {
        self.refusal.take().unwrap_or_else(|| place.refuse(BadRequest::INVALID_TYPE, "has the wrong type"))
    }

    /// The next value's text.
    pub fn raw<A: MapAccess<'a>>(&self, map: &mut A) -> Result<&'a str, A::Error> {
        Ok(map.next_value::<&'a RawValue>()?.get())
    }

    /// The next value and its text.
    pub fn shallow<A: MapAccess<'a>>(&self, map: &mut A) -> Result<(Shallow<'a>, &'a str), A::Error> {
        let raw = self.raw(map)?;
        Ok((shallow(raw), raw))
    }

    fn name(&self, error: &serde_json::Error) -> BadRequest {
        if let Some(refusal) = self.refusal.take() {
            return refusal;
        }
        let (place, expected) = self.place.get();
        match error.classify() {
            Category::Data => place.refuse(BadRequest::INVALID_TYPE, format_args!("expected {expected}")),
            Category::Syntax | Category::Eof | Category::Io => {
                let at = format!("line {}, column {}", error.line(), error.column());
                BadRequest::whole(BadRequest::INVALID_JSON, format!("The body is not valid JSON (at {at})."))
            }
        }
    }
}

fn flaw(flaw: Flaw) -> BadRequest {
    match flaw {
        Flaw::Encoding => BadRequest::whole(
            BadRequest::INVALID_JSON,
            "The body is not valid JSON: it must be UTF-8 without a byte order mark.",
        ),
        Flaw::Depth => BadRequest::whole(
            BadRequest::NESTING_TOO_DEEP,
            format!("The body nests arrays and objects more than {MAX_DEPTH} levels deep."),
        ),
        Flaw::Surrogate => BadRequest::whole(
            BadRequest::INVALID_JSON,
            "The body is not valid JSON: a \\u escape is half of a surrogate pair.",
        ),
    }
}

struct Top<'r, 'a, M> {
    reading: &'r Reading<'a>,
    members: &'r mut M,
}

impl<'a, M: Members<'a>> DeserializeSeed<'a> for Top<'_, 'a, M> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'a, M: Members<'a>> Visitor<'a> for Top<'_, 'a, M> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Key(key)) = map.next_key()? {
            self.members.member(&key, &mut map, self.reading)?;
        }
        Ok(())
    }
}

/// Which fields have been seen, by their index in a list of at most 32.
#[derive(Default)]
pub(crate) struct Seen(u32);

impl Seen {
    /// The field's own name when `key` is one of `known`, refused when it was there already.
    /// `None`: not ours. A spelling that differs in case only is refused: readers that ignore case
    /// exist, and would take it for the field.
    pub fn field(&mut self, key: &str, known: &[&'static str]) -> Result<Option<&'static str>, BadRequest> {
        let Some(index) = known.iter().position(|name| *name == key) else {
            return match known.iter().find(|name| name.eq_ignore_ascii_case(key)) {
                Some(name) => Err(Place::Field(name)
                    .refuse(BadRequest::DUPLICATE, "also written with other capitals, which some readers take for it")),
                None => Ok(None),
            };
        };
        let name = known.get(index).copied();
        let bit = 1u32 << (index % 32);
        if self.0 & bit != 0 {
            let place = Place::Field(name.unwrap_or_default());
            return Err(place.refuse(BadRequest::DUPLICATE, "must not stand in the body twice"));
        }
        self.0 |= bit;
        Ok(name)
    }
}

/// The value that `raw`, valid JSON without blanks around it, stands for. What can be told from its
/// first byte is not parsed again.
pub(crate) fn shallow(raw: &str) -> Shallow<'_> {
    match raw.as_bytes() {
        [b'"', text @ .., b'"'] if memchr::memchr(b'\\', text).is_none() => {
            Shallow::Text(Cow::Borrowed(&raw[1..raw.len() - 1]))
        }
        [b'{', ..] => Shallow::Object,
        [b't', ..] => Shallow::Bool(true),
        [b'f', ..] => Shallow::Bool(false),
        [b'n', ..] => Shallow::Null,
        // The text was parsed once; what fails now is a number beyond any type.
        _ => match raw.parse() {
            Ok(natural) => Shallow::Natural(natural),
            Err(_) => serde_json::from_str(raw).unwrap_or(Shallow::Number(f64::INFINITY)),
        },
    }
}

/// A boolean; `null` counts as absent.
pub(crate) fn boolean(value: &Shallow<'_>, place: Place) -> Result<Option<bool>, BadRequest> {
    match value {
        Shallow::Null => Ok(None),
        Shallow::Bool(value) => Ok(Some(*value)),
        other => Err(place.wrong_type("a boolean", other)),
    }
}

/// A whole number from 1 to `most`; `null` counts as absent.
pub(crate) fn natural(value: &Shallow<'_>, place: Place, most: u64) -> Result<Option<u64>, BadRequest> {
    let out_of_range = || place.refuse(BadRequest::INVALID_VALUE, format_args!("must be from 1 to {most}"));
    match value {
        Shallow::Null => Ok(None),
        Shallow::Natural(value) if (1..=most).contains(value) => Ok(Some(*value)),
        Shallow::Natural(_) => Err(out_of_range()),
        Shallow::Number(value) if value.fract() == 0.0 || value.is_infinite() => Err(out_of_range()),
        other => Err(place.wrong_type("an integer", other)),
    }
}

/// A model's name.
pub(crate) fn model_name<'a>(value: Shallow<'a>, place: Place) -> Result<Cow<'a, str>, BadRequest> {
    let name = match value {
        Shallow::Text(name) => name,
        other => return Err(place.wrong_type("a string", &other)),
    };
    let refuse = |what: &str| Err(place.refuse(BadRequest::INVALID_VALUE, what));
    if name.is_empty() {
        return refuse("must not be empty");
    }
    if name.len() > MAX_MODEL_BYTES {
        return refuse("must not be longer than 256 bytes");
    }
    if name.chars().any(char::is_control) {
        return refuse("must not hold control characters");
    }
    Ok(name)
}

/// `model` and `user`, which every endpoint has, into `head`. `Ok(false)`: another field.
pub(crate) fn shared_member<'a, A: MapAccess<'a>>(
    head: &mut Head<'a>,
    name: &'static str,
    map: &mut A,
    on: &Reading<'a>,
) -> Result<bool, A::Error> {
    let place = Place::Field(name);
    match name {
        "model" => {
            let (value, raw) = on.shallow(map)?;
            head.model = Some(model_name(value, place).map_err(|e| on.refuse(e))?);
            head.spans.model = Some(json::span(on.text, raw));
        }
        "user" => {
            let (value, _) = on.shallow(map)?;
            head.user = user(value, place).map_err(|e| on.refuse(e))?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn user(value: Shallow<'_>, place: Place) -> Result<Option<Cow<'_, str>>, BadRequest> {
    match value {
        Shallow::Null => Ok(None),
        Shallow::Text(text) if text.len() <= MAX_USER_BYTES => Ok(Some(text)),
        Shallow::Text(_) => Err(place.refuse(BadRequest::INVALID_VALUE, "must not be longer than 1024 bytes")),
        other => Err(place.wrong_type("a string", &other)),
    }
}

/// Hands each element of the array `raw` to `take`, without keeping any.
pub(crate) fn elements<'a>(
    raw: &'a str,
    mut take: impl FnMut(Shallow<'a>) -> Result<(), BadRequest>,
) -> Result<(), BadRequest> {
    struct Each<'t, T>(&'t mut T, &'t mut Option<BadRequest>);
    impl<'de, T: FnMut(Shallow<'de>) -> Result<(), BadRequest>> Visitor<'de> for Each<'_, T> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
            while let Some(value) = seq.next_element::<&'de RawValue>()? {
                if let Err(refusal) = (self.0)(shallow(value.get())) {
                    *self.1 = Some(refusal);
                    return Err(A::Error::custom("refused"));
                }
            }
            Ok(())
        }
    }
    let mut refusal = None;
    // The text is an array and was parsed once: only a refusal can stop it.
    let read = serde_json::Deserializer::from_str(raw).deserialize_seq(Each(&mut take, &mut refusal));
    match (read, refusal) {
        (Err(_), Some(refusal)) => Err(refusal),
        (Ok(()) | Err(_), _) => Ok(()),
    }
}

/// Reads over the next value.
pub(crate) fn skip<'a, A: MapAccess<'a>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}
