//! Numbers, days and times; against jiff, and cases by hand.

use jiff::civil;
use proptest::prelude::*;

use flumen_broker::ParquetColumn;

use super::super::fields::Fields;
use super::super::schema::Schema;
use super::*;

/// The value that a row is.
fn only(row: &str) -> Value {
    let object = format!("{{\"a\":{row}}}");
    let column = ParquetColumn {
        name: String::from("a"),
        kind: ColumnType::Json,
        required: false,
    };
    let mut fields = Fields::new(&Schema::try_from(vec![column]).unwrap(), false);
    fields.read(object.as_bytes()).unwrap();
    let value = fields.values()[0].unwrap();
    let (start, end) = (value.start - 5, value.end - 5);
    Value {
        start,
        end,
        ..value
    }
}

fn read<T>(read: impl Fn(Value, &str) -> Option<T>, row: &str) -> Option<T> {
    read(only(row), row)
}

#[test]
fn numbers() {
    let bigints = [
        ("0", Some(0)),
        ("-0", Some(0)),
        ("9223372036854775807", Some(i64::MAX)),
        ("-9223372036854775808", Some(i64::MIN)),
        ("9223372036854775808", None),
        ("5.0", Some(5)),
        ("-5e3", Some(-5000)),
        ("5.5", None),
        ("1e300", None),
        ("1e999", None),
        ("\"5\"", None),
        ("true", None),
        ("[5]", None),
    ];
    for (row, expected) in bigints {
        assert_eq!(read(bigint, row), expected, "{row}");
    }
    assert_eq!(read(int, "2147483647"), Some(i32::MAX));
    assert_eq!(read(int, "2147483648"), None);
    assert_eq!(read(double, "10844.0"), Some(10844.0));
    assert_eq!(read(double, "-1"), Some(-1.0));
    assert_eq!(read(double, "1e999"), None);
    assert_eq!(read(double, "\"1\""), None);
    assert_eq!(read(boolean, "true"), Some(true));
    assert_eq!(read(boolean, "false"), Some(false));
    assert_eq!(read(boolean, "1"), None);
}

#[test]
fn times() {
    let base = 1_404_172_800_000_000;
    let cases = [
        (r#""2014-07-01 00:00:00""#, Some(base)),
        (r#""2014-07-01T00:00:00Z""#, Some(base)),
        (r#""2014-07-01t00:00:00z""#, Some(base)),
        (r#""2014-07-01T02:00:00+02:00""#, Some(base)),
        (r#""2014-06-30T19:00:00.5-0500""#, Some(base + 500_000)),
        (r#""2014-07-01 00:00:00.123456789""#, Some(base + 123_456)),
        (r#""2014-06-30T23:59:60Z""#, Some(base - 1_000_000)),
        ("1404172800000", Some(base)),
        ("1404172800000.25", Some(base + 250)),
        ("-1", Some(-1_000)),
        (r#""2014-07-01""#, None),
        (r#""2014-07-01T00:00""#, None),
        (r#""2014-07-01T24:00:00""#, None),
        (r#""2014-07-01T00:00:00.""#, None),
        (r#""2014-07-01T00:00:00.1234567890""#, None),
        (r#""2014-07-01T00:00:00 ""#, None),
        (r#""2014-07-01T00:00:00+2""#, None),
        (r#""2014-02-29T00:00:00""#, None),
        ("9223372036854775807", None),
        ("1e300", None),
        ("true", None),
    ];
    for (row, expected) in cases {
        assert_eq!(read(timestamp, row), expected, "{row}");
    }
    let dates = [
        (r#""1970-01-01""#, Some(0)),
        (r#""1969-12-31""#, Some(-1)),
        (r#""2000-02-29""#, Some(11_016)),
        (r#""1900-02-29""#, None),
        (r#""2014-13-01""#, None),
        (r#""2014-00-01""#, None),
        (r#""2014-01-00""#, None),
        (r#""2014-1-1""#, None),
        (r#""2014-07-01 ""#, None),
        (r#""+014-07-01""#, None),
        ("20140701", None),
    ];
    for (row, expected) in dates {
        assert_eq!(read(date, row), expected, "{row}");
    }
}

#[test]
fn what_is_inferred() {
    use ColumnType::{Bigint, Boolean, Double, Json, String};
    let cases = [
        ("true", Boolean),
        ("1", Bigint),
        ("-999999999999999999", Bigint),
        ("9223372036854775807", Bigint),
        ("9223372036854775808", Double),
        ("1.0", Double),
        ("1e308", Double),
        ("1e309", Json),
        ("\"a\"", String),
        (r#""\n""#, String),
        ("\"2014-07-01\"", String),
        ("[]", Json),
        ("{}", Json),
    ];
    for (row, expected) in cases {
        assert_eq!(inferred(only(row), row), expected, "{row}");
        assert!(fits(expected, only(row), row), "{row}");
    }
    let digits = "9".repeat(400);
    assert_eq!(inferred(only(&digits), &digits), Json);
}

proptest! {
    #[test]
    fn days_and_times_are_those_of_the_calendar(
        year in 0i16..=9999, month in 1i8..=12, day in 1i8..=31, seconds in 0i32..86_400,
        micros in 0i32..1_000_000, offset in -1_439i32..=1_439,
    ) {
        let text = format!("\"{year:04}-{month:02}-{day:02}\"");
        let calendar = civil::Date::new(year, month, day).ok();
        let epoch = civil::date(1970, 1, 1);
        let days = calendar.map(|date| (date - epoch).get_days());
        prop_assert_eq!(read(date, &text), days);
        let Some(days) = days else { return Ok(()) };
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let (sign, minutes) = if offset < 0 { ('-', -offset) } else { ('+', offset) };
        let text = format!(
            "\"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}{sign}{:02}:{:02}\"",
            minutes / 60, minutes % 60
        );
        let expected = (i64::from(days) * 86_400 + i64::from(seconds - offset * 60)) * 1_000_000;
        prop_assert_eq!(read(timestamp, &text), Some(expected + i64::from(micros)));
        // And jiff, where its years suffice.
        if let Ok(time) = text.trim_matches('"').parse::<jiff::Timestamp>() {
            prop_assert_eq!(time.as_microsecond(), expected + i64::from(micros));
        }
    }
}
