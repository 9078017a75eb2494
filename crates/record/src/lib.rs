//! The nouns and the bytes of Flumen: names, sequence numbers, hash keys, timestamps, and the
//! one encoded form of a batch.
//!
//! This crate knows no files, no clocks and no streams. Its byte layouts are described in
//! `docs/format.md`; stored examples lie in `tests/fixtures`.
//!
//! - Bytes from elsewhere are an error or exactly what was encoded: never a panic, and nothing is
//!   allocated before the length of it has been checked against a limit.
//! - Equal records have equal bytes: there is one encoding, and others are refused.
//! - Decoded records share the bytes they were read from. Nothing is allocated per record, but
//!   for headers.
//!
//! | File | Purpose |
//! |---|---|
//! | `name`, `number`, `timestamp`, `hash_key` | what things are called and counted by |
//! | `hash_key_cache` | not hashing the same partition key again |
//! | `record` | a record as producers hand it in and consumers get it back |
//! | `batch` | a batch's header, its checks, and the check of its body on append |
//! | `batch_builder` | encoding records into a batch |
//! | `records` | reading them out of it again |
//! | `frame` | the broker's header before a stored batch |
//! | `body`, `wire`, `compress` | the layout of a record, of numbers, and compressed bodies |
//! | `error` | what can be wrong with all of it |
#![forbid(unsafe_code)]

mod batch;
mod batch_builder;
mod body;
mod compress;
mod error;
mod frame;
mod hash_key;
mod hash_key_cache;
mod name;
mod number;
mod record;
mod records;
mod timestamp;
mod wire;

pub use batch::{Batch, BatchHeader, Compression};
pub use batch_builder::BatchBuilder;
pub use error::{
    BatchError, FrameError, HashKeyError, NameError, RecordError, RecordFault, TimestampError,
};
pub use frame::{FRAME_HEADER_BYTES, Frame, FrameHeader, Frames};
pub use hash_key::{HashKey, HashRange};
pub use hash_key_cache::HashKeyCache;
pub use name::{DeliveryName, GroupName, MemberName, StreamName};
pub use number::{
    DeliveryId, Durability, ProducerId, ProducerSequence, SequenceNumber, ShardEpoch, ShardId,
    ShardIndex, StreamId, StreamIncarnation,
};
pub use record::{Header, Record, RecordLimits};
pub use records::{RecordRef, Records};
pub use timestamp::Timestamp;
