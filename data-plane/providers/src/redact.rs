//! Keeps credentials out of what a provider says about them. Providers like to quote the key they
//! did not accept.

/// Bytes of a message that are kept.
const MOST_BYTES: usize = 2 * 1024;
/// Put in place of what is hidden.
const HIDDEN: &str = "[hidden]";
/// An unbroken run of letters and digits, both in it, is taken for a key from this length on. Names
/// of models and request ids of the usual form are broken by hyphens before.
const LONG_RUN: usize = 32;
/// How keys of well-known makers begin.
const PREFIXES: [&str; 18] = [
    "sk-", "sk_", "pk-", "rk-", "xai-", "gsk_", "AIza", "hf_", "fw_", "tgp_", "key-", "csk-", "r8_", "nvapi-", "AKIA",
    "pm_", "pma_", "eyJ",
];

/// `text` as a caller may see it: no control characters, at most 2 KiB, and neither `secret` nor
/// anything that looks like a key.
pub(crate) fn message(text: &str, secret: Option<&[u8]>) -> String {
    // Bounds the work. Hiding shortens, so more is looked at than is kept: what is cut here in the
    // middle of a key never reaches the end.
    let text = clipped(text, 32 * MOST_BYTES);
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let without = match secret.and_then(|s| std::str::from_utf8(s).ok()).map(str::trim).filter(|s| !s.is_empty()) {
        Some(secret) => plain.replace(secret, HIDDEN),
        None => plain,
    };
    let mut clean = String::with_capacity(without.len().min(MOST_BYTES));
    let mut after_bearer = false;
    for word in without.split_inclusive(is_break) {
        let (core, rest) = word.split_at(word.trim_end_matches(is_break).len());
        let hide = !core.is_empty() && core != "hidden" && (looks_like_key(core) || after_bearer);
        clean.push_str(if hide { HIDDEN } else { core });
        clean.push_str(rest);
        if !core.is_empty() {
            after_bearer = core.eq_ignore_ascii_case("bearer");
        }
    }
    clipped(clean.trim(), MOST_BYTES).to_owned()
}

/// Whether `body` may leave as it is: neither `secret` nor a well-known kind of key is in it.
pub(crate) fn is_clean(body: &[u8], secret: Option<&[u8]>) -> bool {
    let quoted = secret.is_some_and(|s| !s.is_empty() && memchr::memmem::find(body, s).is_some());
    let text = String::from_utf8_lossy(body);
    !quoted && !text.split(is_break).any(|word| starts_like_key(word) || word.eq_ignore_ascii_case("bearer"))
}

fn is_break(c: char) -> bool {
    !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*' | '.' | '+'))
}

fn looks_like_key(word: &str) -> bool {
    starts_like_key(word)
        || word.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '*').any(|run| {
            run.len() >= LONG_RUN
                && run.bytes().any(|b| b.is_ascii_digit())
                && run.bytes().any(|b| b.is_ascii_alphabetic())
        })
}

fn starts_like_key(word: &str) -> bool {
    // Long enough to be one, or starred out in the middle.
    PREFIXES.iter().any(|prefix| {
        word.strip_prefix(prefix).is_some_and(|rest| rest.len() >= 8 || rest.contains('*') || rest.contains("..."))
    })
}

fn clipped(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_hidden_and_plain_words_are_not() {
        let cases = [
            ("Incorrect API key provided: sk-proj-abcdefgh12345678.", "Incorrect API key provided: [hidden]"),
            ("bad key sk-ab*****************yz given", "bad key [hidden] given"),
            ("Authorization: Bearer abc123", "Authorization: Bearer [hidden]"),
            ("key 0123456789abcdef0123456789abcdef is wrong", "key [hidden] is wrong"),
            ("token my-own-s3cret!", "token [hidden]!"),
            (
                "The model `gpt-4o-mini-search-preview-2025-03-11` does not exist",
                "The model `gpt-4o-mini-search-preview-2025-03-11` does not exist",
            ),
            (
                "request 0b0f8a5e-7a8e-4c0b-9a55-2f0c3a3f9f11 failed",
                "request 0b0f8a5e-7a8e-4c0b-9a55-2f0c3a3f9f11 failed",
            ),
            (
                "This model's maximum context length is 128000 tokens.",
                "This model's maximum context length is 128000 tokens.",
            ),
            ("a\nb\u{7}c\u{1b}[31m", "a b c [31m"),
            ("", ""),
        ];
        for (text, expected) in cases {
            assert_eq!(message(text, Some(b"my-own-s3cret")), expected, "{text}");
        }
        assert!(!is_clean(b"{\"error\":\"sk-proj-abcdefgh12345678\"}", None));
        assert!(!is_clean(b"{\"error\":\"my-own-s3cret\"}", Some(b"my-own-s3cret")));
        assert!(is_clean(b"{\"error\":{\"message\":\"too long\"}}", Some(b"my-own-s3cret")));
    }

    proptest! {
        /// Wherever the secret stands and whatever stands around it.
        #[test]
        fn the_secret_never_survives(before in ".{0,40}", secret in "[A-Za-z0-9_.-]{8,60}", after in ".{0,40}") {
            let text = format!("{before}{secret}{after}{}", "x ".repeat(2_000));
            let clean = message(&text, Some(secret.as_bytes()));
            prop_assert!(!clean.contains(&secret));
            prop_assert!(clean.len() <= MOST_BYTES && !clean.chars().any(char::is_control));
        }
    }
}
