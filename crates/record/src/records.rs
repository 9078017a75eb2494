//! Reading the records of a batch.

use bytes::Bytes;

use crate::body::RawRecord;
use crate::compress::decompress;
use crate::record::MAX_RECORD_BYTES;
use crate::wire::WireReader;
use crate::{Batch, BatchError, Record, RecordFault};

/// The records of a batch, in order; exactly as many as the header counts.
///
/// What does not decode is an error in its place, so that record `i` has the same sequence number
/// for every reader: a record that may not be in a batch is one error, a record whose end cannot
/// be found is one and so is each after it, a body that cannot be decompressed is one per record.
/// Bytes after the last record make that record an error.
#[derive(Debug)]
pub struct Records {
    body: Bytes,
    /// Where the next record begins in `body`.
    position: usize,
    index: u32,
    count: u32,
    /// Set once no further record can be found.
    lost: Option<BatchError>,
}

impl Records {
    pub(crate) fn of(batch: &Batch) -> Self {
        let (body, lost) = match decompress(batch.header(), batch.body()) {
            Ok(body) => (body, None),
            Err(error) => (Bytes::new(), Some(error)),
        };
        Self {
            body,
            position: 0,
            index: 0,
            count: batch.header().count,
            lost,
        }
    }

    fn read(&mut self, index: u32) -> Result<RecordRef<'_>, BatchError> {
        let rest = self.body.get(self.position..).unwrap_or_default();
        let mut reader = WireReader::new(rest);
        let raw = match RawRecord::read(&mut reader) {
            Ok(raw) => raw,
            Err(fault) => {
                let unreachable = RecordFault::Unreachable { damaged: index };
                self.lost = Some(BatchError::Malformed {
                    index,
                    fault: unreachable,
                });
                return Err(BatchError::Malformed { index, fault });
            }
        };
        let left = reader.rest().len();
        self.position = self.body.len() - left;
        raw.check(MAX_RECORD_BYTES)
            .map_err(|error| BatchError::Record { index, error })?;
        if self.index == self.count && left > 0 {
            let fault = RecordFault::TrailingBytes { bytes: left as u64 };
            return Err(BatchError::Malformed { index, fault });
        }
        let body = &self.body;
        Ok(RecordRef { raw, body })
    }
}

/// A record within its batch: nothing of it is copied or held.
#[derive(Debug, Clone, Copy)]
pub struct RecordRef<'a> {
    raw: RawRecord<'a>,
    body: &'a Bytes,
}

impl<'a> RecordRef<'a> {
    /// The payload.
    #[inline]
    pub fn data(&self) -> &'a [u8] {
        self.raw.data
    }

    /// The record by itself, sharing the bytes of its batch.
    pub fn to_record(&self) -> Record {
        self.raw.to_record(self.body)
    }
}

impl Records {
    /// As [`Iterator::next`], but the record stays where it is: for who needs no more than a look at
    /// most records.
    pub fn next_ref(&mut self) -> Option<Result<RecordRef<'_>, BatchError>> {
        if self.index == self.count {
            return None;
        }
        let index = self.index;
        self.index += 1;
        if let Some(lost) = self.fault_of(index) {
            return Some(Err(lost));
        }
        Some(self.read(index))
    }

    /// Why no further record can be found, told of this one.
    fn fault_of(&self, index: u32) -> Option<BatchError> {
        match self.lost {
            Some(BatchError::Malformed { fault, .. }) => {
                Some(BatchError::Malformed { index, fault })
            }
            error => error,
        }
    }
}

impl Iterator for Records {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.next_ref()?;
        Some(record.map(|record| record.to_record()))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.count - self.index) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Records {}
