//! `flumen.v1.Producer` but for `Append`: producer ids and plain puts.

use flumen_api::convert::stream_name;
use flumen_api::v1;
use flumen_broker::{Broker, Error, PutOutcome};
use flumen_record::{Durability, Record};

use crate::call::meant;
use crate::status::Facts;

pub(crate) async fn open_producer(
    broker: &Broker,
    _request: v1::OpenProducerRequest,
) -> Result<v1::OpenProducerResponse, Facts> {
    let producer = broker.open_producer().await?;
    Ok(v1::OpenProducerResponse {
        producer_id: producer.value(),
    })
}

/// A record that does not convert is refused in its place and the others go on, as for records
/// the broker refuses.
pub(crate) async fn put(
    broker: &Broker,
    request: v1::PutRequest,
) -> Result<v1::PutResponse, Facts> {
    let name = stream_name("stream", &request.stream)?;
    let mut results = Vec::with_capacity(request.records.len());
    let mut records = Vec::with_capacity(request.records.len());
    for record in request.records {
        match Record::try_from(record) {
            Ok(record) => {
                records.push(record);
                results.push(None);
            }
            Err(error) => results.push(Some(refusal(error.into()))),
        }
    }
    let stream = meant(&name, request.stream_incarnation);
    let (incarnation, outcomes) = broker.put_into(stream, records).await?;
    let durability = outcomes.iter().flatten().map(|put| put.durability).min();
    let mut outcomes = outcomes.into_iter().map(result);
    let results = results.into_iter().map(|refused| {
        let outcome = refused.or_else(|| outcomes.next());
        outcome.expect("BUG: the broker answers every record it was given")
    });
    Ok(v1::PutResponse {
        results: results.collect(),
        durability: level(durability),
        stream_incarnation: incarnation.value(),
    })
}

/// The wire's word for a level; nothing stored has none.
pub(crate) fn level(durability: Option<Durability>) -> i32 {
    durability
        .map_or(v1::Durability::Unspecified, v1::Durability::from)
        .into()
}

fn result(outcome: Result<PutOutcome, Error>) -> v1::PutResult {
    match outcome {
        Ok(put) => v1::PutResult {
            shard: put.shard.value(),
            sequence_number: put.sequence_number.value(),
            arrival_us: put.arrival.as_micros(),
            refusal: None,
        },
        Err(error) => refusal(error.into()),
    }
}

fn refusal(facts: Facts) -> v1::PutResult {
    v1::PutResult {
        refusal: Some(Box::new(facts.into())),
        ..Default::default()
    }
}
