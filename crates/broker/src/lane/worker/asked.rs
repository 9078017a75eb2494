//! What a lane is asked beside appending, done between two rounds.

use std::sync::Arc;

use flumen_record::{SequenceNumber, ShardId};
use tokio::sync::oneshot;

use super::{Barrier, OPEN, Worker};
use crate::lane::{Control, HeldShard, Lane, OpenShard};

impl Worker {
    /// Does what was asked.
    pub(super) fn control(&mut self, control: Control) {
        match control {
            Control::Open(shards, done) => {
                let has_state = |open: &OpenShard| open.shard.next() > SequenceNumber::ZERO;
                if shards.iter().any(has_state) {
                    self.moved_in
                        .get_or_insert_with(|| self.context.clock.now());
                    self.restless = true;
                }
                shards.into_iter().for_each(|shard| self.desk.open(shard));
                if let Some(done) = done {
                    let _ = done.send(());
                }
            }
            Control::Hold(shards, done) => self.hold(&shards, done),
            Control::Release { shards, to, done } => {
                self.release(&shards, to.as_ref());
                let _ = done.send(());
            }
            Control::Freeze(shards, done) => {
                shards.iter().for_each(|&id| self.desk.freeze(id));
                let _ = done.send(());
            }
            Control::Close(shards, done) => {
                for &id in &shards {
                    self.desk.close(id, &mut self.turns);
                }
                let _ = done.send(());
            }
            Control::Departed { shard, to, state } => self.desk.departed(shard, to, state),
            Control::Trim(shards, done) => {
                for (shard, before) in shards {
                    self.log.as_mut().expect(OPEN).trim(shard, before);
                }
                self.restless = true;
                let _ = done.send(());
            }
            Control::Forget(shards) => {
                for shard in shards {
                    self.desk.forget(shard, &mut self.turns);
                    self.log.as_mut().expect(OPEN).forget(shard);
                }
                self.restless = true;
            }
            Control::Synced(done) => self.synced(done),
            Control::Shutdown(done) => self.shutdown = Some(done),
            Control::Stop => self.stopped = true,
        }
    }

    fn hold(&mut self, shards: &[ShardId], done: oneshot::Sender<Vec<HeldShard>>) {
        if self.log().has_jumps() {
            // Whoever goes on elsewhere leaves its numbers explained.
            let now = self.context.clock.now();
            self.idle_round(now);
        }
        if self.lane.is_poisoned() {
            return;
        }
        let (desk, turns) = (&mut self.desk, &mut self.turns);
        let held = shards.iter().filter_map(|&id| desk.hold(id, turns));
        self.barriers.push(Barrier {
            round: self.written,
            held: held.collect(),
            done,
        });
        self.reached_disk();
    }

    fn release(&mut self, shards: &[ShardId], to: Option<&Arc<Lane>>) {
        let Some(to) = to.filter(|to| !Arc::ptr_eq(to, &self.lane)) else {
            return shards
                .iter()
                .for_each(|&id| self.desk.resume(id, &mut self.turns));
        };
        let (mut departing, mut batches) = (Vec::new(), Vec::new());
        for &id in shards {
            if let Some((shard, held)) = self.desk.depart(id, to) {
                departing.push(shard);
                batches.extend(held);
            }
        }
        to.send(Control::Open(departing, None));
        self.desk.pass_on(to, &mut batches);
        self.restless = true;
    }
}
