//! A text and the format that a schema names -> whether the text has it.
//!
//! A format that is not known here says nothing. Source: `k8s.io/kube-openapi/pkg/validation/strfmt`.

use std::net::{Ipv4Addr, Ipv6Addr};

use jiff::SignedDuration;
use jiff::civil::{Date, DateTime};

use crate::{decode, names};

/// `format` is without its dashes.
pub(crate) fn fits(format: &str, text: &str) -> bool {
    match format {
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        "mac" => is_mac(text),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => is_uuid(text, format.strip_prefix("uuid").unwrap_or_default()),
        "byte" => decode::bad_base64(text).is_none(),
        "date" => date(text).is_some(),
        "datetime" => date_time(text).is_some(),
        "duration" => is_duration(text),
        "email" => {
            text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty() && !host.contains('@'))
        }
        "hostname" => {
            text.len() <= 253 && text.split('.').all(|label| names::dns1123_label(&label.to_lowercase()).is_empty())
        }
        "uri" => !text.contains(' ') && (text.contains("://") || text.starts_with('/')),
        "k8sshortname" => names::dns1123_label(text).is_empty(),
        "k8slongname" => names::dns1123_subdomain(text).is_empty(),
        _ => true,
    }
}

/// As messages name the format.
pub(super) fn shown(format: &str) -> &str {
    match format {
        "datetime" => "date-time",
        "k8sshortname" => "k8s-short-name",
        "k8slongname" => "k8s-long-name",
        other => other,
    }
}

/// `2026-01-31`
pub(crate) fn date(text: &str) -> Option<Date> {
    let (year, rest) = text.split_at_checked(4)?;
    let (month, day) = rest.strip_prefix('-')?.split_once('-')?;
    let year = number(year, 4)?;
    Date::new(year, i8::try_from(number(month, 2)?).ok()?, i8::try_from(number(day, 2)?).ok()?).ok()
}

/// RFC 3339, in UTC. Its last second is that of the year 9999, which people write for what never ends.
pub(crate) fn date_time(text: &str) -> Option<DateTime> {
    let (day, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't'])?;
    let (time, east) = match rest.strip_suffix(['Z', 'z']) {
        Some(time) => (time, 0),
        None => {
            let (time, zone) = rest.split_at_checked(rest.len().checked_sub(6)?)?;
            let (hours, minutes) = zone.strip_prefix(['+', '-'])?.split_once(':')?;
            let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
            if hours > 24 || minutes > 60 {
                return None;
            }
            let seconds = (i64::from(hours) * 60 + i64::from(minutes)) * 60;
            (time, if zone.starts_with('-') { -seconds } else { seconds })
        }
    };
    let (whole, fraction) = time.split_at_checked(8)?;
    let mut parts = whole.split(':').map(|part| number(part, 2).and_then(|part| i8::try_from(part).ok()));
    let (Some(hour), Some(minute), Some(second), None) = (parts.next()?, parts.next()?, parts.next()?, parts.next())
    else {
        return None;
    };
    let local =
        DateTime::from_parts(date(day)?, jiff::civil::Time::new(hour, minute, second, nanoseconds(fraction)?).ok()?);
    local.checked_sub(SignedDuration::from_secs(east)).ok()
}

/// A number of so many digits.
fn number(text: &str, digits: usize) -> Option<i16> {
    (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// Of a fraction of a second, if there is one; what is smaller is left out.
fn nanoseconds(fraction: &str) -> Option<i32> {
    if fraction.is_empty() {
        return Some(0);
    }
    let digits = fraction.strip_prefix(['.', ','])?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    format!("{:0<9.9}", digits).parse().ok()
}

fn is_mac(text: &str) -> bool {
    let separator = if text.contains('-') { '-' } else { ':' };
    let parts: Vec<&str> = text.split(separator).collect();
    matches!(parts.len(), 6 | 8 | 20)
        && parts.iter().all(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn is_uuid(text: &str, version: &str) -> bool {
    let digits: String = text.chars().filter(|character| *character != '-').collect();
    digits.len() == 32
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        && (version.is_empty() || digits[12..].starts_with(version))
}

/// Go's durations, such as `1h30m`, and those in words, such as `3 days`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    let mut any = false;
    while !rest.is_empty() {
        let number = rest.trim_start_matches(|character: char| character.is_ascii_digit() || character == '.');
        let unit = number.trim_start();
        let end = unit.find(|character: char| !character.is_alphabetic()).unwrap_or(unit.len());
        const UNITS: [&str; 21] = [
            "ns",
            "us",
            "µs",
            "μs",
            "ms",
            "s",
            "m",
            "h",
            "d",
            "w",
            "nanoseconds",
            "microseconds",
            "milliseconds",
            "seconds",
            "second",
            "minutes",
            "minute",
            "hours",
            "hour",
            "days",
            "day",
        ];
        if number.len() == rest.len() || !UNITS.contains(&&unit[..end]) {
            return false;
        }
        any = true;
        rest = unit[end..].trim_start();
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (format, good, bad) in [
            ("ipv4", "10.0.0.1", "10.0.0"),
            ("ipv6", "fd00::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0"),
            ("mac", "01:23:45:67:89:ab", "01:23"),
            ("uuid", "7d444840-9dc0-11d1-b245-5ffdce74fad2", "7d444840"),
            ("uuid4", "7d444840-9dc0-41d1-b245-5ffdce74fad2", "7d444840-9dc0-11d1-b245-5ffdce74fad2"),
            ("byte", "YQ==", "?"),
            ("date", "2026-01-31", "2026-02-31"),
            ("datetime", "2026-01-31T00:00:00.5Z", "2026-01-31"),
            ("duration", "1h30m", "1 x"),
            ("email", "a@b.c", "a"),
            ("hostname", "A.example.com", "a_b"),
            ("uri", "https://example.com/x", "example"),
            ("k8sshortname", "a-b", "A"),
            ("k8slongname", "a.b", "a..b"),
        ] {
            assert!(fits(format, good), "{format} {good}");
            assert!(!fits(format, bad), "{format} {bad}");
        }
        assert!(fits("unheard-of", "x"));
        for (text, utc) in [
            ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59"),
            ("2026-01-01t00:00:00.1234567891z", "2026-01-01T00:00:00.123456789"),
            ("2026-01-01T00:00:00,5-01:30", "2026-01-01T01:30:00.5"),
            ("2026-03-01T00:00:00+14:00", "2026-02-28T10:00:00"),
        ] {
            assert_eq!(date_time(text).map(|time| time.to_string()).as_deref(), Some(utc), "{text}");
        }
        for text in [
            "2026-01-01 00:00:00Z",
            "20260101T000000Z",
            "2026-01-01T00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:60Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00+0130",
            "2026-01-01T00:00:00+01",
            "2026-01-01T00:00:00.Z",
            "2026-1-01T00:00:00Z",
            "+026-01-01T00:00:00Z",
            "2026-01-01T00:00:00\u{e9}Z",
            "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}T",
        ] {
            assert_eq!(date_time(text), None, "{text}");
        }
    }
}
