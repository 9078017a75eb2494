//! Delivery streams as people and programs read them.

use anyhow::Result;
use flumen_broker::{
    DeliverySettings, DeliverySource, Destination, ObjectCompression, ObjectFormat,
};
use flumen_client::delivery::{
    DeliveryCounts, DeliveryDescription, DeliveryStatus, LastError, LastObject, StoreGuarantee,
};
use serde_json::{Value, json};

use crate::output::{Output, OutputError};
use crate::quantity::{count, duration, micros, setting_duration, size};

/// A new one, and where to put records when it has a stream of its own.
pub(super) fn created(
    output: &mut Output,
    delivery: &DeliveryDescription,
    settings: &DeliverySettings,
) -> Result<(), OutputError> {
    changed(output, "created", delivery, settings)?;
    if !output.is_json() && matches!(settings.source, DeliverySource::Direct { .. }) {
        let stream = &delivery.stream;
        output.line(&format!(
            "put records into {stream}, as with `flumen produce {stream}`"
        ))?;
    }
    Ok(())
}

/// One after a change. Its status is not shown: its runner has hardly heard of it.
pub(super) fn changed(
    output: &mut Output,
    verb: &str,
    delivery: &DeliveryDescription,
    settings: &DeliverySettings,
) -> Result<(), OutputError> {
    if output.is_json() {
        return output.json(&description_json(delivery, settings));
    }
    output.line(&format!(
        "{verb} {}: {}",
        delivery.name,
        route(delivery, settings)
    ))
}

/// One row, or object, for each.
pub(super) fn list(
    output: &mut Output,
    found: &[DeliveryDescription],
    settings: &[DeliverySettings],
) -> Result<()> {
    let mut all = found.iter().zip(settings);
    if output.is_json() {
        return Ok(all.try_for_each(|(one, settings)| output.json(&summary_json(one, settings)))?);
    }
    if found.is_empty() {
        output.note(
            "no delivery streams yet; create one with `flumen delivery create NAME --stream STREAM \
             --to DIR`",
        );
        return Ok(());
    }
    let header = [
        "NAME",
        "STREAM",
        "STATUS",
        "FRESHNESS",
        "BEHIND",
        "DESTINATION",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(all.map(|(one, settings)| {
        [
            one.name.to_string(),
            one.stream.to_string(),
            status(one.status).to_owned(),
            match one.backlog.records {
                0 => "-".to_owned(),
                _ => duration(one.freshness),
            },
            count(one.backlog.records),
            destination(&settings.destination),
        ]
    }));
    Ok(output.table(&rows)?)
}

/// How it does, and its settings.
pub(super) fn describe(
    output: &mut Output,
    delivery: &DeliveryDescription,
    settings: &DeliverySettings,
) -> Result<(), OutputError> {
    if output.is_json() {
        return output.json(&description_json(delivery, settings));
    }
    output.line(&headline(delivery))?;
    output.line(&route(delivery, settings))?;
    output.line(guarantee_text(delivery.guarantee))?;
    output.line(&format!(
        "created {}, settings of {}, version {}",
        delivery.created, delivery.updated, delivery.version
    ))?;
    output.line(&format!(
        "{} committed, {} under way",
        cuts(delivery.cuts),
        delivery.cuts_open
    ))?;
    for line in counted(&delivery.counts) {
        output.line(&line)?;
    }
    let expired = delivery.backlog.expired_records;
    if expired > 0 {
        output.line(&format!(
            "{} expired before they were delivered",
            records(expired)
        ))?;
    }
    if let Some(last) = &delivery.last_object {
        output.line(&format!(
            "last object {} ({}, {}) at {}",
            last.key,
            records(last.records),
            size(last.bytes),
            last.at
        ))?;
    }
    if let Some(last) = &delivery.last_error {
        let since = match last.times {
            0 => "over".to_owned(),
            times => format!("{} times since the last success", count(times)),
        };
        output.line(&format!(
            "last error {} ({since}) at {}: {}",
            last.reason, last.at, last.text
        ))?;
    }
    output.line("")?;
    let settings = serde_json::to_string_pretty(settings).map_err(std::io::Error::from)?;
    output.line(&settings)
}

/// `clicks-s3: running, 1,234 records behind (3.3 MiB), the oldest 12 s old`.
fn headline(delivery: &DeliveryDescription) -> String {
    let backlog = &delivery.backlog;
    let behind = if backlog.records == 0 {
        "nothing behind".to_owned()
    } else {
        format!(
            "{} behind ({}), the oldest {} old",
            records(backlog.records),
            size(backlog.bytes),
            duration(delivery.freshness)
        )
    };
    format!("{}: {}, {behind}", delivery.name, status(delivery.status))
}

/// `clicks → s3://bucket, ndjson, gzip, cut at 5.0 MiB or 5m`.
fn route(delivery: &DeliveryDescription, settings: &DeliverySettings) -> String {
    let compression = match settings.compression {
        ObjectCompression::None => "",
        ObjectCompression::Gzip => ", gzip",
        ObjectCompression::Snappy => ", snappy",
        ObjectCompression::Zstd => ", zstd",
    };
    format!(
        "{} → {}, {}{compression}, cut at {} or {}",
        delivery.stream,
        destination(&settings.destination),
        format_name(&settings.format),
        size(settings.buffering.size_bytes),
        setting_duration(settings.buffering.interval()),
    )
}

fn counted(counts: &DeliveryCounts) -> Vec<String> {
    let mut lines = vec![format!(
        "since the broker started: {} in, {} out in {} ({})",
        records(counts.incoming_records),
        records(counts.delivered_records),
        plural(counts.delivered_objects, "object", "objects"),
        size(counts.delivered_bytes),
    )];
    let bad = [
        (counts.failed_records, "to the error prefix"),
        (counts.dropped_records, "dropped"),
        (counts.backup_records, "backed up"),
    ];
    let bad: Vec<_> = bad
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, what)| format!("{} {what}", records(*number)))
        .collect();
    if !bad.is_empty() {
        lines.push(bad.join(", "));
    }
    if counts.delivery_failures > 0 {
        lines.push(format!(
            "{} of the destination failed, {} asked to slow down",
            plural(counts.delivery_failures, "request", "requests"),
            count(counts.throttled)
        ));
    }
    lines
}

fn plural(number: u64, one: &str, more: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { more })
}

fn records(number: u64) -> String {
    plural(number, "record", "records")
}

fn cuts(number: u64) -> String {
    plural(number, "cut", "cuts")
}

fn status(status: DeliveryStatus) -> &'static str {
    match status {
        DeliveryStatus::Unspecified => "unknown",
        DeliveryStatus::Starting => "starting",
        DeliveryStatus::Running => "running",
        DeliveryStatus::Retrying => "retrying",
        DeliveryStatus::Paused => "paused",
        DeliveryStatus::Stopped => "stopped",
        DeliveryStatus::Deleting => "deleting",
    }
}

fn guarantee(guarantee: StoreGuarantee) -> &'static str {
    match guarantee {
        StoreGuarantee::Unspecified => "unknown",
        StoreGuarantee::CreateIfAbsent => "create_if_absent",
        StoreGuarantee::ManifestsOnly => "manifests_only",
    }
}

fn guarantee_text(guarantee: StoreGuarantee) -> &'static str {
    match guarantee {
        StoreGuarantee::Unspecified => "what the destination guarantees is not known yet",
        StoreGuarantee::CreateIfAbsent => {
            "exactly once: of racing creates one wins, objects and manifests are written once"
        }
        StoreGuarantee::ManifestsOnly => {
            "exactly once for readers of the manifests, as long as only this broker writes under the \
             prefix: the destination lets racing creates win both"
        }
    }
}

fn format_name(format: &ObjectFormat) -> &'static str {
    match format {
        ObjectFormat::Verbatim => "verbatim",
        ObjectFormat::Delimited { .. } => "delimited",
        ObjectFormat::Ndjson => "ndjson",
        ObjectFormat::Parquet(_) => "parquet",
    }
}

/// As `--to` takes it.
fn destination(destination: &Destination) -> String {
    match destination {
        Destination::S3(s3) => format!("s3://{}", s3.bucket),
        Destination::Directory { path } => format!("file://{}", path.display()),
        Destination::Memory { name } => format!("memory:{name}"),
    }
}

fn summary_json(delivery: &DeliveryDescription, settings: &DeliverySettings) -> Value {
    json!({
        "name": delivery.name.as_str(),
        "stream": delivery.stream.as_str(),
        "status": status(delivery.status),
        "destination": destination(&settings.destination),
        "format": format_name(&settings.format),
        "version": delivery.version,
        "guarantee": guarantee(delivery.guarantee),
        "freshness_us": micros(delivery.freshness),
        "freshness_ms": micros(delivery.freshness) / 1_000,
        "backlog_records": delivery.backlog.records,
        "backlog_bytes": delivery.backlog.bytes,
        "expired_records": delivery.backlog.expired_records,
        "cuts": delivery.cuts,
        "cuts_open": delivery.cuts_open,
    })
}

fn description_json(delivery: &DeliveryDescription, settings: &DeliverySettings) -> Value {
    let mut shown = summary_json(delivery, settings);
    if let Some(fields) = shown.as_object_mut() {
        let oldest = delivery.backlog.oldest.map(|at| at.to_string());
        let last_object = delivery.last_object.as_ref().map(object_json);
        let last_error = delivery.last_error.as_ref().map(error_json);
        for (name, value) in [
            ("id", delivery.id.into()),
            ("paused", delivery.paused.into()),
            ("created_time", delivery.created.to_string().into()),
            ("updated_time", delivery.updated.to_string().into()),
            ("backlog_oldest_time", oldest.into()),
            ("last_object", last_object.into()),
            ("last_error", last_error.into()),
            ("counts", counts_json(&delivery.counts)),
            ("settings", json!(settings)),
        ] {
            fields.insert(name.to_owned(), value);
        }
    }
    shown
}

fn object_json(last: &LastObject) -> Value {
    json!({
        "key": last.key,
        "bytes": last.bytes,
        "records": last.records,
        "time": last.at.to_string(),
    })
}

fn error_json(last: &LastError) -> Value {
    json!({
        "reason": last.reason,
        "text": last.text,
        "time": last.at.to_string(),
        "times": last.times,
    })
}

fn counts_json(counts: &DeliveryCounts) -> Value {
    json!({
        "incoming_bytes": counts.incoming_bytes,
        "incoming_records": counts.incoming_records,
        "delivered_objects": counts.delivered_objects,
        "delivered_bytes": counts.delivered_bytes,
        "delivered_records": counts.delivered_records,
        "delivery_failures": counts.delivery_failures,
        "backup_objects": counts.backup_objects,
        "backup_bytes": counts.backup_bytes,
        "backup_records": counts.backup_records,
        "processing_successes": counts.processing_successes,
        "processing_failures": counts.processing_failures,
        "processing_us": counts.processing_us,
        "processed_records": counts.processed_records,
        "processed_bytes": counts.processed_bytes,
        "dropped_records": counts.dropped_records,
        "failed_records": counts.failed_records,
        "partition_overflows": counts.partition_overflows,
        "partitions": counts.partitions,
        "throttled": counts.throttled,
    })
}
