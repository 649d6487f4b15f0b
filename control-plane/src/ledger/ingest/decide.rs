//! What a batch does to a journal's mark: a function of the two, without a database.

use shared::digest::{self, Hash};

/// A journal as the ledger knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The stream that may write.
    pub session: u64,
    /// Last record applied.
    pub applied_seq: u64,
    /// Chain value after it.
    pub chain: Hash,
    /// Nothing more is taken from it.
    pub quarantined: bool,
}

/// Where a batch says it stands.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// The stream it came on.
    pub session: u64,
    /// Sequence number of `records[0]`.
    pub first_seq: u64,
    /// Chain value before it.
    pub prev_hash: &'a [u8],
    /// Encoded records.
    pub records: &'a [Vec<u8>],
}

/// What to do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Apply the records after the first `skip`; afterwards the mark is this.
    Apply {
        /// Records that were applied before.
        skip: usize,
        /// Last record applied then.
        applied_seq: u64,
        /// Chain value after it.
        chain: Hash,
    },
    /// Every record was applied before.
    Known,
    /// Something between the mark and the batch is missing.
    Resend,
    /// A newer stream writes.
    Fenced,
    /// The batch follows on other records than were applied: the journal was copied.
    Mismatch,
    /// It was set aside before.
    Quarantined,
    /// It cannot be meant: no records, sequence number 0, a hash of another length.
    Malformed,
}

/// Decides. Cost: one hash per record.
pub fn decide(known: &Known, offer: &Offer<'_>) -> Decision {
    let Ok(prev): Result<Hash, _> = offer.prev_hash.try_into() else { return Decision::Malformed };
    let last = offer.first_seq.checked_add(offer.records.len() as u64);
    let Some(last) = last.filter(|_| offer.first_seq > 0 && !offer.records.is_empty()).map(|end| end - 1) else {
        return Decision::Malformed;
    };
    if offer.session != known.session {
        return Decision::Fenced;
    }
    if known.quarantined {
        return Decision::Quarantined;
    }
    if offer.first_seq > known.applied_seq.saturating_add(1) {
        return Decision::Resend;
    }
    if last < known.applied_seq {
        // The chain value at `last` is not kept, so the offer can be neither confirmed nor refuted.
        return Decision::Known;
    }
    let skip = (known.applied_seq + 1 - offer.first_seq) as usize;
    let (before, new) = offer.records.split_at(skip);
    if before.iter().fold(prev, |chain, record| digest::chain(&chain, record)) != known.chain {
        return Decision::Mismatch;
    }
    if new.is_empty() {
        return Decision::Known;
    }
    let chain = new.iter().fold(known.chain, |chain, record| digest::chain(&chain, record));
    Decision::Apply { skip, applied_seq: last, chain }
}
