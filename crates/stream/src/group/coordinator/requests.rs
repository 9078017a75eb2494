//! Checkpoints, resets, deletion: what is asked of a group and answered.

use std::collections::BTreeSet;

use flumen_record::{ShardIndex, StreamId};

use super::Coordinator;
use crate::group::{
    Answer, Checkpoint, CheckpointError, CheckpointItem, GroupChange, GroupError, GroupName,
    GroupNumber, InitialPosition, LostReason, ReadFrom, Request, Reset, ResetReport, ResetShard,
    SessionId,
};

impl Coordinator {
    pub(super) fn answer(
        &mut self,
        stream: StreamId,
        name: &GroupName,
        request: Request,
    ) -> Result<Answer, GroupError> {
        if !self.streams.contains_key(&stream) {
            return Err(GroupError::NoStream { stream });
        }
        match request {
            Request::Checkpoint { session, items } => {
                self.checkpoint(stream, name, session, &items)
            }
            Request::Reset(reset) => self.reset(stream, name, &reset).map(Answer::Reset),
            Request::Delete { force } => self.delete(stream, name, force),
        }
    }

    fn expect(&self, stream: StreamId, name: &GroupName) -> Result<GroupNumber, GroupError> {
        let found = self.state.find(stream, name);
        found.ok_or_else(|| GroupError::NotFound {
            group: name.clone(),
        })
    }

    fn checkpoint(
        &mut self,
        stream: StreamId,
        name: &GroupName,
        session: Option<SessionId>,
        items: &[CheckpointItem],
    ) -> Result<Answer, GroupError> {
        if let Some(session) = session {
            self.touch(session);
        }
        let is_plain = items.iter().all(|item| item.generation.is_none());
        let number = match self.state.find(stream, name) {
            None if is_plain && !items.is_empty() => {
                self.create(stream, name, InitialPosition::TrimHorizon, None)?
            }
            _ => self.expect(stream, name)?,
        };
        let answers = items.iter().map(|item| self.checkpoint_one(number, item));
        Ok(Answer::Checkpoints(answers.collect()))
    }

    fn checkpoint_one(
        &mut self,
        number: GroupNumber,
        item: &CheckpointItem,
    ) -> Result<(), CheckpointError> {
        let group = self.group(number);
        let (shard, asked) = (item.shard, item.checkpoint);
        let stream = self.streams.get(&group.stream);
        let facts = stream.and_then(|stream| stream.shards.get(&shard));
        let end = facts.ok_or(CheckpointError::NoShard { shard })?.end;
        let known = group.shards.get(&shard);
        let current = known.and_then(|known| known.checkpoint);
        let current = current.map(|(checkpoint, _)| checkpoint);
        // The answer to the checkpoint that ended the lease may have been lost, and it is asked
        // again: it changes nothing.
        let is_repeated_end = known.is_some_and(|known| {
            known.is_finished(end)
                && current == Some(asked)
                && item.generation == Some(known.generation)
        });
        if is_repeated_end {
            let holds = known.is_some_and(|known| known.holder.is_some());
            if holds {
                self.finish(number, shard);
            }
            return Ok(());
        }
        match (item.generation, group.holder_name(shard)) {
            (Some(asked), _) if known.is_none_or(|known| !known.is_held_under(asked)) => {
                return Err(CheckpointError::Stale {
                    shard,
                    asked,
                    current: known.map(|known| known.current()).unwrap_or_default(),
                });
            }
            (None, Some(member)) => {
                let member = member.clone();
                return Err(CheckpointError::Held { shard, member });
            }
            _ => {}
        }
        // Asked now: what was read before the checkpoint was said lies below it.
        let bound = self.end_of(group.stream, shard);
        let bound = bound.ok_or(CheckpointError::NoShard { shard })?;
        if asked.is_beyond(bound) {
            let end = bound;
            return Err(CheckpointError::Beyond { shard, asked, end });
        }
        let from = group.position(shard).from;
        let begun = match from {
            ReadFrom::At(from) => Some(Checkpoint::at(from)),
            ReadFrom::TrimHorizon | ReadFrom::AtTimestamp(_) => None,
        };
        if let Some(current) = current.max(begun).filter(|current| *current > asked) {
            return Err(CheckpointError::Behind {
                shard,
                asked,
                current,
            });
        }
        if let ReadFrom::At(from) = from {
            self.count_skipped(number, shard, from, item);
        }
        if current != Some(asked) {
            self.change(GroupChange::Checkpointed {
                group: number,
                shard,
                checkpoint: asked,
            });
        }
        if end.is_some_and(|end| asked.reaches(end)) {
            self.finish(number, shard);
        }
        Ok(())
    }

    /// The shard is processed to its end: the lease is over in good order, children may follow.
    fn finish(&mut self, number: GroupNumber, shard: ShardIndex) {
        let known = self.group(number).shards.get(&shard);
        if known.is_some_and(|known| known.holder.is_some()) {
            self.change(GroupChange::Freed {
                group: number,
                shard,
                forced: false,
            });
        }
        self.unbalanced.insert(number);
    }

    fn reset(
        &mut self,
        stream: StreamId,
        name: &GroupName,
        reset: &Reset,
    ) -> Result<ResetReport, GroupError> {
        let found = self.state.find(stream, name);
        let report = self.plan_reset(stream, found, reset)?;
        if let Some((shard, member)) = report.ended.first().filter(|_| !reset.force) {
            let (shard, member) = (*shard, member.clone());
            return Err(GroupError::Held { shard, member });
        }
        if reset.dry_run {
            return Ok(report);
        }
        let number = match found {
            Some(number) => number,
            None => self.create(stream, name, InitialPosition::TrimHorizon, None)?,
        };
        for (shard, _) in &report.ended {
            self.take_lease(number, *shard, LostReason::Reset);
        }
        for (shard, checkpoint) in &reset.shards {
            self.change(GroupChange::Checkpointed {
                group: number,
                shard: *shard,
                checkpoint: *checkpoint,
            });
        }
        self.unbalanced.insert(number);
        Ok(ResetReport {
            applied: true,
            ..report
        })
    }

    fn plan_reset(
        &self,
        stream: StreamId,
        group: Option<GroupNumber>,
        reset: &Reset,
    ) -> Result<ResetReport, GroupError> {
        let shards = self.streams.get(&stream).map(|stream| &stream.shards);
        let shards = shards.ok_or(GroupError::NoStream { stream })?;
        let group = group.map(|number| self.group(number));
        let mut report = ResetReport {
            shards: Vec::with_capacity(reset.shards.len()),
            ended: Vec::new(),
            applied: false,
        };
        let mut unfinished = BTreeSet::new();
        let mut affected = BTreeSet::new();
        for (shard, to) in &reset.shards {
            let (shard, to) = (*shard, *to);
            let facts = shards.get(&shard).ok_or(GroupError::NoShard { shard })?;
            let end = self.end_of(stream, shard);
            let end = end.ok_or(GroupError::NoShard { shard })?;
            if to.is_beyond(end) {
                let asked = to;
                return Err(GroupError::Beyond { shard, asked, end });
            }
            if facts.end.is_some_and(|end| !to.reaches(end)) {
                unfinished.insert(shard);
            }
            affected.insert(shard);
            let from = group.and_then(|group| group.shards.get(&shard)?.checkpoint);
            let from = from.map(|(checkpoint, _): (Checkpoint, _)| checkpoint);
            report.shards.push(ResetShard { shard, from, to });
        }
        // Children have higher indexes than their parents: one pass finds all descendants.
        for (shard, facts) in shards {
            if facts
                .parents
                .iter()
                .any(|parent| unfinished.contains(parent))
            {
                unfinished.insert(*shard);
                affected.insert(*shard);
            }
        }
        let held = affected.into_iter().filter_map(|shard| {
            let holder = group?.holder_name(shard)?;
            Some((shard, holder.clone()))
        });
        report.ended = held.collect();
        Ok(report)
    }

    fn delete(
        &mut self,
        stream: StreamId,
        name: &GroupName,
        force: bool,
    ) -> Result<Answer, GroupError> {
        let number = self.expect(stream, name)?;
        let members = self.group(number).members.len();
        if members > 0 && !force {
            let group = name.clone();
            return Err(GroupError::HasMembers { group, members });
        }
        self.remove_group(number);
        Ok(Answer::Deleted)
    }
}
