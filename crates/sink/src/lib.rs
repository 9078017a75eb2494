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
//! | `sink`, `runner` | all delivery streams of a node; the life of one |
//! | `active`, `gather`, `commit` | one at work: from the source into cuts, from cuts into the store |
//! | `cut`, `progress`, `lineage`, `retry` | what is decided, without waiting: cuts, where it stands, which shards, when again |
//! | `reading` | reading the source, and planned ranges once more |
//! | `filling/*`, `rows`, `kept` | one cut: rows by partition, objects; what is kept over a crash |
//! | `bundle` | one version of the settings, compiled |
//! | `process/*`, `jq/*`, `transform/*` | taking records apart, filter and map, the HTTP transform |
//! | `object_key/*` | the names of objects |
//! | `encode/*` | rows as the bytes of an object: admission, JSON lines, Parquet, compression |
//! | `manifest`, `sealing`, `error_record` | what a cut became, and whether it is what this state stands for; what is left of a record that failed |
//! | `read_back` | what manifests name, read again as any reader does |
//! | `spool/*` | files of a delivery stream on their way into a store |
//! | `store/*` | object stores: create if absent, and what is promised |
//! | `fault` | a store that fails by a schedule; for tests |
//! | `unit`, `trouble`, `reporter`, `shared`, `config` | one record on its way; what goes wrong; what is said; what is shared and set |
#![forbid(unsafe_code)]

mod active;
mod bundle;
mod commit;
mod config;
mod cut;
mod encode;
mod error_record;
#[cfg(any(test, feature = "test-util"))]
pub mod fault;
mod filling;
mod gather;
mod jq;
mod kept;
mod lineage;
mod manifest;
mod object_key;
mod process;
mod progress;
mod read_back;
mod reading;
mod reporter;
mod retry;
mod rows;
mod runner;
mod sealing;
mod shared;
mod sink;
mod spool;
mod store;
mod transform;
mod trouble;
mod unit;

pub use config::SinkConfig;
pub use cut::CutRange;
pub use encode::{Admission, Encoded, Encoder, Encoding, RowRefused, Schema, SchemaInvalid};
pub use manifest::{Manifest, ManifestObject};
pub use read_back::{Manifests, ReadBackError};
pub use sink::Sink;
pub use spool::{MemorySpools, SpoolFile, SpoolFiles};
pub use store::{
    CredentialError, Destinations, Found, PutPayload, RealDestinations, Store, StoreConfig,
    StoreError, Stored, Tag,
};
