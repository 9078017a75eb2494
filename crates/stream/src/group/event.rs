//! What the coordinator is told, and what it answers.

use std::time::Duration;

use flumen_record::{SequenceNumber, ShardIndex, StreamId, Timestamp};

use super::{
    Checkpoint, CheckpointError, Generation, GroupChange, GroupError, GroupName, GroupNumber,
    InstanceId, LeaseWatch, MemberName, ReadFrom, SessionId,
};

/// Where a group begins in shards that it has no checkpoint for. Decided by its first member.
/// Children of a later split or merge are read from their first record in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitialPosition {
    /// At the oldest record kept.
    TrimHorizon,
    /// At what arrives after the group came into being.
    Latest,
    /// At the first record that arrived at or after this time.
    AtTimestamp(Timestamp),
}

/// What is known of one shard of a stream. One that is not listed has expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardFacts {
    /// Its index.
    pub shard: ShardIndex,
    /// The shards it was split or merged from, also those that have expired.
    pub parents: Vec<ShardIndex>,
    /// If it is closed: the first number it never gave out.
    pub end: Option<SequenceNumber>,
}

/// A member opens its session.
#[derive(Debug, Clone)]
pub struct Join {
    /// The RPC it is told everything on.
    pub session: SessionId,
    /// The group's stream, whose shards must be known.
    pub stream: StreamId,
    /// The group, which comes into being if it does not exist.
    pub group: GroupName,
    /// The member's name.
    pub member: MemberName,
    /// Its process: the same one keeps its leases, another one takes its place.
    pub instance: InstanceId,
    /// How long it may be silent. `None`: the default.
    pub session_timeout: Option<Duration>,
    /// Where a new group begins.
    pub start: InitialPosition,
    /// If it begins at a time: where that lies in each shard there was, looked up by the caller. A group
    /// that is not there does not come into being without.
    pub begins: Option<Vec<(ShardIndex, SequenceNumber)>>,
}

/// Names a request in its answer; numbered by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One checkpoint among several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointItem {
    /// The shard.
    pub shard: ShardIndex,
    /// The lease under which it was processed. `None`: no member's, allowed while nobody holds
    /// the shard.
    pub generation: Option<Generation>,
    /// How far.
    pub checkpoint: Checkpoint,
    /// Ranges before it, since the last one, that were gone before the member could read them: each
    /// from its first number to the first that is not in it. One that was counted before is not again.
    pub skipped: Vec<(SequenceNumber, SequenceNumber)>,
}

/// Sets checkpoints, also back.
#[derive(Debug, Clone)]
pub struct Reset {
    /// Which shards, and where to; the caller has resolved times and ends to numbers.
    pub shards: Vec<(ShardIndex, Checkpoint)>,
    /// Ends leases that are in the way, instead of refusing.
    pub force: bool,
    /// Only says what it would do.
    pub dry_run: bool,
}

/// What is asked of a group and answered with [`Effect::Answered`].
#[derive(Debug, Clone)]
pub enum Request {
    /// Sets checkpoints, each accepted or refused on its own. The group comes into being if only
    /// items without a generation are given.
    Checkpoint {
        /// The member's session, if it has one: it counts as a sign of life.
        session: Option<SessionId>,
        /// The checkpoints.
        items: Vec<CheckpointItem>,
    },
    /// Sets checkpoints, also back. The group comes into being if it does not exist.
    Reset(Reset),
    /// Deletes the group and its checkpoints.
    Delete {
        /// Also while it has members, which are told.
        force: bool,
    },
}

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A member opens its session.
    Join(Join),
    /// A sign of life.
    Heartbeat {
        /// From whom.
        session: SessionId,
        /// Repeated in the answer: the member counts its timeout from when it *sent* the last
        /// one that was answered.
        beat: u64,
    },
    /// A member gives leases back, drained and checkpointed.
    Release {
        /// From whom.
        session: SessionId,
        /// Shards and the generations they were held under. Stale ones are ignored.
        leases: Vec<(ShardIndex, Generation)>,
    },
    /// A member ends in order: it has stopped and checkpointed; its leases go on at once.
    Leave {
        /// Whose.
        session: SessionId,
    },
    /// The RPC broke: the member keeps its leases until its session timeout.
    SessionLost {
        /// Which.
        session: SessionId,
    },
    /// Something is asked of a group.
    Request {
        /// Repeated in the answer.
        id: RequestId,
        /// The group's stream.
        stream: StreamId,
        /// The group.
        group: GroupName,
        /// What.
        request: Request,
    },
    /// All shards of a stream, as they are now; also once per stream after a restart.
    ShardsChanged {
        /// The stream.
        stream: StreamId,
        /// All that are not expired.
        shards: Vec<ShardFacts>,
    },
    /// A stream was deleted durably: so are its groups.
    StreamDeleted {
        /// Which.
        stream: StreamId,
    },
    /// Where the time at which a group begins lies in shards that it has not begun, looked up by the
    /// caller. Only of groups from before that was written down as they came into being.
    Began {
        /// The group.
        group: GroupNumber,
        /// What was found.
        begins: Vec<(ShardIndex, SequenceNumber)>,
    },
    /// How much is read from, or written to, shards.
    LoadObserved {
        /// The stream.
        stream: StreamId,
        /// Bytes per second since the last time.
        loads: Vec<(ShardIndex, u64)>,
    },
}

/// A lease as its member is told of it.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The shard.
    pub shard: ShardIndex,
    /// What checkpoints, releases and reads under it name.
    pub generation: Generation,
    /// Where to begin.
    pub from: ReadFrom,
    /// What is processed, if anything is.
    pub checkpoint: Option<Checkpoint>,
    /// Records that expired before it, and that no lease before this one was told of. `None`: not
    /// known.
    pub expired: Option<u64>,
    /// If the shard is closed: where it ends, which is the checkpoint that finishes it.
    pub end: Option<SequenceNumber>,
    /// Tells readers when the lease is over, without asking.
    pub watch: LeaseWatch,
    /// The lease is revoked already, and will be taken at this time on the monotonic clock.
    pub revoked: Option<Duration>,
}

/// Why a lease ended without the member's doing. It stops processing the shard at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostReason {
    /// It was revoked and not released by the deadline: records may be processed twice.
    Forced,
    /// The group was reset.
    Reset,
    /// All records of the closed shard are processed.
    Finished,
    /// The shard has expired.
    Expired,
}

/// Why a session is over for its member. All its leases are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FencedReason {
    /// Another instance joined under its name.
    Replaced,
    /// The same instance opened another session, which has the leases now.
    Superseded,
    /// It was silent for its session timeout: join again.
    Silent,
    /// The session is nobody's: join again.
    NotMember,
    /// The group, or its stream, was deleted.
    Deleted,
}

/// What a reset does, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResetShard {
    /// The shard.
    pub shard: ShardIndex,
    /// Its checkpoint before.
    pub from: Option<Checkpoint>,
    /// Its checkpoint afterwards.
    pub to: Checkpoint,
}

/// What a reset did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResetReport {
    /// Every shard that was asked for.
    pub shards: Vec<ResetShard>,
    /// Leases that it ends: on these shards, and on shards that descend from one of them that is
    /// no longer finished.
    pub ended: Vec<(ShardIndex, MemberName)>,
    /// Whether it was done.
    pub applied: bool,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Of each item of a checkpoint, in order.
    Checkpoints(Vec<Result<(), CheckpointError>>),
    /// Of a reset.
    Reset(ResetReport),
    /// The group is deleted.
    Deleted,
}

/// What somebody is told, once the changes of its step are durable, in this order.
#[derive(Debug, Clone)]
pub enum Effect {
    /// The member is in; it has these leases from before.
    Joined {
        /// Its session.
        session: SessionId,
        /// How long it may be silent.
        session_timeout: Duration,
        /// What it holds, under the same generations as before.
        leases: Vec<Assignment>,
    },
    /// The member was not let in.
    Refused {
        /// Its session.
        session: SessionId,
        /// Why.
        error: GroupError,
    },
    /// The sign of life arrived.
    HeartbeatAnswered {
        /// Whose.
        session: SessionId,
        /// Which.
        beat: u64,
    },
    /// The member has a lease.
    Assigned {
        /// Whose.
        session: SessionId,
        /// The lease.
        lease: Assignment,
    },
    /// The member shall drain, checkpoint and release.
    Revoked {
        /// Whose.
        session: SessionId,
        /// The shard.
        shard: ShardIndex,
        /// The lease's generation.
        generation: Generation,
        /// When the lease will be taken, on the monotonic clock.
        deadline: Duration,
    },
    /// A lease is over without the member's doing.
    Lost {
        /// Whose.
        session: SessionId,
        /// The shard.
        shard: ShardIndex,
        /// The generation that is over.
        generation: Generation,
        /// Why.
        reason: LostReason,
    },
    /// The session is over, and with it all leases (but see [`FencedReason::Superseded`]).
    Fenced {
        /// Which.
        session: SessionId,
        /// Why.
        reason: FencedReason,
    },
    /// The member is out, its leases go on.
    Left {
        /// Its session.
        session: SessionId,
    },
    /// A request is answered.
    Answered {
        /// Which.
        id: RequestId,
        /// With what.
        answer: Result<Answer, GroupError>,
    },
}

/// What came of a step: changes to make durable together, then effects to send.
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// When it was decided, for the record: never before an earlier step.
    pub at: Timestamp,
    /// To be made durable, in this order, all or none.
    pub changes: Vec<GroupChange>,
    /// To be sent afterwards, in this order.
    pub effects: Vec<Effect>,
}
