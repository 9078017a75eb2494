//! What can be wrong with bytes and names.

use thiserror::Error;

use crate::{Compression, HashKey, HashRange};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// Empty, or longer than names of its kind are.
    #[error("a name has 1 to {max} characters, this one has {bytes}")]
    Length {
        /// Its length in bytes.
        bytes: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// A character outside the allowed ones.
    #[error("a name is made of a-z A-Z 0-9 _ . - only, found {character:?}")]
    Character {
        /// The first one that is not allowed.
        character: char,
    },
}

/// Why a text is not a hash key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HashKeyError {
    /// Not a decimal number as Kinesis writes them.
    #[error("a hash key is a decimal number of 1 to 39 digits without leading zeros")]
    NotDecimal,
    /// 2^128 or more.
    #[error("a hash key is less than 2^128")]
    TooLarge,
}

/// Why a text is not a point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TimestampError {
    /// Not of the form `2026-03-01T12:34:56.789Z`.
    #[error("a time is written as in RFC 3339, such as 2026-03-01T12:34:56.789Z")]
    Form,
    /// A month, day, hour, minute, second or UTC offset that does not exist.
    #[error("no such date or time of day")]
    NoSuchTime,
    /// Before 1970 or after 9999, in UTC.
    #[error("a time lies between the years 1970 and 9999, in UTC")]
    Year,
}

/// Why a record cannot be part of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RecordError {
    /// Partition keys have 1 to 256 characters.
    #[error("a partition key has 1 to 256 characters, this one has {characters}")]
    PartitionKeyLength {
        /// Its length in characters.
        characters: usize,
    },
    /// Partition keys are UTF-8.
    #[error("a partition key is UTF-8, this one is not from byte {valid_bytes} on")]
    PartitionKeyUtf8 {
        /// How many of its bytes are.
        valid_bytes: usize,
    },
    /// Header names are UTF-8.
    #[error("a header name is UTF-8, that of header {header} is not")]
    HeaderNameUtf8 {
        /// Which header, from 0.
        header: usize,
    },
    /// Data, key and headers together are larger than allowed.
    #[error("a record of {bytes} bytes is larger than the limit of {limit} bytes")]
    TooLarge {
        /// Data, key and headers together.
        bytes: u64,
        /// The stream's limit.
        limit: u64,
    },
    /// More headers than allowed, or more bytes in them.
    #[error("{count} headers of {bytes} bytes: at most 64 headers and 16384 bytes are allowed")]
    Headers {
        /// How many.
        count: usize,
        /// Names and values together.
        bytes: usize,
    },
    /// The record itself may be fine, but the batch cannot take it any more: finish the batch.
    #[error("the batch would grow to {bytes} bytes, more than the limit of {limit} bytes")]
    BatchFull {
        /// Header and body with this record, before compression.
        bytes: u64,
        /// [`Batch::MAX_ENCODED_BYTES`](crate::Batch::MAX_ENCODED_BYTES).
        limit: u64,
    },
}

/// What is wrong with the bytes of a record inside a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RecordFault {
    /// The body ends before the record does, or before it begins.
    #[error("the body ends inside it")]
    Truncated,
    /// Reserved flag bits are set.
    #[error("reserved bits are set in its flags {flags:#04x}")]
    Flags {
        /// The record's flags.
        flags: u8,
    },
    /// A variable-length number that exceeds 64 bits or is longer than it needs to be.
    #[error("a length or time in it is not a shortest 64-bit varint")]
    Varint,
    /// The flags announce headers, and there are none.
    #[error("its flags announce headers and it has none")]
    NoHeaders,
    /// Where it begins is unknown, because an earlier record is damaged.
    #[error("it cannot be found, record {damaged} before it is damaged")]
    Unreachable {
        /// The damaged one, from 0.
        damaged: u32,
    },
    /// The last record is followed by bytes that belong to none: the count lies.
    #[error("{bytes} bytes follow it that belong to no record")]
    TrailingBytes {
        /// How many.
        bytes: u64,
    },
}

/// Why bytes are not a batch, or its body not what the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BatchError {
    /// Shorter than it says, or than a header.
    #[error("a batch of {needed} bytes has only {found}")]
    Truncated {
        /// Bytes it should have.
        needed: u64,
        /// Bytes there are.
        found: u64,
    },
    /// Longer than it says.
    #[error("a batch of {needed} bytes is followed by {excess} more")]
    Excess {
        /// Bytes it should have.
        needed: u64,
        /// Bytes after it.
        excess: u64,
    },
    /// A format version this program does not know.
    #[error("batch format version {version} is not known to this program")]
    Version {
        /// What the header says.
        version: u8,
    },
    /// A compression this program does not know.
    #[error("batch compression {code} is not known to this program")]
    Compression {
        /// What the header says.
        code: u8,
    },
    /// Reserved fields are in use: the body may be encrypted.
    #[error("reserved batch fields are in use: flags {flags:#06x}, key {key}")]
    Reserved {
        /// The flags, 0 in this version.
        flags: u16,
        /// The key id, 0 in this version.
        key: u32,
    },
    /// The header says it is shorter than a header.
    #[error("a batch has at least 72 bytes, this one says {bytes}")]
    TooSmall {
        /// What the header says.
        bytes: u64,
    },
    /// The header says it is larger than allowed.
    #[error("a batch of {bytes} bytes is larger than the limit of {limit} bytes")]
    TooLarge {
        /// What the header says.
        bytes: u64,
        /// [`Batch::MAX_ENCODED_BYTES`](crate::Batch::MAX_ENCODED_BYTES).
        limit: u64,
    },
    /// The header says its body is larger than allowed once decompressed.
    #[error("a body of {bytes} bytes is larger than the limit of {limit} bytes")]
    BodyTooLarge {
        /// What the header says.
        bytes: u64,
        /// [`Batch::MAX_DECODED_BYTES`](crate::Batch::MAX_DECODED_BYTES).
        limit: u64,
    },
    /// The body does not have the size the header says.
    #[error("the batch says its body has {declared} bytes, it has {found}")]
    BodyLength {
        /// What the header says.
        declared: u64,
        /// What there is.
        found: u64,
    },
    /// No records, or more than fit into the body.
    #[error("a body of {body_bytes} bytes cannot hold {count} records")]
    Count {
        /// What the header says.
        count: u32,
        /// The body's size before compression.
        body_bytes: u32,
    },
    /// The span's end lies before its start.
    #[error("the hash key span ends before it starts")]
    Span {
        /// What the header says.
        span: HashRange,
    },
    /// The CRC-32 over the batch does not match.
    #[error("checksum mismatch: the batch says {expected:#010x}, its bytes give {found:#010x}")]
    Checksum {
        /// What the header says.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
    /// The compressed body is not what its compression produces.
    #[error("the body does not decompress as {compression}")]
    Decompression {
        /// How it should be compressed.
        compression: Compression,
    },
    /// The bytes of a record are not one.
    #[error("record {index} is malformed: {fault}")]
    Malformed {
        /// Which, from 0.
        index: u32,
        /// What is wrong with it.
        fault: RecordFault,
    },
    /// A record that should never have been put into a batch.
    #[error("record {index}: {error}")]
    Record {
        /// Which, from 0.
        index: u32,
        /// What is wrong with it.
        error: RecordError,
    },
    /// A record's hash key lies outside the span in the header.
    #[error("record {index} has hash key {hash_key}, which is outside the batch's span")]
    OutsideSpan {
        /// Which, from 0.
        index: u32,
        /// Its place in the key space.
        hash_key: HashKey,
    },
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Shorter than it says, or than a header.
    #[error("a frame of {needed} bytes has only {found}")]
    Truncated {
        /// Bytes it should have.
        needed: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A format version this program does not know.
    #[error("frame format version {version} is not known to this program")]
    Version {
        /// What the header says.
        version: u16,
    },
    /// Reserved fields are in use.
    #[error("reserved frame fields are in use: flags {flags:#06x}")]
    Reserved {
        /// The flags, 0 in this version.
        flags: u16,
    },
    /// The header says a length no frame has.
    #[error("no frame has {bytes} bytes")]
    Length {
        /// What the header says.
        bytes: u64,
    },
    /// The batch inside is not one.
    #[error(transparent)]
    Batch(#[from] BatchError),
}
