//! Sets of field paths, and what becomes of two of them.
//!
//! A set is the trie that `fieldsV1` is in JSON, and nothing else, so that reading and writing one costs nothing: a
//! member of the map is a path's next element, with what lies below it. An element that is in the set itself holds `.`,
//! or nothing at all when nothing lies below. Invariant: no element is without both.
//!
//! Source: `FieldsV1` of `meta/v1`.

use std::sync::LazyLock;

use serde_json::{Map, Value};

pub(super) type Set = Map<String, Value>;

const SELF: &str = ".";
static EMPTY: LazyLock<Set> = LazyLock::new(Map::new);

/// Whether the element itself is in the set, and what is below it. The latter may hold `.`, which all here pass over.
fn open(node: &Value) -> (bool, &Set) {
    let below = node.as_object().unwrap_or(&EMPTY);
    (below.is_empty() || below.contains_key(SELF), below)
}

fn close(itself: bool, mut below: Set) -> Option<Value> {
    match (itself, below.is_empty()) {
        (false, true) => return None,
        (true, false) => _ = below.insert(SELF.to_owned(), Value::Object(Map::new())),
        _ => {}
    }
    Some(Value::Object(below))
}

fn elements(set: &Set) -> impl Iterator<Item = (&String, &Value)> {
    set.iter().filter(|(element, _)| *element != SELF)
}

/// Adds what was found at an element and below it, if anything was.
pub(super) fn put(set: &mut Set, element: impl FnOnce() -> String, itself: bool, below: Set) {
    if let Some(node) = close(itself, below) {
        let element = element();
        let node = match set.remove(&element) {
            Some(before) => join(before, &node),
            None => node,
        };
        set.insert(element, node);
    }
}

fn join(left: Value, right: &Value) -> Value {
    let (itself, more) = open(right);
    let itself = itself || open(&left).0;
    let mut below = match left {
        Value::Object(below) => below,
        _ => Map::new(),
    };
    below.remove(SELF);
    close(itself, union(below, more)).unwrap_or_default()
}

pub(super) fn union(mut left: Set, right: &Set) -> Set {
    for (element, node) in elements(right) {
        let node = match left.remove(element) {
            Some(before) => join(before, node),
            None => node.clone(),
        };
        left.insert(element.clone(), node);
    }
    left
}

/// What is in `left` and not in `right`. That something is in a set says nothing of what lies below it.
pub(super) fn difference(left: &Set, right: &Set) -> Set {
    let kept = elements(left).filter_map(|(element, node)| {
        let node = match right.get(element) {
            None => node.clone(),
            Some(other) => {
                let ((itself, below), (gone, other)) = (open(node), open(other));
                close(itself && !gone, difference(below, other))?
            }
        };
        Some((element.clone(), node))
    });
    kept.collect()
}

pub(super) fn intersection(left: &Set, right: &Set) -> Set {
    let shared = elements(left).filter_map(|(element, node)| {
        let ((itself, below), (too, other)) = (open(node), open(right.get(element)?));
        Some((element.clone(), close(itself && too, intersection(below, other))?))
    });
    shared.collect()
}

/// Whether the two have anything in common.
pub(super) fn meet(left: &Set, right: &Set) -> bool {
    elements(left).any(|(element, node)| {
        right.get(element).is_some_and(|other| {
            let ((itself, below), (too, other)) = (open(node), open(other));
            itself && too || meet(below, other)
        })
    })
}

/// Whether all of `right` is in `left`.
pub(super) fn covers(left: &Set, right: &Set) -> bool {
    elements(right).all(|(element, node)| {
        left.get(element).is_some_and(|own| {
            let ((itself, below), (wanted, more)) = (open(own), open(node));
            (itself || !wanted) && covers(below, more)
        })
    })
}

/// Takes out a path and all below it.
pub(super) fn cut(set: &mut Set, path: &[&str]) {
    match path {
        [] => {}
        [last] => _ = set.remove(*last),
        [first, rest @ ..] => {
            let Some(node) = set.remove(*first) else { return };
            let (itself, below) = open(&node);
            let mut below: Set = elements(below).map(|(element, node)| (element.clone(), node.clone())).collect();
            cut(&mut below, rest);
            put(set, || (*first).to_owned(), itself, below);
        }
    }
}

/// Whether the element itself is in the set, and, if anything is, what is below it.
pub(super) fn at<'a>(set: &'a Set, element: &str) -> (bool, Option<&'a Set>) {
    let Some((itself, below)) = set.get(element).map(open) else { return (false, None) };
    (itself, Some(below).filter(|below| elements(below).next().is_some()))
}

/// The set with every element changed as `change` says of the element and what is below it.
pub(super) fn map_elements(set: &Set, mut change: impl FnMut(&str, bool, &Set) -> (bool, Set)) -> Set {
    let mut changed = Map::new();
    for (element, node) in elements(set) {
        let (itself, below) = open(node);
        let (itself, below) = change(element, itself, below);
        put(&mut changed, || element.clone(), itself, below);
    }
    changed
}

/// Every path of the set, those that are shorter first among those that begin alike.
pub(super) fn paths(set: &Set) -> Vec<Vec<&str>> {
    fn walk<'a>(set: &'a Set, path: &mut Vec<&'a str>, paths: &mut Vec<Vec<&'a str>>) {
        for (element, node) in elements(set) {
            if open(node).0 {
                paths.push(path.iter().copied().chain([element.as_str()]).collect());
            }
        }
        for (element, node) in elements(set) {
            path.push(element);
            walk(open(node).1, path, paths);
            path.pop();
        }
    }
    let mut found = Vec::new();
    walk(set, &mut Vec::new(), &mut found);
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    type Paths = BTreeSet<Vec<String>>;

    fn set_of(paths: &Paths) -> Set {
        let mut set = Map::new();
        for path in paths {
            let mut one = Map::new();
            for (index, element) in path.iter().enumerate().rev() {
                let below = std::mem::take(&mut one);
                put(&mut one, || element.clone(), index + 1 == path.len(), below);
            }
            set = union(set, &one);
        }
        set
    }

    fn paths_of(set: &Set) -> Paths {
        paths(set).into_iter().map(|path| path.into_iter().map(str::to_owned).collect()).collect()
    }

    fn some_paths() -> impl Strategy<Value = Paths> {
        let element = prop::sample::select(vec!["f:a", "f:b", "k:{\"n\":1}", "v:1"]).prop_map(str::to_owned);
        prop::collection::btree_set(prop::collection::vec(element, 1..4), 0..8)
    }

    proptest! {
        #[test]
        fn as_sets_of_paths(a in some_paths(), b in some_paths()) {
            let (left, right) = (set_of(&a), set_of(&b));
            prop_assert_eq!(&paths_of(&left), &a);
            prop_assert_eq!(paths_of(&union(left.clone(), &right)), &a | &b);
            prop_assert_eq!(paths_of(&difference(&left, &right)), &a - &b);
            prop_assert_eq!(paths_of(&intersection(&left, &right)), &a & &b);
            prop_assert_eq!(meet(&left, &right), a.intersection(&b).next().is_some());
            prop_assert_eq!(covers(&left, &right), b.is_subset(&a));
            prop_assert!(set_of(&b) == right, "equal sets are equal values");
            if let Some(path) = b.first() {
                let mut less = left.clone();
                cut(&mut less, &path.iter().map(String::as_str).collect::<Vec<_>>());
                let kept: Paths = a.iter().filter(|other| !other.starts_with(path)).cloned().collect();
                prop_assert_eq!(paths_of(&less), kept);
            }
        }
    }
}
