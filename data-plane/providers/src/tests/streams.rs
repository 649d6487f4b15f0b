//! Streams: what passes, what is taken out, what is learnt, however the bytes were cut.

use bytes::Bytes;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use crate::openai_chat::stream::End;
use crate::{Dialect, Quirks, Usage};

#[derive(Deserialize)]
struct Row {
    name: String,
    #[serde(rename = "in")]
    input: Vec<String>,
    out: Vec<String>,
    strip_usage: bool,
    choices: u32,
    quirks: Vec<String>,
    clean: bool,
    end: Option<String>,
    failure: Option<String>,
    tokens: Value,
    estimated: bool,
    rejected: bool,
    text_bytes: u64,
    content_started: bool,
    service_tier: String,
}

fn cases() -> Vec<Row> {
    super::rows(include_str!("../../fixtures/streams.json"))
}

/// Everything that can be seen of a stream.
#[derive(Debug, PartialEq)]
struct Seen {
    out: String,
    outcome: Result<End, String>,
    usage: Usage,
    text_bytes: u64,
    content_started: bool,
}

fn run(row: &Row, chunks: &[Bytes]) -> Seen {
    let quirks = Quirks::from_names(row.quirks.iter().map(String::as_str));
    let mut tap = Dialect::OpenAi.tap(quirks, row.strip_usage, row.choices);
    let mut out = Vec::new();
    let mut failed = None;
    for chunk in chunks {
        if let Err(failure) = tap.feed(chunk.clone(), &mut out) {
            assert!(failed.is_none(), "a stream fails once");
            failed = Some(failure);
        }
    }
    let end = match failed {
        Some(failure) => {
            let before = out.len();
            tap.finish(row.clean, &mut out).expect("a stream fails once");
            assert_eq!(out.len(), before, "nothing follows a failure");
            Err(failure)
        }
        None => tap.finish(row.clean, &mut out),
    };
    Seen {
        out: String::from_utf8(out.concat()).expect("only whole events"),
        outcome: end.map_err(|failure| format!("{:?}", failure.kind)),
        usage: tap.usage(super::PROMPT_TOKENS),
        text_bytes: tap.text_bytes(),
        content_started: tap.content_started(),
    }
}

fn expected(row: &Row) -> Seen {
    let outcome = match (&row.end, &row.failure) {
        (Some(end), None) if end == "Completed" => Ok(End::Completed),
        (Some(_), None) => Ok(End::Cut),
        (_, failure) => Err(failure.clone().expect("an end or a failure")),
    };
    Seen {
        out: row.out.concat(),
        outcome,
        usage: Usage {
            tokens: super::tokens(&row.tokens),
            estimated: row.estimated,
            rejected: row.rejected,
            service_tier: row.service_tier.clone(),
        },
        text_bytes: row.text_bytes,
        content_started: row.content_started,
    }
}

#[test]
fn every_stream_passes_as_it_says() {
    for row in cases() {
        let chunks: Vec<Bytes> = row.input.iter().map(|text| Bytes::from(text.clone())).collect();
        assert_eq!(run(&row, &chunks), expected(&row), "{}", row.name);
        let whole = [Bytes::from(row.input.concat())];
        assert_eq!(run(&row, &whole), expected(&row), "{} in one piece", row.name);
    }
}

#[test]
fn every_single_cut_gives_the_same() {
    for row in cases() {
        let whole = Bytes::from(row.input.concat());
        let expected = expected(&row);
        for cut in 0..=whole.len() {
            assert_eq!(run(&row, &[whole.slice(..cut), whole.slice(cut..)]), expected, "{} cut at {cut}", row.name);
        }
        let bytes: Vec<Bytes> = (0..whole.len()).map(|at| whole.slice(at..=at)).collect();
        assert_eq!(run(&row, &bytes), expected, "{} byte by byte", row.name);
    }
}

#[test]
fn whole_events_pass_at_once_and_uncopied() {
    let mut tap = Dialect::OpenAi.tap(Quirks::default(), true, 1);
    let chunk = Bytes::from_static(b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[{\"delta\":{}}]}\n\ndata: {\"cho");
    let mut out = Vec::new();
    tap.feed(chunk.clone(), &mut out).expect("no failure");
    let [slice] = out.as_slice() else { panic!("neighbours leave together: {out:?}") };
    assert_eq!(slice.as_ptr(), chunk.as_ptr());
    assert_eq!(slice.len(), chunk.len() - b"data: {\"cho".len());
    assert!(tap.content_started() && !tap.is_done());
}

#[test]
fn an_event_beyond_all_measure_is_a_bad_reply() {
    let mut tap = Dialect::OpenAi.tap(Quirks::default(), true, 1);
    let chunk = Bytes::from(vec![b'x'; 1 << 20]);
    let mut out = Vec::new();
    let outcomes: Vec<_> = (0..12).map(|_| tap.feed(chunk.clone(), &mut out).map_err(|f| f.kind)).collect();
    let failures: Vec<_> = outcomes.iter().filter_map(|o| o.err()).collect();
    assert_eq!((failures.as_slice(), out.len()), (&[shared::failure::FailureKind::BadReply][..], 0));
}

proptest! {
    /// Any split, and any damage: no panic, only whole events, and the split never matters.
    #[test]
    fn any_split_of_any_bytes_gives_the_same(pick in any::<prop::sample::Index>(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
                                             damage in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"\r\n :{}\"[]x\\".to_vec())), 0..4)) {
        let rows = cases();
        let row = pick.get(&rows);
        let mut bytes = row.input.concat().into_bytes();
        prop_assume!(!bytes.is_empty());
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            if bytes[at].is_ascii() {
                bytes[at] = byte;
            }
        }
        let whole = Bytes::from(bytes);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).collect();
        cuts.sort_unstable();
        let mut chunks = Vec::new();
        let mut from = 0;
        for cut in cuts.into_iter().chain([whole.len()]) {
            chunks.push(whole.slice(from..cut));
            from = cut;
        }
        prop_assert_eq!(run(row, &chunks), run(row, &[whole]));
    }
}
