//! How fast one shard may be written: a token bucket per second for records and for bytes. Off by
//! default.

use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use flumen_record::{SequenceNumber, Timestamp};

/// What may be saved up: as much as one second brings.
const BURST: Duration = Duration::from_secs(1);

/// One rate. Its whole state is the time at which everything taken so far is paid for.
#[derive(Debug)]
struct Bucket {
    per_second: NonZeroU64,
    paid_at: Timestamp,
}

impl Bucket {
    fn new(per_second: NonZeroU64) -> Self {
        Self {
            per_second,
            paid_at: Timestamp::ZERO,
        }
    }

    /// How long until something can be taken; zero when it can be now. What is taken may be more
    /// than what is there: the next one waits for it.
    fn wait(&self, now: Timestamp) -> Duration {
        self.paid_at.since(now.saturating_add(BURST))
    }

    fn cost(&self, amount: u64) -> Duration {
        let micros = u128::from(amount) * 1_000_000 / u128::from(self.per_second.get());
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    fn take(&mut self, amount: u64, now: Timestamp) {
        self.paid_at = self.paid_at.max(now).saturating_add(self.cost(amount));
    }

    /// The clock was set back.
    fn set_back(&mut self, by: Duration) {
        self.paid_at = self.paid_at.saturating_sub(by);
    }

    fn give_back(&mut self, amount: u64) {
        self.paid_at = self.paid_at.saturating_sub(self.cost(amount));
    }
}

/// Something taken for a batch that may yet be abandoned.
#[derive(Debug)]
struct Taken {
    end: SequenceNumber,
    records: u64,
    bytes: u64,
}

/// A shard's quota.
#[derive(Debug)]
pub(crate) struct Quota {
    records: Option<Bucket>,
    bytes: Option<Bucket>,
    taken: VecDeque<Taken>,
    /// The time that was told last.
    now: Timestamp,
}

impl Quota {
    /// `None` where neither rate is limited.
    pub(crate) fn new(records: Option<NonZeroU32>, bytes: Option<NonZeroU64>) -> Option<Self> {
        if records.is_none() && bytes.is_none() {
            return None;
        }
        Some(Self {
            records: records.map(|rate| Bucket::new(rate.into())),
            bytes: bytes.map(Bucket::new),
            taken: VecDeque::new(),
            now: Timestamp::ZERO,
        })
    }

    /// How long until a batch may be taken; zero when it may be now. A clock that is set back takes
    /// what is owed with it: who was ahead of time is not held up until that time comes.
    pub(crate) fn wait(&mut self, now: Timestamp) -> Duration {
        let back = self.now.since(now);
        if !back.is_zero() {
            let buckets = [&mut self.records, &mut self.bytes];
            buckets
                .into_iter()
                .flatten()
                .for_each(|bucket| bucket.set_back(back));
        }
        self.now = now;
        let wait =
            |bucket: &Option<Bucket>| bucket.as_ref().map_or(Duration::ZERO, |b| b.wait(now));
        wait(&self.records).max(wait(&self.bytes))
    }

    /// Takes a batch that ends before `end`.
    pub(crate) fn take(&mut self, end: SequenceNumber, records: u64, bytes: u64, now: Timestamp) {
        if let Some(bucket) = &mut self.records {
            bucket.take(records, now);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes, now);
        }
        self.taken.push_back(Taken {
            end,
            records,
            bytes,
        });
    }

    /// What was taken for batches below `end` is spent.
    pub(crate) fn settle(&mut self, end: SequenceNumber) {
        while self.taken.pop_front_if(|taken| taken.end <= end).is_some() {}
    }

    /// Gives back what was taken for batches at or above `from`.
    pub(crate) fn abandon(&mut self, from: SequenceNumber) {
        while let Some(taken) = self.taken.pop_back_if(|taken| taken.end > from) {
            if let Some(bucket) = &mut self.records {
                bucket.give_back(taken.records);
            }
            if let Some(bucket) = &mut self.bytes {
                bucket.give_back(taken.bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    fn quota(records: u32, bytes: u64) -> Quota {
        Quota::new(NonZeroU32::new(records), NonZeroU64::new(bytes)).unwrap()
    }

    fn number(value: u64) -> SequenceNumber {
        SequenceNumber::new(value)
    }

    #[test]
    fn it_is_off_unless_a_rate_is_set() {
        assert!(Quota::new(None, None).is_none());
    }

    #[test]
    fn a_second_of_the_rate_can_be_taken_at_once_and_no_more() {
        let mut quota = quota(1_000, 0);
        let now = 100 * SECOND;
        let mut taken = 0;
        while quota.wait(at(now)).is_zero() {
            taken += 1;
            quota.take(number(taken), 1, 1, at(now));
        }
        // The bucket, and the one that is allowed to overdraw it.
        assert_eq!(taken, 1_001);
        assert_eq!(quota.wait(at(now)), Duration::from_millis(1));
        assert!(quota.wait(at(now + 1_000)).is_zero());
    }

    #[test]
    fn a_batch_larger_than_the_bucket_passes_and_the_next_one_waits_for_it() {
        let mut quota = quota(0, 1_000);
        let now = 100 * SECOND;
        quota.take(number(1), 1, 10_000, at(now));
        assert_eq!(quota.wait(at(now)), Duration::from_secs(9));
        assert_eq!(quota.wait(at(now + 8 * SECOND)), Duration::from_secs(1));
        assert!(quota.wait(at(now + 9 * SECOND)).is_zero());
    }

    #[test]
    fn the_slower_of_both_rates_decides() {
        let mut quota = quota(10, 1_000);
        let now = 100 * SECOND;
        quota.take(number(20), 20, 1, at(now));
        assert_eq!(quota.wait(at(now)), Duration::from_secs(1));
        quota.take(number(21), 1, 5_000, at(now));
        assert_eq!(quota.wait(at(now)).as_millis(), 4_001);
    }

    #[test]
    fn a_clock_that_is_set_back_holds_nobody_up() {
        let mut quota = quota(10, 0);
        let (ahead, now) = (100 * 86_400 * SECOND, 60 * 86_400 * SECOND);
        assert!(quota.wait(at(ahead)).is_zero());
        quota.take(number(20), 20, 1, at(ahead));
        assert_eq!(quota.wait(at(ahead)), Duration::from_secs(1));
        assert_eq!(quota.wait(at(now)), Duration::from_secs(1));
        assert!(quota.wait(at(now + SECOND)).is_zero());
    }

    #[test]
    fn what_is_abandoned_is_given_back() {
        let mut quota = quota(10, 0);
        let now = 100 * SECOND;
        quota.take(number(10), 10, 1, at(now));
        quota.take(number(20), 10, 1, at(now));
        assert_eq!(quota.wait(at(now)), Duration::from_secs(1));
        quota.settle(number(10));
        quota.abandon(number(0));
        assert_eq!(quota.wait(at(now)), Duration::ZERO);
        quota.take(number(15), 5, 1, at(now));
        assert_eq!(quota.wait(at(now)), Duration::from_millis(500));
    }
}
