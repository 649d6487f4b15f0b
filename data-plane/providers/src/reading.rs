//! Reading a caller's body: what every endpoint's reader needs, and how errors get their names.

use std::borrow::Cow;
use std::fmt;

use crate::head::{BadRequest, Head, MAX_DEPTH, MAX_MODEL_BYTES, MAX_USER_BYTES};
use crate::json::{self, Flaw, Sent, Shallow};

/// The text of a body that is a JSON object, without the blanks around it.
pub(crate) fn object(body: &[u8]) -> Result<&str, BadRequest> {
    let text = json::check(body, Sent::ByCaller).map_err(|flaw| named(flaw, body))?;
    match Shallow::of(text) {
        Shallow::Object => Ok(text),
        other => Err(Place::Body.wrong_type("an object", &other)),
    }
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

fn named(flaw: Flaw, body: &[u8]) -> BadRequest {
    let invalid =
        |what: &str| BadRequest::whole(BadRequest::INVALID_JSON, format!("The body is not valid JSON{what}."));
    match flaw {
        Flaw::Encoding => invalid(": it must be UTF-8 without a byte order mark"),
        Flaw::Surrogate => invalid(": a \\u escape is half of a surrogate pair"),
        Flaw::Grammar(at) => {
            let before = body.get(..at).unwrap_or(body);
            let line = memchr::memchr_iter(b'\n', before).count() + 1;
            let column = before.len() - memchr::memrchr(b'\n', before).map_or(0, |feed| feed + 1) + 1;
            invalid(&format!(" (at line {line}, column {column})"))
        }
        Flaw::Depth => BadRequest::whole(
            BadRequest::NESTING_TOO_DEEP,
            format!("The body nests arrays and objects more than {MAX_DEPTH} levels deep."),
        ),
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
pub(crate) fn shared_member<'a>(
    head: &mut Head<'a>,
    name: &'static str,
    raw: &'a str,
    body: &[u8],
) -> Result<bool, BadRequest> {
    let place = Place::Field(name);
    match name {
        "model" => {
            head.model = Some(model_name(Shallow::of(raw), place)?);
            head.spans.model = Some(json::span(body, raw));
        }
        "user" => head.user = user(Shallow::of(raw), place)?,
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
