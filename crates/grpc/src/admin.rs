//! `flumen.v1.Admin`: streams and their settings.

use std::time::Duration;

use flumen_api::convert::{durability, hash_key, stream_name};
use flumen_api::v1;
use flumen_broker::{
    AutoScale, AutoScaleChange, AutoScaleUpdate, Broker, Error, NewStream, Reshard,
    ShardDescription, StreamDescription, StreamSettings, StreamUpdate,
};
use flumen_record::ShardIndex;

use crate::call::meant;
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
        auto_scale: request
            .auto_scale
            .and_then(|update| auto_scale_update(&update).applied_to(None)),
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
        auto_scale: request.auto_scale.as_ref().map(auto_scale_update),
    };
    let stream = broker
        .update_stream(meant(&name, request.stream_incarnation), update)
        .await?;
    Ok(v1::UpdateStreamResponse {
        stream: Some(describe(stream)),
    })
}

pub(crate) async fn delete_stream(
    broker: &Broker,
    request: v1::DeleteStreamRequest,
) -> Result<v1::DeleteStreamResponse, Facts> {
    let name = stream_name("stream", &request.stream)?;
    broker
        .delete_stream(meant(&name, request.stream_incarnation))
        .await?;
    Ok(v1::DeleteStreamResponse {})
}

pub(crate) async fn split_shard(
    broker: &Broker,
    request: v1::SplitShardRequest,
) -> Result<v1::SplitShardResponse, Facts> {
    let name = stream_name("stream", &request.stream)?;
    let at = match request.hash_key.as_ref() {
        [] => None,
        key => Some(hash_key("hash_key", key)?),
    };
    let shard = ShardIndex::new(request.shard);
    let split = Reshard::Split { shard, at };
    let meant = meant(&name, request.stream_incarnation);
    let stream = broker.reshard(meant, split).await?;
    Ok(v1::SplitShardResponse {
        stream: Some(describe(stream)),
    })
}

pub(crate) async fn merge_shards(
    broker: &Broker,
    request: v1::MergeShardsRequest,
) -> Result<v1::MergeShardsResponse, Facts> {
    let name = stream_name("stream", &request.stream)?;
    let shard = ShardIndex::new(request.shard);
    let adjacent = ShardIndex::new(request.adjacent_shard);
    let merge = Reshard::Merge { shard, adjacent };
    let meant = meant(&name, request.stream_incarnation);
    let stream = broker.reshard(meant, merge).await?;
    Ok(v1::MergeShardsResponse {
        stream: Some(describe(stream)),
    })
}

pub(crate) async fn scale_stream(
    broker: &Broker,
    request: v1::ScaleStreamRequest,
) -> Result<v1::ScaleStreamResponse, Facts> {
    let name = stream_name("stream", &request.stream)?;
    let meant = meant(&name, request.stream_incarnation);
    let stream = broker.scale_stream(meant, request.shards).await?;
    Ok(v1::ScaleStreamResponse {
        stream: Some(describe(stream)),
    })
}

pub(crate) async fn confirm_clock(
    broker: &Broker,
    _request: v1::ConfirmClockRequest,
) -> Result<v1::ConfirmClockResponse, Facts> {
    let jump = broker.confirm_clock().await?;
    #[expect(clippy::cast_possible_truncation, reason = "it saturates")]
    let jump_us = (jump * 1e6) as i64;
    Ok(v1::ConfirmClockResponse { jump_us })
}

fn auto_scale_update(update: &v1::AutoScaleUpdate) -> AutoScaleUpdate {
    if update.off {
        return AutoScaleUpdate::Off;
    }
    AutoScaleUpdate::On(AutoScaleChange {
        shards_min: update.shards_min,
        shards_max: update.shards_max,
        shard_bytes_per_s: update.shard_bytes_per_s,
        shard_records_per_s: update.shard_records_per_s,
        split_above_percent: update.split_above_percent,
        split_after: update.split_after_us.map(Duration::from_micros),
        merge_below_percent: update.merge_below_percent,
        merge_after: update.merge_after_us.map(Duration::from_micros),
        cool_down: update.cool_down_us.map(Duration::from_micros),
    })
}

fn describe_auto_scale(auto_scale: AutoScale) -> v1::AutoScale {
    v1::AutoScale {
        shards_min: auto_scale.shards_min,
        shards_max: auto_scale.shards_max,
        shard_bytes_per_s: auto_scale.shard_bytes_per_s.unwrap_or_default(),
        shard_records_per_s: auto_scale.shard_records_per_s.unwrap_or_default(),
        split_above_percent: auto_scale.split_above_percent,
        split_after_us: micros(auto_scale.split_after),
        merge_below_percent: auto_scale.merge_below_percent,
        merge_after_us: micros(auto_scale.merge_after),
        cool_down_us: micros(auto_scale.cool_down),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn unless_zero(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}

fn describe(stream: StreamDescription) -> v1::Stream {
    let settings = stream.settings;
    v1::Stream {
        name: stream.name.to_string(),
        id: stream.id.value(),
        durability: v1::Durability::from(settings.durability).into(),
        retention_us: micros(settings.retention),
        retention_bytes: settings.retention_bytes.unwrap_or_default(),
        max_record_bytes: settings.max_record_bytes,
        created_us: stream.created.as_micros(),
        version: stream.version,
        shards: stream.shards.into_iter().map(describe_shard).collect(),
        auto_scale: settings.auto_scale.map(describe_auto_scale),
        incarnation: stream.incarnation.value(),
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
