//! Times as Java's `DateTimeFormatter` writes them, in English as spoken in the United States:
//! weeks begin on Sunday, and the first week of a year is that of its first day.
//!
//! Compared with Java 17 (`fixtures/`). Refused are what needs texts of the locale that are not
//! here (`B`, `v`, `zzzz`) and padding (`p`). `z` is the zone database's abbreviation, which for some
//! zones is an offset (`+1030`).

use std::fmt::Write as _;

use jiff::civil::Weekday;
use jiff::{Timestamp, ZonedDateTime, tz::TimeZone};

/// A pattern, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DatePattern(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field { letter: char, count: usize },
}

/// A pattern is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PatternRefused {
    /// Nothing to write.
    #[error("the pattern is empty")]
    Empty,
    /// A letter that means nothing here.
    #[error(
        "{letter:?} means nothing in a timestamp pattern; quote it ('{letter}') to have it as it is"
    )]
    Letter {
        /// The letter.
        letter: char,
    },
    /// A letter too often.
    #[error("{letter:?} cannot be repeated {count} times")]
    Count {
        /// The letter.
        letter: char,
        /// How often it is there.
        count: usize,
    },
    /// A quote without an end.
    #[error("a single quote is not closed")]
    Quote,
    /// A `]` without `[`.
    #[error("a ] without a [ before it")]
    Bracket,
}

impl DatePattern {
    /// Reads a pattern.
    pub(crate) fn parse(text: &str) -> Result<Self, PatternRefused> {
        if text.is_empty() {
            return Err(PatternRefused::Empty);
        }
        let (mut pieces, mut open) = (Vec::new(), 0_usize);
        let mut rest = text.chars().peekable();
        while let Some(letter) = rest.next() {
            match letter {
                'a'..='z' | 'A'..='Z' => {
                    let mut count = 1;
                    while rest.next_if_eq(&letter).is_some() {
                        count += 1;
                    }
                    check(letter, count)?;
                    pieces.push(Piece::Field { letter, count });
                }
                '\'' => literal(&mut pieces, &quoted(&mut rest)?),
                '[' => open += 1,
                ']' => open = open.checked_sub(1).ok_or(PatternRefused::Bracket)?,
                '{' | '}' | '#' => return Err(PatternRefused::Letter { letter }),
                other => literal(&mut pieces, other.encode_utf8(&mut [0; 4])),
            }
        }
        Ok(Self(pieces))
    }

    /// Writes a time.
    pub(crate) fn write(&self, at: &ZonedDateTime, out: &mut String) {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.push_str(text),
                // Writing to a String cannot fail.
                Piece::Field { letter, count } => {
                    let _ = field(*letter, *count, at, out);
                }
            }
        }
    }
}

/// A time in a zone; times beyond the year 9999 are its end.
pub(crate) fn zoned(at: flumen_record::Timestamp, zone: &TimeZone) -> ZonedDateTime {
    let micros = i64::try_from(at.as_micros()).unwrap_or(i64::MAX);
    let at = Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX);
    at.to_zoned_datetime(zone.clone())
}

fn literal(pieces: &mut Vec<Piece>, more: &str) {
    match pieces.last_mut() {
        Some(Piece::Text(text)) => text.push_str(more),
        _ => pieces.push(Piece::Text(more.to_owned())),
    }
}

/// What stands between quotes; two quotes are one, inside and alone.
fn quoted(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String, PatternRefused> {
    let mut text = String::new();
    while let Some(character) = rest.next() {
        if character != '\'' {
            text.push(character);
        } else if rest.next_if_eq(&'\'').is_some() {
            text.push('\'');
        } else if text.is_empty() {
            return Ok("'".to_owned());
        } else {
            return Ok(text);
        }
    }
    Err(PatternRefused::Quote)
}

/// How often letters may be repeated.
fn check(letter: char, count: usize) -> Result<(), PatternRefused> {
    let good = match letter {
        'G' | 'M' | 'L' | 'Q' | 'q' | 'E' | 'e' | 'X' | 'x' | 'Z' => count <= 5,
        'c' => count <= 5 && count != 2,
        'u' | 'y' | 'Y' | 'n' | 'N' | 'A' => count <= 19,
        'd' | 'w' | 'h' | 'H' | 'k' | 'K' | 'm' | 's' => count <= 2,
        'D' | 'z' => count <= 3,
        'S' => count <= 9,
        'W' | 'a' => count == 1,
        'V' => count == 2,
        'O' => count == 1 || count == 4,
        _ => return Err(PatternRefused::Letter { letter }),
    };
    if good {
        Ok(())
    } else {
        Err(PatternRefused::Count { letter, count })
    }
}

fn field(letter: char, count: usize, at: &ZonedDateTime, out: &mut String) -> std::fmt::Result {
    let (hour, second) = (i64::from(at.hour()), i64::from(at.second()));
    let nanos = i64::from(at.subsec_nanosecond());
    let of_day = (hour * 60 + i64::from(at.minute())) * 60 + second;
    let quarter = usize::from((at.month().unsigned_abs().max(1) - 1) / 3);
    let number = match letter {
        'G' => return text(count, &["AD", "Anno Domini", "A"], out),
        'u' | 'y' => return year(i64::from(at.year()), count, out),
        'Y' => return year(week(at).0, count, out),
        'M' | 'L' if count > 2 => return month(at.month(), count, out),
        'M' | 'L' => i64::from(at.month()),
        'd' => i64::from(at.day()),
        'D' => i64::from(at.day_of_year()),
        'Q' | 'q' if count > 2 => return quarter_text(quarter, count, out),
        'Q' | 'q' => quarter as i64 + 1,
        'w' => week(at).1,
        'W' => week_at(i64::from(at.day()), weekday(at)),
        'E' => return weekday_text(at.weekday(), count, out),
        'e' | 'c' if count > 2 => return weekday_text(at.weekday(), count, out),
        'e' | 'c' => weekday(at),
        'a' => return out.write_str(if hour < 12 { "AM" } else { "PM" }),
        'h' => (hour + 11) % 12 + 1,
        'H' => hour,
        'k' => (hour + 23) % 24 + 1,
        'K' => hour % 12,
        'm' => i64::from(at.minute()),
        's' => second,
        'S' => return write!(out, "{}", format!("{nanos:09}").get(..count).unwrap_or("")),
        'A' => of_day * 1000 + nanos / 1_000_000,
        'n' => nanos,
        'N' => of_day * 1_000_000_000 + nanos,
        'V' => return out.write_str(at.time_zone().iana_name().unwrap_or("UTC")),
        'z' => return out.write_str(&at.strftime("%Z").to_string()),
        _ => return offset(letter, count, at.offset().seconds(), out),
    };
    write!(out, "{number:0count$}")
}

fn year(year: i64, count: usize, out: &mut String) -> std::fmt::Result {
    if count == 2 {
        write!(out, "{:02}", year % 100)
    } else {
        write!(out, "{year:0count$}")
    }
}

/// Short, full or narrow text, as the count says.
fn text(count: usize, forms: &[&str; 3], out: &mut String) -> std::fmt::Result {
    let [short, full, narrow] = forms;
    out.write_str(match count {
        4 => full,
        5 => narrow,
        _ => short,
    })
}

fn month(month: i8, count: usize, out: &mut String) -> std::fmt::Result {
    let full = match month {
        1 => "January",
        2 => "February",
        3 => "March",
        4 => "April",
        5 => "May",
        6 => "June",
        7 => "July",
        8 => "August",
        9 => "September",
        10 => "October",
        11 => "November",
        _ => "December",
    };
    named(full, count, out)
}

fn weekday_text(weekday: Weekday, count: usize, out: &mut String) -> std::fmt::Result {
    let full = match weekday {
        Weekday::Monday => "Monday",
        Weekday::Tuesday => "Tuesday",
        Weekday::Wednesday => "Wednesday",
        Weekday::Thursday => "Thursday",
        Weekday::Friday => "Friday",
        Weekday::Saturday => "Saturday",
        Weekday::Sunday => "Sunday",
    };
    named(full, count, out)
}

/// A name, its first three letters, or its first.
fn named(full: &str, count: usize, out: &mut String) -> std::fmt::Result {
    let short = |letters| full.get(..letters).unwrap_or(full);
    text(count, &[short(3), full, short(1)], out)
}

fn quarter_text(quarter: usize, count: usize, out: &mut String) -> std::fmt::Result {
    let forms = match quarter {
        0 => ["Q1", "1st quarter", "1"],
        1 => ["Q2", "2nd quarter", "2"],
        2 => ["Q3", "3rd quarter", "3"],
        _ => ["Q4", "4th quarter", "4"],
    };
    text(count, &forms, out)
}

/// The day of the week, Sunday being 1.
fn weekday(at: &ZonedDateTime) -> i64 {
    i64::from(at.weekday().to_sunday_zero_offset()) + 1
}

/// The week in which a day falls, of a month or a year that begins with day 1 in week 1.
fn week_at(day: i64, weekday: i64) -> i64 {
    (day + first_weekday(day, weekday) - 2) / 7 + 1
}

/// The weekday of day 1, given that of another day; Sunday is 1.
fn first_weekday(day: i64, weekday: i64) -> i64 {
    (weekday - day).rem_euclid(7) + 1
}

/// Year and number of the week: the last days of a year belong to the week of the next year's first.
fn week(at: &ZonedDateTime) -> (i64, i64) {
    let (year, day, weekday) = (
        i64::from(at.year()),
        i64::from(at.day_of_year()),
        weekday(at),
    );
    let last = i64::from(at.days_in_year());
    // The Saturday of this week.
    if day + (7 - weekday) > last {
        (year + 1, 1)
    } else {
        (year, week_at(day, weekday))
    }
}

fn offset(letter: char, count: usize, seconds: i32, out: &mut String) -> std::fmt::Result {
    let sign = if seconds < 0 { '-' } else { '+' };
    let all = seconds.unsigned_abs();
    let (hours, minutes, seconds) = (all / 3600, all / 60 % 60, all % 60);
    let localized = letter == 'O' || (letter == 'Z' && count == 4);
    if localized {
        out.write_str("GMT")?;
        return match (all, count) {
            (0, _) => Ok(()),
            (_, 4) => {
                write!(out, "{sign}{hours:02}:{minutes:02}")?;
                if seconds > 0 {
                    write!(out, ":{seconds:02}")
                } else {
                    Ok(())
                }
            }
            _ => {
                write!(out, "{sign}{hours}")?;
                if minutes > 0 || seconds > 0 {
                    write!(out, ":{minutes:02}")?;
                }
                if seconds > 0 {
                    write!(out, ":{seconds:02}")
                } else {
                    Ok(())
                }
            }
        };
    }
    if all == 0 && (letter == 'X' || (letter == 'Z' && count == 5)) {
        return out.write_str("Z");
    }
    let (colon, with_seconds) = match (letter, count) {
        ('Z', 5) => (":", true),
        ('Z', _) => ("", false),
        (_, 3) => (":", false),
        (_, 4) => ("", true),
        (_, 5) => (":", true),
        _ => ("", false),
    };
    write!(out, "{sign}{hours:02}")?;
    if count > 1 || letter == 'Z' || minutes > 0 {
        write!(out, "{colon}{minutes:02}")?;
    }
    if with_seconds && seconds > 0 {
        write!(out, "{colon}{seconds:02}")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(pattern: &str, micros: u64, zone: &str) -> Result<String, PatternRefused> {
        let pattern = DatePattern::parse(pattern)?;
        let zone = TimeZone::get(zone).unwrap();
        let mut out = String::new();
        pattern.write(
            &zoned(flumen_record::Timestamp::from_micros(micros), &zone),
            &mut out,
        );
        Ok(out)
    }

    /// Where we refuse what Java takes: texts that are not here, padding, an empty pattern.
    fn is_refused_on_purpose(pattern: &str) -> bool {
        pattern.is_empty()
            || pattern.contains(['B', 'v', 'p'])
            || pattern.contains("zzzz")
            || pattern == "g"
    }

    #[test]
    fn java_writes_the_same() {
        let (mut rows, mut wrong) = (0, Vec::new());
        for line in include_str!("fixtures/java_patterns.txt").lines().skip(1) {
            let columns: Vec<&str> = line.split('\t').collect();
            let [micros, zone, pattern, java] = columns[..] else {
                panic!("{line}")
            };
            let ours = written(pattern, micros.parse().unwrap(), zone);
            rows += 1;
            if is_refused_on_purpose(pattern) {
                assert!(ours.is_err(), "{line}");
                continue;
            }
            // The zone database has no abbreviation for these.
            if pattern.contains('z') && ["Australia/Lord_Howe", "Pacific/Apia"].contains(&zone) {
                continue;
            }
            let ours = ours.unwrap_or_else(|_refused| "!".to_owned());
            if ours != java {
                wrong.push(format!("{line}\t(ours: {ours})"));
            }
        }
        assert!(rows > 1000, "{rows}");
        assert!(
            wrong.is_empty(),
            "{} of {rows}:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }

    #[test]
    fn refusals_name_the_letter() {
        for (pattern, refused) in [
            ("yyyy-bb", PatternRefused::Letter { letter: 'b' }),
            (
                "HHH",
                PatternRefused::Count {
                    letter: 'H',
                    count: 3,
                },
            ),
            ("yyyy'open", PatternRefused::Quote),
            ("yyyy]", PatternRefused::Bracket),
            ("", PatternRefused::Empty),
        ] {
            assert_eq!(DatePattern::parse(pattern), Err(refused), "{pattern}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(pattern in "[a-zA-Z'\\[\\]/ -]{0,12}", micros: u64) {
            let _ = written(&pattern, micros, "America/St_Johns");
        }
    }
}
