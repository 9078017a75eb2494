//! What a log knows about every shard it holds or has held: written at the head of each segment
//! and in the snapshot, so that nothing depends on segments that were freed.

use bytes::{Buf, BufMut};
use flumen_record::{SequenceNumber, ShardEpoch, ShardId, Timestamp};

const ROW_BYTES: usize = 56;
const GAP_BYTES: usize = 24;
const JUMP: u64 = 1;
const LOST: u64 = 2;

/// A range of sequence numbers without records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) from: SequenceNumber,
    pub(crate) to: SequenceNumber,
    /// Acknowledged records may have been in it: readers get an error, they do not step over it.
    pub(crate) lost: bool,
}

/// Where a shard stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShardStanding {
    pub(crate) shard: ShardId,
    pub(crate) horizon: SequenceNumber,
    pub(crate) end: SequenceNumber,
    pub(crate) last_arrival: Timestamp,
    pub(crate) epoch: ShardEpoch,
    /// The last segment that holds runs of it; 0 when none does.
    pub(crate) last_segment: u64,
    /// Stored bytes between horizon and end, about.
    pub(crate) stored_bytes: u64,
    /// Ascending, disjoint, none wholly below the horizon.
    pub(crate) gaps: Vec<Gap>,
}

impl ShardStanding {
    pub(crate) fn new(shard: ShardId) -> Self {
        Self {
            shard,
            horizon: SequenceNumber::ZERO,
            end: SequenceNumber::ZERO,
            last_arrival: Timestamp::ZERO,
            epoch: ShardEpoch::default(),
            last_segment: 0,
            stored_bytes: 0,
            gaps: Vec::new(),
        }
    }

    /// Bytes of its row in a table.
    pub(crate) fn encoded_bytes(&self) -> usize {
        ROW_BYTES + self.gaps.len() * GAP_BYTES
    }

    /// Drops gaps beyond the end: up to format 1 of the catalog, a shard that came back to a log went
    /// on below a jump that the log had made while it was away.
    pub(crate) fn drop_gaps_beyond(&mut self) {
        self.gaps.retain(|gap| gap.to <= self.end);
    }

    /// Takes over what `later` knows beyond this.
    pub(crate) fn merge(&mut self, later: &Self) {
        self.horizon = self.horizon.max(later.horizon);
        self.end = self.end.max(later.end);
        self.last_arrival = self.last_arrival.max(later.last_arrival);
        self.epoch = self.epoch.max(later.epoch);
        self.last_segment = self.last_segment.max(later.last_segment);
        for gap in &later.gaps {
            add_gap(&mut self.gaps, *gap);
        }
        drop_gaps_below(&mut self.gaps, self.horizon);
    }
}

/// Adds a gap in order; one that is already known, or overlaps a known one, is not added twice.
pub(crate) fn add_gap(gaps: &mut Vec<Gap>, gap: Gap) {
    if gap.from >= gap.to {
        return;
    }
    let place = gaps.partition_point(|known| known.from < gap.from);
    let after = gaps.get(place).is_some_and(|known| known.from < gap.to);
    let before = place
        .checked_sub(1)
        .and_then(|index| gaps.get(index))
        .is_some_and(|known| known.to > gap.from);
    if !after && !before {
        gaps.insert(place, gap);
    }
}

/// The first number in `from..to` that no jump in `gaps` explains: acknowledged records are, or may
/// be, hidden there.
pub(crate) fn uncovered(
    gaps: &[Gap],
    from: SequenceNumber,
    to: SequenceNumber,
) -> Option<SequenceNumber> {
    let mut at = from;
    for gap in gaps {
        if at >= to || gap.from > at {
            break;
        }
        if gap.to <= at {
            continue;
        }
        if gap.lost {
            return Some(at);
        }
        at = gap.to;
    }
    (at < to).then_some(at)
}

/// Forgets gaps that lie wholly below `horizon`.
pub(crate) fn drop_gaps_below(gaps: &mut Vec<Gap>, horizon: SequenceNumber) {
    gaps.retain(|gap| gap.to > horizon);
}

/// Writes a table of standings.
pub(crate) fn encode_table(standings: &[ShardStanding], out: &mut Vec<u8>) {
    out.reserve(standings.len() * ROW_BYTES);
    for standing in standings {
        out.put_u64_le(standing.shard.value());
        out.put_u64_le(standing.horizon.value());
        out.put_u64_le(standing.end.value());
        out.put_u64_le(standing.last_arrival.as_micros());
        out.put_u64_le(standing.last_segment);
        out.put_u64_le(standing.stored_bytes);
        out.put_u32_le(standing.epoch.value());
        out.put_u32_le(u32::try_from(standing.gaps.len()).expect("BUG: gaps per shard are few"));
        for gap in &standing.gaps {
            out.put_u64_le(gap.from.value());
            out.put_u64_le(gap.to.value());
            out.put_u64_le(if gap.lost { LOST } else { JUMP });
        }
    }
}

/// Reads a table that was written by [`encode_table`]; `None` when the bytes are not one.
pub(crate) fn decode_table(mut bytes: &[u8]) -> Option<Vec<ShardStanding>> {
    let mut standings = Vec::with_capacity(bytes.len() / ROW_BYTES);
    while !bytes.is_empty() {
        standings.push(decode_row(&mut bytes)?);
    }
    Some(standings)
}

fn decode_row(bytes: &mut &[u8]) -> Option<ShardStanding> {
    if bytes.len() < ROW_BYTES {
        return None;
    }
    let mut standing = ShardStanding::new(ShardId::from_value(bytes.get_u64_le()));
    standing.horizon = SequenceNumber::new(bytes.get_u64_le());
    standing.end = SequenceNumber::new(bytes.get_u64_le());
    standing.last_arrival = Timestamp::from_micros(bytes.get_u64_le());
    standing.last_segment = bytes.get_u64_le();
    standing.stored_bytes = bytes.get_u64_le();
    standing.epoch = ShardEpoch::new(bytes.get_u32_le());
    let gaps = bytes.get_u32_le() as usize;
    if bytes.len() / GAP_BYTES < gaps {
        return None;
    }
    for _ in 0..gaps {
        let from = SequenceNumber::new(bytes.get_u64_le());
        let to = SequenceNumber::new(bytes.get_u64_le());
        let lost = match bytes.get_u64_le() {
            JUMP => false,
            LOST => true,
            _ => return None,
        };
        if from >= to {
            return None;
        }
        standing.gaps.push(Gap { from, to, lost });
    }
    Some(standing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(from: u64, to: u64) -> Gap {
        Gap {
            from: SequenceNumber::new(from),
            to: SequenceNumber::new(to),
            lost: from % 2 == 1,
        }
    }

    #[test]
    fn a_table_reads_back_as_written() {
        let mut first = ShardStanding::new(ShardId::from_value(1));
        first.horizon = SequenceNumber::new(3);
        first.end = SequenceNumber::new(900);
        first.last_arrival = Timestamp::from_micros(77);
        first.epoch = ShardEpoch::new(4);
        first.last_segment = 8;
        first.stored_bytes = 123;
        first.gaps = vec![gap(5, 9), gap(10, 11)];
        let table = vec![first, ShardStanding::new(ShardId::from_value(9))];
        let mut bytes = Vec::new();
        encode_table(&table, &mut bytes);
        assert_eq!(decode_table(&bytes), Some(table));
        for length in 1..bytes.len() {
            let cut = decode_table(&bytes[..length]);
            assert!(cut.is_none_or(|rows| rows.len() == 1), "{length}");
        }
    }

    #[test]
    fn gaps_stay_sorted_and_disjoint() {
        let mut gaps = Vec::new();
        for new in [
            gap(10, 20),
            gap(2, 4),
            gap(10, 20),
            gap(15, 30),
            gap(5, 12),
            gap(20, 21),
        ] {
            add_gap(&mut gaps, new);
        }
        assert_eq!(gaps, [gap(2, 4), gap(10, 20), gap(20, 21)]);
        drop_gaps_below(&mut gaps, SequenceNumber::new(12));
        assert_eq!(gaps, [gap(10, 20), gap(20, 21)]);
    }
}
