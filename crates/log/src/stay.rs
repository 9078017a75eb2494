//! Where a shard's records lie: in one log after another, each for a range of its numbers.

use std::collections::BTreeMap;

use flumen_record::{SequenceNumber, ShardEpoch, ShardId};
use thiserror::Error;

use crate::config::LogKey;

/// Names one stay of a shard, among all it ever has: a shard may come back to a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StayId {
    /// The shard.
    pub shard: ShardId,
    /// The epoch the shard had when the stay began.
    pub epoch: ShardEpoch,
}

/// A range of a shard's numbers that lies in one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stay {
    log: LogKey,
    epoch: ShardEpoch,
    from: SequenceNumber,
    to: Option<SequenceNumber>,
}

/// The stays of a shard, oldest first: at least one, without gaps between them, under rising epochs,
/// and only the last one open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stays(Vec<Stay>);

/// Why stays are not those of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StaysFault {
    /// There is none.
    #[error("it lies in no log")]
    Empty,
    /// One does not begin where the one before it ends.
    #[error("between two of its stays in logs numbers are missing or twice")]
    NotGapless,
    /// One ends before it begins.
    #[error("one of its stays in logs ends before it begins")]
    Backwards,
    /// One has no later epoch than the one before it.
    #[error("the epochs of its stays in logs do not rise")]
    EpochNotRising,
    /// One before the last has no end, or the last one has one.
    #[error("one of its stays in logs is open that is not the last, or none is")]
    NotOnlyLastOpen,
}

impl Stay {
    /// A stay in `log`, of the numbers from `from` up to `to`; without `to` it is open.
    pub const fn new(
        log: LogKey,
        epoch: ShardEpoch,
        from: SequenceNumber,
        to: Option<SequenceNumber>,
    ) -> Self {
        Self {
            log,
            epoch,
            from,
            to,
        }
    }

    /// The log.
    pub fn log(&self) -> LogKey {
        self.log
    }

    /// The epoch under which it began: its frames have this one or a later one.
    pub fn epoch(&self) -> ShardEpoch {
        self.epoch
    }

    /// Its first number.
    pub fn from(&self) -> SequenceNumber {
        self.from
    }

    /// The number after its last one; `None`: it goes on.
    pub fn to(&self) -> Option<SequenceNumber> {
        self.to
    }

    /// Its name.
    pub fn id(&self, shard: ShardId) -> StayId {
        StayId {
            shard,
            epoch: self.epoch,
        }
    }

    /// Whether a number is one of its own.
    pub fn holds(&self, number: SequenceNumber) -> bool {
        number >= self.from && self.to.is_none_or(|to| number < to)
    }

    /// The same stay, over at `end` when it was open: its shard has closed there.
    #[must_use]
    pub fn closed_at(mut self, end: SequenceNumber) -> Self {
        self.to.get_or_insert(end);
        self
    }
}

impl Stays {
    /// Those of a shard that begins in `log`.
    pub fn begin(log: LogKey) -> Self {
        Self(vec![Stay::new(
            log,
            ShardEpoch::default(),
            SequenceNumber::ZERO,
            None,
        )])
    }

    /// Takes stays over that were read.
    pub fn check(stays: Vec<Stay>) -> Result<Self, StaysFault> {
        let (last, closed) = stays.split_last().ok_or(StaysFault::Empty)?;
        if last.to.is_some() || closed.iter().any(|stay| stay.to.is_none()) {
            return Err(StaysFault::NotOnlyLastOpen);
        }
        if stays
            .iter()
            .any(|stay| stay.to.is_some_and(|to| to <= stay.from))
        {
            return Err(StaysFault::Backwards);
        }
        let pairs = || stays.iter().zip(stays.iter().skip(1));
        if pairs().any(|(one, next)| one.to != Some(next.from)) {
            return Err(StaysFault::NotGapless);
        }
        if pairs().any(|(one, next)| one.epoch >= next.epoch) {
            return Err(StaysFault::EpochNotRising);
        }
        Ok(Self(stays))
    }

    /// All of them, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Stay> + ExactSizeIterator + Clone {
        self.0.iter()
    }

    /// How many there are; at least one.
    #[expect(clippy::len_without_is_empty, reason = "they are never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The oldest.
    pub fn first(&self) -> &Stay {
        self.0.first().expect("BUG: a shard lies in no log")
    }

    /// The one that takes appends.
    pub fn last(&self) -> &Stay {
        self.0.last().expect("BUG: a shard lies in no log")
    }

    /// The one that holds a number. Of numbers before the oldest stay: the oldest.
    pub fn at(&self, number: SequenceNumber) -> &Stay {
        let after = self.0.partition_point(|stay| stay.from <= number);
        let place = after.saturating_sub(1);
        self.0.get(place).unwrap_or_else(|| self.last())
    }

    /// Goes on in `log` from `from` on, under `epoch`. Where nothing was given out since the last move,
    /// the shard was never there.
    ///
    /// # Panics
    /// When `from` is before the last stay.
    pub fn move_to(&mut self, log: LogKey, from: SequenceNumber, epoch: ShardEpoch) {
        let before = *self.last();
        assert!(
            from >= before.from,
            "BUG: a shard moves back in its numbers"
        );
        if before.log == log {
            return;
        }
        let epoch = epoch.max(ShardEpoch::new(before.epoch.value().saturating_add(1)));
        if before.from == from {
            self.0.pop();
        } else if let Some(last) = self.0.last_mut() {
            last.to = Some(from);
        }
        match self.0.last_mut() {
            // Back where it came from.
            Some(last) if last.log == log => last.to = None,
            _ => self.0.push(Stay::new(log, epoch, from, None)),
        }
    }

    /// Drops the stays up to the one of this epoch, but for the last. Returns what was dropped.
    pub fn drop_through(&mut self, epoch: ShardEpoch) -> Vec<Stay> {
        let gone = self.0.partition_point(|stay| stay.epoch <= epoch);
        let gone = gone.min(self.0.len().saturating_sub(1));
        self.0.drain(..gone).collect()
    }
}

/// The stays that one log holds, by shard.
#[derive(Debug, Clone, Default)]
pub struct LogStays(BTreeMap<ShardId, Vec<Stay>>);

impl LogStays {
    /// Adds one; those of a shard come in order.
    pub fn add(&mut self, shard: ShardId, stay: Stay) {
        self.0.entry(shard).or_default().push(stay);
    }

    /// Those of a shard; none: it does not lie here.
    pub(crate) fn of(&self, shard: ShardId) -> &[Stay] {
        self.0.get(&shard).map(Vec::as_slice).unwrap_or_default()
    }

    pub(crate) fn shards(&self) -> impl Iterator<Item = (ShardId, &[Stay])> {
        self.0
            .iter()
            .map(|(shard, stays)| (*shard, stays.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use flumen_record::Durability;

    use super::*;

    fn number(value: u64) -> SequenceNumber {
        SequenceNumber::new(value)
    }

    fn log(lane: u32) -> LogKey {
        LogKey {
            durability: Durability::Disk,
            class_hours: 24,
            lane,
        }
    }

    fn stay(lane: u32, epoch: u32, from: u64, to: Option<u64>) -> Stay {
        Stay::new(
            log(lane),
            ShardEpoch::new(epoch),
            number(from),
            to.map(number),
        )
    }

    /// Lane, epoch, from, to (0: open) of each.
    fn shown(stays: &Stays) -> Vec<(u32, u32, u64, u64)> {
        let shown = |stay: &Stay| {
            let to = stay.to().map_or(0, SequenceNumber::value);
            (
                stay.log().lane,
                stay.epoch().value(),
                stay.from().value(),
                to,
            )
        };
        stays.iter().map(shown).collect()
    }

    #[test]
    fn only_what_can_be_a_shards_stays_is_taken_over() {
        let good = vec![
            stay(0, 0, 3, Some(5)),
            stay(1, 2, 5, Some(9)),
            stay(0, 4, 9, None),
        ];
        assert_eq!(Stays::check(good.clone()).map(|stays| stays.len()), Ok(3));
        let check = |change: &dyn Fn(&mut Vec<Stay>), fault| {
            let mut stays = good.clone();
            change(&mut stays);
            assert_eq!(Stays::check(stays), Err(fault));
        };
        check(&|stays| stays.clear(), StaysFault::Empty);
        check(&|stays| stays[1].from = number(6), StaysFault::NotGapless);
        check(&|stays| stays[1].from = number(4), StaysFault::NotGapless);
        check(
            &|stays| stays.retain(|stay| stay.from != number(5)),
            StaysFault::NotGapless,
        );
        check(
            &|stays| stays[0].to = Some(number(3)),
            StaysFault::Backwards,
        );
        check(
            &|stays| stays[1].epoch = ShardEpoch::new(4),
            StaysFault::EpochNotRising,
        );
        check(&|stays| stays[1].to = None, StaysFault::NotOnlyLastOpen);
        check(
            &|stays| stays[2].to = Some(number(11)),
            StaysFault::NotOnlyLastOpen,
        );
    }

    #[test]
    fn a_shard_moves_there_and_back() {
        let mut stays = Stays::begin(log(0));
        let mut go = |lane, from, epoch, expected: &[(u32, u32, u64, u64)]| {
            stays.move_to(log(lane), number(from), ShardEpoch::new(epoch));
            assert_eq!(shown(&stays), expected);
            assert_eq!(
                Stays::check(stays.iter().copied().collect()),
                Ok(stays.clone())
            );
        };
        // Nothing was given out: it was never in the first.
        go(1, 0, 2, &[(1, 2, 0, 0)]);
        go(1, 7, 3, &[(1, 2, 0, 0)]);
        go(0, 7, 3, &[(1, 2, 0, 7), (0, 3, 7, 0)]);
        // Nor in the one between, which it left for where it was.
        go(1, 7, 4, &[(1, 2, 0, 0)]);
        go(0, 7, 5, &[(1, 2, 0, 7), (0, 5, 7, 0)]);
        // Of it, or of another.
        go(2, 7, 6, &[(1, 2, 0, 7), (2, 6, 7, 0)]);
        go(1, 9, 6, &[(1, 2, 0, 7), (2, 6, 7, 9), (1, 7, 9, 0)]);
        go(
            2,
            12,
            11,
            &[(1, 2, 0, 7), (2, 6, 7, 9), (1, 7, 9, 12), (2, 11, 12, 0)],
        );
    }

    #[test]
    fn every_number_lies_in_one_stay() {
        let all = vec![
            stay(0, 0, 3, Some(5)),
            stay(1, 2, 5, Some(9)),
            stay(0, 4, 9, None),
        ];
        let stays = Stays::check(all).unwrap();
        for (asked, epoch) in [
            (0, 0),
            (3, 0),
            (4, 0),
            (5, 2),
            (8, 2),
            (9, 4),
            (u64::MAX, 4),
        ] {
            let found = stays.at(number(asked));
            assert_eq!(found.epoch().value(), epoch, "{asked}");
            assert_eq!(found.holds(number(asked)), asked >= 3, "{asked}");
        }
    }

    #[test]
    fn old_stays_leave_from_the_front_and_the_last_one_never() {
        let all = vec![
            stay(0, 0, 3, Some(5)),
            stay(1, 2, 5, Some(9)),
            stay(0, 4, 9, None),
        ];
        let stays = Stays::check(all).unwrap();
        for (epoch, gone) in [(0, 1), (1, 1), (2, 2), (3, 2), (4, 2), (99, 2)] {
            let mut stays = stays.clone();
            assert_eq!(stays.drop_through(ShardEpoch::new(epoch)).len(), gone);
            assert_eq!(stays.len(), 3 - gone);
        }
    }

    #[test]
    fn a_closed_shard_ends_its_last_stay_only() {
        assert_eq!(
            stay(0, 0, 3, None).closed_at(number(8)).to(),
            Some(number(8))
        );
        let closed = stay(0, 0, 3, Some(5));
        assert_eq!(closed.closed_at(number(8)), closed);
    }
}
