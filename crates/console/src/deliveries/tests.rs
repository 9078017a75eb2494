//! Every number of a delivery stream is on the page, under its name and with its label.

use std::sync::Arc;

use flumen_broker::{
    DeliveryBacklog, DeliveryReport, DeliverySettings, LastError, MetricsSnapshot,
};
use flumen_record::DeliveryId;

use super::*;
use crate::exposition::render;
use crate::process::ProcessStats;

/// Each count is another number, in the order in which they are declared.
fn delivery(name: &str, phase: DeliveryPhase) -> DeliveryDescription {
    let settings: DeliverySettings = DeliverySettings {
        source: flumen_broker::DeliverySource::Direct { shards: 1 },
        destination: flumen_broker::Destination::Memory {
            name: "m".to_owned(),
        },
        buffering: Default::default(),
        processing: Default::default(),
        format: Default::default(),
        compression: Default::default(),
        keys: Default::default(),
        object: Default::default(),
        partitioning: None,
        backup: None,
        dead_letters: None,
    };
    DeliveryDescription {
        id: DeliveryId::new(1),
        name: name.parse().unwrap(),
        stream: "clicks".parse().unwrap(),
        version: 1,
        settings: Arc::new(settings),
        paused: false,
        created: Timestamp::from_micros(0),
        updated: Timestamp::from_micros(0),
        report: DeliveryReport {
            phase,
            cuts: 30,
            cuts_open: 31,
            ..DeliveryReport::default()
        },
        backlog: DeliveryBacklog {
            records: 40,
            bytes: 41,
            oldest: Some(Timestamp::from_micros(1_000_000)),
            expired: 42,
        },
        counts: DeliveryCounts {
            incoming_bytes: 1,
            incoming_records: 2,
            delivered_objects: 3,
            delivered_bytes: 4,
            delivered_records: 5,
            delivery_failures: 6,
            backup_objects: 7,
            backup_bytes: 8,
            backup_records: 9,
            processing_successes: 10,
            processing_failures: 11,
            processing_us: 1_250_000,
            processed_records: 13,
            processed_bytes: 14,
            dropped_records: 15,
            failed_records: 16,
            partition_overflows: 17,
            partitions: 18,
            throttled: 19,
        },
    }
}

fn page(all: &[DeliveryDescription], most: usize) -> String {
    let mut numbers = Numbers::from(MetricsSnapshot::default());
    add(&mut numbers, all, most, Timestamp::from_micros(3_500_000));
    render(Some(numbers), ProcessStats::default(), true).unwrap()
}

#[track_caller]
fn has(page: &str, line: &str) {
    assert!(
        page.lines().any(|found| found == line),
        "{line} is missing in\n{page}"
    );
}

#[test]
fn every_number_has_its_name() {
    let page = page(&[delivery("d", DeliveryPhase::Running)], 10);
    for (name, value) in [
        ("incoming_bytes_total", "1"),
        ("incoming_records_total", "2"),
        ("objects_total", "3"),
        ("delivered_bytes_total", "4"),
        ("delivered_records_total", "5"),
        ("failures_total", "6"),
        ("backup_objects_total", "7"),
        ("backup_bytes_total", "8"),
        ("backup_records_total", "9"),
        ("processing_successes_total", "10"),
        ("processing_failures_total", "11"),
        ("processing_seconds_total", "1.25"),
        ("processed_records_total", "13"),
        ("processed_bytes_total", "14"),
        ("dropped_records_total", "15"),
        ("failed_records_total", "16"),
        ("partition_overflows_total", "17"),
        ("partitions", "18.0"),
        ("throttled_total", "19"),
        ("expired_records_total", "42"),
        ("cuts_total", "30"),
        ("cuts_open", "31.0"),
        ("backlog_records", "40.0"),
        ("backlog_bytes", "41.0"),
        ("data_freshness_seconds", "2.5"),
        ("failing", "0.0"),
        ("conflict", "0.0"),
    ] {
        has(
            &page,
            &format!("flumen_delivery_{name}{{delivery=\"d\"}} {value}"),
        );
    }
    for firehose in [
        "IncomingBytes",
        "IncomingRecords",
        "DataReadFromKinesisStream.Bytes",
        "DataReadFromKinesisStream.Records",
        "DeliveryToS3.Success",
        "DeliveryToS3.Bytes",
        "DeliveryToS3.Records",
        "DeliveryToS3.DataFreshness",
        "BackupToS3.Success",
        "BackupToS3.Bytes",
        "BackupToS3.Records",
        "ExecuteProcessing.Success",
        "ExecuteProcessing.Duration",
        "SucceedProcessing.Records",
        "SucceedProcessing.Bytes",
        "ActivePartitionsLimit",
        "PartitionCount",
    ] {
        let mut help = page.lines().filter(|line| line.starts_with("# HELP"));
        assert!(
            help.any(|line| line.contains(firehose)),
            "{firehose}\n{page}"
        );
    }
}

#[test]
fn what_retries_or_has_stopped_is_failing() {
    for (phase, name) in PHASES {
        let page = page(&[delivery("d", phase)], 10);
        let failing = u8::from(name == "retrying" || name == "stopped");
        has(
            &page,
            &format!("flumen_delivery_failing{{delivery=\"d\"}} {failing}.0"),
        );
        for (_, other) in PHASES {
            let count = u8::from(other == name);
            has(
                &page,
                &format!("flumen_deliveries{{status=\"{other}\"}} {count}.0"),
            );
        }
    }
}

/// Something else writes under its names: that is told apart from other reasons to stop, and from a
/// conflict that is over.
#[test]
fn a_conflict_that_holds_it_up_is_told() {
    for (phase, reason, expected) in [
        (DeliveryPhase::Stopped, "conflict", 1),
        (DeliveryPhase::Stopped, "spool_lost", 0),
        (DeliveryPhase::Running, "conflict", 0),
    ] {
        let mut one = delivery("d", phase);
        one.report.last_error = Some(LastError {
            reason,
            text: String::new(),
            at: Timestamp::from_micros(1),
            times: 1,
        });
        let line = format!("flumen_delivery_conflict{{delivery=\"d\"}} {expected}.0");
        has(&page(&[one], 10), &line);
    }
}

/// The page is bounded, and says what is not on it.
#[test]
fn those_left_out_are_counted() {
    let all = ["a", "b", "c"].map(|name| delivery(name, DeliveryPhase::Stopped));
    let page = page(&all, 2);
    has(&page, "flumen_deliveries_left_out 1.0");
    has(&page, "flumen_delivery_failing{delivery=\"b\"} 1.0");
    assert!(!page.contains("delivery=\"c\""), "{page}");
    has(&page, "flumen_deliveries{status=\"stopped\"} 3.0");
    let described = page.matches("# HELP flumen_delivery_failing ").count();
    assert_eq!(described, 1, "{page}");
}
