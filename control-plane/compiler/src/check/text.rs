//! What names and texts may hold. A rule gives back what is wrong, or nothing.

const MAX_FREE_TEXT: usize = 200;
const MAX_MODEL_NAME: usize = 200;
const MAX_ALIAS_NAME: usize = 100;

/// 1 to 50 of `a-z 0-9 -`, starting with a letter.
pub(super) fn slug(text: &str) -> Option<String> {
    let fine = (1..=50).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    (!fine).then(|| "must be 1 to 50 of a-z, 0-9 and -, starting with a letter".to_owned())
}

/// What is wrong with a text for people, if anything. It may hold `least` to 200 characters, none of which hides or reorders others.
pub fn free_text(text: &str, least: usize) -> Option<String> {
    let length = text.trim().chars().count();
    if length < least {
        return Some("must not be empty".to_owned());
    }
    if text.chars().count() > MAX_FREE_TEXT {
        return Some(format!("must have at most {MAX_FREE_TEXT} characters"));
    }
    deceiving(text)
}

/// A model's name: 1 to 200 visible characters.
pub(super) fn model_name(text: &str) -> Option<String> {
    if text.is_empty() || text.chars().count() > MAX_MODEL_NAME {
        return Some(format!("must have 1 to {MAX_MODEL_NAME} characters"));
    }
    if text.contains(char::is_whitespace) {
        return Some("must not hold spaces".to_owned());
    }
    deceiving(text)
}

/// 1 to 100 visible characters without `/` and `@`, which mean something in names.
pub(super) fn alias_name(text: &str) -> Option<String> {
    if text.is_empty() || text.chars().count() > MAX_ALIAS_NAME {
        return Some(format!("must have 1 to {MAX_ALIAS_NAME} characters"));
    }
    if text.contains(|c: char| c.is_whitespace() || c == '/' || c == '@') {
        return Some("must not hold spaces, / or @".to_owned());
    }
    deceiving(text)
}

/// Characters that make a text look like another one: controls, bidirectional overrides, zero width.
fn deceiving(text: &str) -> Option<String> {
    let bad = text.chars().find(|c| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
            || matches!(c, '\u{e0000}'..='\u{e007f}')
    });
    bad.map(|c| format!("must not hold the invisible character U+{:04X}", u32::from(c)))
}
