//! A caller's chat completion: read once for what routes, limits and bills. Fields that only the
//! provider cares about are read over, unknown ones too; they go out as they came.

use serde::de::MapAccess;

use super::messages::Messages;
use crate::head::{
    BadRequest, Head, MAX_CHOICES, MAX_FALLBACKS, MAX_OUTPUT_TOKENS, MAX_TOOLS, ResponseFormat, ToolChoice,
};
use crate::json::{self, Shallow};
use crate::reading::{
    Members, Place, Reading, Seen, boolean, elements, model_name, natural, shallow, shared_member, skip,
};

/// Fields that are read. Each may stand in a body once.
const FIELDS: [&str; 16] = [
    "model",
    "messages",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "models",
    "route",
    "tools",
    "user",
    "tool_choice",
    "response_format",
    "metadata",
    "modalities",
    "audio",
];

/// Reads a body. Refuses what is not JSON, what has the wrong type in a field that is read, and what
/// is outside the limits of [`crate::head`].
pub fn read(body: &[u8]) -> Result<Head<'_>, BadRequest> {
    let mut chat = Chat { head: Head { choices: 1, ..Head::default() }, ..Chat::default() };
    let open = Reading::all(body, &mut chat)?;
    let missing = |name| Place::Field(name).refuse(BadRequest::MISSING, "must be given");
    let Chat { mut head, max_tokens, max_completion_tokens, text_bytes, has_messages, .. } = chat;
    if head.model.is_none() && head.models.is_empty() {
        return Err(missing("model"));
    }
    if !has_messages {
        return Err(missing("messages"));
    }
    head.max_output_tokens = max_completion_tokens.or(max_tokens);
    head.prompt_tokens_estimate = text_bytes.div_ceil(4);
    head.spans.open = open;
    Ok(head)
}

#[derive(Default)]
struct Chat<'a> {
    head: Head<'a>,
    seen: Seen,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    text_bytes: u64,
    has_messages: bool,
}

impl<'a> Members<'a> for Chat<'a> {
    fn member<A: MapAccess<'a>>(&mut self, key: &str, map: &mut A, on: &Reading<'a>) -> Result<(), A::Error> {
        let Some(name) = self.seen.field(key, &FIELDS).map_err(|e| on.refuse(e))? else { return skip(map) };
        match name {
            "messages" => self.messages(map, on),
            "tools" => self.tools(map, on),
            name if shared_member(&mut self.head, name, map, on)? => Ok(()),
            name => {
                let (value, raw) = on.shallow(map)?;
                self.small(name, value, raw, on.text).map_err(|e| on.refuse(e))
            }
        }
    }
}

impl<'a> Chat<'a> {
    fn messages<A: MapAccess<'a>>(&mut self, map: &mut A, on: &Reading<'a>) -> Result<(), A::Error> {
        on.expect(Place::Field("messages"), "an array of objects");
        let found = map.next_value_seed(Messages { on })?;
        self.has_messages = true;
        self.head.parts = found.count;
        self.head.needs.vision |= found.images;
        self.head.needs.audio_input |= found.sounds;
        self.head.needs.pdf_input |= found.files;
        self.text_bytes += found.text_bytes;
        Ok(())
    }

    fn tools<A: MapAccess<'a>>(&mut self, map: &mut A, on: &Reading<'a>) -> Result<(), A::Error> {
        on.expect(Place::Field("tools"), "an array of objects");
        let (count, bytes) = map.next_value_seed(super::messages::Objects { on, name: "tools", most: MAX_TOOLS })?;
        self.head.tools = count;
        self.head.needs.tools = count > 0;
        self.text_bytes += bytes;
        Ok(())
    }

    /// A field whose value is short enough to be looked at after it was skipped.
    fn small(&mut self, name: &'static str, value: Shallow<'a>, raw: &'a str, text: &str) -> Result<(), BadRequest> {
        let place = Place::Field(name);
        let head = &mut self.head;
        match name {
            "stream" => head.stream = boolean(&value, place)?.unwrap_or(false),
            "stream_options" => {
                head.spans.stream_options = Some(json::span(text, raw));
                let found = match value {
                    Shallow::Null => None,
                    Shallow::Object => include_usage(raw)?,
                    other => return Err(place.wrong_type("an object", &other)),
                };
                if let Some((wanted, raw)) = found {
                    head.include_usage = wanted;
                    head.spans.include_usage = Some(json::span(text, raw));
                }
            }
            "max_tokens" => self.max_tokens = natural(&value, place, MAX_OUTPUT_TOKENS)?,
            "max_completion_tokens" => self.max_completion_tokens = natural(&value, place, MAX_OUTPUT_TOKENS)?,
            "n" => {
                let n = natural(&value, place, MAX_CHOICES)?.unwrap_or(1);
                head.choices = u32::try_from(n).unwrap_or(u32::MAX);
            }
            "models" => {
                head.spans.models = Some(json::span(text, raw));
                head.models = models(&value, raw)?;
            }
            "route" => {
                head.spans.route = Some(json::span(text, raw));
                match value {
                    Shallow::Null => {}
                    Shallow::Text(route) if route == "fallback" => {}
                    Shallow::Text(_) => return Err(place.refuse(BadRequest::INVALID_VALUE, "must be \"fallback\"")),
                    other => return Err(place.wrong_type("a string", &other)),
                }
            }
            "tool_choice" => head.tool_choice = tool_choice(&value, place)?,
            "response_format" => {
                head.response_format = response_format(&value, raw, place)?;
                head.needs.json_schema = head.response_format == ResponseFormat::JsonSchema;
            }
            "metadata" => match value {
                Shallow::Null => {}
                Shallow::Object => head.metadata = Some(raw),
                other => return Err(place.wrong_type("an object", &other)),
            },
            "modalities" => match value {
                Shallow::Null => {}
                Shallow::Array(_) => elements(raw, |element| {
                    head.needs.audio_output |= matches!(&element, Shallow::Text(text) if text == "audio");
                    match element {
                        Shallow::Text(_) => Ok(()),
                        other => Err(place.wrong_type("an array of strings", &other)),
                    }
                })?,
                other => return Err(place.wrong_type("an array of strings", &other)),
            },
            // The last of FIELDS: "audio".
            _ => match value {
                Shallow::Null => {}
                Shallow::Object => head.needs.audio_output = true,
                other => return Err(place.wrong_type("an object", &other)),
            },
        }
        Ok(())
    }
}

/// `include_usage` in the object `raw`: its value and text.
fn include_usage(raw: &str) -> Result<Option<(bool, &str)>, BadRequest> {
    let place = Place::Field("stream_options.include_usage");
    let mut found: Option<&str> = None;
    let mut twice = false;
    json::members(raw, |key, value| {
        if key == "include_usage" {
            twice |= found.is_some();
            found = Some(value);
        }
    });
    if twice {
        return Err(place.refuse(BadRequest::DUPLICATE, "must not stand in the body twice"));
    }
    let Some(value) = found else { return Ok(None) };
    Ok(Some((boolean(&shallow(value), place)?.unwrap_or(false), value)))
}

fn models<'a>(value: &Shallow<'a>, raw: &'a str) -> Result<Vec<std::borrow::Cow<'a, str>>, BadRequest> {
    let place = Place::Field("models");
    let count = match value {
        Shallow::Null => return Ok(Vec::new()),
        Shallow::Array(count) => *count,
        other => return Err(place.wrong_type("an array of strings", other)),
    };
    if count > MAX_FALLBACKS {
        return Err(place.refuse(BadRequest::INVALID_VALUE, "must not name more than 5 models"));
    }
    let mut names = Vec::with_capacity(count);
    elements(raw, |element| {
        let index = u32::try_from(names.len()).unwrap_or(u32::MAX);
        names.push(model_name(element, Place::Element("models", index))?);
        Ok(())
    })?;
    Ok(names)
}

fn tool_choice(value: &Shallow<'_>, place: Place) -> Result<ToolChoice, BadRequest> {
    match value {
        Shallow::Null => Ok(ToolChoice::Unset),
        Shallow::Object => Ok(ToolChoice::Named),
        Shallow::Text(text) => match &**text {
            "none" => Ok(ToolChoice::None),
            "auto" => Ok(ToolChoice::Auto),
            "required" | "any" => Ok(ToolChoice::Required),
            _ => Err(place.refuse(BadRequest::INVALID_VALUE, "must be \"none\", \"auto\", \"required\" or an object")),
        },
        other => Err(place.wrong_type("a string or an object", other)),
    }
}

fn response_format(value: &Shallow<'_>, raw: &str, place: Place) -> Result<ResponseFormat, BadRequest> {
    match value {
        Shallow::Null => return Ok(ResponseFormat::Text),
        Shallow::Object => {}
        other => return Err(place.wrong_type("an object", other)),
    }
    let place = Place::Field("response_format.type");
    let mut kind = None;
    json::members(raw, |key, value| {
        if key == "type" {
            kind = Some(shallow(value));
        }
    });
    match kind {
        Some(Shallow::Text(kind)) => Ok(match &*kind {
            "text" => ResponseFormat::Text,
            "json_object" => ResponseFormat::JsonObject,
            "json_schema" => ResponseFormat::JsonSchema,
            _ => ResponseFormat::Vendor,
        }),
        Some(other) => Err(place.wrong_type("a string", &other)),
        None => Err(place.refuse(BadRequest::MISSING, "must be given")),
    }
}
