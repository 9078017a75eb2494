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
//! | `unit` | one record on its way, and why it may not arrive |
//! | `process/*` | taking records apart; filter, map and partition keys |
//! | `jq/*` | jq filters within bounds |
//! | `transform/*` | the HTTP transform |
//! | `object_key/*` | the names of objects |
//! | `error_record` | what is left of a record that failed |
//! | `refused` | settings that cannot be done |
#![forbid(unsafe_code)]

mod error_record;
mod jq;
mod object_key;
mod process;
mod refused;
mod transform;
mod unit;
