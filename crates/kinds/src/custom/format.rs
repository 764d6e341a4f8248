//! A text and the format that a schema names -> whether the text has it.
//!
//! A format that is not known here says nothing. Source: `k8s.io/kube-openapi/pkg/validation/strfmt`.

use std::net::{Ipv4Addr, Ipv6Addr};

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
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "datetime" => text.contains(['T', 't', ' ']) && text.parse::<jiff::Timestamp>().is_ok(),
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
    }
}
