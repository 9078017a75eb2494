//! Times as text, by table; every date of the calendar against counting one by one.

use super::*;

const NEW_YEAR_2000: u64 = 946_684_800;

fn seconds(seconds: u64) -> Timestamp {
    Timestamp::from_micros(seconds * MICROS_PER_SECOND)
}

#[test]
fn times_are_written_and_read_back() {
    let table = [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1, "1970-01-01T00:00:00.000001Z"),
        (86_399_999_999, "1970-01-01T23:59:59.999999Z"),
        (86_400_000_000, "1970-01-02T00:00:00.000000Z"),
        (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
        (951_868_800_000_000, "2000-03-01T00:00:00.000000Z"),
        // The example of RFC 3339 section 5.8, in UTC.
        (851_042_397_000_000, "1996-12-20T00:39:57.000000Z"),
        (1_700_000_000_123_456, "2023-11-14T22:13:20.123456Z"),
        (4_107_542_400_000_000, "2100-03-01T00:00:00.000000Z"),
        (
            Timestamp::LAST_WRITABLE.as_micros(),
            "9999-12-31T23:59:59.999999Z",
        ),
    ];
    for (micros, text) in table {
        assert_eq!(Timestamp::from_micros(micros).to_string(), text);
        assert_eq!(text.parse(), Ok(Timestamp::from_micros(micros)), "{text}");
    }
}

#[test]
fn other_forms_of_the_same_time_are_read() {
    let table = [
        "2000-01-01T00:00:00Z",
        "2000-01-01t00:00:00z",
        "2000-01-01 00:00:00Z",
        "2000-01-01T00:00:00.0Z",
        "2000-01-01T00:00:00.000000999999Z",
        "2000-01-01T00:00:00+00:00",
        "2000-01-01T00:00:00-00:00",
        "2000-01-01T05:30:00+05:30",
        "1999-12-31T16:00:00-08:00",
    ];
    for text in table {
        assert_eq!(text.parse(), Ok(seconds(NEW_YEAR_2000)), "{text}");
    }
    assert_eq!(
        "1970-01-01T00:00:00.25Z".parse(),
        Ok(Timestamp::from_micros(250_000))
    );
    assert_eq!("1969-12-31T23:00:00-01:00".parse(), Ok(Timestamp::ZERO));
}

#[test]
fn what_is_not_a_time_is_refused() {
    let table = [
        ("", TimestampError::Form),
        ("now", TimestampError::Form),
        ("2000-01-01", TimestampError::Form),
        ("2000-01-01T00:00:00", TimestampError::Form),
        ("2000-01-01T00:00Z", TimestampError::Form),
        ("2000-1-1T00:00:00Z", TimestampError::Form),
        ("2000-01-01T00:00:00.Z", TimestampError::Form),
        ("2000-01-01T00:00:00ZZ", TimestampError::Form),
        ("2000-01-01T00:00:00+0100", TimestampError::Form),
        ("+2000-01-01T00:00:00Z", TimestampError::Form),
        ("2000-01-01T00:00:0٠Z", TimestampError::Form),
        ("2000-00-01T00:00:00Z", TimestampError::NoSuchTime),
        ("2000-13-01T00:00:00Z", TimestampError::NoSuchTime),
        ("2000-01-00T00:00:00Z", TimestampError::NoSuchTime),
        ("2000-01-32T00:00:00Z", TimestampError::NoSuchTime),
        ("2023-02-29T00:00:00Z", TimestampError::NoSuchTime),
        ("2100-02-29T00:00:00Z", TimestampError::NoSuchTime),
        ("2000-01-01T24:00:00Z", TimestampError::NoSuchTime),
        ("2000-01-01T00:60:00Z", TimestampError::NoSuchTime),
        ("2016-12-31T23:59:60Z", TimestampError::NoSuchTime),
        ("2000-01-01T00:00:00+24:00", TimestampError::NoSuchTime),
        ("0000-01-01T00:00:00Z", TimestampError::Year),
        ("1969-12-31T23:59:59Z", TimestampError::Year),
        ("1970-01-01T00:00:00+00:01", TimestampError::Year),
        ("9999-12-31T23:59:59-00:01", TimestampError::Year),
    ];
    for (text, error) in table {
        assert_eq!(text.parse::<Timestamp>(), Err(error), "{text:?}");
    }
}

#[test]
fn every_day_until_2400_is_the_day_after_the_one_before() {
    let mut expected = (1970, 1, 1);
    for days in 0..=(430 * 1461 / 4) {
        let date = Date::from_days(days);
        assert_eq!((date.year, date.month, date.day), expected, "day {days}");
        assert_eq!(date.to_days(), Ok(days.cast_signed()));
        let tomorrow = |year, month, day| Date { year, month, day }.to_days().is_ok();
        let (year, month, day) = expected;
        expected = if tomorrow(year, month, day + 1) {
            (year, month, day + 1)
        } else if month < 12 {
            (year, month + 1, 1)
        } else {
            (year + 1, 1, 1)
        };
    }
    assert!(expected.0 >= 2399);
}

#[test]
fn what_cannot_be_written_as_a_date_is_shown_all_the_same() {
    let beyond = Timestamp::LAST_WRITABLE.saturating_add(Duration::from_micros(1));
    assert_eq!(beyond.to_string(), "@253402300800000000us");
    assert_eq!(Timestamp::MAX.to_string(), "@18446744073709551615us");
}

#[test]
fn arithmetic_stops_at_both_ends() {
    let second = Duration::from_secs(1);
    assert_eq!(Timestamp::ZERO.saturating_sub(second), Timestamp::ZERO);
    assert_eq!(Timestamp::MAX.saturating_add(second), Timestamp::MAX);
    assert_eq!(
        Timestamp::ZERO.saturating_add(Duration::MAX),
        Timestamp::MAX
    );
    assert_eq!(seconds(1).since(seconds(3)), Duration::ZERO);
    assert_eq!(seconds(3).since(seconds(1)), Duration::from_secs(2));
}
