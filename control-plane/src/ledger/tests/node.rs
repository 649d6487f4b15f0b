//! A node's side of the protocol, as short as it can be: records, numbers, a chain.

use prost::Message as _;
use shared::digest::{self, Hash};
use shared::ids::NodeId;
use shared::money::{self, Nanos};
use shared::proto::{self, Outcome, usage_reply::Message};
use shared::usage::Tokens;

use super::database::House;
use crate::ledger::ingest::{Ingest, IngestError};

/// The tests' time: 2024-01-01.
pub const NOW_MS: i64 = 1_704_067_200_000;

/// A price row with a proper id.
pub fn price() -> proto::Price {
    let mut row = proto::Price { input: 150_000_000, output: 600_000_000, ..Default::default() };
    row.id = money::price_id(&row);
    row
}

/// Request number `n` of a workspace, priced as the node would.
pub fn record(house: &House, n: u64) -> proto::UsageRecord {
    let tokens = Tokens { input: 10 + n % 7, output: 3 + n % 5, cache_read: n % 3, ..Default::default() };
    let vendors = ["openai", "mistral"];
    proto::UsageRecord {
        request_id: (u128::from(n) + (1 << 100)).to_be_bytes().to_vec(),
        workspace_id: house.workspace.to_string(),
        project_id: house.project.to_string(),
        api_key_id: house.key.to_string(),
        identity: format!("user-{}", n % 3),
        endpoint: "chat_completions".into(),
        requested_model: "gpt".into(),
        provider: "openai".into(),
        vendor: vendors[(n % 2) as usize].into(),
        model: "openai/gpt".into(),
        credential_owner: "workspace".into(),
        status: if n.is_multiple_of(11) { 502 } else { 200 },
        outcome: if n.is_multiple_of(11) { Outcome::Failed } else { Outcome::Completed }.into(),
        attempts: 1,
        started_at_ms: NOW_MS - 3_600_000 + n as i64 * 20_000,
        total_us: 1000 + n,
        upstream_us: 900,
        tokens: Some(tokens.into()),
        price_id: price().id,
        cost_nanos: cost(&tokens).0,
        ..Default::default()
    }
}

pub fn cost(tokens: &Tokens) -> Nanos {
    money::cost(tokens, &price()).expect("small numbers")
}

/// A journal that remembers everything.
#[derive(Debug, Clone)]
pub struct Journal {
    pub node: NodeId,
    pub incarnation: Vec<u8>,
    pub records: Vec<Vec<u8>>,
    pub session: u64,
    pub applied: u64,
}

impl Journal {
    pub fn new(n: u8) -> Self {
        Self {
            node: NodeId::from_u128(u128::from(n)),
            incarnation: vec![n; 16],
            records: vec![],
            session: 0,
            applied: 0,
        }
    }

    pub fn settle(&mut self, record: &proto::UsageRecord) {
        self.records.push(record.encode_to_vec());
    }

    pub async fn open(&mut self, ingest: &Ingest) -> Message {
        let open = proto::UsageOpen { incarnation: self.incarnation.clone(), held_from: 1 };
        let reply = ingest.open(self.node, &open).await.expect("open").message.expect("a message");
        if let Message::Opened(opened) = &reply {
            self.session = opened.session;
            self.applied = opened.applied_seq;
        }
        reply
    }

    /// Records `first` (from 0) and `count` on, as they are sent.
    pub fn batch(&self, first: usize, count: usize) -> proto::UsageBatch {
        let prev: Hash = self.records[..first].iter().fold([0; 32], |chain, record| digest::chain(&chain, record));
        proto::UsageBatch {
            incarnation: self.incarnation.clone(),
            session: self.session,
            first_seq: first as u64 + 1,
            records: self.records[first..first + count].to_vec(),
            prev_hash: prev.to_vec(),
        }
    }

    pub async fn send(&self, ingest: &Ingest, batch: &proto::UsageBatch) -> Result<Message, IngestError> {
        Ok(ingest.apply(self.node, batch).await?.message.expect("a message"))
    }

    /// Opens, and sends all that is missing.
    pub async fn flush(&mut self, ingest: &Ingest) -> Message {
        let mut last = self.open(ingest).await;
        while (self.applied as usize) < self.records.len() && !matches!(last, Message::Rejected(_)) {
            let first = self.applied as usize;
            let batch = self.batch(first, (self.records.len() - first).min(100));
            last = self.send(ingest, &batch).await.expect("the database works");
            if let Message::Accepted(accepted) = &last {
                self.applied = accepted.applied_seq;
            }
        }
        last
    }
}
