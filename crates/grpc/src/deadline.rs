//! The caller's deadline, from the `grpc-timeout` header.

use std::time::Duration;

use http::HeaderMap;

/// The longest timeout that is kept; what is longer is none.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long the caller is going to wait: up to eight digits and a unit, as the gRPC protocol has
/// it. What is not that counts as no timeout.
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    };
    (timeout <= LONGEST).then_some(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<Duration>) {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        assert_eq!(timeout(&headers), expected, "{text:?}");
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(timeout(&HeaderMap::new()), None);
        check("2H", Some(Duration::from_secs(7200)));
        check("3M", Some(Duration::from_secs(180)));
        check("10S", Some(Duration::from_secs(10)));
        check("250m", Some(Duration::from_millis(250)));
        check("99999999u", Some(Duration::from_micros(99_999_999)));
        check("1n", Some(Duration::from_nanos(1)));
        check("0S", Some(Duration::ZERO));
        check("99999999H", None);
        for odd in ["", "S", "1", "1 S", "-1S", "+1S", "123456789S", "1s", "1Sx"] {
            check(odd, None);
        }
    }
}
