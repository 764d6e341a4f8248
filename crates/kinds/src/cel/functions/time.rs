//! Times and durations: as texts, and their parts.

use jiff::civil::Date;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

use super::{Found, fail};
use crate::cel::value::Value;

pub(super) fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Found<'a>> {
    if let [Value::Duration(duration)] = args {
        return Some(Ok(Value::Int(match function {
            "getHours" => duration.as_hours(),
            "getMinutes" => duration.as_mins(),
            "getSeconds" => duration.as_secs(),
            "getMilliseconds" => i64::try_from(duration.as_millis()).unwrap_or(i64::MAX),
            _ => return None,
        })));
    }
    let (time, zone) = match args {
        [Value::Timestamp(time)] => (time, TimeZone::UTC),
        [Value::Timestamp(time), Value::String(zone)] => match parse_zone(zone) {
            Some(zone) => (time, zone),
            None => return Some(fail(format!("unknown time zone {}", &**zone))),
        },
        _ => return None,
    };
    let part = part(function, &time.to_zoned(zone))?;
    Some(Ok(Value::Int(part)))
}

fn part(function: &str, time: &Zoned) -> Option<i64> {
    Some(match function {
        "getFullYear" => time.year().into(),
        "getMonth" => i64::from(time.month()) - 1,
        "getDayOfYear" => i64::from(time.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(time.day()) - 1,
        "getDate" => time.day().into(),
        "getDayOfWeek" => time.weekday().to_sunday_zero_offset().into(),
        "getHours" => time.hour().into(),
        "getMinutes" => time.minute().into(),
        "getSeconds" => time.second().into(),
        "getMilliseconds" => time.millisecond().into(),
        _ => return None,
    })
}

/// `+01:30`, or a name.
fn parse_zone(text: &str) -> Option<TimeZone> {
    let Some((hours, minutes)) = text.split_once(':') else {
        return if matches!(text, "" | "UTC") { Some(TimeZone::UTC) } else { TimeZone::get(text).ok() };
    };
    let negative = hours.starts_with('-');
    let (hours, minutes): (i16, i16) = (hours.parse().ok()?, minutes.parse().ok()?);
    let minutes = i32::from(minutes) * 60;
    let seconds = i32::from(hours) * 3600 + if negative { -minutes } else { minutes };
    Offset::from_seconds(seconds).ok().map(TimeZone::fixed)
}

pub(crate) fn parse_date(text: &str) -> Option<Timestamp> {
    if text.len() != 10 {
        return None;
    }
    text.parse::<Date>().ok()?.to_zoned(TimeZone::UTC).ok().map(|time| time.timestamp())
}

/// RFC 3339, as Go reads it.
pub(crate) fn parse_time(text: &str) -> Option<Timestamp> {
    let zoned = text.ends_with('Z') || text.len() > 6 && text.as_bytes()[text.len() - 6..][0] != b':';
    (text.contains('T') && zoned).then(|| text.parse().ok()).flatten()
}

/// Go's durations, such as `1h30m` or `-1.5s`.
pub(crate) fn parse_duration(text: &str) -> Option<SignedDuration> {
    const UNITS: [(&str, i128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("\u{b5}s", 1_000),
        ("\u{3bc}s", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut sum: i128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let length = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, left) = after.split_at(length);
        let scale = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || whole.len() > 19 {
            return None;
        }
        sum += if whole.is_empty() { 0 } else { whole.parse::<i128>().ok()? } * scale;
        let fraction = &fraction[..fraction.len().min(15)];
        if !fraction.is_empty() {
            sum += fraction.parse::<i128>().ok()? * scale / 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        }
        rest = left;
    }
    let sum = if negative { -sum } else { sum };
    i64::try_from(sum).ok().map(SignedDuration::from_nanos)
}

/// Seconds, with as much of a fraction as there is.
pub(super) fn show_duration(duration: SignedDuration) -> String {
    let nanoseconds = duration.subsec_nanos().unsigned_abs();
    let sign = if duration.is_negative() { "-" } else { "" };
    let whole = duration.as_secs().unsigned_abs();
    if nanoseconds == 0 {
        return format!("{sign}{whole}s");
    }
    let fraction = format!("{nanoseconds:09}");
    format!("{sign}{whole}.{}s", fraction.trim_end_matches('0'))
}
