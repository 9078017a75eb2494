//! The one encoded form of a batch: the same bytes on the wire, on disk and at the consumer.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::body::{MIN_RECORD_BYTES, RawRecord};
use crate::wire::WireReader;
use crate::{
    BatchError, HashKey, HashKeyCache, HashRange, ProducerId, ProducerSequence, RecordFault,
    RecordLimits, Records,
};

/// How a batch's body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Not at all: the broker walks the body on append.
    #[default]
    None,
    /// LZ4 block.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// The number that stands for it in a batch header.
    pub const fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    /// What a number in a batch header stands for.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// The version this program writes, and the only one it reads.
const VERSION: u8 = 1;

/// The facts in front of a batch's records. All of them are covered by `checksum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Header and body, in bytes.
    pub encoded_bytes: u32,
    /// CRC-32 over everything else in the batch.
    pub checksum: u32,
    /// How the body is compressed.
    pub compression: Compression,
    /// Number of records, at least 1.
    pub count: u32,
    /// The body's size before compression.
    pub uncompressed_bytes: u32,
    /// Who sent it; [`ProducerId::NONE`] for at-least-once.
    pub producer: ProducerId,
    /// Its place among this producer's batches for this shard; 0 without a producer.
    pub sequence: ProducerSequence,
    /// Lowest and highest hash key of the records, or any range around them.
    pub span: HashRange,
}

impl BatchHeader {
    /// Reads and checks a header at the front of `bytes`: everything but the checksum and the
    /// body, which need not be there.
    pub fn decode(bytes: &[u8]) -> Result<Self, BatchError> {
        let found = bytes.len() as u64;
        let needed = Batch::HEADER_BYTES as u64;
        let mut fields = bytes
            .get(..Batch::HEADER_BYTES)
            .ok_or(BatchError::Truncated { needed, found })?;
        let encoded_bytes = fields.get_u32_le();
        let checksum = fields.get_u32_le();
        let version = fields.get_u8();
        if version != VERSION {
            return Err(BatchError::Version { version });
        }
        let code = fields.get_u8();
        let flags = fields.get_u16_le();
        let count = fields.get_u32_le();
        let uncompressed_bytes = fields.get_u32_le();
        let key = fields.get_u32_le();
        if flags != 0 || key != 0 {
            return Err(BatchError::Reserved { flags, key });
        }
        let header = Self {
            encoded_bytes,
            checksum,
            compression: Compression::from_code(code).ok_or(BatchError::Compression { code })?,
            count,
            uncompressed_bytes,
            producer: ProducerId::new(fields.get_u64_le()),
            sequence: ProducerSequence::new(fields.get_u64_le()),
            span: HashRange {
                start: HashKey::new(fields.get_u128_le()),
                end: HashKey::new(fields.get_u128_le()),
            },
        };
        header.check()?;
        Ok(header)
    }

    /// What must hold between the fields, whatever the body is.
    fn check(&self) -> Result<(), BatchError> {
        let bytes = u64::from(self.encoded_bytes);
        if bytes < Batch::HEADER_BYTES as u64 {
            return Err(BatchError::TooSmall { bytes });
        }
        if bytes > Batch::MAX_ENCODED_BYTES as u64 {
            return Err(BatchError::TooLarge {
                bytes,
                limit: Batch::MAX_ENCODED_BYTES as u64,
            });
        }
        let declared = u64::from(self.uncompressed_bytes);
        if declared > Batch::MAX_DECODED_BYTES as u64 {
            let limit = Batch::MAX_DECODED_BYTES as u64;
            return Err(BatchError::BodyTooLarge {
                bytes: declared,
                limit,
            });
        }
        let found = bytes - Batch::HEADER_BYTES as u64;
        if self.compression == Compression::None && declared != found {
            return Err(BatchError::BodyLength { declared, found });
        }
        if self.count == 0 || self.count > self.uncompressed_bytes / MIN_RECORD_BYTES {
            let body_bytes = self.uncompressed_bytes;
            return Err(BatchError::Count {
                count: self.count,
                body_bytes,
            });
        }
        if self.span.start > self.span.end {
            return Err(BatchError::Span { span: self.span });
        }
        Ok(())
    }

    /// Writes the header over the front of `buffer`, `checksum` as it stands.
    fn write(&self, buffer: &mut BytesMut) {
        let room = buffer.first_chunk_mut::<{ Batch::HEADER_BYTES }>();
        let mut fields = room
            .expect("BUG: a buffer without room for the header")
            .as_mut_slice();
        fields.put_u32_le(self.encoded_bytes);
        fields.put_u32_le(self.checksum);
        fields.put_u8(VERSION);
        fields.put_u8(self.compression.code());
        fields.put_u16_le(0);
        fields.put_u32_le(self.count);
        fields.put_u32_le(self.uncompressed_bytes);
        fields.put_u32_le(0);
        fields.put_u64_le(self.producer.value());
        fields.put_u64_le(self.sequence.value());
        fields.put_u128_le(self.span.start.value());
        fields.put_u128_le(self.span.end.value());
    }
}

/// The CRC-32 over all bytes of a batch but those of the checksum itself (4 to 8).
fn checksum(batch: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    if let Some((length, rest)) = batch.split_at_checked(4) {
        hasher.update(length);
        hasher.update(rest.get(4..).unwrap_or_default());
    }
    hasher.finalize()
}

/// A batch whose header, length and checksum have been verified. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    header: BatchHeader,
    bytes: Bytes,
}

impl Batch {
    /// Largest batch, header included.
    pub const MAX_ENCODED_BYTES: usize = 16 << 20;
    /// Largest body once decompressed.
    pub const MAX_DECODED_BYTES: usize = 64 << 20;
    /// Size of the header.
    pub const HEADER_BYTES: usize = 72;

    /// Takes bytes that must be exactly one batch: checks version, lengths, limits and checksum,
    /// not the body.
    pub fn decode(bytes: Bytes) -> Result<Self, BatchError> {
        let header = BatchHeader::decode(&bytes)?;
        let (needed, found) = (u64::from(header.encoded_bytes), bytes.len() as u64);
        if found < needed {
            return Err(BatchError::Truncated { needed, found });
        }
        if found > needed {
            return Err(BatchError::Excess {
                needed,
                excess: found - needed,
            });
        }
        let (expected, found) = (header.checksum, checksum(&bytes));
        if expected != found {
            return Err(BatchError::Checksum { expected, found });
        }
        Ok(Self { header, bytes })
    }

    /// The same records as a batch of another producer, or at another place among its batches.
    /// Copies the body.
    #[must_use]
    pub fn restamped(&self, producer: ProducerId, sequence: ProducerSequence) -> Self {
        let header = BatchHeader {
            producer,
            sequence,
            ..self.header
        };
        Self::seal(header, BytesMut::from(&*self.bytes))
    }

    /// A batch this program encodes: writes the header into the room `buffer` has for it in front
    /// of the body. Length and checksum become those of `buffer`.
    pub(crate) fn seal(mut header: BatchHeader, mut buffer: BytesMut) -> Self {
        header.encoded_bytes =
            u32::try_from(buffer.len()).expect("BUG: a batch larger than MAX_ENCODED_BYTES");
        header.write(&mut buffer);
        header.checksum = checksum(&buffer);
        header.write(&mut buffer);
        let bytes = buffer.freeze();
        debug_assert_eq!(BatchHeader::decode(&bytes), Ok(header));
        Self { header, bytes }
    }

    /// What the header says.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The encoded bytes, header first.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The body as it is stored.
    pub(crate) fn body(&self) -> Bytes {
        self.bytes.slice(Self::HEADER_BYTES..)
    }

    /// Walks an uncompressed body as the broker does on append: the count is right, every record
    /// is well formed and inside `limits`, every hash key inside the span. A compressed body is
    /// not looked at.
    pub fn check_body(&self, limits: RecordLimits) -> Result<(), BatchError> {
        self.check_records(limits, HashKey::of)
    }

    /// [`Batch::check_body`] for who checks many batches: partition keys that come again are not
    /// hashed again.
    pub fn check_body_with(
        &self,
        limits: RecordLimits,
        hash_keys: &mut HashKeyCache,
    ) -> Result<(), BatchError> {
        self.check_records(limits, |key| hash_keys.of(key))
    }

    #[inline]
    fn check_records(
        &self,
        limits: RecordLimits,
        mut hash: impl FnMut(&[u8]) -> HashKey,
    ) -> Result<(), BatchError> {
        if self.header.compression != Compression::None {
            return Ok(());
        }
        let max_record_bytes = limits.min(RecordLimits::MAX).max_record_bytes;
        let span = self.header.span;
        let any_hash_key = span == HashRange::FULL;
        let mut rest = WireReader::new(self.bytes.get(Self::HEADER_BYTES..).unwrap_or_default());
        for index in 0..self.header.count {
            let record = RawRecord::read(&mut rest)
                .map_err(|fault| BatchError::Malformed { index, fault })?;
            record
                .check(max_record_bytes)
                .map_err(|error| BatchError::Record { index, error })?;
            if any_hash_key {
                continue;
            }
            let hash_key = record
                .explicit_hash_key
                .unwrap_or_else(|| hash(record.partition_key));
            if !span.contains(hash_key) {
                return Err(BatchError::OutsideSpan { index, hash_key });
            }
        }
        match rest.rest().len() as u64 {
            0 => Ok(()),
            bytes => {
                let fault = RecordFault::TrailingBytes { bytes };
                Err(BatchError::Malformed {
                    index: self.header.count - 1,
                    fault,
                })
            }
        }
    }

    /// Decodes the records (decompressing within the declared size). Yields exactly
    /// `header().count` items: what does not decode is an error in its place.
    pub fn records(&self) -> Records {
        Records::of(self)
    }
}
