//! What `GET /v1/models` shows to which key.

use super::house::House;
use crate::facts::Now;
use crate::listing::list;

#[test]
fn a_key_sees_what_it_may_use_and_nothing_else() {
    let cases: &[(&str, &[&str])] = &[
        (
            "any",
            &[
                "acme@local/llama3:8b",
                "acme@local/nomic",
                "acme@openai/ft-acme",
                "auto",
                "azure/gpt-4o",
                "bare",
                "fast",
                "groq/embedder",
                "groq/llama-3",
                "half-gone",
                "llama-3",
                "openai/gpt-4o",
                "openai/gpt-4o-mini",
                "openai/gpt-audio",
                "openai/leaving",
                "openai/text-embedding-3-small",
                "ours",
                "sleeping",
                "smart",
                "to-router",
                "together/meta-llama/Llama-3-70b",
                "twice",
            ],
        ),
        ("exact", &["auto", "half-gone", "openai/gpt-4o", "sleeping", "smart", "to-router", "twice"]),
        ("by-alias", &["fast"]),
        ("private-only", &["acme@local/llama3:8b", "acme@local/nomic", "ours"]),
        ("none", &[]),
    ];
    let house = House::standard();
    for (key, expected) in cases {
        let listed = list(&house.workspace, house.key(key), Now { wall_ms: 1_000, mono_ms: 0 });
        let names: Vec<&str> = listed.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, *expected, "{key}");
    }
}
