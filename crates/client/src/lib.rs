//! The Rust producer and consumer of Flumen: batching, shard routing, compression, retry, resume.
//!
//! [`Client`] is one TCP connection with the administrative calls on it. [`Producer`] sends records:
//! it gathers them into batches per shard, keeps its memory bounded, and stores every record once
//! and in order, across broken connections and restarts of the broker. [`Consumer`] reads the shards
//! of a stream and goes on exactly where it was. [`GroupConsumer`] shares them with the other members
//! of a consumer group, and never skips what its handler could not process. [`AppendSession`] is the wire below the producer:
//! encoded batches out, acks in, nothing retried.
//!
//! What decides (`producer/shard_queue.rs`, `producer/routing.rs`, `consumer/cursor.rs`, `retry.rs`)
//! is pure and tested with tables; what waits is thin. Nothing here knows the broker's insides.
//!
//! | file | purpose |
//! |---|---|
//! | `client`, `admin`, `description` | the connection, administrative calls, what they return |
//! | `delivery` | delivery streams: their settings, how they do, what is done to them |
//! | `append` | one `Append` session: encoded batches and acks |
//! | `producer/*` | records → batches → acks |
//! | `consumer/*` | positions, subscriptions, records |
//! | `group/*` | a member of a consumer group: leases, handlers, checkpoints |
//! | `retry`, `error`, `config` | when to try again, what went wrong, every limit |
#![forbid(unsafe_code)]

mod admin;
mod append;
mod auto_scale;
mod client;
mod config;
mod consumer;
pub mod delivery;
mod description;
mod error;
mod group;
mod producer;
mod put;
mod retry;

pub use append::{Ack, AckReceiver, Acks, AppendSender, AppendSession, Stored};
pub use auto_scale::{AutoScale, AutoScaleUpdate};
pub use client::Client;
pub use config::{ClientConfig, ConsumerConfig, GapPolicy, ProducerConfig, ReadUntil};
pub use consumer::{
    ConsumedBatch, ConsumedRecord, ConsumedRecords, Consumer, ConsumerStats, MalformedRecord,
    ReadBudget, ReadReply, StartPosition,
};
pub use description::{NewStream, ShardDescription, StreamDescription, StreamUpdate};
pub use error::{Code, ConsumeError, Error, SendError, reason};
pub use flumen_record::{
    Compression, DeliveryName, Durability, GroupName, HashKey, Header, MemberName, Record,
    ShardIndex, StreamIncarnation, StreamName,
};
pub use group::{
    FailurePolicy, GiveUp, GroupBatch, GroupConfig, GroupConsumer, GroupDescription, GroupEvent,
    GroupStats, GroupSummary, Handler, HandlerError, Lag, MemberDescription, ResetScope,
    ShardLease, ShardProgress, ShardReset,
};
pub use producer::{Delivered, Delivery, Producer, ProducerStats, Receipt};
pub use put::PutOutcome;
pub use retry::{Backoff, RetryPolicy};
