//! Numbers that may have been given out, and records that may have been acknowledged, where a log
//! knows nothing of them (any more).

use std::collections::HashMap;
use std::sync::Arc;

use flumen_log::ShardRecovery;
use flumen_record::{SequenceNumber, ShardId, ShardIndex, Timestamp};
use flumen_stream::{Shard, ShardInfo, ShardState, StreamInfo};

use super::recover::{RecoveredShard, home};
use crate::BrokerConfig;
use crate::tail::Tail;

/// How far a shard of a `memory` log resumes above where it was when numbers may have been lost.
pub(super) const JUMP: u64 = 1 << 32;
/// The same of a log that may be an older copy, or made anew: it may have jumped as often as it was
/// opened.
pub(super) const FAR_JUMP: u64 = 1 << 48;

/// What opening one log found.
pub(super) struct Found {
    /// When its newest round was written.
    pub(super) written: Timestamp,
    pub(super) clean: bool,
    pub(super) complete: bool,
    pub(super) shards: HashMap<ShardId, ShardRecovery>,
    /// Of a shard that was there then and is not among them, records may be hidden by damage.
    pub(super) hidden_until: Option<Timestamp>,
    /// It may be less than it was, and is taken as it is.
    pub(super) loss_accepted: bool,
}

impl Found {
    /// Whether records of a shard that was there at `opened` are missing without a trace.
    pub(super) fn may_have_lost(&self, shard: &ShardInfo, opened: Option<Timestamp>) -> bool {
        let hidden = match (self.hidden_until, opened) {
            (Some(until), Some(opened)) => opened <= until,
            (Some(_), None) => true,
            (None, _) => false,
        };
        self.loss_accepted || (hidden && !self.shards.contains_key(&shard.id))
    }
}

/// Numbers that may have been given out in a log that knows nothing of the shard any more.
pub(super) struct Jump {
    pub(super) from: SequenceNumber,
    pub(super) to: SequenceNumber,
    /// Records may have been among them that were acknowledged for good.
    pub(super) lost: bool,
}

/// First number of a shard in the log that takes its appends.
pub(super) fn first_here(info: &ShardInfo) -> SequenceNumber {
    info.stays.last().from()
}

/// When a shard opened, as far as that is known.
pub(super) fn opened(stream: &StreamInfo, shard: &ShardInfo) -> Option<Timestamp> {
    let closed = |parent: &ShardIndex| match stream.shard(*parent)?.state {
        ShardState::Closed { at, .. } => Some(at),
        ShardState::Open => None,
    };
    match &shard.parents[..] {
        [] => Some(stream.created),
        parents => parents.iter().map(closed).max().flatten(),
    }
}

/// A shard whose log did not open: where it stands nobody knows. It takes no appends.
pub(super) fn not_served(info: &ShardInfo, config: &BrokerConfig) -> RecoveredShard {
    let end = match info.state {
        ShardState::Open => first_here(info),
        ShardState::Closed { end, .. } => end,
    };
    RecoveredShard {
        shard: Shard::new(info.id, info.range, &config.stream),
        tail: Arc::new(Tail::new(end)),
        home: home(info),
    }
}
