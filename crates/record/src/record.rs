//! One record as producers hand it in and consumers get it back.

use bytes::Bytes;

use crate::{HashKey, Timestamp};

/// The longest partition key, in characters (`PutRecord` in the Kinesis API reference).
pub(crate) const MAX_PARTITION_KEY_CHARACTERS: usize = 256;
/// The most headers of a record.
pub(crate) const MAX_HEADERS: usize = 64;
/// The most bytes in a record's headers, names and values together.
pub(crate) const MAX_HEADER_BYTES: usize = 16 << 10;
/// The largest record of any stream.
pub(crate) const MAX_RECORD_BYTES: u64 = 10 << 20;

/// A name and a value beside a record's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name, UTF-8.
    pub name: Bytes,
    /// Its value, any bytes.
    pub value: Bytes,
}

/// A record. Cheap to clone: decoded records share the bytes of their batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// 1 to 256 characters of UTF-8; decides the shard unless `explicit_hash_key` does.
    pub partition_key: Bytes,
    /// Overrides routing only; the partition key is kept and returned all the same.
    pub explicit_hash_key: Option<HashKey>,
    /// The payload.
    pub data: Bytes,
    /// When the producer says it happened; data to Flumen, never used for order or retention.
    pub client_timestamp: Option<Timestamp>,
    /// At most 64, 16 KiB together.
    pub headers: Vec<Header>,
}

impl Record {
    /// Where it falls in the key space.
    pub fn hash_key(&self) -> HashKey {
        self.explicit_hash_key
            .unwrap_or_else(|| HashKey::of(&self.partition_key))
    }

    /// Data, partition key and headers together, in bytes: what limits and quotas count.
    pub fn size_bytes(&self) -> u64 {
        let headers: usize = self
            .headers
            .iter()
            .map(|h| h.name.len() + h.value.len())
            .sum();
        (self.partition_key.len() + self.data.len() + headers) as u64
    }
}

/// What a record may measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordLimits {
    /// Data, partition key and headers together; 1 MiB unless the stream says otherwise.
    /// What exceeds [`RecordLimits::MAX`] counts as that.
    pub max_record_bytes: u64,
}

impl RecordLimits {
    /// The most a stream may allow: 10 MiB.
    pub const MAX: Self = Self {
        max_record_bytes: MAX_RECORD_BYTES,
    };
}

impl Default for RecordLimits {
    /// 1 MiB.
    fn default() -> Self {
        Self {
            max_record_bytes: 1 << 20,
        }
    }
}
