//! Encoding records into a batch.

use bytes::{BufMut, BytesMut};

use crate::body::{check_record, put_record, record_bytes};
use crate::compress::compress;
use crate::{
    Batch, BatchHeader, Compression, HashKey, HashRange, ProducerId, ProducerSequence, Record,
    RecordError, RecordLimits,
};

/// Encodes records of one shard into a batch.
///
/// Records are appended to one buffer behind room for the header, so that finishing an
/// uncompressed batch writes the header and copies nothing.
#[derive(Debug)]
pub struct BatchBuilder {
    limits: RecordLimits,
    /// Empty, or the header's room and the records so far.
    buffer: BytesMut,
    count: u32,
    span: HashRange,
    /// A little more than the last batch had: the next one is likely to fit.
    expected_bytes: usize,
}

impl BatchBuilder {
    /// An empty batch that checks its records against `limits`.
    pub fn new(limits: RecordLimits) -> Self {
        let limits = limits.min(RecordLimits::MAX);
        Self {
            limits,
            buffer: BytesMut::new(),
            count: 0,
            span: NO_SPAN,
            expected_bytes: 0,
        }
    }

    /// Adds a record whose place in the key space the caller has already computed for routing.
    /// A refused record leaves the batch as it was.
    pub fn push(&mut self, record: &Record, hash_key: HashKey) -> Result<(), RecordError> {
        self.push_within(
            record,
            HashRange {
                start: hash_key,
                end: hash_key,
            },
        )
    }

    /// Adds a record that is known to fall into `range`, the whole of which becomes part of the
    /// batch's span. With [`HashRange::FULL`] nobody has to hash its key, neither here nor in
    /// the broker; such a batch is accepted by a shard that owns the whole key space only.
    pub fn push_within(&mut self, record: &Record, range: HashRange) -> Result<(), RecordError> {
        check_record(record, self.limits.max_record_bytes)?;
        let record_bytes = record_bytes(record);
        let grown = self.encoded_bytes() + record_bytes;
        if grown > Batch::MAX_ENCODED_BYTES {
            let limit = Batch::MAX_ENCODED_BYTES as u64;
            return Err(RecordError::BatchFull {
                bytes: grown as u64,
                limit,
            });
        }
        if self.count == 0 {
            self.buffer
                .reserve((Batch::HEADER_BYTES + record_bytes).max(self.expected_bytes));
            self.buffer.put_bytes(0, Batch::HEADER_BYTES);
        } else {
            self.buffer.reserve(record_bytes);
        }
        put_record(&mut self.buffer, record);
        debug_assert_eq!(
            self.buffer.len(),
            grown,
            "BUG: record_bytes() and put_record() disagree"
        );
        self.count += 1;
        self.span.start = self.span.start.min(range.start);
        self.span.end = self.span.end.max(range.end);
        Ok(())
    }

    /// Records so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether there is nothing to finish.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Uncompressed body bytes so far, header included: what batching by size looks at.
    pub fn encoded_bytes(&self) -> usize {
        self.buffer.len().max(Batch::HEADER_BYTES)
    }

    /// What the records so far span. Without records it contains nothing.
    pub fn span(&self) -> HashRange {
        self.span
    }

    /// Encodes, and leaves the builder empty for the next batch (keeping its allocations where it
    /// can). A body that `compression` would not make smaller is stored as it is.
    ///
    /// # Panics
    /// When no record was pushed.
    pub fn finish(
        &mut self,
        producer: ProducerId,
        sequence: ProducerSequence,
        compression: Compression,
    ) -> Batch {
        assert!(self.count > 0, "BUG: a batch without records");
        let header = BatchHeader {
            encoded_bytes: 0,
            checksum: 0,
            compression: Compression::None,
            count: self.count,
            uncompressed_bytes: u32::try_from(self.buffer.len() - Batch::HEADER_BYTES)
                .expect("BUG: a batch larger than MAX_ENCODED_BYTES"),
            producer,
            sequence,
            span: self.span,
        };
        self.expected_bytes = self.buffer.len() + self.buffer.len() / 8;
        self.count = 0;
        self.span = NO_SPAN;
        let body = self.buffer.get(Batch::HEADER_BYTES..).unwrap_or_default();
        let compressed = compress(compression, body, |compressed| {
            let mut buffer = BytesMut::with_capacity(Batch::HEADER_BYTES + compressed.len());
            buffer.put_bytes(0, Batch::HEADER_BYTES);
            buffer.extend_from_slice(compressed);
            buffer
        });
        match compressed {
            Some(buffer) => {
                self.buffer.clear();
                Batch::seal(
                    BatchHeader {
                        compression,
                        ..header
                    },
                    buffer,
                )
            }
            None => Batch::seal(header, self.buffer.split()),
        }
    }
}

/// The span of no records: every key widens it at both ends.
const NO_SPAN: HashRange = HashRange {
    start: HashKey::MAX,
    end: HashKey::MIN,
};
