//! One shard as its lane sees it: the next number, the producers, what to do with a batch.

mod history;
mod producers;
mod resting;
mod saved;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use flumen_log::{BatchMark, ShardRecovery};
use flumen_record::{
    BatchHeader, HashRange, ProducerId, ProducerSequence, SequenceNumber, ShardEpoch, ShardId,
    Timestamp,
};

use crate::quota::Quota;
use crate::{Admission, Refusal, StreamConfig};
use history::History;
use producers::{Jump, Known, Producers, Remembered, TableLimits};
use saved::Standing;

/// A shard's state in its lane. Only the lane's thread touches it.
#[derive(Debug)]
pub struct Shard {
    id: ShardId,
    range: HashRange,
    epoch: ShardEpoch,
    next: SequenceNumber,
    durable_end: SequenceNumber,
    last_arrival: Timestamp,
    closed: bool,
    producers: Producers,
    quota: Option<Box<Quota>>,
    /// While recovery runs.
    history: History,
}

impl Shard {
    /// A shard that has never held anything.
    pub fn new(id: ShardId, range: HashRange, config: &StreamConfig) -> Self {
        let limits = TableLimits {
            producers: config.producers_per_shard_max.max(1) as usize,
            resting: config.resting_producers_per_shard_max as usize,
            batches: config.batches_per_producer.max(1) as usize,
        };
        let quota = Quota::new(
            config.shard_records_per_second,
            config.shard_bytes_per_second,
        );
        Self {
            id,
            range,
            epoch: ShardEpoch::new(1),
            next: SequenceNumber::ZERO,
            durable_end: SequenceNumber::ZERO,
            last_arrival: Timestamp::ZERO,
            closed: false,
            producers: Producers::new(limits),
            quota: quota.map(Box::new),
            history: History::default(),
        }
    }

    /// Restores what [`Shard::save`] gave, in place of what is known so far, before batches are
    /// replayed. Unknown or damaged state is an error naming the reason; the caller then goes on
    /// without it and says so to [`Shard::recovered`].
    pub fn restore(&mut self, state: &[u8]) -> Result<(), &'static str> {
        let (standing, producers, resting) =
            saved::decode(state).inspect_err(|_| self.history.lost())?;
        self.producers = Producers::new(self.producers.limits());
        self.producers.raise_watermark(standing.watermark);
        self.producers.jumped(standing.jump);
        for (id, rest) in resting {
            self.producers.restore_resting(id, rest);
        }
        for producer in producers {
            self.producers
                .restore(producer.id, producer.next, producer.batches);
        }
        self.next = standing.next;
        self.last_arrival = standing.last_arrival;
        self.history.restored(standing.next);
        Ok(())
    }

    /// The number up to which what [`Shard::save`] gave knows all batches; `None` when it is not usable.
    pub fn saved_next(state: &[u8]) -> Option<SequenceNumber> {
        saved::decode(state)
            .ok()
            .map(|(standing, ..)| standing.next)
    }

    /// Learns a batch found in the log at recovery.
    pub fn replay(&mut self, mark: &BatchMark, partial: bool) {
        self.history.batch(mark, partial);
        if mark.producer != ProducerId::NONE {
            let batch = Remembered {
                base: mark.base,
                arrival: mark.arrival,
                checksum: mark.checksum,
                count: mark.count,
            };
            self.producers.learn(mark.producer, mark.sequence, batch);
        }
    }

    /// Ends recovery: numbers go on at `recovery.next` under the next epoch. `complete`: every
    /// producer that ever wrote to the shard was restored or replayed, as far as the caller knows.
    /// Otherwise, or when the batches that were replayed leave a hole, ids up to `issued`, the
    /// highest that can have been issued, are answered "state lost" when unknown.
    pub fn recovered(&mut self, recovery: &ShardRecovery, complete: bool, issued: ProducerId) {
        let findings = std::mem::take(&mut self.history).end(recovery);
        let incomplete = !complete || findings.incomplete;
        if incomplete {
            self.producers.raise_watermark(issued);
        }
        // Of a producer that is known, too, later batches may be missing.
        let resumed_at = incomplete.then_some(recovery.next).or(findings.resumed_at);
        if let Some(resumed_at) = resumed_at {
            self.producers.jumped(Jump { issued, resumed_at });
        }
        self.next = recovery.next;
        self.durable_end = recovery.next;
        self.last_arrival = self.last_arrival.max(recovery.last_arrival);
        self.epoch = ShardEpoch::new(recovery.epoch.value().saturating_add(1));
    }

    /// Its number.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Its epoch, for new frames.
    pub fn epoch(&self) -> ShardEpoch {
        self.epoch
    }

    /// Goes on in another log, under the next epoch.
    pub fn move_on(&mut self) {
        self.epoch = ShardEpoch::new(self.epoch.value().saturating_add(1));
    }

    /// Next sequence number to assign.
    pub fn next(&self) -> SequenceNumber {
        self.next
    }

    /// Decides about a batch whose checksum and body the edge has verified. `Append` assigns
    /// numbers; the caller then either writes the batch or calls [`Shard::abandon`].
    pub fn admit(&mut self, batch: &BatchHeader, now: Timestamp) -> Admission {
        let expected = match self.recognise(batch) {
            Ok(expected) => expected,
            Err(Admission::Refused(Refusal::ProducerStateLost { producer }))
                if self.closed && producer > self.producers.watermark() =>
            {
                // Ahead of what is remembered, because a jump may have taken what was there: gone or
                // never there, this shard does not hold it. Only below the watermark might it.
                None
            }
            Err(answer) => return answer,
        };
        if self.closed {
            return Admission::Refused(Refusal::Closed { end: self.next });
        }
        if let Some(expected) = expected {
            let got = batch.sequence;
            return Admission::Refused(Refusal::OutOfSequence { expected, got });
        }
        if !self.range.covers(&batch.span) {
            let (span, range) = (batch.span, self.range);
            return Admission::Refused(Refusal::WrongShard { span, range });
        }
        let arrival = self.last_arrival.max(now);
        let end = self.next.plus(u64::from(batch.count));
        if let Some(quota) = &mut self.quota {
            let retry_after = quota.wait(now);
            if !retry_after.is_zero() {
                return Admission::Refused(Refusal::Throttled { retry_after });
            }
            quota.take(
                end,
                u64::from(batch.count),
                u64::from(batch.encoded_bytes),
                now,
            );
        }
        let base = self.next;
        if batch.producer != ProducerId::NONE {
            let remembered = Remembered {
                base,
                arrival,
                checksum: batch.checksum,
                count: batch.count,
            };
            self.producers.admit(batch.producer, remembered);
        }
        self.next = end;
        self.last_arrival = arrival;
        Admission::Append { base, arrival }
    }

    /// What the producers' table alone decides; otherwise the sequence that is missing, if one is.
    #[inline]
    fn recognise(&mut self, batch: &BatchHeader) -> Result<Option<ProducerSequence>, Admission> {
        let (producer, sequence) = (batch.producer, batch.sequence);
        if producer == ProducerId::NONE {
            return Ok(None);
        }
        match self.producers.look_up(producer, sequence, batch.checksum) {
            Known::Next => Ok(None),
            Known::Ahead { expected } => Ok(Some(expected)),
            Known::Admitted(first) => Err(Admission::Duplicate {
                base: first.base,
                arrival: first.arrival,
                durable: first.end() <= self.durable_end,
            }),
            Known::Forgotten => Err(Admission::AlreadyAppended),
            Known::Differs => Err(Admission::Refused(Refusal::ChecksumDiffers { sequence })),
            Known::Lost => Err(Admission::Refused(Refusal::ProducerStateLost { producer })),
        }
    }

    /// Everything below `end` is durable (at the stream's level): duplicates of it are answered at once.
    pub fn durable(&mut self, end: SequenceNumber) {
        self.durable_end = self.durable_end.max(end);
        self.producers.settle(self.durable_end);
        if let Some(quota) = &mut self.quota {
            quota.settle(self.durable_end);
        }
    }

    /// Takes back every admission at or above `from`: the round was definitely not written.
    pub fn abandon(&mut self, from: SequenceNumber) {
        assert!(
            from >= self.durable_end,
            "BUG: durable batches cannot be taken back"
        );
        self.next = self.next.min(from);
        self.producers.abandon(from);
        if let Some(quota) = &mut self.quota {
            quota.abandon(from);
        }
    }

    /// Closes it: batches are answered "already appended" or "closed" from now on. Returns its
    /// end; the caller has settled what was in flight.
    pub fn close(&mut self) -> SequenceNumber {
        self.closed = true;
        self.next
    }

    /// Its producers' table, for the node snapshot: up to what is durable at the stream's level.
    pub fn save(&self) -> Bytes {
        let standing = Standing {
            next: self.durable_end,
            last_arrival: self.last_arrival,
            watermark: self.producers.watermark(),
            jump: self.producers.jump(),
        };
        saved::encode(&standing, &self.producers).into()
    }
}
