//! Where nodes connect: TCP with mutual TLS, or the other plane inside the same process. Either way
//! every connection carries a [`Peer`], and what it proves is checked by the services.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use runtime::rpc::BoxIo;
use runtime::shutdown::Shutdown;
use shared::ids::NodeId;

use super::authority::{Authority, AuthorityError, LEAF_LIFE, Peer};
use crate::app::App;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at the same time; more connections wait in the system's queue.
const MAX_HANDSHAKES: usize = 256;
/// Calls at the same time on one connection: a node needs three.
const MAX_STREAMS: u32 = 16;
/// Pause after the system refuses a connection, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// For open calls to end when asked to stop.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// Ends connections whose other end vanished.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A connection and who is at its other end.
pub struct Connection {
    io: BoxIo,
    peer: Peer,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// Serves nodes over TLS on `listener` until the app is asked to stop. `names` are the host names and
/// addresses that the server's certificate carries beside its fixed ones; the certificate is made anew
/// at two thirds of its life, for the connections after that.
///
/// # Errors
/// When publishing was not started, a name is not usable, or the server fails.
pub async fn serve_tls(app: App, routes: Routes, listener: TcpListener, names: Vec<String>) -> Result<(), ListenError> {
    let authority = app.publish.authority().cloned().ok_or(ListenError::NotStarted)?;
    let config = Arc::new(RwLock::new(acceptor(&authority, &names, &app)?));
    runtime::task::spawn("server-certificate", renew(app.clone(), authority, names, config.clone()));
    let (sender, connections) = mpsc::channel(16);
    let accepting = runtime::task::spawn("accept-nodes", accept(listener, config, sender, app.shutdown.clone()));
    let served = serve(routes, ReceiverStream::new(connections), app.shutdown.clone()).await;
    accepting.abort();
    served
}

/// Serves the data plane of the same process, whose node id is known and trusted, over the ends that
/// [`runtime::rpc::Dialer::in_process`] gives.
///
/// # Errors
/// When the server fails.
pub async fn serve_in_process(
    app: App,
    routes: Routes,
    ends: mpsc::Receiver<DuplexStream>,
    node: NodeId,
) -> Result<(), ListenError> {
    use tokio_stream::StreamExt as _;
    let peer = Peer { node: Some(node) };
    let connections =
        ReceiverStream::new(ends).map(move |io| io::Result::Ok(Connection { io: Box::new(io), peer: peer.clone() }));
    serve(routes, connections, app.shutdown.clone()).await
}

/// Why nodes cannot be served.
#[derive(Debug)]
pub enum ListenError {
    /// [`super::start`] was not called.
    NotStarted,
    /// The server's certificate cannot be made.
    Certificate(AuthorityError),
    /// The server ended.
    Transport(tonic::transport::Error),
}

impl std::fmt::Display for ListenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotStarted => f.write_str("publishing was not started"),
            Self::Certificate(e) => write!(f, "server certificate: {e}"),
            Self::Transport(e) => write!(f, "gRPC server: {e}"),
        }
    }
}

impl std::error::Error for ListenError {}

impl From<AuthorityError> for ListenError {
    fn from(e: AuthorityError) -> Self {
        Self::Certificate(e)
    }
}

async fn serve<S>(routes: Routes, connections: S, shutdown: Shutdown) -> Result<(), ListenError>
where
    S: tokio_stream::Stream<Item = io::Result<Connection>> + Send,
{
    let stopping = shutdown.clone();
    let served = Server::builder()
        .max_concurrent_streams(Some(MAX_STREAMS))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .http2_adaptive_window(Some(true))
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, async move { shutdown.asked().await });
    let late = async {
        stopping.asked().await;
        tokio::time::sleep(STOP_WITHIN).await;
    };
    tokio::select! {
        served = served => served.map_err(ListenError::Transport),
        // A node that does not read what it is told must not keep the process.
        () = late => Ok(()),
    }
}

fn acceptor(authority: &Authority, names: &[String], app: &App) -> Result<TlsAcceptor, AuthorityError> {
    Ok(TlsAcceptor::from(Arc::new(authority.server_config(names, app.now_ms())?)))
}

async fn renew(app: App, authority: Arc<Authority>, names: Vec<String>, config: Arc<RwLock<TlsAcceptor>>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LEAF_LIFE / 3 * 2) => {}
            () = app.shutdown.asked() => return,
        }
        match acceptor(&authority, &names, &app) {
            Ok(fresh) => *config.write().unwrap_or_else(std::sync::PoisonError::into_inner) = fresh,
            Err(e) => tracing::error!(error = %e, "the server's certificate cannot be renewed"),
        }
    }
}

async fn accept(
    listener: TcpListener,
    config: Arc<RwLock<TlsAcceptor>>,
    connections: mpsc::Sender<io::Result<Connection>>,
    shutdown: Shutdown,
) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.asked() => return,
        };
        let (tcp, address) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!(error = %e, "a node's connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let acceptor = config.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let connections = connections.clone();
        runtime::task::spawn("handshake", async move {
            let outcome = tokio::time::timeout(HANDSHAKE, handshake(acceptor, tcp)).await;
            drop(permit);
            match outcome {
                // Gone only when the server stops.
                Ok(Ok(connection)) => _ = connections.send(Ok(connection)).await,
                Ok(Err(e)) => tracing::info!(%address, error = %e, "a TLS handshake failed"),
                Err(_) => tracing::info!(%address, "a TLS handshake took too long"),
            }
        });
    }
}

async fn handshake(acceptor: TlsAcceptor, tcp: TcpStream) -> io::Result<Connection> {
    tcp.set_nodelay(true)?;
    let tls = acceptor.accept(tcp).await?;
    let shown = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = shown.map(Peer::of_certificate).unwrap_or_default();
    Ok(Connection { io: Box::new(tls), peer })
}
