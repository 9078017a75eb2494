//! JSON text to jq values and back, within bounds.

use bytes::Bytes;
use jaq_json::{Num, Val};
use serde::de::IgnoredAny;

/// The deepest a value may be nested, read, made or written: what later readers take, too.
pub(crate) const MAX_NESTING: usize = 128;
/// The largest text of one value, in bytes: above the largest record, with room for escapes.
pub(crate) const MAX_TEXT_BYTES: usize = 16 << 20;

/// Digits of a number, at most: reading a number takes time with the square of its length.
const MAX_DIGITS: usize = 1000;

/// Bytes are not a JSON value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JsonRefused {
    /// Not UTF-8.
    #[error("not UTF-8 from byte {at} on")]
    Utf8 {
        /// The first byte that is wrong.
        at: usize,
    },
    /// Nested too deep.
    #[error("nested deeper than {MAX_NESTING}")]
    Nesting,
    /// A number too long.
    #[error("a number has more than {MAX_DIGITS} digits")]
    Digits,
    /// Not JSON.
    #[error("not JSON: {fault}")]
    Syntax {
        /// What the parser says, with line and column.
        fault: String,
    },
}

/// A value cannot be written as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriteRefused {
    /// Nested too deep.
    #[error("the value is nested deeper than {MAX_NESTING}")]
    Nesting,
    /// Too large.
    #[error("the value takes more than {MAX_TEXT_BYTES} bytes as JSON")]
    Size,
    /// A key of an object that is not text.
    #[error("a key of the object is not text")]
    Key,
    /// Bytes that are not text.
    #[error("the value holds bytes that are not text")]
    Bytes,
}

/// Reads exactly one JSON value, strictly: what jq's own reader takes beyond JSON is refused.
pub(crate) fn parse(bytes: &[u8]) -> Result<Val, JsonRefused> {
    let text = std::str::from_utf8(bytes).map_err(|error| JsonRefused::Utf8 {
        at: error.valid_up_to(),
    })?;
    check_bounds(bytes)?;
    let syntax = |fault: String| JsonRefused::Syntax { fault };
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| syntax(error.to_string()))?;
    jaq_json::read::parse_single(bytes).map_err(|error| syntax(error.to_string()))
}

/// The readers recurse, and take numbers of any length; this looks first.
pub(crate) fn check_bounds(bytes: &[u8]) -> Result<(), JsonRefused> {
    let (mut depth, mut digits, mut in_string, mut escaped) = (0_usize, 0_usize, false, false);
    for byte in bytes {
        digits = if in_string || !byte.is_ascii_digit() {
            0
        } else {
            digits + 1
        };
        if digits > MAX_DIGITS {
            return Err(JsonRefused::Digits);
        }
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > MAX_NESTING {
                    return Err(JsonRefused::Nesting);
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// Compact JSON, numbers as jq 1.6 writes them but for integers, which keep every digit.
pub(crate) fn write(value: &Val) -> Result<Bytes, WriteRefused> {
    let mut out = Vec::new();
    write_into(value, 0, &mut out)?;
    Ok(Bytes::from(out))
}

fn write_into(value: &Val, depth: usize, out: &mut Vec<u8>) -> Result<(), WriteRefused> {
    if out.len() > MAX_TEXT_BYTES {
        return Err(WriteRefused::Size);
    }
    let below = depth + 1;
    match value {
        Val::Null => out.extend_from_slice(b"null"),
        Val::Bool(true) => out.extend_from_slice(b"true"),
        Val::Bool(false) => out.extend_from_slice(b"false"),
        Val::Num(number) => out.extend_from_slice(number_text(number).as_bytes()),
        Val::TStr(text) => write_text(text, out)?,
        Val::BStr(_) => return Err(WriteRefused::Bytes),
        Val::Arr(_) | Val::Obj(_) if below > MAX_NESTING => return Err(WriteRefused::Nesting),
        Val::Arr(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_into(item, below, out)?;
            }
            out.push(b']');
        }
        Val::Obj(fields) => {
            out.push(b'{');
            for (index, (key, field)) in fields.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                let Val::TStr(key) = key else {
                    return Err(WriteRefused::Key);
                };
                write_text(key, out)?;
                out.push(b':');
                write_into(field, below, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_text(text: &[u8], out: &mut Vec<u8>) -> Result<(), WriteRefused> {
    // A filter can cut text in the middle of a character.
    let text = String::from_utf8_lossy(text);
    let written = match text.contains('\u{7f}') {
        false => serde_json::to_writer(&mut *out, text.as_ref()),
        // jq escapes this one, too.
        true => serde_json::to_string(text.as_ref()).map(|text| {
            out.extend_from_slice(text.replace('\u{7f}', "\\u007f").as_bytes());
        }),
    };
    written.map_err(|_never| WriteRefused::Bytes)?;
    if out.len() > MAX_TEXT_BYTES {
        return Err(WriteRefused::Size);
    }
    Ok(())
}

/// A number as text.
pub(crate) fn number_text(number: &Num) -> String {
    match number {
        Num::Int(_) | Num::BigInt(_) => number.to_string(),
        Num::Float(value) => float_text(*value),
        Num::Dec(text) => text
            .parse()
            .map_or_else(|_odd| text.as_str().to_owned(), float_text),
    }
}

/// The shortest digits that read back as the same number, laid out as jq 1.6 does.
fn float_text(value: f64) -> String {
    if value.is_nan() {
        return "null".to_owned();
    }
    let value = value.clamp(f64::MIN, f64::MAX);
    let scientific = format!("{:e}", value.abs());
    let sign = if value.is_sign_negative() { "-" } else { "" };
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let (count, point) = (i32::try_from(digits.len()).unwrap_or(17), exponent + 1);
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or(0));
    if point <= -4 || point > count + 15 {
        let (first, rest) = digits.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        let minus = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{first}{dot}{rest}e{minus}{:02}", exponent.abs());
    }
    if point <= 0 {
        return format!("{sign}0.{}{digits}", zeros(-point));
    }
    if point >= count {
        return format!("{sign}{digits}{}", zeros(point - count));
    }
    let (whole, part) = digits.split_at(usize::try_from(point).unwrap_or(0));
    format!("{sign}{whole}.{part}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_json_and_nothing_else() {
        for good in [
            "1",
            " {\"a\":[1,2.50,null,true,\"\\u00e9\\n\"]} ",
            "\"x\"",
            "12345678901234567890123",
        ] {
            assert!(parse(good.as_bytes()).is_ok(), "{good}");
        }
        for bad in [
            "",
            "NaN",
            "Infinity",
            "+1",
            "01",
            "1 2",
            "# c\n1",
            "{1:2}",
            "b\"x\"",
            "[1,]",
            "\"\\ud800\"",
            "{\"a\"}",
        ] {
            assert!(
                matches!(parse(bad.as_bytes()), Err(JsonRefused::Syntax { .. })),
                "{bad}"
            );
        }
        assert_eq!(parse(b"\"a\xff\""), Err(JsonRefused::Utf8 { at: 2 }));
        let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse(deep(MAX_NESTING).as_bytes()).is_ok());
        assert_eq!(
            parse(deep(MAX_NESTING + 1).as_bytes()),
            Err(JsonRefused::Nesting)
        );
        assert_eq!(
            parse("[".repeat(1 << 20).as_bytes()),
            Err(JsonRefused::Nesting)
        );
    }

    #[test]
    fn long_numbers_are_refused_before_they_are_read() {
        let number = |digits: usize| "9".repeat(digits);
        assert!(parse(number(MAX_DIGITS).as_bytes()).is_ok());
        assert_eq!(parse(number(10 << 20).as_bytes()), Err(JsonRefused::Digits));
        let text = format!("[\"{}\",1.5]", number(5000));
        assert_eq!(write(&parse(text.as_bytes()).unwrap()).unwrap(), text);
    }

    #[test]
    fn what_is_not_text_is_not_written() {
        assert_eq!(write(&Val::byte_str(&b"x"[..])), Err(WriteRefused::Bytes));
        let odd = Val::obj([(Val::from(1_usize), Val::Null)].into_iter().collect());
        assert_eq!(write(&odd), Err(WriteRefused::Key));
    }

    proptest::proptest! {
        #[test]
        fn never_panics_and_is_stable(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            if let Ok(value) = parse(&bytes) {
                let once = write(&value).unwrap();
                assert_eq!(write(&parse(&once).unwrap()).unwrap(), once);
            }
        }

        #[test]
        fn floats_read_back(value: f64) {
            if value.is_finite() {
                assert_eq!(float_text(value).parse::<f64>().unwrap().to_bits(), value.to_bits());
            }
        }
    }
}
