//! Consumer groups: who reads which shard, how far they came, and who may say so.
//!
//! Synchronous, as the whole crate: [`Coordinator::step`] takes events and the time, and answers
//! with a [`Step`]: *changes* to be made durable by [`GroupLog::commit`], and *effects*, which are
//! sent only once they are. The reasons stand in `docs/decisions/0002-consumer-groups.md`, the
//! bytes in `docs/format.md`, "Group records".
//!
//! - What a change does is written once ([`Coordinator`] and recovery run the same code), so that
//!   what is in memory is what the log adds up to.
//! - A generation is never granted twice, not even by a group that was deleted and made anew.
//! - Time is monotonic (`now`); the wall clock (`at`) is only remembered and shown.
//!
//! | File | Purpose |
//! |---|---|
//! | `name` | names, numbers, checkpoints |
//! | `bounds` | where shards stand, and what of them expired unread |
//! | `event` | what the coordinator is told, and what it answers |
//! | `state`, `change/*` | what the durable changes add up to; their bytes |
//! | `shards` | the shards of streams, as they are |
//! | `coordinator/*` | the decisions |
//! | `strategy` | who should have which shard |
//! | `query` | what can be asked without deciding anything |
//! | `group_log` | the log that changes and snapshots lie in |

mod bounds;
mod change;
mod config;
mod coordinator;
mod error;
mod event;
mod group_log;
mod name;
mod query;
mod shards;
mod state;
mod strategy;
#[cfg(test)]
mod tests;

pub use bounds::{BoundsOf, Expired, ReadFrom, ShardBounds, ShardPosition, records_between};
pub use change::GroupChange;
pub use config::GroupConfig;
pub use coordinator::Coordinator;
pub use error::{CheckpointError, GroupError, GroupLogError};
pub use event::{
    Answer, Assignment, CheckpointItem, Effect, Event, FencedReason, InitialPosition, Join,
    LostReason, Request, RequestId, Reset, ResetReport, ResetShard, ShardFacts, Step,
};
pub use flumen_record::{GroupName, MemberName};
pub use group_log::GroupLog;
pub use name::{Checkpoint, Generation, GroupNumber, InstanceId, MemberNumber, SessionId};
pub use query::{
    GroupDescription, GroupPositions, GroupSummary, MemberDescription, ShardDescription,
};
pub use state::LeaseWatch;
pub use strategy::{Balanced, ShardLoad, Strategy};
