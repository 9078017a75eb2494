//! Which steps lead from the shards that are open to a number of shards: as few as possible, and
//! ranges as even as so few steps can make them.
//!
//! More shards: the widest are split, each into equal parts. Fewer: neighbours are merged, so that
//! the borders that stay lie next to where even ranges would have theirs. Steps come in waves, and
//! no step of a wave needs another one's shards, so that a wave can be one change.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use flumen_record::{HashKey, HashRange, ShardIndex};

use super::{Reshard, cut};

/// The steps that can be made at once on the way to `target` shards; none when it is reached. To be
/// asked again with the shards that came of it. `open` covers the key space.
pub fn next_steps(open: &[(ShardIndex, HashRange)], target: u32) -> Vec<Reshard> {
    let mut open = open.to_vec();
    open.sort_unstable_by_key(|(_, range)| range.start);
    let target = (target as usize).max(1);
    if target >= open.len() {
        splits(&open, target)
    } else {
        merges(&open, target)
    }
}

/// Every shard that is to become several parts is split once, its parts shared between its children.
fn splits(open: &[(ShardIndex, HashRange)], target: usize) -> Vec<Reshard> {
    let parts = parts(open, target);
    let split = |(&(shard, range), parts): (&(ShardIndex, HashRange), u32)| {
        (parts > 1).then(|| Reshard::Split {
            shard,
            at: Some(cut(range, parts / 2, parts)),
        })
    };
    open.iter().zip(parts).filter_map(split).collect()
}

/// Into how many parts each shard is cut: one cut after the other goes to the shard whose parts are
/// the widest then.
fn parts(open: &[(ShardIndex, HashRange)], target: usize) -> Vec<u32> {
    let mut parts = vec![1; open.len()];
    // Of equally wide ones the lowest is cut first.
    let widest = |place: usize, range: &HashRange, parts: u32| {
        let last = range.end.value() - range.start.value();
        (last / u128::from(parts), Reverse(place))
    };
    let mut heap: BinaryHeap<(u128, Reverse<usize>)> = open
        .iter()
        .enumerate()
        .map(|(place, (_, range))| widest(place, range, 1))
        .collect();
    for _ in open.len()..target {
        // Nothing is left to cut when even the widest part is a single key.
        let Some((1.., Reverse(place))) = heap.pop() else {
            break;
        };
        if let (Some(parts), Some((_, range))) = (parts.get_mut(place), open.get(place)) {
            *parts += 1;
            heap.push(widest(place, range, *parts));
        }
    }
    parts
}

/// Neighbours within each group that is to become one shard, two by two.
fn merges(open: &[(ShardIndex, HashRange)], target: usize) -> Vec<Reshard> {
    let borders = borders(open, target);
    let mut steps = Vec::new();
    let ends = borders.iter().skip(1).copied().chain([open.len()]);
    for (from, to) in borders.iter().copied().zip(ends) {
        let group = open.get(from..to).unwrap_or_default();
        for pair in group.chunks_exact(2) {
            if let [(shard, _), (adjacent, _)] = *pair {
                steps.push(Reshard::Merge { shard, adjacent });
            }
        }
    }
    steps
}

/// The place of each group's first shard: next to where even ranges would begin, each group at least
/// one shard.
fn borders(open: &[(ShardIndex, HashRange)], target: usize) -> Vec<usize> {
    let parts = u32::try_from(target).unwrap_or(u32::MAX);
    let mut borders = vec![0];
    let mut least = 1;
    for part in 1..parts {
        let ideal = cut(HashRange::FULL, part, parts);
        let most = open.len() - (target - part as usize);
        let after = open.partition_point(|(_, range)| range.start < ideal);
        let near = match (after.checked_sub(1), open.get(after)) {
            (Some(before), Some((_, range))) => {
                let below = open
                    .get(before)
                    .map_or(HashKey::MIN, |(_, range)| range.start);
                let nearer_below =
                    ideal.value() - below.value() < range.start.value() - ideal.value();
                if nearer_below { before } else { after }
            }
            _ => open.len(),
        };
        let border = near.clamp(least, most);
        borders.push(border);
        least = border + 1;
    }
    borders
}
