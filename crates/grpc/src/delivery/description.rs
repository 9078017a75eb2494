//! How a delivery stream does, in the wire's words.

use std::time::Duration;

use flumen_api::v1;
use flumen_broker::{
    DeliveryBacklog, DeliveryCounts, DeliveryDescription, DeliveryPhase, StoreGuarantee,
};
use flumen_record::Timestamp;

use super::wire_delivery_settings;

/// A description; freshness is measured at `now`.
pub(super) fn describe(delivery: &DeliveryDescription, now: Timestamp) -> v1::DeliveryDescription {
    let report = &delivery.report;
    v1::DeliveryDescription {
        name: delivery.name.to_string(),
        id: delivery.id.value(),
        stream: delivery.stream.to_string(),
        version: delivery.version,
        settings: Some(wire_delivery_settings(&delivery.settings)),
        paused: delivery.paused,
        created_us: delivery.created.as_micros(),
        updated_us: delivery.updated.as_micros(),
        status: status(report.phase).into(),
        guarantee: guarantee(report.guarantee).into(),
        freshness_us: micros(delivery.backlog.freshness(now)),
        backlog: Some(backlog(delivery.backlog)),
        cuts: report.cuts,
        cuts_open: report.cuts_open,
        last_object: report.last_object.as_ref().map(|last| v1::LastObject {
            key: last.key.clone(),
            bytes: last.bytes,
            records: last.records,
            at_us: last.at.as_micros(),
        }),
        last_error: report.last_error.as_ref().map(|last| v1::LastError {
            reason: last.reason.to_owned(),
            text: last.text.clone(),
            at_us: last.at.as_micros(),
            times: last.times,
        }),
        counts: Some(counts(delivery.counts)),
    }
}

fn status(phase: DeliveryPhase) -> v1::DeliveryStatus {
    match phase {
        DeliveryPhase::Starting => v1::DeliveryStatus::Starting,
        DeliveryPhase::Running => v1::DeliveryStatus::Running,
        DeliveryPhase::Retrying => v1::DeliveryStatus::Retrying,
        DeliveryPhase::Paused => v1::DeliveryStatus::Paused,
        DeliveryPhase::Stopped => v1::DeliveryStatus::Stopped,
        DeliveryPhase::Deleting => v1::DeliveryStatus::Deleting,
    }
}

fn guarantee(guarantee: StoreGuarantee) -> v1::StoreGuarantee {
    match guarantee {
        StoreGuarantee::Unknown => v1::StoreGuarantee::Unspecified,
        StoreGuarantee::CreateIfAbsent => v1::StoreGuarantee::CreateIfAbsent,
        StoreGuarantee::ManifestsOnly => v1::StoreGuarantee::ManifestsOnly,
    }
}

fn backlog(backlog: DeliveryBacklog) -> v1::DeliveryBacklog {
    v1::DeliveryBacklog {
        records: backlog.records,
        bytes: backlog.bytes,
        oldest_us: backlog.oldest.map_or(0, Timestamp::as_micros),
        expired_records: backlog.expired,
    }
}

/// Field by field, without a rest: a new counter is an error here until it travels.
fn counts(counts: DeliveryCounts) -> v1::DeliveryCounts {
    let DeliveryCounts {
        incoming_bytes,
        incoming_records,
        delivered_objects,
        delivered_bytes,
        delivered_records,
        delivery_failures,
        backup_objects,
        backup_bytes,
        backup_records,
        processing_successes,
        processing_failures,
        processing_us,
        processed_records,
        processed_bytes,
        dropped_records,
        failed_records,
        partition_overflows,
        partitions,
        throttled,
    } = counts;
    v1::DeliveryCounts {
        incoming_bytes,
        incoming_records,
        delivered_objects,
        delivered_bytes,
        delivered_records,
        delivery_failures,
        backup_objects,
        backup_bytes,
        backup_records,
        processing_successes,
        processing_failures,
        processing_us,
        processed_records,
        processed_bytes,
        dropped_records,
        failed_records,
        partition_overflows,
        partitions,
        throttled,
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
