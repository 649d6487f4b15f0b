//! The reconciler between the database and the board: whatever scope moved is loaded (only what
//! changed), compiled, checked as a node would check it, and put up. It takes no input: woken or by the
//! clock, it looks at the database and does what is missing.
//!
//! One revision is one content: what a revision came to is written down, and when the same revision
//! compiles to something else (the catalogue moved, the program is newer) the scope gets a new one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use compiler::lower::{Catalogue, Compiled, Documents, Quarantined, Version, Warning, lower};
use runtime::clock::monotonic;
use shared::proto;
use shared::snapshot::{Change, SHARED_SCOPE, Scope, ScopeDelta, Snapshot, limits};

use super::outbox::{self, PublishedRow, ScopeRow};
use super::published::{Commit, Published, ScopeName};
use crate::app::App;

/// Wait for more after a change: this long without one, and this long in all.
const QUIET: Duration = Duration::from_millis(50);
const LONGEST_DEBOUNCE: Duration = Duration::from_millis(250);
/// How often the database is looked at unasked: other replicas write to it too.
const PERIOD: Duration = Duration::from_secs(1);
/// A scope gets at most one new revision from here in this time: two program versions that disagree
/// must not chase each other.
const ANEW_EVERY: Duration = Duration::from_secs(60);
/// From this share of a limit on, in percent, a warning is given.
const WARN_PERCENT: u64 = 80;

/// How the last compilation of a scope went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScopeStatus {
    /// Revision that was compiled.
    pub revision: u64,
    /// When, milliseconds since 1970.
    pub compiled_at_ms: i64,
    /// Objects that do not compile.
    pub quarantined: Vec<Quarantined>,
    /// Objects that serve but probably not as intended.
    pub warnings: Vec<Warning>,
    /// Why this revision is not published; the one before stays.
    pub held_back: Option<String>,
    /// Close to a limit of the smallest node.
    pub near_limit: Option<String>,
}

/// Starts the task; it ends with the process.
pub(super) fn spawn(app: App, asked_anew: mpsc::Receiver<(ScopeName, u64)>) {
    runtime::task::spawn("compile", async move {
        let changed = app.changed.subscribe();
        let mut compiler = Compiler::new(app);
        compiler.run(changed, asked_anew).await;
    });
}

/// Everything the task keeps between passes.
pub(super) struct Compiler {
    app: App,
    scopes: HashMap<String, Work>,
    catalogue: Arc<Catalogue>,
    /// Counts catalogues: a scope that was compiled against another one is compiled again.
    catalogues: u64,
    /// What a node would serve: every state is tried here before it is put up.
    snapshot: Snapshot,
    prices: HashSet<String>,
}

/// One scope between passes.
#[derive(Default)]
struct Work {
    documents: Documents,
    revision: u64,
    /// Which catalogue it was compiled against.
    catalogue: u64,
    /// Versions of quarantined objects: (kind, id) to (revision of the bad one, versions).
    earlier: HashMap<(String, String), (u64, Vec<Version>)>,
    compiled: Compiled,
    /// This revision is known with another content: the scope needs a new one.
    wants_anew: bool,
    /// When it last got one from here, by the monotonic clock.
    anew_at: Option<Duration>,
}

impl Work {
    fn may_be_anew(&self) -> bool {
        self.anew_at.is_none_or(|at| monotonic().saturating_sub(at) >= ANEW_EVERY)
    }
}

impl Compiler {
    pub(super) fn new(app: App) -> Self {
        Self {
            app,
            scopes: HashMap::new(),
            catalogue: Arc::default(),
            catalogues: 0,
            snapshot: Snapshot::default(),
            prices: HashSet::new(),
        }
    }

    async fn run(&mut self, mut changed: watch::Receiver<u64>, mut asked_anew: mpsc::Receiver<(ScopeName, u64)>) {
        let shutdown = self.app.shutdown.clone();
        loop {
            changed.mark_unchanged();
            match self.pass().await {
                Ok(again) if again => continue,
                Ok(_) => {}
                Err(e) => tracing::error!(error = %e, "compiling has to wait for the database"),
            }
            if let Err(e) = self.app.publish.fleet.refresh_denied(&self.app.db).await {
                tracing::error!(error = %e, "the list of revoked nodes cannot be read");
            }
            tokio::select! {
                _ = changed.changed() => debounce(&mut changed).await,
                Some((scope, revision)) = asked_anew.recv() => {
                    self.advance(&scope, revision).await;
                }
                () = tokio::time::sleep(PERIOD) => {}
                () = shutdown.asked() => return,
            }
        }
    }

    /// Looks at every scope once. True: something got a new revision meanwhile, look again.
    pub(super) async fn pass(&mut self) -> Result<bool, sqlx::Error> {
        let rows = outbox::scopes(&self.app.db).await?;
        let (shared, workspaces): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.scope == SHARED_SCOPE);
        let mut again = false;
        for row in shared {
            let before = self.hash(&row.scope);
            again |= self.reconcile(&row).await?;
            if self.hash(&row.scope) != before
                && let Some(published) = self.app.publish.board.get(SHARED_SCOPE)
            {
                self.catalogue = Arc::new(Catalogue::of(published.state()));
                self.catalogues += 1;
            }
        }
        for row in workspaces {
            match self.reconcile(&row).await {
                Ok(moved) => again |= moved,
                Err(e @ (sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_))) => return Err(e),
                // A row that cannot even be read harms its own workspace only.
                Err(e) => {
                    tracing::error!(scope = row.scope, error = %e, "a workspace cannot be compiled");
                    let held_back = Some("its rows cannot be read from the database; the log says more".into());
                    let status = ScopeStatus { revision: row.revision, held_back, ..ScopeStatus::default() };
                    self.app.publish.set_status(&row.scope.as_str().into(), Some(status));
                }
            }
        }
        let board = &self.app.publish.board;
        board.complete();
        let all = board.all();
        let meters = &self.app.publish.meters;
        meters.scopes.set(all.iter().filter(|p| !p.is_removed()).count() as i64);
        meters.bytes.set(outbox::signed(all.iter().map(|p| p.state().bytes()).sum()));
        Ok(again)
    }

    fn hash(&self, scope: &str) -> Option<shared::digest::StateHash> {
        self.app.publish.board.get(scope).map(|p| p.state_hash())
    }

    /// Brings one scope up to date. True: it got a new revision, look again.
    async fn reconcile(&mut self, row: &ScopeRow) -> Result<bool, sqlx::Error> {
        if row.deleted {
            self.remove(row).await?;
            return Ok(false);
        }
        let mut work = self.scopes.remove(&row.scope).unwrap_or_default();
        let of_shared = row.scope == SHARED_SCOPE;
        let current = work.revision == row.revision && (of_shared || work.catalogue == self.catalogues);
        if !current {
            let started = monotonic();
            let outcome = self.bring_up(&row.scope, &mut work).await;
            self.app.publish.meters.compile.observe(monotonic().saturating_sub(started).as_secs_f64());
            if let Err(e) = outcome {
                // Half done: the next pass begins from the database again.
                self.scopes.insert(row.scope.clone(), Work { anew_at: work.anew_at, ..Work::default() });
                return Err(e);
            }
        }
        let advance = work.wants_anew && work.may_be_anew();
        let revision = work.revision;
        self.scopes.insert(row.scope.clone(), work);
        Ok(advance && self.advance(&row.scope, revision).await)
    }

    async fn bring_up(&mut self, scope: &str, work: &mut Work) -> Result<(), sqlx::Error> {
        work.catalogue = self.catalogues;
        // Otherwise it was deleted a moment ago, which the next pass sees.
        if self.load(scope, work).await? {
            work.wants_anew = self.compile_and_publish(scope, work).await?;
        }
        Ok(())
    }

    /// False: the scope is gone.
    async fn load(&self, scope: &str, work: &mut Work) -> Result<bool, sqlx::Error> {
        let Some(changes) = outbox::changes(&self.app, scope, work.revision).await? else { return Ok(false) };
        for object in changes.objects {
            match object.doc {
                Some(doc) => work.documents.put(&object.kind, &object.id, object.revision, &doc, &object.secret),
                None => work.documents.remove(&object.kind, &object.id),
            }
        }
        work.revision = changes.revision;
        Ok(!changes.deleted)
    }

    /// True: the same revision is known with another content, and needs a new number.
    async fn compile_and_publish(&mut self, scope: &str, work: &mut Work) -> Result<bool, sqlx::Error> {
        self.compile(scope, work).await?;
        let name = ScopeName::from(scope);
        let mut status = ScopeStatus {
            revision: work.revision,
            compiled_at_ms: self.app.now_ms(),
            quarantined: work.compiled.quarantined.clone(),
            warnings: work.compiled.warnings.clone(),
            ..ScopeStatus::default()
        };
        let previous = self.app.publish.board.get(scope);
        let (next, delta) = next_state(previous.as_deref(), &work.compiled, work.revision);
        if previous.as_ref().is_some_and(|p| p.revision() == work.revision && p.state_hash() == next.state_hash()) {
            self.app.publish.set_status(&name, Some(status));
            return Ok(false);
        }
        let row = outbox::published(&self.app.db, scope).await?;
        let commit = outbox::commit(&self.app.db, scope, work.revision).await?;
        let checked = self.check(&name, &next, &delta, previous.as_deref(), row.as_ref(), commit, &work.compiled);
        let snapshot = match checked {
            Ok((snapshot, near_limit)) => {
                status.near_limit = near_limit;
                snapshot
            }
            Err(why) => {
                tracing::error!(scope, revision = work.revision, why, "a revision is held back");
                status.held_back = Some(why);
                self.app.publish.set_status(&name, Some(status));
                return Ok(false);
            }
        };
        outbox::record_prices(&self.app.db, &delta.upserts, &mut self.prices).await?;
        let row = PublishedRow {
            revision: work.revision,
            state_hash: outbox::hash_text(&next.state_hash()),
            extent: next.extent(),
        };
        if !outbox::claim(&self.app.db, scope, &row).await? {
            tracing::info!(scope, revision = work.revision, "the same documents compile to another state now");
            status.held_back = Some("waits for a new revision".into());
            self.app.publish.set_status(&name, Some(status));
            return Ok(true);
        }
        for q in &status.quarantined {
            tracing::warn!(
                scope,
                kind = q.kind,
                id = q.id,
                revision = q.revision,
                code = q.code,
                path = q.path,
                serving = q.serving_revision,
                "an object does not compile: {}",
                q.message
            );
        }
        self.snapshot = snapshot;
        self.app.publish.set_status(&name, Some(status));
        self.app.publish.board.post(match previous {
            Some(previous) if !previous.is_removed() => previous.next(next, &delta, commit),
            Some(_) | None => Published::first(name, next, commit),
        });
        Ok(false)
    }

    /// Compiles; objects that fail get their earlier versions from the database, and another chance.
    async fn compile(&self, scope: &str, work: &mut Work) -> Result<(), sqlx::Error> {
        loop {
            let (name, catalogue) = (scope.to_owned(), self.catalogue.clone());
            let (documents, earlier) = (std::mem::take(&mut work.documents), std::mem::take(&mut work.earlier));
            let compiling = runtime::task::spawn_blocking("lower", move || {
                let versions = |kind: &str, id: &str| {
                    let found = earlier.get(&(kind.to_owned(), id.to_owned()));
                    found.map(|(_, versions)| versions.clone()).unwrap_or_default()
                };
                let compiled = lower(&name, &documents, &versions, &catalogue);
                (documents, earlier, compiled)
            });
            let Ok((documents, earlier, compiled)) = compiling.await else {
                return Err(sqlx::Error::WorkerCrashed);
            };
            (work.documents, work.earlier, work.compiled) = (documents, earlier, compiled);
            let bad = &work.compiled.quarantined;
            work.earlier.retain(|(kind, id), (revision, _)| {
                bad.iter().any(|q| q.kind == *kind && q.id == *id && q.revision == *revision)
            });
            let unread: Vec<_> = bad
                .iter()
                .filter(|q| !work.earlier.contains_key(&(q.kind.clone(), q.id.clone())))
                .map(|q| (q.kind.clone(), q.id.clone(), q.revision))
                .collect();
            if unread.is_empty() {
                return Ok(());
            }
            for (kind, id, revision) in unread {
                let versions = outbox::history(&self.app, scope, &kind, &id, revision).await?;
                work.earlier.insert((kind, id), (revision, versions));
            }
        }
    }

    /// Whether nodes may be given this state: sizes, the guard against sudden shrinking, and the very
    /// function that they apply it with.
    #[expect(clippy::too_many_arguments, reason = "all that a state is judged by, in one place")]
    fn check(
        &self,
        scope: &ScopeName,
        next: &Scope,
        delta: &ScopeDelta,
        previous: Option<&Published>,
        row: Option<&PublishedRow>,
        commit: Commit,
        compiled: &Compiled,
    ) -> Result<(Snapshot, Option<String>), String> {
        if compiled.resources.is_empty() && **scope != *SHARED_SCOPE {
            return Err("the workspace object itself does not compile and has no good version".into());
        }
        let limits = self.app.publish.fleet.smallest_limits();
        within(next.bytes(), next.len() as u64, &limits)?;
        let near = within(next.bytes() * 100 / WARN_PERCENT, next.len() as u64 * 100 / WARN_PERCENT, &limits).err();
        if let Some(large) = delta.upserts.iter().find(|r| r.body.len() as u64 > limits.max_resource_bytes) {
            return Err(format!("{}/{} is larger than the smallest node takes", large.kind, large.id));
        }
        let (before, at) = match (previous.filter(|p| !p.is_removed()), row) {
            (Some(previous), _) => (previous.state().extent(), previous.revision()),
            (None, Some(row)) => (row.extent, row.revision),
            (None, None) => (Default::default(), 0),
        };
        if commit.forced_at <= at
            && let Some(why) = limits::needs_force(before, next.extent())
        {
            return Err(format!("{why}; an operator must confirm it"));
        }
        let nothing = Scope::default();
        let change = Change {
            scope,
            next,
            previous: previous.filter(|p| !p.is_removed()).map_or(&nothing, Published::state),
            delta,
        };
        let snapshot = self.snapshot.apply(&change).map_err(|rejection| rejection.to_string())?;
        if let Some(near) = &near {
            tracing::warn!(scope = &**scope, near, "more than {WARN_PERCENT} % of a limit is used");
        }
        Ok((snapshot, near))
    }

    async fn remove(&mut self, row: &ScopeRow) -> Result<(), sqlx::Error> {
        if self.app.publish.board.get(&row.scope).is_some_and(|p| p.revision() >= row.revision) {
            return Ok(());
        }
        self.scopes.remove(&row.scope);
        if let Ok(without) = self.snapshot.without(&row.scope) {
            self.snapshot = without;
        }
        let commit = outbox::commit(&self.app.db, &row.scope, row.revision).await?;
        let name = ScopeName::from(row.scope.as_str());
        self.app.publish.set_status(&name, None);
        self.app.publish.board.post(Published::removed(name, row.revision, commit));
        Ok(())
    }

    /// Asks the database for a new revision of the scope; true when it has one.
    async fn advance(&mut self, scope: &str, revision: u64) -> bool {
        let may = |work: &&mut Work| work.may_be_anew() && work.revision == revision;
        let Some(work) = self.scopes.get_mut(scope).filter(may) else { return false };
        work.anew_at = Some(monotonic());
        match outbox::advance(&self.app, scope, revision).await {
            Ok(moved) => {
                tracing::info!(scope, revision, moved, "the scope gets a new revision");
                moved
            }
            Err(e) => {
                tracing::error!(scope, error = %e, "the scope cannot get a new revision");
                false
            }
        }
    }
}

/// Whether a scope of this size fits.
pub(super) fn within(bytes: u64, resources: u64, limits: &proto::Limits) -> Result<(), String> {
    if bytes > limits.max_scope_bytes {
        return Err(format!("{bytes} bytes; the smallest node takes {}", limits.max_scope_bytes));
    }
    if resources > limits.max_resources {
        return Err(format!("{resources} resources; the smallest node takes {}", limits.max_resources));
    }
    Ok(())
}

fn next_state(previous: Option<&Published>, compiled: &Compiled, revision: u64) -> (Scope, ScopeDelta) {
    let nothing = Scope::default();
    let state = previous.filter(|p| !p.is_removed()).map_or(&nothing, Published::state);
    let changed = |r: &&proto::Resource| state.get(&r.kind, &r.id) != Some(&r.body);
    let upserts: Vec<_> = compiled.resources.iter().filter(changed).cloned().collect();
    let kept: HashSet<(&str, &str)> = compiled.resources.iter().map(|r| (r.kind.as_str(), r.id.as_str())).collect();
    let mut removals = Vec::new();
    // When nothing was dropped the counts say so, which spares a walk through everything.
    let added = upserts.iter().filter(|r| state.get(&r.kind, &r.id).is_none()).count();
    if state.len() + added != kept.len() {
        let gone = state.resources().filter(|r| !kept.contains(&(r.kind.as_str(), r.id.as_str())));
        removals = gone.map(|r| proto::ResourceRef { kind: r.kind, id: r.id }).collect();
    }
    let delta = ScopeDelta { upserts, removals };
    let mut next = state.clone();
    next.apply(&delta, revision);
    (next, delta)
}

async fn debounce(changed: &mut watch::Receiver<u64>) {
    let more = async { while let Ok(Ok(())) = tokio::time::timeout(QUIET, changed.changed()).await {} };
    _ = tokio::time::timeout(LONGEST_DEBOUNCE, more).await;
}
