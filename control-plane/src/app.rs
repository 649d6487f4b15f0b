//! What every handler and task of the control plane holds.
//!
//! Values only: it starts nothing and decides nothing.

use std::sync::Arc;

use runtime::shutdown::Shutdown;
use tokio::sync::watch;

use crate::config::Config;
use crate::db::Db;
use crate::metrics::Metrics;
use crate::vault::Vault;

/// Cheap to clone; all clones are the same control plane.
#[derive(Clone)]
pub struct App {
    /// The database.
    pub db: Db,
    /// Opens and seals secrets.
    pub vault: Arc<Vault>,
    /// Bootstrap settings.
    pub config: Arc<Config>,
    /// What is published, and who runs it.
    pub publish: Arc<crate::publish::Publish>,
    /// The metrics registry; every module registers its own.
    pub metrics: Metrics,
    /// 128 bits made when the database was: another database is another lineage.
    pub lineage: [u8; 16],
    /// Tells every task when to stop.
    pub shutdown: Shutdown,
    /// Counts commits of this process: a waiter learns that the outbox has grown. Other replicas are
    /// heard of through the database.
    pub changed: Arc<watch::Sender<u64>>,
    clock: Clock,
}

/// Where the time of day comes from; tests bring their own.
type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

impl App {
    /// Over an open database.
    pub fn new(db: Db, vault: Vault, config: Config, lineage: [u8; 16], shutdown: Shutdown) -> Self {
        let metrics = Metrics::default();
        Self {
            db,
            vault: Arc::new(vault),
            config: Arc::new(config),
            publish: Arc::new(crate::publish::Publish::new(&metrics)),
            metrics,
            lineage,
            shutdown,
            changed: Arc::new(watch::Sender::new(0)),
            clock: Arc::new(runtime::clock::now_ms),
        }
    }

    /// The same with another clock: milliseconds since 1970.
    pub fn with_clock(mut self, clock: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> i64 {
        (self.clock)()
    }

    /// Wakes whoever waits for commits.
    pub fn wake(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }
}
