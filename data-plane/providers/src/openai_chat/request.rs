//! A caller's chat completion: read once for what routes, limits and bills. Fields that only the
//! provider cares about are read over, unknown ones too; they go out as they came.

use std::borrow::Cow;

use super::messages;
use crate::head::{
    BadRequest, Head, MAX_CHOICES, MAX_FALLBACKS, MAX_OUTPUT_TOKENS, MAX_TOOLS, ResponseFormat, ToolChoice,
};
use crate::json::{self, Shallow};
use crate::reading::{self, Place, Seen, boolean, model_name, natural, shared_member};

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
    let text = reading::object(body)?;
    let mut chat = Chat { head: Head { choices: 1, ..Head::default() }, ..Chat::default() };
    for (key, raw) in json::members(text) {
        if let Some(name) = chat.seen.field(&key, &FIELDS)? {
            chat.member(name, raw, body)?;
        }
    }
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
    head.spans.open = json::span(body, text).start;
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

impl<'a> Chat<'a> {
    fn member(&mut self, name: &'static str, raw: &'a str, body: &[u8]) -> Result<(), BadRequest> {
        match name {
            "messages" => self.messages(raw),
            "tools" => self.tools(raw),
            name if shared_member(&mut self.head, name, raw, body)? => Ok(()),
            name => self.small(name, raw, body),
        }
    }

    fn messages(&mut self, raw: &str) -> Result<(), BadRequest> {
        let found = messages::read(raw)?;
        self.has_messages = true;
        self.head.parts = found.count;
        self.head.needs.vision |= found.images;
        self.head.needs.audio_input |= found.sounds;
        self.head.needs.pdf_input |= found.files;
        self.text_bytes += found.text_bytes;
        Ok(())
    }

    fn tools(&mut self, raw: &str) -> Result<(), BadRequest> {
        let (place, mut count) = (Place::Field("tools"), 0);
        match Shallow::of(raw) {
            Shallow::Null => return Ok(()),
            Shallow::Array => {}
            other => return Err(place.wrong_type("an array of objects", &other)),
        }
        for tool in json::elements(raw) {
            match Shallow::of(tool) {
                Shallow::Object if count < MAX_TOOLS => count += 1,
                Shallow::Object => {
                    let what = format!("must not hold more than {MAX_TOOLS} entries");
                    return Err(place.refuse(BadRequest::INVALID_VALUE, what));
                }
                other => return Err(Place::Element("tools", count).wrong_type("an object", &other)),
            }
            self.text_bytes += tool.len() as u64;
        }
        self.head.tools = count;
        self.head.needs.tools = count > 0;
        Ok(())
    }

    fn small(&mut self, name: &'static str, raw: &'a str, body: &[u8]) -> Result<(), BadRequest> {
        let (place, value) = (Place::Field(name), Shallow::of(raw));
        let head = &mut self.head;
        match name {
            "stream" => head.stream = boolean(&value, place)?.unwrap_or(false),
            "stream_options" => {
                head.spans.stream_options = Some(json::span(body, raw));
                let found = match value {
                    Shallow::Null => None,
                    Shallow::Object => include_usage(raw)?,
                    other => return Err(place.wrong_type("an object", &other)),
                };
                if let Some((wanted, raw)) = found {
                    head.include_usage = wanted;
                    head.spans.include_usage = Some(json::span(body, raw));
                }
            }
            "max_tokens" => self.max_tokens = natural(&value, place, MAX_OUTPUT_TOKENS)?,
            "max_completion_tokens" => self.max_completion_tokens = natural(&value, place, MAX_OUTPUT_TOKENS)?,
            "n" => {
                let n = natural(&value, place, MAX_CHOICES)?.unwrap_or(1);
                head.choices = u32::try_from(n).unwrap_or(u32::MAX);
            }
            "models" => {
                head.spans.models = Some(json::span(body, raw));
                head.models = models(&value, raw)?;
            }
            "route" => {
                head.spans.route = Some(json::span(body, raw));
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
                Shallow::Array => {
                    for element in json::elements(raw) {
                        match Shallow::of(element) {
                            Shallow::Text(text) => head.needs.audio_output |= text == "audio",
                            other => return Err(place.wrong_type("an array of strings", &other)),
                        }
                    }
                }
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
    let mut all = json::members(raw).filter(|(key, _)| key == "include_usage");
    let Some((_, value)) = all.next() else { return Ok(None) };
    if all.next().is_some() {
        return Err(place.refuse(BadRequest::DUPLICATE, "must not stand in the body twice"));
    }
    Ok(Some((boolean(&Shallow::of(value), place)?.unwrap_or(false), value)))
}

fn models<'a>(value: &Shallow<'a>, raw: &'a str) -> Result<Vec<Cow<'a, str>>, BadRequest> {
    let place = Place::Field("models");
    match value {
        Shallow::Null => return Ok(Vec::new()),
        Shallow::Array => {}
        other => return Err(place.wrong_type("an array of strings", other)),
    }
    if json::elements(raw).count() > MAX_FALLBACKS {
        return Err(place.refuse(BadRequest::INVALID_VALUE, "must not name more than 5 models"));
    }
    let named = |(index, element)| model_name(Shallow::of(element), Place::Element("models", index));
    (0..).zip(json::elements(raw)).map(named).collect()
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
    // Of several, most readers take the last.
    let kind = json::members(raw).filter(|(key, _)| key == "type").last();
    match kind.map(|(_, value)| Shallow::of(value)) {
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
