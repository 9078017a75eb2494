//! What the sink holds: one seat on the node, and a desk for each delivery stream.

use std::sync::Arc;

use bytes::Bytes;
use flumen_record::{
    DeliveryId, DeliveryName, SequenceNumber, ShardId, ShardIndex, StreamName, Timestamp,
};
use flumen_stream::delivery::DeliveryProgress;
use tokio::sync::watch;

use super::registry::Entry;
use super::{DeliveryChecks, DeliveryCounters, DeliveryOrders, DeliveryReport};
use crate::node::Node;
use crate::{Broker, Error};
use flumen_world::lock;

/// What runs the delivery streams of a node; there is one. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeliverySeat {
    node: Arc<Node>,
}

/// One delivery stream, for its runner. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeliveryDesk {
    node: Arc<Node>,
    entry: Arc<Entry>,
}

impl DeliverySeat {
    /// Takes the seat, once.
    pub(crate) fn take(node: &Arc<Node>, checks: Arc<dyn DeliveryChecks>) -> Option<Self> {
        node.deliveries.attach(checks).then(|| Self {
            node: Arc::clone(node),
        })
    }

    /// The node, to read and write streams.
    pub fn broker(&self) -> Broker {
        Broker::of(Arc::clone(&self.node))
    }

    /// Changes whenever delivery streams came or went.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.node.deliveries.changes()
    }

    /// All there are now, by name.
    pub fn desks(&self) -> Vec<DeliveryDesk> {
        let (entries, _) = self.node.deliveries.page(None, usize::MAX);
        let desk = |entry| DeliveryDesk {
            node: Arc::clone(&self.node),
            entry,
        };
        entries.into_iter().map(desk).collect()
    }
}

impl DeliveryDesk {
    /// Its number.
    pub fn id(&self) -> DeliveryId {
        self.entry.id
    }

    /// Its name.
    pub fn name(&self) -> &DeliveryName {
        &self.entry.name
    }

    /// When it was created.
    pub fn created(&self) -> Timestamp {
        self.entry.created
    }

    /// The stream it reads: its source, or the one that takes direct puts.
    pub fn stream(&self) -> &StreamName {
        &self.entry.stream
    }

    /// What is to be done, now and whenever that changes.
    pub fn orders(&self) -> watch::Receiver<Arc<DeliveryOrders>> {
        self.entry.orders.subscribe()
    }

    /// What was saved last; empty at first.
    pub fn progress(&self) -> Bytes {
        lock(&self.entry.standing).progress.clone()
    }

    /// Makes what the runner remembers durable, in place of what it saved before. Retention waits,
    /// bounded, for the records of `held` shards from there on.
    pub async fn save(
        &self,
        progress: Bytes,
        held: Vec<(ShardIndex, SequenceNumber)>,
    ) -> Result<(), Error> {
        let stream = self.node.streams.get(&self.entry.stream)?;
        let id = stream.state().info.id;
        let held = held
            .into_iter()
            .map(|(shard, from)| (ShardId::new(id, shard), from));
        let progress = DeliveryProgress {
            bytes: progress,
            held: held.collect(),
        };
        self.node.save_delivery(&self.entry, progress).await
    }

    /// Says how it is doing, in place of what was said before.
    pub fn report(&self, report: DeliveryReport) {
        self.entry.report.send_replace(report);
    }

    /// What is counted, since this process started.
    pub fn counters(&self) -> &DeliveryCounters {
        &self.entry.counters
    }

    /// Says where what is in no committed cut yet begins, and when the oldest record of that
    /// arrived, if that is known. Shards that are not named count from their trim horizon.
    pub fn deliver_from(
        &self,
        positions: Vec<(ShardIndex, SequenceNumber)>,
        oldest: Option<Timestamp>,
    ) {
        let mut standing = lock(&self.entry.standing);
        standing.positions = positions.into_iter().collect();
        standing.oldest = oldest;
    }

    /// Says how many records expired before they were delivered, ever; shown with the backlog.
    pub fn expired(&self, records: u64) {
        lock(&self.entry.standing).expired = records;
    }

    /// Ends a deletion: the stream of direct puts goes, then the delivery stream itself, durably.
    /// May be called again after an error.
    pub async fn remove(&self) -> Result<(), Error> {
        self.node.remove_delivery(&self.entry).await
    }
}
