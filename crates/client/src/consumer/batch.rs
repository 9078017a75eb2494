//! What a consumer returns: the records of one frame, decoded when asked for.

use bytes::Bytes;
use flumen_record::{
    BatchError, Frame, Header, Record, Records, SequenceNumber, ShardIndex, Timestamp,
};

/// The records of one frame that are to be read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ConsumedBatch {
    frame: Frame,
    /// Records `first..end` of the frame's are to be read.
    first: u32,
    end: u32,
}

impl ConsumedBatch {
    pub(crate) fn new(frame: Frame, first: u32, end: u32) -> Self {
        debug_assert!(
            first < end && end <= frame.batch.header().count,
            "BUG: no record to read"
        );
        Self { frame, first, end }
    }

    /// The shard.
    pub fn shard(&self) -> ShardIndex {
        self.frame.header.shard.index()
    }

    /// Sequence number of the first record.
    pub fn first(&self) -> SequenceNumber {
        self.frame.header.base.plus(u64::from(self.first))
    }

    /// The number after the last record's: where to go on.
    pub fn next(&self) -> SequenceNumber {
        self.frame.header.base.plus(u64::from(self.end))
    }

    /// Records in it, at least 1.
    pub fn count(&self) -> u32 {
        self.end - self.first
    }

    /// When its records arrived at the broker.
    pub fn arrival(&self) -> Timestamp {
        self.frame.header.arrival
    }

    /// Bytes of the whole frame as stored.
    pub fn frame_bytes(&self) -> u32 {
        self.frame.header.frame_bytes
    }

    /// The frame as the broker sent it, its batch's checksum verified.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// Decodes the records; they share the bytes of the frame (or of its decompressed body).
    pub fn records(&self) -> ConsumedRecords {
        let mut records = self.frame.batch.records();
        if self.first > 0 {
            records.nth(self.first as usize - 1);
        }
        ConsumedRecords {
            records,
            shard: self.shard(),
            next: self.first(),
            left: self.count(),
            arrival: self.arrival(),
        }
    }
}

/// The records of a [`ConsumedBatch`], in order. One that does not decode is an error in its place.
#[derive(Debug)]
pub struct ConsumedRecords {
    records: Records,
    shard: ShardIndex,
    next: SequenceNumber,
    left: u32,
    arrival: Timestamp,
}

impl Iterator for ConsumedRecords {
    type Item = Result<ConsumedRecord, MalformedRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let (shard, sequence_number) = (self.shard, self.next);
        self.next = sequence_number.plus(1);
        let record = self.records.next()?;
        Some(match record {
            Ok(record) => Ok(ConsumedRecord::new(
                record,
                shard,
                sequence_number,
                self.arrival,
            )),
            Err(error) => Err(MalformedRecord {
                shard,
                sequence_number,
                error,
            }),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

/// One record, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumedRecord {
    /// Its shard.
    pub shard: ShardIndex,
    /// Its sequence number.
    pub sequence_number: SequenceNumber,
    /// Its place among records that share a sequence number; 0 for now.
    pub subsequence: u32,
    /// When it arrived at the broker.
    pub arrival: Timestamp,
    /// Its partition key, UTF-8.
    pub partition_key: Bytes,
    /// The payload.
    pub data: Bytes,
    /// Names and values beside it.
    pub headers: Vec<Header>,
    /// When the producer says it happened.
    pub client_timestamp: Option<Timestamp>,
}

impl ConsumedRecord {
    fn new(record: Record, shard: ShardIndex, number: SequenceNumber, arrival: Timestamp) -> Self {
        Self {
            shard,
            sequence_number: number,
            subsequence: 0,
            arrival,
            partition_key: record.partition_key,
            data: record.data,
            headers: record.headers,
            client_timestamp: record.client_timestamp,
        }
    }
}

/// A stored record that does not decode: its producer lied about a compressed batch. It keeps its
/// number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {sequence_number} of shard {shard} is malformed: {error}")]
pub struct MalformedRecord {
    /// Its shard.
    pub shard: ShardIndex,
    /// Its sequence number.
    pub sequence_number: SequenceNumber,
    /// What is wrong.
    pub error: BatchError,
}
