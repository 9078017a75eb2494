//! What a shard remembers of producers: which batch comes next from each, and where its last ones
//! lie.
//!
//! The table is bounded. Of the producer that has not appended for longest it keeps only what comes
//! next ([`Resting`]); of those it forgets the longest unused, and raises the watermark to its id: what
//! an unknown producer at or below the watermark sent, nobody knows.

use std::cmp::{Ordering, Reverse};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use flumen_record::{ProducerId, ProducerSequence, SequenceNumber, Timestamp};

use super::resting::{Rest, Resting};

/// A batch that was admitted, as far as its duplicates need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) base: SequenceNumber,
    pub(crate) arrival: Timestamp,
    pub(crate) checksum: u32,
    pub(crate) count: u32,
}

impl Remembered {
    pub(crate) fn end(&self) -> SequenceNumber {
        self.base.plus(u64::from(self.count))
    }
}

/// What the table says about a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It is the one that comes next.
    Next,
    /// It was admitted before.
    Admitted(Remembered),
    /// It was appended before, too long ago to say where.
    Forgotten,
    /// Another one was admitted under its sequence.
    Differs,
    /// An earlier one is missing.
    Ahead { expected: ProducerSequence },
    /// Whether it was appended, or what comes next, nobody knows.
    Lost,
}

/// Numbers that may have been given out and lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Jump {
    /// Producers up to this one were there before.
    pub(crate) issued: ProducerId,
    /// Where numbers went on.
    pub(crate) resumed_at: SequenceNumber,
}

/// One producer. It has at least one batch.
#[derive(Debug)]
struct Producer {
    id: ProducerId,
    /// The sequence that comes next.
    next: u64,
    /// How many of its last batches are not durable. They are all remembered, however many.
    in_flight: usize,
    /// Where its last batch began before these, when it has come back from rest.
    rested: Option<SequenceNumber>,
    /// Its last batches, without gaps in their sequences.
    batches: VecDeque<Remembered>,
}

/// A batch that is not durable yet.
#[derive(Debug)]
struct InFlight {
    producer: ProducerId,
    end: SequenceNumber,
}

/// What limits a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TableLimits {
    /// Producers at most, beside those with batches in flight; at least 1.
    pub(crate) producers: usize,
    /// Resting producers at most.
    pub(crate) resting: usize,
    /// Durable batches remembered of each; at least 1.
    pub(crate) batches: usize,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Producers {
    limits: TableLimits,
    places: HashMap<ProducerId, usize, BuildHasherDefault<IdHasher>>,
    known: Vec<Producer>,
    /// Others of which only that is known which comes next.
    resting: Resting,
    /// By place: where each producer's last batch begins. Apart, because it is searched.
    last_used: Vec<SequenceNumber>,
    /// The place that was looked up last: mostly it is the next one, too.
    recent: usize,
    /// In order of their numbers.
    in_flight: VecDeque<InFlight>,
    watermark: ProducerId,
    jump: Jump,
}

impl Producers {
    pub(crate) fn new(limits: TableLimits) -> Self {
        Self {
            limits,
            places: HashMap::default(),
            known: Vec::new(),
            resting: Resting::default(),
            last_used: Vec::new(),
            recent: 0,
            in_flight: VecDeque::new(),
            watermark: ProducerId::NONE,
            jump: Jump::default(),
        }
    }

    pub(crate) fn limits(&self) -> TableLimits {
        self.limits
    }

    pub(crate) fn watermark(&self) -> ProducerId {
        self.watermark
    }

    pub(crate) fn jump(&self) -> Jump {
        self.jump
    }

    /// Nothing is known any more of producers up to `id` that are not in the table.
    pub(crate) fn raise_watermark(&mut self, id: ProducerId) {
        self.watermark = self.watermark.max(id);
    }

    /// Takes note that batches may have been lost before `jump`.
    pub(crate) fn jumped(&mut self, jump: Jump) {
        self.jump.issued = self.jump.issued.max(jump.issued);
        self.jump.resumed_at = self.jump.resumed_at.max(jump.resumed_at);
    }

    /// What is known about a batch. Changes nothing but where it looks first the next time.
    #[inline]
    pub(crate) fn look_up(
        &mut self,
        id: ProducerId,
        sequence: ProducerSequence,
        checksum: u32,
    ) -> Known {
        let Some(producer) = self.place_of(id).and_then(|place| self.known.get(place)) else {
            return self.look_up_unknown(id, sequence);
        };
        let sequence = sequence.value();
        if sequence == producer.next {
            return Known::Next;
        }
        if sequence > producer.next {
            let last = producer
                .batches
                .back()
                .map_or(SequenceNumber::ZERO, |last| last.base);
            return self.look_up_ahead(id, producer.next, last);
        }
        let back = usize::try_from(producer.next - sequence).unwrap_or(usize::MAX);
        let place = producer.batches.len().checked_sub(back);
        match place.and_then(|place| producer.batches.get(place)) {
            Some(batch) if batch.checksum == checksum => Known::Admitted(*batch),
            Some(_) => Known::Differs,
            None => Known::Forgotten,
        }
    }

    /// A batch is missing, or was lost.
    fn look_up_ahead(&self, id: ProducerId, next: u64, last: SequenceNumber) -> Known {
        if id <= self.jump.issued && last < self.jump.resumed_at {
            return Known::Lost;
        }
        let expected = ProducerSequence::new(next);
        Known::Ahead { expected }
    }

    fn look_up_unknown(&self, id: ProducerId, sequence: ProducerSequence) -> Known {
        let first = ProducerSequence::new(0);
        if let Some(rest) = self.resting.get(id) {
            return match sequence.value().cmp(&rest.next) {
                Ordering::Less => Known::Forgotten,
                Ordering::Equal => Known::Next,
                Ordering::Greater => self.look_up_ahead(id, rest.next, rest.last),
            };
        }
        if id <= self.watermark {
            Known::Lost
        } else if sequence == first {
            Known::Next
        } else if id <= self.jump.issued {
            Known::Lost
        } else {
            Known::Ahead { expected: first }
        }
    }

    #[inline]
    fn place_of(&mut self, id: ProducerId) -> Option<usize> {
        if self
            .known
            .get(self.recent)
            .is_none_or(|producer| producer.id != id)
        {
            self.recent = *self.places.get(&id)?;
        }
        Some(self.recent)
    }

    /// A producer, and where its last batch begins.
    #[inline]
    fn find(&mut self, id: ProducerId) -> Option<(&mut Producer, &mut SequenceNumber)> {
        let place = self.place_of(id)?;
        Some((self.known.get_mut(place)?, self.last_used.get_mut(place)?))
    }

    /// Takes in the next batch of a producer, as [`Producers::look_up`] said it is. It is in
    /// flight until [`Producers::settle`] or [`Producers::abandon`].
    #[inline]
    pub(crate) fn admit(&mut self, id: ProducerId, batch: Remembered) {
        let end = batch.end();
        match self.find(id) {
            Some((producer, last_used)) => {
                *last_used = batch.base;
                producer.next = producer.next.saturating_add(1);
                producer.in_flight += 1;
                producer.remember(batch);
            }
            None => {
                let rest = self.resting.take(id);
                let next = rest.map_or(0, |rest| rest.next);
                let mut producer = Producer::new(id, next.saturating_add(1), batch);
                producer.rested = rest.map(|rest| rest.last);
                producer.in_flight = 1;
                self.insert(producer);
            }
        }
        self.in_flight.push_back(InFlight { producer: id, end });
    }

    /// Everything below `end` is durable.
    pub(crate) fn settle(&mut self, end: SequenceNumber) {
        let remembered = self.limits.batches;
        while let Some(batch) = self.in_flight.pop_front_if(|batch| batch.end <= end) {
            if let Some((producer, _)) = self.find(batch.producer) {
                producer.in_flight -= 1;
                producer.trim(remembered);
            }
        }
        // Here and not for each newcomer: what a round takes in is put to rest in one pass.
        self.make_room_within(self.limits.producers);
    }

    /// Takes back every batch at or above `from`.
    pub(crate) fn abandon(&mut self, from: SequenceNumber) {
        while let Some(batch) = self.in_flight.pop_back_if(|batch| batch.end > from) {
            let Some((producer, last_used)) = self.find(batch.producer) else {
                continue;
            };
            producer.batches.pop_back();
            producer.next -= 1;
            producer.in_flight -= 1;
            match producer.batches.back() {
                Some(last) => *last_used = last.base,
                None => {
                    let removed = self.remove(self.recent);
                    if let Some(last) = removed.rested {
                        let next = removed.next;
                        self.rest(removed.id, Rest { next, last });
                    }
                }
            }
        }
    }

    /// Takes in a batch that was found in the log. What is known already is left as it is.
    pub(crate) fn learn(&mut self, id: ProducerId, sequence: ProducerSequence, batch: Remembered) {
        let next = sequence.value().saturating_add(1);
        let remembered = self.limits.batches;
        if self.resting.get(id).is_some_and(|rest| next <= rest.next) {
            return;
        }
        match self.find(id) {
            Some((producer, _)) if next <= producer.next => {}
            Some((producer, last_used)) => {
                *last_used = batch.base;
                if next != producer.next.saturating_add(1) {
                    producer.batches.clear();
                }
                producer.next = next;
                producer.remember(batch);
                producer.trim(remembered);
            }
            None => {
                self.resting.take(id);
                self.insert(Producer::new(id, next, batch));
                self.make_room_within(self.limits.producers);
            }
        }
    }

    /// Takes in a producer that was saved at rest.
    pub(crate) fn restore_resting(&mut self, id: ProducerId, rest: Rest) {
        self.rest(id, rest);
    }

    /// Takes in a producer that was saved. Its batches are not empty.
    pub(crate) fn restore(&mut self, id: ProducerId, next: u64, batches: VecDeque<Remembered>) {
        let Some(last) = batches.back().copied() else {
            return;
        };
        let mut producer = Producer::new(id, next, last);
        producer.batches = batches;
        producer.trim(self.limits.batches);
        self.insert(producer);
        self.make_room_within(self.limits.producers);
    }

    /// What is to be saved of each producer: its id, what comes next, and its batches that are
    /// durable. The others are not known to be there after a crash.
    pub(crate) fn saved(
        &self,
    ) -> impl Iterator<Item = (ProducerId, u64, impl ExactSizeIterator<Item = &Remembered>)> {
        self.known.iter().filter_map(|producer| {
            let durable = producer.batches.len().checked_sub(producer.in_flight)?;
            let next = producer.next.checked_sub(producer.in_flight as u64)?;
            (durable > 0).then(|| (producer.id, next, producer.batches.iter().take(durable)))
        })
    }

    /// What is to be saved of each producer of which no durable batch is remembered.
    pub(crate) fn saved_resting(&self) -> impl Iterator<Item = (ProducerId, Rest)> {
        let back = self.known.iter().filter_map(|producer| {
            let last = producer.rested?;
            let next = producer.next.checked_sub(producer.in_flight as u64)?;
            let none_durable = producer.batches.len() <= producer.in_flight;
            none_durable.then_some((producer.id, Rest { next, last }))
        });
        self.resting.iter().chain(back)
    }

    /// Remembers only what comes next from a producer.
    fn rest(&mut self, id: ProducerId, rest: Rest) {
        if let Some(forgotten) = self.resting.put(id, rest, self.limits.resting) {
            self.raise_watermark(forgotten);
        }
    }

    /// Puts the longest unused producers to rest until there are at most `most`, beside those with
    /// batches in flight: whether these stay is not known yet.
    fn make_room_within(&mut self, most: usize) {
        let excess = self.known.len().saturating_sub(most);
        if excess == 0 {
            return;
        }
        let mut oldest = self.oldest(excess);
        // Removing moves the last one to its place.
        oldest.sort_unstable_by_key(|place| Reverse(*place));
        for place in oldest {
            if self.known.get(place).is_none_or(|one| one.in_flight > 0) {
                continue;
            }
            let removed = self.remove(place);
            if let Some(last) = removed.batches.back() {
                let (next, last) = (removed.next, last.base);
                self.rest(removed.id, Rest { next, last });
            }
        }
    }

    /// The places of the longest unused producers.
    fn oldest(&self, count: usize) -> Vec<usize> {
        let mut places: Vec<usize> = (0..self.known.len()).collect();
        let last_used = |place: &usize| self.last_used.get(*place).copied();
        if count < places.len() {
            places.select_nth_unstable_by_key(count, last_used);
            places.truncate(count);
        }
        places
    }

    fn insert(&mut self, producer: Producer) {
        let last = producer
            .batches
            .back()
            .expect("BUG: a producer without a batch");
        self.recent = self.known.len();
        self.places.insert(producer.id, self.recent);
        self.last_used.push(last.base);
        self.known.push(producer);
    }

    fn remove(&mut self, place: usize) -> Producer {
        let removed = self.known.swap_remove(place);
        self.last_used.swap_remove(place);
        self.places.remove(&removed.id);
        if let Some(moved) = self.known.get(place) {
            self.places.insert(moved.id, place);
        }
        removed
    }
}

impl Producer {
    fn new(id: ProducerId, next: u64, batch: Remembered) -> Self {
        Self {
            id,
            next,
            in_flight: 0,
            rested: None,
            batches: VecDeque::from([batch]),
        }
    }

    /// Grows slowly: most producers have few batches, and there are many producers.
    fn remember(&mut self, batch: Remembered) {
        let (count, room) = (self.batches.len(), self.batches.capacity());
        if count == room {
            let more = if count < 64 {
                count.clamp(1, 64 - count)
            } else {
                count / 4
            };
            self.batches.reserve_exact(more);
        }
        self.batches.push_back(batch);
    }

    /// Forgets the batches that need not be remembered, and gives the memory of a burst back.
    fn trim(&mut self, remembered: usize) {
        let most = remembered.saturating_add(self.in_flight);
        while self.batches.len() > most {
            self.batches.pop_front();
        }
        if self.in_flight == 0 && self.batches.capacity() > remembered.saturating_mul(4) {
            self.batches.shrink_to(remembered.saturating_add(16));
        }
    }
}

/// Ids are given out one after another: spreading them by a multiplication is enough.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        // 2^64 divided by the golden ratio; the table takes its bits from both ends.
        let spread = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }
}
