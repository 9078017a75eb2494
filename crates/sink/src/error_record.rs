//! What is left of a record that failed: a line in the error prefix, a record in the dead-letter
//! stream (row F10).
use flumen_record::{Record, Timestamp};

use crate::unit::{Failure, Unit};

/// One line of JSON, with its line feed.
pub(crate) fn error_line(unit: &Unit, failure: &Failure, ended: Timestamp) -> Vec<u8> {
    let _ = (unit, failure, ended);
    Vec::new()
}

/// The record as it was, with headers that say why it is here.
pub(crate) fn dead_letter(unit: &Unit, failure: &Failure, delivery: &str, stream: &str) -> Record {
    let _ = (failure, delivery, stream);
    Record {
        partition_key: unit.partition_key.clone(),
        explicit_hash_key: None,
        data: unit.data.clone(),
        client_timestamp: None,
        headers: unit.headers.clone(),
    }
}
