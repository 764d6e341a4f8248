//! The query of a log request -> what is wanted of the log.

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};

use super::Refusal;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::agent) struct Options {
    pub(super) follow: bool,
    pub(super) previous: bool,
    pub(super) timestamps: bool,
    pub(super) tail: Option<u64>,
    pub(super) since: Option<Timestamp>,
    pub(super) limit: Option<u64>,
}

impl Options {
    pub(in crate::agent) fn parse(query: &str, now: Timestamp) -> Result<Self, Refusal> {
        let mut options = Self::default();
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let value = decoded(value);
            let bad = || (StatusCode::BAD_REQUEST, format!("{key}: {value:?} is not what it takes"));
            let number = || value.parse::<u64>().map_err(|_| bad());
            let flag = || value.parse::<bool>().or_else(|_| number().map(|number| number != 0));
            match key {
                "follow" => options.follow = flag()?,
                "previous" => options.previous = flag()?,
                "timestamps" => options.timestamps = flag()?,
                "tailLines" => options.tail = Some(number()?),
                "limitBytes" => options.limit = Some(number()?),
                "sinceSeconds" => {
                    let ago = SignedDuration::from_secs(value.parse().map_err(|_| bad())?);
                    options.since = Some(now.checked_sub(ago).map_err(|_| bad())?);
                }
                "sinceTime" => options.since = Some(value.parse().map_err(|_| bad())?),
                // `container` and what later versions add.
                _ => {}
            }
        }
        Ok(options)
    }
}

/// A query value without its escapes.
pub(in crate::agent) fn decoded(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [byte, tail @ ..] = rest {
        let escaped = tail.get(..2).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        let (value, after) = match (byte, escaped) {
            (b'%', Some(escaped)) => (escaped, &tail[2..]),
            (b'+', _) => (b' ', tail),
            _ => (*byte, tail),
        };
        bytes.push(value);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
