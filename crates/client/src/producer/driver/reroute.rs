//! Batches whose shard does not own their keys any more: their records go by the stream's new map.

use std::sync::Arc;

use flumen_record::{Batch, Compression, ProducerId, ProducerSequence};

use super::super::delivery::{BatchCell, Outcome};
use super::super::intake::{BatchTag, Intake};
use super::super::shard_queue::Step;
use super::Driver;
use crate::StreamDescription;

impl Driver {
    /// Moves everything at shards that handed their batches back, in order, ahead of whatever is sent
    /// later. A shard about which the stream says nothing new yet waits and asks again.
    pub(super) fn reroute(&mut self, stream: &StreamDescription) {
        let shared = Arc::clone(&self.shared);
        let mut intake = shared.lock();
        let mut freed = 0;
        let mut moved = Vec::new();
        for place in &self.troubled {
            let Some(line) = self.lines.get_mut(*place) else {
                continue;
            };
            if line.queue.step() != Step::Reroute {
                continue;
            }
            line.relieved();
            if !intake.routing.replace(*place, stream) {
                continue;
            }
            intake.grow();
            let mut batches = Vec::new();
            for sealed in line.queue.take_all() {
                self.unsettled -= 1;
                if sealed.counted {
                    intake.stats.batches_in_flight -= 1;
                    intake.stats.records_in_flight -= u64::from(sealed.tag.records);
                }
                batches.push((sealed.batch, sealed.tag));
            }
            for mut open in intake.take_all(*place) {
                let none = (ProducerId::NONE, ProducerSequence::default());
                batches.push((
                    open.builder.finish(none.0, none.1, Compression::None),
                    open.tag,
                ));
            }
            for (batch, tag) in batches {
                freed += move_records(&batch, tag, &mut intake);
            }
            moved.push(*place);
        }
        drop(intake);
        self.free(freed);
        for place in moved {
            self.list(place);
        }
    }
}

/// Puts a batch's records into the open batches of their shards; gives the memory of those that do
/// not fit into the stream any more.
fn move_records(batch: &Batch, tag: BatchTag, intake: &mut Intake) -> usize {
    let mut freed = 0;
    let moved = batch.records().map(|record| {
        let record = record.expect("BUG: a batch of our own does not decode");
        intake
            .push_again(&record, tag.page)
            .unwrap_or_else(|error| {
                freed += intake.cost_of(&record);
                intake.stats.records_failed += 1;
                let refused = Arc::new(BatchCell::default());
                refused.complete(Outcome::Failed(error.into()));
                (refused, 0)
            })
    });
    let moved = moved.collect();
    tag.settle(Outcome::Moved(moved), intake);
    freed
}
