//! The broker's part of a tick, and what is checked of it.

use std::collections::BTreeMap;

use flumen_stream::group::{
    Answer, Checkpoint, Effect, Event, FencedReason, GroupChange, MemberName, MemberNumber,
    ReadFrom, Request, Step,
};

use super::{Broken, FAIL_OVER, STREAM, TIMEOUT, World, group};
use crate::broker::{Outcome, session_of, shards};
use crate::oracle::Checked;

impl World {
    pub(super) fn run_broker(&mut self) -> Checked {
        if self.broker.coordinator().is_none() {
            if self.now < self.broker.up_at {
                return Ok(());
            }
            if let Some(settled) = self.broker.open(self.now, self.wall())? {
                self.durable(&settled, None)?;
            }
            self.check_recovered()?;
            // Sessions end with the process they were opened to, also those whose members have not
            // noticed and go on talking.
            self.joined.clear();
            self.shards_changed = true;
        }
        // Now and then more than one tick's events are one step.
        if self.dice.once_in(3) && !self.broker.is_due(self.now) {
            return Ok(());
        }
        let mut events = Vec::new();
        if std::mem::take(&mut self.shards_changed) {
            events.push(shards(&self.stream, self.broken));
        }
        if self.has_faults() {
            events.extend(self.ask());
        }
        for (member, event) in self.broker.arrived(self.now) {
            self.hear(member, &event);
            events.push(self.bend(event));
        }
        if self.dice.once_in(500) {
            events.push(self.observe());
        }
        if self.broken == Some(Broken::ForgetsTimeouts) && events.is_empty() {
            return self.check_fail_over();
        }
        if events.is_empty() && !self.broker.is_due(self.now) {
            return Ok(());
        }
        let crash = (self.has_faults() && self.dice.once_in(200)).then(|| self.dice.below(3));
        let (now, wall) = (self.now, self.wall());
        let outcome = self.broker.step(now, wall, events, crash, &mut self.dice)?;
        match outcome {
            None => Ok(()),
            Some(Outcome::Crashed(step)) => self.durable(&step, None),
            Some(Outcome::Told(step)) => {
                if let Some(booted_at) = self.broker.booted_at() {
                    self.durable(&step, Some(booted_at))?;
                }
                self.tell(step)?;
                self.check_fail_over()?;
                self.check_assigned()
            }
        }
    }

    /// A sign of life counts on the session that its member joined on last.
    fn hear(&mut self, member: usize, event: &Event) {
        let Some(name) = self.members.get(member).map(|member| &member.name) else {
            return;
        };
        let session = match event {
            Event::Join(join) => {
                self.joined.insert(name.clone(), join.session);
                Some(join.session)
            }
            Event::Heartbeat { session, .. } | Event::Release { session, .. } => Some(*session),
            Event::Request {
                request: Request::Checkpoint { session, .. },
                ..
            } => *session,
            _ => None,
        };
        if session.is_some() && self.joined.get(name) == session.as_ref() {
            self.heard.insert(name.clone(), self.now);
        }
    }

    /// A broken broker looks at an event otherwise than it should.
    fn bend(&self, mut event: Event) -> Event {
        if let Event::Request {
            request: Request::Checkpoint { items, .. },
            ..
        } = &mut event
            && self.broken == Some(Broken::IgnoresGenerations)
        {
            for item in items {
                let current = self.leases.get(&item.shard);
                item.generation = current.map_or(item.generation, |(_, current)| Some(*current));
            }
        }
        event
    }

    fn observe(&mut self) -> Event {
        let loads = self.stream.shards.iter().map(|shard| shard.index);
        let loads: Vec<_> = loads
            .map(|shard| (shard, self.dice.below(4) * self.dice.below(1 << 20)))
            .collect();
        Event::LoadObserved {
            stream: STREAM,
            loads,
        }
    }

    /// What the log adds up to is what was accepted.
    fn check_recovered(&mut self) -> Checked {
        let Some(coordinator) = self.broker.coordinator() else {
            return Ok(());
        };
        let group = group();
        let found = coordinator.checkpoints(STREAM, &group);
        let found: BTreeMap<_, _> = found
            .map(|(shard, checkpoint, _)| (shard, checkpoint))
            .collect();
        for shard in &self.stream.shards {
            let expected = self.oracle.checkpoint(shard.index);
            let recovered = found.get(&shard.index).copied();
            let recovered = recovered
                .map(Checkpoint::next)
                .map_or(0, |next| next.value());
            if recovered != expected && !shard.has_expired {
                return Err(format!(
                    "after a restart shard {} is at {recovered}, it was accepted up to {expected}",
                    shard.index
                ));
            }
        }
        Ok(())
    }

    /// A step's changes are durable, and what it answers is true. `booted_at`: since when the
    /// broker runs that has just decided it.
    fn durable(&mut self, step: &Step, booted_at: Option<u64>) -> Checked {
        // Behind a deletion everything is of another group, perhaps under the same name.
        let deleted = |change: &GroupChange| matches!(change, GroupChange::GroupDeleted { .. });
        let at = step.changes.iter().rposition(deleted);
        let (before, after) = step.changes.split_at(at.map_or(0, |at| at + 1));
        self.changed(step, before, booted_at)?;
        self.answered(step)?;
        self.changed(step, after, booted_at)
    }

    /// What is answered is true.
    fn answered(&mut self, step: &Step) -> Checked {
        for effect in &step.effects {
            if let Effect::Answered { id, answer } = effect
                && self.check_answer(*id, answer)?
            {
                continue;
            }
            if let Effect::Answered {
                id,
                answer: Ok(Answer::Checkpoints(answers)),
            } = effect
                && let Some((_, shard, generation, to)) = self.requests.get(id).copied()
            {
                if answers.iter().all(Result::is_ok) {
                    self.oracle.accept(&self.stream, shard, generation, to)?;
                } else {
                    self.report.stale += 1;
                }
            }
        }
        Ok(())
    }

    /// Changes of a step are made.
    fn changed(&mut self, step: &Step, changes: &[GroupChange], booted_at: Option<u64>) -> Checked {
        let left = step.effects.iter().filter_map(|effect| match effect {
            Effect::Left { session } => {
                let mut joined = self.joined.iter();
                joined.find(|(_, joined)| *joined == session)
            }
            _ => None,
        });
        let left: Vec<_> = left.map(|(name, _)| name.clone()).collect();
        let joined = step.changes.iter().filter_map(|change| match change {
            GroupChange::MemberJoined { name, .. } => Some(name.clone()),
            _ => None,
        });
        let joined: Vec<_> = joined.collect();
        for change in changes {
            match change {
                GroupChange::GroupDeleted { .. } => self.deleted(),
                GroupChange::GroupCreated { begins, .. } => {
                    let begins = begins.as_deref().unwrap_or_default();
                    let is_now = booted_at.is_some();
                    self.oracle.came(&self.stream, begins, is_now)?;
                }
                GroupChange::MemberJoined { member, name, .. } => {
                    self.names.insert(*member, name.clone());
                }
                GroupChange::MemberLeft { member, .. } => {
                    let name = self.names.remove(member);
                    let is_known = |names: &[MemberName]| {
                        name.as_ref().is_some_and(|name| names.contains(name))
                    };
                    // Neither gone in order nor replaced.
                    let is_silent = !is_known(&left) && !is_known(&joined);
                    self.report.silent += u64::from(is_silent);
                    if let (true, Some(booted_at), Some(name)) = (is_silent, booted_at, &name) {
                        self.check_patience(name, booted_at)?;
                    }
                    self.lose(*member, is_silent);
                }
                GroupChange::Granted {
                    shard,
                    generation,
                    member,
                    ..
                } => {
                    self.report.grants += 1;
                    self.oracle.grant(&self.stream, *shard, *generation)?;
                    self.leases.insert(*shard, (*member, *generation));
                }
                GroupChange::ExpiredUnread {
                    shard, to, records, ..
                } => {
                    let to = to.value();
                    self.oracle.expire(&self.stream, *shard, to, *records)?;
                }
                GroupChange::ShardExpired { shard, unread, .. } => {
                    self.oracle.lose(&self.stream, *shard, *unread)?;
                }
                GroupChange::ShardsMissed { .. } => self.oracle.is_unsure = true,
                GroupChange::Freed { shard, forced, .. } => {
                    self.report.forced += u64::from(*forced);
                    self.oracle.free(*shard);
                    self.leases.remove(shard);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn deleted(&mut self) {
        self.report.deleted += 1;
        self.names.clear();
        self.leases.clear();
        self.oracle.forget();
    }

    /// A member is given up when its timeout is over, and not before: after a restart it has one
    /// to come back.
    fn check_patience(&self, name: &MemberName, booted_at: u64) -> Checked {
        let heard = self.heard.get(name).copied().unwrap_or(0).max(booted_at);
        if self.now < heard + TIMEOUT {
            return Err(format!("{name} is given up, last heard of at {heard}"));
        }
        Ok(())
    }

    fn lose(&mut self, member: MemberNumber, is_silent: bool) {
        let oracle = &mut self.oracle;
        self.leases.retain(|shard, (holder, generation)| {
            if *holder != member {
                return true;
            }
            oracle.free(*shard);
            if is_silent {
                oracle.silence(*shard, *generation);
            }
            false
        });
    }

    /// Sends a step's effects.
    fn tell(&mut self, step: Step) -> Checked {
        for effect in step.effects {
            let session = match &effect {
                Effect::Answered { id, .. } => {
                    self.requests.remove(id).map(|(session, ..)| session)
                }
                other => session_of(other),
            };
            let Some(session) = session else { continue };
            if let Effect::Assigned { lease, .. } = &effect {
                let member = self.broker.links.get(&session).map(|link| link.member);
                let from = match lease.from {
                    ReadFrom::At(from) => from.value(),
                    ReadFrom::TrimHorizon | ReadFrom::AtTimestamp(_) => 0,
                };
                let horizon = self.stream.shard(lease.shard).horizon;
                if from < horizon {
                    let shard = lease.shard;
                    return Err(format!(
                        "shard {shard} is given out from {from}, its oldest record is {horizon}"
                    ));
                }
                if let Some(member) = member.and_then(|member| self.members.get(member)) {
                    let (shard, generation) = (lease.shard, lease.generation);
                    self.oracle.tell(shard, generation, &member.name, from)?;
                }
            }
            if let Effect::Fenced {
                reason: FencedReason::Deleted,
                ..
            } = effect
                && self.report.deleted == 0
            {
                return Err("a group was deleted that nobody deleted".to_owned());
            }
            self.broker.send(self.now, session, effect, &mut self.dice);
        }
        Ok(())
    }

    /// Nobody holds a shard that was not heard of for so long.
    fn check_fail_over(&self) -> Checked {
        let Some(booted_at) = self.broker.booted_at() else {
            return Ok(());
        };
        for (shard, (member, _)) in &self.leases {
            let Some(name) = self.names.get(member) else {
                return Err(format!("shard {shard} is held by a member that is gone"));
            };
            let heard = self.heard.get(name).copied().unwrap_or(0).max(booted_at);
            if self.now > heard + TIMEOUT + FAIL_OVER {
                return Err(format!(
                    "shard {shard} is still held by {name}, last heard of at {heard}"
                ));
            }
        }
        Ok(())
    }

    /// No shard waits while there are members: also what one that left had is someone's at once.
    fn check_assigned(&self) -> Checked {
        let described = self.broker.coordinator();
        let described = described.and_then(|coordinator| coordinator.describe(STREAM, &group()));
        let Some(described) = described else {
            return Ok(());
        };
        if !described.members.iter().any(|member| member.is_present) {
            return Ok(());
        }
        for shard in described.shards {
            if shard.holder.is_none() && !shard.is_finished && !shard.is_waiting {
                return Err(format!(
                    "shard {} is nobody's while members wait",
                    shard.shard
                ));
            }
        }
        Ok(())
    }
}
