//! What distribution is measured by. Labels come from closed sets.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use shared::proto::NackCode;

use crate::metrics::Metrics;

/// Meters of this module; registered once.
#[derive(Debug)]
pub struct Meters {
    /// From commit to a node's acknowledgement, of changes committed after the node had caught up.
    pub convergence: Histogram,
    /// Time of one scope's compilation.
    pub compile: Histogram,
    /// Nodes connected to this process.
    pub connected: Gauge,
    /// Scopes published and not removed.
    pub scopes: Gauge,
    /// Size of all published scopes.
    pub bytes: Gauge,
    /// Objects in quarantine.
    pub quarantined: Gauge,
    /// Scopes whose newest revision is held back.
    pub held_back: Gauge,
    /// Acknowledged updates.
    pub acks: Counter,
    /// Answers to nothing.
    pub ignored: Counter,
    /// Bytes of updates handed to streams.
    pub sent_bytes: Counter,
    /// Refused updates by code.
    nacks: Family<NackLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NackLabels {
    code: &'static str,
}

impl Meters {
    /// Registers all of them.
    pub fn new(metrics: &Metrics) -> Self {
        let meters = Self {
            // 1 ms to about 65 s.
            convergence: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            // 0.1 ms to about 6 s.
            compile: Histogram::new(exponential_buckets(0.0001, 2.0, 17)),
            connected: Gauge::default(),
            scopes: Gauge::default(),
            bytes: Gauge::default(),
            quarantined: Gauge::default(),
            held_back: Gauge::default(),
            acks: Counter::default(),
            ignored: Counter::default(),
            sent_bytes: Counter::default(),
            nacks: Family::default(),
        };
        metrics.register(|r| {
            let m = &meters;
            r.register(
                "config_convergence_seconds",
                "From commit to the acknowledgement of a node that was up to date before",
                m.convergence.clone(),
            );
            r.register("config_compile_seconds", "Time of one scope's compilation", m.compile.clone());
            r.register("nodes_connected", "Nodes connected to this process", m.connected.clone());
            r.register("config_scopes", "Published scopes", m.scopes.clone());
            r.register("config_bytes", "Size of all published scopes", m.bytes.clone());
            r.register("config_quarantined_objects", "Objects that do not compile", m.quarantined.clone());
            r.register("config_held_back_scopes", "Scopes whose newest revision is held back", m.held_back.clone());
            r.register("config_acks", "Acknowledged updates", m.acks.clone());
            r.register("config_ignored_answers", "Answers that confirmed nothing", m.ignored.clone());
            r.register("config_sent_bytes", "Bytes of updates handed to streams", m.sent_bytes.clone());
            r.register("config_nacks", "Refused updates", m.nacks.clone());
        });
        meters
    }

    /// Counts a refusal.
    pub fn nacked(&self, code: NackCode) {
        self.nacks.get_or_create(&NackLabels { code: code.as_str_name() }).inc();
    }
}
