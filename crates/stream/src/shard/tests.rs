//! Admission, decision by decision.

mod model;
mod recovery;

use std::num::NonZeroU32;
use std::time::Duration;

use flumen_record::{
    BatchHeader, Compression, HashKey, HashRange, ProducerId, ProducerSequence, SequenceNumber,
    ShardId, Timestamp,
};

use super::*;

const LEFT: HashRange = HashRange {
    start: HashKey::MIN,
    end: HashKey::new(99),
};

fn number(value: u64) -> SequenceNumber {
    SequenceNumber::new(value)
}

fn at(micros: u64) -> Timestamp {
    Timestamp::from_micros(micros)
}

/// A batch of `count` records whose checksum follows from who sent it.
fn batch(producer: u64, sequence: u64, count: u32) -> BatchHeader {
    BatchHeader {
        encoded_bytes: 72 + 4 * count,
        checksum: checksum(producer, sequence),
        compression: Compression::None,
        count,
        uncompressed_bytes: 4 * count,
        producer: ProducerId::new(producer),
        sequence: ProducerSequence::new(sequence),
        span: LEFT,
    }
}

fn checksum(producer: u64, sequence: u64) -> u32 {
    let distinct = producer.wrapping_mul(1_000).wrapping_add(sequence);
    u32::try_from(distinct % (1 << 32)).unwrap()
}

fn shard_with(config: &StreamConfig) -> Shard {
    Shard::new(ShardId::from_value(7), LEFT, config)
}

fn shard() -> Shard {
    shard_with(&StreamConfig::default())
}

fn appended(base: u64, arrival: u64) -> Admission {
    Admission::Append {
        base: number(base),
        arrival: at(arrival),
    }
}

fn duplicate(base: u64, arrival: u64, durable: bool) -> Admission {
    Admission::Duplicate {
        base: number(base),
        arrival: at(arrival),
        durable,
    }
}

fn out_of_sequence(expected: u64, got: u64) -> Admission {
    Admission::Refused(Refusal::OutOfSequence {
        expected: ProducerSequence::new(expected),
        got: ProducerSequence::new(got),
    })
}

fn lost(producer: u64) -> Admission {
    Admission::Refused(Refusal::ProducerStateLost {
        producer: ProducerId::new(producer),
    })
}

fn closed(end: u64) -> Admission {
    Admission::Refused(Refusal::Closed { end: number(end) })
}

#[track_caller]
fn check(shard: &mut Shard, batch: BatchHeader, now: u64, expected: Admission) {
    let next = shard.next();
    assert_eq!(shard.admit(&batch, at(now)), expected, "{batch:?}");
    match expected {
        Admission::Append { base, .. } => {
            assert_eq!(base, next);
            assert_eq!(shard.next(), next.plus(u64::from(batch.count)));
        }
        _ => assert_eq!(
            shard.next(),
            next,
            "a batch that is not appended takes no numbers"
        ),
    }
}

#[test]
fn batches_in_order_get_dense_numbers() {
    let mut shard = shard();
    check(&mut shard, batch(1, 0, 10), 100, appended(0, 100));
    check(&mut shard, batch(1, 1, 1), 101, appended(10, 101));
    check(&mut shard, batch(2, 0, 5), 102, appended(11, 102));
    check(&mut shard, batch(0, 0, 3), 103, appended(16, 103));
    check(&mut shard, batch(1, 2, 1), 104, appended(19, 104));
    assert_eq!(shard.next(), number(20));
}

#[test]
fn arrival_never_decreases() {
    let mut shard = shard();
    check(&mut shard, batch(1, 0, 1), 100, appended(0, 100));
    check(&mut shard, batch(1, 1, 1), 50, appended(1, 100));
    check(&mut shard, batch(1, 2, 1), 101, appended(2, 101));
}

#[test]
fn what_skips_a_sequence_is_not_attempted() {
    let mut shard = shard();
    check(&mut shard, batch(1, 0, 1), 1, appended(0, 1));
    check(&mut shard, batch(1, 2, 1), 2, out_of_sequence(1, 2));
    check(
        &mut shard,
        batch(1, u64::MAX, 1),
        2,
        out_of_sequence(1, u64::MAX),
    );
    check(&mut shard, batch(1, 1, 1), 3, appended(1, 3));
    check(&mut shard, batch(1, 2, 1), 4, appended(2, 4));
}

#[test]
fn the_first_sequence_of_a_producer_is_0() {
    let mut shard = shard();
    check(&mut shard, batch(9, 1, 1), 1, out_of_sequence(0, 1));
    check(&mut shard, batch(9, 0, 1), 1, appended(0, 1));
}

#[test]
fn a_duplicate_in_flight_joins_and_a_durable_one_gets_its_ack() {
    let mut shard = shard();
    check(&mut shard, batch(1, 0, 10), 1, appended(0, 1));
    check(&mut shard, batch(1, 1, 10), 2, appended(10, 2));
    check(&mut shard, batch(1, 0, 10), 3, duplicate(0, 1, false));
    shard.durable(number(10));
    check(&mut shard, batch(1, 0, 10), 3, duplicate(0, 1, true));
    check(&mut shard, batch(1, 1, 10), 3, duplicate(10, 2, false));
    shard.durable(number(20));
    check(&mut shard, batch(1, 1, 10), 3, duplicate(10, 2, true));
}

#[test]
fn a_sequence_that_comes_with_other_bytes_is_refused() {
    let mut shard = shard();
    check(&mut shard, batch(1, 0, 1), 1, appended(0, 1));
    let mut other = batch(1, 0, 1);
    other.checksum += 1;
    let sequence = other.sequence;
    let refused = Admission::Refused(Refusal::ChecksumDiffers { sequence });
    check(&mut shard, other, 2, refused);
    shard.durable(number(1));
    check(&mut shard, other, 2, refused);
}

#[test]
fn only_the_last_64_are_remembered() {
    let mut shard = shard();
    for sequence in 0..100 {
        check(
            &mut shard,
            batch(1, sequence, 1),
            sequence,
            appended(sequence, sequence),
        );
        shard.durable(shard.next());
    }
    for sequence in 0..100 {
        let expected = match sequence {
            36.. => duplicate(sequence, sequence, true),
            _ => Admission::AlreadyAppended,
        };
        check(&mut shard, batch(1, sequence, 1), 200, expected);
    }
}

#[test]
fn whatever_is_in_flight_is_remembered_beside_the_durable_ones() {
    let mut shard = shard();
    for sequence in 0..300 {
        check(&mut shard, batch(1, sequence, 1), 1, appended(sequence, 1));
    }
    shard.durable(number(100));
    check(&mut shard, batch(1, 35, 1), 1, Admission::AlreadyAppended);
    for sequence in 36..300 {
        check(
            &mut shard,
            batch(1, sequence, 1),
            1,
            duplicate(sequence, 1, sequence < 100),
        );
    }
    shard.durable(number(300));
    check(&mut shard, batch(1, 235, 1), 1, Admission::AlreadyAppended);
    check(&mut shard, batch(1, 236, 1), 1, duplicate(236, 1, true));
}

#[test]
fn a_batch_without_a_producer_is_always_appended() {
    let mut shard = shard();
    check(&mut shard, batch(0, 0, 1), 1, appended(0, 1));
    check(&mut shard, batch(0, 0, 1), 1, appended(1, 1));
    check(&mut shard, batch(0, 77, 1), 1, appended(2, 1));
    shard.durable(number(3));
    check(&mut shard, batch(0, 0, 1), 1, appended(3, 1));
}

#[test]
fn a_span_beyond_the_range_is_the_wrong_shard() {
    let mut shard = shard();
    check(&mut shard, batch(1, 0, 1), 1, appended(0, 1));
    let mut outside = batch(1, 1, 1);
    outside.span.end = HashKey::new(100);
    let (span, range) = (outside.span, LEFT);
    let wrong = Admission::Refused(Refusal::WrongShard { span, range });
    check(&mut shard, outside, 2, wrong);
    let mut anonymous = outside;
    anonymous.producer = ProducerId::NONE;
    check(&mut shard, anonymous, 2, wrong);
    // What follows it in a pipeline is not attempted, and the sequence is still free.
    check(&mut shard, batch(1, 2, 1), 2, out_of_sequence(1, 2));
    check(&mut shard, batch(1, 1, 1), 2, appended(1, 2));
    // A duplicate is one wherever its keys lie, and a gap comes before the span.
    let mut gap = outside;
    gap.sequence = ProducerSequence::new(5);
    check(&mut shard, gap, 2, out_of_sequence(2, 5));
    let mut again = batch(1, 0, 1);
    again.span = HashRange::FULL;
    check(&mut shard, again, 2, duplicate(0, 1, false));
}

#[test]
fn a_closed_shard_knows_its_duplicates_and_appends_nothing() {
    let mut shard = shard();
    check(&mut shard, batch(1, 0, 2), 1, appended(0, 1));
    for sequence in 0..70 {
        check(
            &mut shard,
            batch(2, sequence, 1),
            1,
            appended(2 + sequence, 1),
        );
    }
    shard.durable(number(72));
    assert_eq!(shard.close(), number(72));
    check(&mut shard, batch(1, 0, 2), 2, duplicate(0, 1, true));
    check(&mut shard, batch(2, 0, 1), 2, Admission::AlreadyAppended);
    check(&mut shard, batch(1, 1, 1), 2, closed(72));
    // Neither a missing batch nor another shard would help.
    check(&mut shard, batch(1, 9, 1), 2, closed(72));
    check(&mut shard, batch(3, 0, 1), 2, closed(72));
    check(&mut shard, batch(0, 0, 1), 2, closed(72));
    let mut outside = batch(1, 1, 1);
    outside.span = HashRange::FULL;
    check(&mut shard, outside, 2, closed(72));
}

#[test]
fn a_quota_refuses_what_is_new_and_only_that() {
    let mut shard = shard_with(&StreamConfig {
        shard_records_per_second: NonZeroU32::new(10),
        ..StreamConfig::default()
    });
    let second = 1_000_000;
    check(&mut shard, batch(1, 0, 20), second, appended(0, second));
    let retry_after = Duration::from_secs(1);
    let throttled = Admission::Refused(Refusal::Throttled { retry_after });
    check(&mut shard, batch(1, 1, 1), second, throttled);
    check(&mut shard, batch(0, 0, 1), second, throttled);
    check(
        &mut shard,
        batch(1, 0, 20),
        second,
        duplicate(0, second, false),
    );
    check(&mut shard, batch(1, 2, 1), second, out_of_sequence(1, 2));
    let later = 2 * second;
    check(&mut shard, batch(1, 1, 1), later, appended(20, later));
    shard.abandon(number(20));
    check(&mut shard, batch(1, 1, 10), later, appended(20, later));
}

/// Arrival times never decrease: after a clock that was ahead they stand still for as long.
#[test]
fn a_quota_goes_by_the_clock_and_not_by_arrival_times() {
    let mut shard = shard_with(&StreamConfig {
        shard_records_per_second: NonZeroU32::new(10),
        ..StreamConfig::default()
    });
    let (second, day) = (1_000_000, 86_400_000_000);
    let ahead = 40 * day;
    check(&mut shard, batch(0, 0, 10), ahead, appended(0, ahead));
    for n in 1..5 {
        let now = n * second;
        check(&mut shard, batch(0, 0, 10), now, appended(10 * n, ahead));
    }
}

#[test]
fn forgetting_a_producer_raises_the_watermark_to_its_id() {
    let mut shard = shard_with(&StreamConfig {
        producers_per_shard_max: 3,
        resting_producers_per_shard_max: 0,
        ..StreamConfig::default()
    });
    for (base, producer) in [(0, 5), (1, 9), (2, 7)] {
        check(&mut shard, batch(producer, 0, 1), 1, appended(base, 1));
    }
    check(&mut shard, batch(5, 1, 1), 1, appended(3, 1));
    // 9 has not appended for longest.
    check(&mut shard, batch(20, 0, 1), 1, appended(4, 1));
    shard.durable(number(5));
    for sequence in [0, 1, 2] {
        check(&mut shard, batch(9, sequence, 1), 1, lost(9));
        // Never seen here, but nobody can tell.
        check(&mut shard, batch(8, sequence, 1), 1, lost(8));
    }
    // The others are still known, whatever the watermark.
    check(&mut shard, batch(5, 1, 1), 1, duplicate(3, 1, true));
    check(&mut shard, batch(5, 2, 1), 1, appended(5, 1));
    check(&mut shard, batch(7, 2, 1), 1, out_of_sequence(1, 2));
    check(&mut shard, batch(10, 0, 1), 1, appended(6, 1));
    shard.durable(number(7));
    // 7 was forgotten for it: the watermark does not fall.
    check(&mut shard, batch(9, 0, 1), 1, lost(9));
    check(&mut shard, batch(7, 1, 1), 1, lost(7));
}

#[test]
fn a_closed_shard_does_not_say_of_a_forgotten_producer_that_nothing_was_appended() {
    let mut shard = shard_with(&StreamConfig {
        producers_per_shard_max: 1,
        resting_producers_per_shard_max: 0,
        ..StreamConfig::default()
    });
    check(&mut shard, batch(1, 0, 1), 1, appended(0, 1));
    check(&mut shard, batch(2, 0, 1), 1, appended(1, 1));
    shard.durable(number(2));
    shard.close();
    check(&mut shard, batch(1, 1, 1), 1, lost(1));
    check(&mut shard, batch(2, 1, 1), 1, closed(2));
}

#[test]
fn what_is_abandoned_can_be_sent_again() {
    let mut shard = shard();
    check(&mut shard, batch(1, 0, 5), 1, appended(0, 1));
    check(&mut shard, batch(0, 0, 1), 1, appended(5, 1));
    shard.durable(number(6));
    check(&mut shard, batch(1, 1, 5), 2, appended(6, 2));
    check(&mut shard, batch(2, 0, 5), 2, appended(11, 2));
    check(&mut shard, batch(0, 0, 5), 2, appended(16, 2));
    check(&mut shard, batch(1, 2, 5), 2, appended(21, 2));
    shard.abandon(number(11));
    assert_eq!(shard.next(), number(11));
    check(&mut shard, batch(1, 1, 5), 3, duplicate(6, 2, false));
    check(&mut shard, batch(1, 3, 5), 3, out_of_sequence(2, 3));
    check(&mut shard, batch(2, 1, 5), 3, out_of_sequence(0, 1));
    check(&mut shard, batch(1, 2, 5), 3, appended(11, 3));
    check(&mut shard, batch(2, 0, 5), 3, appended(16, 3));
    shard.abandon(number(6));
    check(&mut shard, batch(1, 0, 5), 4, duplicate(0, 1, true));
    check(&mut shard, batch(1, 1, 5), 4, appended(6, 4));
}

#[test]
fn abandoning_more_than_is_remembered_finds_the_sequence_again() {
    let mut shard = shard();
    for sequence in 0..100 {
        check(&mut shard, batch(1, sequence, 1), 1, appended(sequence, 1));
    }
    shard.durable(number(100));
    for sequence in 100..1_000 {
        check(&mut shard, batch(1, sequence, 1), 1, appended(sequence, 1));
    }
    shard.abandon(number(100));
    check(&mut shard, batch(1, 101, 1), 1, out_of_sequence(100, 101));
    check(&mut shard, batch(1, 36, 1), 1, duplicate(36, 1, true));
    check(&mut shard, batch(1, 100, 1), 1, appended(100, 1));
}

/// With more producers in turn than the table holds, every batch was refused once, and went again
/// under a new producer id; so was the first batch of a producer opened before those.
#[test]
fn more_producers_in_turn_than_the_table_holds() {
    const PRODUCERS: u64 = 5_000;
    let mut shard = shard();
    let mut base = 0;
    for turn in 0..4 {
        for producer in 1..=PRODUCERS {
            // One is opened first of all, and sends its first batch in the last turn.
            if producer == 7 && turn < 3 {
                continue;
            }
            let sequence = if producer == 7 { 0 } else { turn };
            check(
                &mut shard,
                batch(producer, sequence, 1),
                1,
                appended(base, 1),
            );
            base += 1;
            if base % 100 == 0 {
                shard.durable(number(base));
            }
        }
        shard.durable(number(base));
        // What it was sent before is known to be stored.
        let again = batch(3, turn, 1);
        assert_eq!(shard.admit(&again, at(1)), Admission::AlreadyAppended);
        check(
            &mut shard,
            batch(3, turn + 2, 1),
            1,
            out_of_sequence(turn + 1, turn + 2),
        );
        if turn == 1 {
            // So it is after a restart.
            let state = shard.save();
            let next = shard.next();
            shard = self::shard();
            shard.restore(&state).unwrap();
            let recovery = ShardRecovery {
                shard: shard.id(),
                trim_horizon: number(0),
                next,
                epoch: ShardEpoch::new(1),
                last_arrival: at(1),
                jumped: None,
            };
            shard.recovered(&recovery, true, ProducerId::new(PRODUCERS));
        }
    }
}

/// A producer that comes back from rest, and whose batch is taken back, rests again.
#[test]
fn coming_back_from_rest_can_be_taken_back() {
    let mut shard = shard_with(&StreamConfig {
        producers_per_shard_max: 1,
        ..StreamConfig::default()
    });
    check(&mut shard, batch(1, 0, 1), 1, appended(0, 1));
    check(&mut shard, batch(2, 0, 1), 1, appended(1, 1));
    shard.durable(number(2));
    check(&mut shard, batch(1, 1, 1), 2, appended(2, 2));
    // Only what is durable is saved.
    let state = shard.save();
    shard.abandon(number(2));
    let mut again = self::shard();
    again.restore(&state).unwrap();
    for shard in [&mut shard, &mut again] {
        let first = batch(1, 0, 1);
        assert_eq!(shard.admit(&first, at(3)), Admission::AlreadyAppended);
        check(shard, batch(1, 2, 1), 3, out_of_sequence(1, 2));
        check(shard, batch(1, 1, 1), 3, appended(2, 3));
    }
}

#[test]
fn producers_forgotten_in_flight_do_no_harm() {
    let mut shard = shard_with(&StreamConfig {
        producers_per_shard_max: 2,
        resting_producers_per_shard_max: 0,
        ..StreamConfig::default()
    });
    for producer in 1..=10 {
        check(
            &mut shard,
            batch(producer, 0, 1),
            1,
            appended(producer - 1, 1),
        );
    }
    shard.durable(number(4));
    shard.abandon(number(9));
    check(&mut shard, batch(9, 0, 1), 1, duplicate(8, 1, false));
    check(&mut shard, batch(9, 1, 1), 1, appended(9, 1));
    shard.durable(number(10));
    check(&mut shard, batch(9, 1, 1), 1, duplicate(9, 1, true));
    check(&mut shard, batch(1, 1, 1), 1, lost(1));
}

#[test]
#[should_panic(expected = "BUG: durable batches cannot be taken back")]
fn what_is_durable_is_not_abandoned() {
    let mut shard = shard();
    check(&mut shard, batch(1, 0, 1), 1, appended(0, 1));
    shard.durable(number(1));
    shard.abandon(number(0));
}
