//! The internal certificate authority: made at first start, its key sealed by the vault. Nodes join
//! with a single-use token and get certificates of 24 hours; the server's own leaf is made in process.
//!
//! It trusts nothing that a certificate request says but its public key.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tonic::{Request, Response, Status};

use runtime::tls::{CONTROL_PLANE_NAME, Identity};
use shared::digest::sha256;
use shared::ids::{JoinTokenId, NodeId};
use shared::proto;

use super::Publish;
use crate::app::App;
use crate::auth::token::{self, hex};
use crate::db::{Db, Tx};
use crate::vault::{Place, Secret};

/// Life of a node's certificate, and of the server's own.
pub const LEAF_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// Life of the authority.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Certificates are valid from a little earlier: clocks differ.
const LEEWAY: Duration = Duration::from_secs(5 * 60);
/// Largest certificate request.
const MAX_CSR: usize = 16 * 1024;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// The node of a verified certificate, or the one inside this process; `None` = nobody proved
    /// anything, which is enough for joining only.
    pub node: Option<NodeId>,
}

impl Peer {
    /// Who a verified certificate names: the URI `spiffe://…/node/<id>` among its names.
    pub fn of_certificate(der: &CertificateDer<'_>) -> Self {
        use x509_parser::extensions::GeneralName;
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else { return Self::default() };
        let Ok(Some(names)) = certificate.subject_alternative_name() else { return Self::default() };
        let node = names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix("spiffe://")?.split_once("/node/")?.1.parse().ok(),
            _ => None,
        });
        Self { node }
    }
}

/// Why the authority cannot work.
#[derive(Debug)]
pub enum AuthorityError {
    /// The database.
    Database(sqlx::Error),
    /// The stored key cannot be opened.
    Sealed(crate::vault::VaultError),
    /// A certificate or key cannot be made or read.
    Certificate(rcgen::Error),
    /// What is stored is damaged.
    Damaged,
    /// The server's TLS settings.
    Tls(runtime::tls::TlsError),
}

impl fmt::Display for AuthorityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database(e) => write!(f, "authority: {e}"),
            Self::Sealed(e) => write!(f, "the authority's key cannot be opened: {e}"),
            Self::Certificate(e) => write!(f, "authority: {e}"),
            Self::Damaged => f.write_str("the stored authority is damaged"),
            Self::Tls(e) => write!(f, "authority: {e}"),
        }
    }
}

impl std::error::Error for AuthorityError {}

impl From<sqlx::Error> for AuthorityError {
    fn from(e: sqlx::Error) -> Self {
        Self::Database(e)
    }
}

impl From<rcgen::Error> for AuthorityError {
    fn from(e: rcgen::Error) -> Self {
        Self::Certificate(e)
    }
}

/// The authority, opened.
pub struct Authority {
    ca: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    lineage: String,
}

/// Where its key is sealed.
pub const PLACE: Place<'_> = Place { scope: "authority", id: "ca", version: 1 };

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.lineage)
    }
}

impl Authority {
    /// Opens the stored authority, or makes it. Replicas that start together end up with one.
    ///
    /// # Errors
    /// When the database, the vault or the stored material fails.
    pub async fn open_or_create(app: &App) -> Result<Self, AuthorityError> {
        let lineage = hex(&app.lineage);
        if stored(&app.db).await?.is_none() {
            let (certificate, key) = make_ca(&lineage, app.now_ms())?;
            let sealed = app.vault.seal(&PLACE, &Secret::new(key.serialize_der()));
            sqlx::query(
                "INSERT INTO authority (name, certificate, sealed_key, created_at_ms) VALUES ('ca', $1, $2, $3)
                 ON CONFLICT (name) DO NOTHING",
            )
            .bind(STANDARD.encode(&certificate))
            .bind(sealed)
            .bind(app.now_ms())
            .execute(app.db.pool())
            .await?;
        }
        let (certificate, sealed) = stored(&app.db).await?.ok_or(AuthorityError::Damaged)?;
        let ca = CertificateDer::from(STANDARD.decode(certificate).map_err(|_| AuthorityError::Damaged)?);
        let key = app.vault.open(&PLACE, &sealed).map_err(AuthorityError::Sealed)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.expose().to_vec()));
        let key = KeyPair::from_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)?;
        Ok(Self { issuer: Issuer::from_ca_cert_der(&ca, key)?, ca, lineage })
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// A certificate for a node's key.
    ///
    /// # Errors
    /// When the request is damaged or not signed by its own key.
    pub fn issue(&self, node: NodeId, csr: &[u8], now_ms: i64) -> Result<proto::Certificate, rcgen::Error> {
        let mut request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))?;
        // Of the request only the key is used.
        request.params = leaf(&node.to_string(), now_ms, ExtendedKeyUsagePurpose::ClientAuth);
        request.params.subject_alt_names = vec![
            SanType::URI(format!("spiffe://{}/node/{node}", self.lineage).try_into()?),
            SanType::DnsName(format!("{}.node.pointsman.internal", node.to_string().replace('_', "-")).try_into()?),
        ];
        let certificate = request.signed_by(&self.issuer)?;
        Ok(proto::Certificate {
            node_id: node.to_string(),
            certificate_der: certificate.der().to_vec(),
            ca_der: self.ca.to_vec(),
            not_after_ms: now_ms.saturating_add(millis(LEAF_LIFE)),
        })
    }

    /// TLS settings of the server with a fresh leaf: [`CONTROL_PLANE_NAME`], 127.0.0.1, and `names`
    /// (host names or addresses).
    ///
    /// # Errors
    /// When a name is neither, or the leaf cannot be made.
    pub fn server_config(&self, names: &[String], now_ms: i64) -> Result<ServerConfig, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = leaf("control plane", now_ms, ExtendedKeyUsagePurpose::ServerAuth);
        params.subject_alt_names =
            vec![SanType::DnsName(CONTROL_PLANE_NAME.try_into()?), SanType::IpAddress(IpAddr::from([127, 0, 0, 1]))];
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        let identity = Identity {
            chain: vec![certificate.der().clone(), self.ca.clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        };
        runtime::tls::server(identity, self.ca.clone()).map_err(AuthorityError::Tls)
    }

    /// Makes a join token in this transaction, valid once and for `life_ms`. The text is given here and never again.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn make_token(
        &self,
        app: &App,
        tx: &mut Tx,
        labels: &BTreeMap<String, String>,
        life_ms: i64,
    ) -> Result<JoinToken, sqlx::Error> {
        let now_ms = app.now_ms();
        let id = JoinTokenId::new(u64::try_from(now_ms).unwrap_or_default(), runtime::random::bytes());
        let secret = token::generate(token::JOIN);
        let expires_at_ms = now_ms.saturating_add(life_ms);
        sqlx::query(
            "INSERT INTO join_tokens (id, hash, labels, created_at_ms, expires_at_ms) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(id.to_string())
        .bind(token::hash(secret.expose()))
        .bind(serde_json::json!(labels).to_string())
        .bind(now_ms)
        .bind(expires_at_ms)
        .execute(&mut **tx)
        .await?;
        let text = format!("{}.{}", secret.expose_str().unwrap_or_default(), hex(&sha256(&[&self.ca])));
        Ok(JoinToken { id, text, expires_at_ms })
    }
}

/// A fresh join token.
pub struct JoinToken {
    /// Names it in lists and logs.
    pub id: JoinTokenId,
    /// The token, a dot, and the SHA-256 of the authority's certificate, which lets the node check
    /// whom it talks to before it has anything else.
    pub text: String,
    /// Milliseconds since 1970.
    pub expires_at_ms: i64,
}

/// `Join` and `Renew`. Cheap to clone.
#[derive(Clone)]
pub struct Enrolment {
    app: App,
    publish: Arc<Publish>,
    authority: Arc<Authority>,
}

impl fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Enrolment")
    }
}

impl Enrolment {
    /// Over an open authority.
    pub fn new(app: App, publish: Arc<Publish>, authority: Arc<Authority>) -> Self {
        Self { app, publish, authority }
    }

    /// Uses the token up and registers the node, in one transaction.
    async fn admit(&self, node: NodeId, request: &proto::JoinRequest, now_ms: i64) -> Result<bool, sqlx::Error> {
        // The part behind the dot is for the node.
        let secret = request.token.split('.').next().unwrap_or_default();
        let mut tx = self.app.db.begin().await?;
        let used: Option<(String,)> = sqlx::query_as(
            "UPDATE join_tokens SET used_at_ms = $1, node_id = $2
             WHERE hash = $3 AND used_at_ms = 0 AND expires_at_ms > $1 RETURNING labels",
        )
        .bind(now_ms)
        .bind(node.to_string())
        .bind(token::hash(secret.as_bytes()))
        .fetch_optional(&mut *tx)
        .await?;
        let Some((labels,)) = used else { return Ok(false) };
        sqlx::query(
            "INSERT INTO nodes (id, display_name, version, labels, joined_at_ms, last_seen_ms, certificate_not_after_ms)
             VALUES ($1, $2, '', $3, $4, $4, $5)",
        )
        .bind(node.to_string())
        .bind(request.display_name.chars().take(100).collect::<String>())
        .bind(labels)
        .bind(now_ms)
        .bind(now_ms.saturating_add(millis(LEAF_LIFE)))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(true)
    }
}

#[tonic::async_trait]
impl crate::rpc::enrolment_server::Enrolment for Enrolment {
    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::Certificate>, Status> {
        let request = request.into_inner();
        let now_ms = self.app.now_ms();
        let node = NodeId::new(u64::try_from(now_ms).unwrap_or_default(), runtime::random::bytes());
        if request.token.len() > 256 || request.csr_der.len() > MAX_CSR {
            return Err(Status::invalid_argument("the request is too large"));
        }
        // Before the token is used up: a damaged request must not cost one.
        let certificate = self.issue(node, &request.csr_der, now_ms)?;
        match self.admit(node, &request, now_ms).await {
            Ok(true) => {
                tracing::info!(%node, name = request.display_name, "a node joined");
                Ok(Response::new(certificate))
            }
            // One answer for unknown, used and expired.
            Ok(false) => Err(Status::permission_denied("the join token is not valid")),
            Err(e) => Err(unavailable(&e)),
        }
    }

    async fn renew(&self, request: Request<proto::RenewRequest>) -> Result<Response<proto::Certificate>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let node = peer.node.ok_or_else(|| Status::unauthenticated("a node certificate is needed"))?;
        if self.publish.fleet.is_denied(node) {
            return Err(Status::permission_denied("this node was revoked"));
        }
        let csr = request.into_inner().csr_der;
        if csr.len() > MAX_CSR {
            return Err(Status::invalid_argument("the request is too large"));
        }
        let certificate = self.issue(node, &csr, self.app.now_ms())?;
        // The list in memory may be a second old; the row decides.
        let renewed = sqlx::query("UPDATE nodes SET certificate_not_after_ms = $1 WHERE id = $2 AND revoked_at_ms = 0")
            .bind(certificate.not_after_ms)
            .bind(node.to_string())
            .execute(self.app.db.pool())
            .await
            .map_err(|e| unavailable(&e))?;
        match renewed.rows_affected() {
            0 => Err(Status::permission_denied("this node was revoked")),
            _ => Ok(Response::new(certificate)),
        }
    }
}

impl Enrolment {
    fn issue(&self, node: NodeId, csr: &[u8], now_ms: i64) -> Result<proto::Certificate, Status> {
        self.authority
            .issue(node, csr, now_ms)
            .map_err(|_| Status::invalid_argument("csr_der is not a signed certificate request"))
    }
}

async fn stored(db: &Db) -> Result<Option<(String, String)>, sqlx::Error> {
    sqlx::query_as("SELECT certificate, sealed_key FROM authority WHERE name = 'ca'").fetch_optional(db.pool()).await
}

fn make_ca(lineage: &str, now_ms: i64) -> Result<(Vec<u8>, KeyPair), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = named(&format!("Pointsman {lineage}"), now_ms, AUTHORITY_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok((params.self_signed(&key)?.der().to_vec(), key))
}

fn leaf(name: &str, now_ms: i64, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = named(name, now_ms, LEAF_LIFE);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    params
}

fn named(name: &str, now_ms: i64, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(u64::try_from(now_ms).unwrap_or_default());
    params.not_before = now - LEEWAY;
    params.not_after = now + life;
    params
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn unavailable(e: &sqlx::Error) -> Status {
    tracing::error!(error = %e, "enrolment cannot reach the database");
    Status::unavailable("the database cannot be reached")
}
