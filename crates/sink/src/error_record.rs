//! What is left of a record that failed: a line in the error prefix, a record in the dead-letter
//! stream (row F10).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flumen_record::{DeliveryName, Header, Record, ShardIndex, StreamName, Timestamp};
use serde::Serialize;

use crate::unit::{ErrorType, Failure, Unit};

/// The longest error text that is kept, in bytes.
const MAX_ERROR_TEXT_BYTES: usize = 1024;
/// The most headers of a record, and their bytes: as `flumen-record` has them.
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 16 << 10;
/// The longest partition key, in characters.
const MAX_PARTITION_KEY_CHARACTERS: usize = 256;

/// Headers that say why a record is in a dead-letter stream.
const ERROR_CODE: &str = "flumen-error-code";
const ERROR_TEXT: &str = "flumen-error-message";
const DELIVERY: &str = "flumen-delivery";
const SOURCE: &str = "flumen-source";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorLine<'a> {
    attempts_made: u32,
    arrival_timestamp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error_message: Option<&'a str>,
    attempt_ending_timestamp: u64,
    raw_data: String,
    sequence_number: String,
    sub_sequence_number: u64,
    shard_id: String,
    partition_key: &'a str,
}

/// One line of JSON, with its line feed. `ended` is when the last attempt ended: the caller's to
/// say, so that the same cut makes the same line.
pub(crate) fn error_line(unit: &Unit, failure: &Failure, ended: Timestamp) -> Vec<u8> {
    let text = error_text(&failure.message);
    let converting = failure.kind == ErrorType::FormatConversionFailed;
    let line = ErrorLine {
        attempts_made: failure.attempts,
        arrival_timestamp: millis(unit.arrival),
        error_code: (!converting).then_some(failure.code),
        error_message: (!converting).then_some(text),
        last_error_code: converting.then_some(failure.code),
        last_error_message: converting.then_some(text),
        attempt_ending_timestamp: millis(ended),
        raw_data: STANDARD.encode(&unit.data),
        sequence_number: unit.sequence.to_string(),
        sub_sequence_number: unit.sub,
        shard_id: shard_id(unit.shard),
        partition_key: &String::from_utf8_lossy(&unit.partition_key),
    };
    // Text and numbers only: there is nothing in it that could not be written.
    let mut line = serde_json::to_vec(&line).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The record as it was, with headers that say why it is here. Its own headers are kept as long as
/// there is room, those of an earlier failure are not.
pub(crate) fn dead_letter(
    unit: &Unit,
    failure: &Failure,
    delivery: &DeliveryName,
    stream: &StreamName,
) -> Record {
    let sub = if unit.sub == 0 {
        String::new()
    } else {
        format!("/{}", unit.sub)
    };
    let source = format!("{stream}/{}/{}{sub}", unit.shard, unit.sequence);
    let mut headers: Vec<Header> = [
        (ERROR_CODE, failure.code.to_owned()),
        (ERROR_TEXT, error_text(&failure.message).to_owned()),
        (DELIVERY, delivery.to_string()),
        (SOURCE, source.clone()),
    ]
    .into_iter()
    .map(|(name, value)| Header {
        name: Bytes::from_static(name.as_bytes()),
        value: Bytes::from(value),
    })
    .collect();
    let size = |header: &Header| header.name.len() + header.value.len();
    let mut bytes: usize = headers.iter().map(size).sum();
    let ours = [ERROR_CODE, ERROR_TEXT, DELIVERY, SOURCE];
    let theirs = unit.headers.iter();
    for header in theirs.filter(|header| !ours.iter().any(|name| header.name == name.as_bytes())) {
        bytes += size(header);
        if headers.len() == MAX_HEADERS || bytes > MAX_HEADER_BYTES {
            break;
        }
        headers.push(header.clone());
    }
    Record {
        partition_key: partition_key(&unit.partition_key, source),
        explicit_hash_key: None,
        data: unit.data.clone(),
        client_timestamp: None,
        headers,
    }
}

/// The partition key, or another where it could not be one: those within aggregates are unchecked.
fn partition_key(key: &Bytes, otherwise: String) -> Bytes {
    let characters = std::str::from_utf8(key).map(|key| key.chars().count());
    match characters {
        Ok(1..=MAX_PARTITION_KEY_CHARACTERS) => key.clone(),
        _ => Bytes::from(otherwise),
    }
}

/// A shard as Kinesis calls it.
pub(crate) fn shard_id(shard: ShardIndex) -> String {
    format!("shardId-{:012}", shard.value())
}

/// Milliseconds since 1970.
pub(crate) fn millis(at: Timestamp) -> u64 {
    at.as_micros() / 1000
}

fn error_text(text: &str) -> &str {
    let end = text.floor_char_boundary(MAX_ERROR_TEXT_BYTES);
    text.get(..end).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::tests::unit;

    fn failure(kind: ErrorType) -> Failure {
        Failure {
            kind,
            code: "Json.Invalid",
            message: "not JSON: \"x\"\n".to_owned(),
            attempts: 1,
        }
    }

    #[test]
    fn a_line_is_one_json_object_as_firehose_writes_it() {
        let mut record = unit(b"\xff\x00");
        record.sub = 3;
        let ended = Timestamp::from_micros(1_772_368_500_000_999);
        let line = error_line(&record, &failure(ErrorType::ProcessingFailed), ended);
        assert_eq!(
            String::from_utf8(line).unwrap(),
            concat!(
                r#"{"attemptsMade":1,"arrivalTimestamp":1772368496789,"errorCode":"Json.Invalid","#,
                r#""errorMessage":"not JSON: \"x\"\n","attemptEndingTimestamp":1772368500000,"#,
                r#""rawData":"/wA=","sequenceNumber":"7","subSequenceNumber":3,"#,
                r#""shardId":"shardId-000000000002","partitionKey":"pk"}"#,
                "\n"
            )
        );
        let line = error_line(&record, &failure(ErrorType::FormatConversionFailed), ended);
        let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(line["lastErrorCode"], "Json.Invalid");
        assert_eq!(line["lastErrorMessage"], "not JSON: \"x\"\n");
        assert_eq!(line.get("errorCode"), None);
    }

    fn letter(unit: &Unit, failure: &Failure) -> Record {
        dead_letter(
            unit,
            failure,
            &"orders".parse().unwrap(),
            &"telemetry".parse().unwrap(),
        )
    }

    fn header(record: &Record, name: &str) -> Vec<String> {
        let found = record
            .headers
            .iter()
            .filter(|header| header.name == name.as_bytes());
        found
            .map(|header| String::from_utf8(header.value.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn a_dead_letter_says_why_and_from_where() {
        let mut record = unit(b"data");
        let once = letter(&record, &failure(ErrorType::ProcessingFailed));
        assert_eq!(
            (&once.data[..], &once.partition_key[..]),
            (&b"data"[..], &b"pk"[..])
        );
        assert_eq!(header(&once, "flumen-error-code"), ["Json.Invalid"]);
        assert_eq!(header(&once, "flumen-delivery"), ["orders"]);
        assert_eq!(header(&once, "flumen-source"), ["telemetry/2/7"]);
        assert_eq!(header(&once, "name"), ["value"]);
        record.headers = once.headers;
        record.sub = 4;
        let twice = letter(&record, &failure(ErrorType::ProcessingFailed));
        assert_eq!(header(&twice, "flumen-source"), ["telemetry/2/7/4"]);
        assert_eq!(twice.headers.len(), 5);
    }

    #[test]
    fn dead_letters_are_records_that_can_be_put() {
        let mut record = unit(b"");
        let many = |value: usize| {
            let header = Header {
                name: Bytes::from_static(b"n"),
                value: Bytes::from(vec![b'v'; value]),
            };
            vec![header; 64]
        };
        let mut failure = failure(ErrorType::ProcessingFailed);
        failure.message = "ü".repeat(1000);
        for value in [1, 255] {
            record.headers = many(value);
            let letter = letter(&record, &failure);
            let bytes: usize = letter
                .headers
                .iter()
                .map(|h| h.name.len() + h.value.len())
                .sum();
            assert!(letter.headers.len() <= 64 && bytes <= 16 << 10, "{bytes}");
            assert!(letter.headers.len() > 50);
            assert_eq!(header(&letter, "flumen-error-message")[0].len(), 1024);
        }
        for odd in [
            Bytes::new(),
            Bytes::from("x".repeat(257)),
            Bytes::from_static(b"\xff"),
        ] {
            record.partition_key = odd;
            assert_eq!(letter(&record, &failure).partition_key, "telemetry/2/7");
        }
    }
}
