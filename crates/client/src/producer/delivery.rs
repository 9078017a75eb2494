//! The answer to a batch, shared by everyone who waits for one of its records.

use std::sync::{Arc, OnceLock};

use flumen_record::{Durability, SequenceNumber, ShardIndex, Timestamp};
use tokio::sync::Notify;

use crate::{SendError, Stored};

/// Where the answer to one batch appears.
#[derive(Debug, Default)]
pub(crate) struct BatchCell {
    outcome: OnceLock<Outcome>,
    answered: Notify,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    Stored(StoredBatch),
    Failed(SendError),
    /// Its records were put into other batches: each record's batch and its place there.
    Moved(Box<[(Arc<BatchCell>, u32)]>),
}

/// Where a batch lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredBatch {
    pub(crate) shard: ShardIndex,
    pub(crate) durability: Durability,
    pub(crate) duplicate: bool,
    /// Unknown when the broker has forgotten where an earlier attempt was stored.
    pub(crate) place: Option<(SequenceNumber, Timestamp)>,
}

impl StoredBatch {
    pub(crate) fn new(shard: ShardIndex, stored: &Stored) -> Self {
        Self {
            shard,
            durability: stored.durability,
            duplicate: stored.duplicate,
            place: Some((stored.base, stored.arrival)),
        }
    }

    /// Stored by an earlier attempt, nobody knows where.
    pub(crate) fn forgotten(shard: ShardIndex, durability: Durability) -> Self {
        Self {
            shard,
            durability,
            duplicate: true,
            place: None,
        }
    }
}

impl BatchCell {
    /// Answers everyone. The first answer stands.
    pub(crate) fn complete(&self, outcome: Outcome) {
        if self.outcome.set(outcome).is_ok() {
            self.answered.notify_waiters();
        }
    }

    async fn outcome(&self) -> &Outcome {
        loop {
            let answered = self.answered.notified();
            // Registered before looking: an answer in between is not missed.
            tokio::pin!(answered);
            answered.as_mut().enable();
            if let Some(outcome) = self.outcome.get() {
                return outcome;
            }
            answered.await;
        }
    }

    /// Whether it is stored, or how it failed; `None` while it waits or where it was moved.
    pub(crate) fn settled(&self) -> Option<Result<(), &SendError>> {
        match self.outcome.get()? {
            Outcome::Stored(_) => Some(Ok(())),
            Outcome::Failed(error) => Some(Err(error)),
            Outcome::Moved(_) => None,
        }
    }
}

/// A record on its way. Dropping it changes nothing for the record.
#[derive(Debug, Clone)]
pub struct Delivery {
    cell: Arc<BatchCell>,
    index: u32,
}

impl Delivery {
    pub(crate) fn new(cell: Arc<BatchCell>, index: u32) -> Self {
        Self { cell, index }
    }

    /// Waits for the ack. Cancel-safe, may be called again.
    ///
    /// # Errors
    /// Why the record is not stored, or that nobody knows.
    pub async fn wait(&self) -> Result<Delivered, SendError> {
        let mut record = self.clone();
        loop {
            let moved = match record.cell.outcome().await {
                Outcome::Stored(batch) => return Ok(record.delivered(batch)),
                Outcome::Failed(error) => return Err(error.clone()),
                Outcome::Moved(moved) => record.moved_to(moved),
            };
            record = moved;
        }
    }

    /// The answer, if it is there.
    pub fn try_wait(&self) -> Option<Result<Delivered, SendError>> {
        let mut record = self.clone();
        loop {
            let moved = match record.cell.outcome.get()? {
                Outcome::Stored(batch) => return Some(Ok(record.delivered(batch))),
                Outcome::Failed(error) => return Some(Err(error.clone())),
                Outcome::Moved(moved) => record.moved_to(moved),
            };
            record = moved;
        }
    }

    fn moved_to(&self, moved: &[(Arc<BatchCell>, u32)]) -> Self {
        let (cell, index) = moved
            .get(self.index as usize)
            .expect("BUG: a moved batch names every record");
        Self {
            cell: Arc::clone(cell),
            index: *index,
        }
    }

    fn delivered(&self, batch: &StoredBatch) -> Delivered {
        Delivered {
            shard: batch.shard,
            sequence_number: batch
                .place
                .map(|(base, _)| base.plus(u64::from(self.index))),
            arrival: batch.place.map(|(_, arrival)| arrival),
            durability: batch.durability,
            duplicate: batch.duplicate,
        }
    }
}

/// Where a delivered record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// Its shard.
    pub shard: ShardIndex,
    /// Its sequence number. `None` only when an earlier attempt stored it and the broker no longer
    /// remembers where.
    pub sequence_number: Option<SequenceNumber>,
    /// Its arrival time; `None` as above.
    pub arrival: Option<Timestamp>,
    /// What the ack promises.
    pub durability: Durability,
    /// An earlier attempt had stored it, its ack was lost.
    pub duplicate: bool,
}

/// The records of one [`Producer::send_all`](crate::Producer::send_all) on their way.
#[derive(Debug, Clone, Default)]
pub struct Receipt {
    records: u64,
    /// Batches that were not stored when last looked at; at most one entry for each.
    cells: Vec<Arc<BatchCell>>,
    failure: Option<SendError>,
    /// Length of `cells` at which the answered ones are dropped.
    prune_at: usize,
}

impl Receipt {
    /// Records taken.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Waits until all are answered. Cancel-safe, may be called again.
    ///
    /// # Errors
    /// The first failure among them, in no particular order across shards.
    pub async fn wait(&self) -> Result<(), SendError> {
        let mut failure = self.failure.clone();
        let mut waiting: Vec<Arc<BatchCell>> = self.cells.clone();
        while let Some(cell) = waiting.pop() {
            match cell.outcome().await {
                Outcome::Stored(_) => {}
                Outcome::Failed(error) => failure = failure.or_else(|| Some(error.clone())),
                Outcome::Moved(moved) => {
                    for (target, _) in moved {
                        if !waiting.last().is_some_and(|last| Arc::ptr_eq(last, target)) {
                            waiting.push(Arc::clone(target));
                        }
                    }
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// One more record, in this batch.
    pub(crate) fn add(&mut self, cell: &Arc<BatchCell>) {
        self.records += 1;
        if self
            .cells
            .last()
            .is_some_and(|last| Arc::ptr_eq(last, cell))
        {
            return;
        }
        if self.cells.len() >= self.prune_at {
            self.prune();
        }
        self.cells.push(Arc::clone(cell));
    }

    /// Drops what is answered, so that a long run of records holds on to what is open only.
    fn prune(&mut self) {
        let failure = &mut self.failure;
        let mut seen = std::collections::HashSet::new();
        self.cells.retain(|cell| match cell.settled() {
            Some(Ok(())) => false,
            Some(Err(error)) => {
                failure.get_or_insert_with(|| error.clone());
                false
            }
            None => seen.insert(Arc::as_ptr(cell)),
        });
        self.prune_at = (2 * self.cells.len()).max(64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(base: u64) -> Outcome {
        Outcome::Stored(StoredBatch {
            shard: ShardIndex::new(3),
            durability: Durability::Disk,
            duplicate: false,
            place: Some((SequenceNumber::new(base), Timestamp::from_micros(5))),
        })
    }

    #[tokio::test]
    async fn every_record_learns_its_own_number_from_one_answer() {
        let cell = Arc::new(BatchCell::default());
        let records: Vec<_> = (0..3)
            .map(|i| Delivery::new(Arc::clone(&cell), i))
            .collect();
        assert!(records[1].try_wait().is_none());
        let waiter = tokio::spawn({
            let record = records[2].clone();
            async move { record.wait().await }
        });
        tokio::task::yield_now().await;
        cell.complete(stored(100));
        cell.complete(Outcome::Failed(SendError::Closed));
        let numbers: Vec<_> = [
            records[0].wait().await.unwrap(),
            records[1].try_wait().unwrap().unwrap(),
            waiter.await.unwrap().unwrap(),
        ]
        .iter()
        .map(|d| d.sequence_number.unwrap().value())
        .collect();
        assert_eq!(numbers, [100, 101, 102]);
    }

    #[tokio::test]
    async fn a_moved_record_is_followed() {
        let (old, a, b) = <(Arc<BatchCell>, Arc<BatchCell>, Arc<BatchCell>)>::default();
        let record = Delivery::new(Arc::clone(&old), 1);
        let mut receipt = Receipt::default();
        receipt.add(&old);
        receipt.add(&old);
        old.complete(Outcome::Moved(Box::new([
            (Arc::clone(&a), 0),
            (Arc::clone(&b), 7),
        ])));
        assert!(record.try_wait().is_none());
        a.complete(Outcome::Failed(SendError::Closed));
        b.complete(stored(10));
        assert_eq!(
            record.wait().await.unwrap().sequence_number,
            Some(SequenceNumber::new(17))
        );
        assert_eq!(receipt.wait().await, Err(SendError::Closed));
        assert_eq!(receipt.records(), 2);
    }

    #[tokio::test]
    async fn a_long_receipt_holds_on_to_open_batches_only() {
        let mut receipt = Receipt::default();
        let open = Arc::new(BatchCell::default());
        for i in 0..100_000_u64 {
            let done = Arc::new(BatchCell::default());
            receipt.add(&done);
            receipt.add(&open);
            done.complete(stored(i));
        }
        assert!(receipt.cells.len() <= 200, "{}", receipt.cells.len());
        assert_eq!(receipt.records(), 200_000);
        open.complete(Outcome::Failed(SendError::Closed));
        assert_eq!(receipt.wait().await, Err(SendError::Closed));
    }
}
