//! TLS settings: between the planes (mutual, our own authority pinned) and towards vendors (public
//! authorities). The crypto provider is always named, never the process's default.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Name in the control plane's certificate; nodes verify it wherever they connect to.
pub const CONTROL_PLANE_NAME: &str = "control-plane.pointsman.internal";

/// A certificate chain, leaf first, and its private key.
pub struct Identity {
    /// DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// Matches the leaf.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// Says how long the chain is, never the key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} certificates)", self.chain.len())
    }
}

/// Why TLS cannot be set up.
#[derive(Debug)]
pub enum TlsError {
    /// A certificate or key is damaged, or they do not belong together.
    Material(rustls::Error),
    /// The client authority cannot verify anyone.
    Verifier(rustls::server::VerifierBuilderError),
    /// A file with extra authorities cannot be read, or holds none.
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Material(e) => write!(f, "certificate or key: {e}"),
            Self::Verifier(e) => write!(f, "client authority: {e}"),
            Self::File { path, detail } => write!(f, "{}: {detail}", path.display()),
        }
    }
}

impl std::error::Error for TlsError {}

impl From<rustls::Error> for TlsError {
    fn from(e: rustls::Error) -> Self {
        Self::Material(e)
    }
}

/// The one crypto provider of both programs.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Server side between the planes: TLS 1.3, HTTP/2. A client certificate is optional, because
/// joining happens without one; one that is shown must chain to `client_ca`. Who needs one checks
/// the connection's peer certificates.
///
/// # Errors
/// When the identity or the authority is unusable.
pub fn server(identity: Identity, client_ca: CertificateDer<'static>) -> Result<ServerConfig, TlsError> {
    let roots = Arc::new(roots_of([client_ca])?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .allow_unauthenticated()
        .build()
        .map_err(TlsError::Verifier)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain, identity.key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Client side between the planes: TLS 1.3, HTTP/2, `ca` and nothing else is trusted.
///
/// # Errors
/// When the identity or the authority is unusable.
pub fn client(identity: Option<Identity>, ca: CertificateDer<'static>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots_of([ca])?);
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain, identity.key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Client side towards vendors: TLS 1.2 and 1.3, the public authorities, and those of a PEM file for
/// servers inside a company. `alpn` in order of preference, for example `[b"h2", b"http/1.1"]`.
///
/// # Errors
/// When the file cannot be read, holds no certificate or a damaged one.
pub fn upstream(extra_ca_file: Option<&Path>, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = extra_ca_file {
        let wrong = |detail: String| TlsError::File { path: path.to_owned(), detail };
        let extra: Vec<_> = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|e| wrong(format!("not a PEM file of certificates: {e}")))?;
        if extra.is_empty() {
            return Err(wrong("holds no certificate".into()));
        }
        for certificate in extra {
            roots.add(certificate).map_err(|e| wrong(format!("a certificate is unusable: {e}")))?;
        }
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

fn roots_of(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate)?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem() -> String {
        let key = rcgen::KeyPair::generate().expect("keys can be made");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).expect("it signs itself").pem()
    }

    #[test]
    fn extra_authorities_are_read_whole_or_refused() {
        let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let cases = [
            ("two", pem() + &pem(), true),
            ("one good, one damaged", pem() + damaged, false),
            ("none", "no certificate here".into(), false),
            ("empty", String::new(), false),
        ];
        let unique = u64::from_le_bytes(crate::random::bytes());
        let path = std::env::temp_dir().join(format!("pointsman-ca-{unique:016x}.pem"));
        for (what, text, good) in cases {
            std::fs::write(&path, text).expect("there is room");
            let config = upstream(Some(&path), &[b"http/1.1"]);
            assert_eq!(config.is_ok(), good, "{what}: {:?}", config.err().map(|e| e.to_string()));
        }
        std::fs::remove_file(&path).expect("it was written");
        assert!(matches!(upstream(Some(&path), &[]), Err(TlsError::File { .. })));
        let plain = upstream(None, &[b"h2", b"http/1.1"]).expect("the built-in authorities are usable");
        assert_eq!(plain.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    }
}
