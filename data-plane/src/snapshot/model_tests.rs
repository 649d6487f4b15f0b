//! The store against S1 to S4, S7, S11 and S12: what it takes, what it refuses, what readers see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use proptest::prelude::*;
use shared::proto::{self, NackCode};
use shared::snapshot::{Rejection, SHARED_SCOPE, Scope, ScopeDelta, Snapshot, limits};

use super::fixture::{self, delta, full, key, key_hash, resource, scope, shared_scope, workspace_id, workspace_scope};
use super::{SelfTest, Store};

/// S1: whatever a reader takes is one state, from the workspace down to the key.
#[test]
fn a_reader_never_sees_two_states_at_once() {
    let store = Arc::new(fixture::store(10));
    let name = workspace_id(1).to_string();
    let reads = 100_000;
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                threads.spawn(|| {
                    for _ in 0..reads / 2 {
                        assert_one_tag(&store.load());
                    }
                })
            })
            .collect();
        threads.spawn(|| {
            let mut held = workspace_scope(1, 1, 10, "A");
            let mut revision = 1;
            while !done.load(Ordering::Relaxed) {
                revision += 1;
                let next = workspace_scope(1, revision, 10, if revision % 2 == 0 { "B" } else { "A" });
                store.apply(&delta(&name, &held, &next)).expect("both states are valid");
                held = next;
            }
            assert!(revision > 10, "the states were swapped while they were read");
        });
        for reader in readers {
            reader.join().expect("no reader saw two tags");
        }
        done.store(true, Ordering::Relaxed);
    });
}

fn assert_one_tag(snapshot: &Snapshot) {
    let workspace = snapshot.workspace(&workspace_id(1)).expect("it is there in every state");
    let tag = &*workspace.display_name;
    for project in workspace.projects.values() {
        assert_eq!(&*project.key, tag);
    }
    let local = &workspace.providers["local"];
    assert_eq!(&*local.base_url.path, format!("/{tag}"));
    assert_eq!(&*local.offering("own-model").expect("it is listed").upstream_model, tag);
    assert_eq!(&*local.credentials[0].name, tag);
    assert_eq!(&*workspace.aliases["fast"].targets[0], tag);
    let (key, of) = snapshot.key(&key_hash(1, 7)).expect("the key is in every state");
    assert_eq!((&*key.name, &*of.display_name), (tag, tag));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// S2 and S7: two control planes deliver in any order, again and again. Revisions only grow, a
    /// delta from elsewhere is refused, and what is held is exactly one of the states.
    #[test]
    fn revisions_only_grow(steps in prop::collection::vec((0_u64..8, 1_u64..8, any::<bool>()), 1..40)) {
        let states: Vec<Scope> = (0..8).map(|r| match r {
            0 => Scope::default(),
            r => workspace_scope(1, r, (r * 3 % 5) as u32, if r % 2 == 0 { "B" } else { "A" }),
        }).collect();
        let store = Store::in_memory(None).expect("threads exist");
        store.apply(&full(SHARED_SCOPE, &shared_scope(1))).expect("the shared scope is valid");
        let name = workspace_id(1).to_string();
        let mut held = 0;
        for (from, to, is_full) in steps {
            let from = if is_full { 0 } else { from };
            let update = delta(&name, &states[from as usize], &states[to as usize]);
            let expected = if to <= held {
                Err(NackCode::Stale)
            } else if from != 0 && from != held {
                Err(NackCode::HashMismatch)
            } else {
                Ok(to)
            };
            let outcome = store.apply(&update);
            prop_assert_eq!(outcome.map(|a| a.revision).map_err(|r| r.code), expected);
            held = expected.unwrap_or(held);
            let (revision, hash) = store.held_scope(&name);
            prop_assert_eq!(revision, held);
            prop_assert_eq!(hash, states[held as usize].state_hash());
            let serving = store.load();
            let keys = states[held as usize].of_kind("api_key").count();
            prop_assert_eq!(serving.key_count(), keys);
            let tag = serving.workspace(&workspace_id(1)).map(|w| w.display_name.to_string());
            prop_assert_eq!(tag, (held > 0).then(|| if held % 2 == 0 { "B".to_owned() } else { "A".to_owned() }));
        }
    }
}

struct Refusing;

impl SelfTest for Refusing {
    fn check(&self, next: &Snapshot, _: &str) -> Result<(), Rejection> {
        let names: Vec<_> = next.workspaces().map(|w| w.display_name.to_string()).collect();
        assert!(!names.contains(&"panic".to_owned()), "on purpose");
        match names.contains(&"self-test".to_owned()) {
            true => Err(Rejection { code: NackCode::SelfTest, path: "x".into(), detail: "y".repeat(10_000) }),
            false => Ok(()),
        }
    }
}

/// S4: every way to be refused, each with its code and the place; nothing changes by it.
#[test]
fn every_refusal_names_its_code_and_place() {
    let store = Store::in_memory(Some(Box::new(Refusing))).expect("threads exist");
    let name = workspace_id(1).to_string();
    store.apply(&full(SHARED_SCOPE, &shared_scope(1))).expect("valid");
    let held = workspace_scope(1, 5, 50, "A");
    store.apply(&full(&name, &held)).expect("valid");
    let with = |upserts: Vec<proto::Resource>| {
        let mut next = held.clone();
        next.apply(&ScopeDelta { upserts, removals: Vec::new() }, 6);
        delta(&name, &held, &next)
    };
    let good = || with(vec![key(1, 77, "A")]);
    let sized = |mut update: proto::Update, bytes: usize| {
        update.upserts[0].body = vec![0; bytes].into();
        update.checksum = limits::checksum(&update.upserts).to_vec();
        update
    };
    let api_key = |change: &dyn Fn(&mut proto::ApiKey)| {
        let mut row = key(1, 77, "A");
        let mut message = <proto::ApiKey as prost::Message>::decode(row.body.clone()).expect("it was encoded here");
        change(&mut message);
        row.body = prost::Message::encode_to_vec(&message).into();
        with(vec![row])
    };
    let renamed = |tag: &str| delta(&name, &held, &workspace_scope(1, 6, 50, tag));
    let mut model = proto::Model {
        id: "mdl_00000000000000010000000000000009".into(),
        provider_id: "prv_00000000000000010000000000000002".into(),
        name: "m".into(),
        private: true,
        facts: Some(proto::ModelFacts { r#type: "chat".into(), ..Default::default() }),
        ..Default::default()
    };
    let negative = proto::Price { input: -1, ..Default::default() };
    model.facts.as_mut().expect("set above").prices =
        vec![proto::Price { id: shared::money::price_id(&negative), ..negative }];
    let cases: Vec<(&str, proto::Update, NackCode, &str)> = vec![
        ("body too large", sized(good(), 2 << 20), NackCode::TooLarge, "api_key/"),
        ("damaged", proto::Update { checksum: vec![0; 32], ..good() }, NackCode::BadChecksum, "scope/"),
        ("no checksum", proto::Update { checksum: Vec::new(), ..good() }, NackCode::BadChecksum, "scope/"),
        ("same revision", proto::Update { to: 5, ..good() }, NackCode::Stale, "scope/"),
        ("older", proto::Update { to: 1, ..full(&name, &held) }, NackCode::Stale, "scope/"),
        ("from elsewhere", proto::Update { from: 4, ..good() }, NackCode::HashMismatch, "scope/"),
        ("other hash", proto::Update { state_hash: vec![0; 32], ..good() }, NackCode::HashMismatch, "scope/"),
        ("short hash", proto::Update { state_hash: vec![0; 31], ..good() }, NackCode::HashMismatch, "scope/"),
        ("shrinks", full(&name, &workspace_scope(1, 6, 20, "A")), NackCode::ShrinkGuard, "scope/"),
        ("emptied", full(&name, &scope(Vec::new(), 6)), NackCode::ShrinkGuard, "scope/"),
        ("undecodable", sized_hash(&held, &name, good(), &[0xff; 9]), NackCode::BadResource, "api_key/"),
        ("no project", api_key(&|k| k.project_id = "prj_0".into()), NackCode::DanglingRef, "api_key/"),
        ("short key hash", api_key(&|k| _ = k.hash.pop()), NackCode::BadResource, "api_key/"),
        ("same key twice", api_key(&|k| k.hash = key_hash(1, 3).to_vec()), NackCode::BadResource, "api_key/"),
        ("bad address", api_key(&|k| k.addresses = vec!["x".into()]), NackCode::BadResource, "api_key/"),
        ("other id", api_key(&|k| k.id = "key_0".into()), NackCode::BadResource, "api_key/"),
        ("bad price", with(vec![resource("model", &model.id, &model)]), NackCode::BadPrice, "model/"),
        ("self-test", renamed("self-test"), NackCode::SelfTest, "x"),
        ("panic", renamed("panic"), NackCode::Internal, "scope/"),
        (
            "another's key",
            full(&workspace_id(2).to_string(), &workspace_scope(1, 6, 1, "A")),
            NackCode::BadResource,
            "api_key/",
        ),
        ("removal with content", proto::Update { scope_removed: true, ..good() }, NackCode::BadChecksum, "scope/"),
        (
            "no shared scope",
            proto::Update { scope: SHARED_SCOPE.into(), scope_removed: true, ..Default::default() },
            NackCode::ShrinkGuard,
            "scope/",
        ),
        ("not a scope", full("nonsense", &workspace_scope(1, 6, 1, "A")), NackCode::BadResource, "scope/"),
        (
            "wrong scope",
            full(&workspace_id(2).to_string(), &workspace_scope(1, 6, 0, "A")),
            NackCode::BadResource,
            "workspace/",
        ),
    ];
    let before = store.load();
    for (what, update, code, path) in cases {
        let rejection = store.apply(&update).expect_err(what);
        assert_eq!(rejection.code, code, "{what}: {rejection}");
        assert!(rejection.path.starts_with(path), "{what}: {rejection}");
        assert!(rejection.detail.len() <= limits::MAX_DETAIL_BYTES, "{what}");
        assert!(Arc::ptr_eq(&before, &store.load()), "{what}: what served before still does");
        assert_eq!(store.held_scope(&name), (5, held.state_hash()), "{what}");
        assert_eq!(store.status().last_rejection().map(|r| r.rejection), Some(rejection), "{what}");
    }
    store.apply(&good()).expect("after all that the good one is taken");
    let forced = proto::Update { force: true, ..full(&name, &workspace_scope(1, 7, 20, "A")) };
    store.apply(&forced).expect("a person confirmed it");
}

fn sized_hash(held: &Scope, name: &str, update: proto::Update, body: &[u8]) -> proto::Update {
    let mut upserts = update.upserts;
    upserts[0].body = body.to_vec().into();
    let mut next = held.clone();
    next.apply(&ScopeDelta { upserts, removals: Vec::new() }, update.to);
    delta(name, held, &next)
}

#[test]
fn a_new_lineage_replaces_everything_by_full_state_only() {
    let store = fixture::store(30);
    let name = workspace_id(1).to_string();
    let held = workspace_scope(1, 1, 30, "A");
    store.apply(&delta(&name, &held, &workspace_scope(1, 9, 30, "B"))).expect("valid");
    store.welcome([2; 16]);
    let (lineage, listed) = store.held();
    assert_eq!(lineage, [2; 16]);
    assert!(listed.iter().all(|h| h.revision == 0 && h.state_hash.is_empty()) && listed.len() == 2);
    assert_eq!(store.load().key_count(), 30, "it serves on");
    assert_eq!(store.held_scope(&name), Default::default(), "but the control plane knows nothing of it");
    let code = |update: &proto::Update| store.apply(update).map(|a| a.revision).map_err(|r| r.code);
    let restored = workspace_scope(1, 3, 30, "A");
    assert_eq!(
        code(&delta(&name, &workspace_scope(1, 9, 30, "B"), &workspace_scope(1, 10, 30, "A"))),
        Err(NackCode::HashMismatch)
    );
    let removal = proto::Update { scope: name.clone(), scope_removed: true, ..Default::default() };
    assert_eq!(code(&removal), Err(NackCode::ShrinkGuard), "an empty database takes nobody's keys away");
    assert_eq!(code(&full(&name, &restored)), Ok(3), "an older revision, of the new lineage");
    assert_eq!(code(&full(&name, &restored)), Err(NackCode::Stale));
    assert_eq!(code(&removal), Ok(0), "within a lineage a workspace may go");
    assert!(store.load().workspace(&workspace_id(1)).is_none() && store.load().key_count() == 0);
    assert_eq!(store.held().1.len(), 1);
}

/// A vendor that leaves the catalogue must not take down who uses it.
#[test]
fn a_catalogue_change_reaches_workspaces_and_harms_none() {
    let store = fixture::store(3);
    let vendors: Vec<_> = shared_scope(2).resources().filter(|r| !r.id.starts_with("local")).collect();
    store.apply(&full(SHARED_SCOPE, &scope(vendors, 2))).expect("valid");
    let snapshot = store.load();
    let workspace = snapshot.workspace(&workspace_id(1)).expect("still there");
    assert_eq!(&*workspace.providers["openai"].vendor.display_name, "openai at 2");
    assert_eq!(&*workspace.providers["local"].vendor.display_name, "local at 1");
    assert!(workspace.providers["local"].offering("gpt-4o").is_some());
}

/// One more key among ten thousand costs what it costs, not what the workspace costs. The bound is
/// wide: it separates "one shard and one chunk" from "all keys decoded again", at any machine's pace.
#[test]
fn one_more_key_does_not_cost_the_workspace() {
    let store = fixture::store(10_000);
    let name = workspace_id(1).to_string();
    let mut held = workspace_scope(1, 1, 10_000, "A");
    let whole = Instant::now();
    let again = workspace_scope(1, 2, 10_000, "B");
    store.apply(&full(&name, &again)).expect("valid");
    let whole = whole.elapsed();
    held.apply(&ScopeDelta { upserts: again.resources().collect(), removals: Vec::new() }, 2);
    let updates: Vec<proto::Update> = (0..20)
        .map(|index| {
            let mut next = held.clone();
            let upserts = vec![key(1, 20_000 + index, "B")];
            next.apply(&ScopeDelta { upserts: upserts.clone(), removals: Vec::new() }, held.revision() + 1);
            let update = proto::Update {
                scope: name.clone(),
                from: held.revision(),
                to: next.revision(),
                checksum: limits::checksum(&upserts).to_vec(),
                upserts,
                state_hash: next.state_hash().as_bytes().to_vec(),
                ..Default::default()
            };
            held = next;
            update
        })
        .collect();
    let one = updates
        .iter()
        .map(|update| {
            let started = Instant::now();
            store.apply(update).expect("valid");
            started.elapsed()
        })
        .min()
        .expect("there are updates");
    println!("one key more: {one:?}; the whole workspace: {whole:?}");
    assert!(one * 20 < whole, "one key more took {one:?}, the whole workspace {whole:?}");
    assert!(store.load().key(&key_hash(1, 20_019)).is_some());
}
