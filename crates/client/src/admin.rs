//! Administrative calls: one attempt each; an error says whether trying again makes sense.

use flumen_api::convert::{self, ConvertError};
use flumen_api::v1;
use flumen_record::{HashKey, ProducerId, ShardIndex, StreamIncarnation, StreamName};

#[cfg(doc)]
use crate::reason;
use crate::{Client, Error, NewStream, StreamDescription, StreamUpdate};

impl Client {
    /// Creates a stream; it is durable and takes records when this returns.
    ///
    /// # Errors
    /// When the name is taken or a setting is out of bounds.
    pub async fn create_stream(&self, new: NewStream) -> Result<StreamDescription, Error> {
        let mut admin = self.admin();
        let call = admin.create_stream(v1::CreateStreamRequest::from(new));
        let response = self.call(self.config().call_timeout, call).await?;
        self.described(response.stream)
    }

    /// Describes a stream.
    ///
    /// # Errors
    /// When there is none of this name.
    pub async fn describe_stream(&self, name: &StreamName) -> Result<StreamDescription, Error> {
        let mut admin = self.admin();
        let call = admin.describe_stream(v1::DescribeStreamRequest {
            stream: name.to_string(),
        });
        let response = self.call(self.config().call_timeout, call).await?;
        self.described(response.stream)
    }

    /// Describes a stream that the caller knows already.
    ///
    /// # Errors
    /// When there is none of this name, or another one has it now ([`reason::STREAM_REPLACED`]).
    pub(crate) async fn describe_known(
        &self,
        name: &StreamName,
        known: StreamIncarnation,
    ) -> Result<StreamDescription, Error> {
        let described = self.describe_stream(name).await?;
        self.check_incarnation(name, known, described.incarnation)?;
        Ok(described)
    }

    /// Whether an answer is about the stream that was meant. A broker that does not say, since it is
    /// older, is believed.
    ///
    /// # Errors
    /// [`reason::STREAM_REPLACED`].
    pub(crate) fn check_incarnation(
        &self,
        name: &StreamName,
        expected: StreamIncarnation,
        found: StreamIncarnation,
    ) -> Result<(), Error> {
        let unknown = StreamIncarnation::default();
        if expected == found || expected == unknown || found == unknown {
            return Ok(());
        }
        Err(Error::stream_replaced(name, expected, found))
    }

    /// Up to `limit` streams (0: 100) after `after`, by name, and whether there are more.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn list_streams(
        &self,
        after: Option<&StreamName>,
        limit: u32,
    ) -> Result<(Vec<StreamDescription>, bool), Error> {
        let mut admin = self.admin();
        let after = after.map(ToString::to_string).unwrap_or_default();
        let call = admin.list_streams(v1::ListStreamsRequest { after, limit });
        let response = self.call(self.config().call_timeout, call).await?;
        let streams = response
            .streams
            .into_iter()
            .map(|stream| self.described(Some(stream)));
        Ok((streams.collect::<Result<_, _>>()?, response.more))
    }

    /// Changes a stream's settings.
    ///
    /// # Errors
    /// When there is no such stream or a setting is out of bounds.
    pub async fn update_stream(
        &self,
        name: &StreamName,
        update: StreamUpdate,
    ) -> Result<StreamDescription, Error> {
        let mut admin = self.admin();
        let call = admin.update_stream(update.request(name));
        let response = self.call(self.config().call_timeout, call).await?;
        self.described(response.stream)
    }

    /// Deletes a stream and its records.
    ///
    /// # Errors
    /// When there is no such stream.
    pub async fn delete_stream(&self, name: &StreamName) -> Result<(), Error> {
        let mut admin = self.admin();
        let call = admin.delete_stream(v1::DeleteStreamRequest {
            stream: name.to_string(),
            stream_incarnation: 0,
        });
        self.call(self.config().call_timeout, call)
            .await
            .map(|_| ())
    }

    /// Splits an open shard, at a hash key or (`None`) in the middle: the upper child begins there.
    /// Producers and consumers go on.
    ///
    /// # Errors
    /// When there is no such shard, it is closed, or the key is not within it.
    pub async fn split_shard(
        &self,
        name: &StreamName,
        shard: ShardIndex,
        at: Option<HashKey>,
    ) -> Result<StreamDescription, Error> {
        let mut admin = self.admin();
        let call = admin.split_shard(v1::SplitShardRequest {
            stream: name.to_string(),
            shard: shard.value(),
            hash_key: at.map(convert::hash_key_bytes).unwrap_or_default(),
            stream_incarnation: 0,
        });
        let response = self.call(self.config().call_timeout, call).await?;
        self.described(response.stream)
    }

    /// Merges two open shards whose ranges touch.
    ///
    /// # Errors
    /// When there is no such shard, one is closed, or they are no neighbours.
    pub async fn merge_shards(
        &self,
        name: &StreamName,
        shard: ShardIndex,
        adjacent: ShardIndex,
    ) -> Result<StreamDescription, Error> {
        let mut admin = self.admin();
        let call = admin.merge_shards(v1::MergeShardsRequest {
            stream: name.to_string(),
            shard: shard.value(),
            adjacent_shard: adjacent.value(),
            stream_incarnation: 0,
        });
        let response = self.call(self.config().call_timeout, call).await?;
        self.described(response.stream)
    }

    /// Splits and merges until there are as many open shards as asked, in the fewest steps.
    ///
    /// # Errors
    /// When there is no such stream, or it may not have as many shards.
    pub async fn scale_stream(
        &self,
        name: &StreamName,
        shards: u32,
    ) -> Result<StreamDescription, Error> {
        let mut admin = self.admin();
        let call = admin.scale_stream(v1::ScaleStreamRequest {
            stream: name.to_string(),
            shards,
            stream_incarnation: 0,
        });
        let response = self.call(self.config().call_timeout, call).await?;
        self.described(response.stream)
    }

    /// Has the broker believe its wall clock as it stands. By how many microseconds that was ahead
    /// (behind: negative) of what the broker believed; 0: it was believed.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn confirm_clock(&self) -> Result<i64, Error> {
        let mut admin = self.admin();
        let call = admin.confirm_clock(v1::ConfirmClockRequest {});
        let response = self.call(self.config().call_timeout, call).await?;
        Ok(response.jump_us)
    }

    /// A new producer id. [`crate::Producer`] does this by itself.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn open_producer(&self) -> Result<ProducerId, Error> {
        let mut producer = self.producer();
        let call = producer.open_producer(v1::OpenProducerRequest {});
        let response = self.call(self.config().call_timeout, call).await?;
        match ProducerId::new(response.producer_id) {
            ProducerId::NONE => Err(Error::nonsense(self.endpoint(), "a producer id of 0")),
            id => Ok(id),
        }
    }

    fn described(&self, stream: Option<v1::Stream>) -> Result<StreamDescription, Error> {
        stream
            .ok_or(ConvertError::Missing { field: "stream" })
            .and_then(StreamDescription::try_from)
            .map_err(|error| Error::nonsense(self.endpoint(), &error.to_string()))
    }
}
