//! Where groups begin, and what expires before they come to it.

use flumen_record::{SequenceNumber, ShardIndex, StreamId};

use super::Coordinator;
use crate::group::{
    CheckpointItem, GroupChange, GroupError, GroupName, GroupNumber, InitialPosition, ReadFrom,
    ShardBounds, records_between,
};

/// Where a group begins, by shard, and the first shard that is not among them.
type Begins = (Vec<(ShardIndex, SequenceNumber)>, ShardIndex);

impl Coordinator {
    /// Where a shard ends now: a closed one where it closed, an open one where readers do.
    pub(super) fn end_of(&self, stream: StreamId, shard: ShardIndex) -> Option<SequenceNumber> {
        let facts = self.streams.get(&stream)?.shards.get(&shard)?;
        let open = || Some(self.bounds.bounds(stream, shard)?.end);
        facts.end.or_else(open)
    }

    /// Where a shard stands now.
    fn bounds_of(&self, stream: StreamId, shard: ShardIndex) -> Option<ShardBounds> {
        let end = self.end_of(stream, shard)?;
        let bounds = self.bounds.bounds(stream, shard)?;
        Some(ShardBounds { end, ..bounds })
    }

    /// Where a new group begins in each shard that is there.
    pub(super) fn begins(
        &self,
        stream: StreamId,
        name: &GroupName,
        start: InitialPosition,
        found: Option<&[(ShardIndex, SequenceNumber)]>,
    ) -> Result<Begins, GroupError> {
        let missing = || GroupError::NoStream { stream };
        let known = self.streams.get(&stream).ok_or_else(missing)?;
        let found = match start {
            // It was there when the caller looked, and was deleted since.
            InitialPosition::AtTimestamp(_) => found.ok_or_else(|| GroupError::NotFound {
                group: name.clone(),
            })?,
            InitialPosition::TrimHorizon | InitialPosition::Latest => &[],
        };
        let place = |index: ShardIndex| found.binary_search_by_key(&index, |(of, _)| *of).ok();
        // What came since the caller looked is read from its first record.
        let last = match found.last() {
            Some((last, _)) => Some(*last),
            None => known.shards.last_key_value().map(|(last, _)| *last),
        };
        let first_new = last.map_or(0, |last| last.value().saturating_add(1));
        let first_new = ShardIndex::new(first_new);
        let mut begins = Vec::with_capacity(known.shards.len());
        for index in known.shards.keys().take_while(|index| **index < first_new) {
            let bounds = self.bounds_of(stream, *index).ok_or_else(missing)?;
            let at = match start {
                InitialPosition::Latest => bounds.end,
                InitialPosition::TrimHorizon => bounds.horizon,
                InitialPosition::AtTimestamp(_) => place(*index)
                    .and_then(|place| found.get(place))
                    .map_or(bounds.horizon, |(_, at)| {
                        (*at).clamp(bounds.horizon, bounds.end)
                    }),
            };
            begins.push((*index, at));
        }
        Ok((begins, first_new))
    }

    /// What expired before the group came to it is counted as the shard is given out, and its new
    /// holder begins behind it. `None`: it is not known how much that is.
    pub(super) fn count_expired(&mut self, group: GroupNumber, shard: ShardIndex) -> Option<u64> {
        let known = self.group(group);
        let (stream, from) = (known.stream, known.position(shard).from);
        let horizon = self.bounds_of(stream, shard)?.horizon;
        match from {
            ReadFrom::At(from) if from >= horizon => Some(0),
            ReadFrom::At(from) => {
                let records = records_between(from, horizon);
                self.change(GroupChange::ExpiredUnread {
                    group,
                    shard,
                    to: horizon,
                    records,
                });
                Some(records)
            }
            ReadFrom::TrimHorizon => {
                self.change(GroupChange::Began {
                    group,
                    shard,
                    position: horizon,
                });
                None
            }
            ReadFrom::AtTimestamp(_) => None,
        }
    }

    /// What a member had to skip on its way to a checkpoint is counted, once.
    pub(super) fn count_skipped(
        &mut self,
        group: GroupNumber,
        shard: ShardIndex,
        from: SequenceNumber,
        item: &CheckpointItem,
    ) {
        let to = item.checkpoint.next();
        let ranges = item.skipped.iter();
        let each = ranges.map(|(first, next)| records_between((*first).max(from), (*next).min(to)));
        let records = each.fold(0_u64, u64::saturating_add);
        let records = records.min(records_between(from, to));
        if records > 0 {
            self.change(GroupChange::ExpiredUnread {
                group,
                shard,
                to: from,
                records,
            });
        }
    }

    /// It was looked up where an old group begins.
    pub(super) fn began(&mut self, group: GroupNumber, begins: &[(ShardIndex, SequenceNumber)]) {
        for (shard, position) in begins {
            let Some(known) = self.state.groups.get(&group) else {
                return;
            };
            let is_there = self
                .streams
                .get(&known.stream)
                .is_some_and(|stream| stream.shards.contains_key(shard));
            if is_there && matches!(known.position(*shard).from, ReadFrom::AtTimestamp(_)) {
                self.change(GroupChange::Began {
                    group,
                    shard: *shard,
                    position: *position,
                });
            }
        }
    }
}
