//! A ledger of a few lines, with the rules of the protocol and faults on request.

use std::collections::{BTreeSet, HashMap};

use prost::Message as _;
use shared::digest::{self, Hash};
use shared::proto::{self, usage_message, usage_reply::Message};

use super::folder::number;

#[derive(Debug, Default, Clone)]
pub struct Ledger {
    spools: HashMap<Vec<u8>, Spool>,
    /// Requests applied.
    pub applied: BTreeSet<u64>,
    /// Records of a request that was applied before.
    pub duplicates: usize,
    /// Gaps that opens have shown.
    pub gaps: usize,
}

#[derive(Debug, Default, Clone)]
struct Spool {
    session: u64,
    applied: u64,
    chain: Hash,
    quarantined: bool,
}

impl Ledger {
    pub fn on_message(&mut self, message: proto::UsageMessage) -> proto::UsageReply {
        let reply = match message.message.expect("a message") {
            usage_message::Message::Open(open) => self.on_open(open),
            usage_message::Message::Batch(batch) => self.on_batch(batch),
        };
        proto::UsageReply { message: Some(reply) }
    }

    /// How many journals have reported.
    pub fn journals(&self) -> usize {
        self.spools.len()
    }

    fn on_open(&mut self, open: proto::UsageOpen) -> Message {
        let spool = self.spools.entry(open.incarnation.clone()).or_default();
        spool.session += 1;
        if open.held_from > spool.applied + 1 {
            self.gaps += 1;
        }
        let incarnation = open.incarnation;
        if spool.quarantined {
            return rejected(incarnation, "chain_mismatch");
        }
        let (session, applied_seq, chain) = (spool.session, spool.applied, spool.chain.to_vec());
        Message::Opened(proto::UsageOpened { incarnation, session, applied_seq, chain })
    }

    fn on_batch(&mut self, batch: proto::UsageBatch) -> Message {
        let incarnation = batch.incarnation;
        let spool = self.spools.get_mut(&incarnation).expect("opened before");
        if batch.session != spool.session {
            return rejected(incarnation, "fenced");
        }
        if batch.first_seq > spool.applied + 1 {
            let (from_seq, chain) = (spool.applied + 1, spool.chain.to_vec());
            return Message::Resend(proto::UsageResend { incarnation, from_seq, chain });
        }
        let mut chain: Hash = batch.prev_hash.try_into().expect("32 bytes");
        for (seq, record) in (batch.first_seq..).zip(&batch.records) {
            if seq == spool.applied + 1 {
                if chain != spool.chain {
                    spool.quarantined = true;
                    return rejected(incarnation, "chain_mismatch");
                }
                let record = proto::UsageRecord::decode(&**record).expect("a record");
                if !self.applied.insert(number(&record)) {
                    self.duplicates += 1;
                }
                spool.applied = seq;
                spool.chain = digest::chain(&chain, &batch.records[(seq - batch.first_seq) as usize]);
            }
            chain = digest::chain(&chain, record);
        }
        let (applied_seq, chain) = (spool.applied, spool.chain.to_vec());
        Message::Accepted(proto::UsageAccepted { incarnation, applied_seq, chain })
    }
}

fn rejected(incarnation: Vec<u8>, code: &str) -> Message {
    Message::Rejected(proto::UsageRejected { incarnation, code: code.into(), detail: String::new() })
}
