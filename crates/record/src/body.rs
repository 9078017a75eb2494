//! One record inside a batch's body: its layout, and what may be in it.

use bytes::{Bytes, BytesMut};

use crate::record::{MAX_HEADER_BYTES, MAX_HEADERS, MAX_PARTITION_KEY_CHARACTERS};
use crate::wire::{WireReader, put_varint, varint_bytes};
use crate::{HashKey, Header, Record, RecordError, RecordFault, Timestamp};

/// Flag: a 16-byte hash key follows the partition key.
const EXPLICIT_HASH_KEY: u8 = 1;
/// Flag: the producer's time follows.
const CLIENT_TIMESTAMP: u8 = 2;
/// Flag: headers follow the data.
const HEADERS: u8 = 4;
const RESERVED_FLAGS: u8 = !(EXPLICIT_HASH_KEY | CLIENT_TIMESTAMP | HEADERS);

/// The smallest record: flags, key length, one byte of key, data length.
pub(crate) const MIN_RECORD_BYTES: u32 = 4;

/// A record as it lies in a body: cut into its parts, its contents not yet looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawRecord<'a> {
    pub(crate) partition_key: &'a [u8],
    pub(crate) explicit_hash_key: Option<HashKey>,
    client_timestamp: Option<Timestamp>,
    pub(crate) data: &'a [u8],
    headers: RawHeaders<'a>,
}

impl<'a> RawRecord<'a> {
    /// Cuts the next record off the front. After an error nobody knows where the next one begins.
    #[inline]
    pub(crate) fn read(from: &mut WireReader<'a>) -> Result<Self, RecordFault> {
        let flags = from.byte()?;
        if flags & RESERVED_FLAGS != 0 {
            return Err(RecordFault::Flags { flags });
        }
        let key_bytes = from.varint()?;
        let partition_key = from.take(key_bytes)?;
        let explicit_hash_key = match flags & EXPLICIT_HASH_KEY {
            0 => None,
            _ => Some(HashKey::new(from.u128()?)),
        };
        let client_timestamp = match flags & CLIENT_TIMESTAMP {
            0 => None,
            _ => Some(Timestamp::from_micros(from.varint()?)),
        };
        let data_bytes = from.varint()?;
        let data = from.take(data_bytes)?;
        let headers = match flags & HEADERS {
            0 => RawHeaders::EMPTY,
            _ => RawHeaders::read(from)?,
        };
        Ok(Self {
            partition_key,
            explicit_hash_key,
            client_timestamp,
            data,
            headers,
        })
    }

    /// Whether a stream without limits of its own could hold this record.
    #[inline]
    pub(crate) fn check(&self, max_record_bytes: u64) -> Result<(), RecordError> {
        check_partition_key(self.partition_key)?;
        let header_bytes = match self.headers.count {
            0 => 0,
            _ => check_headers(self.headers.iter())?,
        };
        let bytes = (self.partition_key.len() + self.data.len() + header_bytes) as u64;
        check_size(bytes, max_record_bytes)
    }

    /// The record, sharing the bytes of `body`, out of which it must have been read.
    pub(crate) fn to_record(self, body: &Bytes) -> Record {
        let headers = match self.headers.count {
            0 => Vec::new(),
            _ => self
                .headers
                .iter()
                .map(|(name, value)| Header {
                    name: body.slice_ref(name),
                    value: body.slice_ref(value),
                })
                .collect(),
        };
        Record {
            partition_key: body.slice_ref(self.partition_key),
            explicit_hash_key: self.explicit_hash_key,
            data: body.slice_ref(self.data),
            client_timestamp: self.client_timestamp,
            headers,
        }
    }
}

/// A record's headers, known to be whole.
#[derive(Debug, Clone, Copy)]
struct RawHeaders<'a> {
    count: u64,
    first: WireReader<'a>,
}

impl<'a> RawHeaders<'a> {
    const EMPTY: Self = Self {
        count: 0,
        first: WireReader::EMPTY,
    };

    fn read(from: &mut WireReader<'a>) -> Result<Self, RecordFault> {
        let count = from.varint()?;
        if count == 0 {
            return Err(RecordFault::NoHeaders);
        }
        let first = *from;
        for _ in 0..count {
            read_header(from)?;
        }
        Ok(Self { count, first })
    }

    fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut from = self.first;
        (0..self.count).map_while(move |_| read_header(&mut from).ok())
    }
}

fn read_header<'a>(from: &mut WireReader<'a>) -> Result<(&'a [u8], &'a [u8]), RecordFault> {
    let name_bytes = from.varint()?;
    let name = from.take(name_bytes)?;
    let value_bytes = from.varint()?;
    Ok((name, from.take(value_bytes)?))
}

/// 1 to 256 characters of UTF-8.
#[inline]
fn check_partition_key(key: &[u8]) -> Result<(), RecordError> {
    if key.is_ascii() && (1..=MAX_PARTITION_KEY_CHARACTERS).contains(&key.len()) {
        return Ok(());
    }
    check_unusual_partition_key(key)
}

#[cold]
fn check_unusual_partition_key(key: &[u8]) -> Result<(), RecordError> {
    let text = str::from_utf8(key).map_err(|error| RecordError::PartitionKeyUtf8 {
        valid_bytes: error.valid_up_to(),
    })?;
    let characters = text.chars().count();
    if (1..=MAX_PARTITION_KEY_CHARACTERS).contains(&characters) {
        Ok(())
    } else {
        Err(RecordError::PartitionKeyLength { characters })
    }
}

/// At most 64, names in UTF-8, 16 KiB together. Returns the bytes of names and values.
fn check_headers<'h>(
    headers: impl Iterator<Item = (&'h [u8], &'h [u8])>,
) -> Result<usize, RecordError> {
    let (mut count, mut bytes, mut unreadable) = (0, 0, None);
    for (name, value) in headers {
        if unreadable.is_none() && str::from_utf8(name).is_err() {
            unreadable = Some(count);
        }
        count += 1;
        bytes += name.len() + value.len();
    }
    if count > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        return Err(RecordError::Headers { count, bytes });
    }
    match unreadable {
        Some(header) => Err(RecordError::HeaderNameUtf8 { header }),
        None => Ok(bytes),
    }
}

#[inline]
fn check_size(bytes: u64, limit: u64) -> Result<(), RecordError> {
    if bytes > limit {
        Err(RecordError::TooLarge { bytes, limit })
    } else {
        Ok(())
    }
}

/// Whether `record` may go into a batch whose records are at most `max_record_bytes`.
pub(crate) fn check_record(record: &Record, max_record_bytes: u64) -> Result<(), RecordError> {
    check_partition_key(&record.partition_key)?;
    let header_bytes = match record.headers.as_slice() {
        [] => 0,
        headers => check_headers(headers.iter().map(|h| (&*h.name, &*h.value)))?,
    };
    let bytes = (record.partition_key.len() + record.data.len() + header_bytes) as u64;
    check_size(bytes, max_record_bytes)
}

/// Bytes that [`put_record`] appends.
#[inline]
pub(crate) fn record_bytes(record: &Record) -> usize {
    let sized = |bytes: &Bytes| varint_bytes(bytes.len() as u64) + bytes.len();
    let mut bytes = 1 + sized(&record.partition_key) + sized(&record.data);
    if record.explicit_hash_key.is_some() {
        bytes += size_of::<u128>();
    }
    if let Some(timestamp) = record.client_timestamp {
        bytes += varint_bytes(timestamp.as_micros());
    }
    if !record.headers.is_empty() {
        bytes += varint_bytes(record.headers.len() as u64);
        bytes += record
            .headers
            .iter()
            .map(|h| sized(&h.name) + sized(&h.value))
            .sum::<usize>();
    }
    bytes
}

/// Appends a record that has been checked.
#[inline]
pub(crate) fn put_record(out: &mut BytesMut, record: &Record) {
    let mut flags = 0;
    if record.explicit_hash_key.is_some() {
        flags |= EXPLICIT_HASH_KEY;
    }
    if record.client_timestamp.is_some() {
        flags |= CLIENT_TIMESTAMP;
    }
    if !record.headers.is_empty() {
        flags |= HEADERS;
    }
    out.extend_from_slice(&[flags]);
    put_sized(out, &record.partition_key);
    if let Some(hash_key) = record.explicit_hash_key {
        out.extend_from_slice(&hash_key.value().to_le_bytes());
    }
    if let Some(timestamp) = record.client_timestamp {
        put_varint(out, timestamp.as_micros());
    }
    put_sized(out, &record.data);
    if !record.headers.is_empty() {
        put_varint(out, record.headers.len() as u64);
        for header in &record.headers {
            put_sized(out, &header.name);
            put_sized(out, &header.value);
        }
    }
}

#[inline]
fn put_sized(out: &mut BytesMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
