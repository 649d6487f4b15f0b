//! The messages of a request, read over: shape, roles, what kinds of content there are, how much
//! text. No message is kept.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::head::{BadRequest, MAX_MESSAGES};
use crate::json::{Key, Shallow};
use crate::reading::{Place, Reading, shallow};

const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// What messages hold.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub count: u32,
    pub text_bytes: u64,
    /// Some assistant message called a tool.
    pub calls: bool,
    pub images: bool,
    pub sounds: bool,
    pub files: bool,
}

/// Reads an array of messages.
pub(super) struct Messages<'r, 'a> {
    pub on: &'r Reading<'a>,
}

impl<'a> DeserializeSeed<'a> for Messages<'_, 'a> {
    type Value = Found;

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<Found, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'a> Visitor<'a> for Messages<'_, 'a> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<Found, A::Error> {
        let on = self.on;
        let mut found = Found::default();
        loop {
            let index = found.count;
            on.expect(Place::Message(index, ""), "an object");
            if seq.next_element_seed(Message { on, index, found: &mut found })?.is_none() {
                break;
            }
            found.count += 1;
            if found.count > MAX_MESSAGES {
                let what = format!("must not hold more than {MAX_MESSAGES} messages");
                return Err(on.refuse(Place::Field("messages").refuse(BadRequest::INVALID_VALUE, what)));
            }
        }
        if found.count == 0 {
            return Err(on.refuse(Place::Field("messages").refuse(BadRequest::INVALID_VALUE, "must not be empty")));
        }
        Ok(found)
    }
}

struct Message<'r, 'a> {
    on: &'r Reading<'a>,
    index: u32,
    found: &'r mut Found,
}

impl<'a> DeserializeSeed<'a> for Message<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Message<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { on, index, found } = self;
        let twice =
            |field| on.refuse(Place::Message(index, field).refuse(BadRequest::DUPLICATE, "must not stand twice"));
        let (mut role, mut content, mut answers_call) = (false, false, false);
        while let Some(Key(key)) = map.next_key()? {
            match &*key {
                "role" if role => return Err(twice("role")),
                "role" => {
                    let (value, _) = on.shallow(&mut map)?;
                    check_role(&value, Place::Message(index, "role")).map_err(|e| on.refuse(e))?;
                    answers_call = matches!(&value, Shallow::Text(role) if role == "tool");
                    role = true;
                }
                "content" if content => return Err(twice("content")),
                "content" => {
                    on.expect(Place::Message(index, "content"), "null, a string or an array of objects");
                    map.next_value_seed(Content { on, index, found })?;
                    content = true;
                }
                "tool_calls" => {
                    let raw = on.raw(&mut map)?;
                    found.text_bytes += raw.len() as u64;
                    found.calls |= raw.contains('{');
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if !role {
            return Err(on.refuse(Place::Message(index, "role").refuse(BadRequest::MISSING, "must be given")));
        }
        if answers_call && !found.calls {
            let what = "a tool's result must follow an assistant message with tool_calls";
            return Err(on.refuse(Place::Message(index, "role").refuse(BadRequest::INVALID_VALUE, what)));
        }
        Ok(())
    }
}

fn check_role(value: &Shallow<'_>, place: Place) -> Result<(), BadRequest> {
    match value {
        Shallow::Text(role) if ROLES.contains(&&**role) => Ok(()),
        Shallow::Text(_) => {
            Err(place.refuse(BadRequest::INVALID_VALUE, format_args!("must be one of {}", ROLES.join(", "))))
        }
        other => Err(place.wrong_type("a string", other)),
    }
}

struct Content<'r, 'a> {
    on: &'r Reading<'a>,
    index: u32,
    found: &'r mut Found,
}

impl<'a> DeserializeSeed<'a> for Content<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Content<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null, a string or an array")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.found.text_bytes += text.len() as u64;
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut part = 0;
        loop {
            self.on.expect(Place::Part(self.index, part, ""), "an object");
            let seed = Part { on: self.on, index: self.index, part, found: self.found };
            if seq.next_element_seed(seed)?.is_none() {
                return Ok(());
            }
            part += 1;
        }
    }
}

struct Part<'r, 'a> {
    on: &'r Reading<'a>,
    index: u32,
    part: u32,
    found: &'r mut Found,
}

impl<'a> DeserializeSeed<'a> for Part<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Part<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let on = self.on;
        let place = |field| Place::Part(self.index, self.part, field);
        let mut typed = false;
        while let Some(Key(key)) = map.next_key()? {
            match &*key {
                "type" if typed => {
                    return Err(on.refuse(place("type").refuse(BadRequest::DUPLICATE, "must not stand twice")));
                }
                "type" => {
                    match on.shallow(&mut map)?.0 {
                        Shallow::Text(kind) => self.found.note(&kind),
                        other => return Err(on.refuse(place("type").wrong_type("a string", &other))),
                    }
                    typed = true;
                }
                "text" => self.found.text_bytes += on.raw(&mut map)?.len() as u64,
                key => match MEDIA.iter().find(|name| **name == key) {
                    Some(name) => {
                        on.expect(place(name), "an object or a string");
                        map.next_value_seed(Url { on, place: place(name), always: *name != "file" })?;
                    }
                    None => {
                        map.next_value::<IgnoredAny>()?;
                    }
                },
            }
        }
        if !typed {
            return Err(on.refuse(place("type").refuse(BadRequest::MISSING, "must be given")));
        }
        Ok(())
    }
}

/// Fields of a part that say where the provider shall fetch something: OpenAI's first, then those
/// that some OpenAI-like servers added. A `file` mostly comes along, as a data URL or bare.
const MEDIA: [&str; 6] = ["image_url", "file", "video_url", "audio_url", "document_url", "file_url"];

impl Found {
    fn note(&mut self, kind: &str) {
        match kind {
            "image_url" | "image" | "input_image" => self.images = true,
            "input_audio" | "audio_url" | "audio" => self.sounds = true,
            "file" | "input_file" | "file_url" | "document" | "document_url" => self.files = true,
            // Text, refusals, reasoning, and what only some vendor knows: its business.
            _ => {}
        }
    }
}

/// `"url"` or `{"url": "…", …}`.
struct Url<'r, 'a> {
    on: &'r Reading<'a>,
    place: Place,
    /// Must be a URL; otherwise only what has a scheme is taken for one.
    always: bool,
}

impl<'a> DeserializeSeed<'a> for Url<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Url<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an object")
    }

    fn visit_str<E: Error>(self, url: &str) -> Result<(), E> {
        if !self.always && !url.contains(':') {
            return Ok(());
        }
        check_url(url).map_err(|what| self.on.refuse(self.place.refuse(BadRequest::INVALID_VALUE, what)))
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Key(key)) = map.next_key()? {
            if matches!(&*key, "url" | "file_url" | "file_data") {
                self.on.expect(self.place, "an object whose URL is a string");
                map.next_value_seed(Url { on: self.on, place: self.place, always: self.always })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// A provider fetches what it is told to, possibly from inside the operator's own network: only
/// what any client could fetch, or what comes along.
fn check_url(url: &str) -> Result<(), &'static str> {
    // Readers of URLs drop these at the front.
    let url = url.trim_start_matches(|c: char| c.is_ascii_control() || c == ' ');
    let (scheme, rest) = url.split_once(':').ok_or("must be a URL that begins with https://, http:// or data:")?;
    if scheme.eq_ignore_ascii_case("data") {
        return Ok(());
    }
    if !scheme.eq_ignore_ascii_case("https") && !scheme.eq_ignore_ascii_case("http") {
        return Err("must be a URL that begins with https://, http:// or data:");
    }
    let rest = rest.trim_start_matches(['/', '\\']);
    let authority = rest.split(['/', '\\', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    if host.is_empty() {
        return Err("must name a host");
    }
    if is_internal(host) { Err("must not point into a private network") } else { Ok(()) }
}

fn is_internal(host: &str) -> bool {
    if let Some(bracketed) = host.strip_prefix('[') {
        let address = bracketed.split(']').next().unwrap_or_default();
        // What does not parse is no address that anyone could mean well.
        return address.parse::<Ipv6Addr>().map_or(true, |a| private(IpAddr::V6(a).to_canonical()));
    }
    let name = host.split(':').next().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    if name == "localhost" || name.ends_with(".localhost") || name == "metadata.google.internal" {
        return true;
    }
    match name.parse::<Ipv4Addr>() {
        Ok(address) => private(IpAddr::V4(address)),
        // 0x7f.1, 2130706433, 0177.0.0.1: addresses to many readers, names to none.
        Err(_) => name.rsplit('.').next().is_some_and(|last| {
            last.starts_with("0x") || (!last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()))
        }),
    }
}

fn private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            let [first, second, ..] = a.octets();
            a.is_private()
                || a.is_loopback()
                || a.is_link_local()
                || a.is_multicast()
                || a.is_broadcast()
                || first == 0
                || (first == 100 && (64..128).contains(&second))
        }
        IpAddr::V6(a) => {
            let [first, second, ..] = a.segments();
            a.is_loopback()
                || a.is_unspecified()
                || a.is_multicast()
                || a.is_unique_local()
                || a.is_unicast_link_local()
                || (first == 0x64 && second == 0xff9b)
        }
    }
}

/// Reads an array of objects without looking into them: how many, and how many bytes.
pub(super) struct Objects<'r, 'a> {
    pub on: &'r Reading<'a>,
    pub name: &'static str,
    pub most: u32,
}

impl<'a> DeserializeSeed<'a> for Objects<'_, 'a> {
    type Value = (u32, u64);

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Objects<'_, 'a> {
    type Value = (u32, u64);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null or an array")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok((0, 0))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let (mut count, mut bytes) = (0, 0);
        while let Some(raw) = seq.next_element::<&'a RawValue>()? {
            let raw = raw.get();
            if !raw.starts_with('{') {
                let place = Place::Element(self.name, count);
                return Err(self.on.refuse(place.wrong_type("an object", &shallow(raw))));
            }
            count += 1;
            bytes += raw.len() as u64;
            if count > self.most {
                let what = format!("must not hold more than {} entries", self.most);
                return Err(self.on.refuse(Place::Field(self.name).refuse(BadRequest::INVALID_VALUE, what)));
            }
        }
        Ok((count, bytes))
    }
}
