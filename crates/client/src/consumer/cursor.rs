//! One shard's place in a consumer: what to ask for next, what of a frame is new, where it ends. Pure.

use flumen_api::v1::{self, start_position};
use flumen_record::{SequenceNumber, ShardIndex};

use super::StartPosition;
use crate::ShardDescription;

/// Where one shard is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) shard: ShardIndex,
    /// Shards to be read to their end before this one.
    pub(crate) parents: Vec<ShardIndex>,
    /// What to ask for; a number once it is known.
    at: StartPosition,
    /// Records from this number on are not wanted.
    stop: Option<SequenceNumber>,
    /// The broker said that the shard ends here.
    ended: bool,
}

impl Cursor {
    /// A shard to be read from `start`; up to its present end if `to_end`.
    ///
    /// LATEST becomes a number at once: asked for again after an outage it would leave out what
    /// arrived meanwhile.
    pub(crate) fn new(shard: &ShardDescription, start: StartPosition, to_end: bool) -> Self {
        let at = match start {
            StartPosition::Latest => StartPosition::At(shard.durable_end),
            StartPosition::After(number) => StartPosition::At(number.plus(1)),
            StartPosition::TrimHorizon | StartPosition::At(_) | StartPosition::AtTimestamp(_) => {
                start
            }
        };
        let empty = shard.trim_horizon >= shard.durable_end;
        Self {
            shard: shard.index,
            parents: shard.parents.clone(),
            at,
            stop: to_end.then_some(shard.durable_end),
            ended: to_end && empty,
        }
    }

    /// What to ask for to go on.
    pub(crate) fn position(&self) -> StartPosition {
        self.at
    }

    /// The next number, once it is known.
    pub(crate) fn next(&self) -> Option<SequenceNumber> {
        match self.at {
            StartPosition::At(next) => Some(next),
            _ => None,
        }
    }

    /// Whether nothing more is wanted from this shard.
    pub(crate) fn is_done(&self) -> bool {
        self.ended
            || self
                .next()
                .zip(self.stop)
                .is_some_and(|(next, stop)| next >= stop)
    }

    /// The broker resolved the position that was asked for.
    pub(crate) fn resolved(&mut self, start: SequenceNumber) {
        if self.next().is_none() {
            self.at = StartPosition::At(start);
        }
    }

    /// The records of a frame that are new and wanted: the first, and the first that is not. They
    /// count as read.
    pub(crate) fn take(&mut self, base: SequenceNumber, count: u32) -> Option<(u32, u32)> {
        let next = self.next().unwrap_or(base);
        let end = base
            .plus(u64::from(count))
            .min(self.stop.unwrap_or(SequenceNumber::MAX));
        if self.ended || end <= next {
            return None;
        }
        self.at = StartPosition::At(end);
        let within = |number: SequenceNumber| {
            let records = number.value().saturating_sub(base.value());
            u32::try_from(records).unwrap_or(count).min(count)
        };
        Some((within(next), within(end)))
    }

    /// Everything below `next` is read, or was never given out.
    pub(crate) fn step_to(&mut self, next: SequenceNumber) {
        if self.next().is_none_or(|now| now < next) {
            self.at = StartPosition::At(next);
        }
    }

    /// Goes on at `to`, leaving out what is gone; how many numbers that are.
    pub(crate) fn skip_to(&mut self, to: SequenceNumber) -> u64 {
        let skipped = self
            .next()
            .map_or(0, |next| to.value().saturating_sub(next.value()));
        self.step_to(to);
        skipped
    }

    /// The shard has no more records.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }
}

/// The shards to read now: not done, and everything they came from is. A parent that is done because
/// it is empty says nothing about its own parents. `cursors` are by shard, so parents come first.
pub(crate) fn ready(cursors: &[Cursor]) -> impl Iterator<Item = &Cursor> {
    let mut finished: Vec<bool> = Vec::with_capacity(cursors.len());
    cursors.iter().filter(move |cursor| {
        let has_finished = |parent: &ShardIndex| {
            let place = cursors.binary_search_by_key(parent, |cursor| cursor.shard);
            // What is not known has expired.
            place.is_err() || place.is_ok_and(|place| finished.get(place) == Some(&true))
        };
        let may_begin = cursor.parents.iter().all(has_finished);
        finished.push(may_begin && cursor.is_done());
        may_begin && !cursor.is_done()
    })
}

/// A start position as it travels.
pub(crate) fn wire(start: StartPosition) -> v1::StartPosition {
    use start_position::{Newest, Oldest, Position};
    let position = match start {
        StartPosition::TrimHorizon => Position::TrimHorizon(Oldest {}),
        StartPosition::Latest => Position::Latest(Newest {}),
        StartPosition::At(number) => Position::AtSequenceNumber(number.value()),
        StartPosition::After(number) => Position::AfterSequenceNumber(number.value()),
        StartPosition::AtTimestamp(time) => Position::AtTimestampUs(time.as_micros()),
    };
    v1::StartPosition {
        position: Some(position),
    }
}

#[cfg(test)]
mod tests {
    use flumen_record::{HashRange, Timestamp};

    use super::*;

    fn number(n: u64) -> SequenceNumber {
        SequenceNumber::new(n)
    }

    /// Shards as (index, parents, records), all to be read to their ends.
    fn ready_of(shards: &[(u32, &[u32], u64)], read: &[u32]) -> Vec<u32> {
        let cursor = |&(index, parents, end): &(u32, &[u32], u64)| {
            let mut cursor = cursor(StartPosition::TrimHorizon, 0, end, true);
            cursor.shard = ShardIndex::new(index);
            cursor.parents = parents.iter().copied().map(ShardIndex::new).collect();
            cursor.ended |= read.contains(&index);
            cursor
        };
        let cursors: Vec<_> = shards.iter().map(cursor).collect();
        ready(&cursors).map(|cursor| cursor.shard.value()).collect()
    }

    #[test]
    fn shards_wait_for_all_they_came_from() {
        // 1 and 2 are empty, so that they are done before 0 is.
        let shards: [(u32, &[u32], u64); 5] = [
            (0, &[], 9),
            (1, &[0], 0),
            (2, &[0], 0),
            (3, &[1, 2], 9),
            (4, &[], 9),
        ];
        assert_eq!(ready_of(&shards, &[]), [0, 4]);
        assert_eq!(ready_of(&shards, &[0]), [3, 4]);
        assert_eq!(ready_of(&shards, &[0, 3, 4]), [0; 0]);
        // What expired is waited for by nobody.
        assert_eq!(ready_of(&shards[1..], &[]), [3, 4]);
    }

    fn cursor(start: StartPosition, horizon: u64, end: u64, to_end: bool) -> Cursor {
        let shard = ShardDescription {
            index: ShardIndex::new(0),
            range: HashRange::FULL,
            open: true,
            parents: Vec::new(),
            trim_horizon: number(horizon),
            durable_end: number(end),
            last_arrival: Timestamp::ZERO,
            stored_bytes: 0,
        };
        Cursor::new(&shard, start, to_end)
    }

    /// Feeds frames (base, count) and lists the numbers taken.
    fn read(cursor: &mut Cursor, frames: &[(u64, u32)]) -> Vec<u64> {
        let mut numbers = Vec::new();
        for &(base, count) in frames {
            if let Some((first, end)) = cursor.take(number(base), count) {
                assert!(first < end && end <= count);
                numbers.extend((first..end).map(|i| base + u64::from(i)));
            }
        }
        numbers
    }

    #[test]
    fn latest_and_after_are_numbers_from_the_start() {
        let at = |start| cursor(start, 3, 10, false).position();
        assert_eq!(at(StartPosition::Latest), StartPosition::At(number(10)));
        assert_eq!(
            at(StartPosition::After(number(4))),
            StartPosition::At(number(5))
        );
        assert_eq!(
            at(StartPosition::At(number(4))),
            StartPosition::At(number(4))
        );
        assert_eq!(at(StartPosition::TrimHorizon), StartPosition::TrimHorizon);
        let time = StartPosition::AtTimestamp(Timestamp::from_micros(1));
        assert_eq!(at(time), time);
    }

    #[test]
    fn records_below_the_position_are_left_out_and_none_comes_twice() {
        let mut c = cursor(StartPosition::At(number(5)), 0, 20, false);
        assert_eq!(read(&mut c, &[(3, 4), (7, 1)]), [5, 6, 7]);
        // The session breaks; the broker sends the frames around the position again.
        assert_eq!(c.position(), StartPosition::At(number(8)));
        assert_eq!(read(&mut c, &[(3, 4), (7, 3)]), [8, 9]);
        // A recorded jump.
        assert_eq!(read(&mut c, &[(1 << 32, 2)]), [1 << 32, (1 << 32) + 1]);
    }

    #[test]
    fn an_unresolved_start_takes_what_the_broker_resolved() {
        let mut c = cursor(StartPosition::TrimHorizon, 0, 20, false);
        c.resolved(number(4));
        c.resolved(number(0));
        assert_eq!(read(&mut c, &[(2, 4)]), [4, 5]);
    }

    #[test]
    fn it_stops_at_what_was_the_end() {
        let mut c = cursor(StartPosition::TrimHorizon, 0, 5, true);
        assert_eq!(read(&mut c, &[(0, 4)]), [0, 1, 2, 3]);
        assert!(!c.is_done());
        assert_eq!(read(&mut c, &[(4, 4), (8, 1)]), [4]);
        assert!(c.is_done());
        for start in [
            StartPosition::Latest,
            StartPosition::At(number(5)),
            StartPosition::After(number(4)),
        ] {
            assert!(cursor(start, 0, 5, true).is_done(), "{start:?}");
        }
        assert!(
            cursor(StartPosition::TrimHorizon, 5, 5, true).is_done(),
            "nothing there"
        );
        assert!(!cursor(StartPosition::Latest, 0, 5, false).is_done());
    }

    #[test]
    fn stepping_over_gaps_never_goes_back() {
        let mut c = cursor(StartPosition::At(number(5)), 0, 20, true);
        c.step_to(number(3));
        assert_eq!(c.next(), Some(number(5)));
        assert_eq!(c.skip_to(number(9)), 4);
        assert_eq!(c.skip_to(number(9)), 0);
        c.step_to(number(20));
        assert!(c.is_done());
    }

    #[test]
    fn an_ended_shard_gives_nothing() {
        let mut c = cursor(StartPosition::At(number(5)), 0, 20, false);
        c.end();
        assert!(c.is_done());
        assert_eq!(read(&mut c, &[(5, 2)]), [0_u64; 0]);
    }
}
