//! One thread that serves requests: its own runtime, listener, upstream connections, breakers and
//! journal. A request stays on the thread that accepted it and waits for no other.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use router::Fleet;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::client_io::{Activity, ClientIo};
use crate::drain::Phase;
use crate::node::Node;
use crate::observe;
use crate::pipeline;
use crate::upstream::Upstream;
use crate::usage::journal::Writer;

/// How often connections that were idle for too long are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(5);

/// What a request needs of the thread it runs on. It stays there, so what only it uses needs no locks.
pub struct Worker {
    /// What all threads share; nothing in it is locked by a request.
    pub node: Arc<Node>,
    /// Connections to providers.
    pub upstream: Upstream,
    /// Where usage is written down.
    pub journal: Writer,
    /// What is told to metrics, logs and traces.
    pub observed: observe::Queue,
    /// What it knows of its providers.
    pub health: Health,
}

/// What a thread knows of its providers' health. Locked by that thread only, and by the admin port for
/// a moment when somebody looks.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<Fleet>>);

impl Health {
    /// Never across an await.
    pub fn lock(&self) -> MutexGuard<'_, Fleet> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listening socket that several threads may open at the same address; the kernel spreads
/// connections over them.
///
/// # Errors
/// When the address cannot be bound.
pub fn listen(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Serves until the node drains and the last connection is done.
pub async fn run(worker: Rc<Worker>, listener: std::net::TcpListener, phases: watch::Receiver<Phase>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the listener cannot be used");
            return;
        }
    };
    let mut connections = tokio::task::JoinSet::new();
    let mut draining = phases.clone();
    let mut prune = tokio::time::interval(PRUNE_EVERY);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) if connections.len() < worker.node.limits.connections => {
                    connections.spawn_local(serve(worker.clone(), stream, peer, phases.clone()));
                }
                // Too many: the caller sees a closed connection, as with a full backlog.
                Ok(_) => worker.node.counters.refused_connections(),
                // Out of file descriptors, most likely. Pausing lets some come back; spinning would not.
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            _ = prune.tick() => worker.upstream.prune(),
            () = reached(&mut draining) => break,
        }
    }
    take_backlog(&worker, &listener, &mut connections, &phases).await;
    drop(listener);
    loop {
        tokio::select! {
            ended = connections.join_next() => if ended.is_none() { return },
            _ = prune.tick() => worker.upstream.prune(),
        }
    }
}

/// Waits until no new request is taken.
async fn reached(phases: &mut watch::Receiver<Phase>) {
    // An error means that the node is gone, which is as far as it gets.
    _ = phases.wait_for(|phase| *phase >= Phase::Draining).await;
}

/// Connections that the kernel had accepted for us when we stopped would be reset by closing the
/// listener: they are served once, and closed in order.
async fn take_backlog(
    worker: &Rc<Worker>,
    listener: &TcpListener,
    connections: &mut tokio::task::JoinSet<()>,
    phases: &watch::Receiver<Phase>,
) {
    while let Ok(Ok((stream, peer))) = tokio::time::timeout(Duration::from_millis(5), listener.accept()).await {
        connections.spawn_local(serve(worker.clone(), stream, peer, phases.clone()));
    }
}

async fn serve(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr, phases: watch::Receiver<Phase>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection was gone at once");
        return;
    }
    let activity = Activity::default();
    let (limits, drain) = (&worker.node.limits, worker.node.drain.clone());
    let io = ClientIo::new(stream, limits.client, activity.clone());
    let mut http = http1::Builder::new();
    http.max_headers(100).max_header_size(limits.head_bytes);
    let service = service_fn(move |request| {
        let (worker, activity) = (worker.clone(), activity.clone());
        async move { Ok::<_, std::convert::Infallible>(pipeline::serve(worker, peer.ip(), request, activity).await) }
    });
    let mut connection = std::pin::pin!(http.serve_connection(io, service));
    let (mut phases, gone) = (phases.clone(), phases);
    let mut draining = std::pin::pin!(reached(&mut phases));
    let mut waits = false;
    let mut told = false;
    let ended = poll_fn(|cx| {
        let ended = connection.as_mut().poll(cx);
        // Who is to be woken by the first change of the phase stays the same: to say it once is enough.
        let unchanged = waits && drain.phase() == Phase::Open && gone.has_changed().is_ok();
        if ended.is_ready() || told || unchanged {
            return ended;
        }
        waits = true;
        told = draining.as_mut().poll(cx).is_ready();
        if !told {
            return Poll::Pending;
        }
        connection.as_mut().graceful_shutdown();
        connection.as_mut().poll(cx)
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended early");
    }
}
