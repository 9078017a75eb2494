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
#![forbid(unsafe_code)]

mod encode;
mod unit;

pub use encode::{Admission, Encoded, Encoder, Encoding, RowRefused, Schema, SchemaInvalid};
