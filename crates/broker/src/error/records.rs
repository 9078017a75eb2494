//! Reasons and refused values of records and batches that cannot be stored.

use flumen_record::{BatchError, RecordError};

use super::facts::hash_key;

pub(super) fn record_reason(error: &RecordError) -> &'static str {
    match error {
        RecordError::TooLarge { .. } => "RECORD_TOO_LARGE",
        RecordError::PartitionKeyLength { .. }
        | RecordError::PartitionKeyUtf8 { .. }
        | RecordError::HeaderNameUtf8 { .. }
        | RecordError::Headers { .. } => "RECORD_INVALID",
        RecordError::BatchFull { .. } => "BATCH_TOO_LARGE",
    }
}

pub(super) fn record_metadata(error: &RecordError) -> Vec<(&'static str, String)> {
    match error {
        RecordError::TooLarge { bytes, limit } | RecordError::BatchFull { bytes, limit } => {
            vec![("bytes", bytes.to_string()), ("limit", limit.to_string())]
        }
        RecordError::PartitionKeyLength { characters } => {
            vec![("key_characters", characters.to_string())]
        }
        RecordError::PartitionKeyUtf8 { valid_bytes } => {
            vec![("key_valid_bytes", valid_bytes.to_string())]
        }
        RecordError::HeaderNameUtf8 { header } => vec![("header", header.to_string())],
        RecordError::Headers { count, bytes } => {
            vec![
                ("headers", count.to_string()),
                ("header_bytes", bytes.to_string()),
            ]
        }
    }
}

pub(super) fn batch_reason(error: &BatchError) -> &'static str {
    match error {
        BatchError::Checksum { .. } => "BATCH_CHECKSUM",
        BatchError::TooLarge { .. } | BatchError::BodyTooLarge { .. } => "BATCH_TOO_LARGE",
        BatchError::Version { .. }
        | BatchError::Compression { .. }
        | BatchError::Reserved { .. } => "BATCH_UNSUPPORTED",
        BatchError::Record { error, .. } => record_reason(error),
        BatchError::Truncated { .. }
        | BatchError::Excess { .. }
        | BatchError::TooSmall { .. }
        | BatchError::BodyLength { .. }
        | BatchError::Count { .. }
        | BatchError::Span { .. }
        | BatchError::Decompression { .. }
        | BatchError::Malformed { .. }
        | BatchError::OutsideSpan { .. } => "BATCH_MALFORMED",
    }
}

pub(super) fn batch_metadata(error: &BatchError) -> Vec<(&'static str, String)> {
    match error {
        BatchError::Checksum { expected, found } => {
            vec![
                ("expected", format!("{expected:08x}")),
                ("found", format!("{found:08x}")),
            ]
        }
        BatchError::TooLarge { bytes, limit } | BatchError::BodyTooLarge { bytes, limit } => {
            vec![("bytes", bytes.to_string()), ("limit", limit.to_string())]
        }
        BatchError::Version { version } => vec![("version", version.to_string())],
        BatchError::Compression { code } => vec![("compression", code.to_string())],
        BatchError::Record { index, error } => {
            let mut metadata = vec![("record", index.to_string())];
            metadata.extend(record_metadata(error));
            metadata
        }
        BatchError::Malformed { index, .. } => vec![("record", index.to_string())],
        BatchError::OutsideSpan {
            index,
            hash_key: key,
        } => {
            vec![("record", index.to_string()), ("hash_key", hash_key(*key))]
        }
        _ => Vec::new(),
    }
}
