//! How much of a shard lies behind a reader: records, bytes and age, from memory.

use flumen_record::{SequenceNumber, ShardId, Timestamp};

use crate::error::ReadError;
use crate::index::{Run, ShardState};
use crate::reader::LogReader;
use crate::stay::Stay;

/// More runs than this are not added up: their bytes are estimated.
const RUNS_ADDED_UP: usize = 1024;

/// What is readable from a sequence number on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Records; recorded jumps hold none.
    pub records: u64,
    /// Stored bytes. Of many runs, or of those whose index is not in memory, an estimate: the
    /// shard's average per record.
    pub bytes: u64,
    /// When the first of them arrived. `None`: there are none.
    pub oldest: Option<Timestamp>,
    /// Whether that is known to within its round. When its index is not in memory it is about when
    /// the segment began that holds it; [`LogReader::arrival_of`] looks it up.
    pub is_exact: bool,
}

impl ShardState {
    /// What is readable from `from` on. Numbers below the horizon are gone and not counted.
    pub(crate) fn backlog(&self, from: SequenceNumber) -> Backlog {
        let from = from.max(self.horizon);
        let records = self.records_from(from);
        if records == 0 {
            return Backlog::default();
        }
        let runs = self.recent_at(from).map(|first| self.recent.range(first..));
        let first = runs.clone().and_then(|mut runs| runs.next());
        let oldest =
            first.map_or_else(|| self.arrival_about(from), |run| arrival_within(run, from));
        let bytes = match runs {
            Some(runs) if runs.len() <= RUNS_ADDED_UP => {
                runs.map(|run| bytes_within(run, from)).sum()
            }
            _ => share(
                self.stored_bytes,
                records,
                self.records_from(self.horizon).max(records),
            ),
        };
        Backlog {
            records,
            bytes,
            oldest: Some(oldest),
            is_exact: first.is_some(),
        }
    }

    /// When a record arrived whose run is not in memory: not long before it, where a mark is known;
    /// otherwise at the latest.
    fn arrival_about(&self, from: SequenceNumber) -> Timestamp {
        let above = self.marks.partition_point(|mark| mark.base <= from);
        let mark = above.checked_sub(1).and_then(|at| self.marks.get(at));
        let mark = mark.or_else(|| self.marks.first());
        mark.map(|mark| mark.arrival)
            .or_else(|| self.recent.front().map(|run| run.arrival))
            .unwrap_or(self.last_arrival)
    }

    /// Numbers from `from` to the end that are in no recorded jump.
    pub(crate) fn records_from(&self, from: SequenceNumber) -> u64 {
        let (from, end) = (from.value(), self.end.value());
        let jumped: u64 = self
            .gaps
            .iter()
            .map(|gap| {
                gap.to
                    .value()
                    .min(end)
                    .saturating_sub(gap.from.value().max(from))
            })
            .sum();
        end.saturating_sub(from).saturating_sub(jumped)
    }
}

/// `part` of `whole`, of `bytes`.
fn share(bytes: u64, part: u64, whole: u64) -> u64 {
    let share = u128::from(bytes) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

fn numbers(run: &Run, from: SequenceNumber) -> (u64, u64) {
    let all = run.end.value().saturating_sub(run.base.value());
    let left = run
        .end
        .value()
        .saturating_sub(from.value().max(run.base.value()));
    (left, all)
}

fn bytes_within(run: &Run, from: SequenceNumber) -> u64 {
    let (left, all) = numbers(run, from);
    share(u64::from(run.bytes), left, all)
}

/// Batches of a round arrived between two times.
fn arrival_within(run: &Run, from: SequenceNumber) -> Timestamp {
    let (left, all) = numbers(run, from);
    let between = run
        .last_arrival
        .as_micros()
        .saturating_sub(run.arrival.as_micros());
    let passed = share(between, all.saturating_sub(left), all);
    Timestamp::from_micros(run.arrival.as_micros().saturating_add(passed))
}

impl LogReader {
    /// What is readable of a stay from `from` on. Never touches the disk. `None` when this log never
    /// held the shard.
    pub fn backlog(&self, shard: ShardId, stay: &Stay, from: SequenceNumber) -> Option<Backlog> {
        let cell = self.cell(shard).ok()?;
        let state = cell.lock();
        let mut all = state.backlog(from.max(stay.from()));
        if let Some(to) = stay.to() {
            // What follows is of a later stay.
            let beyond = state.backlog(to);
            all.records = all.records.saturating_sub(beyond.records);
            all.bytes = all.bytes.saturating_sub(beyond.bytes);
        }
        Some(if all.records > 0 {
            all
        } else {
            Backlog::default()
        })
    }

    /// When the record `from` (or the next after it in the stay) arrived, to within its round. `None`
    /// when there is none yet. May block (footers).
    pub fn arrival_of(
        &self,
        shard: ShardId,
        stay: &Stay,
        from: SequenceNumber,
    ) -> Result<Option<Timestamp>, ReadError> {
        let from = from.max(stay.from());
        if stay.to().is_some_and(|to| from >= to) {
            return Ok(None);
        }
        let run = self.first_run(shard, from)?;
        let run = run.filter(|run| stay.to().is_none_or(|to| run.base < to));
        Ok(run.map(|run| arrival_within(&run, from)))
    }
}

#[cfg(test)]
mod tests {
    use flumen_record::{ShardEpoch, ShardId};

    use super::*;
    use crate::index::ShardCell;
    use crate::state::{Gap, ShardStanding};

    fn number(n: u64) -> SequenceNumber {
        SequenceNumber::new(n)
    }

    fn run(base: u64, end: u64, bytes: u32, arrival: u64) -> Run {
        Run {
            segment: 1,
            base: number(base),
            end: number(end),
            arrival: Timestamp::from_micros(arrival),
            last_arrival: Timestamp::from_micros(arrival + 10),
            position: 0,
            bytes,
        }
    }

    #[test]
    fn counts_records_bytes_and_age_from_a_number_on() {
        let standing = ShardStanding::new(ShardId::from_value(1));
        let cell = ShardCell::new(&standing);
        let mut state = cell.lock();
        let check = |state: &ShardState, from: u64, expected: (u64, u64, Option<u64>)| {
            let found = state.backlog(number(from));
            let oldest = found.oldest.map(Timestamp::as_micros);
            assert_eq!((found.records, found.bytes, oldest), expected, "{from}");
        };
        check(&state, 0, (0, 0, None));
        state.append(run(0, 10, 1000, 100), ShardEpoch::new(1));
        state.append(run(10, 20, 500, 200), ShardEpoch::new(1));
        check(&state, 0, (20, 1500, Some(100)));
        check(&state, 5, (15, 1000, Some(105)));
        check(&state, 10, (10, 500, Some(200)));
        check(&state, 19, (1, 50, Some(209)));
        check(&state, 20, (0, 0, None));
        // A jump holds no records.
        state.jump(Gap {
            from: number(20),
            to: number(1 << 32),
            lost: false,
        });
        check(&state, 20, (0, 0, None));
        let base = 1 << 32;
        state.append(run(base, base + 2, 80, 300), ShardEpoch::new(2));
        check(&state, 20, (2, 80, Some(300)));
        check(&state, 10, (12, 580, Some(200)));
        // What is trimmed lies behind nobody.
        state.trim(number(10));
        check(&state, 0, (12, 580, Some(200)));
    }

    #[test]
    fn what_is_not_in_memory_is_estimated() {
        let cell = ShardCell::new(&ShardStanding::new(ShardId::from_value(1)));
        let mut state = cell.lock();
        state.append(run(0, 100, 1000, 100), ShardEpoch::new(1));
        let mut later = run(100, 200, 3000, 200);
        later.segment = 2;
        state.append(later, ShardEpoch::new(1));
        state.release(1);
        let found = state.backlog(number(50));
        assert_eq!((found.records, found.bytes), (150, 3000));
        // When its segment began.
        let begun = Some(Timestamp::from_micros(100));
        assert_eq!((found.oldest, found.is_exact), (begun, false));
        let found = state.backlog(number(100));
        assert_eq!((found.bytes, found.is_exact), (3000, true));
    }
}
