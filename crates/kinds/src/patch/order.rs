//! Puts a merged list in the order that a patch's `$setElementOrder` asks for.
//!
//! Items the patch's author knew of stand in his order; items that only the server has keep their place before the
//! ones they stood in front of.

use std::collections::HashMap;

use serde_json::Value;

/// What makes an item the one it is: the value of its key, or the scalar itself.
pub(super) fn identity<'a>(item: &'a Value, key: Option<&str>) -> Option<&'a Value> {
    match key {
        Some(key) => item.get(key),
        None => Some(item),
    }
}

/// Where each item of a list stands first.
struct Places<'a> {
    key: Option<&'a str>,
    of: HashMap<&'a Value, usize>,
}

impl<'a> Places<'a> {
    fn new(list: &'a [Value], key: Option<&'a str>) -> Self {
        let mut of = HashMap::new();
        for (index, item) in list.iter().enumerate() {
            if let Some(identity) = identity(item, key) {
                of.entry(identity).or_insert(index);
            }
        }
        Self { key, of }
    }

    fn find(&self, item: &Value) -> Option<usize> {
        self.of.get(identity(item, self.key)?).copied()
    }
}

pub(super) fn set(merged: Vec<Value>, original: &[Value], order: &[Value], key: Option<&str>) -> Vec<Value> {
    let (original, order) = (Places::new(original, key), Places::new(order, key));
    let (mut known, server): (Vec<Value>, Vec<Value>) = merged.into_iter().partition(|item| order.find(item).is_some());
    known.sort_by_key(|item| order.find(item).unwrap_or(usize::MAX));

    let mut sorted = Vec::with_capacity(known.len() + server.len());
    let (mut known, mut server) = (known.into_iter().peekable(), server.into_iter().peekable());
    loop {
        let server_first = match (server.peek(), known.peek()) {
            (None, None) => return sorted,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(left), Some(right)) => match (original.find(left), original.find(right)) {
                (Some(left), Some(right)) => left < right,
                _ => false,
            },
        };
        sorted.extend(if server_first { server.next() } else { known.next() });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn orders() {
        for (merged, original, order, expected) in [
            ("abc", "abc", "cba", "cba"),
            // `x` is the server's own and stays in front of `b`.
            ("axb", "axb", "ba", "xba"),
            ("axbn", "axb", "abn", "axbn"),
            ("xab", "xab", "ba", "xba"),
            ("ab", "ab", "", "ab"),
        ] {
            let list = |text: &str| text.chars().map(|c| json!(c.to_string())).collect::<Vec<_>>();
            assert_eq!(set(list(merged), &list(original), &list(order), None), list(expected), "{merged} {order}");
        }
    }
}
