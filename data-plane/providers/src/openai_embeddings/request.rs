//! A caller's request for embeddings: read once for what routes, limits and bills.

use crate::head::{BadRequest, Head};
use crate::json::{self, Shallow};
use crate::reading::{self, Place, Seen, natural, shared_member};

/// Fields that are read. Each may stand in a body once.
const FIELDS: [&str; 5] = ["model", "user", "input", "dimensions", "encoding_format"];
/// Value of `dimensions`: above what any model has.
const MAX_DIMENSIONS: u64 = 1_000_000;
/// Entries of `input`.
const MAX_INPUTS: u32 = 65_536;

/// Reads a body. Refuses what is not JSON, what has the wrong type in a field that is read, and what
/// is outside the limits of [`crate::head`].
pub fn read(body: &[u8]) -> Result<Head<'_>, BadRequest> {
    let text = reading::object(body)?;
    let mut head = Head { choices: 1, ..Head::default() };
    let (mut seen, mut found) = (Seen::default(), None);
    for (key, raw) in json::members(text) {
        let Some(name) = seen.field(&key, &FIELDS)? else { continue };
        if shared_member(&mut head, name, raw, body)? {
            continue;
        }
        let place = Place::Field(name);
        match name {
            "input" => found = Some(input(raw)?),
            "dimensions" => _ = natural(&Shallow::of(raw), place, MAX_DIMENSIONS)?,
            // The last of FIELDS: "encoding_format".
            _ => encoding(&Shallow::of(raw), place)?,
        }
    }
    let missing = |name| Place::Field(name).refuse(BadRequest::MISSING, "must be given");
    if head.model.is_none() {
        return Err(missing("model"));
    }
    let found = found.ok_or_else(|| missing("input"))?;
    head.parts = found.count;
    head.prompt_tokens_estimate = found.text_bytes.div_ceil(4) + found.tokens;
    head.spans.open = json::span(body, text).start;
    Ok(head)
}

/// What `input` holds.
#[derive(Debug, Default)]
struct Found {
    count: u32,
    text_bytes: u64,
    tokens: u64,
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
fn input(raw: &str) -> Result<Found, BadRequest> {
    let place = Place::Field("input");
    let empty = || Err(place.refuse(BadRequest::INVALID_VALUE, "must not be empty"));
    match raw.as_bytes() {
        b"\"\"" => return empty(),
        [b'"', ..] => return Ok(Found { count: 1, text_bytes: json::text_len(raw) as u64, tokens: 0 }),
        [b'[', ..] => {}
        _ => {
            let expected = "a string, or an array of strings, of integers, or of arrays of integers";
            return Err(place.wrong_type(expected, &Shallow::of(raw)));
        }
    }
    let mut found = Found::default();
    let mut first = None;
    for (index, raw) in (0..).zip(json::elements(raw)) {
        let kind = element(raw, Place::Element("input", index), &mut found)?;
        if *first.get_or_insert(kind) != kind {
            let what = "must be of the same type as the elements before it";
            return Err(Place::Element("input", index).refuse(BadRequest::INVALID_TYPE, what));
        }
        found.count += 1;
    }
    match first {
        None => empty(),
        // Numbers are the tokens of one text.
        Some(Kind::Token) => Ok(Found { count: 1, ..found }),
        Some(Kind::Text | Kind::Tokens) if found.count > MAX_INPUTS => {
            Err(place.refuse(BadRequest::INVALID_VALUE, format!("must not hold more than {MAX_INPUTS} texts")))
        }
        Some(Kind::Text | Kind::Tokens) => Ok(found),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Token,
    Tokens,
}

fn element(raw: &str, place: Place, found: &mut Found) -> Result<Kind, BadRequest> {
    match raw.as_bytes() {
        b"\"\"" => Err(place.refuse(BadRequest::INVALID_VALUE, "must not be empty")),
        [b'"', ..] => {
            found.text_bytes += json::text_len(raw) as u64;
            Ok(Kind::Text)
        }
        [b'[', ..] => {
            let before = found.tokens;
            for token in json::elements(raw) {
                match Shallow::of(token) {
                    Shallow::Natural(_) => found.tokens += 1,
                    _ => return Err(place.refuse(BadRequest::INVALID_TYPE, "must hold integers only")),
                }
            }
            if found.tokens == before {
                return Err(Place::Field("input").refuse(BadRequest::INVALID_VALUE, "must not hold empty lists"));
            }
            Ok(Kind::Tokens)
        }
        _ => match Shallow::of(raw) {
            Shallow::Natural(_) => {
                found.tokens += 1;
                Ok(Kind::Token)
            }
            other => Err(place.wrong_type("a string, an integer or an array of integers", &other)),
        },
    }
}
