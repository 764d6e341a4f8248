//! YAML -> in which lines its objects are told again what they were told before.
//!
//! The line is that in which the value begins. Source: go-yaml's `setMapIndex`, whose words these are.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// At most this many lines are named.
const MOST: usize = 100;

/// Such as `line 9: key "foo" already set in map`, what is inside before what it is in.
pub(crate) struct Lines(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for Lines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl Lines {
    fn none<E>() -> Result<Self, E> {
        Ok(Self(Vec::new()))
    }

    fn add(&mut self, more: Self) {
        let room = MOST.saturating_sub(self.0.len());
        self.0.extend(more.0.into_iter().take(room));
    }
}

impl<'de> Visitor<'de> for Reader {
    type Value = Lines;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Lines, E> {
        Lines::none()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Lines, E> {
        Lines::none()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Lines, E> {
        Lines::none()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Lines, E> {
        Lines::none()
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Lines, E> {
        Lines::none()
    }

    fn visit_unit<E: Error>(self) -> Result<Lines, E> {
        Lines::none()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Lines, A::Error> {
        let mut lines = Lines(Vec::new());
        while let Some(item) = items.next_element()? {
            lines.add(item);
        }
        Ok(lines)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Lines, A::Error> {
        let (mut lines, mut seen) = (Lines(Vec::new()), HashSet::new());
        while let Some(key) = members.next_key::<String>()? {
            let value: Spanned<Lines> = members.next_value()?;
            let line = value.referenced.line();
            lines.add(value.value);
            if seen.contains(&key) {
                lines.add(Lines(vec![format!("line {line}: key {key:?} already set in map")]));
            }
            seen.insert(key);
        }
        Ok(lines)
    }
}
