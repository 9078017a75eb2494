//! Changes in records, and records back into what they add up to.

use bytes::Bytes;
use flumen_log::LogReader;
use flumen_record::{
    Batch, BatchBuilder, Compression, Frame, Frames, HashKey, ProducerId, ProducerSequence, Record,
    RecordLimits, SequenceNumber, Timestamp,
};

use super::delivery_log::SHARD;
use super::state::State;
use super::{DeliveryChange, DeliveryLogError};
use crate::salvage::AddUp;

const READ_BYTES: usize = 1 << 20;
/// A record takes no further change once it is this large. The largest change still fits behind.
const RECORD_BYTES: usize = 1 << 20;
const VERSION: u8 = 1;

/// The records of one round: changes are appended to `bytes`, behind the version.
pub(super) struct Records {
    pub(super) bytes: Vec<u8>,
    pub(super) batches: Vec<Batch>,
}

impl Records {
    /// `buffer` is used again.
    pub(super) fn new(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.push(VERSION);
        Self {
            bytes: buffer,
            batches: Vec::new(),
        }
    }

    /// Begins another record when this one is full.
    pub(super) fn room(&mut self) -> Result<(), DeliveryLogError> {
        if self.bytes.len() >= RECORD_BYTES {
            self.finish()?;
        }
        Ok(())
    }

    /// Ends the record, if anything is in it.
    pub(super) fn finish(&mut self) -> Result<(), DeliveryLogError> {
        if self.bytes.len() > 1 {
            let record = Record {
                partition_key: Bytes::from_static(b"deliveries"),
                explicit_hash_key: Some(HashKey::MIN),
                data: Bytes::copy_from_slice(&self.bytes),
                client_timestamp: None,
                headers: Vec::new(),
            };
            let mut builder = BatchBuilder::new(RecordLimits::MAX);
            builder.push(&record, HashKey::MIN)?;
            self.batches.push(builder.finish(
                ProducerId::NONE,
                ProducerSequence::new(0),
                Compression::None,
            ));
        }
        self.bytes.clear();
        self.bytes.push(VERSION);
        Ok(())
    }
}

/// Adds up the records from `horizon` up to `end`, all of which must be there.
pub(super) fn read_all(
    reader: &LogReader,
    horizon: SequenceNumber,
    end: SequenceNumber,
) -> Result<Reading, DeliveryLogError> {
    let mut reading = Reading::from(horizon);
    loop {
        let found = reader.read_cold(SHARD, reading.next, READ_BYTES)?;
        if found.pieces.is_empty() {
            break;
        }
        for frame in found.pieces.into_iter().flat_map(Frames::new) {
            let frame = frame.map_err(|_| reading.damaged("its frame does not decode"))?;
            reading.frame(&frame)?;
        }
    }
    if reading.next != end {
        return Err(reading.damaged(MISSING));
    }
    if reading.state.is_partial {
        return Err(DeliveryLogError::Damaged {
            record: horizon.value().saturating_add(1),
            reason: "the snapshot it should begin is not complete",
        });
    }
    Ok(reading)
}

const MISSING: &str = "it is missing";

impl AddUp for Reading {
    fn next(&self) -> SequenceNumber {
        self.next
    }

    fn skip_to(&mut self, next: SequenceNumber) {
        self.next = next;
        self.must_begin = false;
        // What the lost ones said may be in a snapshot's image that follows.
        self.state.is_partial = true;
    }

    fn take(&mut self, frame: &Frame) -> Result<(), &'static str> {
        self.frame(frame).map_err(|error| match error {
            DeliveryLogError::Damaged { reason, .. } => reason,
            _ => "it cannot be used",
        })
    }
}

/// Adds records up.
pub(super) struct Reading {
    pub(super) next: SequenceNumber,
    pub(super) state: State,
    pub(super) last_arrival: Timestamp,
    pub(super) bytes: u64,
    /// The next change has to begin a snapshot.
    must_begin: bool,
}

impl Reading {
    pub(super) fn from(horizon: SequenceNumber) -> Self {
        // What was trimmed must stand in a snapshot, which begins where reading does.
        let is_trimmed = horizon > SequenceNumber::ZERO;
        Self {
            next: horizon,
            state: State {
                is_partial: is_trimmed,
                ..State::default()
            },
            last_arrival: Timestamp::ZERO,
            bytes: 0,
            must_begin: is_trimmed,
        }
    }

    fn damaged(&self, reason: &'static str) -> DeliveryLogError {
        DeliveryLogError::Damaged {
            record: self.next.value().saturating_add(1),
            reason,
        }
    }

    fn frame(&mut self, frame: &Frame) -> Result<(), DeliveryLogError> {
        if frame.header.base != self.next {
            return Err(self.damaged(MISSING));
        }
        let mut records = frame.batch.records();
        let (Some(record), None) = (records.next(), records.next()) else {
            return Err(self.damaged("its frame holds more than one record"));
        };
        let record = record.map_err(|_| self.damaged("its batch does not decode"))?;
        let applied = self.record(&record.data);
        applied.map_err(|reason| self.damaged(reason))?;
        self.next = self.next.plus(1);
        self.last_arrival = self.last_arrival.max(frame.header.arrival);
        self.bytes = self.bytes.saturating_add(record.data.len() as u64);
        Ok(())
    }

    fn record(&mut self, data: &[u8]) -> Result<(), &'static str> {
        let Some((&VERSION, mut rest)) = data.split_first() else {
            return Err("its version is not known; it was written by a newer Flumen");
        };
        while !rest.is_empty() {
            let change = DeliveryChange::decode(&mut rest)?;
            let begins = matches!(change, DeliveryChange::SnapshotBegin { .. });
            if std::mem::take(&mut self.must_begin) && !begins {
                return Err("the snapshot it should begin does not begin there");
            }
            self.state.apply(&change)?;
        }
        Ok(())
    }
}
