//! Which refusals are legal, and when.

use flumen_broker::Error;
use flumen_record::StreamId;

use crate::life::model::{Change, Checked, Model};
use crate::life::reading::Target;

impl Model {
    /// Whether a stream may be gone by now, or be there already.
    pub(crate) fn is_unsettled(&self, id: StreamId) -> bool {
        match self.streams.get(&id) {
            None => true,
            Some(stream) => {
                stream.is_deleted || matches!(stream.pending, Some(Change::Delete | Change::Create))
            }
        }
    }

    /// Whether a shard may not be there.
    pub(crate) fn may_be_gone(&self, target: &Target) -> bool {
        let Some(stream) = self.streams.get(&target.id) else {
            return true;
        };
        let shard = stream.shards.get(&target.shard);
        self.is_unsettled(target.id) || shard.is_none_or(|shard| !shard.is_open())
    }

    /// Whether anything may be refused so, whatever was asked.
    pub(crate) fn allows(&self, error: &Error) -> bool {
        match error {
            Error::Draining => self.is_ending,
            Error::StreamNotFound { stream } => self
                .stream(stream)
                .is_none_or(|it| self.is_unsettled(it.id)),
            Error::StorageFull { .. }
            | Error::Io { .. }
            | Error::Poisoned
            | Error::OutcomeUnknown
            | Error::DiskStuck { .. }
            | Error::QueueFull { .. }
            | Error::GroupsFailed
            | Error::DeliveriesFailed
            | Error::Catalog { .. } => self.is_failing || self.is_dying,
            _ => false,
        }
    }

    /// Whether a batch or a put record may be refused so.
    pub(crate) fn allows_append(&self, id: StreamId, error: &Error) -> bool {
        if self.allows(error) {
            return true;
        }
        let stream = self.streams.get(&id);
        match error {
            Error::StreamNotFound { .. }
            | Error::ShardNotFound { .. }
            // Sent again after more than is remembered of a producer.
            | Error::AlreadyAppended { .. } => true,
            Error::ShardClosed { .. } | Error::WrongShard { .. } => true,
            // What came before it in its session was refused.
            Error::OutOfSequence { .. } | Error::ProducerStateLost { .. } => {
                self.is_failing || self.is_dying || stream.is_none_or(|it| it.may_jump)
            }
            _ => false,
        }
    }

    /// Records that are damaged, and said to be.
    pub(crate) fn see_loss(&mut self, target: &Target, from: u64, to: u64) -> Checked {
        let Some(stream) = self.streams.get_mut(&target.id) else {
            return Ok(());
        };
        stream.may_jump = true;
        let shard = stream.shard_mut(target.shard);
        shard.damage.push((from, to));
        let lost: Vec<u64> = shard.numbers.range(from..to).map(|(at, _)| *at).collect();
        for number in lost {
            let stream = self.streams.get_mut(&target.id);
            let Some(shard) = stream.map(|it| it.shard_mut(target.shard)) else {
                continue;
            };
            shard.lost.insert(number);
            let record = shard.numbers.get(&number).map(|(id, _)| *id);
            if let Some(record) = record.and_then(|id| self.record_mut(id)) {
                record.lost = true;
            }
        }
        Ok(())
    }
}
