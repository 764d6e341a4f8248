//! Puts a merged list in the order that a patch's `$setElementOrder` asks for.
//!
//! Items the patch's author knew of stand in his order; items that only the server has keep their place before the
//! ones they stood in front of.

use serde_json::Value;

/// Whether two items are the same one: by their key, or as scalars.
pub(super) fn same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => a.get(key).is_some_and(|value| Some(value) == b.get(key)),
        None => a == b,
    }
}

pub(super) fn set(merged: Vec<Value>, original: &[Value], order: &[Value], key: Option<&str>) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| list.iter().position(|other| same(other, item, key));
    let (mut known, server): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(order, item).is_some() || place(original, item).is_none());
    known.sort_by_key(|item| place(order, item).unwrap_or(usize::MAX));

    let mut sorted = Vec::with_capacity(known.len() + server.len());
    let (mut known, mut server) = (known.into_iter().peekable(), server.into_iter().peekable());
    loop {
        let server_first = match (server.peek(), known.peek()) {
            (None, None) => return sorted,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(left), Some(right)) => match (place(original, left), place(original, right)) {
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
