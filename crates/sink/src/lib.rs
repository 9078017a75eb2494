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
//! | `store` | object stores: create if absent, and what is promised |
//! | `spool` | files of a delivery stream on their way into a store |
//! | `fault` | a store that fails by a schedule; for tests |
//! | `unit` | one record on its way, and why it may not arrive |
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "test-util"))]
pub mod fault;
mod spool;
mod store;
mod unit;

pub use store::{
    CredentialError, Destinations, Found, PutPayload, RealDestinations, Store, StoreConfig,
    StoreError, Stored, Tag,
};
