//! A TCP balancer as one stands before a fleet: each new connection goes to the next ready node,
//! readiness is asked at `/readyz` of the node's admin port.
//!
//! It never repeats a request: what fails behind it, fails.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::http::Http;
use crate::wait;

/// How often readiness is asked.
const CHECK: Duration = Duration::from_millis(50);
/// How long a node may take to say so.
const CHECK_LIMIT: Duration = Duration::from_secs(2);

/// One node behind the balancer.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Data port.
    pub data: SocketAddr,
    /// URL of the admin port.
    pub admin_url: String,
}

/// A running balancer. Dropping it stops accepting.
pub struct Balancer {
    address: SocketAddr,
    ready: Arc<Mutex<Vec<bool>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Balancer {
    /// Listens on a free port; gives connections to ready `backends` in turn.
    pub async fn start(backends: Vec<Backend>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let ready = Arc::new(Mutex::new(vec![false; backends.len()]));
        let mut tasks = Vec::new();
        for (index, backend) in backends.iter().enumerate() {
            let http = Http::without_reuse(&backend.admin_url);
            let ready = ready.clone();
            tasks.push(tokio::spawn(async move {
                loop {
                    let answer = tokio::time::timeout(CHECK_LIMIT, http.get("/readyz")).await;
                    let now = matches!(answer, Ok(Ok(answer)) if answer.status == 200);
                    ready.lock().unwrap_or_else(PoisonError::into_inner)[index] = now;
                    tokio::time::sleep(CHECK).await;
                }
            }));
        }
        tasks.push(tokio::spawn(accept(listener, backends, ready.clone())));
        Ok(Self { address, ready, tasks })
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until all backends are ready, at most `limit`.
    pub async fn all_ready(&self, limit: Duration) -> Result<()> {
        let all = async || self.ready.lock().unwrap_or_else(PoisonError::into_inner).iter().all(|r| *r).then_some(());
        wait::until(limit, "all nodes ready", all).await
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, backends: Vec<Backend>, ready: Arc<Mutex<Vec<bool>>>) {
    let mut turn = 0;
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        turn += 1;
        let (backends, ready) = (backends.clone(), ready.clone());
        tokio::spawn(async move {
            let now = ready.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for offset in 0..backends.len() {
                let index = (turn + offset) % backends.len();
                if !now[index] {
                    continue;
                }
                // Refused: the node went since it was last asked; nothing was sent, so the next may have it.
                let Ok(mut server) = TcpStream::connect(backends[index].data).await else { continue };
                drop((client.set_nodelay(true), server.set_nodelay(true)));
                drop(copy_bidirectional(&mut client, &mut server).await);
                return;
            }
        });
    }
}
