//! Tables for every decision.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn index(index: u32) -> ShardIndex {
    ShardIndex::new(index)
}

/// 1000 bytes/s per shard, 1 to 4 shards; split after 5 s, merge after 20 s, pause 30 s.
fn settings() -> AutoScale {
    AutoScale {
        shards_max: 4,
        shard_bytes_per_s: Some(1000),
        split_after: 5 * SECOND,
        merge_after: 20 * SECOND,
        cool_down: 30 * SECOND,
        ..AutoScale::default()
    }
}

/// Shards in the order of their keys, with what they take per second.
struct Stream {
    settings: AutoScale,
    scaler: AutoScaler,
    shards: Vec<Taken>,
    now: u32,
}

impl Stream {
    fn new(settings: AutoScale, shards: u32) -> Self {
        let shards = (0..shards).map(|n| Taken {
            shard: index(n),
            range: HashRange {
                start: HashKey::new(u128::from(n) * 100),
                end: HashKey::new(u128::from(n) * 100 + 99),
            },
            bytes: 0,
            records: 0,
        });
        Self {
            settings,
            scaler: AutoScaler::default(),
            shards: shards.collect(),
            now: 0,
        }
    }

    /// One second with these loads in (bytes, records).
    fn second(&mut self, loads: &[(u64, u64)]) -> Vec<Wish> {
        self.second_after(loads, None)
    }

    fn second_after(&mut self, loads: &[(u64, u64)], ago: Option<Duration>) -> Vec<Wish> {
        for (taken, (bytes, records)) in self.shards.iter_mut().zip(loads) {
            taken.bytes += bytes;
            taken.records += records;
        }
        self.now += 1;
        let now = self.now * SECOND;
        self.scaler.observe(&self.settings, &self.shards, now, ago)
    }
}

/// The first second with a wish, within 60, and the wishes.
#[track_caller]
fn check(settings: AutoScale, loads: &[(u64, u64)], expected: Option<(u32, &[Wish])>) {
    let mut stream = Stream::new(settings, u32::try_from(loads.len()).unwrap());
    let found = (1..=60).find_map(|second| {
        let wishes = stream.second(loads);
        (!wishes.is_empty()).then_some((second, wishes))
    });
    let found = found
        .as_ref()
        .map(|(second, wishes)| (*second, wishes.as_slice()));
    assert_eq!(found, expected, "{loads:?}");
}

#[test]
fn a_shard_is_split_when_it_was_hot_for_long_enough() {
    let split = |shards: &[u32]| -> Vec<Wish> {
        shards
            .iter()
            .map(|shard| Wish::Split(index(*shard)))
            .collect()
    };
    // The first rate is known after two readings.
    check(settings(), &[(701, 0)], Some((7, &split(&[0]))));
    check(settings(), &[(700, 0)], None);
    // The hottest first.
    check(
        settings(),
        &[(800, 0), (900, 0)],
        Some((7, &split(&[1, 0]))),
    );
    // Records count where they have a rate, and only there.
    check(settings(), &[(0, 1_000_000)], None);
    let records = AutoScale {
        shard_records_per_s: Some(100),
        ..settings()
    };
    check(records, &[(0, 71)], Some((7, &split(&[0]))));
    check(records, &[(701, 0)], Some((7, &split(&[0]))));
    check(records, &[(700, 70)], None);
    // There are as many as there may be.
    check(settings(), &[(900, 0); 4], None);
    let at_once = AutoScale {
        split_after: Duration::ZERO,
        split_above_percent: 10,
        merge_below_percent: 0,
        ..settings()
    };
    check(at_once, &[(101, 0)], Some((2, &split(&[0]))));
}

#[test]
fn cold_neighbours_are_merged_when_they_were_for_long_enough() {
    let merge = |lower, upper| Wish::Merge(index(lower), index(upper));
    check(settings(), &[(99, 0), (100, 0)], Some((22, &[merge(0, 1)])));
    check(settings(), &[(100, 0), (100, 0)], None);
    // Not neighbours.
    check(settings(), &[(10, 0), (300, 0), (10, 0)], None);
    // The coldest first.
    let both = [merge(1, 2), merge(0, 1)];
    check(settings(), &[(50, 0), (40, 0), (30, 0)], Some((22, &both)));
    // There are as few as there may be.
    let two = AutoScale {
        shards_min: 2,
        ..settings()
    };
    check(two, &[(0, 0), (0, 0)], None);
    // Cold by bytes, not by records.
    let records = AutoScale {
        shard_records_per_s: Some(100),
        ..settings()
    };
    check(records, &[(0, 10), (0, 10)], None);
    check(records, &[(0, 10), (0, 9)], Some((22, &[merge(0, 1)])));
    let never = AutoScale {
        merge_below_percent: 0,
        ..settings()
    };
    check(never, &[(0, 0), (0, 0)], None);
}

#[test]
fn too_few_and_too_many_shards_are_put_right_at_once() {
    let bounds = AutoScale {
        shards_min: 2,
        shards_max: 3,
        ..settings()
    };
    check(bounds, &[(0, 0)], Some((1, &[Wish::Scale(2)])));
    check(bounds, &[(0, 0); 4], Some((1, &[Wish::Scale(3)])));
    check(bounds, &[(150, 0); 3], None);
}

#[test]
fn a_burst_is_averaged_and_a_pause_starts_over() {
    let mut stream = Stream::new(settings(), 1);
    // 5 s of load in one second of ten: half the rate.
    for second in 0..60 {
        let bytes = if second % 10 == 0 { 5_000 } else { 0 };
        let wishes = stream.second(&[(bytes, 0)]);
        // It takes ten seconds until the average is one.
        assert!(second < 20 || wishes.is_empty(), "{second}: {wishes:?}");
    }
    let mut stream = Stream::new(settings(), 1);
    for _ in 0..5 {
        assert!(stream.second(&[(1_000, 0)]).is_empty());
    }
    for _ in 0..10 {
        assert!(stream.second(&[(0, 0)]).is_empty());
    }
    let hot = (0..30).position(|_| !stream.second(&[(1_000, 0)]).is_empty());
    // Seven seconds until the average is above, five more.
    assert_eq!(hot, Some(12));
}

#[test]
fn nothing_is_done_while_it_cools_down() {
    let mut stream = Stream::new(settings(), 1);
    let ago = Duration::from_secs(29);
    for _ in 0..10 {
        assert!(stream.second_after(&[(900, 0)], Some(ago)).is_empty());
    }
    let cooled = stream.second_after(&[(900, 0)], Some(30 * SECOND));
    assert_eq!(cooled, [Wish::Split(index(0))]);
}

/// A shard that is new has no load yet, whatever its parents had.
#[test]
fn children_start_over() {
    let mut stream = Stream::new(settings(), 1);
    for _ in 0..4 {
        assert!(stream.second(&[(900, 0)]).is_empty());
    }
    stream.shards[0].shard = index(1);
    for _ in 0..6 {
        assert!(stream.second(&[(900, 0)]).is_empty());
    }
    assert_eq!(stream.second(&[(900, 0)]), [Wish::Split(index(1))]);
    assert_eq!(stream.scaler.shards.len(), 1);
}

#[track_caller]
fn check_key(observed: &[(u128, u64)], expected: Option<u128>) {
    let range = HashRange {
        start: HashKey::new(10),
        end: HashKey::new(109),
    };
    let observed: Vec<_> = observed
        .iter()
        .map(|(key, load)| (HashKey::new(*key), *load))
        .collect();
    assert_eq!(
        split_key(range, &observed),
        expected.map(HashKey::new),
        "{observed:?}"
    );
}

#[test]
fn a_hot_shard_is_split_at_its_median_key() {
    // Nothing is known: in the middle.
    check_key(&[], Some(60));
    check_key(&[(20, 1); KEYS_MIN - 1], Some(60));
    // As many below as above.
    let even: Vec<_> = (10..50).map(|key| (key, 1)).collect();
    check_key(&even, Some(30));
    // By load, not by number.
    let heavy: Vec<_> = (10..50)
        .map(|key| (key, if key >= 40 { 10 } else { 1 }))
        .collect();
    check_key(&heavy, Some(43));
    // The upper half begins with the hot key, or ends below the next.
    check_key(&[[(20, 1); 10], [(90, 1); 10]].concat(), Some(90));
    check_key(&[[(10, 9); 10], [(11, 1); 10]].concat(), Some(11));
    // One key alone: no split helps.
    check_key(&[(20, 1); 50], None);
    check_key(&[[(20, 100); 10], [(21, 1); 10]].concat(), None);
    // Keys of others do not count.
    let strays: Vec<_> = (0..10).chain(110..200).map(|key| (key, 9)).collect();
    check_key(&strays, Some(60));
    let one = HashRange {
        start: HashKey::new(5),
        end: HashKey::new(5),
    };
    assert_eq!(split_key(one, &[]), None);
}

#[test]
fn what_is_not_changed_stays() {
    let change = AutoScaleChange {
        shards_max: Some(8),
        shard_bytes_per_s: Some(5),
        ..AutoScaleChange::default()
    };
    let fresh = AutoScaleUpdate::On(change).applied_to(None).unwrap();
    assert_eq!((fresh.shards_min, fresh.shards_max), (1, 8));
    assert_eq!(
        (fresh.shard_bytes_per_s, fresh.split_above_percent),
        (Some(5), 70)
    );
    let change = AutoScaleChange {
        shard_bytes_per_s: Some(0),
        shard_records_per_s: Some(7),
        cool_down: Some(SECOND),
        ..AutoScaleChange::default()
    };
    let after = AutoScaleUpdate::On(change).applied_to(Some(fresh)).unwrap();
    let expected = AutoScale {
        shard_bytes_per_s: None,
        shard_records_per_s: Some(7),
        cool_down: SECOND,
        ..fresh
    };
    assert_eq!(after, expected);
    assert_eq!(AutoScaleUpdate::Off.applied_to(Some(after)), None);
}
