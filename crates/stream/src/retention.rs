//! How long records are kept: pure decisions; who trims, and how often, is the broker's.

use std::time::Duration;

use flumen_record::{SequenceNumber, Timestamp};

use crate::{ShardState, StreamSettings};

/// The shortest retention.
pub const RETENTION_MIN: Duration = Duration::from_hours(1);
/// The longest retention.
pub const RETENTION_MAX: Duration = Duration::from_hours(8_760);

/// What a log keeps, in hours: a stream's retention rounds up to one of these.
const CLASSES: [u32; 6] = [1, 6, 24, 168, 720, 8_760];

/// The retention class in hours that keeps records at least this long.
pub fn retention_class(retention: Duration) -> u32 {
    let keeps = |hours: &u32| Duration::from_hours(u64::from(*hours)) >= retention;
    let longest = CLASSES.last().copied().unwrap_or_default();
    CLASSES.into_iter().find(keeps).unwrap_or(longest)
}

/// Batches that arrived before this have expired. `now` is a time that is believed: the guard
/// against clock jumps is the clock's.
pub fn expired_before(settings: &StreamSettings, now: Timestamp) -> Timestamp {
    now.saturating_sub(settings.retention)
}

/// Whether a shard that was closed `at` leaves its stream: nothing of it is kept (`horizon` is at its
/// end), and whoever sent to it last has had the retention's time to ask what became of it.
pub fn has_expired(
    state: ShardState,
    horizon: SequenceNumber,
    settings: &StreamSettings,
    now: Timestamp,
) -> bool {
    match state {
        ShardState::Open => false,
        ShardState::Closed { end, at } => horizon >= end && at < expired_before(settings, now),
    }
}

/// How many stored bytes one shard may keep so that its stream stays within its bound, or `None`
/// when nothing has to go. Every shard gives up the same share of what it holds, so that shards
/// keep records of about the same age.
pub fn bytes_kept(settings: &StreamSettings, shard_bytes: u64, stream_bytes: u64) -> Option<u64> {
    let bound = settings.retention_bytes?;
    if stream_bytes <= bound {
        return None;
    }
    let share = u128::from(bound) * u128::from(shard_bytes) / u128::from(stream_bytes);
    Some(u64::try_from(share).map_or(shard_bytes, |share| share.min(shard_bytes)))
}

/// What makes records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// Their age.
    Time,
    /// That there is more than a stream may keep.
    Bytes,
}

/// Batches that arrived before this go although a delivery stream holds them: by age `hold_max`
/// after they expired, by bytes `hold_max` after they arrived, as nobody remembers when there was
/// too much.
pub fn let_go_before(
    settings: &StreamSettings,
    by: Expiry,
    hold_max: Duration,
    now: Timestamp,
) -> Timestamp {
    match by {
        Expiry::Time => expired_before(settings, now).saturating_sub(hold_max),
        Expiry::Bytes => now.saturating_sub(hold_max),
    }
}

/// How far a shard's horizon may move that would move up to `before`, when records from `held` on
/// are held, and those before `let_go` are not held any longer.
pub fn held_back(
    before: SequenceNumber,
    held: SequenceNumber,
    let_go: SequenceNumber,
) -> SequenceNumber {
    before.min(held.max(let_go))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(hours: u64) -> Duration {
        Duration::from_hours(hours)
    }

    fn bounded(retention_bytes: Option<u64>) -> StreamSettings {
        StreamSettings {
            retention_bytes,
            ..StreamSettings::default()
        }
    }

    #[test]
    fn retention_rounds_up_to_a_class() {
        let second = Duration::from_secs(1);
        for (retention, class) in [
            (Duration::ZERO, 1),
            (hours(1), 1),
            (hours(1) + second, 6),
            (hours(6), 6),
            (hours(7), 24),
            (hours(24), 24),
            (hours(24) + second, 168),
            (hours(168), 168),
            (hours(169), 720),
            (hours(720), 720),
            (hours(721), 8_760),
            (hours(8_760), 8_760),
            (hours(9_999), 8_760),
        ] {
            assert_eq!(retention_class(retention), class, "{retention:?}");
        }
    }

    #[test]
    fn records_expire_by_arrival_time() {
        let settings = StreamSettings {
            retention: hours(1),
            ..StreamSettings::default()
        };
        let hour = 3_600_000_000;
        for (now, before) in [(0, 0), (hour - 1, 0), (hour, 0), (hour + 7, 7)] {
            let before = Timestamp::from_micros(before);
            assert_eq!(
                expired_before(&settings, Timestamp::from_micros(now)),
                before
            );
        }
    }

    #[test]
    fn a_closed_shard_leaves_when_it_is_empty_and_its_time_is_over() {
        let settings = StreamSettings {
            retention: hours(1),
            ..StreamSettings::default()
        };
        let hour = 3_600_000_000;
        let closed = |end| ShardState::Closed {
            end: SequenceNumber::new(end),
            at: Timestamp::from_micros(5),
        };
        for (state, horizon, now, expected) in [
            (ShardState::Open, 9, 9 * hour, false),
            (closed(9), 9, hour + 6, true),
            (closed(9), 9, hour + 5, false),
            (closed(9), 8, hour + 6, false),
            (closed(0), 0, hour + 6, true),
            (closed(0), 0, 7, false),
        ] {
            let (horizon, now) = (SequenceNumber::new(horizon), Timestamp::from_micros(now));
            let expired = has_expired(state, horizon, &settings, now);
            assert_eq!(expired, expected, "{state:?} {horizon} {now}");
        }
    }

    #[test]
    fn what_is_held_goes_when_its_time_is_over() {
        for (before, held, let_go, moves_to) in [
            // Nothing of it is held.
            (5, 5, 0, 5),
            (5, 9, 0, 5),
            // It waits.
            (9, 5, 0, 5),
            (9, 0, 0, 0),
            (9, 5, 5, 5),
            // Held for too long.
            (9, 5, 7, 7),
            (9, 5, 9, 9),
            // What is let go has to have expired, too.
            (9, 5, 20, 9),
        ] {
            let [before, held, let_go] = [before, held, let_go].map(SequenceNumber::new);
            let moved = held_back(before, held, let_go);
            assert_eq!(moved.value(), moves_to, "{before} {held} {let_go}");
        }
    }

    #[test]
    fn a_hold_ends_a_bounded_time_after_the_records_expired() {
        let settings = StreamSettings {
            retention: hours(3),
            ..StreamSettings::default()
        };
        let at = |hours: u64| Timestamp::from_micros(hours * 3_600_000_000);
        for (by, hold, now, before) in [
            (Expiry::Time, 24, 30, 3),
            (Expiry::Time, 24, 20, 0),
            (Expiry::Time, 0, 30, 27),
            (Expiry::Bytes, 24, 30, 6),
            (Expiry::Bytes, 0, 30, 30),
        ] {
            let found = let_go_before(&settings, by, hours(hold), at(now));
            assert_eq!(found, at(before), "{by:?} {hold} {now}");
        }
    }

    #[test]
    fn every_shard_gives_up_the_same_share() {
        for (bound, shard, stream, kept) in [
            (None, 10, u64::MAX, None),
            (Some(100), 100, 100, None),
            (Some(100), 0, 0, None),
            (Some(100), 200, 200, Some(100)),
            (Some(100), 150, 200, Some(75)),
            (Some(100), 50, 200, Some(25)),
            (Some(100), 0, 200, Some(0)),
            (Some(u64::MAX - 1), u64::MAX, u64::MAX, Some(u64::MAX - 1)),
            // Counts of other moments: never more than there is.
            (Some(100), 500, 200, Some(250)),
            (Some(100), 5, 101, Some(4)),
        ] {
            assert_eq!(
                bytes_kept(&bounded(bound), shard, stream),
                kept,
                "{bound:?} {shard}"
            );
        }
    }
}
