//! What can go wrong with consumer groups.

use flumen_log::{OpenError, ReadError, SyncError, WriteError};
use flumen_record::{GroupName, MemberName, RecordError, SequenceNumber, ShardIndex, StreamId};
use thiserror::Error;

use super::{Checkpoint, Generation};

/// Why a request was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GroupError {
    /// No such stream, or its shards are not known yet.
    #[error("stream number {stream} does not exist")]
    NoStream {
        /// The stream asked for.
        stream: StreamId,
    },
    /// The stream has no group of this name.
    #[error("group {group} does not exist: it comes into being with its first member")]
    NotFound {
        /// The name asked for.
        group: GroupName,
    },
    /// The stream has no such shard; it may have expired.
    #[error("shard {shard} does not exist, or has expired")]
    NoShard {
        /// The shard asked for.
        shard: ShardIndex,
    },
    /// A value outside its bounds.
    #[error("{setting} is {value}, allowed is {min} to {max}")]
    OutOfBounds {
        /// What, as users write it.
        setting: &'static str,
        /// What was asked.
        value: u64,
        /// Least allowed.
        min: u64,
        /// Most allowed.
        max: u64,
    },
    /// The session is that of a member already.
    #[error("the session has joined as {member} already: open another one")]
    SessionInUse {
        /// The member.
        member: MemberName,
    },
    /// A reset of shards that members hold.
    #[error("shard {shard} is held by {member}: end the members first, or force the reset")]
    Held {
        /// The first such shard.
        shard: ShardIndex,
        /// Who holds it.
        member: MemberName,
    },
    /// A group with members was to be deleted.
    #[error("group {group} has members ({members}): end them first, or force the deletion")]
    HasMembers {
        /// The group.
        group: GroupName,
        /// How many.
        members: usize,
    },
    /// A position beyond the end of a shard.
    #[error(
        "{asked} is beyond the end of shard {shard}, which is {end}: nothing further was given out"
    )]
    Beyond {
        /// The shard.
        shard: ShardIndex,
        /// What was asked.
        asked: Checkpoint,
        /// First number that the shard has not given out.
        end: SequenceNumber,
    },
}

/// Why one checkpoint or release of several was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CheckpointError {
    /// The lease is another's now, or nobody's: stop processing this shard.
    #[error("generation {asked} of shard {shard} is over, the current one is {current}")]
    Stale {
        /// The shard.
        shard: ShardIndex,
        /// What was named.
        asked: Generation,
        /// What is current; 0: nobody holds the shard.
        current: Generation,
    },
    /// A checkpoint without a generation for a shard that a member holds.
    #[error("shard {shard} is held by {member}: only that member sets its checkpoint")]
    Held {
        /// The shard.
        shard: ShardIndex,
        /// Who holds it.
        member: MemberName,
    },
    /// Below what is processed already: only a reset goes back.
    #[error("{asked} is behind the checkpoint {current} of shard {shard}: reset to go back")]
    Behind {
        /// The shard.
        shard: ShardIndex,
        /// What was asked.
        asked: Checkpoint,
        /// What stands.
        current: Checkpoint,
    },
    /// Beyond the end of the shard.
    #[error(
        "{asked} is beyond the end of shard {shard}, which is {end}: nothing further was given out"
    )]
    Beyond {
        /// The shard.
        shard: ShardIndex,
        /// What was asked.
        asked: Checkpoint,
        /// First number that the shard has not given out.
        end: SequenceNumber,
    },
    /// The stream has no such shard; it may have expired.
    #[error("shard {shard} does not exist, or has expired")]
    NoShard {
        /// The shard.
        shard: ShardIndex,
    },
}

/// Why the groups' log failed.
#[derive(Debug, Error)]
pub enum GroupLogError {
    /// A record that is not one, is of an unknown version, or does not follow from those before.
    #[error("group record {record}: {reason}")]
    Damaged {
        /// Its number, from 1.
        record: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The log does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The step was not written: the same step may be committed again.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Whether the step was written is unknown: the coordinator must not be used any more.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The records cannot be read.
    #[error("the groups' log cannot be read: {0}; run `flumen doctor`")]
    Read(#[from] ReadError),
    /// A change that is larger than a record may be.
    #[error("the change does not fit into a record: {0}")]
    Record(#[from] RecordError),
}
