//! Which shard a hash key goes to, as this producer knows it. Pure.
//!
//! The map changes piece by piece: a shard is replaced by its successors only once everything sent
//! to it is settled, so that records of one key never overtake each other.

use flumen_record::{HashKey, HashRange, ShardIndex};

use crate::StreamDescription;

/// The key space cut into pieces; each belongs to one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Routing {
    /// By start; no overlaps. `place` is the shard's place in the producer's tables.
    pieces: Vec<Piece>,
    /// Every shard that ever had a piece, by place.
    shards: Vec<ShardIndex>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    range: HashRange,
    place: usize,
}

impl Routing {
    /// The open shards of a stream; `None` when they do not cover the key space (a reshard is under
    /// way).
    pub(crate) fn new(stream: &StreamDescription) -> Option<Self> {
        let mut routing = Self {
            pieces: Vec::new(),
            shards: Vec::new(),
        };
        let pieces = routing.successors(HashRange::FULL, stream)?;
        routing.pieces = pieces;
        Some(routing)
    }

    /// The place of the shard that owns `key`.
    pub(crate) fn locate(&self, key: HashKey) -> usize {
        let after = self
            .pieces
            .partition_point(|piece| piece.range.start <= key);
        let piece = after
            .checked_sub(1)
            .and_then(|index| self.pieces.get(index));
        piece.expect("BUG: the pieces cover the key space").place
    }

    /// The place of the one shard that owns everything, if there is one.
    pub(crate) fn only(&self) -> Option<usize> {
        match self.pieces.as_slice() {
            [piece] => Some(piece.place),
            _ => None,
        }
    }

    /// The shard at a place.
    pub(crate) fn shard(&self, place: usize) -> ShardIndex {
        *self
            .shards
            .get(place)
            .expect("BUG: places are given out by this table")
    }

    /// Places given out so far.
    pub(crate) fn places(&self) -> usize {
        self.shards.len()
    }

    /// Replaces what the shard at `place` owns by what the stream says now. `false`, and nothing
    /// changes, when the stream does not say anything new about it yet.
    pub(crate) fn replace(&mut self, place: usize, stream: &StreamDescription) -> bool {
        let (stale, kept): (Vec<Piece>, Vec<Piece>) =
            self.pieces.iter().partition(|piece| piece.place == place);
        let mut pieces = kept;
        let before = self.shards.len();
        for piece in &stale {
            match self.successors(piece.range, stream) {
                Some(successors) => pieces.extend(successors),
                None => {
                    self.shards.truncate(before);
                    return false;
                }
            }
        }
        pieces.sort_unstable_by_key(|piece| piece.range.start);
        if pieces == self.pieces {
            return false;
        }
        self.pieces = pieces;
        true
    }

    /// The pieces into which the open shards of `stream` cut `range`; `None` when they leave a hole.
    fn successors(&mut self, range: HashRange, stream: &StreamDescription) -> Option<Vec<Piece>> {
        let mut open: Vec<_> = stream.shards.iter().filter(|shard| shard.open).collect();
        open.sort_unstable_by_key(|shard| shard.range.start);
        let mut pieces = Vec::new();
        let mut next = Some(range.start);
        for shard in open {
            let Some(start) = next else { break };
            if shard.range.end < start {
                continue;
            }
            if shard.range.start > start {
                return None;
            }
            let end = shard.range.end.min(range.end);
            pieces.push(Piece {
                range: HashRange { start, end },
                place: self.place(shard.index),
            });
            next = (end < range.end).then(|| HashKey::new(end.value() + 1));
        }
        next.is_none().then_some(pieces)
    }

    fn place(&mut self, shard: ShardIndex) -> usize {
        self.shards
            .iter()
            .position(|known| *known == shard)
            .unwrap_or_else(|| {
                self.shards.push(shard);
                self.shards.len() - 1
            })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flumen_record::{Durability, SequenceNumber, StreamId, Timestamp};

    use super::*;
    use crate::ShardDescription;

    /// Shards as (index, first eighth, last eighth, open).
    fn stream(shards: &[(u32, u8, u8, bool)]) -> StreamDescription {
        let shard = |&(index, from, to, open): &(u32, u8, u8, bool)| ShardDescription {
            index: ShardIndex::new(index),
            range: HashRange {
                start: eighth(from),
                end: last_of(to),
            },
            open,
            parents: Vec::new(),
            trim_horizon: SequenceNumber::ZERO,
            durable_end: SequenceNumber::ZERO,
            last_arrival: Timestamp::ZERO,
            stored_bytes: 0,
        };
        StreamDescription {
            name: "s".parse().unwrap(),
            id: StreamId::new(1),
            incarnation: flumen_record::StreamIncarnation::new(1),
            durability: Durability::Disk,
            retention: Duration::from_secs(3600),
            retention_bytes: None,
            max_record_bytes: 1 << 20,
            auto_scale: None,
            created: Timestamp::ZERO,
            version: 1,
            shards: shards.iter().map(shard).collect(),
        }
    }

    fn eighth(n: u8) -> HashKey {
        HashKey::new(u128::from(n) << 125)
    }

    fn last_of(n: u8) -> HashKey {
        if n == 7 {
            HashKey::MAX
        } else {
            HashKey::new(eighth(n + 1).value() - 1)
        }
    }

    /// The shard of each eighth, first and last key agreeing.
    fn owners(routing: &Routing) -> Vec<u32> {
        (0..8)
            .map(|n| {
                let first = routing.shard(routing.locate(eighth(n)));
                assert_eq!(first, routing.shard(routing.locate(last_of(n))));
                first.value()
            })
            .collect()
    }

    #[test]
    fn keys_go_to_the_open_shard_that_owns_them() {
        let one = Routing::new(&stream(&[(0, 0, 7, true)])).unwrap();
        assert_eq!(owners(&one), [0; 8]);
        let shuffled = stream(&[
            (3, 4, 7, true),
            (1, 0, 1, true),
            (0, 0, 3, false),
            (2, 2, 3, true),
        ]);
        assert_eq!(
            owners(&Routing::new(&shuffled).unwrap()),
            [1, 1, 2, 2, 3, 3, 3, 3]
        );
    }

    #[test]
    fn a_map_with_a_hole_is_not_taken() {
        assert_eq!(
            Routing::new(&stream(&[(0, 0, 3, true), (1, 5, 7, true)])),
            None
        );
        assert_eq!(
            Routing::new(&stream(&[(0, 0, 3, true), (1, 4, 7, false)])),
            None
        );
        assert_eq!(Routing::new(&stream(&[])), None);
    }

    #[test]
    fn a_split_replaces_the_parent_only() {
        let mut routing = Routing::new(&stream(&[(0, 0, 3, true), (1, 4, 7, true)])).unwrap();
        let parent = routing.locate(eighth(0));
        let split = stream(&[
            (0, 0, 3, false),
            (1, 4, 7, true),
            (2, 0, 0, true),
            (3, 1, 3, true),
        ]);
        assert!(routing.replace(parent, &split));
        assert_eq!(owners(&routing), [2, 3, 3, 3, 1, 1, 1, 1]);
        assert_eq!(routing.places(), 4);
    }

    #[test]
    fn a_merge_moves_each_parent_when_it_is_settled() {
        let mut routing = Routing::new(&stream(&[(0, 0, 3, true), (1, 4, 7, true)])).unwrap();
        let (a, b) = (routing.locate(eighth(0)), routing.locate(eighth(7)));
        let merged = stream(&[(0, 0, 3, false), (1, 4, 7, false), (2, 0, 7, true)]);
        assert!(routing.replace(b, &merged));
        assert_eq!(owners(&routing), [0, 0, 0, 0, 2, 2, 2, 2]);
        assert!(routing.replace(a, &merged));
        assert_eq!(owners(&routing), [2; 8]);
    }

    #[test]
    fn an_unchanged_or_broken_map_changes_nothing() {
        let before = stream(&[(0, 0, 3, true), (1, 4, 7, true)]);
        let mut routing = Routing::new(&before).unwrap();
        let same = routing.clone();
        let parent = routing.locate(eighth(0));
        assert!(!routing.replace(parent, &before));
        assert!(!routing.replace(parent, &stream(&[(2, 0, 1, true), (1, 4, 7, true)])));
        assert_eq!(routing, same);
    }

    #[test]
    fn a_recreated_stream_gives_the_same_index_another_range() {
        let mut routing = Routing::new(&stream(&[(0, 0, 7, true)])).unwrap();
        assert!(routing.replace(0, &stream(&[(0, 0, 3, true), (1, 4, 7, true)])));
        assert_eq!(owners(&routing), [0, 0, 0, 0, 1, 1, 1, 1]);
    }
}
