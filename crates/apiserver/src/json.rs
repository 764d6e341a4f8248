//! JSON or YAML text -> a value, and which of its fields stand there more than once.
//!
//! The last of the repeated wins, as in Go; but who asked for strictness is refused, and others are warned. Nesting is
//! bounded by `serde_json`. Source: `sigs.k8s.io/json`, whose words these are.

use std::fmt::{self, Write};

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// At most this many repeated fields are named.
const MOST: usize = 100;

/// The value, and messages such as `duplicate field "spec.type"`.
///
/// # Errors
/// When it is not JSON, or nested too deeply.
pub(crate) fn parse(bytes: &[u8]) -> serde_json::Result<(Value, Vec<String>)> {
    serde_json::from_slice(bytes).map(|Parsed(value, repeated)| (value, repeated))
}

/// What [`parse`] gives, of any format that `serde` reads.
pub(crate) struct Parsed(pub(crate) Value, pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (mut path, mut repeated) = (String::new(), Vec::new());
        let value = Reader { path: &mut path, repeated: &mut repeated }.deserialize(deserializer)?;
        Ok(Self(value, repeated))
    }
}

struct Reader<'a> {
    path: &'a mut String,
    repeated: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn within(&mut self) -> Reader<'_> {
        Reader { path: self.path, repeated: self.repeated }
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        let length = self.path.len();
        let mut list = Vec::new();
        loop {
            // Writing to a `String` does not fail.
            let _ = write!(self.path, "[{}]", list.len());
            let item = items.next_element_seed(self.within())?;
            self.path.truncate(length);
            let Some(item) = item else { return Ok(list.into()) };
            list.push(item);
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<Value, A::Error> {
        let length = self.path.len();
        let mut map = Map::new();
        while let Some(name) = members.next_key_seed(Name)? {
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(&name);
            let value = members.next_value_seed(self.within())?;
            if map.insert(name, value).is_some() && self.repeated.len() < MOST {
                self.repeated.push(format!("duplicate field \"{}\"", self.path));
            }
            self.path.truncate(length);
        }
        Ok(map.into())
    }
}

struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        String::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_serde_json_makes_of_them() {
        for text in [
            "{}",
            "[]",
            "null",
            " {\"a\": [1, -2, 2.5, 18446744073709551615, true, null, \"\\u00e9\\n\", {\"b\": {}}]} ",
            "{\"a\": 1, \"b\": 2, \"a\": {\"c\": 3}}",
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap().0, serde_json::from_str::<Value>(text).unwrap(), "{text}");
        }
        for text in ["", "{", "{\"a\":1}}", "nul", "{\"a\" 1}", "\u{feff}{}", "[1e999]", "[\"\\ud800\"]"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
        assert!(parse(&[b'"', 0xff, b'"']).is_err());
    }

    #[test]
    fn repeated_fields_are_named() {
        for (text, expected) in [
            ("{\"a\": 1, \"b\": {\"a\": 1}}", &[][..]),
            ("{\"a\": 1, \"a\": 1, \"a\": 2}", &["duplicate field \"a\"", "duplicate field \"a\""]),
            ("{\"spec\": {\"ports\": [{}, {\"port\": 1, \"port\": 2}]}}", &["duplicate field \"spec.ports[1].port\""]),
            (
                "{\"data\": {\"x\": {}, \"x\": \"\"}, \"data\": 1}",
                &["duplicate field \"data.x\"", "duplicate field \"data\""],
            ),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap().1, expected, "{text}");
        }
        let many = format!("{{{}\"a\": 1}}", "\"a\": 1, ".repeat(1000));
        assert_eq!(parse(many.as_bytes()).unwrap().1.len(), MOST);
    }
}
