//! Typed ids. An id is a prefix that names its kind and 128 bits, time-ordered (UUID version 7,
//! RFC 9562), in hex: `prj_01990c…`. They are opaque to callers and never reused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Why a text is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadId {
    /// The prefix that the id must start with, without the underscore.
    pub prefix: &'static str,
}

impl fmt::Display for BadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not an id of the form {}_<32 hex digits>", self.prefix)
    }
}

impl std::error::Error for BadId {}

/// Makes a time-ordered id from a wall clock reading in milliseconds and ten random bytes.
fn time_ordered(now_ms: u64, random: [u8; 10]) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(now_ms, &random).into_uuid()
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// What its text form starts with, before the underscore.
            pub const PREFIX: &'static str = $prefix;

            /// A new id; time-ordered, so that indexes grow at their end.
            pub fn new(now_ms: u64, random: [u8; 10]) -> Self {
                Self(time_ordered(now_ms, random))
            }

            /// The id with exactly these bits.
            pub const fn from_u128(bits: u128) -> Self {
                Self(Uuid::from_u128(bits))
            }

            /// Its 16 bytes, as the wire carries them.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// Appends its text form; cheaper than formatting.
            pub fn push_to(&self, text: &mut String) {
                text.push_str(concat!($prefix, "_"));
                text.push_str(self.0.as_simple().encode_lower(&mut [0; 32]));
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!($prefix, "_"))?;
                f.write_str(self.0.as_simple().encode_lower(&mut [0; 32]))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                let bad = BadId { prefix: $prefix };
                let hex = text.strip_prefix(concat!($prefix, "_")).ok_or(bad.clone())?;
                // One text form per id: hyphens, braces and capitals are other people's.
                let plain = hex.len() == 32 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                if !plain {
                    return Err(bad);
                }
                Uuid::try_parse(hex).map(Self).map_err(|_| bad)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

ids! {
    /// A tenant.
    WorkspaceId = "ws";
    /// A group of keys, rules and policies inside a workspace.
    ProjectId = "prj";
    /// A vendor as connected in a workspace.
    ProviderId = "prv";
    /// One key at a provider.
    CredentialId = "cred";
    /// A private model, or a workspace's change to a catalogue entry.
    ModelId = "mdl";
    /// Another name for models.
    AliasId = "als";
    /// A caller's key.
    ApiKeyId = "key";
    /// A data-plane node, as its certificate names it.
    NodeId = "node";
    /// One request of a caller; the `x-request-id`.
    RequestId = "req";
    /// One committed change of a workspace.
    ChangeId = "chg";
    /// An administrator's access token.
    AdminTokenId = "adm";
    /// A single-use permission for a node to join.
    JoinTokenId = "jt";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_is_the_only_one() {
        let id = ProjectId::new(1_700_000_000_123, [7; 10]);
        let text = id.to_string();
        assert_eq!(text.parse(), Ok(id));
        let bad = Err(BadId { prefix: "prj" });
        for wrong in [
            text.to_uppercase(),
            text.replace("prj", "key"),
            format!("{text}0"),
            String::new(),
            "prj_".into(),
            format!("prj_{}", "g".repeat(32)),
        ] {
            assert_eq!(wrong.parse::<ProjectId>(), bad, "{wrong}");
        }
    }

    #[test]
    fn later_ids_sort_after_earlier_ones() {
        assert!(ApiKeyId::new(1, [255; 10]) < ApiKeyId::new(2, [0; 10]));
    }
}
