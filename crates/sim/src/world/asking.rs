//! What is asked of the group from outside: resets, deletion, and what makes no sense.

use flumen_record::SequenceNumber;
use flumen_stream::group::{
    Answer, Checkpoint, CheckpointItem, Event, GroupError, Request, RequestId, Reset,
};

use super::{Asked, STREAM, World, group};
use crate::oracle::Checked;

/// Requests from outside are numbered from here.
const FIRST: u64 = 1 << 40;

impl World {
    /// Somebody asks for something, now and then: before what members say in the same step.
    pub(super) fn ask(&mut self) -> Option<Event> {
        let (asked, request) = match self.dice.below(2_000) {
            0..4 => (Asked::Nonsense, self.nonsense()),
            4..6 => (Asked::Reset, self.reset()),
            6 => (Asked::Delete, Some(Request::Delete { force: true })),
            _ => return None,
        };
        let request = request?;
        self.next_request += 1;
        let id = RequestId(FIRST + self.next_request);
        self.admin.insert(id, asked);
        Some(Event::Request {
            id,
            stream: STREAM,
            group: group(),
            request,
        })
    }

    /// A place beyond the end of a shard, as a checkpoint of its holder or as a reset.
    fn nonsense(&mut self) -> Option<Request> {
        let dice = self.dice.next();
        let kept = self.stream.shards.iter().filter(|shard| !shard.has_expired);
        let kept: Vec<_> = kept.collect();
        let shard = kept.get(crate::random::place(dice % kept.len().max(1) as u64))?;
        // As much may be appended until it is asked.
        let beyond = match dice % 3 {
            0 => u64::MAX,
            1 => 1_000_000_000,
            _ => shard.end() + 1_000,
        };
        let checkpoint = Checkpoint::at(SequenceNumber::new(beyond));
        let holder = self.leases.get(&shard.index);
        Some(match holder.filter(|_| dice % 5 > 1) {
            Some((_, generation)) => Request::Checkpoint {
                session: None,
                items: vec![CheckpointItem {
                    shard: shard.index,
                    generation: Some(*generation),
                    checkpoint,
                    skipped: Vec::new(),
                }],
            },
            None => Request::Reset(Reset {
                shards: vec![(shard.index, checkpoint)],
                force: true,
                dry_run: false,
            }),
        })
    }

    /// Leases end, and go on where they are: nothing is read in another order for it.
    fn reset(&mut self) -> Option<Request> {
        let dice = self.dice.next();
        let begun: Vec<_> = self.leases.keys().collect();
        let shard = **begun.get(crate::random::place(dice % begun.len().max(1) as u64))?;
        let to = self.oracle.checkpoint(shard);
        if to != self.oracle.position(shard) {
            return None;
        }
        Some(Request::Reset(Reset {
            shards: vec![(shard, Checkpoint::at(SequenceNumber::new(to)))],
            force: true,
            dry_run: false,
        }))
    }

    /// Looks at an answer from outside. `false`: it is a member's.
    pub(super) fn check_answer(
        &mut self,
        id: RequestId,
        answer: &Result<Answer, GroupError>,
    ) -> Result<bool, String> {
        let Some(asked) = self.admin.remove(&id) else {
            return Ok(false);
        };
        let is_granted = match answer {
            Ok(Answer::Checkpoints(answers)) => answers.iter().any(Result::is_ok),
            Ok(_) => true,
            Err(_) => false,
        };
        if let Ok(Answer::Reset(report)) = answer
            && asked == Asked::Reset
        {
            for shard in &report.shards {
                self.oracle.reset(shard.shard, shard.to.next().value())?;
            }
        }
        if asked == Asked::Nonsense {
            self.report.nonsense += 1;
            if is_granted {
                return Err(format!("nonsense was granted: {answer:?}"));
            }
        }
        Ok(true)
    }

    /// What is shown to have expired is what did.
    pub(super) fn check_missed(&self) -> Checked {
        self.oracle.check_said()?;
        let described = self.broker.coordinator();
        let described = described.and_then(|coordinator| coordinator.describe(STREAM, &group()));
        let Some(described) = described else {
            return Ok(());
        };
        let shards = described.shards.iter();
        let shown = shards.fold(described.expired, |all, shard| {
            all.and(shard.position.expired)
        });
        let missed = self.oracle.missed;
        let is_right = shown.records == missed && shown.is_exact != self.oracle.is_unsure;
        if is_right {
            return Ok(());
        }
        Err(format!(
            "{shown:?} is shown, {missed} records were missed{}",
            if self.oracle.is_unsure {
                " at least"
            } else {
                ""
            }
        ))
    }
}
