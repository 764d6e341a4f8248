//! Semantic versions.
//!
//! Source: semver.org 2.0.0, and `library/semverlib.go` of `k8s.io/apiserver/pkg/cel` for what `normalize` does.

use std::cmp::Ordering;
use std::rc::Rc;

use super::{Found, fail};
use crate::cel::value::Value;

#[derive(Debug)]
pub(crate) struct Semver {
    /// Major, minor and patch.
    numbers: [u64; 3],
    /// The parts of what comes before the version.
    before: Vec<String>,
    /// Bytes of its text.
    length: usize,
}

impl Semver {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("Version string empty".to_owned());
        }
        let length = text.len();
        let (text, build) = text.split_once('+').unwrap_or((text, "0"));
        let (core, before) = text.split_once('-').map_or((text, None), |(core, before)| (core, Some(before)));
        let named =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let parts: Vec<&str> = core.split('.').collect();
        let [major, minor, patch] = parts.as_slice() else {
            return Err("No Major.Minor.Patch elements found".to_owned());
        };
        let number = |text: &str, what: &str| {
            if text.bytes().any(|byte| !byte.is_ascii_digit()) {
                return Err(format!("Invalid character(s) found in {} number {text:?}", what.to_lowercase()));
            }
            if text.len() > 1 && text.starts_with('0') {
                return Err(format!("{what} number must not contain leading zeroes {text:?}"));
            }
            text.parse::<u64>().map_err(|_| format!("strconv.ParseUint: parsing {text:?}: invalid syntax"))
        };
        let before: Vec<String> =
            before.map(|before| before.split('.').map(str::to_owned).collect()).unwrap_or_default();
        let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let numbers = [number(major, "Major")?, number(minor, "Minor")?, number(patch, "Patch")?];
        if let Some(bad) = before.iter().find(|part| !named(part) || is_number(part) && number(part, "").is_err()) {
            return Err(format!("Invalid character(s) found in prerelease {bad:?}"));
        }
        if let Some(bad) = build.split('.').find(|part| !named(part)) {
            return Err(format!("Invalid character(s) found in build meta data {bad:?}"));
        }
        Ok(Self { numbers, before, length })
    }

    /// A `v` in front goes, missing numbers are 0, and zeros in front of numbers go.
    fn parse_normalized(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let end = text.find(['-', '+']).unwrap_or(text.len());
        let (core, rest) = text.split_at(end);
        let mut parts: Vec<&str> = core.split('.').collect();
        if parts.len() < 3 && !rest.is_empty() {
            return Err("Short version cannot contain PreRelease/Build meta data".to_owned());
        }
        parts.resize(parts.len().max(3), "0");
        let parts: Vec<&str> = parts
            .into_iter()
            .map(|part| {
                if part.len() > 1 {
                    Some(part.trim_start_matches('0')).filter(|left| !left.is_empty()).unwrap_or("0")
                } else {
                    part
                }
            })
            .collect();
        Self::parse(&format!("{}{rest}", parts.join(".")))
    }

    /// Bytes of its text.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (self.before.is_empty(), other.before.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let pairs = self.before.iter().zip(&other.before);
                let first = pairs.map(|(one, other)| compare_parts(one, other)).find(|order| order.is_ne());
                first.unwrap_or(self.before.len().cmp(&other.before.len()))
            }
        })
    }
}

fn compare_parts(one: &str, other: &str) -> Ordering {
    match (one.parse::<u64>(), other.parse::<u64>()) {
        (Ok(one), Ok(other)) => one.cmp(&other),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => one.cmp(other),
    }
}

pub(super) fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Found<'a>> {
    Some(match (function, args) {
        ("semver" | "isSemver", [Value::String(text), rest @ ..]) => {
            let normalize = match rest {
                [] => false,
                [Value::Bool(normalize)] => *normalize,
                _ => return None,
            };
            let version = if normalize { Semver::parse_normalized(text) } else { Semver::parse(text) };
            match (function, version) {
                ("isSemver", version) => Ok(Value::Bool(version.is_ok())),
                (_, Ok(version)) => Ok(Value::Semver(Rc::new(version))),
                (_, Err(why)) => fail(why),
            }
        }
        ("major", [Value::Semver(one)]) => number(one.numbers[0]),
        ("minor", [Value::Semver(one)]) => number(one.numbers[1]),
        ("patch", [Value::Semver(one)]) => number(one.numbers[2]),
        ("isGreaterThan", [Value::Semver(one), Value::Semver(other)]) => Ok(Value::Bool(one.compare(other).is_gt())),
        ("isLessThan", [Value::Semver(one), Value::Semver(other)]) => Ok(Value::Bool(one.compare(other).is_lt())),
        ("compareTo", [Value::Semver(one), Value::Semver(other)]) => Ok(Value::Int(one.compare(other) as i64)),
        _ => return None,
    })
}

fn number<'a>(number: u64) -> Found<'a> {
    Ok(Value::Int(i64::try_from(number).unwrap_or(i64::MAX)))
}
