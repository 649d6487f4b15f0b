//! One stream to the control plane, without the stream: messages and times in, steps out. Every
//! decision of the node's side of the protocol is here; `client` carries the steps out.

use std::collections::HashSet;
use std::time::Duration;

use shared::proto::{self, NackCode, control_message, node_message};
use shared::snapshot::{Rejection, SCHEMA, SHARED_SCOPE};

use super::assemble::{Assembler, Piece};
use super::store::{Applied, Lineage};

/// How long the control plane may take to answer Hello.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Heartbeats that may be missing before the stream is lost.
const MISSED: u32 = 3;
/// The heartbeat when the control plane names none, and the range that is believed.
const HEARTBEAT: (Duration, Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(10), Duration::from_secs(60));
/// The longest wait that a control plane may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// What has to be done next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Send this.
    Send(proto::NodeMessage),
    /// The stream stands; this is what it serves.
    Welcomed(Lineage),
    /// Check this update and report to [`Session::on_outcome`]; one after the other.
    Apply(Box<proto::Update>),
    /// This update cannot be put together: report so to [`Session::on_outcome`].
    Refuse(Box<proto::Update>, Rejection),
    /// Every scope has been applied or refused once: the node may serve.
    Synchronised,
    /// Something belonged to nothing, and was dropped.
    Ignored,
    /// End the stream. Nothing may follow.
    Close(Close),
}

/// Why a stream ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Close {
    /// Nothing was heard for too long.
    Silence,
    /// This process stood still for so long that the other side has given it up.
    Frozen,
    /// The other side broke the protocol.
    Violation(&'static str),
    /// The other side speaks no schema that this program reads.
    Schema(u32),
    /// The other side asked for it.
    GoAway {
        /// For the log.
        reason: String,
        /// When to come back.
        retry_after: Duration,
    },
}

impl std::fmt::Display for Close {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Silence => f.write_str("nothing heard for too long"),
            Self::Frozen => f.write_str("this process stood still"),
            Self::Violation(what) => write!(f, "protocol violation: {what}"),
            Self::Schema(schema) => write!(f, "snapshot schema {schema} is not known"),
            Self::GoAway { reason, retry_after } => write!(f, "asked to come back after {retry_after:?}: {reason}"),
        }
    }
}

/// One stream, from Hello to its end.
#[derive(Debug)]
pub struct Session {
    lineage: Lineage,
    /// Scopes held at the start.
    held: HashSet<String>,
    /// Scopes of this lineage that were held, applied or refused.
    heard: HashSet<String>,
    expected: u64,
    synchronised: bool,
    assembler: Assembler,
    applying: usize,
    welcomed: bool,
    heartbeat: Duration,
    last_heard: Duration,
    last_sent: Duration,
    last_tick: Duration,
}

impl Session {
    /// A stream whose Hello names `lineage` and `held`. `now` here and below is a monotonic clock.
    pub fn new(lineage: Lineage, held: &[proto::Held], now: Duration) -> Self {
        Self {
            lineage,
            held: held.iter().map(|held| held.scope.clone()).collect(),
            heard: held.iter().filter(|held| held.revision > 0).map(|held| held.scope.clone()).collect(),
            expected: 0,
            synchronised: false,
            assembler: Assembler::default(),
            applying: 0,
            welcomed: false,
            heartbeat: HEARTBEAT.1,
            last_heard: now,
            last_sent: now,
            last_tick: now,
        }
    }

    /// Whether the control plane has answered.
    pub fn is_welcomed(&self) -> bool {
        self.welcomed
    }

    /// What a message leads to.
    pub fn on_message(&mut self, message: proto::ControlMessage, now: Duration) -> Vec<Step> {
        self.last_heard = now;
        let Some(message) = message.message else {
            return vec![Step::Close(Close::Violation("a message of an unknown kind"))];
        };
        match message {
            control_message::Message::Welcome(welcome) => self.on_welcome(&welcome),
            control_message::Message::GoAway(away) => vec![Step::Close(Close::GoAway {
                reason: away.reason.chars().take(200).collect(),
                retry_after: Duration::from_millis(away.retry_after_ms).min(MAX_RETRY_AFTER),
            })],
            control_message::Message::Heartbeat(_) | control_message::Message::Update(_) if !self.welcomed => {
                vec![Step::Close(Close::Violation("something came before Welcome"))]
            }
            control_message::Message::Heartbeat(_) => Vec::new(),
            control_message::Message::Update(chunk) => self.on_chunk(chunk),
        }
    }

    /// The answer to a [`Step::Apply`] or [`Step::Refuse`]. `held` is what the node serves of the scope now.
    pub fn on_outcome(
        &mut self,
        update: &proto::Update,
        outcome: Result<Applied, Rejection>,
        held: proto::Held,
        took: Duration,
        now: Duration,
    ) -> Vec<Step> {
        self.applying = self.applying.saturating_sub(1);
        let settled = match &outcome {
            Err(rejection) => match rejection.code {
                // Full state follows.
                NackCode::HashMismatch => false,
                // Perhaps only because it overtook the catalogue; then it comes again.
                NackCode::DanglingRef => self.heard.contains(SHARED_SCOPE),
                NackCode::Unspecified
                | NackCode::TooLarge
                | NackCode::BadSignature
                | NackCode::BadChecksum
                | NackCode::UnsupportedSchema
                | NackCode::BadExpr
                | NackCode::BadPrice
                | NackCode::ShrinkGuard
                | NackCode::Stale
                | NackCode::SelfTest
                | NackCode::Oom
                | NackCode::Internal
                | NackCode::BadResource => true,
            },
            // A scope that was held and goes is not one of those that are to come.
            Ok(_) => !(update.scope_removed && self.held.contains(&update.scope)),
        };
        let message = match outcome {
            Ok(applied) => node_message::Message::Ack(proto::Ack {
                nonce: update.nonce,
                scope: applied.scope,
                revision: applied.revision,
                state_hash: applied.state_hash.as_bytes().to_vec(),
                apply_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            }),
            Err(rejection) => node_message::Message::Nack(proto::Nack {
                nonce: update.nonce,
                scope: update.scope.clone(),
                revision: update.to,
                code: rejection.code.into(),
                path: rejection.path,
                detail: rejection.detail,
                held_revision: held.revision,
                held_state_hash: held.state_hash,
            }),
        };
        let mut steps = vec![self.send(message, now)];
        if settled {
            self.heard.insert(update.scope.clone());
            steps.extend(self.synchronise());
        }
        steps
    }

    /// Call when [`Session::next_tick`] has come. `load` becomes the heartbeat, when one is due.
    pub fn on_tick(&mut self, load: impl FnOnce() -> proto::Heartbeat, now: Duration) -> Vec<Step> {
        let stood_still = now.saturating_sub(self.last_tick) >= self.patience();
        self.last_tick = now;
        // After a long stop the other side has closed already, but what it sent before may lie
        // unread: without this check the node would believe old news for another round.
        if stood_still {
            return vec![Step::Close(Close::Frozen)];
        }
        if now.saturating_sub(self.last_heard) >= self.patience() {
            return vec![Step::Close(Close::Silence)];
        }
        if self.welcomed && now.saturating_sub(self.last_sent) >= self.heartbeat {
            return vec![self.send(node_message::Message::Heartbeat(load()), now)];
        }
        Vec::new()
    }

    /// When to call [`Session::on_tick`] next; several times
    /// before the stream would count as lost.
    pub fn next_tick(&self) -> Duration {
        let lost = self.last_heard + self.patience();
        let beat = self.last_sent + self.heartbeat;
        lost.min(if self.welcomed { beat } else { lost }).min(self.last_tick + self.patience() / MISSED)
    }

    fn patience(&self) -> Duration {
        if self.welcomed { self.heartbeat * MISSED } else { WELCOME_TIMEOUT }
    }

    fn on_welcome(&mut self, welcome: &proto::Welcome) -> Vec<Step> {
        if self.welcomed {
            return vec![Step::Close(Close::Violation("a second Welcome"))];
        }
        let Ok(lineage) = Lineage::try_from(welcome.lineage.as_slice()) else {
            return vec![Step::Close(Close::Violation("the lineage is not 16 bytes"))];
        };
        if welcome.schema != SCHEMA {
            return vec![Step::Close(Close::Schema(welcome.schema))];
        }
        self.welcomed = true;
        self.heartbeat = match welcome.heartbeat_ms {
            0 => HEARTBEAT.1,
            ms => Duration::from_millis(ms).clamp(HEARTBEAT.0, HEARTBEAT.2),
        };
        self.expected = welcome.scopes;
        if lineage != self.lineage {
            self.heard.clear();
        }
        let mut steps = vec![Step::Welcomed(lineage)];
        steps.extend(self.synchronise());
        steps
    }

    fn on_chunk(&mut self, chunk: proto::Update) -> Vec<Step> {
        match self.assembler.take(chunk) {
            Piece::More => Vec::new(),
            Piece::Ignored => vec![Step::Ignored],
            Piece::TooMany => vec![Step::Close(Close::Violation("too many updates at once"))],
            Piece::Refused(update, rejection) => {
                self.applying += 1;
                vec![Step::Refuse(update, rejection)]
            }
            Piece::Whole(update) => {
                self.applying += 1;
                if self.applying > shared::snapshot::limits::MAX_UNACKED {
                    return vec![Step::Close(Close::Violation("too many updates at once"))];
                }
                vec![Step::Apply(update)]
            }
        }
    }

    fn synchronise(&mut self) -> Option<Step> {
        let complete = match self.expected {
            // A control plane that does not say: the shared scope and some workspace.
            0 => self.heard.contains(SHARED_SCOPE) && self.heard.len() > 1,
            expected => self.heard.len() as u64 >= expected,
        };
        let first = complete && !self.synchronised;
        self.synchronised |= complete;
        first.then_some(Step::Synchronised)
    }

    fn send(&mut self, message: node_message::Message, now: Duration) -> Step {
        // Any message tells the other side that this one lives, but only heartbeats carry the load.
        if matches!(message, node_message::Message::Heartbeat(_)) {
            self.last_sent = now;
        }
        Step::Send(proto::NodeMessage { message: Some(message) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{full, shared_scope, workspace_id, workspace_scope};
    use super::*;

    const T: fn(u64) -> Duration = Duration::from_millis;

    fn control(message: control_message::Message) -> proto::ControlMessage {
        proto::ControlMessage { message: Some(message) }
    }

    fn welcome(scopes: u64) -> proto::ControlMessage {
        control(control_message::Message::Welcome(proto::Welcome {
            lineage: vec![1; 16],
            schema: SCHEMA,
            heartbeat_ms: 1000,
            scopes,
        }))
    }

    fn welcomed(scopes: u64) -> Session {
        let mut session = Session::new([0; 16], &[], T(0));
        session.on_message(welcome(scopes), T(0));
        session
    }

    fn update(name: &str, nonce: u64) -> proto::Update {
        let scope = if name == SHARED_SCOPE { shared_scope(1) } else { workspace_scope(1, 1, 0, "A") };
        proto::Update { nonce, ..full(name, &scope) }
    }

    fn applied(session: &mut Session, update: &proto::Update, outcome: Result<(), NackCode>) -> Vec<Step> {
        let steps = session.on_message(control(control_message::Message::Update(update.clone())), T(1));
        assert!(matches!(steps.as_slice(), [Step::Apply(_)]), "{steps:?}");
        let outcome = outcome
            .map(|()| Applied { scope: update.scope.clone(), revision: update.to, state_hash: Default::default() })
            .map_err(|code| Rejection { code, path: "p".into(), detail: "d".into() });
        let held = proto::Held { scope: update.scope.clone(), revision: 9, state_hash: vec![9] };
        session.on_outcome(update, outcome, held, T(2), T(3))
    }

    fn sent(step: &Step) -> &node_message::Message {
        match step {
            Step::Send(proto::NodeMessage { message: Some(message) }) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_breach_of_protocol_ends_the_stream() {
        let other_schema = control(control_message::Message::Welcome(proto::Welcome {
            lineage: vec![1; 16],
            schema: SCHEMA + 1,
            ..Default::default()
        }));
        let short_lineage =
            control(control_message::Message::Welcome(proto::Welcome { schema: SCHEMA, ..Default::default() }));
        let beat = || control(control_message::Message::Heartbeat(proto::Heartbeat::default()));
        let cases = [
            ("unknown oneof", false, proto::ControlMessage { message: None }),
            ("unknown oneof later", true, proto::ControlMessage { message: None }),
            ("heartbeat first", false, beat()),
            ("update first", false, control(control_message::Message::Update(update("x", 1)))),
            ("schema", false, other_schema),
            ("lineage", false, short_lineage),
            ("second welcome", true, welcome(1)),
        ];
        for (what, after_welcome, message) in cases {
            let mut session = if after_welcome { welcomed(1) } else { Session::new([0; 16], &[], T(0)) };
            let steps = session.on_message(message, T(1));
            assert!(matches!(steps.as_slice(), [Step::Close(_)]), "{what}: {steps:?}");
        }
        assert_eq!(welcomed(1).on_message(beat(), T(1)), []);
    }

    #[test]
    fn a_new_node_is_ready_when_each_scope_was_applied_or_refused() {
        let ws = workspace_id(1).to_string();
        let mut session = welcomed(2);
        let steps = applied(&mut session, &update(&ws, 1), Err(NackCode::DanglingRef));
        assert!(matches!(steps.as_slice(), [Step::Send(_)]), "{steps:?}");
        let steps = applied(&mut session, &update(SHARED_SCOPE, 2), Ok(()));
        assert!(matches!(steps.as_slice(), [Step::Send(_)]), "it overtook the catalogue and comes again: {steps:?}");
        let steps = applied(&mut session, &update(&ws, 3), Err(NackCode::HashMismatch));
        assert!(matches!(steps.as_slice(), [Step::Send(_)]), "full state is still to come: {steps:?}");
        let steps = applied(&mut session, &update(&ws, 4), Err(NackCode::BadResource));
        assert!(matches!(steps.as_slice(), [Step::Send(_), Step::Synchronised]), "{steps:?}");
        let steps = applied(&mut session, &update(&ws, 5), Ok(()));
        assert!(matches!(steps.as_slice(), [Step::Send(_)]), "once: {steps:?}");
    }

    #[test]
    fn what_is_held_counts_in_the_same_lineage_only() {
        let held = |scope: &str| proto::Held { scope: scope.into(), revision: 3, state_hash: vec![0; 32] };
        let held = [held(SHARED_SCOPE), held("ws_1")];
        let mut same = Session::new([1; 16], &held, T(0));
        assert_eq!(same.on_message(welcome(2), T(0)), [Step::Welcomed([1; 16]), Step::Synchronised]);
        let mut other = Session::new([2; 16], &held, T(0));
        assert_eq!(other.on_message(welcome(2), T(0)), [Step::Welcomed([1; 16])]);
    }

    #[test]
    fn answers_carry_what_the_control_plane_needs() {
        let mut session = welcomed(1);
        let good = update(SHARED_SCOPE, 7);
        let steps = applied(&mut session, &good, Ok(()));
        let node_message::Message::Ack(ack) = sent(&steps[0]) else { panic!("{steps:?}") };
        assert_eq!((ack.nonce, ack.scope.as_str(), ack.revision, ack.apply_us), (7, SHARED_SCOPE, 1, 2000));
        let steps = applied(&mut session, &update(SHARED_SCOPE, 8), Err(NackCode::Stale));
        let node_message::Message::Nack(nack) = sent(&steps[0]) else { panic!("{steps:?}") };
        assert_eq!((nack.nonce, nack.code(), nack.held_revision), (8, NackCode::Stale, 9));
        assert_eq!((nack.path.as_str(), nack.detail.as_str(), &nack.held_state_hash), ("p", "d", &vec![9]));
        let replay = session.on_message(control(control_message::Message::Update(good)), T(5));
        assert_eq!(replay, [Step::Ignored], "S6: an old nonce confirms nothing");
    }

    #[test]
    fn heartbeats_go_out_and_silence_ends_the_stream() {
        let load = || proto::Heartbeat { journal_bytes: 5, ..Default::default() };
        let mut session = welcomed(1);
        assert_eq!(session.next_tick(), T(1000));
        assert_eq!(session.on_tick(load, T(999)), []);
        let steps = session.on_tick(load, T(1000));
        assert!(matches!(sent(&steps[0]), node_message::Message::Heartbeat(beat) if beat.journal_bytes == 5));
        assert_eq!(session.on_tick(load, T(2000)).len(), 1);
        assert_eq!(session.on_tick(load, T(2999)).len(), 0);
        assert_eq!(session.on_tick(load, T(3000)), [Step::Close(Close::Silence)]);

        let mut session = welcomed(1);
        session.on_message(control(control_message::Message::Heartbeat(proto::Heartbeat::default())), T(2900));
        session.on_tick(load, T(2900));
        assert_eq!(session.on_tick(load, T(3000)), [], "any message counts as heard");
        assert!(matches!(session.on_tick(load, T(5899)).as_slice(), [Step::Send(_)]));

        let mut waiting = Session::new([0; 16], &[], T(0));
        assert_eq!(waiting.on_tick(load, T(9000)), []);
        assert_eq!(waiting.on_tick(load, WELCOME_TIMEOUT), [Step::Close(Close::Silence)]);
    }

    #[test]
    fn a_process_that_stood_still_believes_nothing_old() {
        let mut session = welcomed(1);
        session.on_tick(proto::Heartbeat::default, T(1000));
        // 45 s later, and what was sent before the stop is read first.
        session.on_message(control(control_message::Message::Heartbeat(proto::Heartbeat::default())), T(46_000));
        assert_eq!(session.on_tick(proto::Heartbeat::default, T(46_000)), [Step::Close(Close::Frozen)]);
    }

    #[test]
    fn go_away_is_honoured_within_reason() {
        for (asked, expected) in [(1500, 1500), (u64::MAX, 300_000), (0, 0)] {
            let away = proto::GoAway { reason: "restart".into(), retry_after_ms: asked };
            let steps = welcomed(1).on_message(control(control_message::Message::GoAway(away)), T(1));
            let close = Close::GoAway { reason: "restart".into(), retry_after: T(expected) };
            assert_eq!(steps, [Step::Close(close)]);
        }
    }

    #[test]
    fn no_more_updates_wait_than_the_protocol_allows() {
        let mut session = welcomed(1);
        for nonce in 1..=32 {
            let steps =
                session.on_message(control(control_message::Message::Update(update(SHARED_SCOPE, nonce))), T(1));
            assert!(matches!(steps.as_slice(), [Step::Apply(_)]));
        }
        let steps = session.on_message(control(control_message::Message::Update(update(SHARED_SCOPE, 33))), T(1));
        assert!(matches!(steps.as_slice(), [Step::Close(Close::Violation(_))]));
    }
}
