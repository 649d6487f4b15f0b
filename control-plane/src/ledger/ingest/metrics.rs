//! Counters of what was applied and what was not.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// All of them only grow.
#[derive(Clone)]
pub struct Counters {
    /// Records applied.
    pub applied: Counter,
    /// Records that came again under their own number.
    pub resent: Counter,
    /// Records of a request that was known under another number.
    pub duplicates: Counter,
    /// Records kept apart.
    pub refused: Counter,
    /// Records with tokens and without a price.
    pub unpriced: Counter,
    /// Records whose cost the node had computed differently.
    pub corrected: Counter,
    /// Batches that left a gap.
    pub resends: Counter,
    /// Batches of a stream that a newer one replaced.
    pub fenced: Counter,
    /// Journals set aside.
    pub quarantined: Counter,
    /// Gaps that can never be filled.
    pub gaps: Counter,
    /// Time to apply a batch.
    pub batch_seconds: Histogram,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            applied: Counter::default(),
            resent: Counter::default(),
            duplicates: Counter::default(),
            refused: Counter::default(),
            unpriced: Counter::default(),
            corrected: Counter::default(),
            resends: Counter::default(),
            fenced: Counter::default(),
            quarantined: Counter::default(),
            gaps: Counter::default(),
            // 1 ms to about 8 s.
            batch_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
        }
    }
}

impl Counters {
    /// Adds them to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let counters = [
            ("usage_records_applied", "Usage records applied to the ledger", &self.applied),
            ("usage_records_resent", "Usage records that came again and were skipped", &self.resent),
            ("usage_records_duplicate", "Usage records of a request known under another number", &self.duplicates),
            ("usage_records_refused", "Usage records that cannot be true, kept apart", &self.refused),
            ("usage_records_unpriced", "Usage records with tokens and without a price", &self.unpriced),
            ("usage_costs_corrected", "Usage records whose cost the node had computed differently", &self.corrected),
            ("usage_batches_resend", "Usage batches that left a gap", &self.resends),
            ("usage_batches_fenced", "Usage batches of a replaced stream", &self.fenced),
            ("usage_journals_quarantined", "Usage journals set aside", &self.quarantined),
            ("usage_gaps", "Gaps of usage records that can never be filled", &self.gaps),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register("usage_batch_seconds", "Time to apply a usage batch", self.batch_seconds.clone());
    }
}
