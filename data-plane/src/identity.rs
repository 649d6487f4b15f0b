//! Who this node is to the control plane: a private key, the certificate that the control plane gave
//! it, and the authority it trusts. Got once with a join token, renewed at two thirds of its life.
//!
//! The key never leaves the node. Losing all of it means joining again, not an outage: requests are
//! served without it.

mod join;
mod token;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::prelude::{BASE64_STANDARD, Engine};
use runtime::backoff::Backoff;
use runtime::rpc::Dialer;
use runtime::shutdown::Shutdown;
use runtime::tls::{self, CONTROL_PLANE_NAME, TlsError};
use runtime::{clock, random};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde::{Deserialize, Serialize};
use shared::ids::NodeId;
use shared::proto;

use crate::rpc::enrolment_client::EnrolmentClient;
use crate::snapshot::seal::write_whole;

pub use token::{BadToken, JoinToken};

const FILE: &str = "identity.json";
/// How long one call to the control plane may take, beyond connecting.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Windows between tries to renew.
const RENEW_RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// Why a node has no identity.
#[derive(Debug)]
pub enum IdentityError {
    /// The folder or file cannot be used.
    File(PathBuf, io::Error),
    /// The file is there and not understood; joining again needs it moved away.
    Damaged(PathBuf),
    /// Nothing is stored and no token was given.
    NoToken,
    /// The token is not one.
    Token(BadToken),
    /// A key could not be made.
    Key(String),
    /// The control plane cannot be reached, or is not the one that the token names.
    Unreachable(String),
    /// The control plane said no.
    Refused(String),
    /// What the control plane gave does not fit the key or the authority.
    Certificate(String),
    /// The process is stopping.
    Stopping,
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, e) => write!(f, "{}: {e}", path.display()),
            Self::Damaged(path) => write!(f, "{}: not an identity; move it away to join again", path.display()),
            Self::NoToken => f.write_str("this node has not joined yet and was given no join token"),
            Self::Token(e) => write!(f, "join token: {e}"),
            Self::Key(e) => write!(f, "making a key: {e}"),
            Self::Unreachable(e) => write!(f, "the control plane cannot be reached: {e}"),
            Self::Refused(e) => write!(f, "the control plane refused: {e}"),
            Self::Certificate(e) => write!(f, "the control plane gave an unusable certificate: {e}"),
            Self::Stopping => f.write_str("stopping"),
        }
    }
}

impl std::error::Error for IdentityError {}

impl From<TlsError> for IdentityError {
    fn from(e: TlsError) -> Self {
        Self::Certificate(e.to_string())
    }
}

/// A node's identity, current at any time.
pub struct Identity {
    folder: PathBuf,
    node_id: NodeId,
    current: ArcSwap<Current>,
}

struct Current {
    stored: Stored,
    config: Arc<ClientConfig>,
}

/// The file: key and certificate change together, so they lie in one.
#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    node_id: NodeId,
    #[serde(with = "text")]
    key_pkcs8: Vec<u8>,
    #[serde(with = "text")]
    certificate: Vec<u8>,
    #[serde(with = "text")]
    ca: Vec<u8>,
    /// By this machine's clock.
    issued_at_ms: i64,
    not_after_ms: i64,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.node_id)
    }
}

impl Identity {
    /// The identity stored in `folder`; `None` when there is none.
    ///
    /// # Errors
    /// When it is there but cannot be used.
    pub fn load(folder: &Path) -> Result<Option<Arc<Self>>, IdentityError> {
        let path = folder.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(IdentityError::File(path, e)),
        };
        let stored: Stored = serde_json::from_slice(&text).map_err(|_| IdentityError::Damaged(path))?;
        Self::new(folder, stored).map(|identity| Some(Arc::new(identity)))
    }

    /// The stored identity, or a new one got with `token` from the control plane at `authority`
    /// ("host:port"). Tries again for as long as the control plane cannot be reached.
    ///
    /// # Errors
    /// When there is neither, the control plane refuses, or the process stops.
    pub async fn load_or_join(
        folder: &Path,
        authority: &str,
        token: Option<&str>,
        display_name: &str,
        shutdown: &Shutdown,
    ) -> Result<Arc<Self>, IdentityError> {
        if let Some(identity) = Self::load(folder)? {
            return Ok(identity);
        }
        let token: JoinToken = token.ok_or(IdentityError::NoToken)?.parse().map_err(IdentityError::Token)?;
        let mut backoff = Backoff::default();
        loop {
            let joining = Self::join(folder, authority, &token, display_name);
            let result = tokio::select! {
                result = joining => result,
                () = shutdown.asked() => return Err(IdentityError::Stopping),
            };
            let Err(IdentityError::Unreachable(reason)) = result else { return result };
            let wait = backoff.after_failure(random::seed());
            tracing::warn!(authority, reason, ?wait, "cannot join yet");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.asked() => return Err(IdentityError::Stopping),
            }
        }
    }

    /// Joins once and stores what it got. The token is spent when this succeeds.
    ///
    /// # Errors
    /// As the variants say; nothing is stored then.
    pub async fn join(
        folder: &Path,
        authority: &str,
        token: &JoinToken,
        display_name: &str,
    ) -> Result<Arc<Self>, IdentityError> {
        let config = Arc::new(join::pinned_client(token.ca_sha256())?);
        let dialer = Dialer::tls(authority, server_name(), move || config.clone());
        let (key, csr_der) = new_key()?;
        let request =
            proto::JoinRequest { token: token.as_str().to_owned(), csr_der, display_name: display_name.to_owned() };
        let mut client = connect(&dialer).await?;
        let certificate = answer(tokio::time::timeout(CALL_TIMEOUT, client.join(request)).await)?;
        if shared::digest::sha256(&[&certificate.ca_der]) != *token.ca_sha256() {
            return Err(IdentityError::Certificate("its authority is not the one that the token names".into()));
        }
        let node_id = certificate.node_id.parse().map_err(|e| IdentityError::Certificate(format!("node id: {e}")))?;
        let identity = Self::new(folder, stored(node_id, key, certificate))?;
        identity.save()?;
        tracing::info!(node = %identity.node_id, "joined");
        Ok(Arc::new(identity))
    }

    /// The name that the control plane gave this node.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// When the certificate ends, ms since 1970.
    pub fn not_after_ms(&self) -> i64 {
        self.current.load().stored.not_after_ms
    }

    /// TLS settings with the current certificate; for one connection.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.current.load().config.clone()
    }

    /// Connects to the control plane at `authority`, each time with the certificate of that moment.
    pub fn dialer(self: &Arc<Self>, authority: &str) -> Dialer {
        let identity = self.clone();
        Dialer::tls(authority, server_name(), move || identity.client_config())
    }

    /// Renews at two thirds of the certificate's life, again and again, until asked to stop. A
    /// failure is logged and tried again; what is there stays in use.
    pub async fn keep_renewed(self: Arc<Self>, dialer: Dialer, shutdown: Shutdown) {
        let mut backoff = Backoff::new(RENEW_RETRY.0, RENEW_RETRY.1);
        let mut wait = self.renew_in(clock::now_ms());
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.asked() => return,
            }
            // Sleep may be long and the wall clock may have been set meanwhile.
            wait = self.renew_in(clock::now_ms());
            if !wait.is_zero() {
                continue;
            }
            wait = match self.renew(&dialer).await {
                Ok(()) => {
                    backoff = Backoff::new(RENEW_RETRY.0, RENEW_RETRY.1);
                    tracing::info!(not_after_ms = self.not_after_ms(), "certificate renewed");
                    // Even a clock that is far off must not turn this into a busy loop.
                    self.renew_in(clock::now_ms()).max(RENEW_RETRY.0)
                }
                Err(e) => {
                    let wait = RENEW_RETRY.0 + backoff.after_failure(random::seed());
                    let left_ms = self.not_after_ms().saturating_sub(clock::now_ms());
                    tracing::warn!(error = %e, left_ms, ?wait, "the certificate could not be renewed");
                    wait
                }
            };
        }
    }

    /// Renews now, with a new key. Connections opened from then on use it.
    ///
    /// # Errors
    /// As the variants say; the old certificate then stays in use.
    pub async fn renew(&self, dialer: &Dialer) -> Result<(), IdentityError> {
        let (key, csr_der) = new_key()?;
        let mut client = connect(dialer).await?;
        let request = proto::RenewRequest { csr_der };
        let certificate = answer(tokio::time::timeout(CALL_TIMEOUT, client.renew(request)).await)?;
        if certificate.node_id != self.node_id.to_string() {
            return Err(IdentityError::Certificate("it is another node's".into()));
        }
        let next = current(stored(self.node_id, key, certificate))?;
        let before = self.current.swap(Arc::new(next));
        self.save().inspect_err(|_| self.current.store(before))
    }

    fn new(folder: &Path, stored: Stored) -> Result<Self, IdentityError> {
        let node_id = stored.node_id;
        Ok(Self { folder: folder.to_owned(), node_id, current: ArcSwap::from_pointee(current(stored)?) })
    }

    fn save(&self) -> Result<(), IdentityError> {
        let path = self.folder.join(FILE);
        let failed = |e| IdentityError::File(path.clone(), e);
        fs::create_dir_all(&self.folder).map_err(failed)?;
        let text = serde_json::to_vec_pretty(&self.current.load().stored).map_err(|e| failed(e.into()))?;
        write_whole(&path, &text).map_err(failed)
    }

    /// From `now_ms` to two thirds of the certificate's life.
    fn renew_in(&self, now_ms: i64) -> Duration {
        let current = self.current.load();
        Duration::from_millis(renew_in_ms(current.stored.issued_at_ms, current.stored.not_after_ms, now_ms))
    }
}

fn renew_in_ms(issued_at_ms: i64, not_after_ms: i64, now_ms: i64) -> u64 {
    let life = not_after_ms.saturating_sub(issued_at_ms).max(0);
    let at = issued_at_ms.saturating_add(life / 3 * 2);
    // A wall clock that was set back must not put renewal off past the certificate's life.
    u64::try_from(at.saturating_sub(now_ms).min(life)).unwrap_or(0)
}

fn current(stored: Stored) -> Result<Current, IdentityError> {
    let ca = CertificateDer::from(stored.ca.clone());
    let chain = vec![CertificateDer::from(stored.certificate.clone()), ca.clone()];
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(stored.key_pkcs8.clone()));
    let config = tls::client(Some(tls::Identity { chain, key }), ca)?;
    Ok(Current { stored, config: Arc::new(config) })
}

fn stored(node_id: NodeId, key_pkcs8: Vec<u8>, got: proto::Certificate) -> Stored {
    Stored {
        node_id,
        key_pkcs8,
        certificate: got.certificate_der,
        ca: got.ca_der,
        issued_at_ms: clock::now_ms(),
        not_after_ms: got.not_after_ms,
    }
}

/// A fresh P-256 key (PKCS#8) and a request to certify it. The control plane chooses the subject.
fn new_key() -> Result<(Vec<u8>, Vec<u8>), IdentityError> {
    let failed = |e: rcgen::Error| IdentityError::Key(e.to_string());
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let request = rcgen::CertificateParams::default().serialize_request(&key).map_err(failed)?;
    Ok((key.serialize_der(), request.der().to_vec()))
}

async fn connect(dialer: &Dialer) -> Result<EnrolmentClient<tonic::transport::Channel>, IdentityError> {
    let channel = dialer.connect().await.map_err(|e| IdentityError::Unreachable(runtime::rpc::cause(&e)))?;
    Ok(EnrolmentClient::new(channel))
}

type Called = Result<Result<tonic::Response<proto::Certificate>, tonic::Status>, tokio::time::error::Elapsed>;

fn answer(called: Called) -> Result<proto::Certificate, IdentityError> {
    use tonic::Code;
    let status = match called {
        Ok(Ok(response)) => return Ok(response.into_inner()),
        Ok(Err(status)) => status,
        Err(_) => return Err(IdentityError::Unreachable("no answer in time".into())),
    };
    let text = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::ResourceExhausted
        | Code::Aborted => Err(IdentityError::Unreachable(text)),
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => Err(IdentityError::Refused(text)),
    }
}

fn server_name() -> ServerName<'static> {
    ServerName::try_from(CONTROL_PLANE_NAME).expect("a constant that is a DNS name")
}

/// Bytes as base64 text.
mod text {
    use super::{BASE64_STANDARD, Deserialize, Engine};

    pub(super) fn serialize<S: serde::Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        BASE64_STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
