//! How one plane reaches the other: a `Dialer` opens gRPC channels over mutual TLS, or inside the
//! process when both planes share one. Callers see a `tonic` channel and no transport.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// How long TCP and TLS together may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes in flight each way inside one process.
const IN_PROCESS_BUFFER: usize = 256 * 1024;

/// A byte stream of any transport.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Why a connection failed: tonic's own text is only "transport error", the cause is behind it.
pub fn cause(error: &tonic::transport::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// A connected transport.
pub type BoxIo = Box<dyn Io>;

type Dialing = Pin<Box<dyn Future<Output = io::Result<BoxIo>> + Send>>;

/// Opens connections to the other plane. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    target: Arc<str>,
    dial: Arc<dyn Fn() -> Dialing + Send + Sync>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dialer({})", self.target)
    }
}

impl Dialer {
    /// A dialer whose connections `dial` makes; `target` names it in logs.
    pub fn new<F, T>(target: &str, dial: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<T>> + Send + 'static,
        T: Io + 'static,
    {
        let dial = move || -> Dialing {
            let dialing = dial();
            Box::pin(async move { Ok(Box::new(dialing.await?) as BoxIo) })
        };
        Self { target: target.into(), dial: Arc::new(dial) }
    }

    /// TLS to `authority` ("host:port"), whose certificate must carry `server_name`. `config` is
    /// asked at every connection, so that a renewed certificate takes effect with the next one.
    pub fn tls(
        authority: &str,
        server_name: ServerName<'static>,
        config: impl Fn() -> Arc<ClientConfig> + Send + Sync + 'static,
    ) -> Self {
        let address: Arc<str> = authority.into();
        Self::new(authority, move || {
            let (address, name, config) = (address.clone(), server_name.clone(), config());
            async move {
                let tcp = TcpStream::connect(&*address).await?;
                tcp.set_nodelay(true)?;
                TlsConnector::from(config).connect(name, tcp).await
            }
        })
    }

    /// Both ends inside this process. The server takes its ends from the receiver.
    pub fn in_process() -> (Self, mpsc::Receiver<DuplexStream>) {
        let (sender, receiver) = mpsc::channel(16);
        let dialer = Self::new("in-process", move || {
            let sender = sender.clone();
            async move {
                let (ours, theirs) = tokio::io::duplex(IN_PROCESS_BUFFER);
                let gone = |_| io::Error::new(io::ErrorKind::ConnectionRefused, "the other plane has stopped");
                sender.send(theirs).await.map_err(gone)?;
                Ok(ours)
            }
        });
        (dialer, receiver)
    }

    /// Where it connects to, for logs.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// One connection, as a gRPC channel. The channel dials again by itself when the connection
    /// breaks between calls; a stream that breaks ends.
    ///
    /// # Errors
    /// When the transport or TLS fails, or takes longer than [`CONNECT_TIMEOUT`].
    pub async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        // The URI only fills the `:authority` of requests; where to connect is the dialer's.
        Endpoint::from_static("http://pointsman.internal")
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_adaptive_window(true)
            .connect_with_connector(Connector(self.clone()))
            .await
    }
}

/// A dialer as tonic wants it.
struct Connector(Dialer);

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<BoxIo>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dialing = (self.0.dial)();
        Box::pin(async move { dialing.await.map(TokioIo::new) })
    }
}
