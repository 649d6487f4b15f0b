//! The text form of keys and tokens: a prefix, 256 random bits in base64url, and a checksum that
//! secret scanners (and we) can verify without a database.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use shared::digest::sha256;

use crate::vault::Secret;

/// Prefix of callers' API keys.
pub const API_KEY: &str = "pm";
/// Prefix of administrators' tokens.
pub const ADMIN: &str = "pma";
/// Prefix of nodes' join tokens.
pub const JOIN: &str = "pmj";

const RANDOM_LEN: usize = 43;
const CHECKSUM_LEN: usize = 6;

/// A new text `<prefix>_<43 characters>_<6 hex digits>`.
pub fn generate(prefix: &str) -> Secret {
    let random = URL_SAFE_NO_PAD.encode(runtime::random::bytes::<32>());
    let body = format!("{prefix}_{random}");
    let checksum = checksum(&body);
    Secret::new(format!("{body}_{checksum}"))
}

/// Whether the text has the form and the checksum of its prefix. Says nothing about its validity.
pub fn is_well_formed(prefix: &str, text: &str) -> bool {
    let random = |body: &str| {
        body.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('_')).is_some_and(|random| {
            random.len() == RANDOM_LEN && random.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
    };
    text.rsplit_once('_').is_some_and(|(body, sum)| sum.len() == CHECKSUM_LEN && sum == checksum(body) && random(body))
}

/// Hex SHA-256 of the whole text, as the database keeps it. The text has 256 random bits, so a slow
/// hash would protect nothing more.
pub fn hash(text: &[u8]) -> String {
    hex(&sha256(&[text]))
}

/// First and last characters, to tell texts apart: `pm_Ab3d…9f2c1a`.
pub fn hint(secret: &Secret) -> String {
    let text = secret.expose_str().unwrap_or_default();
    let start = text.split_once('_').map_or(0, |(prefix, _)| prefix.len() + 1) + 4;
    let (first, last) = (text.get(..start), text.len().checked_sub(CHECKSUM_LEN).and_then(|at| text.get(at..)));
    format!("{}…{}", first.unwrap_or_default(), last.unwrap_or_default())
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn checksum(body: &str) -> String {
    format!("{:06x}", crc32c(body.as_bytes()) & 0x00ff_ffff)
}

/// CRC-32C (Castagnoli), bit by bit: fifty bytes at a time need no table.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    };
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn texts_verify_and_any_change_is_found() {
        let secret = generate(API_KEY);
        let text = secret.expose_str().expect("ASCII");
        assert!(is_well_formed(API_KEY, text) && !is_well_formed(ADMIN, text));
        assert_eq!(text.len(), 3 + RANDOM_LEN + 1 + CHECKSUM_LEN);
        for at in 0..text.len() {
            let mut changed = text.as_bytes().to_vec();
            changed[at] = if changed[at] == b'x' { b'y' } else { b'x' };
            let changed = String::from_utf8(changed).expect("ASCII");
            assert!(!is_well_formed(API_KEY, &changed), "{at}");
        }
        for bad in ["", "pm_", "_", "pm__", "pm_x_000000"] {
            assert!(!is_well_formed(API_KEY, bad), "{bad}");
        }
        assert_eq!(hint(&secret).chars().count(), 7 + 1 + 6);
    }
}
