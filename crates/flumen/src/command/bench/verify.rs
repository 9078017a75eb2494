//! Reads a run back and checks every record: count, order, contents.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use flumen_client::{
    Client, ConsumedRecord, Consumer, ConsumerConfig, ReadUntil, StartPosition, StreamDescription,
    StreamIncarnation, StreamName,
};
use flumen_record::ShardIndex;

use super::payload::{KeyedShard, Ring, session_of};

/// What must be there.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) stream: StreamName,
    pub(super) incarnation: StreamIncarnation,
    pub(super) shards: Arc<Vec<KeyedShard>>,
    /// Where each shard ended before the run.
    pub(super) before: Vec<(ShardIndex, StartPosition)>,
    pub(super) record_bytes: u64,
    /// Records acknowledged, by session and by place in `shards`.
    pub(super) stored: Vec<Vec<u64>>,
    /// The timestamp carries the record's number.
    pub(super) numbered: bool,
}

/// Where each shard ends now: where a run's own records begin.
pub(super) fn ends(stream: &StreamDescription) -> Vec<(ShardIndex, StartPosition)> {
    let shards = stream.shards.iter();
    shards
        .map(|shard| (shard.index, StartPosition::At(shard.durable_end)))
        .collect()
}

/// Checks incoming records against rings, session by session and shard by shard.
#[derive(Debug)]
pub(super) struct Checker {
    rings: Vec<Ring>,
    /// The place of each shard.
    places: HashMap<ShardIndex, usize>,
    /// Records seen, by session and shard.
    seen: Vec<Vec<u64>>,
    numbered: bool,
}

impl Checker {
    pub(super) fn new(
        sessions: u32,
        shards: &[KeyedShard],
        record_bytes: u64,
        numbered: bool,
    ) -> Self {
        let rings = (0..sessions).map(|session| Ring::new(session, sessions, record_bytes));
        let seen = vec![vec![0; shards.len()]; sessions as usize];
        let places = shards
            .iter()
            .enumerate()
            .map(|(place, shard)| (shard.shard, place));
        Self {
            rings: rings.collect(),
            places: places.collect(),
            seen,
            numbered,
        }
    }

    /// Takes the next record of a shard.
    pub(super) fn take(&mut self, record: &ConsumedRecord) -> Result<()> {
        let session = session_of(&record.data).unwrap_or(0) as usize;
        let at = self.places.get(&record.shard).copied();
        let (Some(at), Some(ring)) = (at, self.rings.get(session)) else {
            bail!("{} was not sent by this run", place(record));
        };
        let count = self
            .seen
            .get_mut(session)
            .and_then(|shards| shards.get_mut(at));
        let n = count.context("BUG: a session without counts")?;
        ensure!(
            record.data == *ring.data(*n),
            "{} is not what session {session} sent as its number {n} in this shard",
            place(record)
        );
        let numbered = record.client_timestamp.map(|stamp| stamp.as_micros());
        ensure!(
            !self.numbered || numbered == Some(*n),
            "{} is session {session}'s number {numbered:?} where {n} was next",
            place(record)
        );
        *n += 1;
        Ok(())
    }

    /// Checks the counts against what was acknowledged; returns how many records there were.
    pub(super) fn finish(&self, stored: &[Vec<u64>]) -> Result<u64> {
        ensure!(
            self.seen == stored,
            "{} records are there, {} were acknowledged",
            total(&self.seen),
            total(stored)
        );
        Ok(total(stored))
    }
}

fn place(record: &ConsumedRecord) -> String {
    format!(
        "record {} of shard {}",
        record.sequence_number, record.shard
    )
}

fn total(counts: &[Vec<u64>]) -> u64 {
    counts.iter().flatten().sum()
}

/// Reads everything that the run wrote.
pub(super) async fn read_back(client: &Client, expected: &Expected) -> Result<u64> {
    let config = ConsumerConfig {
        positions: expected.before.clone(),
        incarnation: Some(expected.incarnation),
        until: ReadUntil::CurrentEnd,
        ..ConsumerConfig::default()
    };
    let mut consumer = Consumer::open(client, &expected.stream, config).await?;
    let sessions = u32::try_from(expected.stored.len()).unwrap_or(u32::MAX);
    let (bytes, numbered) = (expected.record_bytes, expected.numbered);
    let mut checker = Checker::new(sessions, &expected.shards, bytes, numbered);
    while let Some(batch) = consumer.next().await? {
        for record in batch.records() {
            checker.take(&record?)?;
        }
    }
    checker.finish(&expected.stored)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flumen_record::{HashKey, SequenceNumber, Timestamp};

    use super::*;

    fn checker() -> Checker {
        let shard = |index| KeyedShard {
            shard: ShardIndex::new(index),
            key: Bytes::from("k"),
            hash_key: HashKey::MIN,
        };
        Checker::new(2, &[shard(0), shard(1)], 32, true)
    }

    fn record(session: u32, shard: u32, n: u64) -> ConsumedRecord {
        ConsumedRecord {
            shard: ShardIndex::new(shard),
            sequence_number: SequenceNumber::new(n),
            subsequence: 0,
            arrival: Timestamp::ZERO,
            partition_key: Bytes::from("k"),
            data: Ring::new(session, 2, 32).data(n).clone(),
            headers: Vec::new(),
            client_timestamp: Some(Timestamp::from_micros(n)),
        }
    }

    fn take(records: &[ConsumedRecord]) -> Result<Checker> {
        let mut checker = checker();
        records.iter().try_for_each(|record| checker.take(record))?;
        Ok(checker)
    }

    #[test]
    fn sessions_may_mix_but_each_keeps_its_order() {
        let records = [
            record(0, 0, 0),
            record(1, 0, 0),
            record(1, 1, 0),
            record(1, 0, 1),
            record(0, 0, 1),
        ];
        let checker = take(&records).unwrap();
        assert_eq!(checker.finish(&[vec![2, 0], vec![2, 1]]).unwrap(), 5);
        assert!(checker.finish(&[vec![2, 0], vec![2, 2]]).is_err());
    }

    #[test]
    fn each_fault_is_found() {
        assert!(take(&[record(0, 0, 1)]).is_err(), "the first is missing");
        assert!(take(&[record(0, 0, 0), record(0, 0, 0)]).is_err(), "twice");
        let mut changed = record(0, 0, 0);
        changed.data = record(0, 0, 1).data;
        assert!(take(&[changed]).is_err(), "changed");
        // A whole turn of the ring is missing: only the number can tell.
        let mut later = record(0, 0, 0);
        later.client_timestamp = Some(Timestamp::from_micros(1_024));
        assert!(take(&[later]).is_err(), "a turn is missing");
        assert!(take(&[record(0, 7, 0)]).is_err(), "a strange shard");
    }
}
