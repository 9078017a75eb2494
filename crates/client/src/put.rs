//! Plain `Put`: records in one call, routed by the broker, at-least-once.

use flumen_api::convert;
use flumen_api::v1;
use flumen_record::{Durability, Record, SequenceNumber, ShardIndex, StreamName, Timestamp};
use tonic::Code;

use crate::{Client, Error};

/// Where a put record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutOutcome {
    /// Its shard.
    pub shard: ShardIndex,
    /// Its sequence number.
    pub sequence_number: SequenceNumber,
    /// Its arrival time.
    pub arrival: Timestamp,
    /// What the ack promises.
    pub durability: Durability,
}

impl Client {
    /// Puts records in one call, at-least-once, each routed by the broker. Outcomes are in the order
    /// of the records.
    ///
    /// # Errors
    /// When the call as a whole failed: a retryable one may have stored any of the records.
    pub async fn put(
        &self,
        stream: &StreamName,
        records: Vec<Record>,
    ) -> Result<Vec<Result<PutOutcome, Error>>, Error> {
        let sent = records.len();
        let records = records
            .into_iter()
            .map(v1::PutRecord::try_from)
            .collect::<Result<_, _>>();
        let records = records
            .map_err(|error| Error::local(Code::InvalidArgument, error.to_string().into(), None))?;
        let mut producer = self.producer();
        let call = producer.put(v1::PutRequest {
            stream: stream.to_string(),
            records,
            stream_incarnation: 0,
        });
        let response = self.call(self.config().call_timeout, call).await?;
        let durability = convert::durability("durability", response.durability)
            .map_err(|error| Error::nonsense(self.endpoint(), &error.to_string()))?
            .unwrap_or(Durability::Memory);
        if response.results.len() != sent {
            return Err(Error::nonsense(
                self.endpoint(),
                "not a result for each record",
            ));
        }
        let outcome = |result: v1::PutResult| match result.refusal {
            Some(refusal) => Err(Error::of_refusal(*refusal)),
            None => Ok(PutOutcome {
                shard: ShardIndex::new(result.shard),
                sequence_number: SequenceNumber::new(result.sequence_number),
                arrival: Timestamp::from_micros(result.arrival_us),
                durability,
            }),
        };
        Ok(response.results.into_iter().map(outcome).collect())
    }
}
