//! How a committed change reaches every node: compiled per scope, put on the board, pushed over one
//! stream per node, acknowledged, and shown.
//!
//! Who may connect and how is [`authority`] and [`listener`]; what a node is sent is [`session`]; what
//! there is to send is [`compile_task`] and [`published`]; who runs what is [`fleet`], here and at other
//! [`replicas`].

pub mod api;
pub mod authority;
mod changes;
pub mod compile_task;
pub mod fleet;
pub mod listener;
mod metrics;
mod outbox;
pub mod published;
pub mod replicas;
pub mod server;
pub mod session;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use tokio::sync::mpsc;
use tonic::service::Routes;

use shared::snapshot::limits;

use crate::app::App;
use crate::metrics::Metrics;
use crate::rpc::enrolment_server::EnrolmentServer;
use crate::rpc::usage_server::{Usage, UsageServer};
use authority::{Authority, Enrolment};
use compile_task::ScopeStatus;
use fleet::Fleet;
use metrics::Meters;
use published::{Board, ScopeName};
use replicas::Replicas;
use server::Distribution;

/// Requests for a new revision that may wait; more are dropped, they are repeated anyway.
const ANEW: usize = 64;

/// What compiling, serving and showing share. One per process.
#[derive(Debug)]
pub struct Publish {
    /// What there is to send.
    pub board: Arc<Board>,
    /// Who runs what.
    pub fleet: Fleet,
    /// This process among its replicas.
    pub replicas: Replicas,
    pub(crate) meters: Meters,
    status: RwLock<HashMap<ScopeName, ScopeStatus>>,
    anew: mpsc::Sender<(ScopeName, u64)>,
    asked_anew: std::sync::Mutex<Option<mpsc::Receiver<(ScopeName, u64)>>>,
    authority: OnceLock<Arc<Authority>>,
}

/// A write that would make a scope larger than the smallest node takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLarge {
    /// What is exceeded, for a person.
    pub detail: String,
}

impl Publish {
    /// Empty: nothing compiled, nobody connected.
    pub fn new(metrics: &Metrics) -> Self {
        let (anew, asked) = mpsc::channel(ANEW);
        Self {
            board: Arc::default(),
            fleet: Fleet::default(),
            replicas: Replicas::default(),
            meters: Meters::new(metrics),
            status: RwLock::default(),
            anew,
            asked_anew: std::sync::Mutex::new(Some(asked)),
            authority: OnceLock::new(),
        }
    }

    /// How the last compilation of a scope went; `None` = not compiled yet, or deleted.
    pub fn status(&self, scope: &str) -> Option<ScopeStatus> {
        self.status.read().unwrap_or_else(PoisonError::into_inner).get(scope).cloned()
    }

    /// All of them.
    pub fn statuses(&self) -> Vec<(ScopeName, ScopeStatus)> {
        let status = self.status.read().unwrap_or_else(PoisonError::into_inner);
        status.iter().map(|(scope, status)| (scope.clone(), status.clone())).collect()
    }

    /// Whether a write that adds about `bytes` and `resources` to a scope stays within what every
    /// connected node takes. Asked before the write is committed, so that it is refused at the call
    /// and not held back later (S12).
    ///
    /// # Errors
    /// Which limit it would pass.
    pub fn check_size(&self, scope: &str, bytes: u64, resources: u64) -> Result<(), TooLarge> {
        let extent = self.board.get(scope).map(|p| p.state().extent()).unwrap_or_default();
        let limits = self.fleet.smallest_limits();
        if bytes > limits.max_resource_bytes {
            let detail = format!("an object of {bytes} bytes; nodes take at most {}", limits.max_resource_bytes);
            return Err(TooLarge { detail });
        }
        compile_task::within(extent.bytes + bytes, extent.resources as u64 + resources, &limits)
            .map_err(|detail| TooLarge { detail })
    }

    /// The authority, once it is opened.
    pub fn authority(&self) -> Option<&Arc<Authority>> {
        self.authority.get()
    }

    /// A node holds `revision` with another content than ours: the compile task makes a new revision.
    pub(crate) fn ask_for_anew(&self, scope: ScopeName, revision: u64) {
        // Full means that enough of them wait already.
        _ = self.anew.try_send((scope, revision));
    }

    pub(crate) fn set_status(&self, scope: &ScopeName, status: Option<ScopeStatus>) {
        let mut all = self.status.write().unwrap_or_else(PoisonError::into_inner);
        match status {
            Some(status) => _ = all.insert(scope.clone(), status),
            None => _ = all.remove(scope),
        }
        let quarantined: usize = all.values().map(|s| s.quarantined.len()).sum();
        self.meters.quarantined.set(quarantined as i64);
        self.meters.held_back.set(all.values().filter(|s| s.held_back.is_some()).count() as i64);
    }
}

/// Opens the authority and starts compiling. Call once, before listeners are opened.
///
/// # Errors
/// When the authority cannot be opened.
pub async fn start(app: &App) -> Result<(), authority::AuthorityError> {
    let opened = Arc::new(Authority::open_or_create(app).await?);
    // A second start would only open the same again.
    _ = app.publish.authority.set(opened);
    app.publish.fleet.refresh_denied(&app.db).await?;
    let asked = app.publish.asked_anew.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(asked) = asked {
        compile_task::spawn(app.clone(), asked);
        replicas::start(app).await?;
    }
    Ok(())
}

/// Everything that nodes call: Distribution, Enrolment, and the ledger's Usage.
///
/// # Errors
/// When [`start`] was not called.
pub fn services<U: Usage>(app: &App, usage: U) -> Result<Routes, NotStarted> {
    let authority = app.publish.authority().cloned().ok_or(NotStarted)?;
    let enrolment = Enrolment::new(app.clone(), app.publish.clone(), authority);
    let usage = UsageServer::new(usage).max_decoding_message_size(limits::MAX_MESSAGE_BYTES);
    Ok(distribution(app, enrolment).add_service(usage))
}

/// Distribution and Enrolment alone.
fn distribution(app: &App, enrolment: Enrolment) -> Routes {
    Routes::new(Distribution::new(app.clone(), app.publish.clone())).add_service(EnrolmentServer::new(enrolment))
}

/// [`start`] has not been called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotStarted;

impl std::fmt::Display for NotStarted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("publishing was not started")
    }
}

impl std::error::Error for NotStarted {}
