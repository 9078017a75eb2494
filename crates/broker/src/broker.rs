//! The handle edges hold.

use std::sync::Arc;
use std::time::Duration;

use flumen_log::Storage;
use flumen_record::{
    DeliveryName, GroupName, HashKey, ProducerId, SequenceNumber, ShardIndex, StreamIncarnation,
    StreamName,
};
use flumen_stream::{NewStream, Reshard, StartPosition, StreamUpdate};
use flumen_world::{Joined, World};

use crate::node::Node;
use crate::reshard::Cause;
use crate::session::{self, AckReceiver, AppendSender};
use crate::streams::StreamRef;
use crate::{
    BrokerConfig, Clock, DeliveryChecks, DeliveryDescription, DeliveryEnd, DeliverySeat,
    DeliverySettings, Error, GroupLags, GroupReset, GroupState, GroupStatus, Health, JoinGroup,
    LeaseGuard, Membership, Metrics, NewDelivery, PutOutcome, PutRecord, ReadBudget, ReadReply,
    StreamDescription, Subscription,
};

pub use crate::open::OpenError;

/// A running node. Cheap to clone. Dropping the last handle without [`Broker::shutdown`] leaves the
/// data directory as a killed process would.
#[derive(Debug, Clone)]
pub struct Broker {
    node: Arc<Node>,
}

impl Broker {
    /// Opens the data directory behind `storage`, recovers, starts lanes and housekeeping. Needs a
    /// tokio runtime. The `Err` is one line for a person.
    pub async fn open(
        storage: Arc<dyn Storage>,
        config: BrokerConfig,
        clock: Clock,
    ) -> Result<Self, OpenError> {
        Ok(Self {
            node: crate::open::on_threads(storage, config, clock).await?,
        })
    }

    /// As [`Broker::open`], in a world of the caller's: without any thread, and without tokio, if the
    /// world has none. The clock must be the one by which the world's loops go.
    pub async fn open_in(
        world: Arc<dyn World>,
        storage: Arc<dyn Storage>,
        config: BrokerConfig,
        clock: Clock,
    ) -> Result<Self, OpenError> {
        Ok(Self {
            node: crate::open::open(storage, config, clock, world).await?,
        })
    }

    /// Runs something as a task that is carried through also when its outcome is not waited for any
    /// more; a shutdown waits for it.
    pub fn carry_through<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Joined<T> {
        self.node.carry_through(future)
    }

    /// What runs the node: whoever works for it starts what it needs here.
    pub fn world(&self) -> &Arc<dyn World> {
        &self.node.world
    }

    /// A handle of a node that runs.
    pub(crate) fn of(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// Refuses new work, lets what is in flight finish, syncs, writes the snapshot, closes. The
    /// first error of a log that could not be closed in order is returned at the end.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.node.shutdown().await
    }

    /// Creates a stream; it is durable and routable when this returns.
    pub async fn create_stream(&self, new: NewStream) -> Result<StreamDescription, Error> {
        self.node.create_stream(new).await
    }

    /// Describes a stream.
    pub fn describe_stream<'a>(
        &self,
        name: impl Into<StreamRef<'a>>,
    ) -> Result<StreamDescription, Error> {
        Ok(crate::describe::describe(&*self.node.streams.get(name)?))
    }

    /// Up to `limit` streams after `after`, by name, and whether there are more.
    pub fn list_streams(
        &self,
        after: Option<&StreamName>,
        limit: usize,
    ) -> (Vec<StreamDescription>, bool) {
        let (streams, more) = self.node.streams.page(after, limit);
        (
            streams
                .iter()
                .map(|stream| crate::describe::describe(stream))
                .collect(),
            more,
        )
    }

    /// Changes a stream's settings. A change of level or retention class holds the appends of the
    /// stream back until it is done, and keeps their order.
    pub async fn update_stream<'a>(
        &self,
        name: impl Into<StreamRef<'a>>,
        update: StreamUpdate,
    ) -> Result<StreamDescription, Error> {
        self.node.update_stream(name.into(), update).await
    }

    /// Deletes a stream and its records.
    pub async fn delete_stream<'a>(&self, name: impl Into<StreamRef<'a>>) -> Result<(), Error> {
        self.node.delete_stream(name.into()).await
    }

    /// Splits a shard or merges two, while writers and readers go on. Batches for the parents wait
    /// meanwhile, and are answered as closed then, unless they were stored before.
    pub async fn reshard<'a>(
        &self,
        stream: impl Into<StreamRef<'a>>,
        step: Reshard,
    ) -> Result<StreamDescription, Error> {
        self.node.reshard(stream.into(), step, Cause::Asked).await
    }

    /// Splits and merges until there are this many open shards, in as few steps as it takes. What
    /// was done before a failure stays done.
    pub async fn scale_stream<'a>(
        &self,
        stream: impl Into<StreamRef<'a>>,
        shards: u32,
    ) -> Result<StreamDescription, Error> {
        self.node
            .scale_stream(stream.into(), shards, Cause::Asked)
            .await
    }

    /// Changes whenever a stream is created or deleted, or its settings or shards change: who keeps
    /// something about shards describes the stream again then. Changes that follow each other
    /// closely are told once.
    pub fn stream_changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.node.streams.changes()
    }

    /// A new producer id.
    pub async fn open_producer(&self) -> Result<ProducerId, Error> {
        self.node.open_producer().await
    }

    /// Puts records, at-least-once, each routed by its key: encodes one batch per shard. Request
    /// order is kept per shard. The outer error means that nothing was attempted.
    pub async fn put<'a>(
        &self,
        stream: impl Into<StreamRef<'a>>,
        records: Vec<PutRecord>,
    ) -> Result<Vec<Result<PutOutcome, Error>>, Error> {
        let (_, outcomes) = self.node.put(stream.into(), records).await?;
        Ok(outcomes)
    }

    /// [`Broker::put`], and which stream of the name took them.
    pub async fn put_into<'a>(
        &self,
        stream: impl Into<StreamRef<'a>>,
        records: Vec<PutRecord>,
    ) -> Result<(StreamIncarnation, Vec<Result<PutOutcome, Error>>), Error> {
        self.node.put(stream.into(), records).await
    }

    /// A pipelined append session on one stream.
    pub fn append_session<'a>(
        &self,
        stream: impl Into<StreamRef<'a>>,
    ) -> Result<(AppendSender, AckReceiver), Error> {
        self.node.check_serving()?;
        Ok(session::open(
            &self.node,
            self.node.streams.get(stream)?,
            true,
        ))
    }

    /// Reads from `start`; waits up to `wait` for a first record when there is none.
    pub async fn read<'a>(
        &self,
        stream: impl Into<StreamRef<'a>>,
        shard: ShardIndex,
        start: StartPosition,
        budget: ReadBudget,
        wait: Duration,
    ) -> Result<ReadReply, Error> {
        self.node
            .read(stream.into(), shard, start, budget, wait)
            .await
    }

    /// A push subscription to some shards of a stream, each from its own start. Without `shards`:
    /// all that are open now, from what comes next.
    pub async fn subscribe<'a>(
        &self,
        stream: impl Into<StreamRef<'a>>,
        shards: Vec<(ShardIndex, StartPosition)>,
        budget: ReadBudget,
    ) -> Result<Subscription, Error> {
        self.node.subscribe(stream.into(), shards, budget).await
    }

    /// Opens a member's session in a group of a stream; the group comes into being with its first
    /// member. Whether it was let in is its first word.
    pub async fn join_group<'a>(
        &self,
        stream: impl Into<StreamRef<'a>>,
        join: JoinGroup,
    ) -> Result<Membership, Error> {
        self.node.join_group(stream.into(), join).await
    }

    /// What a reader for a lease is to check before it hands records out; refused when the lease is
    /// over already.
    pub fn lease<'a>(
        &self,
        stream: impl Into<StreamRef<'a>>,
        group: &GroupName,
        shard: ShardIndex,
        generation: u64,
    ) -> Result<LeaseGuard, Error> {
        let stream = self.node.streams.get(stream)?;
        let stream = stream.state().info.id;
        self.node
            .groups
            .fences
            .guard(stream, group, shard, generation)
    }

    /// Up to `limit` groups of one stream or of all, by stream and name, after one of a page before;
    /// and whether there are more.
    pub async fn list_groups(
        &self,
        stream: Option<StreamRef<'_>>,
        after: Option<(StreamName, GroupName)>,
        limit: usize,
    ) -> Result<(Vec<GroupStatus>, bool), Error> {
        self.node.list_groups(stream, after, limit).await
    }

    /// Members, leases, checkpoints and lag of a group.
    pub async fn describe_group<'a>(
        &self,
        stream: impl Into<StreamRef<'a>>,
        group: &GroupName,
    ) -> Result<GroupState, Error> {
        self.node.describe_group(stream.into(), group).await
    }

    /// Moves where a group goes on, in these shards or (without any) in all. Refused while members
    /// hold them unless `force`; with `dry_run` it only says what would change.
    pub async fn reset_group<'a>(
        &self,
        stream: impl Into<StreamRef<'a>>,
        group: &GroupName,
        shards: Vec<ShardIndex>,
        to: StartPosition,
        force: bool,
        dry_run: bool,
    ) -> Result<Vec<GroupReset>, Error> {
        let how = (force, dry_run);
        self.node
            .reset_group(stream.into(), group, shards, to, how)
            .await
    }

    /// Deletes a group. Refused while it has members unless `force`.
    pub async fn delete_group<'a>(
        &self,
        stream: impl Into<StreamRef<'a>>,
        group: &GroupName,
        force: bool,
    ) -> Result<(), Error> {
        self.node.delete_group(stream.into(), group, force).await
    }

    /// Lag of up to `limit` groups, by stream and name, from memory; up to a second old.
    pub async fn group_lags(&self, limit: usize) -> Result<Arc<GroupLags>, Error> {
        self.node.group_lags(limit).await
    }

    /// Takes the seat from which delivery streams are run; `None` when it is taken already.
    pub fn attach_deliveries(&self, checks: Arc<dyn DeliveryChecks>) -> Option<DeliverySeat> {
        DeliverySeat::take(&self.node, checks)
    }

    /// Creates a delivery stream; it is durable when this returns. Its source, and the stream for its
    /// dead letters, must exist.
    pub async fn create_delivery(&self, new: NewDelivery) -> Result<DeliveryDescription, Error> {
        self.node.create_delivery(new).await
    }

    /// Describes a delivery stream.
    pub fn describe_delivery(&self, name: &DeliveryName) -> Result<DeliveryDescription, Error> {
        self.node.describe_delivery(name)
    }

    /// Up to `limit` delivery streams after `after`, by name, and whether there are more.
    pub fn list_deliveries(
        &self,
        after: Option<&DeliveryName>,
        limit: usize,
    ) -> Result<(Vec<DeliveryDescription>, bool), Error> {
        self.node.list_deliveries(after, limit)
    }

    /// Replaces the settings of a delivery stream, all of them; a runner that has stopped tries
    /// again. `version`, if given, must be the current one.
    pub async fn update_delivery(
        &self,
        name: &DeliveryName,
        version: Option<u64>,
        settings: DeliverySettings,
    ) -> Result<DeliveryDescription, Error> {
        self.node.update_delivery(name, version, settings).await
    }

    /// Pauses a delivery stream, durably; nothing happens when it is paused.
    pub async fn pause_delivery(&self, name: &DeliveryName) -> Result<DeliveryDescription, Error> {
        self.node.pause_delivery(name).await
    }

    /// Resumes a delivery stream, durably; a runner that has stopped tries again.
    pub async fn resume_delivery(&self, name: &DeliveryName) -> Result<DeliveryDescription, Error> {
        self.node.resume_delivery(name, false).await
    }

    /// As [`Broker::resume_delivery`], and goes on under a new incarnation from where this node stands:
    /// for a data directory that was copied or restored. Answers when that is durable.
    ///
    /// # Errors
    /// [`Error::DeliveryUnfinished`] when that takes longer than `wait`; it goes on then.
    pub async fn renew_delivery(
        &self,
        name: &DeliveryName,
        wait: Duration,
    ) -> Result<DeliveryDescription, Error> {
        self.node.renew_delivery(name, wait).await
    }

    /// Has everything delivered that is there now, and waits for that, up to `wait`.
    pub async fn flush_delivery(
        &self,
        name: &DeliveryName,
        wait: Duration,
    ) -> Result<DeliveryDescription, Error> {
        self.node.flush_delivery(name, wait).await
    }

    /// Deletes a delivery stream, and waits for that, up to `wait`; it goes on beyond that, and over
    /// restarts.
    pub async fn delete_delivery(
        &self,
        name: &DeliveryName,
        end: DeliveryEnd,
        wait: Duration,
    ) -> Result<(), Error> {
        self.node.delete_delivery(name, end, wait).await
    }

    /// The sequence number at which a reader that begins at `start` begins.
    pub async fn resolve_start(
        &self,
        stream: &StreamName,
        shard: ShardIndex,
        start: StartPosition,
    ) -> Result<SequenceNumber, Error> {
        self.node.check_serving()?;
        let shard = self.node.streams.get(stream)?.shard(shard)?;
        self.node.resolve(&shard, start).await
    }

    /// The shard that owns a key now.
    pub fn route(&self, stream: &StreamName, key: HashKey) -> Result<ShardIndex, Error> {
        Ok(self
            .node
            .streams
            .get(stream)?
            .state()
            .route(key)?
            .id
            .index())
    }

    /// Counters and histograms.
    pub fn metrics(&self) -> &Metrics {
        &self.node.metrics
    }

    /// Believes the wall clock as it stands: an operator has looked at it. By how many seconds it was
    /// not believed; 0: it was.
    pub async fn confirm_clock(&self) -> Result<f64, Error> {
        self.node.confirm_clock().await
    }

    /// Whether the node serves.
    pub fn health(&self) -> Health {
        self.node.health()
    }

    /// Expires now what retention says, in all streams, instead of when it is due; returns when
    /// readers see it.
    pub async fn apply_retention(&self) -> Result<(), Error> {
        self.node.apply_retention().await
    }
}
