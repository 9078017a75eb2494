//! The numbers of delivery streams. Each HELP text names the metric of Firehose that it stands for.

use flumen_broker::{DeliveryCounts, DeliveryDescription, DeliveryPhase};
use flumen_record::Timestamp;

use crate::exposition::{Labels, Numbers};

/// Name, HELP and value of what only grows.
type Counter = (&'static str, &'static str, fn(&DeliveryCounts) -> u64);

const COUNTERS: &[Counter] = &[
    (
        "delivery_incoming_bytes",
        "Bytes read from the source (DataReadFromKinesisStream.Bytes, IncomingBytes)",
        |counts| counts.incoming_bytes,
    ),
    (
        "delivery_incoming_records",
        "Records read from the source (DataReadFromKinesisStream.Records, IncomingRecords)",
        |counts| counts.incoming_records,
    ),
    (
        "delivery_objects",
        "Objects written (DeliveryToS3.Success)",
        |counts| counts.delivered_objects,
    ),
    (
        "delivery_delivered_bytes",
        "Bytes of objects as stored (DeliveryToS3.Bytes)",
        |counts| counts.delivered_bytes,
    ),
    (
        "delivery_delivered_records",
        "Records in objects (DeliveryToS3.Records)",
        |counts| counts.delivered_records,
    ),
    (
        "delivery_failures",
        "Requests to the destination that failed (the rest of DeliveryToS3.Success)",
        |counts| counts.delivery_failures,
    ),
    (
        "delivery_throttled",
        "Requests that the destination asked to slow down",
        |counts| counts.throttled,
    ),
    (
        "delivery_backup_objects",
        "Backup objects written (BackupToS3.Success)",
        |counts| counts.backup_objects,
    ),
    (
        "delivery_backup_bytes",
        "Bytes of backup objects as stored (BackupToS3.Bytes)",
        |counts| counts.backup_bytes,
    ),
    (
        "delivery_backup_records",
        "Records in backup objects (BackupToS3.Records)",
        |counts| counts.backup_records,
    ),
    (
        "delivery_processing_successes",
        "Requests to the transform that succeeded (ExecuteProcessing.Success)",
        |counts| counts.processing_successes,
    ),
    (
        "delivery_processing_failures",
        "Requests to the transform that failed (the rest of ExecuteProcessing.Success)",
        |counts| counts.processing_failures,
    ),
    (
        "delivery_processed_records",
        "Records that came out of processing (SucceedProcessing.Records)",
        |counts| counts.processed_records,
    ),
    (
        "delivery_processed_bytes",
        "Bytes of records that came out of processing (SucceedProcessing.Bytes)",
        |counts| counts.processed_bytes,
    ),
    (
        "delivery_dropped_records",
        "Records dropped by the filter or the transform",
        |counts| counts.dropped_records,
    ),
    (
        "delivery_failed_records",
        "Records that went to the error prefix",
        |counts| counts.failed_records,
    ),
    (
        "delivery_partition_overflows",
        "Records that went to the error prefix because of too many partitions (ActivePartitionsLimit)",
        |counts| counts.partition_overflows,
    ),
];

const PHASES: [(DeliveryPhase, &str); 6] = [
    (DeliveryPhase::Starting, "starting"),
    (DeliveryPhase::Running, "running"),
    (DeliveryPhase::Retrying, "retrying"),
    (DeliveryPhase::Paused, "paused"),
    (DeliveryPhase::Stopped, "stopped"),
    (DeliveryPhase::Deleting, "deleting"),
];

/// Adds the numbers of the first `most` of all delivery streams; freshness is measured at `now`.
#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
pub(crate) fn add(numbers: &mut Numbers, all: &[DeliveryDescription], most: usize, now: Timestamp) {
    for (phase, name) in PHASES {
        let there = all.iter().filter(|one| one.report.phase == phase).count();
        let labels = vec![("status", name.to_owned())];
        let help = "Delivery streams by what they do, all of them";
        let value = there as f64;
        numbers
            .snapshot
            .gauges
            .push(("deliveries", help, labels, value));
    }
    let left_out = all.len().saturating_sub(most) as f64;
    let help = "Delivery streams that have no numbers of their own on this page, because there are too many";
    let gauges = &mut numbers.snapshot.gauges;
    gauges.push(("deliveries_left_out", help, Vec::new(), left_out));
    for delivery in all.iter().take(most) {
        add_one(numbers, delivery, now);
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
fn add_one(numbers: &mut Numbers, delivery: &DeliveryDescription, now: Timestamp) {
    let labels = || -> Labels { vec![("delivery", delivery.name.to_string())] };
    let (counts, backlog, report) = (&delivery.counts, &delivery.backlog, &delivery.report);
    let counters = &mut numbers.snapshot.counters;
    for (name, help, value) in COUNTERS {
        counters.push((name, help, labels(), value(counts)));
    }
    let help = "Records that expired before they were delivered";
    counters.push(("delivery_expired_records", help, labels(), backlog.expired));
    let help = "Cuts whose objects are all written and listed in a manifest";
    counters.push(("delivery_cuts", help, labels(), report.cuts));
    let help = "Time in the transform (ExecuteProcessing.Duration)";
    let seconds = counts.processing_us as f64 / 1e6;
    numbers
        .seconds
        .push(("delivery_processing_seconds", help, labels(), seconds));
    let failing = matches!(
        report.phase,
        DeliveryPhase::Retrying | DeliveryPhase::Stopped
    );
    let last = report.last_error.as_ref();
    let in_conflict = report.phase == DeliveryPhase::Stopped
        && last.is_some_and(|last| last.reason == "conflict");
    let gauges: [(&str, &str, f64); 7] = [
        (
            "delivery_conflict",
            "1 while it has stopped because something else writes under its names: another program, or a copy of this data directory",
            f64::from(u8::from(in_conflict)),
        ),
        (
            "delivery_failing",
            "1 while the destination or the transform fails, or delivery has stopped: what to alarm on",
            f64::from(u8::from(failing)),
        ),
        (
            "delivery_data_freshness_seconds",
            "Age of the oldest record that is not in a committed cut (DeliveryToS3.DataFreshness)",
            backlog.freshness(now).as_secs_f64(),
        ),
        (
            "delivery_backlog_records",
            "Records that are not in a committed cut",
            backlog.records as f64,
        ),
        (
            "delivery_backlog_bytes",
            "Stored bytes of them; of a long backlog an estimate",
            backlog.bytes as f64,
        ),
        (
            "delivery_cuts_open",
            "Cuts that are planned and not committed",
            f64::from(report.cuts_open),
        ),
        (
            "delivery_partitions",
            "Partitions of the cut that is being filled (PartitionCount)",
            counts.partitions as f64,
        ),
    ];
    for (name, help, value) in gauges {
        numbers.snapshot.gauges.push((name, help, labels(), value));
    }
}

#[cfg(test)]
mod tests;
