//! What a shard knows after a restart.

use flumen_record::ShardEpoch;

use super::*;

const JUMP: u64 = 1 << 32;

/// The batches of a log, as recovery finds them.
#[derive(Default)]
struct Found {
    marks: Vec<BatchMark>,
}

impl Found {
    fn with(mut self, base: u64, producer: u64, sequence: u64, count: u32) -> Self {
        self.marks.push(BatchMark {
            producer: ProducerId::new(producer),
            sequence: ProducerSequence::new(sequence),
            base: number(base),
            count,
            checksum: checksum(producer, sequence),
            arrival: at(base),
            frame_bytes: 100,
        });
        self
    }

    fn replay(&self, shard: &mut Shard, partial: bool) {
        for mark in &self.marks {
            shard.replay(mark, partial);
        }
    }
}

fn recovery(horizon: u64, next: u64) -> ShardRecovery {
    ShardRecovery {
        shard: ShardId::from_value(7),
        trim_horizon: number(horizon),
        next: number(next),
        epoch: ShardEpoch::new(3),
        last_arrival: at(next % JUMP),
        jumped: None,
    }
}

fn jumped(horizon: u64, next: u64) -> ShardRecovery {
    ShardRecovery {
        jumped: Some(number(next)),
        ..recovery(horizon, next)
    }
}

fn id(value: u64) -> ProducerId {
    ProducerId::new(value)
}

/// A shard that appended ten batches of producer 1 and one of producer 2, durably.
fn used() -> Shard {
    let mut shard = shard();
    for sequence in 0..10 {
        check(
            &mut shard,
            batch(1, sequence, 1),
            sequence,
            appended(sequence, sequence),
        );
    }
    check(&mut shard, batch(2, 0, 5), 10, appended(10, 10));
    shard.durable(number(15));
    shard
}

#[test]
fn a_saved_shard_goes_on_where_it_was() {
    let state = used().save();
    let mut shard = shard();
    shard.restore(&state).unwrap();
    shard.recovered(&recovery(0, 15), true, id(50));
    assert_eq!(shard.next(), number(15));
    assert_eq!(shard.epoch(), ShardEpoch::new(4));
    check(&mut shard, batch(1, 3, 1), 20, duplicate(3, 3, true));
    check(&mut shard, batch(2, 0, 5), 20, duplicate(10, 10, true));
    check(&mut shard, batch(2, 2, 5), 20, out_of_sequence(1, 2));
    check(&mut shard, batch(1, 10, 1), 20, appended(15, 20));
    // Issued and not used here yet: the state says that nobody was forgotten.
    check(&mut shard, batch(40, 0, 1), 20, appended(16, 20));
}

#[test]
fn arrival_goes_on_where_it_was() {
    let mut shard = shard();
    shard.restore(&used().save()).unwrap();
    shard.recovered(&recovery(0, 15), true, id(50));
    check(&mut shard, batch(1, 10, 1), 3, appended(15, 15));
}

#[test]
fn batches_after_the_saved_state_are_learned() {
    let mut shard = shard();
    shard.restore(&used().save()).unwrap();
    // One that the state knows comes again.
    Found::default()
        .with(10, 2, 0, 5)
        .with(15, 1, 10, 2)
        .with(17, 3, 0, 1)
        .replay(&mut shard, false);
    shard.recovered(&recovery(0, 18), true, id(50));
    check(&mut shard, batch(2, 0, 5), 20, duplicate(10, 10, true));
    check(&mut shard, batch(1, 10, 2), 20, duplicate(15, 15, true));
    check(&mut shard, batch(1, 0, 1), 20, duplicate(0, 0, true));
    check(&mut shard, batch(3, 1, 1), 20, appended(18, 20));
    check(&mut shard, batch(4, 0, 1), 20, appended(19, 20));
}

#[test]
fn only_what_is_durable_is_saved() {
    let mut shard = used();
    check(&mut shard, batch(1, 10, 1), 20, appended(15, 20));
    check(&mut shard, batch(5, 0, 1), 20, appended(16, 20));
    let state = shard.save();
    let mut shard = super::shard();
    shard.restore(&state).unwrap();
    shard.recovered(&recovery(0, 15), true, id(50));
    check(&mut shard, batch(1, 10, 1), 30, appended(15, 30));
    check(&mut shard, batch(5, 0, 1), 30, appended(16, 30));
}

#[test]
fn watermark_and_jump_are_saved() {
    let mut shard = shard_with(&StreamConfig {
        producers_per_shard_max: 1,
        resting_producers_per_shard_max: 0,
        ..StreamConfig::default()
    });
    check(&mut shard, batch(8, 0, 1), 1, appended(0, 1));
    check(&mut shard, batch(9, 0, 1), 1, appended(1, 1));
    shard.durable(number(2));
    let mut again = super::shard();
    again.restore(&shard.save()).unwrap();
    again.recovered(&jumped(0, JUMP), true, id(20));
    let mut third = super::shard();
    third.restore(&again.save()).unwrap();
    third.recovered(&recovery(0, JUMP), true, id(30));
    for shard in [&mut again, &mut third] {
        check(shard, batch(8, 0, 1), 1, lost(8));
        check(shard, batch(20, 1, 1), 1, lost(20));
        check(shard, batch(21, 1, 1), 1, out_of_sequence(0, 1));
    }
}

#[test]
fn without_a_state_the_watermark_is_the_highest_id_issued() {
    let mut shard = shard();
    // Everything below 90 was trimmed and freed.
    Found::default()
        .with(90, 4, 7, 1)
        .with(91, 5, 0, 1)
        .replay(&mut shard, false);
    shard.recovered(&recovery(90, 92), false, id(50));
    check(&mut shard, batch(4, 7, 1), 100, duplicate(90, 90, true));
    check(&mut shard, batch(4, 6, 1), 100, Admission::AlreadyAppended);
    check(&mut shard, batch(4, 8, 1), 100, appended(92, 100));
    check(&mut shard, batch(6, 0, 1), 100, lost(6));
    check(&mut shard, batch(50, 0, 1), 100, lost(50));
    check(&mut shard, batch(51, 1, 1), 100, out_of_sequence(0, 1));
    check(&mut shard, batch(51, 0, 1), 100, appended(93, 100));
    // It may have sent more than is known.
    check(&mut shard, batch(5, 2, 1), 100, lost(5));
    check(&mut shard, batch(5, 1, 1), 100, appended(94, 100));
    check(&mut shard, batch(5, 3, 1), 100, out_of_sequence(2, 3));
}

#[test]
fn when_everything_ever_appended_was_replayed_nobody_is_forgotten() {
    // No snapshot, but a log from its first round on.
    let all = Found::default()
        .with(0, 4, 0, 5)
        .with(5, 0, 0, 1)
        .with(6, 4, 1, 1);
    for partial in [false, true] {
        let mut shard = shard();
        all.replay(&mut shard, partial);
        shard.recovered(&recovery(0, 7), true, id(50));
        check(&mut shard, batch(4, 1, 1), 9, duplicate(6, 6, true));
        check(&mut shard, batch(4, 3, 1), 9, out_of_sequence(2, 3));
        check(&mut shard, batch(6, 0, 1), 9, appended(7, 9));
    }
    let mut empty = shard();
    empty.recovered(&recovery(0, 0), true, id(50));
    check(&mut empty, batch(6, 0, 1), 9, appended(0, 9));
}

#[test]
fn what_recovery_did_not_see_may_have_been_anybody() {
    // Each as (restored, found, from a footer, horizon, next).
    let used = used().save();
    for (state, found, partial, horizon, next) in [
        (None, Found::default(), false, 0, 5),
        (None, Found::default().with(5, 4, 0, 1), false, 0, 6),
        (
            None,
            Found::default().with(0, 4, 0, 1).with(2, 4, 2, 1),
            false,
            0,
            3,
        ),
        (None, Found::default().with(0, 4, 0, 1), false, 0, 3),
        (None, Found::default().with(7, 4, 3, 1), true, 3, 8),
        (Some(&used), Found::default(), false, 0, 16),
        (
            Some(&used),
            Found::default().with(16, 1, 11, 1),
            false,
            0,
            17,
        ),
        (
            Some(&used),
            Found::default().with(30, 1, 20, 1),
            true,
            20,
            31,
        ),
    ] {
        let mut shard = shard();
        if let Some(state) = state {
            shard.restore(state).unwrap();
        }
        found.replay(&mut shard, partial);
        shard.recovered(&recovery(horizon, next), true, id(50));
        check(&mut shard, batch(50, 0, 1), 100, lost(50));
        check(&mut shard, batch(51, 0, 1), 100, appended(next, 100));
    }
}

#[test]
fn a_footer_gives_only_the_last_batch_of_each_producer() {
    let mut shard = shard();
    shard.restore(&used().save()).unwrap();
    Found::default()
        .with(40, 1, 30, 2)
        .with(33, 7, 4, 1)
        .replay(&mut shard, true);
    Found::default()
        .with(60, 1, 31, 1)
        .replay(&mut shard, false);
    shard.recovered(&recovery(0, 61), true, id(50));
    check(&mut shard, batch(1, 31, 1), 100, duplicate(60, 60, true));
    check(&mut shard, batch(1, 30, 2), 100, duplicate(40, 40, true));
    check(&mut shard, batch(1, 29, 1), 100, Admission::AlreadyAppended);
    check(&mut shard, batch(1, 9, 1), 100, Admission::AlreadyAppended);
    check(&mut shard, batch(7, 4, 1), 100, duplicate(33, 33, true));
    check(&mut shard, batch(7, 3, 1), 100, Admission::AlreadyAppended);
    check(&mut shard, batch(8, 0, 1), 100, appended(61, 100));
    check(&mut shard, batch(1, 32, 1), 100, appended(62, 100));
}

#[test]
fn after_a_jump_what_is_ahead_of_memory_is_lost() {
    let mut shard = shard();
    shard.restore(&used().save()).unwrap();
    shard.recovered(&jumped(0, 15 + JUMP), true, id(50));
    let next = 15 + JUMP;
    // The next one may have been lost, or never sent: it is not ahead of what is known.
    check(&mut shard, batch(1, 12, 1), 20, lost(1));
    check(&mut shard, batch(1, 9, 1), 20, duplicate(9, 9, true));
    check(&mut shard, batch(30, 1, 1), 20, lost(30));
    check(&mut shard, batch(30, 0, 1), 20, appended(next, 20));
    check(&mut shard, batch(1, 10, 1), 20, appended(next + 1, 20));
    // From now on the shard knows again.
    check(&mut shard, batch(1, 12, 1), 20, out_of_sequence(11, 12));
    check(&mut shard, batch(51, 1, 1), 20, out_of_sequence(0, 1));
}

#[test]
fn a_jump_of_an_earlier_run_is_seen_in_the_log() {
    let mut shard = shard();
    Found::default()
        .with(0, 1, 0, 1)
        .with(1, 2, 0, 1)
        .with(2 + JUMP, 2, 1, 1)
        .replay(&mut shard, false);
    shard.recovered(&recovery(0, 3 + JUMP), true, id(50));
    check(&mut shard, batch(1, 2, 1), 20, lost(1));
    check(&mut shard, batch(2, 3, 1), 20, out_of_sequence(2, 3));
    check(&mut shard, batch(3, 0, 1), 20, appended(3 + JUMP, 20));
}

#[test]
fn a_log_with_more_producers_than_the_table_forgets_the_longest_unused() {
    let config = StreamConfig {
        producers_per_shard_max: 2,
        resting_producers_per_shard_max: 0,
        ..StreamConfig::default()
    };
    // A footer lists them in any order.
    for order in [[3, 1, 2], [1, 2, 3], [2, 3, 1]] {
        let mut shard = shard_with(&config);
        for producer in order {
            Found::default()
                .with(10 * producer, producer, 4, 1)
                .replay(&mut shard, true);
        }
        shard.recovered(&recovery(0, 31), true, id(50));
        check(&mut shard, batch(1, 5, 1), 40, lost(1));
        check(&mut shard, batch(2, 5, 1), 40, appended(31, 40));
        check(&mut shard, batch(3, 5, 1), 40, appended(32, 40));
    }
}

#[test]
fn a_later_state_replaces_an_earlier_one() {
    // The shard moved to another log; the older log's snapshot has it as it left.
    let earlier = used().save();
    let mut moved = shard_with(&StreamConfig {
        producers_per_shard_max: 1,
        resting_producers_per_shard_max: 0,
        ..StreamConfig::default()
    });
    moved.restore(&earlier).unwrap();
    moved.recovered(&recovery(0, 15), true, id(50));
    check(&mut moved, batch(3, 0, 1), 20, appended(15, 20));
    moved.durable(number(16));
    let mut shard = shard();
    shard.restore(&earlier).unwrap();
    shard.restore(&moved.save()).unwrap();
    shard.recovered(&recovery(0, 16), true, id(50));
    check(&mut shard, batch(2, 0, 5), 30, lost(2));
    check(&mut shard, batch(3, 1, 1), 30, appended(16, 30));
}

#[test]
fn damaged_state_is_refused_and_nothing_is_taken_for_known() {
    let state = used().save();
    let mut cases: Vec<Vec<u8>> = (0..state.len())
        .map(|length| state[..length].to_vec())
        .collect();
    for bit in 0..state.len() * 8 {
        let mut flipped = state.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        cases.push(flipped);
    }
    for case in cases {
        let mut shard = shard();
        shard.restore(&case).unwrap_err();
        // A footer after the snapshot would look like a whole history.
        Found::default().with(15, 4, 0, 1).replay(&mut shard, true);
        shard.recovered(&recovery(0, 16), false, id(50));
        check(&mut shard, batch(6, 0, 1), 20, lost(6));
    }
}

#[test]
fn a_state_of_another_version_is_refused_by_name() {
    let mut state = used().save().to_vec();
    state[4] = 3;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&state[4..]);
    state[..4].copy_from_slice(&hasher.finalize().to_le_bytes());
    let refused = shard().restore(&state);
    assert_eq!(refused, Err("the saved state is of an unknown version"));
}

/// Version 1 had no resting producers; snapshots of it are read.
#[test]
fn a_state_of_version_1_is_read() {
    let mut state = used().save().to_vec();
    state[4] = 1;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&state[4..]);
    state[..4].copy_from_slice(&hasher.finalize().to_le_bytes());
    let mut again = shard();
    again.restore(&state).unwrap();
    again.recovered(&recovery(0, 15), true, id(50));
    check(&mut again, batch(1, 10, 1), 20, appended(15, 20));
}

#[test]
fn a_saved_state_is_small() {
    let mut shard = shard();
    for sequence in 0..1_000 {
        let now = 1_700_000_000_000_000 + 300 * sequence;
        shard.admit(&batch(1, sequence, 1), at(now));
    }
    shard.durable(number(1_000));
    let bytes = shard.save().len();
    assert!(bytes < 700, "{bytes} bytes for 64 batches");
    assert!(super::shard().save().len() < 16);
}

/// What a jump may have taken is not in a closed shard, whoever asks in whatever order.
#[test]
fn a_closed_shard_that_has_jumped_answers_for_what_lies_ahead() {
    let found = Found::default().with(0, 1, 0, 1);
    let end = JUMP + 5;
    for (complete, expected) in [(true, true), (false, false)] {
        let mut shard = shard();
        found.replay(&mut shard, false);
        shard.recovered(&jumped(0, end), complete, id(2));
        shard.close();
        let mut ahead = |producer, sequence| {
            let answer = shard.admit(&batch(producer, sequence, 1), at(9));
            answer == closed(end)
        };
        assert_eq!([ahead(1, 2), ahead(2, 1)], [expected; 2]);
        // It was issued later, and is not behind.
        assert!(ahead(3, 0));
    }
}

/// A shard that began behind a jump has lost nothing to a footer.
#[test]
fn what_lies_before_a_jump_was_not_freed() {
    for (horizon, known) in [(JUMP, true), (JUMP + 1, false)] {
        let mut shard = shard();
        Found::default()
            .with(JUMP, 1, 0, 5)
            .replay(&mut shard, true);
        shard.recovered(&recovery(horizon, JUMP + 5), true, id(2));
        shard.close();
        let answer = shard.admit(&batch(2, 0, 1), at(9));
        assert_eq!(answer == closed(JUMP + 5), known, "{horizon}");
    }
}
