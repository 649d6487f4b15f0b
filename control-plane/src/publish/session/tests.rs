//! What a session sends, and when: each rule by itself, and a model node that follows the board
//! through any order of commits, answers and lost streams.

use proptest::prelude::*;

use shared::snapshot::{Scope, ScopeDelta};

use super::super::published::Commit;
use super::*;

const LINEAGE: [u8; 16] = [7; 16];
const NODE: NodeId = NodeId::from_u128(1);

fn hello(held: &[(&str, u64, StateHash)]) -> proto::Hello {
    proto::Hello {
        node_id: NODE.to_string(),
        boot_id: vec![1; 16],
        schema_min: 1,
        schema_max: 1,
        lineage: LINEAGE.to_vec(),
        held: held
            .iter()
            .map(|(scope, revision, hash)| proto::Held {
                scope: (*scope).into(),
                revision: *revision,
                state_hash: hash.as_bytes().to_vec(),
            })
            .collect(),
        ..Default::default()
    }
}

/// Publishes another revision of `scope`, in which one resource differs.
fn publish(board: &Board, scope: &str, id: u8) -> u64 {
    let previous = board.get(scope);
    let mut state = previous.as_ref().map(|p| p.state().clone()).unwrap_or_default();
    let revision = state.revision() + 1;
    let delta = match id % 5 == 4 && state.len() > 1 {
        true => {
            let gone = state.resources().next().expect("it holds some");
            ScopeDelta { upserts: Vec::new(), removals: vec![proto::ResourceRef { kind: gone.kind, id: gone.id }] }
        }
        false => {
            let body = revision.to_be_bytes().to_vec().into();
            let upserts = vec![proto::Resource { kind: "k".into(), id: (id % 5).to_string(), body }];
            ScopeDelta { upserts, removals: Vec::new() }
        }
    };
    state.apply(&delta, revision);
    board.post(match previous {
        Some(previous) => previous.next(state, &delta, Commit::default()),
        None => Published::first(scope.into(), state, Commit::default()),
    });
    revision
}

fn board(scopes: &[&str]) -> Arc<Board> {
    let board = Arc::new(Board::default());
    for scope in scopes {
        publish(&board, scope, 0);
    }
    board.complete();
    board
}

fn open(board: &Arc<Board>, hello: &proto::Hello) -> (Session, Vec<Output>) {
    let (mut session, mut out) = Session::open(hello, NODE, &LINEAGE, board.clone(), 0, 0).expect("a good Hello");
    out.extend(session.admit(0));
    (session, out)
}

/// As the node sees it: through the wire.
fn updates(outputs: &[Output]) -> Vec<proto::Update> {
    let sent = outputs.iter().filter_map(|o| match o {
        Output::Send(message) => Some(message),
        _ => None,
    });
    sent.filter_map(|message| {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        match proto::ControlMessage::decode(&*bytes).expect("a valid message").message {
            Some(proto::control_message::Message::Update(update)) => Some(update),
            _ => None,
        }
    })
    .collect()
}

fn answer(message: proto::node_message::Message) -> proto::NodeMessage {
    proto::NodeMessage { message: Some(message) }
}

fn ack(update: &proto::Update) -> proto::NodeMessage {
    answer(proto::node_message::Message::Ack(proto::Ack {
        nonce: update.nonce,
        scope: update.scope.clone(),
        revision: update.to,
        state_hash: update.state_hash.clone(),
        apply_us: 1,
    }))
}

fn nack(update: &proto::Update, code: NackCode, held: (u64, StateHash)) -> proto::NodeMessage {
    answer(proto::node_message::Message::Nack(proto::Nack {
        nonce: update.nonce,
        scope: update.scope.clone(),
        revision: update.to,
        code: code.into(),
        held_revision: held.0,
        held_state_hash: held.1.as_bytes().to_vec(),
        ..Default::default()
    }))
}

fn names(updates: &[proto::Update]) -> Vec<(&str, u64, u64)> {
    updates.iter().map(|u| (u.scope.as_str(), u.from, u.to)).collect()
}

fn served(outputs: &[Output]) -> Vec<(&str, u64)> {
    outputs
        .iter()
        .filter_map(|o| match o {
            Output::Serves { scope, revision, .. } => Some((&**scope, *revision)),
            _ => None,
        })
        .collect()
}

#[test]
fn the_catalogue_goes_first_and_workspaces_wait_for_its_answer() {
    let board = board(&["ws_a", "shared", "ws_b"]);
    let (mut session, out) = open(&board, &hello(&[]));
    assert!(matches!(&out[0], Output::Send(Outgoing::Welcome(w)) if w.scopes == 3 && w.heartbeat_ms == 10_000));
    let first = updates(&out);
    assert_eq!(names(&first), [("shared", 0, 1)]);
    let out = session.message(ack(&first[0]), 1);
    assert_eq!(served(&out), [("shared", 1)]);
    assert_eq!(names(&updates(&out)), [("ws_a", 0, 1), ("ws_b", 0, 1)]);
}

#[test]
fn up_to_date_is_silent_behind_gets_a_delta_and_unknown_gets_all() {
    let board = board(&["shared", "ws_a", "ws_b", "ws_c"]);
    let hash = |scope: &str| board.get(scope).expect("published").state_hash();
    let (shared, a, b) = (hash("shared"), hash("ws_a"), hash("ws_b"));
    publish(&board, "ws_b", 1);
    publish(&board, "ws_b", 2);
    let mut wrong = hash("ws_c");
    wrong.add(&[1; 32]);
    publish(&board, "ws_c", 1);
    let (_, out) = open(&board, &hello(&[("shared", 1, shared), ("ws_a", 1, a), ("ws_b", 1, b), ("ws_c", 1, wrong)]));
    assert_eq!(names(&updates(&out)), [("ws_b", 1, 3), ("ws_c", 0, 2)]);
    let mut foreign = hello(&[("shared", 1, shared), ("ws_a", 1, a), ("ws_gone", 4, b)]);
    foreign.lineage = vec![9; 16];
    let (mut session, out) = open(&board, &foreign);
    let first = updates(&out);
    assert_eq!(names(&first), [("shared", 0, 1)], "another lineage's revisions say nothing");
    let out = session.message(ack(&first[0]), 0);
    let next = updates(&out);
    assert_eq!(names(&next), [("ws_a", 0, 1), ("ws_b", 0, 3), ("ws_c", 0, 2), ("ws_gone", 0, 0)]);
    assert!(next[3].scope_removed);
}

#[test]
fn a_thousand_changes_without_an_answer_are_one_update_afterwards() {
    let board = board(&["shared", "ws_a"]);
    let (mut session, out) = open(&board, &hello(&[]));
    let out = session.message(ack(&updates(&out)[0]), 0);
    let pending = updates(&out);
    for n in 0..1_000 {
        publish(&board, "ws_a", u8::try_from(n % 250).expect("small"));
        assert_eq!(session.moved(0), [], "nothing queues");
        assert_eq!(session.unacked(), 1);
    }
    let out = session.message(ack(&pending[0]), 1);
    let last: Vec<_> = updates(&out).iter().map(|u| u.to).collect();
    assert_eq!(last, [1_001], "one update, to the newest");
    assert_eq!(session.message(ack(&updates(&out)[0]), 2).len(), 1);
}

#[test]
fn at_most_32_updates_wait_for_answers() {
    let scopes: Vec<String> = (0..100).map(|n| format!("ws_{n:03}")).collect();
    let mut all: Vec<&str> = scopes.iter().map(String::as_str).collect();
    all.push("shared");
    let board = board(&all);
    let (mut session, out) = open(&board, &hello(&[]));
    let mut waiting: Vec<_> = updates(&session.message(ack(&updates(&out)[0]), 0));
    let mut seen = 0;
    while let Some(update) = waiting.pop() {
        assert!(session.unacked() <= limits::MAX_UNACKED);
        seen += 1;
        waiting.extend(updates(&session.message(ack(&update), 0)));
    }
    assert_eq!(seen, 100);
}

#[test]
fn answers_to_nothing_are_ignored() {
    let board = board(&["shared", "ws_a"]);
    let (mut session, out) = open(&board, &hello(&[]));
    let update = updates(&out).remove(0);
    let other = |change: fn(&mut proto::Update)| {
        let mut other = update.clone();
        change(&mut other);
        other
    };
    for wrong in
        [other(|u| u.nonce += 1), other(|u| u.nonce = 0), other(|u| u.scope = "ws_a".into()), other(|u| u.to = 9)]
    {
        assert_eq!(session.message(ack(&wrong), 0), [Output::Ignored]);
    }
    assert_eq!(
        session.message(nack(&other(|u| u.nonce = 77), NackCode::Oom, Default::default()), 0),
        [Output::Ignored]
    );
    assert_eq!(served(&session.message(ack(&update), 0)), [("shared", 1)]);
    assert_eq!(session.message(ack(&update), 0), [Output::Ignored], "a replayed answer confirms nothing");
}

#[test]
fn a_refused_revision_waits_for_the_next_one() {
    let board = board(&["shared", "ws_a"]);
    let (mut session, out) = open(&board, &hello(&[]));
    let update = updates(&session.message(ack(&updates(&out)[0]), 0)).remove(0);
    let out = session.message(nack(&update, NackCode::SelfTest, Default::default()), 0);
    assert!(matches!(&out[..], [Output::Refused(r)] if r.code == NackCode::SelfTest && r.revision == 1));
    assert_eq!(session.moved(0), []);
    publish(&board, "ws_a", 1);
    let out = session.moved(0);
    session.admit(0);
    assert_eq!(names(&updates(&out)), [("ws_a", 0, 2)]);
}

#[test]
fn a_hash_mismatch_gets_full_state_once() {
    let board = board(&["shared", "ws_a"]);
    let hash = |scope: &str| board.get(scope).expect("published").state_hash();
    let held = [("shared", 1, hash("shared")), ("ws_a", 1, hash("ws_a"))];
    publish(&board, "ws_a", 1);
    let (mut session, out) = open(&board, &hello(&held));
    let delta = updates(&out).remove(0);
    assert_eq!(delta.from, 1);
    let out = session.message(nack(&delta, NackCode::HashMismatch, (1, held[1].2)), 0);
    let full = updates(&out).remove(0);
    assert_eq!((full.from, full.to), (0, 2));
    let out = session.message(nack(&full, NackCode::HashMismatch, (1, held[1].2)), 0);
    assert!(matches!(&out[..], [Output::Refused(_)]), "not again and again: {out:?}");
}

#[test]
fn what_waited_for_the_catalogue_is_offered_again() {
    let board = board(&["shared", "ws_a"]);
    let (mut session, out) = open(&board, &hello(&[]));
    let update = updates(&session.message(ack(&updates(&out)[0]), 0)).remove(0);
    session.message(nack(&update, NackCode::DanglingRef, Default::default()), 0);
    publish(&board, "shared", 1);
    let out = session.moved(0);
    let out = session.message(ack(&updates(&out)[0]), 0);
    let out = [out, session.admit(0)].concat();
    assert_eq!(names(&updates(&out)), [("ws_a", 0, 1)]);
}

#[test]
fn removed_scopes_are_dropped_and_others_awaited() {
    let board = board(&["shared", "ws_a"]);
    let hash = |scope: &str| board.get(scope).expect("published").state_hash();
    let held = [("shared", 1, hash("shared")), ("ws_a", 1, hash("ws_a")), ("ws_new", 5, hash("ws_a"))];
    let (mut session, out) = open(&board, &hello(&held));
    assert_eq!(updates(&out), [], "a scope that this replica has yet to hear of stays");
    board.post(Published::removed("ws_a".into(), 2, Commit::default()));
    let update = updates(&session.moved(0)).remove(0);
    assert!(update.scope_removed && update.last && update.to == 2 && !update.force);
    assert_eq!(session.message(ack(&update), 0), [Output::Dropped("ws_a".into())]);
    assert_eq!(session.message(ack(&update), 0), [Output::Ignored]);
}

#[test]
fn a_removal_that_was_asked_for_is_confirmed_to_nodes_of_any_lineage() {
    let board = board(&["shared", "ws_a"]);
    let hash = |scope: &str| board.get(scope).expect("published").state_hash();
    let held = [("shared", 1, hash("shared")), ("ws_a", 1, hash("ws_a"))];
    board.post(Published::removed("ws_a".into(), 2, Commit { at_ms: 0, forced_at: 2 }));
    let foreign = proto::Hello { lineage: vec![8; 16], ..hello(&held) };
    for (hello, catalogue) in [(hello(&held), false), (foreign, true)] {
        let (mut session, mut out) = open(&board, &hello);
        if catalogue {
            out = session.message(ack(&updates(&out)[0]), 0);
        }
        let sent = updates(&out);
        let [update] = &sent[..] else { panic!("one update: {out:?}") };
        assert_eq!((update.scope.as_str(), update.scope_removed, update.force), ("ws_a", true, true));
        assert!(!session.is_settled());
        session.message(ack(update), 0);
        assert!(session.is_settled());
    }
}

#[test]
fn a_stale_replica_sends_nothing_older_and_asks_for_anew_on_divergence() {
    let board = board(&["shared", "ws_a", "ws_b"]);
    let hash = |scope: &str| board.get(scope).expect("published").state_hash();
    let held = [("shared", 1, hash("shared")), ("ws_a", 9, StateHash::default()), ("ws_b", 1, StateHash::default())];
    let (mut session, out) = open(&board, &hello(&held));
    assert_eq!(out[1..], [Output::Diverged { scope: "ws_b".into(), revision: 1 }]);
    for _ in 0..9 {
        publish(&board, "ws_a", 1);
    }
    let out = session.moved(0);
    let out = [out, session.admit(0)].concat();
    assert_eq!(names(&updates(&out)), [("ws_a", 0, 10)]);
}

#[test]
fn full_states_wait_for_their_turn() {
    let board = board(&["shared", "ws_a"]);
    let (mut session, out) = Session::open(&hello(&[]), NODE, &LINEAGE, board, 0, 0).expect("a good Hello");
    assert_eq!(updates(&out), []);
    assert!(session.waits_for_full() && session.gives_back(0));
    let update = updates(&session.admit(0)).remove(0);
    assert!(!session.gives_back(FULL_PATIENCE_MS - 1), "the place is taken while it is unanswered");
    let next = updates(&session.message(ack(&update), 0)).remove(0);
    assert!(!session.gives_back(0));
    session.message(ack(&next), 0);
    assert!(session.gives_back(0) && !session.waits_for_full());
    let (mut stuck, _) = Session::open(&hello(&[]), NODE, &LINEAGE, session.board.clone(), 0, 0).expect("a good Hello");
    stuck.admit(0);
    assert!(stuck.gives_back(FULL_PATIENCE_MS), "a node that never answers keeps no place");
}

#[test]
fn time_ends_streams() {
    let board = board(&["shared"]);
    let (mut session, _) = open(&board, &hello(&[]));
    assert_eq!(session.tick(HEARTBEAT_MS - 1), []);
    assert!(matches!(session.tick(HEARTBEAT_MS)[..], [Output::Send(Outgoing::Heartbeat(_))]));
    assert_eq!(session.tick(HEARTBEAT_MS + 1), [], "one per period");
    let beat =
        answer(proto::node_message::Message::Heartbeat(proto::Heartbeat { journal_bytes: 5, ..Default::default() }));
    assert!(matches!(session.message(beat.clone(), 20_000)[..], [Output::Beat(b)] if b.journal_bytes == 5));
    assert!(!session.tick(20_000 + LOST_MS - 1).contains(&Output::Close(Closing::Lost)));
    assert_eq!(session.tick(20_000 + LOST_MS), [Output::Close(Closing::Lost)]);

    let ages: Vec<u64> = [0, 1, 5, 1_000_000_007, u64::MAX]
        .into_iter()
        .map(|random| Session::open(&hello(&[]), NODE, &LINEAGE, board.clone(), 0, random).expect("good").0.ends_ms)
        .collect();
    assert!(ages.iter().all(|age| (24 * 60_000..36 * 60_000).contains(age)), "30 minutes, 20 % more or less: {ages:?}");
    let (mut old, _) = open(&board, &hello(&[]));
    old.message(beat, ages[0] - 1);
    let out = old.tick(ages[0]);
    assert!(matches!(out[..], [Output::Send(Outgoing::GoAway(_)), Output::Close(Closing::Aged)]));
}

#[test]
fn broken_openings_are_refused() {
    let board = board(&["shared"]);
    let with = |change: fn(&mut proto::Hello)| {
        let mut bad = hello(&[]);
        change(&mut bad);
        Session::open(&bad, NODE, &LINEAGE, board.clone(), 0, 0).map(|_| ()).expect_err("it must be refused")
    };
    let protocol: [fn(&mut proto::Hello); 8] = [
        |h| h.node_id = NodeId::from_u128(2).to_string(),
        |h| h.node_id.clear(),
        |h| h.boot_id.truncate(15),
        |h| h.lineage.truncate(3),
        |h| h.version = "x".repeat(257),
        |h| h.labels = (0..65).map(|n| (n.to_string(), String::new())).collect(),
        |h| h.held = vec![proto::Held { state_hash: vec![1], ..Default::default() }],
        |h| h.schema_min = 2,
    ];
    for change in protocol {
        assert!(matches!(with(change), Closing::Protocol(_)));
    }
    assert_eq!(with(|h| (h.schema_min, h.schema_max) = (2, 3)), Closing::Schema);
    assert_eq!(with(|h| (h.schema_min, h.schema_max) = (0, 0)), Closing::Schema);
    let (mut session, _) = open(&board, &hello(&[]));
    for message in [answer(proto::node_message::Message::Hello(hello(&[]))), proto::NodeMessage { message: None }] {
        assert!(matches!(session.message(message, 0)[..], [Output::Close(Closing::Protocol(_))]));
    }
}

/// A node that keeps the rules: S2, S7, one answer per update.
#[derive(Default)]
struct Model {
    scopes: HashMap<String, Scope>,
    chunks: HashMap<u64, ScopeDelta>,
}

impl Model {
    fn hello(&self) -> proto::Hello {
        let held: Vec<_> = self.scopes.iter().map(|(n, s)| (n.as_str(), s.revision(), s.state_hash())).collect();
        hello(&held)
    }

    fn take(&mut self, update: proto::Update) -> Option<proto::NodeMessage> {
        let delta = self.chunks.entry(update.nonce).or_default();
        delta.upserts.extend(update.upserts.iter().cloned());
        delta.removals.extend(update.removals.iter().cloned());
        if !update.last {
            return None;
        }
        let delta = self.chunks.remove(&update.nonce).unwrap_or_default();
        let held = self.scopes.get(&update.scope).cloned().unwrap_or_default();
        let refuse = |code| Some(nack(&update, code, (held.revision(), held.state_hash())));
        if update.scope_removed {
            self.scopes.remove(&update.scope);
            return Some(ack(&update));
        }
        if update.to <= held.revision() {
            return refuse(NackCode::Stale);
        }
        if update.from != 0 && update.from != held.revision() {
            return refuse(NackCode::HashMismatch);
        }
        if update.checksum != limits::checksum(&delta.upserts) {
            return refuse(NackCode::BadChecksum);
        }
        let mut next = if update.from == 0 { Scope::default() } else { held.clone() };
        next.apply(&delta, update.to);
        if next.state_hash().as_bytes().as_slice() != update.state_hash {
            return refuse(NackCode::HashMismatch);
        }
        self.scopes.insert(update.scope.clone(), next);
        Some(ack(&update))
    }
}

#[derive(Debug, Clone)]
enum Step {
    Publish(u8, u8),
    /// The node reads its next message.
    Read,
    /// One of its answers arrives, whichever.
    Arrive(u16),
    /// An answer that arrived before arrives again.
    Repeat(u16),
    Forge(u64),
    Refuse,
    Tick,
    /// Everything under way is lost.
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..4, any::<u8>()).prop_map(|(scope, id)| Step::Publish(scope, id)),
        4 => Just(Step::Read),
        4 => any::<u16>().prop_map(Step::Arrive),
        1 => any::<u16>().prop_map(Step::Repeat),
        1 => any::<u64>().prop_map(Step::Forge),
        1 => Just(Step::Refuse),
        1 => Just(Step::Tick),
        1 => Just(Step::Reconnect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// S2, S5, S6, S7 whatever is delayed, reordered, repeated or lost.
    #[test]
    fn a_node_follows_the_board(steps in prop::collection::vec(step(), 0..120)) {
        const SCOPES: [&str; 4] = ["shared", "ws_a", "ws_b", "ws_c"];
        let board = board(&["shared"]);
        let mut node = Model::default();
        let (mut session, out) = open(&board, &node.hello());
        let mut wire: std::collections::VecDeque<_> = updates(&out).into();
        let (mut answers, mut past) = (Vec::new(), Vec::new());
        let mut last: HashMap<String, u64> = HashMap::new();
        let settle = steps.len();
        let ending = std::iter::once(Step::Reconnect)
            .chain(SCOPES.iter().enumerate().map(|(n, _)| Step::Publish(u8::try_from(n).expect("four"), 1)))
            .chain((0..400).flat_map(|_| [Step::Read, Step::Arrive(0)]));
        for (at, step) in steps.into_iter().chain(ending).enumerate() {
            let out = match step {
                Step::Publish(scope, id) => {
                    publish(&board, SCOPES[usize::from(scope)], id);
                    session.moved(0)
                }
                Step::Read | Step::Refuse => {
                    let refuse = matches!(step, Step::Refuse);
                    if let Some(update) = wire.pop_front() {
                        let answer = match refuse && update.last && at < settle {
                            true => {
                                node.chunks.remove(&update.nonce);
                                let held = node.scopes.get(&update.scope).cloned().unwrap_or_default();
                                Some(nack(&update, NackCode::BadResource, (held.revision(), held.state_hash())))
                            }
                            false => node.take(update),
                        };
                        answers.extend(answer);
                    }
                    Vec::new()
                }
                Step::Arrive(_) if answers.is_empty() => Vec::new(),
                Step::Arrive(which) => {
                    let answer = answers.remove(usize::from(which) % answers.len());
                    past.push(answer.clone());
                    session.message(answer, 0)
                }
                Step::Repeat(_) if past.is_empty() => Vec::new(),
                Step::Repeat(which) => session.message(past[usize::from(which) % past.len()].clone(), 0),
                Step::Forge(nonce) => {
                    let forged = proto::Update { nonce: nonce | (1 << 40), scope: "ws_a".into(), to: 99, ..Default::default() };
                    let out = session.message(ack(&forged), 0);
                    prop_assert!(out.contains(&Output::Ignored));
                    out
                }
                Step::Tick => session.tick(1),
                Step::Reconnect => {
                    answers.clear();
                    past.clear();
                    node.chunks.clear();
                    let (next, out) = open(&board, &node.hello());
                    session = next;
                    wire.clear();
                    out
                }
            };
            let out = if session.waits_for_full() { [out, session.admit(0)].concat() } else { out };
            let broken = |o: &Output| matches!(o, Output::Close(_) | Output::Diverged { .. });
            prop_assert!(!out.iter().any(broken), "{:?}", out);
            wire.extend(updates(&out));
            prop_assert!(session.unacked() <= limits::MAX_UNACKED);
            let mut scopes: Vec<_> = session.in_flight.values().map(|f| f.scope.clone()).collect();
            scopes.sort();
            let before = scopes.len();
            scopes.dedup();
            prop_assert_eq!(before, scopes.len(), "one unacknowledged update per scope");
            for (scope, state) in &node.scopes {
                let seen = last.insert(scope.clone(), state.revision()).unwrap_or_default();
                prop_assert!(state.revision() >= seen, "a node never goes back");
            }
        }
        for published in board.all() {
            let held = node.scopes.get(&**published.scope()).expect("every scope arrived");
            prop_assert_eq!(held.revision(), published.revision());
            prop_assert_eq!(held.state_hash(), published.state_hash());
        }
        prop_assert_eq!(session.unacked(), 0);
    }
}
