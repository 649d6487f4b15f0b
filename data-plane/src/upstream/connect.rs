//! Opening a connection: resolve, check each address, TCP, TLS, HTTP handshake.

use std::net::SocketAddr;
use std::sync::Arc;

use http::uri::Authority;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use shared::failure::{Failure, FailureKind};
use shared::snapshot::Scheme;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::body::SliceBody;
use super::resolve::Resolver;
use crate::egress::Egress;
use crate::sandbox;

/// Opens connections for one thread.
pub struct Connector {
    tls: TlsConnector,
    egress: Egress,
    resolver: Resolver,
}

impl Connector {
    /// With these trust anchors and address rules.
    pub fn new(tls: Arc<rustls::ClientConfig>, egress: Egress) -> Self {
        Self { tls: TlsConnector::from(tls), egress, resolver: Resolver::default() }
    }

    /// A connection that takes requests. The caller sets the deadline.
    pub async fn connect(&self, scheme: Scheme, authority: &Authority) -> Result<SendRequest<SliceBody>, Failure> {
        match scheme {
            Scheme::Sandbox => handshake(sandbox::connect()).await,
            Scheme::Http => handshake(self.tcp(authority, 80).await?).await,
            Scheme::Https => {
                let tcp = self.tcp(authority, 443).await?;
                let name = authority.host().trim_start_matches('[').trim_end_matches(']');
                let name = ServerName::try_from(name.to_owned())
                    .map_err(|e| failed("the provider's host name is not valid for TLS", e))?;
                let stream = self.tls.connect(name, tcp).await;
                handshake(stream.map_err(|e| failed("the TLS handshake with the provider failed", e))?).await
            }
        }
    }

    async fn tcp(&self, authority: &Authority, default_port: u16) -> Result<TcpStream, Failure> {
        let port = authority.port_u16().unwrap_or(default_port);
        let found = self.resolver.lookup(authority.host(), port).await;
        let found = found.map_err(|e| failed("the provider's host name does not resolve", e))?;
        let allowed = self.egress.filter(found.iter().copied());
        if allowed.is_empty() {
            let message = "the provider's address is in a range that this node may not call";
            return Err(Failure::new(FailureKind::EgressDenied, message)
                .context(format!("{} resolves to {found:?}; see the `egress` settings", authority.host())));
        }
        let mut last = None;
        for address in allowed {
            match connect_one(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some((address, error)),
            }
        }
        let context = last.map(|(address, error)| format!("{address}: {error}")).unwrap_or_default();
        Err(Failure::new(FailureKind::Connect, "the provider cannot be reached").context(context))
    }
}

async fn connect_one(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn handshake<S>(stream: S) -> Result<SendRequest<SliceBody>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(512 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed("the HTTP handshake with the provider failed", e))?;
    // Ends when the sender is dropped, or the provider closes. Its errors reach the caller of the
    // request that they broke.
    runtime::task::spawn_local("upstream connection", async move { _ = connection.await });
    Ok(sender)
}

fn failed(message: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Connect, message).context(error.to_string())
}
