//! Development only: what a node promises, under faults, on a simulated clock, from a seed.
//!
//! **Consumer groups** ([`run`]): a broker with one stream and one group, whose coordinator and log are
//! the real ones, on storage that loses what was not synced; members that work as the real client does,
//! crash, pause beyond their session timeout, lose their sessions, drain too slowly, leave and come
//! back; shards that split and merge while records are appended, and expire, read or not; resets,
//! deletion, and requests that make no sense. Every message is delayed; the wall clock jumps. [`Broken`] rules show that the checks can fail.
//!
//! **Whole nodes** ([`live`]): the real broker and sink on the in-memory disk and a store in memory,
//! run by one thread that draws what goes on next. Operators, producers, readers, members and delivery
//! streams do what is drawn by weight; the process is killed, the power cut, the disk fills, fails and
//! rots, the wall clock is wrong, days pass. A plain model knows what may be answered. `mutations/`
//! shows that it can find what it is for.
//!
//! Equal seeds give equal runs. A run ends with the first broken promise; after a while faults end, and
//! everything has to come to rest.
//!
//! | File | Purpose |
//! |---|---|
//! | `random` | the dice |
//! | `stream`, `member`, `broker`, `oracle`, `world/*` | consumer groups by themselves |
//! | `executor` | the world of a whole node: one thread, an ordered set, virtual time |
//! | `life`, `life/driver`, `life/trace` | a life, how its processes are run, what is written down |
//! | `life/operations`, `grouping`, `delivering`, `faults` | what is done to a node |
//! | `life/producer`, `reading`, `member`, `admin` | what clients do, and what they have to be answered |
//! | `life/model/*`, `life/allowed` | what is known, what may be gone, what may be refused |
#![forbid(unsafe_code)]

mod broker;
mod executor;
mod life;
mod member;
mod oracle;
mod random;
mod stream;
mod world;

pub use life::{KINDS, LifeFailure, LifeOptions, LifeReport, live};
pub use oracle::Violation;
pub use world::{Broken, Report, run};
