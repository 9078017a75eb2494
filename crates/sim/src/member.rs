//! What a client does: join, give signs of life, run handlers, checkpoint, drain, stop in time.

use std::collections::BTreeMap;

use flumen_record::{SequenceNumber, ShardIndex};
use flumen_stream::group::{
    Answer, Assignment, Checkpoint, CheckpointItem, Effect, Event, FencedReason, Generation,
    InstanceId, LeaseWatch, MemberName, ReadFrom, Request, RequestId, SessionId,
};

use crate::oracle::{Checked, Oracle};
use crate::random::Dice;
use crate::stream::Stream;
use crate::world::{GROUP, STREAM, TIMEOUT};

const BEAT: u64 = 3_000;
/// A client stops this long before the broker may give its shards away.
const MARGIN: u64 = 500;
const CHECKPOINT: u64 = 800;
/// So many records are read at once, and processed without asking again.
const BUFFER: u64 = 6;

#[derive(Debug)]
struct Lease {
    generation: Generation,
    /// The next record for the handler.
    next: u64,
    buffered: u64,
    accepted: u64,
    /// What expired before it could be read, and is not said with an accepted checkpoint.
    skipped: Vec<(SequenceNumber, SequenceNumber)>,
    asked: Option<RequestId>,
    is_revoked: bool,
    checkpoint_at: u64,
    watch: LeaseWatch,
}

#[derive(Debug, Clone, Copy)]
struct Handler {
    shard: ShardIndex,
    generation: Generation,
    record: u64,
    began: u64,
    until: u64,
}

/// A checkpoint that was asked for.
#[derive(Debug, Clone, Copy)]
struct Asked {
    shard: ShardIndex,
    generation: Generation,
    to: u64,
    /// It finishes the shard.
    is_end: bool,
}

/// One process, and the ones after it under its name.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: MemberName,
    pub(crate) instance: InstanceId,
    pub(crate) session: Option<SessionId>,
    /// The process is not there until then.
    pub(crate) down_until: u64,
    /// It is there and does nothing until then.
    pub(crate) paused_until: u64,
    /// It is awake again and has not read what came meanwhile.
    pub(crate) deaf_until: u64,
    pub(crate) connect_at: u64,
    pub(crate) is_leaving: bool,
    is_joined: bool,
    join_sent: u64,
    /// When the last sign of life that was answered was sent.
    answered: u64,
    beats: BTreeMap<u64, u64>,
    next_beat: u64,
    beat_at: u64,
    leases: BTreeMap<ShardIndex, Lease>,
    handlers: Vec<Handler>,
    /// What it asked for and has no answer to.
    asked: BTreeMap<RequestId, Asked>,
}

/// What a member needs of the rest of the world.
pub(crate) struct Around<'a> {
    pub(crate) now: u64,
    pub(crate) stream: &'a Stream,
    pub(crate) oracle: &'a mut Oracle,
    pub(crate) dice: &'a mut Dice,
    pub(crate) next_request: &'a mut u64,
    pub(crate) has_faults: bool,
    /// Goes on after its time (a broken client).
    pub(crate) ignores_deadline: bool,
    pub(crate) out: Vec<Event>,
    /// Requests with what they ask, for the oracle.
    pub(crate) requests: Vec<(RequestId, ShardIndex, Generation, u64)>,
    /// The member closes its session.
    pub(crate) closes: bool,
}

impl Member {
    pub(crate) fn new(name: MemberName) -> Self {
        Self {
            name,
            instance: InstanceId::new(1),
            session: None,
            down_until: 0,
            paused_until: 0,
            deaf_until: 0,
            connect_at: 0,
            is_leaving: false,
            is_joined: false,
            join_sent: 0,
            answered: 0,
            beats: BTreeMap::new(),
            next_beat: 0,
            beat_at: 0,
            leases: BTreeMap::new(),
            handlers: Vec::new(),
            asked: BTreeMap::new(),
        }
    }

    /// The process ends; another one will be there at `again`.
    pub(crate) fn crash(&mut self, again: u64) {
        let instance = InstanceId::new(self.instance.value() + 1);
        *self = Self {
            instance,
            down_until: again,
            connect_at: again,
            ..Self::new(self.name.clone())
        };
    }

    pub(crate) fn is_awake(&self, now: u64) -> bool {
        now >= self.down_until && now >= self.paused_until
    }

    pub(crate) fn opened(&mut self, session: SessionId, now: u64) {
        self.session = Some(session);
        self.is_joined = false;
        self.join_sent = now;
        self.beats.clear();
    }

    /// The session is gone; what was asked on it may or may not have happened.
    pub(crate) fn lost_session(&mut self, connect_at: u64) {
        self.session = None;
        self.is_joined = false;
        self.connect_at = connect_at;
        self.asked.clear();
        for lease in self.leases.values_mut() {
            lease.asked = None;
        }
    }

    pub(crate) fn hear(&mut self, effect: Effect, around: &mut Around<'_>) -> Checked {
        match effect {
            Effect::Joined { leases, .. } => {
                self.is_joined = true;
                self.answered = self.answered.max(self.join_sent);
                self.beat_at = around.now + BEAT;
                let kept: BTreeMap<_, _> = leases
                    .iter()
                    .map(|lease| (lease.shard, lease.generation))
                    .collect();
                self.leases
                    .retain(|shard, lease| kept.get(shard) == Some(&lease.generation));
                for lease in leases {
                    self.take(lease, around);
                }
            }
            Effect::Assigned { lease, .. } => self.take(lease, around),
            Effect::Revoked {
                shard, generation, ..
            } => {
                if let Some(lease) = self.lease(shard, generation) {
                    lease.is_revoked = true;
                }
            }
            Effect::Lost {
                shard, generation, ..
            } => {
                if self.lease(shard, generation).is_some() {
                    self.leases.remove(&shard);
                }
            }
            Effect::HeartbeatAnswered { beat, .. } => {
                if let Some(sent) = self.beats.remove(&beat) {
                    self.answered = self.answered.max(sent);
                }
            }
            Effect::Fenced { reason, .. } => {
                if reason != FencedReason::Superseded {
                    self.leases.clear();
                }
                around.closes = true;
            }
            Effect::Refused { error, .. } => {
                return Err(format!("{} was refused: {error}", self.name));
            }
            Effect::Left { .. } => {
                let again = around.now + around.dice.between(200, 8_000);
                around.closes = true;
                self.crash(again);
            }
            Effect::Answered { id, answer } => self.answered(id, answer),
        }
        Ok(())
    }

    fn lease(&mut self, shard: ShardIndex, generation: Generation) -> Option<&mut Lease> {
        let lease = self.leases.get_mut(&shard)?;
        (lease.generation == generation).then_some(lease)
    }

    fn take(&mut self, lease: Assignment, around: &mut Around<'_>) {
        if let Some(known) = self.lease(lease.shard, lease.generation) {
            known.watch = lease.watch;
            known.is_revoked = lease.revoked.is_some();
            return;
        }
        let from = match lease.from {
            ReadFrom::At(from) => from.value(),
            ReadFrom::TrimHorizon | ReadFrom::AtTimestamp(_) => 0,
        };
        let taken = Lease {
            generation: lease.generation,
            next: from,
            buffered: from,
            accepted: from,
            skipped: Vec::new(),
            asked: None,
            is_revoked: lease.revoked.is_some(),
            checkpoint_at: around.now + CHECKPOINT,
            watch: lease.watch,
        };
        self.leases.insert(lease.shard, taken);
    }

    fn answered(
        &mut self,
        id: RequestId,
        answer: Result<Answer, flumen_stream::group::GroupError>,
    ) {
        let Some(asked) = self.asked.remove(&id) else {
            return;
        };
        let Some(lease) = self.lease(asked.shard, asked.generation) else {
            return;
        };
        lease.asked = None;
        // Said again until it is answered: it counts once.
        lease.skipped.retain(|(_, next)| next.value() > asked.to);
        let is_accepted = match answer {
            Ok(Answer::Checkpoints(answers)) => answers.iter().all(Result::is_ok),
            _ => false,
        };
        lease.accepted = lease.accepted.max(asked.to);
        if asked.is_end || !is_accepted {
            self.leases.remove(&asked.shard);
        }
    }

    /// One tick of a process that is awake.
    pub(crate) fn act(&mut self, around: &mut Around<'_>) -> Checked {
        self.end_handlers(around);
        let session = self.session.filter(|_| self.is_joined);
        if let Some(session) = session
            && around.now >= self.beat_at
        {
            self.beat_at = around.now + BEAT;
            self.next_beat += 1;
            self.beats.insert(self.next_beat, around.now);
            let beat = self.next_beat;
            around.out.push(Event::Heartbeat { session, beat });
        }
        let in_time = around.now < self.answered + TIMEOUT - MARGIN;
        let shards: Vec<_> = self.leases.keys().copied().collect();
        for shard in shards {
            if in_time || around.ignores_deadline {
                self.begin_handler(shard, session.is_some(), around)?;
            }
            if let Some(session) = session {
                self.settle(shard, session, around);
            }
        }
        if let Some(session) = session
            && self.is_leaving
            && self.leases.is_empty()
            && self.handlers.is_empty()
        {
            around.out.push(Event::Leave { session });
        }
        Ok(())
    }

    fn end_handlers(&mut self, around: &mut Around<'_>) {
        let now = around.now;
        let (over, running): (Vec<_>, Vec<_>) = self
            .handlers
            .iter()
            .partition(|handler| handler.until <= now);
        self.handlers = running;
        for handler in over {
            let span = (handler.began, now);
            let (shard, generation) = (handler.shard, handler.generation);
            around
                .oracle
                .process(shard, generation, handler.record, span);
            if let Some(lease) = self.lease(shard, generation) {
                lease.next = lease.next.max(handler.record + 1);
            }
        }
    }

    fn is_busy(&self, shard: ShardIndex) -> bool {
        self.handlers.iter().any(|handler| handler.shard == shard)
    }

    fn begin_handler(
        &mut self,
        shard: ShardIndex,
        is_connected: bool,
        around: &mut Around<'_>,
    ) -> Checked {
        let is_busy = self.is_busy(shard);
        let is_leaving = self.is_leaving;
        let Some(lease) = self.leases.get_mut(&shard) else {
            return Ok(());
        };
        if is_busy || lease.is_revoked || is_leaving {
            return Ok(());
        }
        if lease.next >= lease.buffered && is_connected && lease.watch.is_current(lease.generation)
        {
            let kept = around.stream.shard(shard);
            if lease.next < kept.horizon {
                let number = SequenceNumber::new;
                lease
                    .skipped
                    .push((number(lease.next), number(kept.horizon)));
                let skipped = lease.next..kept.horizon;
                around.oracle.pass_over(shard, lease.generation, skipped);
                lease.next = kept.horizon;
            }
            lease.buffered = (lease.next + BUFFER).min(kept.end());
        }
        if lease.next >= lease.buffered {
            return Ok(());
        }
        around.oracle.begin(shard, lease.generation)?;
        let takes = match around.has_faults {
            true if around.dice.once_in(150) => around.dice.between(2_000, 15_000),
            _ => around.dice.between(5, 60),
        };
        self.handlers.push(Handler {
            shard,
            generation: lease.generation,
            record: lease.next,
            began: around.now,
            until: around.now + takes,
        });
        Ok(())
    }

    /// Checkpoints what is processed; gives back what is drained.
    fn settle(&mut self, shard: ShardIndex, session: SessionId, around: &mut Around<'_>) {
        let is_busy = self.is_busy(shard);
        let is_leaving = self.is_leaving;
        let Some(lease) = self.leases.get_mut(&shard) else {
            return;
        };
        if lease.asked.is_some() {
            return;
        }
        let facts = around.stream.shard(shard);
        let is_at_end = facts.is_closed && lease.next == facts.end() && !is_busy;
        let drains = lease.is_revoked || is_leaving;
        if drains && !is_busy && lease.accepted == lease.next && !is_at_end {
            let leases = vec![(shard, lease.generation)];
            around.out.push(Event::Release { session, leases });
            self.leases.remove(&shard);
            return;
        }
        let is_due = around.now >= lease.checkpoint_at || (drains && !is_busy);
        if is_at_end || (lease.next > lease.accepted && is_due) {
            *around.next_request += 1;
            let id = RequestId(*around.next_request);
            let (generation, to) = (lease.generation, lease.next);
            lease.asked = Some(id);
            lease.checkpoint_at = around.now + CHECKPOINT;
            let asked = Asked {
                shard,
                generation,
                to,
                is_end: is_at_end,
            };
            self.asked.insert(id, asked);
            around.requests.push((id, shard, generation, to));
            around.out.push(Event::Request {
                id,
                stream: STREAM,
                group: GROUP.parse().expect("BUG: the group's name is not one"),
                request: Request::Checkpoint {
                    session: Some(session),
                    items: vec![CheckpointItem {
                        shard,
                        generation: Some(generation),
                        checkpoint: Checkpoint::at(SequenceNumber::new(to)),
                        skipped: lease.skipped.clone(),
                    }],
                },
            });
        }
    }
}
