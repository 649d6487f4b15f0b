//! A TCP proxy that breaks connections on command: between two processes of a test it cuts, delays,
//! or holds one direction. It looks at no byte it carries.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What is done to connections, existing ones and new ones alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// New connections are closed at once.
    pub refuse: bool,
    /// Bytes towards the server wait until healed.
    pub hold_to_server: bool,
    /// Bytes towards the client wait until healed.
    pub hold_to_client: bool,
    /// Every piece of either direction is late by this much.
    pub delay: Duration,
}

impl Fault {
    /// Everything passes.
    pub const NONE: Self = Self { refuse: false, hold_to_server: false, hold_to_client: false, delay: Duration::ZERO };

    /// A partition: nothing passes, nothing is closed.
    pub const PARTITION: Self = Self { hold_to_server: true, hold_to_client: true, ..Self::NONE };
}

/// A running proxy. Dropping it closes everything.
pub struct FaultProxy {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    cut: watch::Sender<u64>,
    carried: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl FaultProxy {
    /// Listens on a free port and forwards to `target`.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (fault, faults) = watch::channel(Fault::NONE);
        let (cut, cuts) = watch::channel(0);
        let carried = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(accept(listener, target, faults, cuts, carried.clone()));
        Ok(Self { address, fault, cut, carried, task })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Closes all connections there are.
    pub fn cut_all(&self) {
        self.cut.send_modify(|n| *n += 1);
    }

    /// Bytes carried both ways so far.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.cut_all();
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    faults: watch::Receiver<Fault>,
    cuts: watch::Receiver<u64>,
    carried: Arc<AtomicU64>,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        if faults.borrow().refuse {
            continue;
        }
        let (faults, mut cuts, carried) = (faults.clone(), cuts.clone(), carried.clone());
        cuts.mark_unchanged();
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(target).await else { return };
            drop((client.set_nodelay(true), server.set_nodelay(true)));
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let up = carry(from_client, to_server, faults.clone(), |f| f.hold_to_server, &carried);
            let down = carry(from_server, to_client, faults, |f| f.hold_to_client, &carried);
            tokio::select! {
                _ = async { tokio::join!(up, down) } => {}
                _ = cuts.changed() => {}
            }
        });
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut faults: watch::Receiver<Fault>,
    held: fn(&Fault) -> bool,
    carried: &AtomicU64,
) {
    let mut piece = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let delay = match faults.wait_for(|f| !held(f)).await {
            Ok(fault) => fault.delay,
            Err(_) => return,
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
        carried.fetch_add(u64::try_from(length).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
    drop(to.shutdown().await);
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (mut read, mut write) = stream.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await });
            }
        });
        address
    }

    #[tokio::test]
    async fn holds_heals_and_cuts() {
        let proxy = FaultProxy::start(echo().await).await.expect("a proxy");
        let mut stream = TcpStream::connect(proxy.address()).await.expect("a connection");
        let mut byte = [0];
        stream.write_all(b"a").await.expect("written");
        stream.read_exact(&mut byte).await.expect("echoed");

        proxy.set(Fault { hold_to_client: true, ..Fault::NONE });
        stream.write_all(b"b").await.expect("written");
        let held = tokio::time::timeout(Duration::from_millis(100), stream.read_exact(&mut byte)).await;
        assert!(held.is_err(), "a held byte arrived");
        proxy.set(Fault::NONE);
        stream.read_exact(&mut byte).await.expect("arrives once healed");
        assert_eq!(&byte, b"b");

        proxy.cut_all();
        let end = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut byte)).await.expect("closed in time");
        assert!(matches!(end, Ok(0) | Err(_)));
    }
}
