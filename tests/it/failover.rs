//! Something else answers when the first cannot, as long as no byte has reached the caller.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::house::{Builder, House};
use tests::http::Answer;
use tests::provider::{Content, End, Script};

const BODY: &str = "/v1/chat/completions";

/// A house with models `first` and `second` at two providers, and the alias `both` over them.
async fn house() -> House {
    let mut house = Builder::together().start().await.expect("a house");
    house.connect(&["chat", "second"]).await.expect("connected");
    let url = house.provider.url();
    house.connect_as("other", &url, "sk-canary-other-77aa", &["first"]).await.expect("connected");
    let alias = json!({"name": "both", "targets": ["other/first", "scripted/second"]});
    house.create("aliases", alias).await.expect("an alias");
    house.serves("both").await.expect("served");
    house
}

fn chat(model: &str, stream: bool) -> Value {
    json!({"model": model, "stream": stream, "messages": [{"role": "user", "content": "x"}]})
}

async fn ask(house: &House, body: &Value) -> Answer {
    house.caller().post(BODY, body).await.expect("an answer")
}

/// Failures before the first byte: each is covered by the second model.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_first_byte() {
    let house = house().await;
    let failures = [
        ("500", Script::status(500)),
        ("503", Script::status(503)),
        ("529", Script::status(529)),
        ("408", Script::status(408)),
        ("401 of our own credential", Script::status(401)),
        ("html", Script::ok().with(Content::Html)),
        ("empty", Script::ok().with(Content::Empty)),
        ("reset at once", Script::ok().ending(End::Cut(0))),
        (
            "redirect",
            Script { headers: vec![("location".into(), "http://169.254.169.254/".into())], ..Script::status(307) },
        ),
    ];
    for (name, script) in failures {
        for stream in [false, true] {
            // Reset inside a stream comes after its head; that one is not before the first byte.
            house.provider.on_model("first", script.clone());
            let answer = ask(&house, &chat("both", stream)).await;
            assert_eq!(answer.status, 200, "{name}, stream {stream}: {}", answer.text());
            assert_eq!(answer.header("x-pointsman-fallback-level"), "1", "{name}: {:?}", answer.headers);
            assert_eq!(answer.header("x-pointsman-provider"), "scripted", "{name}");
        }
    }
    house.provider.on_model("first", Script::ok());
}

/// The caller's own mistakes are the same everywhere: no second try.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_for_the_callers_mistakes() {
    let house = house().await;
    for status in [400, 413, 422] {
        house.provider.on_model("first", Script::status(status));
        let before = house.provider.count();
        let answer = ask(&house, &chat("both", false)).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_eq!(house.provider.count() - before, 1, "asked once");
        let own = &house.provider.settled().await.pop().expect("asked").answer_hash;
        assert_eq!(&answer.body_hash(), own, "the provider's own words");
    }
}

/// After the first byte nothing is repeated: the stream ends with an error event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_after_the_first_byte() {
    let house = house().await;
    for end in [End::Cut(3), End::CutInCharacter, End::ErrorEvent(3)] {
        house.provider.on_model("first", Script::ok().ending(end.clone()));
        let before = house.provider.seen_of("second").len();
        let mut stream = house.caller().open(BODY, &chat("both", true)).await.expect("a stream");
        let events = stream.events().await.expect("an orderly end");
        let last: Vec<&String> = events.iter().filter(|e| e.contains("\"error\"")).collect();
        assert_eq!(last.len(), 1, "{end:?}: {events:#?}");
        assert!(!events.iter().any(|e| e.contains("[DONE]") && !e.contains("error")) || end == End::ErrorEvent(3));
        assert_eq!(house.provider.seen_of("second").len(), before, "{end:?} was tried again");
    }
}

/// Another credential of the same provider comes first when one is not accepted or out of its rate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_credential() {
    let mut house = Builder::together().start().await.expect("a house");
    let connected = house.connect(&["chat"]).await.expect("connected");
    for number in 0..3 {
        let secret = format!("sk-canary-pool-{number}-b1");
        house.add_credential(&connected.provider, &format!("pool{number}"), &secret).await.expect("added");
        house.provider.on_credential(&secret, Script::status([401, 403, 429][number]));
    }
    house.serves("scripted/chat").await.expect("served");
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..20 {
        let answer = ask(&house, &chat("scripted/chat", false)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let bad = house.provider.seen().iter().filter(|s| s.credential.contains("pool")).count();
    assert!(bad > 0, "the pool was used");
}

/// A provider that accepts and never answers costs its first-token time, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_provider() {
    let mut house = house().await;
    let url = house.provider.url();
    let made = house
        .create(
            "providers",
            json!({"vendor": "vllm", "slug": "silent", "base_url": url, "timeouts": {"first_token_ms": 500}}),
        )
        .await
        .expect("created");
    let provider = made["id"].as_str().expect("an id").to_owned();
    house.add_credential(&provider, "main", "sk-canary-silent-9").await.expect("added");
    house.add_model(&provider, "mute", "chat").await.expect("added");
    let alias = json!({"name": "patient", "targets": ["silent/mute", "scripted/second"]});
    house.create("aliases", alias).await.expect("an alias");
    house.serves("patient").await.expect("served");
    house.provider.on_model("mute", Script::delayed(60_000));
    let started = Instant::now();
    let answer = ask(&house, &chat("patient", false)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(450) && took < Duration::from_secs(10), "{took:?}");
}

/// Everything fails: one clear error, no secret, a bounded number of attempts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_left() {
    let house = house().await;
    house.provider.on_model("first", Script::status(500));
    house.provider.on_model("second", Script::status(500));
    let before = house.provider.count();
    let answer = ask(&house, &chat("both", false)).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(answer.json()["error"]["code"], json!("upstream_error"));
    let attempts = house.provider.count() - before;
    assert!((2..=8).contains(&attempts), "{attempts} attempts");
}
