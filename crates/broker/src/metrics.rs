//! What the node counts. Plain numbers; the console gives them their Prometheus form.

mod histogram;
mod snapshot;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use flumen_record::Durability;
use flumen_stream::Reshard;

use crate::Error;
use crate::error::REASONS;
use crate::node::Node;
use crate::reshard::Cause;
use histogram::Histogram;

pub use histogram::HistogramSnapshot;
pub use snapshot::MetricsSnapshot;

/// The node's counters and histograms. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    batches_in: AtomicU64,
    records_in: AtomicU64,
    bytes_in: AtomicU64,
    duplicates: AtomicU64,
    records_out: AtomicU64,
    bytes_out: AtomicU64,
    hot_reads: AtomicU64,
    cold_reads: AtomicU64,
    splits: ByCause,
    merges: ByCause,
    refused: Reasons,
    append_latency: PerLevel,
    sync_latency: PerLevel,
    cold_read_latency: Histogram,
    /// What is looked up at the moment of a snapshot.
    node: OnceLock<Weak<Node>>,
}

/// One counter per reason of [`Error::reason`]: a bounded set of labels.
#[derive(Debug)]
struct Reasons([AtomicU64; REASONS.len()]);

impl Default for Reasons {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; REASONS.len()])
    }
}

/// Splits or merges by what they were made for.
#[derive(Debug, Default)]
struct ByCause {
    asked: AtomicU64,
    load: AtomicU64,
}

#[derive(Debug, Default)]
struct PerLevel {
    memory: Histogram,
    disk: Histogram,
}

impl PerLevel {
    fn of(&self, durability: Durability) -> &Histogram {
        match durability {
            Durability::Memory => &self.memory,
            Durability::Disk => &self.disk,
        }
    }
}

impl Metrics {
    /// The numbers now.
    pub fn snapshot(&self) -> MetricsSnapshot {
        snapshot::take(&self.inner)
    }

    /// Whose lanes and streams a snapshot looks at.
    pub(crate) fn attach(&self, node: &Arc<Node>) {
        let _ = self.inner.node.set(Arc::downgrade(node));
    }

    pub(crate) fn appended(&self, batches: u64, records: u64, bytes: u64) {
        add(&self.inner.batches_in, batches);
        add(&self.inner.records_in, records);
        add(&self.inner.bytes_in, bytes);
    }

    pub(crate) fn duplicates(&self, batches: u64) {
        if batches > 0 {
            add(&self.inner.duplicates, batches);
        }
    }

    pub(crate) fn refused(&self, error: &Error) {
        let reason = error.reason();
        let at = REASONS.iter().position(|(known, _)| *known == reason);
        if let Some(count) = at.and_then(|at| self.inner.refused.0.get(at)) {
            add(count, 1);
        }
    }

    pub(crate) fn resharded(&self, steps: &[Reshard], cause: Cause) {
        for step in steps {
            let counts = match step {
                Reshard::Split { .. } => &self.inner.splits,
                Reshard::Merge { .. } => &self.inner.merges,
            };
            let count = match cause {
                Cause::Asked => &counts.asked,
                Cause::Load => &counts.load,
            };
            add(count, 1);
        }
    }

    pub(crate) fn append_latency(&self, durability: Durability, latency: Duration, batches: u64) {
        self.inner
            .append_latency
            .of(durability)
            .observe(latency, batches);
    }

    pub(crate) fn sync_latency(&self, durability: Durability, latency: Duration) {
        self.inner.sync_latency.of(durability).observe(latency, 1);
    }

    pub(crate) fn delivered(&self, records: u64, bytes: u64) {
        add(&self.inner.records_out, records);
        add(&self.inner.bytes_out, bytes);
    }

    pub(crate) fn hot_read(&self) {
        add(&self.inner.hot_reads, 1);
    }

    pub(crate) fn cold_read(&self, latency: Duration) {
        add(&self.inner.cold_reads, 1);
        self.inner.cold_read_latency.observe(latency, 1);
    }
}

fn add(count: &AtomicU64, by: u64) {
    count.fetch_add(by, Ordering::Relaxed);
}
