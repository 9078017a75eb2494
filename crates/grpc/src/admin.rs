//! `flumen.v1.Admin`: streams and their settings.

use std::time::Duration;

use flumen_api::convert::{durability, stream_name};
use flumen_api::v1;
use flumen_broker::{
    Broker, Error, NewStream, ShardDescription, StreamDescription, StreamSettings, StreamUpdate,
};

use crate::status::Facts;

/// Streams listed when the caller does not say how many.
const LISTED: u32 = 100;
/// Streams listed at most.
const LISTED_MAX: u32 = 1_000;

pub(crate) async fn create_stream(
    broker: &Broker,
    request: v1::CreateStreamRequest,
) -> Result<v1::CreateStreamResponse, Facts> {
    let defaults = StreamSettings::default();
    let settings = StreamSettings {
        durability: durability("durability", request.durability)?.unwrap_or(defaults.durability),
        retention: unless_zero(request.retention_us)
            .map_or(defaults.retention, Duration::from_micros),
        retention_bytes: unless_zero(request.retention_bytes),
        max_record_bytes: unless_zero(request.max_record_bytes)
            .unwrap_or(defaults.max_record_bytes),
    };
    let new = NewStream {
        name: stream_name("stream", &request.stream)?,
        shards: request.shards.max(1),
        settings,
    };
    let stream = broker.create_stream(new).await?;
    Ok(v1::CreateStreamResponse {
        stream: Some(describe(stream)),
    })
}

pub(crate) fn describe_stream(
    broker: &Broker,
    request: &v1::DescribeStreamRequest,
) -> Result<v1::DescribeStreamResponse, Facts> {
    let stream = broker.describe_stream(&stream_name("stream", &request.stream)?)?;
    Ok(v1::DescribeStreamResponse {
        stream: Some(describe(stream)),
    })
}

pub(crate) fn list_streams(
    broker: &Broker,
    request: &v1::ListStreamsRequest,
) -> Result<v1::ListStreamsResponse, Facts> {
    let after = match request.after.as_str() {
        "" => None,
        name => Some(stream_name("after", name)?),
    };
    let limit = if request.limit == 0 {
        LISTED
    } else {
        request.limit
    };
    if limit > LISTED_MAX {
        return Err(Facts::from(Error::OutOfBounds {
            setting: "limit",
            value: u64::from(limit),
            min: 1,
            max: u64::from(LISTED_MAX),
        }));
    }
    let (streams, more) = broker.list_streams(after.as_ref(), limit as usize);
    Ok(v1::ListStreamsResponse {
        streams: streams.into_iter().map(describe).collect(),
        more,
    })
}

pub(crate) async fn update_stream(
    broker: &Broker,
    request: v1::UpdateStreamRequest,
) -> Result<v1::UpdateStreamResponse, Facts> {
    let name = stream_name("stream", &request.stream)?;
    let level = request.durability.unwrap_or_default();
    let update = StreamUpdate {
        durability: durability("durability", level)?,
        retention: request.retention_us.map(Duration::from_micros),
        retention_bytes: request.retention_bytes.map(unless_zero),
        max_record_bytes: request.max_record_bytes,
    };
    let stream = broker.update_stream(&name, update).await?;
    Ok(v1::UpdateStreamResponse {
        stream: Some(describe(stream)),
    })
}

pub(crate) async fn delete_stream(
    broker: &Broker,
    request: v1::DeleteStreamRequest,
) -> Result<v1::DeleteStreamResponse, Facts> {
    let name = stream_name("stream", &request.stream)?;
    broker.delete_stream(&name).await?;
    Ok(v1::DeleteStreamResponse {})
}

fn unless_zero(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}

fn describe(stream: StreamDescription) -> v1::Stream {
    let settings = stream.settings;
    let retention_us = u64::try_from(settings.retention.as_micros()).unwrap_or(u64::MAX);
    v1::Stream {
        name: stream.name.to_string(),
        id: stream.id.value(),
        durability: v1::Durability::from(settings.durability).into(),
        retention_us,
        retention_bytes: settings.retention_bytes.unwrap_or_default(),
        max_record_bytes: settings.max_record_bytes,
        created_us: stream.created.as_micros(),
        version: stream.version,
        shards: stream.shards.into_iter().map(describe_shard).collect(),
    }
}

fn describe_shard(shard: ShardDescription) -> v1::Shard {
    v1::Shard {
        shard: shard.index.value(),
        range: Some(shard.range.into()),
        open: shard.open,
        parents: shard.parents.iter().map(|parent| parent.value()).collect(),
        trim_horizon: shard.trim_horizon.value(),
        durable_end: shard.durable_end.value(),
        last_arrival_us: shard.last_arrival.as_micros(),
        stored_bytes: shard.stored_bytes,
    }
}
