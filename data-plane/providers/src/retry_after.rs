//! How long a provider asks to wait, in the several forms in which it may say so.

use http::HeaderMap;

/// Longer waits are read as this: a day.
const MOST_MS: u64 = 86_400_000;

/// Milliseconds to wait. Read in this order: `retry-after-ms`, `retry-after` (seconds, fractions
/// allowed, or an HTTP date), the body's `retryDelay`, and, when `limited`, the reset of the rate
/// limit that is used up. `now_ms`: milliseconds since 1970.
pub(crate) fn read(headers: &HeaderMap, body_delay: Option<&str>, limited: bool, now_ms: u64) -> Option<u64> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
    let wait = text("retry-after-ms")
        .and_then(|v| scaled(v, 1.0))
        .or_else(|| text("retry-after").and_then(|v| scaled(v, 1_000.0).or_else(|| until(http_date(v)?, now_ms))))
        .or_else(|| body_delay.and_then(duration))
        .or_else(|| if limited { reset(headers, now_ms) } else { None })?;
    Some(wait.min(MOST_MS))
}

/// The longest reset among the limits with nothing left; without any such, the shortest of all.
fn reset(headers: &HeaderMap, now_ms: u64) -> Option<u64> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
    let kinds = ["", "-requests", "-tokens"];
    let resets = || {
        kinds.iter().filter_map(|kind| {
            let wait = point(text(&format!("x-ratelimit-reset{kind}"))?, now_ms)?;
            Some((text(&format!("x-ratelimit-remaining{kind}")) == Some("0"), wait))
        })
    };
    let used_up = resets().filter(|(used_up, _)| *used_up).map(|(_, wait)| wait).max();
    used_up.or_else(|| resets().map(|(_, wait)| wait).min())
}

/// A duration, or a number: seconds when small, else a time since 1970 in seconds or milliseconds.
fn point(text: &str, now_ms: u64) -> Option<u64> {
    match text.parse::<u64>() {
        Ok(ms) if ms >= 1_000_000_000_000 => until(ms, now_ms),
        Ok(seconds) if seconds >= 1_000_000_000 => until(seconds * 1_000, now_ms),
        Ok(_) | Err(_) => scaled(text, 1_000.0).or_else(|| duration(text)),
    }
}

fn until(at_ms: u64, now_ms: u64) -> Option<u64> {
    Some(at_ms.saturating_sub(now_ms))
}

/// A plain decimal number times `scale`, rounded up. Nothing else: no sign, no exponent.
fn scaled(text: &str, scale: f64) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.') && text.bytes().any(|b| b.is_ascii_digit());
    let value: f64 = text.parse().ok().filter(|_| plain)?;
    Some((value * scale).ceil().min(MOST_MS as f64) as u64)
}

/// Go's form: `1s`, `6m0s`, `26ms`, `1h2m3.5s`.
fn duration(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (value, tail) = rest.split_at(number);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let scale = match unit {
            "ns" => 0.000_001,
            "us" | "\u{b5}s" => 0.001,
            "ms" => 1.0,
            "s" => 1_000.0,
            "m" => 60_000.0,
            "h" => 3_600_000.0,
            "d" => 86_400_000.0,
            _ => return None,
        };
        total += value.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    (!text.is_empty()).then(|| total.ceil().min(MOST_MS as f64) as u64)
}

/// Milliseconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, the one form in use.
fn http_date(text: &str) -> Option<u64> {
    let mut words = text.split_once(", ")?.1.split(' ');
    let day: u64 = words.next()?.parse().ok().filter(|day| (1..=31).contains(day))?;
    let month = words.next()?;
    let year: u64 = words.next()?.parse().ok().filter(|year| (1970..=9999).contains(year))?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if words.next() != Some("GMT") || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    const MONTHS: [(&str, u64); 12] = [
        ("Jan", 0),
        ("Feb", 31),
        ("Mar", 59),
        ("Apr", 90),
        ("May", 120),
        ("Jun", 151),
        ("Jul", 181),
        ("Aug", 212),
        ("Sep", 243),
        ("Oct", 273),
        ("Nov", 304),
        ("Dec", 334),
    ];
    let (index, (_, before)) = MONTHS.iter().enumerate().find(|(_, (name, _))| *name == month)?;
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let past = year - 1;
    // Days from 1 January of the year 1; 719162 of them lie before 1970.
    let days = past * 365 + past / 4 - past / 100 + past / 400 + before + u64::from(leap && index > 1) + day - 1;
    Some(((days - 719_162) * 86_400 + hour * 3_600 + minute * 60 + second) * 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 784_111_777_000;

    /// Headers, the body's delay, whether a rate limit is behind it, the wait.
    type Case = (&'static [(&'static str, &'static str)], Option<&'static str>, bool, Option<u64>);

    #[test]
    fn every_form() {
        let cases: [Case; 19] = [
            (&[], None, true, None),
            (&[("retry-after", "7")], None, false, Some(7_000)),
            (&[("retry-after", "0.25")], None, false, Some(250)),
            (&[("retry-after", "0")], None, false, Some(0)),
            (&[("retry-after", "-1")], None, false, None),
            (&[("retry-after", "1e9")], None, false, None),
            (&[("retry-after", "99999999")], None, false, Some(MOST_MS)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")], None, false, Some(10_000)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:00 GMT")], None, false, Some(0)),
            (&[("retry-after", "soon")], None, false, None),
            (&[("retry-after-ms", "1500"), ("retry-after", "2")], None, false, Some(1_500)),
            (&[], Some("34.07s"), false, Some(34_070)),
            (&[("x-ratelimit-reset-requests", "6m0s")], None, true, Some(360_000)),
            (&[("x-ratelimit-reset-requests", "6m0s")], None, false, None),
            (
                &[
                    ("x-ratelimit-reset-requests", "1s"),
                    ("x-ratelimit-remaining-requests", "9"),
                    ("x-ratelimit-reset-tokens", "20s"),
                    ("x-ratelimit-remaining-tokens", "0"),
                ],
                None,
                true,
                Some(20_000),
            ),
            (&[("x-ratelimit-reset-tokens", "17.5s"), ("x-ratelimit-reset-requests", "26ms")], None, true, Some(26)),
            (&[("x-ratelimit-reset-requests", "20")], None, true, Some(20_000)),
            (&[("x-ratelimit-reset", "784111779500")], None, true, Some(MOST_MS)),
            (&[("x-ratelimit-reset", "x")], None, true, None),
        ];
        for (given, delay, limited, expected) in cases {
            let mut headers = HeaderMap::new();
            for (name, value) in given {
                headers.insert(*name, value.parse().expect("a header value"));
            }
            assert_eq!(read(&headers, delay, limited, NOW), expected, "{given:?}");
        }
    }

    #[test]
    fn dates() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777_000));
        assert_eq!(http_date("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800_000));
        assert_eq!(http_date("Fri, 01 Mar 2024 00:00:00 GMT"), Some(1_709_251_200_000));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 CET"), None);
    }

    #[test]
    fn times_since_1970_become_waits() {
        let now = 1_800_000_000_000;
        assert_eq!(point("1800000002500", now), Some(2_500));
        assert_eq!(point("1800000002", now), Some(2_000));
        assert_eq!(point("1h2m3.5s", now), Some(3_723_500));
    }
}
