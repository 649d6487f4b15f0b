//! Joining and renewing over real TLS, against an authority and a server of a few lines.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateSigningRequestDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::transport::server::Connected;

use super::*;
use crate::snapshot::fixture::Folder;

const NODE: &str = "node_00000000000000000000000000000001";

struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("keys can be made");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).expect("it signs itself").der().clone();
        Self { der, issuer: Issuer::new(params, key) }
    }

    fn token(&self) -> JoinToken {
        let checked = format!("pmj_{}", "A".repeat(43));
        let hash: String = shared::digest::sha256(&[&self.der]).iter().map(|b| format!("{b:02x}")).collect();
        let text = format!("{checked}_{:06x}.{hash}", crc32c::crc32c(checked.as_bytes()) & 0x00ff_ffff);
        text.parse().expect("well formed")
    }

    fn server(&self, name: &str) -> tls::Identity {
        let key = KeyPair::generate().expect("keys can be made");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a DNS name");
        let leaf = params.signed_by(&key, &self.issuer).expect("it signs");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        tls::Identity { chain: vec![leaf.der().clone(), self.der.clone()], key }
    }
}

/// What the server saw and how it answers.
#[derive(Clone)]
struct Enrolment {
    authority: Arc<Authority>,
    seen: Arc<Mutex<Vec<String>>>,
    not_after_ms: i64,
}

impl Enrolment {
    fn certify(&self, csr_der: Vec<u8>, seen: String) -> Result<tonic::Response<proto::Certificate>, tonic::Status> {
        self.seen.lock().expect("nobody panics").push(seen);
        let bad = |e: rcgen::Error| tonic::Status::invalid_argument(e.to_string());
        let csr = CertificateSigningRequestDer::from(csr_der);
        let params = CertificateSigningRequestParams::from_der(&csr).map_err(bad)?;
        let certificate = params.signed_by(&self.authority.issuer).map_err(bad)?;
        Ok(tonic::Response::new(proto::Certificate {
            node_id: NODE.into(),
            certificate_der: certificate.der().to_vec(),
            ca_der: self.authority.der.to_vec(),
            not_after_ms: self.not_after_ms,
        }))
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl tonic::server::UnaryService<proto::JoinRequest> for Enrolment {
    type Response = proto::Certificate;
    type Future = Answer<Result<tonic::Response<proto::Certificate>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<proto::JoinRequest>) -> Self::Future {
        let request = request.into_inner();
        let answer = match request.display_name.as_str() {
            "refused" => Err(tonic::Status::permission_denied("the token was used")),
            _ => self.certify(request.csr_der, request.token),
        };
        Box::pin(async { answer })
    }
}

impl tonic::server::UnaryService<proto::RenewRequest> for Enrolment {
    type Response = proto::Certificate;
    type Future = Answer<Result<tonic::Response<proto::Certificate>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<proto::RenewRequest>) -> Self::Future {
        let peer = request.extensions().get::<PeerCertificate>().and_then(|peer| peer.0.clone());
        let answer = match peer {
            Some(certificate) => {
                let seen = format!("renewed with {:02x?}", shared::digest::sha256(&[&certificate]));
                self.certify(request.into_inner().csr_der, seen)
            }
            None => Err(tonic::Status::unauthenticated("no client certificate")),
        };
        Box::pin(async { answer })
    }
}

impl tonic::server::NamedService for Enrolment {
    const NAME: &'static str = "pointsman.v1.Enrolment";
}

impl tower_service::Service<http::Request<Body>> for Enrolment {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path().ends_with("/Join") {
                let codec = tonic_prost::ProstCodec::<proto::Certificate, proto::JoinRequest>::default();
                Ok(tonic::server::Grpc::new(codec).unary(service, request).await)
            } else {
                let codec = tonic_prost::ProstCodec::<proto::Certificate, proto::RenewRequest>::default();
                Ok(tonic::server::Grpc::new(codec).unary(service, request).await)
            }
        })
    }
}

#[derive(Clone)]
struct PeerCertificate(Option<Vec<u8>>);

struct Connection(TlsStream<TcpStream>);

impl Connected for Connection {
    type ConnectInfo = PeerCertificate;

    fn connect_info(&self) -> PeerCertificate {
        let shown = self.0.get_ref().1.peer_certificates();
        PeerCertificate(shown.and_then(|chain| chain.first()).map(|leaf| leaf.to_vec()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

async fn serve(enrolment: Enrolment, name: &str) -> SocketAddr {
    let config = tls::server(enrolment.authority.server(name), enrolment.authority.der.clone()).expect("usable");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (sender, receiver) = mpsc::channel(4);
    runtime::task::spawn("accept", async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(tcp).await {
                _ = sender.send(Ok::<_, Infallible>(Connection(stream))).await;
            }
        }
    });
    runtime::task::spawn("serve", async move {
        let server = tonic::transport::Server::builder().add_service(enrolment);
        _ = server.serve_with_incoming(ReceiverStream::new(receiver)).await;
    });
    address
}

fn enrolment() -> Enrolment {
    let not_after_ms = clock::now_ms() + 24 * 3600 * 1000;
    Enrolment { authority: Arc::new(Authority::new()), seen: Arc::default(), not_after_ms }
}

#[tokio::test]
async fn a_node_joins_once_and_renews() {
    let folder = Folder::new("identity");
    let enrolment = enrolment();
    let address = serve(enrolment.clone(), CONTROL_PLANE_NAME).await.to_string();
    let token = enrolment.authority.token();
    let (_stop, shutdown) = runtime::shutdown::channel();
    let start = |token: Option<String>| {
        let (folder, address, shutdown) = (folder.path().to_owned(), address.clone(), shutdown.clone());
        async move { Identity::load_or_join(&folder, &address, token.as_deref(), "n", &shutdown).await }
    };
    assert!(matches!(start(None).await, Err(IdentityError::NoToken)));
    let identity = start(Some(token.as_str().to_owned())).await.expect("it joins");
    assert_eq!(identity.node_id().to_string(), NODE);
    let file = folder.path().join(FILE);
    assert_eq!(fs::metadata(&file).expect("it was stored").permissions().mode() & 0o777, 0o600);

    let again = start(None).await.expect("it is stored");
    assert_eq!((again.node_id(), again.not_after_ms()), (identity.node_id(), identity.not_after_ms()));
    let first = again.current.load().stored.certificate.clone();
    again.renew(&again.dialer(&address)).await.expect("the certificate is known");
    let second = again.current.load().stored.certificate.clone();
    assert_ne!(first, second);
    again.renew(&again.dialer(&address)).await.expect("a new connection shows the new certificate");
    let seen = enrolment.seen.lock().expect("nobody panics").clone();
    let with = |certificate: &[u8]| format!("renewed with {:02x?}", shared::digest::sha256(&[certificate]));
    assert_eq!(seen, [token.as_str().to_owned(), with(&first), with(&second)]);
    let stored = Identity::load(folder.path()).expect("readable").expect("there");
    assert_eq!(stored.current.load().stored.certificate, again.current.load().stored.certificate);
    assert!(
        matches!(
            identity
                .renew(&Dialer::tls(&address, server_name(), {
                    let anonymous = Arc::new(tls::client(None, enrolment.authority.der.clone()).expect("usable"));
                    move || anonymous.clone()
                }))
                .await,
            Err(IdentityError::Refused(_))
        ),
        "nobody renews without a certificate"
    );
}

#[tokio::test]
async fn only_the_control_plane_of_the_token_is_believed() {
    let folder = Folder::new("impostor");
    let real = enrolment();
    let impostor = serve(enrolment(), CONTROL_PLANE_NAME).await.to_string();
    let misnamed = serve(real.clone(), "other.pointsman.internal").await.to_string();
    let token = real.authority.token();
    for address in [&impostor, &misnamed] {
        let refused = Identity::join(folder.path(), address, &token, "n").await;
        assert!(matches!(refused, Err(IdentityError::Unreachable(_))), "{refused:?}");
    }
    assert!(real.seen.lock().expect("nobody panics").is_empty(), "the token was shown to nobody");
    let right = serve(real.clone(), CONTROL_PLANE_NAME).await.to_string();
    let refused = Identity::join(folder.path(), &right, &token, "refused").await;
    assert!(matches!(refused, Err(IdentityError::Refused(_))), "{refused:?}");
    assert!(Identity::load(folder.path()).expect("readable").is_none(), "nothing is stored by a failure");
    Identity::join(folder.path(), &right, &token, "n").await.expect("the right one is believed");
}

#[test]
fn renewal_is_due_at_two_thirds_and_never_too_late() {
    let hour = 3_600_000;
    let cases = [(0, 16 * hour), (15 * hour, hour), (16 * hour, 0), (30 * hour, 0), (-90 * hour, 24 * hour)];
    for (now, expected) in cases {
        assert_eq!(renew_in_ms(0, 24 * hour, now), expected as u64, "at {now}");
    }
    assert_eq!(renew_in_ms(10, 5, 7), 0, "a certificate that ended before it began");
}

#[test]
fn a_damaged_file_says_so() {
    let folder = Folder::new("damaged-identity");
    fs::create_dir_all(folder.path()).expect("there is room");
    fs::write(folder.path().join(FILE), b"{").expect("there is room");
    assert!(matches!(Identity::load(folder.path()), Err(IdentityError::Damaged(_))));
}
