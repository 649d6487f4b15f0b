//! The messages of a request, read over: shape, roles, what kinds of content there are, how much
//! text. No message is kept.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::head::{BadRequest, MAX_MESSAGES};
use crate::json::{self, Shallow};
use crate::reading::Place;

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

/// Reads the array of messages `raw`.
pub(super) fn read(raw: &str) -> Result<Found, BadRequest> {
    let place = Place::Field("messages");
    match Shallow::of(raw) {
        Shallow::Array => {}
        other => return Err(place.wrong_type("an array of objects", &other)),
    }
    let mut found = Found::default();
    for message in json::elements(raw) {
        if found.count == MAX_MESSAGES {
            let what = format!("must not hold more than {MAX_MESSAGES} messages");
            return Err(place.refuse(BadRequest::INVALID_VALUE, what));
        }
        found.message(message)?;
        found.count += 1;
    }
    if found.count == 0 {
        return Err(place.refuse(BadRequest::INVALID_VALUE, "must not be empty"));
    }
    Ok(found)
}

impl Found {
    fn message(&mut self, raw: &str) -> Result<(), BadRequest> {
        let place = |field| Place::Message(self.count, field);
        if Shallow::of(raw) != Shallow::Object {
            return Err(place("").wrong_type("an object", &Shallow::of(raw)));
        }
        let (mut role, mut content) = (None, None);
        for (key, value) in json::members(raw) {
            match &*key {
                "role" if role.replace(value).is_some() => return Err(twice(place("role"))),
                "content" if content.replace(value).is_some() => return Err(twice(place("content"))),
                "tool_calls" => {
                    self.text_bytes += value.len() as u64;
                    self.calls |= value.contains('{');
                }
                _ => {}
            }
        }
        let place = place("role");
        let role = role.ok_or_else(|| place.refuse(BadRequest::MISSING, "must be given"))?;
        let role = Shallow::of(role);
        check_role(&role, place)?;
        if matches!(&role, Shallow::Text(role) if role == "tool") && !self.calls {
            let what = "a tool's result must follow an assistant message with tool_calls";
            return Err(place.refuse(BadRequest::INVALID_VALUE, what));
        }
        content.map_or(Ok(()), |content| self.content(content))
    }

    fn content(&mut self, raw: &str) -> Result<(), BadRequest> {
        match raw.as_bytes() {
            [b'n', ..] => {}
            [b'"', ..] => self.text_bytes += json::text_len(raw) as u64,
            [b'[', ..] => {
                for (part, raw) in (0..).zip(json::elements(raw)) {
                    self.part(part, raw)?;
                }
            }
            _ => {
                let place = Place::Message(self.count, "content");
                return Err(place.wrong_type("null, a string or an array of objects", &Shallow::of(raw)));
            }
        }
        Ok(())
    }

    fn part(&mut self, part: u32, raw: &str) -> Result<(), BadRequest> {
        let place = |field| Place::Part(self.count, part, field);
        if Shallow::of(raw) != Shallow::Object {
            return Err(place("").wrong_type("an object", &Shallow::of(raw)));
        }
        let mut kind = None;
        for (key, value) in json::members(raw) {
            match &*key {
                "type" if kind.replace(Shallow::of(value)).is_some() => return Err(twice(place("type"))),
                "type" => {}
                "text" => self.text_bytes += json::text_len(value) as u64,
                key => {
                    if let Some(name) = MEDIA.iter().find(|name| **name == key) {
                        Media { place: place(name), always: *name != "file" }.check(value)?;
                    }
                }
            }
        }
        match kind {
            Some(Shallow::Text(kind)) => self.note(&kind),
            Some(other) => return Err(place("type").wrong_type("a string", &other)),
            None => return Err(place("type").refuse(BadRequest::MISSING, "must be given")),
        }
        Ok(())
    }
}

fn twice(place: Place) -> BadRequest {
    place.refuse(BadRequest::DUPLICATE, "must not stand twice")
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
struct Media {
    place: Place,
    /// Must be a URL; otherwise only what has a scheme is taken for one.
    always: bool,
}

impl Media {
    fn check(&self, raw: &str) -> Result<(), BadRequest> {
        match Shallow::of(raw) {
            Shallow::Text(url) => self.check_url(&url),
            Shallow::Object => {
                let urls = json::members(raw).filter(|(key, _)| matches!(&**key, "url" | "file_url" | "file_data"));
                for (_, url) in urls {
                    match Shallow::of(url) {
                        Shallow::Text(url) => self.check_url(&url)?,
                        other => return Err(self.place.wrong_type("an object whose URL is a string", &other)),
                    }
                }
                Ok(())
            }
            other => Err(self.place.wrong_type("an object or a string", &other)),
        }
    }

    fn check_url(&self, url: &str) -> Result<(), BadRequest> {
        if !self.always && !url.contains(':') {
            return Ok(());
        }
        check_url(url).map_err(|what| self.place.refuse(BadRequest::INVALID_VALUE, what))
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
