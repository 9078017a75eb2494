//! All numbers at one moment, with their names.

use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};

use flumen_log::LogStats;
use flumen_record::Durability;

use super::Inner;
use super::histogram::HistogramSnapshot;
use crate::GroupLags;
use crate::error::REASONS;
use crate::lane::Lane;
use crate::node::Node;

/// Shards of groups whose lag is on a page at most.
const SHARD_LAGS_MAX: u32 = 1_000;

const REFUSED: &str =
    "1 when the log is missing or less than the catalog vouches for: nothing of it is served";

type Labels = Vec<(&'static str, String)>;

/// All numbers at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetricsSnapshot {
    /// `(name without prefix and suffix, help, labels, value)` of ever-growing counts.
    pub counters: Vec<(&'static str, &'static str, Labels, u64)>,
    /// The same for values that go up and down.
    pub gauges: Vec<(&'static str, &'static str, Labels, f64)>,
    /// Latency histograms.
    pub histograms: Vec<(&'static str, &'static str, Labels, HistogramSnapshot)>,
}

impl MetricsSnapshot {
    fn counter(&mut self, name: &'static str, help: &'static str, labels: Labels, value: u64) {
        self.counters.push((name, help, labels, value));
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, labels: Labels, value: f64) {
        self.gauges.push((name, help, labels, value));
    }

    /// Adds what consumer groups have left to process.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
    pub fn add_group_lags(&mut self, lags: &GroupLags) {
        let (mut rows, mut left_out) = (0_u32, 0_u32);
        for group in &lags.groups {
            let labels = || {
                vec![
                    ("stream", group.stream.to_string()),
                    ("group", group.group.to_string()),
                ]
            };
            let (records, bytes) = (group.lag.records as f64, group.lag.bytes as f64);
            let help = "Records that the group has not processed";
            self.gauge("group_lag_records", help, labels(), records);
            let help = "Stored bytes of them; of a long backlog an estimate";
            self.gauge("group_lag_bytes", help, labels(), bytes);
            let help = "Age of the oldest of them; of a long backlog to within its segment";
            let age = group.lag.age.as_secs_f64();
            self.gauge("group_lag_seconds", help, labels(), age);
            let help = "Records that expired before the group had processed them";
            let expired = group.expired.records as f64;
            self.gauge("group_expired_records", help, labels(), expired);
            let help = "1 when more may have expired, unknown how many";
            let unknown = f64::from(u8::from(!group.expired.is_exact));
            self.gauge("group_expired_unknown", help, labels(), unknown);
            for shard in &group.by_shard {
                let lag = &shard.lag;
                if rows >= SHARD_LAGS_MAX {
                    left_out += 1;
                    continue;
                }
                rows += 1;
                let labels = || {
                    let mut labels = labels();
                    labels.push(("shard", shard.shard.to_string()));
                    labels
                };
                let (records, bytes) = (lag.records as f64, lag.bytes as f64);
                let help = "Records of the shard that the group has not processed";
                self.gauge("group_shard_lag_records", help, labels(), records);
                let help = "Stored bytes of them; of a long backlog an estimate";
                self.gauge("group_shard_lag_bytes", help, labels(), bytes);
                let help = "Age of the oldest of them; of a long backlog to within its segment";
                let age = lag.age.as_secs_f64();
                self.gauge("group_shard_lag_seconds", help, labels(), age);
                let help = "Records of the shard that expired before the group had processed them";
                let expired = shard.expired.records as f64;
                self.gauge("group_shard_expired_records", help, labels(), expired);
            }
        }
        let help = "Shards of groups whose own lag is not on this page, because there are too many";
        let left_out = f64::from(left_out);
        self.gauge("group_shard_lags_left_out", help, Vec::new(), left_out);
        let help = "Groups whose lag is not on this page, because there are too many";
        self.gauge(
            "group_lags_left_out",
            help,
            Vec::new(),
            lags.left_out as f64,
        );
    }
}

pub(super) fn take(inner: &Inner) -> MetricsSnapshot {
    let mut snapshot = MetricsSnapshot::default();
    traffic(inner, &mut snapshot);
    for level in [Durability::Memory, Durability::Disk] {
        let labels = || vec![("level", level_name(level).to_owned())];
        let append = inner.append_latency.of(level).snapshot();
        let help = "From the hand-over of a batch to its ack";
        snapshot
            .histograms
            .push(("append_latency_seconds", help, labels(), append));
        let sync = inner.sync_latency.of(level).snapshot();
        let help = "One round on its way to the disk";
        snapshot
            .histograms
            .push(("sync_latency_seconds", help, labels(), sync));
    }
    let cold = inner.cold_read_latency.snapshot();
    let help = "Reads that could not be served from what was written last";
    snapshot
        .histograms
        .push(("cold_read_latency_seconds", help, Vec::new(), cold));
    if let Some(node) = inner.node.get().and_then(Weak::upgrade) {
        the_node(&node, &mut snapshot);
        the_groups(&node, &mut snapshot);
        for lane in node.lanes.all() {
            the_lane(&lane, &mut snapshot);
        }
    }
    process(&mut snapshot);
    snapshot
}

fn traffic(inner: &Inner, snapshot: &mut MetricsSnapshot) {
    let counters: [(&str, &str, &AtomicU64); 8] = [
        ("batches_in", "Batches stored", &inner.batches_in),
        ("records_in", "Records stored", &inner.records_in),
        (
            "bytes_in",
            "Encoded bytes of stored batches",
            &inner.bytes_in,
        ),
        (
            "duplicates",
            "Batches that had been stored by an earlier attempt",
            &inner.duplicates,
        ),
        (
            "records_out",
            "Records delivered to readers",
            &inner.records_out,
        ),
        (
            "bytes_out",
            "Bytes of frames delivered to readers",
            &inner.bytes_out,
        ),
        (
            "hot_reads",
            "Reads served from what was written last",
            &inner.hot_reads,
        ),
        ("cold_reads", "Reads served from disk", &inner.cold_reads),
    ];
    for (name, help, value) in counters {
        snapshot.counter(name, help, Vec::new(), value.load(Ordering::Relaxed));
    }
    let reshards = [
        ("shard_splits", "Shards that were split", &inner.splits),
        (
            "shard_merges",
            "Pairs of shards that were merged",
            &inner.merges,
        ),
    ];
    for (name, help, counts) in reshards {
        for (cause, count) in [("asked", &counts.asked), ("load", &counts.load)] {
            let labels = vec![("cause", cause.to_owned())];
            snapshot.counter(name, help, labels, count.load(Ordering::Relaxed));
        }
    }
    for ((reason, _), count) in REASONS.iter().zip(&inner.refused.0) {
        let labels = vec![("reason", (*reason).to_owned())];
        let help = "Batches that were not stored, by reason";
        snapshot.counter(
            "batches_refused",
            help,
            labels,
            count.load(Ordering::Relaxed),
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
fn the_node(node: &Node, snapshot: &mut MetricsSnapshot) {
    let streams = node.streams.all();
    let (mut open, mut closed) = (0, 0);
    for stream in &streams {
        let state = stream.state();
        let of_this = state.info.open_shards().count();
        open += of_this;
        closed += state.shards.len() - of_this;
    }
    snapshot.gauge("streams", "Streams", Vec::new(), streams.len() as f64);
    let help = "Open shards of all streams";
    snapshot.gauge("shards", help, Vec::new(), open as f64);
    let help = "Closed shards of all streams, kept until their retention ends";
    snapshot.gauge("shards_closed", help, Vec::new(), closed as f64);
    let jump = node.clock.jump_seconds();
    let help =
        "By how much the wall clock has jumped and is not believed; nothing expires meanwhile";
    snapshot.gauge("clock_jump_seconds", help, Vec::new(), jump);
    if let Ok(space) = node.storage.space() {
        let help = "Free bytes of the file system under the data directory";
        snapshot.gauge("disk_free_bytes", help, Vec::new(), space.free_bytes as f64);
        let help = "Size of the file system under the data directory";
        snapshot.gauge(
            "disk_total_bytes",
            help,
            Vec::new(),
            space.total_bytes as f64,
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
fn the_groups(node: &Node, snapshot: &mut MetricsSnapshot) {
    let counts = &node.groups.counters;
    let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
    for (name, help, count) in [
        ("groups", "Consumer groups", &counts.groups),
        (
            "group_sessions",
            "Open sessions of members of groups",
            &counts.sessions,
        ),
    ] {
        snapshot.gauge(name, help, Vec::new(), now(count) as f64);
    }
    let own = [
        ("groups", node.groups.refusal()),
        ("deliveries", node.deliveries.refusal()),
    ];
    for (log, refusal) in own {
        let labels = vec![("log", log.to_owned())];
        let refused = f64::from(u8::from(refusal.is_some()));
        snapshot.gauge("refused", REFUSED, labels, refused);
    }
    let failed = f64::from(u8::from(node.groups.check().is_err()));
    let help = "1 when the log of consumer groups has failed: they need a restart";
    snapshot.gauge("groups_failed", help, Vec::new(), failed);
    for (name, help, count) in [
        (
            "group_checkpoints",
            "Checkpoints made durable",
            &counts.checkpoints,
        ),
        (
            "group_leases_granted",
            "Shards given to members",
            &counts.leases_granted,
        ),
        (
            "group_leases_lost",
            "Shards taken from members that were silent, or did not release them in time",
            &counts.leases_lost,
        ),
        (
            "group_rounds",
            "Rounds of the log of consumer groups",
            &counts.rounds,
        ),
    ] {
        snapshot.counter(name, help, Vec::new(), now(count));
    }
}

fn the_lane(lane: &Lane, snapshot: &mut MetricsSnapshot) {
    let stats = lane.stats();
    let label = lane.label();
    let labels = || vec![("log", label.clone())];
    for (name, help, value) in lane_counters(&stats) {
        snapshot.counter(name, help, labels(), value);
    }
    for (name, help, value) in lane_gauges(lane, &stats) {
        snapshot.gauge(name, help, labels(), value);
    }
}

fn lane_counters(stats: &LogStats) -> [(&'static str, &'static str, u64); 9] {
    [
        ("rounds", "Rounds written", stats.rounds),
        (
            "round_bytes",
            "Bytes of rounds written, headers and padding included",
            stats.round_bytes,
        ),
        ("syncs", "Syncs that ended well", stats.syncs),
        (
            "failed_syncs",
            "Writes and syncs that failed",
            stats.failed_syncs,
        ),
        (
            "segments_prepared",
            "Segments made ready ahead of their use",
            stats.segments_prepared,
        ),
        (
            "segments_recycled",
            "Segments that were used again",
            stats.segments_recycled,
        ),
        (
            "segments_unprepared",
            "Segments created on the spot: slower rounds follow",
            stats.segments_unprepared,
        ),
        (
            "segments_copied",
            "Segments copied because less than half of them was live",
            stats.segments_copied,
        ),
        (
            "indexes_rebuilt",
            "Indexes of sealed segments gathered again from frames: a footer did not verify",
            stats.indexes_rebuilt,
        ),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
fn lane_gauges(lane: &Lane, stats: &LogStats) -> [(&'static str, &'static str, f64); 8] {
    [
        (
            "refused",
            REFUSED,
            f64::from(u8::from(lane.refusal().is_some())),
        ),
        ("segments", "Segments of the log", stats.segments as f64),
        (
            "file_bytes",
            "Bytes of all files of the log",
            stats.file_bytes as f64,
        ),
        (
            "pinned_bytes",
            "Bytes of deleted segments that readers still hold",
            stats.pinned_bytes as f64,
        ),
        (
            "quarantined",
            "Damaged ranges of acknowledged data",
            stats.quarantined as f64,
        ),
        (
            "poisoned",
            "1 when the log accepts nothing before a restart",
            f64::from(u8::from(stats.poisoned > 0 || lane.is_poisoned())),
        ),
        (
            "queue_bytes",
            "Bytes waiting in the lane's queue",
            lane.queued_bytes() as f64,
        ),
        (
            "syncing_seconds",
            "How long the write or sync that is running has been",
            lane.syncing_for().as_secs_f64(),
        ),
    ]
}

/// Resident memory, from `/proc/self/statm` (in pages of 4 KiB: the second field is all of it, the
/// third what is shared with files).
#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
fn process(snapshot: &mut MetricsSnapshot) {
    let Ok(statm) = std::fs::read_to_string("/proc/self/statm") else {
        return;
    };
    let pages: Vec<u64> = statm
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    let (Some(resident), Some(shared)) = (pages.get(1), pages.get(2)) else {
        return;
    };
    let help = "Resident memory of the process, mapped files included";
    snapshot.gauge("resident_bytes", help, Vec::new(), (resident * 4096) as f64);
    let help = "Resident memory that is not backed by files";
    snapshot.gauge(
        "anonymous_bytes",
        help,
        Vec::new(),
        (resident.saturating_sub(*shared) * 4096) as f64,
    );
}

fn level_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Memory => "memory",
        Durability::Disk => "disk",
    }
}
