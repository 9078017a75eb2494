//! Delivery streams from end to end: the real binary and its commands into real object stores, read
//! back with other people's programs. The servers are those of `servers.rs`.

mod credentials;
mod local;
mod node;
mod parquet;
mod promises;
mod reading;
mod recovery;
mod trouble;
