//! One node: its threads, from start to drain.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use prometheus_client::registry::Registry;
use runtime::rpc::Dialer;
use runtime::shutdown::{self, Shutdown};
use runtime::{clock, task};
use shared::ids::NodeId;
use shared::proto;
use shared::snapshot::{Addresses, SHARED_SCOPE};
use tokio::runtime::LocalOptions;
use tokio::sync::watch;

use crate::admin;
use crate::client_io::ClientDeadlines;
use crate::config::Config;
use crate::drain::{Drain, Phase};
use crate::egress::Egress;
use crate::execute::Defaults;
use crate::identity::Identity;
use crate::ingress::read::BodyLimits;
use crate::observe::{self, Counters, Telling, metrics::Metrics};
use crate::snapshot::{Client, Store, client};
use crate::upstream::{PoolLimits, Upstream};
use crate::usage::{journal, reporter};
use crate::worker::{self, Health, Worker};

/// What all threads of a node share. Nothing in it is locked by a request.
pub struct Node {
    /// The snapshot that serves.
    pub store: Arc<Store>,
    /// How far the node is in stopping.
    pub drain: Drain,
    /// Bounds.
    pub limits: Limits,
    /// Refusals.
    pub counters: Counters,
    /// Send the X-Orca-* headers too.
    pub orca_headers: bool,
}

/// Bounds of a node.
pub struct Limits {
    /// Callers' connections per thread.
    pub connections: usize,
    /// Requests at once.
    pub requests_in_flight: u64,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Of a caller's connection.
    pub client: ClientDeadlines,
    /// Of a request's body.
    pub body: BodyLimits,
    /// Bytes of an answer that is no stream.
    pub reply_bytes: usize,
    /// Of a call, where the provider sets nothing else.
    pub call: Defaults,
    /// Milliseconds of a whole request.
    pub total_ms: u64,
}

/// How the node reaches its control plane.
pub enum Control {
    /// In the same process, or over any transport that needs no certificate.
    Local {
        /// How to connect.
        dialer: Dialer,
        /// As the other end knows this node.
        node_id: NodeId,
    },
    /// Over mutual TLS at "host:port"; `token` is needed once, to join.
    Remote {
        /// "host:port".
        authority: String,
        /// From `POST /api/v1/nodes/tokens`.
        token: Option<String>,
    },
}

/// A node that serves.
pub struct Running {
    /// Where applications call.
    pub data_addr: SocketAddr,
    /// Where health and metrics are.
    pub admin_addr: SocketAddr,
    /// As the control plane names it.
    pub node_id: String,
    threads: Vec<std::thread::JoinHandle<()>>,
    background: Option<std::thread::JoinHandle<()>>,
    store: Arc<Store>,
}

impl Running {
    /// Waits until the node has drained and stopped.
    pub fn join(mut self) {
        for thread in self.threads.drain(..).chain(self.background.take()) {
            // A thread that panicked has said so in the log.
            _ = thread.join();
        }
    }

    /// What it holds, for people: "revision 7 of shared, 2 workspaces", or that it has nothing yet.
    pub fn revisions(&self) -> String {
        let (shared, _) = self.store.held_scope(SHARED_SCOPE);
        match (self.store.is_ready(), self.store.load().workspaces().count()) {
            (false, _) => "no configuration yet".to_owned(),
            (true, workspaces) => format!("revision {shared} of the catalogue, workspaces: {workspaces}"),
        }
    }

    /// Waits until there is a snapshot to serve from, at most `patience`.
    pub async fn ready(&self, patience: Duration) -> bool {
        let end = clock::monotonic() + patience;
        while !self.store.is_ready() && clock::monotonic() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.store.is_ready()
    }
}

/// Starts a node. It serves as soon as it has a snapshot, from its disk or the control plane, and
/// stops when `shutdown` asks.
///
/// # Errors
/// When an address, the data folder, a file or the identity cannot be used.
pub async fn start(config: Config, control: Control, shutdown: Shutdown) -> Result<Running> {
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("creating the data folder {}", config.data_dir.display()))?;
    let workers = config.workers();
    let listeners =
        listeners(config.listen, workers).with_context(|| format!("listening on {} (--listen)", config.listen))?;
    let data_addr = listeners.first().context("a node needs at least one thread")?.local_addr()?;
    let admin = std::net::TcpListener::bind(config.admin_listen).with_context(|| {
        let address = config.admin_listen;
        format!("listening on {address} for health checks and metrics (--admin-listen; of `pointsman` --node-listen)")
    })?;
    admin.set_nonblocking(true)?;
    let admin_addr = admin.local_addr()?;
    let store = Arc::new(Store::open(&config.data_dir.join("snapshot"), Some(Box::new(crate::pipeline::SelfTest)))?);
    let journal_options = journal::Options {
        limit_bytes: config.tuning.journal_limit_bytes,
        sync_interval: Config::ms(config.tuning.journal_sync_ms),
        ..journal::Options::default()
    };
    let journals = journal::open(&config.data_dir, workers, &journal_options)?;
    let tls = Arc::new(runtime::tls::upstream(config.tuning.upstream_ca_file.as_deref(), &[b"http/1.1"])?);
    let node = Arc::new(node(&config, store.clone()));
    let name = config.name.clone().unwrap_or_else(host_name);
    let (dialer, identity, node_id) = match control {
        Control::Local { dialer, node_id } => (dialer, None, node_id.to_string()),
        Control::Remote { authority, token } => {
            let folder = config.data_dir.join("identity");
            let identity = Identity::load_or_join(&folder, &authority, token.as_deref(), &name, &shutdown).await?;
            let node_id = identity.node_id().to_string();
            (identity.dialer(&authority), Some(identity), node_id)
        }
    };

    let telling = Telling { access_log: config.tuning.access_log, spans: config.export_spans };
    let (phase, phases) = watch::channel(Phase::Open);
    let mut threads = Vec::with_capacity(workers);
    let (mut queues, mut healths) = (Vec::with_capacity(workers), Vec::with_capacity(workers));
    for (index, (listener, journal)) in listeners.into_iter().zip(journals.journals).enumerate() {
        let (node, tls, egress) = (node.clone(), tls.clone(), egress(&config)?);
        let (observed, health) = (observe::Queue::new(telling.access_log || telling.spans), Health::default());
        queues.push(observed.clone());
        healths.push(health.clone());
        let worker = move || Worker {
            node,
            upstream: Upstream::new(tls, egress, POOL),
            journal: journal::Writer::new(journal),
            observed,
            health,
        };
        threads.push(serve_on_thread(index, worker, listener, phases.clone())?);
    }

    let background = Background {
        client: Client::new(
            store.clone(),
            client::Options {
                dialer: dialer.clone(),
                node_id: node_id.clone(),
                display_name: name,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                labels: labels(&config.labels)?,
                load: load(&node, &journals.spools),
            },
        ),
        reporter: reporter::Reporter::new(&journals.spools, dialer.clone(), reporter::Options::default()),
        renewal: identity.map(|identity| (identity, dialer)),
        admin: admin::Admin::new(node.clone(), healths, journals.spools),
        listener: admin,
        queues,
        node,
        phase,
        syncer: journals.syncer,
        telling,
        delay: Config::ms(config.tuning.drain_delay_ms.unwrap_or(3_000)),
        patience: Config::ms(config.tuning.drain_timeout_ms),
    };
    let background = task::thread("node", move || background.run(shutdown))?;
    Ok(Running { data_addr, admin_addr, node_id, threads, background: Some(background), store })
}

const POOL: PoolLimits = PoolLimits { idle_per_host: 512, idle_for: Duration::from_secs(45) };

/// Everything of a node that is no request, on a thread of its own: a slow disk or a large snapshot
/// takes nothing from requests, and readiness is answered while all workers are busy.
struct Background {
    client: Client,
    reporter: reporter::Reporter,
    renewal: Option<(Arc<Identity>, Dialer)>,
    admin: admin::Admin,
    listener: std::net::TcpListener,
    queues: Vec<observe::Queue>,
    node: Arc<Node>,
    phase: watch::Sender<Phase>,
    syncer: journal::Syncer,
    telling: Telling,
    delay: Duration,
    patience: Duration,
}

impl Background {
    fn run(self, shutdown: Shutdown) {
        let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "the node's background runtime does not start");
                return;
            }
        };
        runtime.block_on(self.serve(shutdown));
    }

    async fn serve(self, shutdown: Shutdown) {
        // What reports and answers health checks goes on while requests drain.
        let (stop, drained) = shutdown::channel();
        let mut registry = Registry::with_prefix("pointsman");
        let metrics = Metrics::register(&mut registry);
        self.admin.register(&mut registry);
        reporter::register(&mut registry, self.reporter.status());
        let collecting = task::spawn("observations", collect(self.queues, metrics, self.telling, drained.clone()));
        let admin = task::spawn("admin", self.admin.serve(self.listener, registry, drained.clone()));
        let syncing = task::spawn("snapshots", self.client.run(drained.clone()));
        let reporting = task::spawn("usage reports", self.reporter.run(drained.clone()));
        if let Some((identity, dialer)) = self.renewal {
            task::spawn("certificate", identity.keep_renewed(dialer, drained.clone()));
        }
        shutdown.asked().await;
        drain(&self.node.drain, &self.phase, self.delay, self.patience).await;
        stop.fire();
        for ending in [collecting, admin, syncing, reporting] {
            _ = ending.await;
        }
        // What is written in the background is on disk before the process ends.
        drop(self.syncer);
        self.node.store.flush();
    }
}

/// Leaves in order; gives running requests their time, and cuts what is left.
async fn drain(drain: &Drain, phase: &watch::Sender<Phase>, delay: Duration, patience: Duration) {
    let advance = |to| {
        drain.advance(to);
        phase.send_replace(to);
    };
    advance(Phase::Leaving);
    tracing::info!(?delay, in_flight = drain.in_flight(), "not ready any more");
    tokio::time::sleep(delay).await;
    advance(Phase::Draining);
    wait_for_requests(drain, patience).await;
    if drain.in_flight() > 0 {
        tracing::warn!(in_flight = drain.in_flight(), "cutting what still runs");
        advance(Phase::Cutting);
        wait_for_requests(drain, Duration::from_secs(5)).await;
    }
    tracing::info!("drained");
}

async fn wait_for_requests(drain: &Drain, patience: Duration) {
    let end = clock::monotonic() + patience;
    while drain.in_flight() > 0 && clock::monotonic() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Collects what requests leave, until asked to stop and once more.
async fn collect(queues: Vec<observe::Queue>, mut metrics: Metrics, telling: Telling, shutdown: Shutdown) {
    loop {
        let last = shutdown.is_asked();
        observe::collect(&queues, &mut metrics, telling);
        if last {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(observe::COLLECT_EVERY) => {}
            () = shutdown.asked() => {}
        }
    }
}

fn serve_on_thread(
    index: usize,
    worker: impl FnOnce() -> Worker + Send + 'static,
    listener: std::net::TcpListener,
    phases: watch::Receiver<Phase>,
) -> io::Result<std::thread::JoinHandle<()>> {
    task::thread(&format!("worker-{index}"), move || {
        match tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
            Ok(runtime) => runtime.block_on(async move {
                let worker = Rc::new(worker());
                // Connections that outlive the drain are closed with the thread.
                let cut = async {
                    let mut phases = phases.clone();
                    _ = phases.wait_for(|phase| *phase == Phase::Cutting).await;
                    tokio::time::sleep(Duration::from_secs(5)).await;
                };
                tokio::select! {
                    () = worker::run(worker, listener, phases.clone()) => {}
                    () = cut => {}
                }
            }),
            Err(error) => tracing::error!(%error, "a worker's runtime does not start"),
        }
    })
}

/// One socket per thread at the same address; port 0 is chosen once.
fn listeners(address: SocketAddr, count: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let first = worker::listen(address)?;
    let address = first.local_addr()?;
    let rest = (1..count.max(1)).map(|_| worker::listen(address));
    std::iter::once(Ok(first)).chain(rest).collect()
}

fn node(config: &Config, store: Arc<Store>) -> Node {
    Node {
        store,
        drain: Drain::default(),
        limits: Limits {
            connections: config.tuning.max_connections,
            requests_in_flight: config.tuning.max_requests_in_flight,
            head_bytes: 64 * 1024,
            client: ClientDeadlines {
                head: Config::ms(config.tuning.head_timeout_ms),
                idle: Config::ms(config.tuning.keep_alive_ms),
                write: Config::ms(config.tuning.write_timeout_ms),
            },
            body: BodyLimits {
                size: config.tuning.max_body_bytes,
                idle: Config::ms(config.tuning.body_idle_timeout_ms),
                total: Config::ms(config.tuning.total_timeout_ms),
            },
            reply_bytes: config.tuning.max_reply_bytes,
            call: Defaults {
                connect: Config::ms(config.tuning.connect_timeout_ms),
                first_token: Config::ms(config.tuning.first_token_timeout_ms),
                idle: Config::ms(config.tuning.idle_timeout_ms),
            },
            total_ms: config.tuning.total_timeout_ms,
        },
        counters: Counters::default(),
        orca_headers: config.tuning.orca_headers,
    }
}

fn egress(config: &Config) -> Result<Egress> {
    let allowed = match config.tuning.egress_allow.as_slice() {
        [] => None,
        blocks => Some(
            Addresses::parse(blocks.iter().map(String::as_str))
                .map_err(|text| anyhow::anyhow!("--egress-allow: {text:?} is no address block"))?,
        ),
    };
    Ok(Egress { allow_private: config.tuning.egress_allow_private.unwrap_or(false), allowed })
}

fn labels(texts: &[String]) -> Result<std::collections::HashMap<String, String>> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').with_context(|| format!("--label {text:?}: must be key=value"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    texts.iter().map(pair).collect()
}

fn load(node: &Arc<Node>, spools: &[Arc<journal::Spool>]) -> Arc<dyn Fn() -> proto::Heartbeat + Send + Sync> {
    let (drain, total) = (node.drain.clone(), spools.first().map(|spool| spool.total().clone()));
    Arc::new(move || proto::Heartbeat {
        sent_at_ms: clock::now_ms(),
        journal_bytes: total.as_ref().map_or(0, |total| total.used()),
        requests_in_flight: drain.in_flight(),
        draining: drain.phase() > Phase::Open,
    })
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "node".to_owned(), |name| name.trim().to_owned())
}
