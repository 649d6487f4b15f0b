//! The one parser of what a caller may write in `model`. It says which form a name has; whether
//! anything of that name exists is `resolve`'s question.

use std::fmt;

/// A model name, by form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Name<'a> {
    /// `provider/model`; the model may hold slashes.
    Offering {
        /// Provider slug in the workspace.
        provider: &'a str,
        /// Offering of that provider.
        model: &'a str,
    },
    /// `model`: an alias, or an offering without its provider.
    Plain(&'a str),
    /// `workspace@provider/model`.
    Private {
        /// Workspace key.
        workspace: &'a str,
        /// Provider slug in that workspace.
        provider: &'a str,
        /// Private model of that provider.
        model: &'a str,
    },
    /// A virtual model that chooses.
    Router(RouterName<'a>),
    /// `policy/name`: slug or display name.
    Policy(&'a str),
}

/// The ways to name a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouterName<'a> {
    /// `auto`, the one that every workspace starts with.
    Auto,
    /// `router/id`.
    Id(&'a str),
    /// `workspace@orq/id`.
    Orq {
        /// Workspace key.
        workspace: &'a str,
        /// The router's id.
        id: &'a str,
    },
    /// `orcarouter/id`.
    Orca(&'a str),
}

/// Longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 256;

/// Why a text is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadName {
    /// Nothing there.
    Empty,
    /// Longer than [`MAX_NAME_BYTES`].
    TooLong,
    /// Holds a control character, or starts or ends with white space.
    BadCharacter,
    /// A part before or after a slash or an at sign is missing.
    MissingPart,
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "is empty",
            Self::TooLong => "is longer than 256 bytes",
            Self::BadCharacter => "holds a control character, or starts or ends with white space",
            Self::MissingPart => "lacks a part before or after a slash or an at sign",
        })
    }
}

impl std::error::Error for BadName {}

impl<'a> Name<'a> {
    /// Reads a name. Nothing is normalised: case and every character count.
    pub fn parse(text: &'a str) -> Result<Self, BadName> {
        if text.is_empty() {
            return Err(BadName::Empty);
        }
        if text.len() > MAX_NAME_BYTES {
            return Err(BadName::TooLong);
        }
        if text.chars().any(char::is_control) || text.trim().len() != text.len() {
            return Err(BadName::BadCharacter);
        }
        let Some((first, rest)) = text.split_once('/') else {
            return Ok(if text == "auto" { Self::Router(RouterName::Auto) } else { Self::Plain(text) });
        };
        if first.is_empty() || rest.is_empty() {
            return Err(BadName::MissingPart);
        }
        // An at sign after the first slash belongs to the model: some vendors date models that way.
        match first.split_once('@') {
            Some(("", _) | (_, "")) => Err(BadName::MissingPart),
            Some((workspace, "orq")) => Ok(Self::Router(RouterName::Orq { workspace, id: rest })),
            Some((workspace, provider)) => Ok(Self::Private { workspace, provider, model: rest }),
            None => Ok(match first {
                "router" => Self::Router(RouterName::Id(rest)),
                "orcarouter" => Self::Router(RouterName::Orca(rest)),
                "policy" => Self::Policy(rest),
                provider => Self::Offering { provider, model: rest },
            }),
        }
    }
}

/// Exactly what was parsed.
impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offering { provider, model } => write!(f, "{provider}/{model}"),
            Self::Plain(model) => f.write_str(model),
            Self::Private { workspace, provider, model } => write!(f, "{workspace}@{provider}/{model}"),
            Self::Router(RouterName::Auto) => f.write_str("auto"),
            Self::Router(RouterName::Id(id)) => write!(f, "router/{id}"),
            Self::Router(RouterName::Orq { workspace, id }) => write!(f, "{workspace}@orq/{id}"),
            Self::Router(RouterName::Orca(id)) => write!(f, "orcarouter/{id}"),
            Self::Policy(name) => write!(f, "policy/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_is_told_apart() {
        let cases = [
            ("gpt-4o", Ok(Name::Plain("gpt-4o"))),
            ("claude@20250101", Ok(Name::Plain("claude@20250101"))),
            ("openai/gpt-4o", Ok(Name::Offering { provider: "openai", model: "gpt-4o" })),
            ("together/meta/llama@3", Ok(Name::Offering { provider: "together", model: "meta/llama@3" })),
            ("acme@vllm/a/b", Ok(Name::Private { workspace: "acme", provider: "vllm", model: "a/b" })),
            ("auto", Ok(Name::Router(RouterName::Auto))),
            ("Auto", Ok(Name::Plain("Auto"))),
            ("router/x", Ok(Name::Router(RouterName::Id("x")))),
            ("acme@orq/x", Ok(Name::Router(RouterName::Orq { workspace: "acme", id: "x" }))),
            ("orcarouter/auto", Ok(Name::Router(RouterName::Orca("auto")))),
            ("policy/My Policy", Ok(Name::Policy("My Policy"))),
            ("openai/../x", Ok(Name::Offering { provider: "openai", model: "../x" })),
            ("", Err(BadName::Empty)),
            ("/x", Err(BadName::MissingPart)),
            ("openai/", Err(BadName::MissingPart)),
            ("@openai/x", Err(BadName::MissingPart)),
            ("acme@/x", Err(BadName::MissingPart)),
            (" gpt-4o", Err(BadName::BadCharacter)),
            ("gpt\n4o", Err(BadName::BadCharacter)),
            ("gpt\u{0}", Err(BadName::BadCharacter)),
        ];
        for (text, expected) in cases {
            assert_eq!(Name::parse(text), expected, "{text:?}");
        }
        assert_eq!(Name::parse(&"x".repeat(257)), Err(BadName::TooLong));
        assert!(Name::parse(&"x".repeat(256)).is_ok());
    }

    proptest! {
        #[test]
        fn printing_undoes_parsing(text in r"([a-z@/]|auto|router/|orcarouter/|policy/|@orq/|[ .:\-A-Z0-9é]){0,12}") {
            if let Ok(name) = Name::parse(&text) {
                let printed = name.to_string();
                prop_assert_eq!(&printed, &text);
                prop_assert_eq!(Name::parse(&printed), Ok(name));
            }
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = Name::parse(&text);
        }
    }
}
