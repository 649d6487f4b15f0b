//! Wiring, top to bottom: from settings to a control plane that serves.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use runtime::shutdown::{self, Trigger};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::app::App;
use crate::config::Config;
use crate::db::Db;
use crate::error::ApiError;
use crate::resources::seed::{self, FirstStart};
use crate::rest;
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

    let failed = |e| StartError::Listen(listen, e);
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let admin_addr = listener.local_addr().map_err(failed)?;
    let router = rest::router(&app);
    let tasks = vec![
        runtime::task::spawn("rest", rest::serve(listener, router, shutdown)),
        runtime::task::spawn("tidy", tidy(app.clone())),
    ];
    Ok(Running { admin_addr, first_start, app, trigger, tasks })
}

impl Running {
    /// Asks everything to stop and waits until it has: open requests get ten seconds.
    pub async fn stop(self) {
        self.trigger.fire();
        for task in self.tasks {
            // A panic was logged where it happened.
            _ = task.await;
        }
        self.app.db.pool().close().await;
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
