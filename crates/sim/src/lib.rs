//! Development only: consumer groups, resharding and faults on a simulated clock, from a seed.
//!
//! A broker with one stream and one group, whose coordinator and log are the real ones, on storage
//! that loses what was not synced; members that work as the real client does, crash, pause beyond
//! their session timeout, lose their sessions, drain too slowly, leave and come back; shards that
//! split and merge while records are appended, and expire, read or not; resets, deletion, and requests
//! that make no sense. Every message is delayed; the wall clock jumps.
//! After a while the faults end, and everything has to come to rest.
//!
//! Equal seeds give equal runs. A run ends with the first [`Violation`] of a promise
//! (`docs/decisions/0002-consumer-groups.md`). [`Broken`] rules show that the checks can fail.
//!
//! | File | Purpose |
//! |---|---|
//! | `random` | the dice |
//! | `stream` | shards and their records |
//! | `member` | what a client does |
//! | `broker` | the coordinator, its log, sessions, restarts |
//! | `oracle` | what must be true |
//! | `world`, `world/rounds` | all of them, tick by tick; the broker's rounds and their checks |
//! | `world/asking` | what is asked from outside |
#![forbid(unsafe_code)]

mod broker;
mod member;
mod oracle;
mod random;
mod stream;
mod world;

pub use oracle::Violation;
pub use world::{Broken, Report, run};
