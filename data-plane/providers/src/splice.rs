//! The body that goes out: the caller's bytes in slices, with new bytes only where something must
//! change. Nothing is copied but the few bytes that are new.

use std::ops::Range;

use bytes::Bytes;

use crate::head::Head;
use crate::quirks::Quirks;

/// A body to send, in slices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// To be sent one after the other; none of them empty. Exactly the caller's body when nothing
    /// had to change.
    pub slices: Vec<Bytes>,
    /// Sum of the slices' lengths: the `content-length`.
    pub len: usize,
    /// We asked for the usage chunk and the caller did not: it must be taken out of the stream.
    pub usage_added: bool,
}

/// A replacement of some bytes of the body.
struct Edit {
    at: Range<usize>,
    new: Bytes,
}

impl Head<'_> {
    /// What to send to a provider that calls the model `upstream_model`: `model` replaced (put in
    /// when absent), `models` and `route` taken out (they are ours), and `include_usage` switched on
    /// in a stream unless the vendor refuses it. `body` must be the one this head was read from.
    pub fn outgoing(&self, body: &Bytes, upstream_model: &str, quirks: Quirks) -> Outgoing {
        let mut edits: Vec<Edit> = Vec::new();
        self.edit_model(&mut edits, body, upstream_model);
        let ours = [&self.spans.models, &self.spans.route].into_iter().flatten();
        edits.extend(removals(body, ours).into_iter().map(|at| Edit { at, new: Bytes::new() }));
        let usage_added = self.stream && !self.include_usage && !quirks.no_stream_options;
        if usage_added {
            edits.push(self.usage_edit(body));
        }
        // Stable: several insertions behind the opening brace keep their order.
        edits.sort_by_key(|edit| (edit.at.start, edit.at.end));
        let slices = apply(body, edits);
        Outgoing { len: slices.iter().map(Bytes::len).sum(), slices, usage_added }
    }

    fn edit_model(&self, edits: &mut Vec<Edit>, body: &Bytes, upstream_model: &str) {
        let quoted = quoted(upstream_model);
        match &self.spans.model {
            Some(span) if body.get(span.clone()) == Some(quoted.as_bytes()) => {}
            Some(span) => edits.push(Edit { at: span.clone(), new: quoted.into() }),
            None => edits.push(self.insertion(format!("\"model\":{quoted},").into())),
        }
    }

    fn usage_edit(&self, body: &Bytes) -> Edit {
        const ASK: &[u8] = b"{\"include_usage\":true}";
        if let Some(span) = &self.spans.include_usage {
            return Edit { at: span.clone(), new: Bytes::from_static(b"true") };
        }
        let Some(span) = &self.spans.stream_options else {
            return self.insertion(Bytes::from_static(b"\"stream_options\":{\"include_usage\":true},"));
        };
        let value = body.get(span.clone()).unwrap_or_default();
        let keeps_keys = value.first() == Some(&b'{') && value.iter().skip(1).any(|b| *b == b'"');
        if keeps_keys {
            let inside = span.start + 1;
            return Edit { at: inside..inside, new: Bytes::from_static(b"\"include_usage\":true,") };
        }
        Edit { at: span.clone(), new: Bytes::from_static(ASK) }
    }

    /// Behind the opening brace. The body is never empty, so a comma may follow.
    fn insertion(&self, new: Bytes) -> Edit {
        let at = self.spans.open + 1;
        Edit { at: at..at, new }
    }
}

/// As a JSON string.
fn quoted(text: &str) -> String {
    if text.bytes().any(|b| b < b' ' || matches!(b, b'"' | b'\\')) {
        return serde_json::Value::from(text).to_string();
    }
    ["\"", text, "\""].concat()
}

/// The body with the edits, which do not overlap and are in order.
fn apply(body: &Bytes, edits: Vec<Edit>) -> Vec<Bytes> {
    let mut slices = Vec::with_capacity(2 * edits.len() + 1);
    let mut from = 0;
    for Edit { at, new } in edits {
        if at.start > from {
            slices.push(body.slice(from..at.start));
        }
        if !new.is_empty() {
            slices.push(new);
        }
        from = at.end;
    }
    if from < body.len() {
        slices.push(body.slice(from..));
    }
    slices
}

/// One member of the top-level object.
struct Member {
    /// From the key's quote to the end of the value.
    at: Range<usize>,
    /// Where the comma before it stands, unless it is the first.
    comma_before: Option<usize>,
    /// Where the comma behind it stands, unless it is the last.
    comma_behind: Option<usize>,
}

/// What to cut out so that the members with these values are gone and the rest is still an object.
fn removals<'a>(body: &[u8], values: impl Iterator<Item = &'a Range<usize>>) -> Vec<Range<usize>> {
    let mut members: Vec<Member> = values.map(|value| member(body, value)).collect();
    members.sort_by_key(|m| m.at.start);
    let mut cuts: Vec<Range<usize>> = Vec::with_capacity(members.len());
    // Where the current run of neighbours began: its last member may need the comma before the first.
    let mut run: Option<(usize, Option<usize>)> = None;
    for m in members {
        let (start, comma) = match run {
            Some((start, comma)) if cuts.last().is_some_and(|cut| Some(cut.end) == m.comma_before.map(|c| c + 1)) => {
                cuts.pop();
                (start, comma)
            }
            Some(_) | None => (m.at.start, m.comma_before),
        };
        run = Some((start, comma));
        cuts.push(match m.comma_behind {
            Some(comma) => start..comma + 1,
            None => comma.unwrap_or(start)..m.at.end,
        });
    }
    cuts
}

fn member(body: &[u8], value: &Range<usize>) -> Member {
    let blank = |at: usize| body.get(at).is_some_and(u8::is_ascii_whitespace);
    // Keys that are ours hold no quote, even escaped: the one before the colon ends the key, the
    // next one back opens it.
    let quote_before = |end: usize| memchr::memrchr(b'"', body.get(..end).unwrap_or_default()).unwrap_or(0);
    let key = quote_before(quote_before(value.start));
    let mut before = key;
    while before > 0 && blank(before - 1) {
        before -= 1;
    }
    let mut behind = value.end;
    while blank(behind) {
        behind += 1;
    }
    Member {
        at: key..value.end,
        comma_before: before.checked_sub(1).filter(|at| body.get(*at) == Some(&b',')),
        comma_behind: Some(behind).filter(|at| body.get(*at) == Some(&b',')),
    }
}
