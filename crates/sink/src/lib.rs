//! Delivery streams: cut, transform, encode, write objects, commit.
//!
//! A delivery stream reads a stream of the node, gathers records until a **cut** is full or old, makes
//! the cut durable, writes its objects create-if-absent under keys that derive from it, then a
//! manifest, then moves on. After any crash the same cut is finished: each record is once in what the
//! manifests name. It refuses to know how records arrive and are stored, and every protocol but that
//! of object stores.
//!
//! | file | purpose |
//! |---|---|
//! | `encode/*` | rows as the bytes of an object: admission, JSON lines, Parquet, compression |
//! | `unit` | one record on its way, and why it may not arrive |
//! | `process/*` | taking records apart; filter, map and partition keys |
//! | `jq/*` | jq filters within bounds |
//! | `transform/*` | the HTTP transform |
//! | `object_key/*` | the names of objects |
//! | `error_record` | what is left of a record that failed |
//! | `refused` | settings that cannot be done |
#![forbid(unsafe_code)]

mod active;
mod bundle;
mod commit;
mod config;
mod cut;
mod encode;
mod error_record;
mod filling;
mod gather;
mod jq;
mod kept;
mod lineage;
mod manifest;
mod object_key;
mod process;
mod progress;
mod reading;
mod refused;
mod reporter;
mod retry;
mod rows;
mod runner;
mod shared;
mod sink;
mod spool;
mod store;
mod transform;
mod trouble;
mod unit;

pub use encode::{Admission, Encoded, Encoder, Encoding, RowRefused, Schema, SchemaInvalid};
pub use config::SinkConfig;
pub use cut::Incarnation;
pub use sink::Sink;
pub use store::{Destinations, RealDestinations, Store, StoreConfig, StoreError};
