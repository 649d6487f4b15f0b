//! Wiring, top to bottom: from settings to a control plane that serves.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use runtime::shutdown::{self, Trigger};
use shared::ids::NodeId;
use shared::snapshot::SHARED_SCOPE;
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::service::Routes;

use crate::app::App;
use crate::config::Config;
use crate::db::Db;
use crate::error::ApiError;
use crate::ledger::{Ingest, UsageService};
use crate::publish::{self, listener};
use crate::resources::seed::{self, FirstStart};
use crate::rest;
use crate::rewrap;
use crate::vault::{Vault, VaultError};

/// How often answers to old idempotency keys are forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(60 * 60);

/// A control plane that serves.
pub struct Running {
    /// Where the management interface listens.
    pub admin_addr: SocketAddr,
    /// Where nodes connect, if they can from elsewhere.
    pub grpc_addr: Option<SocketAddr>,
    /// Revision of what all workspaces share.
    pub shared_revision: i64,
    /// What to show once, when the database was empty.
    pub first_start: Option<FirstStart>,
    /// What its parts share.
    pub app: App,
    nodes: Routes,
    trigger: Trigger,
    tasks: Vec<JoinHandle<()>>,
}

/// Why it does not start.
#[derive(Debug)]
pub enum StartError {
    /// The data folder cannot be made.
    DataDir(std::io::Error),
    /// The key-encryption key.
    Vault(VaultError),
    /// The database cannot be opened or migrated.
    Database(sqlx::Error),
    /// The built-in catalogue, a fault of this program.
    Catalog(shared::catalog::CatalogError),
    /// Seeding.
    Seed(ApiError),
    /// The nodes' authority or services.
    Publish(String),
    /// An address cannot be listened on.
    Listen(SocketAddr, std::io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DataDir(e) => write!(f, "data folder: {e}"),
            Self::Vault(e) => write!(f, "{e}"),
            Self::Database(e) => write!(f, "database: {e}"),
            Self::Catalog(e) => write!(f, "catalogue: {e}"),
            Self::Seed(e) => write!(f, "first data: {e}"),
            Self::Publish(e) => write!(f, "publishing: {e}"),
            Self::Listen(address, e) => write!(f, "listen on {address}: {e}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Opens the database, brings it up to date, seeds an empty one, and serves.
///
/// # Errors
/// The first step that fails; nothing is left running then.
pub async fn start(config: Config) -> Result<Running, StartError> {
    std::fs::create_dir_all(&config.data_dir).map_err(StartError::DataDir)?;
    let kek = config.kek.as_ref().map(|kek| kek.0.as_str());
    let vault = Vault::open_or_create(&config.data_dir, kek).map_err(StartError::Vault)?;
    let url = config.database_url.clone().unwrap_or_else(|| Db::sqlite_url(&config.data_dir));
    let db = Db::open(&url).await.map_err(StartError::Database)?;
    let catalog = shared::catalog::builtin().map_err(StartError::Catalog)?;
    let lineage = seed::lineage(&db).await.map_err(StartError::Seed)?;
    let (trigger, shutdown) = shutdown::channel();
    let listen = config.listen;
    let app = App::new(db, vault, config, lineage, shutdown.clone());
    seed::catalogue(&app, &catalog).await.map_err(StartError::Seed)?;
    let first_start = seed::first_start(&app, &catalog).await.map_err(StartError::Seed)?;

    rewrap::run(&app).await.map_err(StartError::Database)?;
    publish::start(&app).await.map_err(|e| StartError::Publish(e.to_string()))?;
    let clock = app.clone();
    let ingest = Ingest::new(app.db.clone(), move || clock.now_ms());
    app.metrics.register(|registry| ingest.register(registry));
    let fleet = app.publish.clone();
    let usage = UsageService::new(ingest, move |node| fleet.fleet.is_denied(node), shutdown.clone());
    let nodes = publish::services(&app, usage).map_err(|e| StartError::Publish(e.to_string()))?;

    let (listener, admin_addr) = bind(listen).await?;
    let grpc = match app.config.grpc_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let mut tasks = vec![
        runtime::task::spawn("rest", rest::serve(listener, rest::router(&app), shutdown)),
        runtime::task::spawn("tidy", tidy(app.clone())),
    ];
    let grpc_addr = grpc.as_ref().map(|(_, address)| *address);
    if let Some((listener, _)) = grpc {
        let names = app.config.grpc_names.clone();
        let serving = listener::serve_tls(app.clone(), nodes.clone(), listener, names);
        tasks.push(runtime::task::spawn("nodes", ended(serving)));
    }
    let shared_revision = shared_revision(&app).await.map_err(StartError::Database)?;
    Ok(Running { admin_addr, grpc_addr, shared_revision, first_start, app, nodes, trigger, tasks })
}

impl Running {
    /// Serves the data plane of the same process, whose id is `node`, over the ends that
    /// [`runtime::rpc::Dialer::in_process`] gives.
    pub fn serve_in_process(&mut self, ends: mpsc::Receiver<DuplexStream>, node: NodeId) {
        let serving = listener::serve_in_process(self.app.clone(), self.nodes.clone(), ends, node);
        self.tasks.push(runtime::task::spawn("own node", ended(serving)));
    }

    /// Asks everything to stop and waits until it has: open requests get ten seconds.
    pub async fn stop(self) {
        self.trigger.fire();
        for task in self.tasks {
            // A panic was logged where it happened.
            _ = task.await;
        }
        publish::replicas::leave(&self.app).await;
        self.app.db.pool().close().await;
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |e| StartError::Listen(address, e);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

async fn shared_revision(app: &App) -> Result<i64, sqlx::Error> {
    let (revision,): (i64,) = sqlx::query_as("SELECT revision FROM scopes WHERE scope = $1")
        .bind(SHARED_SCOPE)
        .fetch_one(app.db.pool())
        .await?;
    Ok(revision)
}

/// A server of nodes that ends before it is asked to is worth a line; nodes serve on without it.
async fn ended(serving: impl Future<Output = Result<(), listener::ListenError>>) {
    if let Err(e) = serving.await {
        tracing::error!(error = %e, "nodes are not served any more");
    }
}

/// Forgets what is only kept for a while.
async fn tidy(app: App) {
    loop {
        tokio::select! {
            () = app.shutdown.asked() => return,
            () = tokio::time::sleep(TIDY_EVERY) => {}
        }
        if let Err(e) = rest::forget_old(&app).await {
            tracing::warn!(error = %e, "old idempotency keys could not be forgotten");
        }
    }
}
