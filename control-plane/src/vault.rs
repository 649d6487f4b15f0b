//! Secrets at rest: envelope encryption with AES-256-GCM.
//!
//! Each secret has a data key of its own, sealed by the key-encryption key (KEK), so that a new KEK
//! re-wraps data keys and touches no secret. The additional data of both seals names the scope, the
//! id and the version: a row copied elsewhere does not open. The KEK itself stays outside the
//! database, in a file or in the environment. It never logs, prints or compares secrets.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use shared::digest::sha256;

const KEY_LEN: usize = 32;

/// Bytes that must not be seen. No `Debug`, no `Display`; overwritten when dropped, as far as safe
/// Rust can promise: the optimiser is asked to keep the write, copies made by moves are not reached.
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes over the bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes, for the one place that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, if they are.
    pub fn expose_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.fill(0);
        std::hint::black_box(&mut self.0);
    }
}

/// Where a sealed secret belongs; it opens nowhere else.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Workspace id, or another scope.
    pub scope: &'a str,
    /// What it belongs to.
    pub id: &'a str,
    /// Counts up with every new secret of the same id.
    pub version: i64,
}

impl Place<'_> {
    /// Lengths in front keep ("a", "bc") apart from ("ab", "c").
    fn aad(&self, purpose: &[u8]) -> Vec<u8> {
        let mut aad = purpose.to_vec();
        for part in [self.scope.as_bytes(), self.id.as_bytes()] {
            aad.extend_from_slice(&(part.len() as u64).to_be_bytes());
            aad.extend_from_slice(part);
        }
        aad.extend_from_slice(&self.version.to_be_bytes());
        aad
    }
}

/// Why a secret does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VaultError {
    /// The text is not a sealed secret.
    Malformed,
    /// Sealed under a KEK that this process does not have.
    UnknownKek,
    /// Changed, or belongs elsewhere.
    NotAuthentic,
    /// `POINTSMAN_KEK` or the key file holds something else than keys of 32 bytes in base64, or none.
    BadKek,
    /// The key file cannot be read or written.
    KekFile(std::io::ErrorKind),
}

impl fmt::Display for VaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("not a sealed secret"),
            Self::UnknownKek => f.write_str("sealed under a key-encryption key that is not present"),
            Self::NotAuthentic => f.write_str("the sealed secret was changed or belongs elsewhere"),
            Self::BadKek => {
                f.write_str("a key-encryption key must be 32 bytes in base64 (the file kek, or POINTSMAN_KEK)")
            }
            Self::KekFile(kind) => write!(f, "the file of the key-encryption key: {kind}"),
        }
    }
}

impl std::error::Error for VaultError {}

struct Kek {
    id: String,
    key: LessSafeKey,
    /// For page cursors and the like.
    signing: hmac::Key,
}

/// Seals and opens. The first KEK seals; the others only open what they sealed before.
pub struct Vault {
    keks: Vec<Kek>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({} keys)", self.keks.len())
    }
}

impl Vault {
    /// With a KEK of 32 bytes, and earlier ones that must still open what they sealed.
    ///
    /// # Errors
    /// [`VaultError::BadKek`] when one has another length.
    pub fn new(current: &Secret, earlier: &[Secret]) -> Result<Self, VaultError> {
        let keks = std::iter::once(current).chain(earlier).map(kek).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { keks })
    }

    /// With the KEKs from the environment if given, else from `<data_dir>/kek`, which is made at the
    /// first start, readable by its owner only. In base64, the current one first, blanks or commas
    /// between them.
    ///
    /// # Errors
    /// When a KEK is not 32 bytes in base64, or their file cannot be read or made.
    pub fn open_or_create(data_dir: &Path, from_env: Option<&str>) -> Result<Self, VaultError> {
        let text = match from_env {
            Some(text) => text.to_owned(),
            None => read_or_create(&data_dir.join("kek"))?,
        };
        let texts = text.split(|c: char| c.is_whitespace() || c == ',').filter(|text| !text.is_empty());
        let keys = texts.map(|text| STANDARD.decode(text).map(Secret::new)).collect::<Result<Vec<_>, _>>();
        let keys = keys.map_err(|_| VaultError::BadKek)?;
        let (current, earlier) = keys.split_first().ok_or(VaultError::BadKek)?;
        Self::new(current, earlier)
    }

    /// What every text begins with that the current KEK sealed.
    pub fn current(&self) -> String {
        format!("v1.{}.", self.keks[0].id)
    }

    /// Names of the KEKs that only open.
    pub fn earlier(&self) -> impl Iterator<Item = &str> {
        self.keks.iter().skip(1).map(|kek| &*kek.id)
    }

    /// Seals a secret for one place. The text is what the database keeps.
    pub fn seal(&self, place: &Place<'_>, secret: &Secret) -> String {
        let data_key = Secret::new(runtime::random::bytes::<KEY_LEN>());
        let kek = &self.keks[0];
        let wrapped = encrypt(&kek.key, &place.aad(b"key"), data_key.expose());
        // A fresh 32-byte key is always accepted.
        let body = aes(&data_key).map(|key| encrypt(&key, &place.aad(b"secret"), secret.expose())).unwrap_or_default();
        format!("v1.{}.{}.{}", kek.id, STANDARD.encode(wrapped), STANDARD.encode(body))
    }

    /// Opens what [`Vault::seal`] made for the same place.
    ///
    /// # Errors
    /// When it belongs elsewhere, was changed, or its KEK is not here.
    pub fn open(&self, place: &Place<'_>, sealed: &str) -> Result<Secret, VaultError> {
        let (kek_id, wrapped, body) = parts(sealed)?;
        let data_key = self.unwrap_key(place, kek_id, &wrapped)?;
        decrypt(&aes(&data_key)?, &place.aad(b"secret"), &body)
    }

    /// The same secret with its data key sealed by the current KEK; `None` when it is already. The
    /// secret itself is neither opened nor changed.
    ///
    /// # Errors
    /// As [`Vault::open`].
    pub fn rewrap(&self, place: &Place<'_>, sealed: &str) -> Result<Option<String>, VaultError> {
        let (kek_id, wrapped, body) = parts(sealed)?;
        let current = &self.keks[0];
        if kek_id == current.id {
            return Ok(None);
        }
        let data_key = self.unwrap_key(place, kek_id, &wrapped)?;
        let wrapped = encrypt(&current.key, &place.aad(b"key"), data_key.expose());
        Ok(Some(format!("v1.{}.{}.{}", current.id, STANDARD.encode(wrapped), STANDARD.encode(body))))
    }

    /// Text that only this installation can have made, from `payload`, valid for `context` only.
    pub fn sign(&self, context: &str, payload: &str) -> String {
        signed_by(&self.keks[0], context, payload)
    }

    /// The payload of what [`Vault::sign`] made for the same context.
    pub fn verify(&self, context: &str, text: &str) -> Option<String> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let payload = std::str::from_utf8(bytes.get(12..)?).ok()?.to_owned();
        // Comparing whole texts leaks timing of a page cursor, which protects nothing but integrity.
        self.keks.iter().any(|kek| signed_by(kek, context, &payload) == text).then_some(payload)
    }

    fn unwrap_key(&self, place: &Place<'_>, kek_id: &str, wrapped: &[u8]) -> Result<Secret, VaultError> {
        let kek = self.keks.iter().find(|kek| kek.id == kek_id).ok_or(VaultError::UnknownKek)?;
        decrypt(&kek.key, &place.aad(b"key"), wrapped)
    }
}

fn signed_by(kek: &Kek, context: &str, payload: &str) -> String {
    let message = [&(context.len() as u64).to_be_bytes(), context.as_bytes(), payload.as_bytes()].concat();
    let tag = hmac::sign(&kek.signing, &message);
    let tag = tag.as_ref().get(..12).unwrap_or_default();
    URL_SAFE_NO_PAD.encode([tag, payload.as_bytes()].concat())
}

fn kek(secret: &Secret) -> Result<Kek, VaultError> {
    let name = sha256(&[b"pointsman kek id v1", secret.expose()]);
    let id = name.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let derived = sha256(&[b"pointsman cursor key v1", secret.expose()]);
    Ok(Kek { id, key: aes(secret)?, signing: hmac::Key::new(hmac::HMAC_SHA256, &derived) })
}

fn aes(key: &Secret) -> Result<LessSafeKey, VaultError> {
    UnboundKey::new(&AES_256_GCM, key.expose()).map(LessSafeKey::new).map_err(|_| VaultError::BadKek)
}

/// nonce || ciphertext || tag. Nonces are random: a data key seals once, and a KEK seals fewer than
/// 2^32 data keys by far.
fn encrypt(key: &LessSafeKey, aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let nonce = runtime::random::bytes::<NONCE_LEN>();
    let mut body = plain.to_vec();
    // Fails only beyond 64 GiB.
    match key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut body) {
        Ok(()) => [&nonce[..], &body].concat(),
        Err(_) => Vec::new(),
    }
}

fn decrypt(key: &LessSafeKey, aad: &[u8], sealed: &[u8]) -> Result<Secret, VaultError> {
    let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(VaultError::Malformed)?;
    let mut body = body.to_vec();
    let plain = key
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), &mut body)
        .map_err(|_| VaultError::NotAuthentic)?
        .to_vec();
    body.fill(0);
    Ok(Secret::new(plain))
}

fn parts(sealed: &str) -> Result<(&str, Vec<u8>, Vec<u8>), VaultError> {
    let mut parts = sealed.split('.');
    let (Some("v1"), Some(kek_id), Some(wrapped), Some(body), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(VaultError::Malformed);
    };
    let decode = |text: &str| STANDARD.decode(text).map_err(|_| VaultError::Malformed);
    Ok((kek_id, decode(wrapped)?, decode(body)?))
}

fn read_or_create(path: &Path) -> Result<String, VaultError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |e: std::io::Error| VaultError::KekFile(e.kind());
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(mut file) => {
            let text = STANDARD.encode(runtime::random::bytes::<KEY_LEN>());
            file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
            Ok(text)
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => std::fs::read_to_string(path).map_err(failed),
        Err(e) => Err(failed(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Place<'_> = Place { scope: "ws_1", id: "cred_1", version: 1 };

    fn vault(seed: u8) -> Vault {
        Vault::new(&Secret::new([seed; 32]), &[]).expect("32 bytes")
    }

    #[test]
    fn a_secret_opens_only_where_it_was_sealed() {
        let vault = vault(1);
        let sealed = vault.seal(&HERE, &Secret::new("canary"));
        assert!(!sealed.contains("canary"));
        assert_eq!(vault.open(&HERE, &sealed).ok().map(|s| s.expose().to_vec()), Some(b"canary".to_vec()));
        let elsewhere = [
            Place { scope: "ws_2", ..HERE },
            Place { id: "cred_2", ..HERE },
            Place { version: 2, ..HERE },
            Place { scope: "ws_1c", id: "red_1", version: 1 },
        ];
        for place in elsewhere {
            assert_eq!(vault.open(&place, &sealed).err(), Some(VaultError::NotAuthentic), "{place:?}");
        }
        assert_ne!(sealed, vault.seal(&HERE, &Secret::new("canary")), "sealing twice must not show equality");
    }

    #[test]
    fn damage_is_found_anywhere() {
        let vault = vault(1);
        let sealed = vault.seal(&HERE, &Secret::new("canary"));
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone().into_bytes();
            damaged[at] ^= 1;
            let damaged = String::from_utf8_lossy(&damaged).into_owned();
            assert!(vault.open(&HERE, &damaged).is_err(), "byte {at}");
        }
        for text in ["", "v1", "v1...", "v2.a.b.c", "v1.a.b.c.d"] {
            assert!(vault.open(&HERE, text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_new_kek_rewraps_and_the_old_one_may_go() {
        let (old, new) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let sealed = vault(1).seal(&HERE, &Secret::new("canary"));
        assert_eq!(vault(2).open(&HERE, &sealed).err(), Some(VaultError::UnknownKek));
        let both = Vault::new(&new, &[old]).expect("32 bytes");
        assert!(both.open(&HERE, &sealed).is_ok());
        let moved = both.rewrap(&HERE, &sealed).expect("opens").expect("is under the old one");
        assert_eq!(both.rewrap(&HERE, &moved), Ok(None));
        assert!(vault(2).open(&HERE, &moved).is_ok());
    }

    #[test]
    fn several_keks_in_one_text() {
        let text = |seed: u8| STANDARD.encode([seed; 32]);
        let open = |text: &str| Vault::open_or_create(Path::new("/nowhere"), Some(text));
        let vault = open(&format!("{},{}\n {}\n", text(2), text(1), text(3))).expect("three");
        assert_eq!((vault.current(), vault.earlier().count()), (super::tests::vault(2).current(), 2));
        assert!(vault.open(&HERE, &super::tests::vault(3).seal(&HERE, &Secret::new("canary"))).is_ok());
        let cursor = super::tests::vault(1).sign("list", "key_1");
        assert_eq!(vault.verify("list", &cursor).as_deref(), Some("key_1"));
        for bad in ["", " \n", "AAAA", "not base64", &format!("{},{}", text(1), "AAAA")] {
            assert_eq!(open(bad).err(), Some(VaultError::BadKek), "{bad:?}");
        }
    }

    #[test]
    fn signed_texts_are_bound_to_their_context() {
        let vault = vault(1);
        let text = vault.sign("list", "key_1");
        assert_eq!(vault.verify("list", &text).as_deref(), Some("key_1"));
        assert_eq!(vault.verify("other", &text), None);
        assert_eq!(vault.verify("list", &format!("{text}A")), None);
        assert_eq!(vault.verify("list", ""), None);
    }
}
