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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A journal and a ledger with a network between them that loses, doubles and reorders.
    struct World {
        records: Vec<Vec<u8>>,
        known: Known,
        applied: Vec<Vec<u8>>,
        /// Batches on their way: session, first record, number of records.
        wire: Vec<(u64, usize, usize)>,
        session: u64,
        sent: usize,
        acked: usize,
    }

    fn chain_before(records: &[Vec<u8>], place: usize) -> Hash {
        records[..place].iter().fold([0; 32], |chain, record| digest::chain(&chain, record))
    }

    impl World {
        fn new() -> Self {
            let known = Known { session: 0, applied_seq: 0, chain: [0; 32], quarantined: false };
            Self { records: vec![], known, applied: vec![], wire: vec![], session: 0, sent: 0, acked: 0 }
        }

        fn step(&mut self, op: u8, number: usize) {
            match op % 6 {
                0 => self.records.push(format!("record {}", self.records.len()).into_bytes()),
                1 if self.sent < self.records.len() && self.session > 0 => {
                    let count = 1 + number % (self.records.len() - self.sent);
                    self.wire.push((self.session, self.sent, count));
                    self.sent += count;
                }
                2 if !self.wire.is_empty() => {
                    let batch = self.wire.swap_remove(number % self.wire.len());
                    self.deliver(batch, number.is_multiple_of(3));
                }
                3 if !self.wire.is_empty() => self.wire.push(self.wire[number % self.wire.len()]),
                4 if !self.wire.is_empty() => _ = self.wire.swap_remove(number % self.wire.len()),
                // The stream or either side restarts: what was on its way may still arrive.
                5 => self.open(),
                _ => {}
            }
        }

        fn open(&mut self) {
            self.known.session += 1;
            self.session = self.known.session;
            self.acked = self.known.applied_seq as usize;
            self.sent = self.acked;
        }

        fn deliver(&mut self, (session, first, count): (u64, usize, usize), answer_lost: bool) {
            let records = &self.records[first..first + count];
            let prev = chain_before(&self.records, first);
            let offer = Offer { session, first_seq: first as u64 + 1, prev_hash: &prev, records };
            match decide(&self.known, &offer) {
                Decision::Apply { skip, applied_seq, chain } => {
                    self.applied.extend_from_slice(&records[skip..]);
                    self.known = Known { applied_seq, chain, ..self.known.clone() };
                    if !answer_lost {
                        self.acked = self.acked.max(applied_seq as usize);
                    }
                }
                Decision::Resend => self.sent = self.known.applied_seq as usize,
                Decision::Known | Decision::Fenced => {}
                bad @ (Decision::Mismatch | Decision::Quarantined | Decision::Malformed) => {
                    panic!("honest batch: {bad:?}")
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// I2: applied once each and in order, whatever the network does; I5: what is confirmed is applied.
        #[test]
        fn each_record_is_applied_once(ops in prop::collection::vec((any::<u8>(), any::<usize>()), 0..80)) {
            let mut world = World::new();
            for (op, number) in ops {
                world.step(op, number);
                prop_assert!(world.records.starts_with(&world.applied));
                prop_assert!(world.acked <= world.applied.len());
                prop_assert_eq!(world.known.applied_seq as usize, world.applied.len());
            }
            world.open();
            if world.sent < world.records.len() {
                world.deliver((world.session, world.sent, world.records.len() - world.sent), false);
            }
            prop_assert_eq!(&world.applied, &world.records);
            prop_assert_eq!(world.known.chain, chain_before(&world.records, world.records.len()));
        }

        /// A copy that went its own way is never taken for the original, wherever its batch begins.
        #[test]
        fn a_copy_is_seen(applied in 1_usize..20, fork in 0_usize..20, first in 0_usize..20, extra in 0_usize..5) {
            let fork = fork.min(applied - 1);
            let first = first.min(applied);
            let original: Vec<_> = (0..applied).map(|n| vec![n as u8]).collect();
            let copy: Vec<_> = (0..applied + extra).map(|n| vec![n as u8, u8::from(n >= fork)]).collect();
            let known = Known { session: 1, applied_seq: applied as u64, chain: chain_before(&original, applied), quarantined: false };
            if first < copy.len() {
                let prev = chain_before(&copy, first);
                let offer = Offer { session: 1, first_seq: first as u64 + 1, prev_hash: &prev, records: &copy[first..] };
                prop_assert_eq!(decide(&known, &offer), Decision::Mismatch);
            }
        }
    }

    #[test]
    fn what_is_refused() {
        let known = Known { session: 2, applied_seq: 5, chain: [7; 32], quarantined: false };
        let records = [b"x".to_vec()];
        let offer = Offer { session: 2, first_seq: 6, prev_hash: &[7; 32], records: &records };
        let cases = [
            (Offer { session: 1, ..offer }, Decision::Fenced),
            (Offer { session: 3, ..offer }, Decision::Fenced),
            (Offer { first_seq: 7, ..offer }, Decision::Resend),
            (Offer { first_seq: 0, ..offer }, Decision::Malformed),
            (Offer { first_seq: u64::MAX, ..offer }, Decision::Malformed),
            (Offer { records: &[], ..offer }, Decision::Malformed),
            (Offer { prev_hash: &[7; 31], ..offer }, Decision::Malformed),
            (Offer { prev_hash: &[8; 32], ..offer }, Decision::Mismatch),
            (Offer { first_seq: 3, ..offer }, Decision::Known),
        ];
        for (offer, expected) in cases {
            assert_eq!(decide(&known, &offer), expected, "{offer:?}");
        }
        let quarantined = Known { quarantined: true, ..known };
        assert_eq!(decide(&quarantined, &offer), Decision::Quarantined);
    }
}
