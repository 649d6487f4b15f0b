//! Requests: what is refused and why, what is read, what goes out.

use bytes::Bytes;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{Dialect, Endpoint, Head, Quirks};

#[derive(Deserialize)]
struct Row {
    name: String,
    endpoint: String,
    body: Value,
    code: Option<String>,
    param: Option<String>,
    expect: Option<Map<String, Value>>,
}

fn cases() -> Vec<Row> {
    super::rows(include_str!("../../fixtures/requests.json"))
}

fn endpoint(name: &str) -> Endpoint {
    if name == "chat" { Endpoint::ChatCompletions } else { Endpoint::Embeddings }
}

fn described(head: &Head<'_>) -> Value {
    let names = if head.models.is_empty() { Vec::from_iter(&head.model) } else { Vec::from_iter(&head.models) };
    let needs = [
        (head.needs.tools, "tools"),
        (head.needs.vision, "vision"),
        (head.needs.audio_input, "audio_input"),
        (head.needs.audio_output, "audio_output"),
        (head.needs.pdf_input, "pdf_input"),
        (head.needs.json_schema, "json_schema"),
    ];
    let needed: Vec<&str> = needs.into_iter().filter_map(|(needed, name)| needed.then_some(name)).collect();
    json!({
        "model": head.model,
        "requested": names.first(),
        "names": names,
        "stream": head.stream,
        "include_usage": head.include_usage,
        "max_output_tokens": head.max_output_tokens,
        "choices": head.choices,
        "tools": head.tools,
        "tool_choice": format!("{:?}", head.tool_choice),
        "response_format": format!("{:?}", head.response_format),
        "needs": needed,
        "user": head.user,
        "metadata": head.metadata,
        "parts": head.parts,
        "prompt_tokens_estimate": head.prompt_tokens_estimate,
    })
}

#[test]
fn every_case_is_read_or_refused_as_it_says() {
    let mut wrong = Vec::new();
    for row in cases() {
        let body = super::body(&row.body);
        let outcome = Dialect::OpenAi.read_request(endpoint(&row.endpoint), &body);
        match (outcome, row.code, row.expect) {
            (Err(refusal), Some(code), None) => {
                if refusal.code != code || refusal.param.as_deref() != row.param.as_deref() {
                    wrong.push(format!("{}: {refusal}", row.name));
                }
                assert!(refusal.message.len() < 300, "{}", row.name);
            }
            (Ok(head), None, Some(expect)) => {
                let found = described(&head);
                for (key, value) in expect {
                    if found[&key] != value {
                        wrong.push(format!("{}: {key} is {}, not {value}", row.name, found[&key]));
                    }
                }
            }
            (Ok(_), _, _) => wrong.push(format!("{}: accepted", row.name)),
            (Err(refusal), _, _) => wrong.push(format!("{}: refused: {refusal}", row.name)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is to go out, on a tree.
fn edited(body: &Value, model: &str, usage: bool) -> Value {
    let mut edited = body.clone();
    let object = edited.as_object_mut().expect("an object");
    object.insert("model".into(), model.into());
    object.remove("models");
    object.remove("route");
    if usage {
        let options = object.entry("stream_options").or_insert(Value::Null);
        if !options.is_object() {
            *options = json!({});
        }
        options["include_usage"] = true.into();
    }
    edited
}

fn sent(body: &Bytes, model: &str, quirks: Quirks) -> (Vec<u8>, bool) {
    let head = Dialect::OpenAi.read_request(Endpoint::ChatCompletions, body).expect("a good request");
    let outgoing = head.outgoing(body, model, quirks);
    assert!(outgoing.slices.iter().all(|slice| !slice.is_empty()));
    let bytes = outgoing.slices.concat();
    assert_eq!(bytes.len(), outgoing.len);
    (bytes, outgoing.usage_added)
}

#[test]
fn bytes_that_need_no_change_stay_and_the_body_is_not_copied() {
    let m = r#""messages":[{"role":"user","content":"é\u00e9 \/ 1.0"}]"#;
    let cases = [
        (format!(r#"{{"model":"x",{m}}}"#), format!(r#"{{"model":"x",{m}}}"#)),
        (
            format!(r#"{{ "model" : "a/x" , {m} , "n":1e0 }}"#).replace("1e0", "1"),
            format!(r#"{{ "model" : "x" , {m} , "n":1 }}"#),
        ),
        (format!(r#"{{"model":"\u0078",{m}}}"#), format!(r#"{{"model":"x",{m}}}"#)),
        (format!(r#"{{"models":["a"],{m}}}"#), format!(r#"{{"model":"x",{m}}}"#)),
        (format!(r#"{{{m},"models":["a"]}}"#), format!(r#"{{"model":"x",{m}}}"#)),
        (format!(r#"{{{m} , "models" : ["a"] , "route" : "fallback" }}"#), format!(r#"{{"model":"x",{m}  }}"#)),
        (format!(r#"{{"route":null,"models":["a"],{m}}}"#), format!(r#"{{"model":"x",{m}}}"#)),
        (format!(r#"{{"models":["a"],{m},"route":"fallback"}}"#), format!(r#"{{"model":"x",{m}}}"#)),
        (format!(r#"{{"model":"a","route":"fallback","m\u006fdels":["a"],{m}}}"#), format!(r#"{{"model":"x",{m}}}"#)),
        (
            format!(r#"{{"model":"x",{m},"stream":true}}"#),
            format!(r#"{{"stream_options":{{"include_usage":true}},"model":"x",{m},"stream":true}}"#),
        ),
        (
            format!(r#"{{"model":"x",{m},"stream":true,"stream_options":{{}}}}"#),
            format!(r#"{{"model":"x",{m},"stream":true,"stream_options":{{"include_usage":true}}}}"#),
        ),
        (
            format!(r#"{{"model":"x",{m},"stream":true,"stream_options":null}}"#),
            format!(r#"{{"model":"x",{m},"stream":true,"stream_options":{{"include_usage":true}}}}"#),
        ),
        (
            format!(r#"{{"model":"x",{m},"stream":true,"stream_options":{{"x": 1}}}}"#),
            format!(r#"{{"model":"x",{m},"stream":true,"stream_options":{{"include_usage":true,"x": 1}}}}"#),
        ),
        (
            format!(r#"{{"model":"x",{m},"stream":true,"stream_options":{{"include_usage" : false, "x":1}}}}"#),
            format!(r#"{{"model":"x",{m},"stream":true,"stream_options":{{"include_usage" : true, "x":1}}}}"#),
        ),
        (
            format!(r#"{{"model":"x",{m},"stream":true,"stream_options":{{"include_usage":true}}}}"#),
            format!(r#"{{"model":"x",{m},"stream":true,"stream_options":{{"include_usage":true}}}}"#),
        ),
    ];
    for (body, expected) in cases {
        let body = Bytes::from(body);
        let (found, _) = sent(&body, "x", Quirks::default());
        assert_eq!(String::from_utf8(found).expect("UTF-8"), expected);
        let head = Dialect::OpenAi.read_request(Endpoint::ChatCompletions, &body).expect("a good request");
        let range = body.as_ptr_range();
        let shared =
            head.outgoing(&body, "x", Quirks::default()).slices.into_iter().filter(|s| range.contains(&s.as_ptr()));
        assert!(shared.map(|s| s.len()).sum::<usize>() >= m.len(), "the messages are a slice of the body");
    }
}

#[test]
fn the_whole_body_is_one_slice_when_nothing_changes() {
    let body = Bytes::from_static(br#"{"model":"x","messages":[{"role":"user"}],"stream":true}"#);
    let head = Dialect::OpenAi.read_request(Endpoint::ChatCompletions, &body).expect("a good request");
    let outgoing = head.outgoing(&body, "x", Quirks::from_names(["no_stream_options"]));
    assert_eq!((outgoing.slices.as_slice(), outgoing.usage_added), (&[body.clone()][..], false));
    assert!(head.outgoing(&body, "x", Quirks::default()).usage_added);
}

#[test]
fn an_embeddings_body_changes_its_model_only() {
    let body = Bytes::from_static(br#"{"input":["a"], "model":"p/m"}"#);
    let head = Dialect::OpenAi.read_request(Endpoint::Embeddings, &body).expect("a good request");
    let outgoing = head.outgoing(&body, "m\"1", Quirks::default());
    assert_eq!(outgoing.slices.concat(), br#"{"input":["a"], "model":"m\"1"}"#);
}

/// A good request as members in some order, with blanks.
fn request() -> impl Strategy<Value = String> {
    let blank = prop::sample::select(vec!["", " ", "\n\t"]);
    let optional = prop::sample::subsequence(
        vec![
            r#""stream":true"#,
            r#""stream_options":{"a":{"b":[1,"}"]}}"#,
            r#""models":["q\"},{",",model"]"#,
            r#""route":"fallback""#,
            r#""temperature":0.30"#,
            r#""x":{"model":"no","models":["\\"],"route":1}"#,
            r#""user":"\u00e9\"""#,
        ],
        0..=7,
    );
    let model = prop::sample::select(vec![r#""model":"a/b""#, r#""model":"\u0061\"""#, r#""mode\u006c":"c""#]);
    (optional, model, blank, any::<bool>()).prop_flat_map(|(mut members, model, blank, options_null)| {
        members.push(model);
        members.push(r#""messages":[{"role":"user","content":"\"model\":\"z\", {é"}]"#);
        if options_null {
            members.retain(|m| !m.starts_with(r#""stream_options"#));
            members.push(r#""stream_options":null"#);
        }
        Just(members).prop_shuffle().prop_map(move |members| {
            let inner = members.join(&format!("{blank},{blank}"));
            format!("{blank}{{{blank}{inner}{blank}}}{blank}")
        })
    })
}

proptest! {
    /// What goes out is the edit of the tree, and nothing but the edited places differs.
    #[test]
    fn what_goes_out_is_what_the_tree_would_be(text in request(), model in "[a-z\"\\\\/é]{1,12}", quirk in any::<bool>()) {
        let tree: Value = serde_json::from_str(&text).expect("a good request");
        let body = Bytes::from(text);
        let quirks = Quirks { no_stream_options: quirk, ..Quirks::default() };
        let (bytes, added) = sent(&body, &model, quirks);
        prop_assert_eq!(added, tree["stream"] == true && !quirk);
        let found: Value = serde_json::from_slice(&bytes).expect("still JSON");
        prop_assert_eq!(found, edited(&tree, &model, added));
        // Untouched members are there byte for byte.
        for kept in [r#""messages":[{"role":"user","content":"\"model\":\"z\", {é"}]"#, r#""temperature":0.30"#] {
            let holds = |bytes: &[u8]| memchr::memmem::find(bytes, kept.as_bytes()).is_some();
            prop_assert_eq!(holds(&body), holds(&bytes));
        }
        // A second pass finds nothing more to do.
        let again = Bytes::from(bytes);
        let (twice, _) = sent(&again, &model, quirks);
        prop_assert_eq!(&again[..], &twice[..]);
    }

    /// No bytes make it panic, and what it accepts is JSON.
    #[test]
    fn any_bytes_are_read_or_refused(text in request(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut body = text.into_bytes();
        let at = at.index(body.len());
        body[at] = byte;
        if cut {
            body.truncate(at);
        }
        for endpoint in Endpoint::ALL {
            if Dialect::OpenAi.read_request(endpoint, &body).is_ok() {
                prop_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok());
            }
        }
    }
}
