//! Which shards are at the desk: they open, are held while they move, go on elsewhere, and end.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use flumen_record::ShardId;

use super::{Desk, Open, Slot};
use crate::Error;
use crate::lane::{HeldShard, Lane, OpenShard};
use crate::pending::Submission;
use crate::round::Turns;

impl Desk {
    /// Takes a shard in, in place of what was known about it.
    pub(in crate::lane) fn open(&mut self, shard: OpenShard) {
        self.place(shard.shard.id(), Slot::Open(Open { shard, saved: None }));
    }

    /// Remembers a shard that went on in `to` before the node was started.
    pub(in crate::lane) fn departed(&mut self, id: ShardId, to: Arc<Lane>, state: Bytes) {
        self.place(id, Slot::Moved { to, state });
    }

    fn place(&mut self, id: ShardId, known: Slot) {
        let slot = match self.index.get(&id) {
            Some(&slot) => slot,
            None => {
                let slot = self.free.pop().unwrap_or_else(|| {
                    self.slots.push(Slot::Free);
                    u32::try_from(self.slots.len() - 1).expect("BUG: more slots than shards can be")
                });
                self.index.insert(id, slot);
                slot
            }
        };
        *self.slot(slot) = known;
    }

    /// Holds a shard's batches back; where it stands, unless it is not here.
    pub(in crate::lane) fn hold(
        &mut self,
        id: ShardId,
        turns: &mut Turns<Submission>,
    ) -> Option<HeldShard> {
        let slot = *self.index.get(&id)?;
        let place = self.slot(slot);
        match std::mem::replace(place, Slot::Free) {
            Slot::Open(open) => {
                let (next, epoch) = (open.shard.shard.next(), open.shard.shard.epoch());
                *place = Slot::Held(open, turns.withdraw(slot));
                Some(HeldShard { id, next, epoch })
            }
            other => {
                *place = other;
                None
            }
        }
    }

    /// Ends a hold: the shard is closed. What waited gets its turn, to be recognised or refused.
    pub(in crate::lane) fn close(&mut self, id: ShardId, turns: &mut Turns<Submission>) {
        let slot = self.index.get(&id).copied();
        if let Some(Slot::Held(open, _)) = slot.map(|slot| self.slot(slot)) {
            open.shard.shard.close();
        }
        self.resume(id, turns);
    }

    /// Ends a hold: the shard goes on here.
    pub(in crate::lane) fn resume(&mut self, id: ShardId, turns: &mut Turns<Submission>) {
        let Some(&slot) = self.index.get(&id) else {
            return;
        };
        let place = self.slot(slot);
        match std::mem::replace(place, Slot::Free) {
            Slot::Held(open, held) => {
                *place = Slot::Open(open);
                held.into_iter()
                    .for_each(|submission| turns.push(slot, submission));
            }
            other => *place = other,
        }
    }

    /// Ends a hold: the shard goes on in `to`, which the caller hands shard and batches.
    pub(in crate::lane) fn depart(
        &mut self,
        id: ShardId,
        to: &Arc<Lane>,
    ) -> Option<(OpenShard, VecDeque<Submission>)> {
        let slot = *self.index.get(&id)?;
        let place = self.slot(slot);
        match std::mem::replace(place, Slot::Free) {
            Slot::Held(mut open, mut held) => {
                let state = open.saved.unwrap_or_else(|| open.shard.shard.save());
                open.shard.shard.move_on();
                *place = Slot::Moved {
                    to: Arc::clone(to),
                    state,
                };
                for submission in &mut held {
                    self.released += u64::from(std::mem::take(&mut submission.cost));
                }
                Some((open.shard, held))
            }
            other => {
                *place = other;
                None
            }
        }
    }

    /// Ends a hold for good: no batch of the shard is taken any more.
    pub(in crate::lane) fn freeze(&mut self, id: ShardId) {
        let Some(&slot) = self.index.get(&id) else {
            return;
        };
        let place = self.slot(slot);
        match std::mem::replace(place, Slot::Free) {
            Slot::Held(open, held) => {
                let state = open.saved.unwrap_or_else(|| open.shard.shard.save());
                *place = Slot::Frozen { state };
                held.into_iter()
                    .for_each(|submission| self.refuse(submission, Error::Poisoned));
            }
            other => *place = other,
        }
    }

    /// Forgets a shard. Batches that wait for it are refused.
    pub(in crate::lane) fn forget(&mut self, id: ShardId, turns: &mut Turns<Submission>) {
        let Some(slot) = self.index.remove(&id) else {
            return;
        };
        self.free.push(slot);
        let waiting = match std::mem::replace(self.slot(slot), Slot::Free) {
            Slot::Open(_) => turns.withdraw(slot),
            Slot::Held(_, held) => held,
            Slot::Moved { .. } | Slot::Frozen { .. } | Slot::Free => VecDeque::new(),
        };
        for submission in waiting {
            let stream = submission.session.stream.clone();
            self.refuse(submission, Error::StreamNotFound { stream });
        }
    }

    /// Every shard's state, for the snapshot.
    pub(in crate::lane) fn states(&mut self) -> Vec<(ShardId, Bytes)> {
        let slots = &mut self.slots;
        let state = |(&id, &slot): (&ShardId, &u32)| {
            let state = match slots.get_mut(slot as usize)? {
                Slot::Open(open) | Slot::Held(open, _) => open
                    .saved
                    .get_or_insert_with(|| open.shard.shard.save())
                    .clone(),
                Slot::Moved { state, .. } | Slot::Frozen { state } => state.clone(),
                Slot::Free => return None,
            };
            Some((id, state))
        };
        self.index.iter().filter_map(state).collect()
    }
}
