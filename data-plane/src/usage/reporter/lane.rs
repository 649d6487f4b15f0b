//! One journal on a stream: which messages it has to send, and what the answers mean. It touches the
//! journal's files and no network.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use runtime::clock;
use shared::digest::{self, Hash};
use shared::proto::{self, usage_message::Message};

use super::message;
use super::status::Status;
use crate::usage::journal::{Final, Mark, Spool, Tail};

/// Batches of one journal that may be unanswered.
pub const WINDOW: usize = 4;
/// Records of a batch at most.
const BATCH_RECORDS: usize = 1000;
/// Bytes of a batch at most, but for its last record.
const BATCH_BYTES: usize = 512 * 1024;
/// Numbering a journal anew cannot be the cure twice within this time.
const RENUMBER_PAUSE: Duration = Duration::from_secs(60);
/// Wait after a journal could not be read or was refused.
const STOP_PAUSE: Duration = Duration::from_secs(30);

/// What the stream should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing special.
    GoOn,
    /// Give the stream up: a newer one reports this journal.
    Fenced,
}

#[derive(Debug)]
enum State {
    /// Not opened on this stream.
    Closed,
    /// Asked to open.
    Opening,
    /// May send batches.
    Open(Box<Sending>),
    /// Not before this time.
    Stopped(Duration),
}

#[derive(Debug)]
struct Sending {
    session: u64,
    tail: Tail,
    /// Finals sent, and the chain value after them.
    sent: u64,
    chain: Hash,
    in_flight: VecDeque<(u64, Hash)>,
}

/// One journal.
#[derive(Debug)]
pub struct Lane {
    spool: Arc<Spool>,
    status: Arc<Status>,
    state: State,
    renumbered: Option<Duration>,
}

impl Lane {
    /// Not opened yet.
    pub fn new(spool: Arc<Spool>, status: Arc<Status>) -> Self {
        Self { spool, status, state: State::Closed, renumbered: None }
    }

    /// The stream is new: nothing is open on it.
    pub fn disconnected(&mut self) {
        self.state = State::Closed;
    }

    /// Whether answers with this incarnation are for it.
    pub fn is_called(&self, incarnation: &[u8]) -> bool {
        self.spool.mark().incarnation.0 == incarnation
    }

    /// Whether an answer is outstanding.
    pub fn is_waiting(&self) -> bool {
        match &self.state {
            State::Opening => true,
            State::Open(sending) => !sending.in_flight.is_empty(),
            State::Closed | State::Stopped(_) => false,
        }
    }

    /// What it has to send now.
    pub fn next_message(&mut self) -> Option<proto::UsageMessage> {
        match &mut self.state {
            State::Closed if self.spool.unacked() > 0 => {
                self.state = State::Opening;
                let incarnation = self.spool.mark().incarnation.0.to_vec();
                Some(message(Message::Open(proto::UsageOpen { incarnation, held_from: self.spool.held_from() })))
            }
            State::Stopped(until) if clock::monotonic() >= *until => {
                self.state = State::Closed;
                self.next_message()
            }
            State::Open(sending) => match next_batch(&self.spool, sending) {
                Ok(batch) => batch.map(|batch| message(Message::Batch(batch))),
                Err(error) => {
                    tracing::error!(journal = %self.spool.dir().display(), %error, "the usage journal cannot be read");
                    self.status.unreadable.fetch_add(1, Ordering::Relaxed);
                    self.stop();
                    None
                }
            },
            State::Closed | State::Opening | State::Stopped(_) => None,
        }
    }

    /// The ledger says how far it is.
    pub fn on_opened(&mut self, opened: &proto::UsageOpened) -> Verdict {
        if matches!(self.state, State::Opening) {
            self.start_at(opened.session, opened.applied_seq, &opened.chain);
        }
        Verdict::GoOn
    }

    /// The ledger has more.
    pub fn on_accepted(&mut self, accepted: &proto::UsageAccepted) -> Verdict {
        let State::Open(sending) = &mut self.state else { return Verdict::GoOn };
        let mark = self.spool.mark();
        let at = mark.offset.saturating_add(accepted.applied_seq);
        let Some(place) = sending.in_flight.iter().position(|(last, _)| *last == at) else {
            // An older answer, or one to a batch of another life of this stream.
            return Verdict::GoOn;
        };
        let (_, chain) = sending.in_flight[place];
        if accepted.chain != chain {
            self.renumber("the ledger confirmed other records than were sent");
            return Verdict::GoOn;
        }
        sending.in_flight.drain(..=place);
        self.confirm(&mark, at, chain);
        Verdict::GoOn
    }

    /// The ledger misses something.
    pub fn on_resend(&mut self, resend: &proto::UsageResend) -> Verdict {
        if let State::Open(sending) = &self.state {
            let session = sending.session;
            self.start_at(session, resend.from_seq.saturating_sub(1), &resend.chain);
        }
        Verdict::GoOn
    }

    /// The ledger refuses.
    pub fn on_rejected(&mut self, rejected: &proto::UsageRejected) -> Verdict {
        match rejected.code.as_str() {
            "fenced" => {
                self.status.fenced.fetch_add(1, Ordering::Relaxed);
                return Verdict::Fenced;
            }
            "chain_mismatch" => {
                self.renumber("the ledger knows this journal with other records; its folder was copied")
            }
            _ => {
                tracing::error!(
                    journal = %self.spool.dir().display(), code = rejected.code, detail = rejected.detail,
                    "the ledger refuses this usage journal; its records are kept"
                );
                self.status.rejected.fetch_add(1, Ordering::Relaxed);
                self.stop();
            }
        }
        Verdict::GoOn
    }

    /// Sends on from what the ledger has, if both mean the same records by it.
    fn start_at(&mut self, session: u64, applied_seq: u64, chain: &[u8]) {
        let mark = self.spool.mark();
        let at = mark.offset.saturating_add(applied_seq);
        match chain_at(&self.spool, &mark, at) {
            Ok(Some(own)) if own == chain => {
                self.confirm(&mark, at, own);
                let tail = Tail::after(&self.spool, at);
                let in_flight = VecDeque::with_capacity(WINDOW);
                self.state = State::Open(Box::new(Sending { session, tail, sent: at, chain: own, in_flight }));
            }
            Ok(_) => self.renumber("the ledger and this journal disagree on what was reported"),
            Err(error) => {
                tracing::error!(journal = %self.spool.dir().display(), %error, "the usage journal cannot be read");
                self.status.unreadable.fetch_add(1, Ordering::Relaxed);
                self.stop();
            }
        }
    }

    fn confirm(&self, before: &Mark, at: u64, chain: Hash) {
        self.spool.ack(at, chain);
        self.status.reported.fetch_add(at.saturating_sub(before.acked), Ordering::Relaxed);
        if let Err(error) = self.spool.trim() {
            tracing::warn!(journal = %self.spool.dir().display(), %error, "reported usage could not be deleted");
        }
    }

    /// All that is held goes out again under a new name. The ledger skips the requests it knows.
    fn renumber(&mut self, why: &str) {
        let now = clock::monotonic();
        let old = self.spool.mark().incarnation;
        if self.renumbered.is_some_and(|at| now.saturating_sub(at) < RENUMBER_PAUSE) {
            tracing::error!(journal = %self.spool.dir().display(), incarnation = %old, reason = why, "a usage journal was refused twice; waiting");
            return self.stop();
        }
        self.status.renumbered.fetch_add(1, Ordering::Relaxed);
        match self.spool.renumber() {
            Ok(fresh) => {
                tracing::error!(
                    journal = %self.spool.dir().display(), incarnation = %old, now = %fresh.incarnation, reason = why,
                    "usage journal numbered anew"
                );
                self.renumbered = Some(now);
                self.state = State::Closed;
            }
            Err(error) => {
                tracing::error!(journal = %self.spool.dir().display(), %error, "the usage journal cannot be numbered anew");
                self.stop();
            }
        }
    }

    fn stop(&mut self) {
        self.state = State::Stopped(clock::monotonic() + STOP_PAUSE);
    }
}

/// The next batch, if the window and the journal have one.
fn next_batch(
    spool: &Spool,
    sending: &mut Sending,
) -> Result<Option<proto::UsageBatch>, crate::usage::journal::TailError> {
    if sending.in_flight.len() >= WINDOW {
        return Ok(None);
    }
    let mut finals = Vec::new();
    sending.tail.read(BATCH_RECORDS, BATCH_BYTES, &mut finals)?;
    let Some(last) = finals.last().map(|last| last.ordinal) else { return Ok(None) };
    let mark = spool.mark();
    let (first_seq, prev_hash) = (sending.sent + 1 - mark.offset, sending.chain.to_vec());
    sending.chain = chained(sending.chain, &finals);
    sending.sent = last;
    sending.in_flight.push_back((last, sending.chain));
    Ok(Some(proto::UsageBatch {
        incarnation: mark.incarnation.0.to_vec(),
        session: sending.session,
        first_seq,
        records: finals.into_iter().map(|f| f.record).collect(),
        prev_hash,
    }))
}

/// The journal's own chain value after `at` finals; `None` when it cannot know: they were trimmed, or
/// it never had that many.
fn chain_at(spool: &Arc<Spool>, mark: &Mark, at: u64) -> Result<Option<Hash>, crate::usage::journal::TailError> {
    if at < mark.acked {
        return Ok(None);
    }
    let mut tail = Tail::after(spool, mark.acked);
    let (mut reached, mut chain) = (mark.acked, mark.chain);
    while reached < at {
        let mut finals = Vec::new();
        let wanted = usize::try_from(at - reached).unwrap_or(BATCH_RECORDS).min(BATCH_RECORDS);
        tail.read(wanted, BATCH_BYTES, &mut finals)?;
        let Some(last) = finals.last() else { return Ok(None) };
        reached = last.ordinal;
        chain = chained(chain, &finals);
    }
    Ok(Some(chain))
}

fn chained(from: Hash, finals: &[Final]) -> Hash {
    finals.iter().fold(from, |chain, f| digest::chain(&chain, &f.record))
}
