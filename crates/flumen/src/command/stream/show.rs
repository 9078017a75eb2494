//! Streams and shards as text and as JSON.

use flumen_client::{AutoScale, ShardDescription, ShardIndex, StreamDescription};
use serde_json::{Value, json};

use super::level_name;
use crate::output::{Output, OutputError};
use crate::quantity::{count, micros, setting_duration, size};

/// A stream after a change.
pub(super) fn changed(
    output: &mut Output,
    verb: &str,
    stream: &StreamDescription,
) -> Result<(), OutputError> {
    if output.is_json() {
        return output.json(&stream_json(stream, false));
    }
    output.line(&format!("{verb} {}: {}", stream.name, settings(stream)))
}

fn settings(stream: &StreamDescription) -> String {
    let shards = open(stream);
    let closed = match stream.shards.len() - shards {
        0 => String::new(),
        closed => format!(" ({closed} more closed)"),
    };
    let bytes = match stream.retention_bytes {
        Some(bytes) => format!(" and {}", size(bytes)),
        None => String::new(),
    };
    format!(
        "{shards} shard{}{closed}, {}, kept {}{bytes}, records up to {}",
        if shards == 1 { "" } else { "s" },
        level_name(stream.durability),
        setting_duration(stream.retention),
        size(stream.max_record_bytes)
    )
}

/// Shards that take records.
pub(super) fn open(stream: &StreamDescription) -> usize {
    stream.shards.iter().filter(|shard| shard.open).count()
}

/// The shards that came out of `shard`.
pub(super) fn children(stream: &StreamDescription, shard: ShardIndex) -> String {
    let children = stream
        .shards
        .iter()
        .filter(|other| other.parents.contains(&shard));
    let children: Vec<_> = children.map(|child| child.index.to_string()).collect();
    children.join(" and ")
}

/// What automatic scaling does, in a sentence.
fn auto_scale_text(auto_scale: &AutoScale) -> String {
    let rates = [
        auto_scale
            .shard_bytes_per_s
            .map(|rate| format!("{}/s", size(rate))),
        auto_scale
            .shard_records_per_s
            .map(|rate| format!("{} records/s", count(rate))),
    ];
    let rates: Vec<_> = rates.into_iter().flatten().collect();
    format!(
        "auto-scale {}..{} shards of {}: split above {} % for {}, merge below {} % for {}, then wait {}",
        auto_scale.shards_min,
        auto_scale.shards_max,
        rates.join(" and "),
        auto_scale.split_above_percent,
        setting_duration(auto_scale.split_after),
        auto_scale.merge_below_percent,
        setting_duration(auto_scale.merge_after),
        setting_duration(auto_scale.cool_down),
    )
}

fn auto_scale_json(auto_scale: &AutoScale) -> Value {
    json!({
        "shards_min": auto_scale.shards_min,
        "shards_max": auto_scale.shards_max,
        "shard_bytes_per_s": auto_scale.shard_bytes_per_s,
        "shard_records_per_s": auto_scale.shard_records_per_s,
        "split_above_percent": auto_scale.split_above_percent,
        "split_after_us": micros(auto_scale.split_after),
        "merge_below_percent": auto_scale.merge_below_percent,
        "merge_after_us": micros(auto_scale.merge_after),
        "cool_down_us": micros(auto_scale.cool_down),
    })
}

/// Numbers between the horizon and the end: the records kept, but for recorded jumps.
pub(super) fn records(shard: &ShardDescription) -> u64 {
    shard
        .durable_end
        .value()
        .saturating_sub(shard.trim_horizon.value())
}

/// A stream and its shards.
pub(super) fn describe(output: &mut Output, stream: &StreamDescription) -> Result<(), OutputError> {
    if output.is_json() {
        return output.json(&stream_json(stream, true));
    }
    output.line(&format!("{}: {}", stream.name, settings(stream)))?;
    output.line(&format!(
        "created {}, version {}, incarnation {}",
        stream.created,
        stream.version,
        stream.incarnation.to_hex()
    ))?;
    if let Some(auto_scale) = &stream.auto_scale {
        output.line(&auto_scale_text(auto_scale))?;
    }
    output.line("")?;
    let header = [
        "SHARD",
        "STATE",
        "PARENTS",
        "FIRST",
        "END",
        "STORED",
        "LAST ARRIVAL",
        "HASH KEYS FROM",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(stream.shards.iter().map(|shard| {
        let empty = shard.last_arrival.as_micros() == 0;
        [
            shard.index.to_string(),
            if shard.open { "open" } else { "closed" }.to_owned(),
            parents(shard),
            shard.trim_horizon.to_string(),
            shard.durable_end.to_string(),
            size(shard.stored_bytes),
            if empty {
                "-".to_owned()
            } else {
                shard.last_arrival.to_string()
            },
            format!("{:032x}", shard.range.start.value()),
        ]
    }));
    output.table(&rows)
}

fn parents(shard: &ShardDescription) -> String {
    let parents: Vec<_> = shard.parents.iter().map(ToString::to_string).collect();
    if parents.is_empty() {
        return "-".to_owned();
    }
    parents.join(",")
}

/// A stream as one JSON object.
pub(super) fn stream_json(stream: &StreamDescription, with_shards: bool) -> Value {
    let mut shown = json!({
        "stream": stream.name.as_str(),
        "id": stream.id.value(),
        "incarnation": stream.incarnation.to_hex(),
        "shards": open(stream),
        "closed_shards": stream.shards.len() - open(stream),
        "durability": level_name(stream.durability),
        "retention_us": micros(stream.retention),
        "retention_bytes": stream.retention_bytes,
        "max_record_bytes": stream.max_record_bytes,
        "auto_scale": stream.auto_scale.as_ref().map(auto_scale_json),
        "created_time": stream.created.to_string(),
        "version": stream.version,
        "records": stream.shards.iter().map(records).sum::<u64>(),
        "stored_bytes": stream.shards.iter().map(|shard| shard.stored_bytes).sum::<u64>(),
    });
    if let (true, Some(fields)) = (with_shards, shown.as_object_mut()) {
        let shards = stream.shards.iter().map(shard_json).collect();
        fields.insert("shard_map".to_owned(), Value::Array(shards));
    }
    shown
}

fn shard_json(shard: &ShardDescription) -> Value {
    let empty = shard.last_arrival.as_micros() == 0;
    json!({
        "shard": shard.index.value(),
        "open": shard.open,
        "parents": shard.parents.iter().map(|parent| parent.value()).collect::<Vec<_>>(),
        "hash_key_start": format!("{:032x}", shard.range.start.value()),
        "hash_key_end": format!("{:032x}", shard.range.end.value()),
        "trim_horizon": shard.trim_horizon.value(),
        "durable_end": shard.durable_end.value(),
        "stored_bytes": shard.stored_bytes,
        "last_arrival_time": (!empty).then(|| shard.last_arrival.to_string()),
    })
}
