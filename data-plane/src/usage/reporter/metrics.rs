//! Metrics of journals and reports, computed when they are read.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use runtime::clock;

use super::status::Status;

/// Adds the metrics of journals and reports to a registry.
pub fn register(registry: &mut Registry, status: Arc<Status>) {
    registry.register_collector(Box::new(Usage(status)));
}

#[derive(Debug)]
struct Usage(Arc<Status>);

impl Collector for Usage {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let status = &self.0;
        let age = u64::try_from(status.oldest_unacked(clock::monotonic()).as_millis()).unwrap_or(u64::MAX);
        let gauges = [
            ("usage_journal_limit_bytes", "Bytes that all journals may take", status.limit_bytes()),
            (
                "usage_journal_nearly_full",
                "1 when the journals have passed 80 % of their limit",
                status.is_nearly_full().into(),
            ),
            ("usage_unreported_records", "Settled requests that the ledger has not confirmed", status.unacked()),
            ("usage_oldest_unreported_ms", "Age of the oldest of them", age),
            (
                "usage_stream_connected",
                "1 while usage can be reported",
                status.connected.load(Ordering::Relaxed).into(),
            ),
        ];
        for (name, help, value) in gauges {
            gauge(&mut encoder, name, help, value)?;
        }
        let counters = [
            ("usage_reported_records", "Settled requests that the ledger confirmed", &status.reported),
            ("usage_rejected_batches", "Reports that the ledger refused", &status.rejected),
            ("usage_journals_renumbered", "Journals that had to begin a new incarnation", &status.renumbered),
            ("usage_streams_fenced", "Streams given up for a newer one", &status.fenced),
            ("usage_journal_unreadable", "Times that a journal could not be read", &status.unreadable),
        ];
        for (name, help, value) in counters {
            counter(&mut encoder, name, help, value)?;
        }
        let Some(total) = status.total() else { return Ok(()) };
        gauge(&mut encoder, "usage_journal_bytes", "Bytes of all journals on disk", total.used())?;
        let counters = [
            ("usage_lost_records", "Settled requests that could be kept nowhere", &total.lost),
            ("usage_journal_write_errors", "Writes that the disk refused", &total.write_errors),
            ("usage_journal_sync_errors", "Syncs that the disk refused", &total.sync_errors),
            ("usage_journal_damaged_segments", "Segments set aside as damaged", &total.damaged_segments),
            ("usage_journal_torn_tails", "Torn tails cut at a start", &total.torn_tails),
            (
                "usage_interrupted_requests",
                "Requests closed at a start because the process had died",
                &total.interrupted,
            ),
        ];
        counters.into_iter().try_for_each(|(name, help, value)| counter(&mut encoder, name, help, value))
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: &AtomicU64) -> fmt::Result {
    let metric = ConstCounter::new(value.load(Ordering::Relaxed));
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}
