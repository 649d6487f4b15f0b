//! The text of a join token: what lets a node in once, and which control plane to believe.

use std::fmt;
use std::str::FromStr;

use shared::digest::Hash;

const PREFIX: &str = "pmj_";
const RANDOM_CHARS: usize = 43;

/// Single-use permission to join. `pmj_<43 base64url>_<6 hex>.<64 hex: SHA-256 of the authority>`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    text: String,
    ca_sha256: Hash,
}

/// Why a text is no join token. Never shows any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadToken {
    /// Not of the form above.
    Form,
    /// The check digits do not fit: it was copied badly.
    Check,
    /// What stands after the dot is not 64 hex digits.
    Fingerprint,
}

impl fmt::Display for BadToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Form => "not of the form pmj_…_……. followed by a fingerprint",
            Self::Check => "the check digits do not fit: it was not copied whole",
            Self::Fingerprint => "the fingerprint after the dot is not 64 hex digits",
        })
    }
}

impl std::error::Error for BadToken {}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken")
    }
}

impl FromStr for JoinToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let text = text.trim();
        let (secret, fingerprint) = text.split_once('.').ok_or(BadToken::Form)?;
        let (checked, digits) = secret.rsplit_once('_').ok_or(BadToken::Form)?;
        let random = checked.strip_prefix(PREFIX).ok_or(BadToken::Form)?;
        let base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if random.len() != RANDOM_CHARS || !random.bytes().all(base64url) || digits.len() != 6 {
            return Err(BadToken::Form);
        }
        if format!("{:06x}", crc32c::crc32c(checked.as_bytes()) & 0x00ff_ffff) != digits {
            return Err(BadToken::Check);
        }
        Ok(Self { text: text.to_owned(), ca_sha256: hex(fingerprint).ok_or(BadToken::Fingerprint)? })
    }
}

impl JoinToken {
    /// The whole text, as the control plane made it. Secret.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// SHA-256 of the certificate (DER) of the authority to believe.
    pub fn ca_sha256(&self) -> &Hash {
        &self.ca_sha256
    }
}

fn hex(text: &str) -> Option<Hash> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(index * 2..index * 2 + 2)?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(random: &str, fingerprint: &str) -> String {
        let checked = format!("pmj_{random}");
        format!("{checked}_{:06x}.{fingerprint}", crc32c::crc32c(checked.as_bytes()) & 0x00ff_ffff)
    }

    #[test]
    fn reads_what_the_control_plane_makes_and_nothing_else() {
        let random = "AZaz09-_".repeat(6)[..43].to_owned();
        let good = token(&random, &"ab".repeat(32));
        let read: JoinToken = good.parse().expect("it is well formed");
        assert_eq!((read.as_str(), read.ca_sha256()), (good.as_str(), &[0xab; 32]));
        assert!(!format!("{read:?}").contains(&random));
        let mut typo = good.clone();
        typo.replace_range(10..11, if &good[10..11] == "A" { "B" } else { "A" });
        let cases = [
            (format!(" {good}\n"), None),
            (typo, Some(BadToken::Check)),
            (good.replace("pmj_", "pma_"), Some(BadToken::Form)),
            (good[..good.len() - 1].to_owned(), Some(BadToken::Fingerprint)),
            (token(&random, &"zz".repeat(32)), Some(BadToken::Fingerprint)),
            (token(&random[1..], &"ab".repeat(32)), Some(BadToken::Form)),
            (good.replace('.', ""), Some(BadToken::Form)),
            (String::new(), Some(BadToken::Form)),
            ("ä.ö".into(), Some(BadToken::Form)),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<JoinToken>().err(), expected, "{text}");
        }
    }
}
