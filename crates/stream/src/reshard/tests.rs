//! What is refused, and plans that are carried out step by step.

use flumen_log::{LogKey, Stays};
use flumen_record::{SequenceNumber, ShardId, StreamId, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::{ShardInfo, StreamSettings};

const CLOSED: ShardState = ShardState::Closed {
    end: SequenceNumber::new(7),
    at: Timestamp::ZERO,
};

fn index(index: u32) -> ShardIndex {
    ShardIndex::new(index)
}

fn key(key: u128) -> HashKey {
    HashKey::new(key)
}

fn range(start: u128, end: u128) -> HashRange {
    HashRange {
        start: key(start),
        end: key(end),
    }
}

/// A stream of shards as (index, range, state).
fn stream(shards: &[(u32, HashRange, ShardState)]) -> StreamInfo {
    let id = StreamId::new(1);
    let shard = |&(place, range, state): &(u32, HashRange, ShardState)| ShardInfo {
        id: ShardId::new(id, index(place)),
        range,
        state,
        parents: Vec::new(),
        stays: Stays::begin(LogKey::CATALOG),
    };
    StreamInfo {
        id,
        name: "readings".parse().unwrap(),
        settings: StreamSettings::default(),
        created: Timestamp::ZERO,
        version: 1,
        shards: shards.iter().map(shard).collect(),
        routes: Vec::new(),
    }
    .arrange()
}

/// Shard 0 is closed, 1 to 3 own the key space.
fn three() -> StreamInfo {
    stream(&[
        (0, range(0, 199), CLOSED),
        (1, range(0, 99), ShardState::Open),
        (2, range(100, 199), ShardState::Open),
        (3, range(200, u128::MAX), ShardState::Open),
    ])
}

fn split(shard: u32, at: Option<u128>) -> Reshard {
    Reshard::Split {
        shard: index(shard),
        at: at.map(key),
    }
}

fn merge(shard: u32, adjacent: u32) -> Reshard {
    Reshard::Merge {
        shard: index(shard),
        adjacent: index(adjacent),
    }
}

#[track_caller]
fn check(steps: &[Reshard], expected: Result<&[HashRange], ReshardError>) {
    let found = outcomes(&three(), steps, 4);
    let children = found.map(|found| found.into_iter().flat_map(|one| one.children).collect());
    assert_eq!(children, expected.map(<[HashRange]>::to_vec), "{steps:?}");
}

#[test]
fn children_own_what_their_parents_owned() {
    check(&[split(1, None)], Ok(&[range(0, 49), range(50, 99)]));
    check(&[split(1, Some(1))], Ok(&[range(0, 0), range(1, 99)]));
    check(&[split(1, Some(99))], Ok(&[range(0, 98), range(99, 99)]));
    check(&[merge(1, 2)], Ok(&[range(0, 199)]));
    check(&[merge(2, 1)], Ok(&[range(0, 199)]));
    check(&[merge(3, 2)], Ok(&[range(100, u128::MAX)]));
    check(
        &[split(3, Some(1000)), merge(1, 2)],
        Ok(&[range(200, 999), range(1000, u128::MAX), range(0, 199)]),
    );
}

#[test]
fn the_middle_of_everything_is_where_even_slices_meet() {
    let whole = stream(&[(0, HashRange::FULL, ShardState::Open)]);
    let found = outcomes(&whole, &[split(0, None)], 2).unwrap();
    let two = std::num::NonZeroU32::new(2).unwrap();
    assert_eq!(
        found[0].children,
        HashRange::even_slices(two).collect::<Vec<_>>()
    );
}

#[test]
fn what_cannot_be_is_refused() {
    let (end, range) = (SequenceNumber::new(7), range(0, 99));
    let outside = |at| {
        Err(ReshardError::Outside {
            shard: index(1),
            at: key(at),
            range,
        })
    };
    let missing = Err(ReshardError::NotFound { shard: index(9) });
    let shard = index(0);
    let closed = Err(ReshardError::Closed { shard, end });
    let apart = |one, two| {
        Err(ReshardError::NotAdjacent {
            shard: index(one),
            other: index(two),
        })
    };
    check(&[split(9, None)], missing);
    check(&[merge(1, 9)], missing);
    check(&[split(0, None)], closed);
    check(&[merge(1, 0)], closed);
    check(&[split(1, Some(0))], outside(0));
    check(&[split(1, Some(100))], outside(100));
    check(&[merge(1, 3)], apart(1, 3));
    check(&[merge(3, 1)], apart(3, 1));
    check(&[merge(1, 1)], apart(1, 1));
    check(
        &[split(1, None), merge(1, 2)],
        Err(ReshardError::NotFound { shard: index(1) }),
    );
    check(
        &[split(1, None), split(2, None)],
        Err(ReshardError::TooMany {
            shards: 5,
            max: 4,
            closed_too: false,
        }),
    );
    let one_key = stream(&[(
        0,
        HashRange {
            start: key(5),
            end: key(5),
        },
        ShardState::Open,
    )]);
    assert!(matches!(
        outcomes(&one_key, &[split(0, None)], 9),
        Err(ReshardError::Outside { .. })
    ));
}

/// Closed shards count for what a catalog record can hold, and merging is always allowed.
#[test]
fn closed_shards_that_are_kept_are_bounded_too() {
    let mut shards: Vec<_> = (0..SHARDS_KEPT_MAX - 1)
        .map(|n| (n, range(0, 9), CLOSED))
        .collect();
    shards.push((SHARDS_KEPT_MAX, range(0, 9), ShardState::Open));
    shards.push((SHARDS_KEPT_MAX + 1, range(10, u128::MAX), ShardState::Open));
    let full = stream(&shards);
    let refused = outcomes(&full, &[split(SHARDS_KEPT_MAX, None)], 9).unwrap_err();
    assert!(matches!(
        refused,
        ReshardError::TooMany {
            closed_too: true,
            ..
        }
    ));
    outcomes(&full, &[merge(SHARDS_KEPT_MAX, SHARDS_KEPT_MAX + 1)], 9).unwrap();
}

/// Carries steps out; new shards are numbered on.
fn carry_out(open: &mut Vec<(ShardIndex, HashRange)>, steps: &[Reshard], next: &mut u32) {
    let shards = open
        .iter()
        .map(|(shard, range)| (shard.value(), *range, ShardState::Open));
    let stream = stream(&shards.collect::<Vec<_>>());
    for outcome in outcomes(&stream, steps, u32::MAX).unwrap() {
        open.retain(|(shard, _)| !outcome.parents.contains(shard));
        for range in outcome.children {
            open.push((index(*next), range));
            *next += 1;
        }
    }
    open.sort_unstable_by_key(|(_, range)| range.start);
}

/// Scales to `target`; the ranges in order, and in how many steps and waves.
fn scale(mut open: Vec<(ShardIndex, HashRange)>, target: u32) -> (Vec<HashRange>, usize, usize) {
    let (mut steps, mut waves) = (0, 0);
    let mut next = 1_000_000;
    loop {
        let wave = next_steps(&open, target);
        if wave.is_empty() {
            let ranges: Vec<_> = open.into_iter().map(|(_, range)| range).collect();
            return (ranges, steps, waves);
        }
        (steps, waves) = (steps + wave.len(), waves + 1);
        assert!(waves < 40, "it goes on and on");
        carry_out(&mut open, &wave, &mut next);
    }
}

fn even(count: u32) -> Vec<(ShardIndex, HashRange)> {
    let slices = HashRange::even_slices(std::num::NonZeroU32::new(count).unwrap());
    (0..).map(index).zip(slices).collect()
}

#[test]
fn even_shards_scale_to_even_shards() {
    for (from, to, waves) in [
        (1, 1, 0),
        (1, 2, 1),
        (1, 7, 3),
        (1, 1000, 10),
        (3, 6, 1),
        (4, 16, 2),
        (8, 4, 1),
        (6, 2, 2),
        (5, 1, 3),
        (1024, 1, 10),
        (10_000, 5_000, 1),
    ] {
        let (ranges, steps, took) = scale(even(from), to);
        let width = |range: &HashRange| range.end.value() - range.start.value();
        let (least, most) = (
            ranges.iter().map(width).min(),
            ranges.iter().map(width).max(),
        );
        let spread = most.unwrap() - least.unwrap();
        assert!(spread <= u128::from(from * to), "{from} to {to}: {spread}");
        assert_eq!(
            u32::try_from(steps),
            Ok(from.abs_diff(to)),
            "{from} to {to}"
        );
        assert_eq!(took, waves, "{from} to {to}");
    }
}

#[test]
fn with_fewest_steps_ranges_are_as_even_as_they_can_be() {
    // Two of three are split: the others keep their width.
    let (ranges, steps, _) = scale(even(3), 5);
    assert_eq!((ranges.len(), steps), (5, 2));
    // The wide one takes all the cuts.
    let uneven = vec![(index(0), range(0, 99)), (index(1), range(100, u128::MAX))];
    let (ranges, ..) = scale(uneven, 4);
    assert_eq!(ranges[0], range(0, 99));
    let width = |range: &HashRange| range.end.value() - range.start.value();
    assert!(
        ranges[1..]
            .windows(2)
            .all(|pair| width(&pair[0]).abs_diff(width(&pair[1])) < 4)
    );
}

proptest! {
    #[test]
    fn plans_hold(cuts in prop::collection::btree_set(1..u128::MAX, 0..40), target in 1_u32..60) {
        let starts: Vec<u128> = std::iter::once(0).chain(cuts).collect();
        let ends = starts.iter().skip(1).map(|start| start - 1).chain([u128::MAX]);
        let ranges = starts.iter().zip(ends).map(|(start, end)| range(*start, end));
        let open: Vec<_> = (0..).map(index).zip(ranges).collect();
        let before = u32::try_from(open.len()).unwrap();
        let (ranges, steps, _) = scale(open, target);
        prop_assert_eq!(u32::try_from(ranges.len()).unwrap(), target);
        prop_assert_eq!(u32::try_from(steps).unwrap(), before.abs_diff(target));
        prop_assert_eq!(ranges[0].start, HashKey::MIN);
        prop_assert_eq!(ranges[ranges.len() - 1].end, HashKey::MAX);
        for pair in ranges.windows(2) {
            prop_assert_eq!(pair[0].end.value() + 1, pair[1].start.value());
        }
    }
}
