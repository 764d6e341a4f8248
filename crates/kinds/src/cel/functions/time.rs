//! Times and durations: as texts, and their parts.

use jiff::civil::{DateTime, Time};
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use super::{Found, fail};
use crate::cel::value::Value;
use crate::custom;

const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

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
    let time = match args {
        [Value::Timestamp(time)] => *time,
        [Value::Timestamp(time), Value::String(zone)] => match parse_zone(zone) {
            Some(zone) => local(*time, &zone),
            None => return Some(fail(format!("unknown time zone {}", &**zone))),
        },
        _ => return None,
    };
    Some(Ok(Value::Int(part(function, time)?)))
}

/// What a clock shows in a zone at a time in UTC.
fn local(time: DateTime, zone: &TimeZone) -> DateTime {
    // A zone is asked about somewhat fewer years than there are.
    let end = if time.year() < 1970 { Timestamp::MIN } else { Timestamp::MAX };
    let offset = zone.to_offset(TimeZone::UTC.to_timestamp(time).unwrap_or(end));
    time.saturating_add(SignedDuration::from_secs(offset.seconds().into()))
}

fn part(function: &str, time: DateTime) -> Option<i64> {
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
        let named = || TimeZone::get(text).ok().filter(|zone| zone.iana_name() == Some(text));
        return if matches!(text, "" | "UTC") { Some(TimeZone::UTC) } else { named() };
    };
    let negative = hours.starts_with('-');
    let (hours, minutes): (i16, i16) = (hours.parse().ok()?, minutes.parse().ok()?);
    let minutes = i32::from(minutes) * 60;
    let seconds = i32::from(hours) * 3600 + if negative { -minutes } else { minutes };
    Offset::from_seconds(seconds).ok().map(TimeZone::fixed)
}

pub(crate) fn parse_date(text: &str) -> Option<DateTime> {
    custom::date(text).map(|date| date.to_datetime(Time::midnight()))
}

/// RFC 3339, as Go reads it.
pub(crate) fn parse_time(text: &str) -> Option<DateTime> {
    custom::date_time(text).and_then(within).filter(|_| !text.contains(['t', 'z']))
}

/// A time that the language knows: of the years 1 to 9999.
pub(super) fn within(time: DateTime) -> Option<DateTime> {
    (1..=9999).contains(&time.year()).then_some(time)
}

/// Seconds since 1970, those before it rounded down.
pub(super) fn seconds(time: DateTime) -> i64 {
    let since = time.duration_since(EPOCH);
    since.as_secs() - i64::from(since.subsec_nanos() < 0)
}

pub(super) fn from_seconds(seconds: i64) -> Option<DateTime> {
    EPOCH.checked_add(SignedDuration::from_secs(seconds)).ok().and_then(within)
}

/// Go's durations, such as `1h30m` or `-1.5s`.
pub fn parse_duration(text: &str) -> Option<SignedDuration> {
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
        if fraction.contains('.') {
            return None;
        }
        sum += part_of(fraction, scale);
        rest = left;
    }
    let sum = if negative { -sum } else { sum };
    i64::try_from(sum).ok().map(SignedDuration::from_nanos)
}

/// The digits behind a point, of a unit of so many nanoseconds, reckoned as Go does.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "less than the unit, which is an hour")]
fn part_of(fraction: &str, unit: i128) -> i128 {
    let (mut digits, mut scale) = (0_u64, 1.0);
    for digit in fraction.chars() {
        let more = digits.checked_mul(10).and_then(|tens| tens.checked_add(digit.to_digit(10)?.into()));
        let Some(more) = more.filter(|more| *more <= 1 << 63) else { break };
        (digits, scale) = (more, scale * 10.0);
    }
    (digits as f64 * (unit as f64 / scale)) as i128
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
