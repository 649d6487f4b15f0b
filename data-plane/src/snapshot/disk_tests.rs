//! S8: whatever happens to the files or in the middle of a write, a node boots from a valid state
//! or from none.

use std::fs;
use std::io;

use prost::Message;
use shared::proto;
use shared::snapshot::{SHARED_SCOPE, Scope};

use super::Store;
use super::boot::boot;
use super::disk::{Disk, GENERATIONS, Step};
use super::fixture::{
    self, Folder, SECRET, delta, full, key, key_hash, scope, shared_scope, workspace_id, workspace_resources,
    workspace_scope,
};
use super::keeper::Keeper;
use super::seal::HEADER_BYTES;
use super::status::Status;

const LINEAGE: [u8; 16] = [3; 16];

fn name() -> String {
    workspace_id(1).to_string()
}

fn state(revision: u64) -> Scope {
    workspace_scope(1, revision, 2, if revision.is_multiple_of(2) { "B" } else { "A" })
}

/// A folder with the shared scope and the first `revisions` of a workspace.
fn written(folder: &Folder, revisions: u64) -> Disk {
    let disk = Disk::open(folder.path()).expect("the folder is ours");
    disk.write(SHARED_SCOPE, LINEAGE, &shared_scope(1)).expect("there is room");
    for revision in 1..=revisions {
        disk.write(&name(), LINEAGE, &state(revision)).expect("there is room");
    }
    disk
}

fn booted_revision(disk: &Disk) -> Option<u64> {
    // Far apart, so that starts do not count as short ones of each other.
    let boot = boot(disk, i64::from_le_bytes(runtime::random::bytes::<8>()) >> 8);
    let revision = boot.scopes.get(&name()).map(|stored| stored.scope.revision());
    if let Some(revision) = revision {
        let workspace = boot.snapshot.workspace(&workspace_id(1)).expect("a stored scope serves");
        assert_eq!(boot.scopes[&name()].scope.state_hash(), state(revision).state_hash());
        assert_eq!(&*workspace.display_name, if revision % 2 == 0 { "B" } else { "A" });
        assert_eq!(boot.lineage, LINEAGE);
    }
    revision
}

#[test]
fn any_damage_boots_the_one_before_or_none() {
    let folder = Folder::new("damage");
    let disk = written(&folder, 2);
    assert_eq!(booted_revision(&disk), Some(2));
    let files = disk.generations(&name());
    let whole: Vec<Vec<u8>> = files.iter().map(|g| fs::read(&g.path).expect("just written")).collect();
    // Every length of the header, and a sample of the rest.
    let lengths = (0..whole[0].len()).filter(|at| *at <= HEADER_BYTES + 2 || at % 97 == 0 || *at + 20 > whole[0].len());
    for length in lengths {
        fs::write(&files[0].path, &whole[0][..length]).expect("there is room");
        assert_eq!(booted_revision(&disk), Some(1), "cut to {length}");
    }
    let positions = (0..whole[0].len()).filter(|at| *at <= HEADER_BYTES + 2 || at % 61 == 0);
    for at in positions {
        let mut flipped = whole[0].clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&files[0].path, &flipped).expect("there is room");
        assert_eq!(booted_revision(&disk), Some(1), "flipped at {at}");
    }
    fs::write(&files[0].path, &whole[1]).expect("there is room");
    assert_eq!(booted_revision(&disk), Some(1), "another generation's bytes are a valid older state");
    let other_scope = disk.generations(SHARED_SCOPE);
    fs::copy(&other_scope[0].path, &files[0].path).expect("there is room");
    assert_eq!(booted_revision(&disk), Some(1), "another scope's file");
    fs::write(&files[1].path, b"").expect("there is room");
    assert_eq!(booted_revision(&disk), None);
}

#[test]
fn ending_after_any_step_of_a_write_loses_nothing() {
    let steps = [
        (Step::Created, 3),
        (Step::HalfWritten, 3),
        (Step::Written, 3),
        (Step::Synced, 3),
        (Step::Renamed, 4),
        (Step::FolderSynced, 4),
        (Step::Pruned, 4),
    ];
    for (last, expected) in steps {
        let folder = Folder::new("steps");
        let disk = written(&folder, 3);
        let mut stop = |step| if step == last { Err(io::Error::other("the process ends here")) } else { Ok(()) };
        disk.write_step_by_step(&name(), LINEAGE, &state(4), &mut stop).expect_err("it ends there");
        drop(disk);
        let disk = Disk::open(folder.path()).expect("the lock went with the process");
        assert_eq!(booted_revision(&disk), Some(expected), "after {last:?}");
        disk.write(&name(), LINEAGE, &state(5)).expect("the next process goes on");
        assert_eq!(booted_revision(&disk), Some(5), "after {last:?}");
        assert_eq!(disk.generations(&name()).len(), GENERATIONS);
    }
}

/// S9: what a restart must not forget for workspaces that limit the age of their configuration.
#[test]
fn the_last_word_of_the_control_plane_is_remembered() {
    let folder = Folder::new("disk-contact");
    let store = || Store::open(folder.path(), None).expect("the folder is ours");
    assert_eq!(store().age_ms(5_000), 5_000, "never heard");
    {
        let store = store();
        store.heard(1_000_000);
        store.heard(1_000_001);
        assert_eq!(store.age_ms(1_000_005), 4);
        assert_eq!(store.age_ms(999_000), 0, "a clock that was set back");
    }
    let kept = store();
    assert_eq!(kept.age_ms(1_000_005), 5, "written down at most every ten seconds");
    kept.heard(1_010_000);
    drop(kept);
    assert_eq!(store().age_ms(1_010_000), 0);
}

#[test]
fn files_show_no_secret_and_only_their_owner_reads_them() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("sealed");
    let disk = written(&folder, 1);
    let mut files: Vec<_> =
        [SHARED_SCOPE.to_owned(), name()].iter().flat_map(|s| disk.generations(s)).map(|g| g.path).collect();
    files.push(folder.path().join("seal.key"));
    for path in files {
        let bytes = fs::read(&path).expect("it is there");
        let shown = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!shown(SECRET) && !shown("openai"), "{}", path.display());
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
    assert!(disk.write("../outside", LINEAGE, &state(1)).is_err());
}

#[test]
fn another_key_reads_nothing_and_the_node_goes_on() {
    let folder = Folder::new("key");
    drop(written(&folder, 1));
    fs::write(folder.path().join("seal.key"), b"short").expect("there is room");
    let disk = Disk::open(folder.path()).expect("a damaged key is set aside");
    assert_eq!(booted_revision(&disk), None);
    disk.write(SHARED_SCOPE, LINEAGE, &shared_scope(2)).expect("there is room");
    disk.write(&name(), LINEAGE, &state(6)).expect("there is room");
    assert_eq!(booted_revision(&disk), Some(6));
}

#[test]
fn one_process_at_a_time() {
    let folder = Folder::new("lock");
    let first = Disk::open(folder.path()).expect("the folder is ours");
    let refused = Disk::open(folder.path()).expect_err("it is in use");
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    drop(first);
    Disk::open(folder.path()).expect("it is free again");
}

#[test]
fn a_removed_scope_stays_removed() {
    let folder = Folder::new("removed");
    let disk = written(&folder, 3);
    disk.remove(&name()).expect("it is there");
    disk.remove(&name()).expect("removing again changes nothing");
    assert_eq!((disk.scopes(), booted_revision(&disk)), (vec![SHARED_SCOPE.to_owned()], None));
}

/// F19: a state that ends the process twice is not the one of the third start.
#[test]
fn the_third_short_start_uses_an_older_state() {
    let folder = Folder::new("loop");
    let disk = written(&folder, 2);
    let minute = 60_000;
    let start = |at_minutes: i64| boot(&disk, at_minutes * minute);
    let revision = |boot: &super::boot::Boot| boot.scopes[&name()].scope.revision();
    assert_eq!(revision(&start(100)), 2);
    assert_eq!(revision(&start(101)), 2);
    let third = start(102);
    assert_eq!((revision(&third), third.degraded), (1, true));
    assert_eq!(third.suspects.get(&name()), Some(&state(2).state_hash()));
    assert!(!third.suspects.contains_key(SHARED_SCOPE), "what did not change is no suspect");
    let later = start(110);
    assert_eq!((revision(&later), later.degraded), (2, false), "after five quiet minutes it is tried again");

    // While degraded the same state is not taken again, a newer one is.
    start(111);
    let status = std::sync::Arc::new(Status::default());
    let third = start(112);
    assert!(third.degraded);
    let store = Store::new(third, None, None, status).expect("threads exist");
    let again = store.apply(&delta(&name(), &state(1), &state(2))).expect_err("it ended the process before");
    assert_eq!(again.code, shared::proto::NackCode::Internal);
    assert_eq!(store.held_scope(&name()).0, 1);
    assert!(store.is_ready() && store.status().degraded.load(std::sync::atomic::Ordering::Relaxed));
    store.apply(&full(&name(), &workspace_scope(1, 3, 2, "C"))).expect("a newer state may be better");
}

/// S9: a node that is killed again and again but answers each time serves the newest each time. F19
/// still holds for starts that end before they answer.
#[test]
fn a_start_that_answered_is_no_short_one() {
    // What each start does (a: answers, then is killed; d: dies first), and what it serves (n: the
    // newest state, o: an older one).
    let cases = [
        ("aaaaaaaaaaa", "nnnnnnnnnnn"),
        ("ddaaa", "nnooo"),
        ("adda", "nnno"),
        ("dadaa", "nnnoo"),
        ("dadadd", "nnnooo"),
    ];
    for (starts, serve) in cases {
        let folder = Folder::new("answered");
        drop(written(&folder, 2));
        for (index, (act, serves)) in starts.chars().zip(serve.chars()).enumerate() {
            let store = Store::open(folder.path(), None).expect("the one before is gone");
            let expected = if serves == 'n' { (2, false) } else { (1, true) };
            let degraded = store.status().degraded.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!((store.held_scope(&name()).0, degraded), expected, "{starts}, start {index}");
            let recorded = || fs::read_to_string(folder.path().join("starts")).expect("written").lines().count();
            let before = recorded();
            if act == 'a' {
                store.answered();
                assert_eq!(recorded(), before - 1, "{starts}, start {index}: written before it returns");
                store.answered();
                assert_eq!(recorded(), before - 1, "{starts}, start {index}: once");
            }
        }
    }
}

/// An older state with which valid keys would be answered 401 is no way out of a crash loop.
#[test]
fn an_older_state_stands_in_only_if_nothing_is_missing() {
    let other = workspace_id(2).to_string();
    // It holds a key that workspace 1 had at revision 1: the two are not valid together.
    let moved = {
        let mut resources = workspace_resources(2, 0, "A");
        let resource = key(2, 0, "moved");
        let mut key = proto::ApiKey::decode(resource.body.clone()).expect("just encoded");
        key.hash = key_hash(1, 0).to_vec();
        resources.push(fixture::resource("api_key", &resource.id, &key));
        scope(resources, 1)
    };
    let of_keys = |revision, keys| (name(), workspace_scope(1, revision, keys, "A"));
    let cases = [
        ("whole", vec![of_keys(1, 2), of_keys(2, 3)], 1),
        ("before its first key", vec![of_keys(1, 0), of_keys(2, 2)], 2),
        ("never had a key", vec![of_keys(1, 0), of_keys(2, 0)], 1),
        ("whole further back", vec![of_keys(1, 2), of_keys(2, 0), of_keys(3, 2)], 1),
        ("without the other workspace", vec![of_keys(1, 2), of_keys(2, 0), (other.clone(), moved)], 2),
    ];
    for (case, states, expected) in cases {
        let folder = Folder::new("whole");
        let disk = written(&folder, 0);
        let newest = states.iter().filter(|(scope, _)| *scope == name()).map(|(_, state)| state.revision()).max();
        let scopes = 1 + states.iter().map(|(scope, _)| scope).collect::<std::collections::BTreeSet<_>>().len();
        for (scope, state) in &states {
            disk.write(scope, LINEAGE, state).expect("there is room");
        }
        let start = |at_ms| boot(&disk, at_ms);
        let revision = |boot: &super::boot::Boot| boot.scopes[&name()].scope.revision();
        assert_eq!([start(1), start(2)].map(|boot| Some(revision(&boot))), [newest; 2], "{case}");
        let third = start(3);
        assert_eq!((revision(&third), third.scopes.len()), (expected, scopes), "{case}");
        assert_eq!(third.degraded, Some(expected) != newest, "{case}");
    }
}

#[test]
fn a_good_state_outlives_its_generation() {
    let folder = Folder::new("good");
    let disk = written(&folder, 1);
    let path = disk.generations(&name())[0].path.clone();
    disk.nominate(&name(), &path).expect("it is there");
    disk.confirm(&name()).expect("it was nominated");
    for revision in 2..=6 {
        disk.write(&name(), LINEAGE, &state(revision)).expect("there is room");
    }
    let left = disk.generations(&name());
    assert_eq!(left.len(), GENERATIONS + 1);
    assert_eq!(left.last().map(|g| g.number), Some(None));
    for newer in &left[..GENERATIONS] {
        fs::write(&newer.path, b"torn").expect("there is room");
    }
    assert_eq!(booted_revision(&disk), Some(1));
}

#[test]
fn many_changes_are_few_writes_and_the_last_one_counts() {
    let folder = Folder::new("coalesce");
    let disk = written(&folder, 1);
    let boot = boot(&disk, 0);
    let started = std::time::Instant::now();
    let keeper = Keeper::start(disk, &boot, std::sync::Arc::default()).expect("threads exist");
    for revision in 2..=500 {
        keeper.keep(&name(), LINEAGE, state(revision));
    }
    keeper.flush();
    let allowed = 3 + started.elapsed().as_secs() + 1;
    drop(keeper);
    let disk = Disk::open(folder.path()).expect("the keeper is gone");
    assert_eq!(booted_revision(&disk), Some(500));
    let newest = disk.generations(&name())[0].number.expect("the newest has a number");
    assert!(newest <= 1 + allowed, "{newest} writes");
}

/// S9: what a store was given is what the next process begins with, without anyone's help.
#[test]
fn a_restarted_node_serves_what_it_served() {
    let folder = Folder::new("restart");
    let held = {
        let store = Store::open(folder.path(), None).expect("the folder is ours");
        assert!(!store.is_ready(), "F6: a new node without a file is not ready");
        store.welcome(LINEAGE);
        store.apply(&full(SHARED_SCOPE, &shared_scope(4))).expect("valid");
        store.apply(&full(&name(), &state(8))).expect("valid");
        let other = workspace_id(2).to_string();
        store.apply(&full(&other, &workspace_scope(2, 1, 1, "A"))).expect("valid");
        let gone = shared::proto::Update { scope: other, scope_removed: true, ..Default::default() };
        store.apply(&gone).expect("a workspace may go");
        store.held()
    };
    let store = Store::open(folder.path(), None).expect("the first one is gone");
    assert!(store.is_ready());
    assert_eq!(store.held(), held);
    assert_eq!(held.0, LINEAGE);
    assert_eq!(store.load().key_count(), 2);
}
