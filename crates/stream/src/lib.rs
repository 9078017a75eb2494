//! What a stream means: shards, hash ranges, resharding, start positions, producers' sequences,
//! quotas, retention decisions, the catalog, consumer groups, delivery streams.
//!
//! Synchronous; `now` is an argument; its only I/O is the log handed to it. It refuses to know
//! threads, sockets and status codes.
#![forbid(unsafe_code)]

mod admission;
pub mod auto_scale;
mod catalog;
mod config;
pub mod delivery;
mod error;
pub mod group;
mod quota;
mod remembered;
pub mod reshard;
pub mod retention;
mod salvage;
mod shard;
mod start_position;
mod varint;

pub use admission::{Admission, Refusal};
pub use auto_scale::{AutoScale, AutoScaleChange, AutoScaleUpdate};
pub use catalog::{
    Catalog, Move, NewStream, ShardInfo, ShardState, StreamInfo, StreamSettings, StreamUpdate,
    Vouched,
};
pub use config::StreamConfig;
pub use error::CatalogError;
pub use remembered::RememberedMoment;
pub use reshard::{Reshard, ReshardError};
pub use salvage::LostRecords;
pub use shard::Shard;
pub use start_position::{Start, StartPosition};
