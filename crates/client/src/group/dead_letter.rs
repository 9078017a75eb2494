//! Records that no handler could process, on their way to a stream of their own.

use flumen_record::{Header, Record, StreamName};

use super::worker::WorkerContext;
use crate::retry::{Retry, random_seed};
use crate::{Client, ConsumedRecord, Error};

/// A reason is cut off here, in bytes: headers have a bound.
const REASON_BYTES_MAX: usize = 1024;
/// Records of one call.
const RECORDS_PER_PUT: usize = 100;

/// The records as they are written: key, data and headers as they were, and where they come from.
pub(super) fn letters(
    records: &[ConsumedRecord],
    context: &WorkerContext,
    reason: &str,
) -> Vec<Record> {
    let mut cut = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(cut) {
        cut -= 1;
    }
    let reason = reason.get(..cut).unwrap_or_default();
    records
        .iter()
        .map(|record| {
            let header = |name: &str, value: String| Header {
                name: name.to_owned().into(),
                value: value.into(),
            };
            let mut headers = record.headers.clone();
            headers.extend([
                header("flumen-stream", context.stream.to_string()),
                header("flumen-shard", record.shard.to_string()),
                header("flumen-sequence-number", record.sequence_number.to_string()),
                header("flumen-group", context.config.group.to_string()),
                header("flumen-reason", reason.to_owned()),
            ]);
            Record {
                partition_key: record.partition_key.clone(),
                explicit_hash_key: None,
                data: record.data.clone(),
                client_timestamp: record.client_timestamp,
                headers,
            }
        })
        .collect()
}

/// Writes them, durably, at least once.
pub(super) async fn put(
    client: &Client,
    stream: &StreamName,
    letters: Vec<Record>,
) -> Result<(), Error> {
    for part in letters.chunks(RECORDS_PER_PUT) {
        let budget = client.config().call_timeout;
        let mut retry = Retry::new(random_seed(), budget, tokio::time::Instant::now());
        retry
            .run(|| async {
                let outcomes = client.put(stream, part.to_vec()).await?;
                outcomes
                    .into_iter()
                    .try_for_each(|outcome| outcome.map(drop))
            })
            .await?;
    }
    Ok(())
}
