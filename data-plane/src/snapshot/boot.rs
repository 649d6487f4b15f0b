//! Which of the stored states a starting node serves: the newest that is valid, unless the node
//! keeps ending before it has served anything with that one. File and stream go through the same
//! `Snapshot::apply`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;

use shared::digest::{self, Hash, StateHash};
use shared::snapshot::{Change, Rejection, SHARED_SCOPE, Scope, Snapshot};

use super::disk::{Disk, Generation};
use super::store::Lineage;

/// The start after this many short ones on the same states uses other ones. A start is short until
/// it has answered a request well or has lasted.
const SHORT_STARTS: usize = 2;
/// Short starts older than this do not count.
const WITHIN_MS: i64 = 5 * 60 * 1000;
/// Lines kept in the record of starts.
const MOST_STARTS: usize = 32;

/// What a node begins with.
#[derive(Default)]
pub struct Boot {
    /// Serves until the control plane sends something newer.
    pub snapshot: Snapshot,
    /// Of the newest state; zeros when there is none.
    pub lineage: Lineage,
    /// What `snapshot` was made of.
    pub scopes: BTreeMap<String, Stored>,
    /// The newest states, where older ones were taken instead: not to be applied again by this
    /// process.
    pub suspects: HashMap<String, StateHash>,
    /// Older states than the newest were taken, because those kept ending the process.
    pub degraded: bool,
    /// When the control plane was last heard, milliseconds since 1970; 0 = never, as far as is known.
    pub contact_ms: i64,
    start: Start,
}

/// One scope as read from disk.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Which database the revision counts for.
    pub lineage: Lineage,
    /// Its resources.
    pub scope: Scope,
    /// Where it was read.
    pub path: PathBuf,
}

/// One start of the process, on these states.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    /// Names exactly these scopes at these revisions.
    fingerprint: Hash,
    at_ms: i64,
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fingerprint.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, " {}", self.at_ms)
    }
}

impl Start {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (hex, at_ms) = line.split_once(' ')?;
        let mut fingerprint = [0; 32];
        if hex.len() != 64 || !hex.is_ascii() {
            return None;
        }
        for (index, byte) in fingerprint.iter_mut().enumerate() {
            *byte = u8::from_str_radix(hex.get(index * 2..index * 2 + 2)?, 16).ok()?;
        }
        Some(Self { fingerprint, at_ms: at_ms.parse().ok()? })
    }
}

/// Reads the folder and chooses. Never fails: what cannot be used is logged and left out. The start
/// is recorded, so that a start that does not last is seen by the next one.
pub fn boot(disk: &Disk, now_ms: i64) -> Boot {
    let mut files = Files { disk, read: HashMap::new() };
    let mut starts = disk.starts();
    starts.retain(|start| (0..WITHIN_MS).contains(&now_ms.saturating_sub(start.at_ms)));
    let newest = files.choose(Order::Newest);
    let short = |boot: &Boot| starts.iter().filter(|start| start.fingerprint == boot.start.fingerprint).count();
    let mut chosen = None;
    if !newest.scopes.is_empty() && short(&newest) >= SHORT_STARTS {
        let mut others = [Order::Good, Order::Previous, Order::Oldest].into_iter().map(|order| files.choose(order));
        chosen = others.find(|other| serves_all_of(other, &newest) && short(other) < SHORT_STARTS);
        if chosen.is_none() {
            tracing::error!("the newest state ended this node repeatedly; no older one is whole, so it serves again");
        }
    }
    let mut chosen = match chosen {
        Some(older) => degrade(older, &newest),
        None => newest,
    };
    chosen.contact_ms = disk.contact_ms();
    chosen.start.at_ms = now_ms;
    if !chosen.scopes.is_empty() {
        starts.push(chosen.start);
        let extra = starts.len().saturating_sub(MOST_STARTS);
        if let Err(e) = disk.write_starts(&starts[extra..]) {
            tracing::warn!(error = %e, "the start could not be recorded");
        }
    }
    chosen
}

/// The process has served this long enough: neither this start nor an earlier one on the same
/// states was a short one.
pub(super) fn lasted(disk: &Disk, start: Start) -> std::io::Result<()> {
    disk.retain_starts(|other| other.fingerprint != start.fingerprint)
}

/// The process has answered a request well: its start was no short one, whatever ends it now. What
/// earlier starts came to stays.
pub(super) fn answered(disk: &Disk, start: Start) -> std::io::Result<()> {
    // Two starts within a millisecond look alike, and only one of them has answered.
    let mut found = false;
    disk.retain_starts(|other| {
        let own = !found && *other == start;
        found |= own;
        !own
    })
}

impl Boot {
    /// This start, as recorded.
    pub(super) fn start(&self) -> Start {
        self.start
    }
}

/// Whether `older` can stand in for `newest`. A node that answers 401 to valid keys takes traffic and
/// fails it, which is worse than one that may end again and is then not sent any. So the shared scope
/// and every workspace must be there, and a workspace from before its first key is as good as missing.
fn serves_all_of(older: &Boot, newest: &Boot) -> bool {
    let has_keys = |stored: &Stored| stored.scope.of_kind("api_key").next().is_some();
    newest
        .scopes
        .iter()
        .all(|(name, stored)| older.scopes.get(name).is_some_and(|older| has_keys(older) || !has_keys(stored)))
}

fn degrade(older: Boot, newest: &Boot) -> Boot {
    tracing::error!("the newest state ended this node repeatedly; starting from an older one");
    let hash_of = |boot: &Boot, scope: &String| boot.scopes.get(scope).map(|stored| stored.scope.state_hash());
    let suspects = newest
        .scopes
        .iter()
        .map(|(scope, stored)| (scope.clone(), stored.scope.state_hash()))
        .filter(|(scope, hash)| hash_of(&older, scope) != Some(*hash))
        .collect();
    Boot { suspects, degraded: true, ..older }
}

/// Which generation of each scope is wanted first.
#[derive(Debug, Clone, Copy)]
enum Order {
    Newest,
    Good,
    Previous,
    Oldest,
}

impl Order {
    /// `found` is newest first, the good one last.
    fn sort(self, mut found: Vec<Generation>) -> Vec<Generation> {
        match self {
            Self::Newest => {}
            Self::Good => found.sort_by_key(|generation| generation.number.is_some()),
            Self::Previous => {
                let newest = found.first().is_some_and(|g| g.number.is_some()).then(|| found.remove(0));
                found.extend(newest);
            }
            Self::Oldest => found.reverse(),
        }
        found
    }
}

/// Files read so far; `None` for one that cannot be used.
struct Files<'a> {
    disk: &'a Disk,
    read: HashMap<Generation, Option<Stored>>,
}

impl Files<'_> {
    /// The first usable state of every scope in this order. The workspaces decide between states of
    /// the shared scope: the first under which none of them is lost.
    fn choose(&mut self, order: Order) -> Boot {
        let mut names = self.disk.scopes();
        names.retain(|name| name != SHARED_SCOPE);
        let mut best: Option<(usize, Boot)> = None;
        for generation in order.sort(self.disk.generations(SHARED_SCOPE)) {
            let Some(shared) = self.read(SHARED_SCOPE, &generation) else { continue };
            let mut boot = Boot::default();
            if let Err(rejection) = boot.add(SHARED_SCOPE, shared) {
                tracing::warn!(path = %generation.path.display(), %rejection, "a stored state is not valid");
                continue;
            }
            let lost = names.iter().filter(|name| !self.add_first_usable(&mut boot, name, order)).count();
            if best.as_ref().is_none_or(|(fewest, _)| lost < *fewest) {
                best = Some((lost, boot));
            }
            if lost == 0 {
                break;
            }
        }
        let mut boot = best.map(|(_, boot)| boot).unwrap_or_default();
        boot.seal();
        boot
    }

    fn add_first_usable(&mut self, boot: &mut Boot, scope: &str, order: Order) -> bool {
        order.sort(self.disk.generations(scope)).iter().any(|generation| {
            let Some(stored) = self.read(scope, generation) else { return false };
            match boot.add(scope, stored) {
                Ok(()) => true,
                Err(rejection) => {
                    tracing::warn!(path = %generation.path.display(), %rejection, "a stored state is not valid");
                    false
                }
            }
        })
    }

    fn read(&mut self, scope: &str, generation: &Generation) -> Option<Stored> {
        let disk = self.disk;
        let read = self.read.entry(generation.clone()).or_insert_with(|| {
            let damaged =
                |damage| tracing::warn!(path = %generation.path.display(), %damage, "a stored state is unreadable");
            disk.read(scope, generation).map_err(damaged).ok()
        });
        read.clone()
    }
}

impl Boot {
    fn add(&mut self, name: &str, stored: Stored) -> Result<(), Rejection> {
        let empty = Scope::default();
        let delta = empty.delta_to(&stored.scope);
        let change = Change { scope: name, next: &stored.scope, previous: &empty, delta: &delta };
        self.snapshot = self.snapshot.apply(&change)?;
        self.scopes.insert(name.to_owned(), stored);
        Ok(())
    }

    fn seal(&mut self) {
        // The shared scope is replaced first under a new lineage, so it tells the newest.
        self.lineage = self.scopes.get(SHARED_SCOPE).map(|shared| shared.lineage).unwrap_or_default();
        let mut sum = digest::Sum::default();
        for (name, stored) in &self.scopes {
            sum.update(name.as_bytes());
            sum.update(&stored.lineage);
            sum.update(&stored.scope.revision().to_le_bytes());
            sum.update(stored.scope.state_hash().as_bytes());
        }
        self.start.fingerprint = sum.finish();
    }
}
