//! The snapshot that serves, and the only door to it. One writer applies updates in the order of
//! S3; readers take an `Arc` and never wait. What fails any check leaves everything as it was.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use runtime::clock;
use shared::digest::StateHash;
use shared::proto::{self, NackCode};
use shared::snapshot::{Change, Extent, Rejection, SHARED_SCOPE, Scope, ScopeDelta, Snapshot, limits};

use super::boot::{self, Boot};
use super::disk::Disk;
use super::keeper::Keeper;
use super::reaper::Reaper;
use super::selftest::{Lookups, SelfTest};
use super::status::Status;

/// How long checking one update may take before it is reported as slow.
pub const APPLY_BUDGET: Duration = Duration::from_secs(5);
/// How often it is written down that the control plane was heard, in milliseconds.
const NOTE_CONTACT_MS: i64 = 10_000;

/// Which database the revisions count for: made with it, replaced when it is restored from a backup.
/// All zero: none yet.
pub type Lineage = [u8; 16];

/// An update that serves now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its scope.
    pub scope: String,
    /// The scope's revision now.
    pub revision: u64,
    /// The scope's hash now.
    pub state_hash: StateHash,
}

/// The snapshot that serves.
pub struct Store {
    current: ArcSwap<Snapshot>,
    writer: Mutex<Writer>,
    ready: AtomicBool,
    /// A request was answered well, and that is on record.
    answered: AtomicBool,
    /// When [`Store::heard`] last wrote it down.
    contact_noted_ms: AtomicI64,
    status: Arc<Status>,
    reaper: Reaper,
    self_tests: Vec<Box<dyn SelfTest>>,
    keeper: Option<Keeper>,
}

/// Everything that only the configuration thread touches.
#[derive(Default)]
struct Writer {
    lineage: Lineage,
    scopes: BTreeMap<String, HeldScope>,
    /// States that ended this process again and again: refused while it runs.
    suspects: HashMap<String, StateHash>,
}

#[derive(Default, Clone)]
struct HeldScope {
    scope: Scope,
    /// Of another lineage: it serves, but its revision means nothing to the control plane.
    foreign: bool,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store(ready: {})", self.is_ready())
    }
}

impl Store {
    /// A store that remembers what serves in `folder`, and begins with what it finds there. Every
    /// update must pass the built-in lookups and then `self_test`.
    ///
    /// # Errors
    /// When the folder cannot be used or another process uses it, or a thread cannot start.
    pub fn open(folder: &Path, self_test: Option<Box<dyn SelfTest>>) -> io::Result<Self> {
        let disk = Disk::open(folder)?;
        let boot = boot::boot(&disk, clock::now_ms());
        let status = Arc::new(Status::default());
        let keeper = Keeper::start(disk, &boot, status.clone())?;
        Self::new(boot, Some(keeper), self_test, status)
    }

    /// A store that begins with nothing and forgets all at its end.
    ///
    /// # Errors
    /// When a thread cannot start.
    pub fn in_memory(self_test: Option<Box<dyn SelfTest>>) -> io::Result<Self> {
        Self::new(Boot::default(), None, self_test, Arc::default())
    }

    pub(super) fn new(
        boot: Boot,
        keeper: Option<Keeper>,
        self_test: Option<Box<dyn SelfTest>>,
        status: Arc<Status>,
    ) -> io::Result<Self> {
        let mut self_tests: Vec<Box<dyn SelfTest>> = vec![Box::new(Lookups)];
        self_tests.extend(self_test);
        status.degraded.store(boot.degraded, Ordering::Relaxed);
        status.last_contact_ms.store(boot.contact_ms, Ordering::Relaxed);
        let ready = boot.scopes.contains_key(SHARED_SCOPE) && boot.scopes.len() > 1;
        let held = |(name, stored): (String, boot::Stored)| {
            (name, HeldScope { foreign: stored.lineage != boot.lineage, scope: stored.scope })
        };
        let writer = Writer {
            lineage: boot.lineage,
            scopes: boot.scopes.into_iter().map(held).collect(),
            suspects: boot.suspects,
        };
        writer.measure(&status);
        Ok(Self {
            current: ArcSwap::from_pointee(boot.snapshot),
            writer: Mutex::new(writer),
            ready: AtomicBool::new(ready),
            answered: AtomicBool::new(false),
            contact_noted_ms: AtomicI64::new(0),
            status,
            reaper: Reaper::start()?,
            self_tests,
            keeper,
        })
    }

    /// The snapshot that serves now. A request calls this once and keeps the answer.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Whether the node has state to serve from. Once true it stays true.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// What goes on, for the admin port and metrics.
    pub fn status(&self) -> &Arc<Status> {
        &self.status
    }

    /// Lineage and held scopes, as Hello carries them. Scopes of another lineage are listed with
    /// revision 0, so that the control plane replaces or removes them.
    pub fn held(&self) -> (Lineage, Vec<proto::Held>) {
        let writer = self.lock();
        let held = writer.scopes.iter().map(|(scope, held)| match held.foreign {
            true => proto::Held { scope: scope.clone(), revision: 0, state_hash: Vec::new() },
            false => proto::Held {
                scope: scope.clone(),
                revision: held.scope.revision(),
                state_hash: held.scope.state_hash().as_bytes().to_vec(),
            },
        });
        (writer.lineage, held.collect())
    }

    /// What the node serves of one scope: revision and state hash; zeros when nothing, or something
    /// of another lineage.
    pub fn held_scope(&self, scope: &str) -> (u64, StateHash) {
        let writer = self.lock();
        let held = writer.scopes.get(scope).filter(|held| !held.foreign);
        held.map(|held| (held.scope.revision(), held.scope.state_hash())).unwrap_or_default()
    }

    /// The control plane said which lineage it serves. All that is held of another one goes on
    /// serving until full state replaces it.
    pub fn welcome(&self, lineage: Lineage) {
        let mut writer = self.lock();
        if writer.lineage == lineage {
            return;
        }
        if !writer.scopes.is_empty() {
            tracing::warn!("the control plane has a new lineage: its database was restored or replaced");
        }
        writer.lineage = lineage;
        writer.scopes.values_mut().for_each(|held| held.foreign = true);
    }

    /// The first synchronisation is complete: the node may serve.
    pub fn mark_ready(&self) {
        if !self.ready.swap(true, Ordering::AcqRel) {
            tracing::info!(workspaces = self.load().workspaces().count(), "ready: the first state is complete");
        }
    }

    /// A request was answered well, so what serves does not end the process at once. The first call
    /// writes a small file before it returns, so that even a kill right after the first answer does not
    /// count as a start that came to nothing; later calls cost one relaxed load.
    pub fn answered(&self) {
        if !self.answered.load(Ordering::Relaxed) {
            self.first_answer();
        }
    }

    /// Checks an update (all its chunks in one message) and, when it passes, serves it. Blocks for
    /// as long as the checks take; call it outside of async code.
    ///
    /// # Errors
    /// Why it was refused; what served before still does.
    pub fn apply(&self, update: &proto::Update) -> Result<Applied, Rejection> {
        let started = clock::monotonic();
        let mut writer = self.lock();
        // Whatever goes wrong inside is this update's fault, and must not take the node down.
        let judged = catch_unwind(AssertUnwindSafe(|| self.judge(&writer, update)));
        let outcome = match judged {
            Ok(Ok(next)) => Ok(self.serve(&mut writer, update, next)),
            Ok(Err(rejection)) => Err(rejection),
            Err(payload) => {
                tracing::error!(
                    panic = runtime::task::panic_text(&*payload),
                    scope = update.scope,
                    "applying panicked"
                );
                Err(reject(NackCode::Internal, &update.scope, "the node failed while checking it".into()))
            }
        };
        let took = clock::monotonic().saturating_sub(started);
        self.status.last_apply_us.store(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if took > APPLY_BUDGET {
            self.status.slow.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(scope = update.scope, revision = update.to, ?took, "checking an update took too long");
        }
        self.conclude(update, outcome)
    }

    /// Counts an update that was refused before it was whole.
    pub(super) fn note_refused(&self, update: &proto::Update, rejection: &Rejection) {
        self.status.note_rejection(&update.scope, update.to, rejection, clock::now_ms());
        tracing::warn!(scope = update.scope, revision = update.to, %rejection, "refused an update");
    }

    /// Notes that the control plane was heard at `now_ms`. Remembered across restarts, to within
    /// [`NOTE_CONTACT_MS`].
    pub(super) fn heard(&self, now_ms: i64) {
        self.status.last_contact_ms.store(now_ms, Ordering::Relaxed);
        let noted = self.contact_noted_ms.load(Ordering::Relaxed);
        if let Some(keeper) = &self.keeper
            && !(0..NOTE_CONTACT_MS).contains(&now_ms.saturating_sub(noted))
        {
            self.contact_noted_ms.store(now_ms, Ordering::Relaxed);
            keeper.contacted(now_ms);
        }
    }

    /// How long ago the control plane was last heard, by the wall clock.
    pub fn age_ms(&self, now_ms: i64) -> u64 {
        let heard = self.status.last_contact_ms.load(Ordering::Relaxed);
        u64::try_from(now_ms.saturating_sub(heard)).unwrap_or(0)
    }

    /// Waits until what serves now is on disk, or has failed to get there once. For an orderly end.
    pub fn flush(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.flush();
        }
    }

    #[cold]
    fn first_answer(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.answered();
        }
        // Only now: no other thread's answer may overtake the record.
        self.answered.store(true, Ordering::Relaxed);
    }

    fn conclude(&self, update: &proto::Update, outcome: Result<Applied, Rejection>) -> Result<Applied, Rejection> {
        match outcome {
            Ok(applied) => {
                self.status.applied.fetch_add(1, Ordering::Relaxed);
                self.status.note_convergence(update.committed_at_ms, clock::now_ms());
                Ok(applied)
            }
            Err(mut rejection) => {
                truncate(&mut rejection.detail, limits::MAX_DETAIL_BYTES);
                truncate(&mut rejection.path, limits::MAX_DETAIL_BYTES);
                self.note_refused(update, &rejection);
                Err(rejection)
            }
        }
    }

    /// All checks, in the order of S3; changes nothing.
    fn judge(&self, writer: &Writer, update: &proto::Update) -> Result<Next, Rejection> {
        if update.scope_removed {
            return self.judge_removal(writer, update);
        }
        check_size(update)?;
        check_sum(update)?;
        let announced = StateHash::from_slice(&update.state_hash)
            .ok_or_else(|| reject(NackCode::HashMismatch, &update.scope, "the state hash is not 32 bytes".into()))?;
        let none = HeldScope::default();
        let held = writer.scopes.get(&update.scope).unwrap_or(&none);
        let (scope, delta) = next_scope(held, update)?;
        if scope.state_hash() != announced {
            let detail = "the state hash after applying differs from the announced one".into();
            return Err(reject(NackCode::HashMismatch, &update.scope, detail));
        }
        check_extent(&update.scope, scope.extent())?;
        if !update.force
            && let Some(detail) = limits::needs_force(held.scope.extent(), scope.extent())
        {
            return Err(reject(NackCode::ShrinkGuard, &update.scope, detail));
        }
        if writer.suspects.get(&update.scope) == Some(&announced) {
            let detail = "the node stopped again and again while it served this state".into();
            return Err(reject(NackCode::Internal, &update.scope, detail));
        }
        let change = Change { scope: &update.scope, next: &scope, previous: &held.scope, delta: &delta };
        let snapshot = self.load().apply(&change)?;
        check_keys(&snapshot, &scope, &delta)?;
        for test in &self.self_tests {
            test.check(&snapshot, &update.scope)?;
        }
        Ok(Next { snapshot, scope: Some(scope) })
    }

    /// A whole workspace goes: an act of its own within a lineage. When the lineage has just
    /// changed, an empty database would look the same, so a person must have confirmed it.
    fn judge_removal(&self, writer: &Writer, update: &proto::Update) -> Result<Next, Rejection> {
        // Removals carry no checksum, so at least nothing else may look like an update.
        let bare = update.upserts.is_empty() && update.removals.is_empty();
        if !bare || !update.state_hash.is_empty() || !update.checksum.is_empty() {
            let detail = "an update that removes its scope holds something else".into();
            return Err(reject(NackCode::BadChecksum, &update.scope, detail));
        }
        if update.scope == SHARED_SCOPE {
            return Err(reject(NackCode::ShrinkGuard, &update.scope, "the shared scope cannot be removed".into()));
        }
        if let Some(held) = writer.scopes.get(&update.scope) {
            if held.foreign && !update.force && held.scope.len() > 1 {
                let detail = format!("a database of another lineage would remove {} resources", held.scope.len());
                return Err(reject(NackCode::ShrinkGuard, &update.scope, detail));
            }
            if !held.foreign && update.to != 0 && update.to <= held.scope.revision() {
                return Err(stale(&update.scope, update.to, held.scope.revision()));
            }
        }
        Ok(Next { snapshot: self.load().without(&update.scope)?, scope: None })
    }

    fn serve(&self, writer: &mut Writer, update: &proto::Update, next: Next) -> Applied {
        let old = self.current.swap(Arc::new(next.snapshot));
        self.reaper.take(old);
        let applied = |scope: &Scope| Applied {
            scope: update.scope.clone(),
            revision: scope.revision(),
            state_hash: scope.state_hash(),
        };
        let applied = match next.scope {
            Some(scope) => {
                let applied = applied(&scope);
                if let Some(keeper) = &self.keeper {
                    keeper.keep(&update.scope, writer.lineage, scope.clone());
                }
                writer.scopes.insert(update.scope.clone(), HeldScope { scope, foreign: false });
                applied
            }
            None => {
                if let Some(keeper) = &self.keeper {
                    keeper.forget(&update.scope);
                }
                writer.scopes.remove(&update.scope);
                Applied { scope: update.scope.clone(), revision: update.to, state_hash: StateHash::default() }
            }
        };
        writer.measure(&self.status);
        applied
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        // A panic while it was held happened before anything was changed, see `apply`.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    fn measure(&self, status: &Status) {
        let bytes = self.scopes.values().map(|held| held.scope.bytes()).sum();
        status.held_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// What an update that passed leads to.
struct Next {
    snapshot: Snapshot,
    /// `None`: the scope is gone.
    scope: Option<Scope>,
}

fn check_size(update: &proto::Update) -> Result<(), Rejection> {
    let too_large = |detail: String| Err(reject(NackCode::TooLarge, &update.scope, detail));
    let count = update.upserts.len().saturating_add(update.removals.len()) as u64;
    if count > limits::MAX_RESOURCES.saturating_mul(2) {
        return too_large(format!("{count} changes in one update"));
    }
    let names = update.upserts.iter().map(|r| (&r.kind, &r.id)).chain(update.removals.iter().map(|r| (&r.kind, &r.id)));
    for (kind, id) in names {
        if kind.len() > limits::MAX_NAME_BYTES || id.len() > limits::MAX_NAME_BYTES {
            return too_large(format!("a kind or id is longer than {} bytes", limits::MAX_NAME_BYTES));
        }
    }
    for resource in &update.upserts {
        if resource.body.len() as u64 > limits::MAX_RESOURCE_BYTES {
            return Err(Rejection {
                code: NackCode::TooLarge,
                path: format!("{}/{}", resource.kind, resource.id),
                detail: format!("{} bytes; at most {}", resource.body.len(), limits::MAX_RESOURCE_BYTES),
            });
        }
    }
    Ok(())
}

fn check_sum(update: &proto::Update) -> Result<(), Rejection> {
    if update.checksum != limits::checksum(&update.upserts) {
        return Err(reject(NackCode::BadChecksum, &update.scope, "the update was damaged on its way".into()));
    }
    Ok(())
}

fn check_extent(scope: &str, extent: Extent) -> Result<(), Rejection> {
    if extent.bytes > limits::MAX_SCOPE_BYTES || extent.resources as u64 > limits::MAX_RESOURCES {
        let detail = format!("{} resources of {} bytes together", extent.resources, extent.bytes);
        return Err(reject(NackCode::TooLarge, scope, detail));
    }
    Ok(())
}

/// S2, and the state that the update leads to with the change that leads there.
fn next_scope(held: &HeldScope, update: &proto::Update) -> Result<(Scope, ScopeDelta), Rejection> {
    let known = if held.foreign { 0 } else { held.scope.revision() };
    if update.to <= known {
        return Err(stale(&update.scope, update.to, known));
    }
    let given = ScopeDelta { upserts: update.upserts.clone(), removals: update.removals.clone() };
    if update.from == 0 {
        let mut next = Scope::default();
        next.apply(&given, update.to);
        let delta = held.scope.delta_to(&next);
        return Ok((next, delta));
    }
    if held.foreign || update.from != known {
        let detail = format!("it starts from revision {}, the node holds {known}", update.from);
        return Err(reject(NackCode::HashMismatch, &update.scope, detail));
    }
    let mut next = held.scope.clone();
    next.apply(&given, update.to);
    Ok((next, given))
}

/// Every key that changed is found, or is not, as the scope says.
fn check_keys(snapshot: &Snapshot, scope: &Scope, delta: &ScopeDelta) -> Result<(), Rejection> {
    for resource in delta.upserts.iter().filter(|r| r.kind == "api_key") {
        let Some(body) = scope.get(&resource.kind, &resource.id) else { continue };
        let key = <proto::ApiKey as prost::Message>::decode(body.clone()).ok();
        let hash = key.and_then(|key| <[u8; 32]>::try_from(key.hash.as_slice()).ok());
        let found = hash.and_then(|hash| snapshot.key(&hash));
        if found.is_none_or(|(key, _)| key.id.to_string() != resource.id) {
            return Err(Rejection {
                code: NackCode::SelfTest,
                path: format!("api_key/{}", resource.id),
                detail: "is in force but is not found".into(),
            });
        }
    }
    Ok(())
}

fn stale(scope: &str, to: u64, held: u64) -> Rejection {
    reject(NackCode::Stale, scope, format!("revision {to} is not newer than {held}"))
}

fn reject(code: NackCode, scope: &str, detail: String) -> Rejection {
    Rejection { code, path: format!("scope/{scope}"), detail }
}

fn truncate(text: &mut String, most: usize) {
    if text.len() > most {
        let cut = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(cut);
    }
}
