//! The JSON of the transform's requests and replies.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{InvocationError, TransformOutcome, TransformSource};
use crate::error_record::{millis, shard_id};
use crate::unit::{ErrorType, Failure, Unit};

/// Bytes of a record in a request besides data and partition key, at most.
const RECORD_BYTES: usize = 512;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    invocation_id: &'a str,
    delivery_stream_arn: &'a str,
    region: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_kinesis_stream_arn: Option<&'a str>,
    records: Vec<RequestRecord<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestRecord<'a> {
    record_id: String,
    approximate_arrival_timestamp: u64,
    data: String,
    kinesis_record_metadata: Metadata<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    sequence_number: String,
    subsequence_number: String,
    partition_key: std::borrow::Cow<'a, str>,
    shard_id: String,
    approximate_arrival_timestamp: u64,
}

#[derive(Deserialize)]
struct Reply {
    records: Vec<ReplyRecord>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReplyRecord {
    record_id: String,
    result: String,
    data: Option<String>,
    metadata: Option<ReplyMetadata>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReplyMetadata {
    partition_keys: Option<BTreeMap<String, Value>>,
}

/// What a unit adds to a request, in bytes, at most.
pub(crate) fn body_bytes(unit: &Unit) -> usize {
    // A character of the partition key takes six bytes when it is escaped.
    unit.data.len().div_ceil(3) * 4 + unit.partition_key.len() * 6 + RECORD_BYTES
}

/// The name of the unit at `index` of a batch.
fn record_id(index: usize) -> String {
    format!("{index:020}")
}

/// The body of a request.
pub(crate) fn request(invocation_id: &str, source: &TransformSource, units: &[Unit]) -> Vec<u8> {
    let records = units.iter().enumerate().map(|(index, unit)| RequestRecord {
        record_id: record_id(index),
        approximate_arrival_timestamp: millis(unit.arrival),
        data: STANDARD.encode(&unit.data),
        kinesis_record_metadata: Metadata {
            sequence_number: unit.sequence.to_string(),
            subsequence_number: unit.sub.to_string(),
            partition_key: String::from_utf8_lossy(&unit.partition_key),
            shard_id: shard_id(unit.shard),
            approximate_arrival_timestamp: millis(unit.arrival),
        },
    });
    let request = Request {
        invocation_id,
        delivery_stream_arn: &source.delivery_arn,
        region: &source.region,
        source_kinesis_stream_arn: source.stream_arn.as_deref(),
        records: records.collect(),
    };
    // Text and numbers only: there is nothing in it that could not be written.
    serde_json::to_vec(&request).unwrap_or_default()
}

/// What a reply says about each of `count` units, in their order.
pub(crate) fn outcomes(
    reply: &[u8],
    count: usize,
    attempts: u32,
) -> Result<Vec<TransformOutcome>, InvocationError> {
    let wrong = |fault: String| InvocationError::Reply { fault };
    let reply: Reply = serde_json::from_slice(reply).map_err(|error| wrong(error.to_string()))?;
    let mut by_index: Vec<Option<TransformOutcome>> = vec![None; count];
    for record in reply.records {
        let id = record.record_id.clone();
        let index = id
            .parse::<usize>()
            .ok()
            .filter(|index| record_id(*index) == id);
        let Some(place) = index.and_then(|index| by_index.get_mut(index)) else {
            let id: String = id.chars().take(64).collect();
            return Err(wrong(format!("the recordId {id:?} was not asked about")));
        };
        if place.is_some() {
            return Err(wrong(format!("the recordId {id:?} is there twice")));
        }
        *place = Some(outcome(record, attempts));
    }
    let missing = by_index.iter().position(Option::is_none);
    if let Some(index) = missing {
        return Err(wrong(format!(
            "the recordId {:?} is missing",
            record_id(index)
        )));
    }
    Ok(by_index.into_iter().flatten().collect())
}

fn outcome(record: ReplyRecord, attempts: u32) -> TransformOutcome {
    let failed = |code, message: &str| {
        TransformOutcome::Failed(Failure {
            kind: ErrorType::ProcessingFailed,
            code,
            message: message.to_owned(),
            attempts,
        })
    };
    let invalid = |message| failed("Transform.InvalidReply", message);
    match record.result.as_str() {
        "Dropped" => return TransformOutcome::Dropped,
        "ProcessingFailed" => {
            return failed(
                "Transform.RecordFailed",
                "the transform says ProcessingFailed",
            );
        }
        "Ok" => {}
        _ => return invalid("the result is none of Ok, Dropped and ProcessingFailed"),
    }
    let Some(data) = record.data else {
        return invalid("the result is Ok and there is no data");
    };
    let Ok(data) = STANDARD.decode(data) else {
        return invalid("the data is not base64");
    };
    let keys = record.metadata.and_then(|metadata| metadata.partition_keys);
    let keys = keys.into_iter().flatten().map(|(name, value)| match value {
        Value::String(text) => Some((name, text)),
        Value::Number(number) => Some((name, number.to_string())),
        Value::Bool(value) => Some((name, value.to_string())),
        _ => None,
    });
    let Some(keys) = keys.collect() else {
        return invalid("a partition key is no text, number or boolean");
    };
    TransformOutcome::Ok {
        data: Bytes::from(data),
        keys,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_reply_panics(reply: Vec<u8>, count in 0_usize..3) {
            assert!(outcomes(&reply, count, 1).is_err());
        }
    }
}
