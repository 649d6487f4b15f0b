//! What one thread counted since it was last collected: one row per endpoint and offering, found by
//! the offering's address, so that a request costs one look-up and a few additions.

use std::sync::Arc;

use foldhash::HashMap;
use shared::proto::{self, Outcome};
use shared::snapshot::{Offering, Provider};
use shared::usage::Tokens;

use super::{Attempt, Observed};

/// Counts of one thread.
#[derive(Debug, Default)]
pub struct Tally {
    /// By endpoint and the addresses of what `Row` keeps alive.
    rows: HashMap<(&'static str, usize, usize), Row>,
}

/// Counts of one endpoint and offering.
#[derive(Debug)]
pub struct Row {
    /// "chat_completions".
    pub endpoint: &'static str,
    /// Who served.
    pub provider: Arc<Provider>,
    /// What.
    pub offering: Arc<Offering>,
    /// Requests by status and how they ended.
    pub results: Vec<((u32, Outcome), u64)>,
    /// Attempts by result.
    pub attempts: Vec<(&'static str, u64)>,
    /// From arrival to the last byte.
    pub duration: Buckets,
    /// From arrival to the first byte of the answer.
    pub first_byte: Buckets,
    /// Our own part.
    pub overhead: Buckets,
    /// Used.
    pub tokens: Tokens,
    /// Nano-dollars.
    pub cost: u64,
    /// Requests with usage and without a price.
    pub unpriced: u64,
}

impl Tally {
    /// Counts a request.
    pub fn add(&mut self, record: &proto::UsageRecord, request: &Observed<'_>) {
        for attempt in request.attempts {
            if let Some(row) = self.row(request, Some(attempt)) {
                count(&mut row.attempts, attempt.failure.map_or("ok", |failure| failure.code()));
            }
        }
        let Some(row) = self.row(request, request.attempts.last()) else { return };
        count(&mut row.results, (record.status, record.outcome()));
        row.duration.add(record.total_us, LATENCY);
        row.overhead.add(record.total_us.saturating_sub(record.upstream_us), OVERHEAD);
        if record.first_byte_us > 0 {
            row.first_byte.add(record.first_byte_us, LATENCY);
        }
        row.cost = row.cost.saturating_add(u64::try_from(record.cost_nanos).unwrap_or(0));
        if let Some(tokens) = &record.tokens {
            row.tokens.add(&tokens.into());
            row.unpriced += u64::from(record.price_id.is_empty());
        }
    }

    /// All rows; what remains is empty and keeps its memory.
    pub fn take(&mut self) -> Self {
        let empty = HashMap::with_capacity_and_hasher(self.rows.len(), foldhash::fast::RandomState::default());
        Self { rows: std::mem::replace(&mut self.rows, empty) }
    }

    /// The rows.
    pub fn into_rows(self) -> impl Iterator<Item = Row> {
        self.rows.into_values()
    }

    /// Of an attempt, or of what the plan would have tried first.
    fn row(&mut self, request: &Observed<'_>, attempt: Option<&Attempt>) -> Option<&mut Row> {
        let candidate = request.plan.candidates.get(attempt.map_or(0, |attempt| attempt.slot.candidate))?;
        let key = (request.endpoint, address(&candidate.provider), address(&candidate.offering));
        Some(self.rows.entry(key).or_insert_with(|| Row {
            endpoint: request.endpoint,
            provider: candidate.provider.clone(),
            offering: candidate.offering.clone(),
            results: Vec::new(),
            attempts: Vec::new(),
            duration: Buckets::default(),
            first_byte: Buckets::default(),
            overhead: Buckets::default(),
            tokens: Tokens::default(),
            cost: 0,
            unpriced: 0,
        }))
    }
}

fn address<T>(of: &Arc<T>) -> usize {
    Arc::as_ptr(of) as usize
}

/// Few different values: a list is searched faster than a map.
fn count<T: PartialEq>(counts: &mut Vec<(T, u64)>, of: T) {
    match counts.iter_mut().find(|(value, _)| *value == of) {
        Some((_, count)) => *count += 1,
        None => counts.push((of, 1)),
    }
}

/// Bounds of a histogram: the first one in microseconds, each further one twice the last.
pub type First = u64;
/// 5 ms to 164 s.
pub const LATENCY: First = 5_000;
/// 10 us to 328 ms.
pub const OVERHEAD: First = 10;
/// Bounds of every histogram; what is larger counts apart.
pub const BOUNDS: usize = 16;

/// A histogram of durations.
#[derive(Debug, Clone, Copy, Default)]
pub struct Buckets {
    /// How many were at most so long; the last one takes all others. Not cumulative.
    pub counts: [u64; BOUNDS + 1],
    /// Microseconds.
    pub sum_us: u64,
}

impl Buckets {
    /// One more, of a histogram whose first bound is `first`.
    pub fn add(&mut self, micros: u64, first: First) {
        // How often the first bound must be doubled to reach it: the bits of what lies above.
        let doublings = u64::BITS - (micros.saturating_sub(1) / first).leading_zeros();
        let place = (doublings as usize).min(BOUNDS);
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
        self.sum_us = self.sum_us.saturating_add(micros);
    }

    /// Those of another one.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    /// Upper bounds in seconds, infinity last.
    pub fn bounds(first: First) -> impl Iterator<Item = f64> {
        (0..BOUNDS).map(move |n| (first << n) as f64 / 1e6).chain([f64::MAX])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_falls_under_the_first_bound_that_is_not_smaller() {
        for first in [LATENCY, OVERHEAD] {
            let around = |n: u32| [(first << n) - 1, first << n, (first << n) + 1];
            for micros in (0..20).flat_map(around).chain([0, 1, u64::MAX]) {
                let mut buckets = Buckets::default();
                buckets.add(micros, first);
                let place = buckets.counts.iter().position(|count| *count == 1);
                let expected = (0..BOUNDS).position(|n| micros <= first << n).unwrap_or(BOUNDS);
                assert_eq!(place, Some(expected), "{micros} us");
            }
        }
    }
}
