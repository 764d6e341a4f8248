//! A selector and labels -> whether they match, and if not, which label is to blame.

use std::collections::BTreeMap;

type Labels = BTreeMap<String, String>;

/// `a=1,b=2`, as kubectl writes selectors.
pub(super) fn join(labels: &Labels) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

pub(super) fn matches(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Of the labelled things, the one whose labels come closest to the selector, and how they differ; the first by name
/// among equals. `None` when there is nothing.
pub(super) fn nearest<'a>(
    selector: &Labels,
    candidates: impl IntoIterator<Item = (&'a str, &'a Labels)>,
) -> Option<(&'a str, Vec<String>)> {
    let nearest = candidates.into_iter().min_by_key(|(name, labels)| (distance(selector, labels), *name))?;
    Some((nearest.0, differences(selector, nearest.1)))
}

/// A wrong value counts by how much of it must change, a missing label more than any value, so that a slip of the
/// keyboard is found before a stranger.
fn distance(selector: &Labels, labels: &Labels) -> usize {
    const MISSING: usize = 1000;
    let each = selector.iter().map(|(key, wanted)| match labels.get(key) {
        Some(found) => edits(wanted, found).min(MISSING - 1),
        None => MISSING,
    });
    each.sum()
}

fn differences(selector: &Labels, labels: &Labels) -> Vec<String> {
    let differ = selector.iter().filter(|(key, wanted)| labels.get(*key) != Some(wanted));
    differ
        .map(|(key, wanted)| match labels.get(key) {
            Some(found) => format!("{key} is {found:?} and not {wanted:?}"),
            None => match labels.keys().filter(|other| edits(key, other) <= 2).min() {
                Some(other) => format!("it has no label {key}, but {other}"),
                None => format!("it has no label {key}"),
            },
        })
        .collect()
}

/// Levenshtein's distance. Labels have at most 63 characters, prefixes of keys 253.
fn edits(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, b) in other.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        let pairs = text.split(',').filter(|pair| !pair.is_empty());
        pairs.map(|pair| pair.split_once('=').unwrap()).map(|(key, value)| (key.into(), value.into())).collect()
    }

    #[test]
    fn the_nearest_is_the_one_that_is_wrong_by_least() {
        let cases = [
            ("app=web", vec!["app=wbe", "app=database"], Some(0), "app is \"wbe\" and not \"web\""),
            ("app=web", vec!["x=y", "app=database"], Some(1), "app is \"database\" and not \"web\""),
            ("app=web,tier=front", vec!["app=web", "tier=frnt"], Some(0), "it has no label tier"),
            ("app=web", vec!["App=web"], Some(0), "it has no label app, but App"),
            ("app=web", vec!["", ""], Some(0), "it has no label app"),
            ("app=web", vec![], None, ""),
        ];
        for (selector, there, wanted, differs) in cases {
            let there: Vec<(String, Labels)> =
                there.iter().enumerate().map(|(number, text)| (format!("pod-{number}"), labels(text))).collect();
            let found = nearest(&labels(selector), there.iter().map(|(name, labels)| (name.as_str(), labels)));
            let wanted = wanted.map(|number| (there[number].0.as_str(), vec![differs.to_owned()]));
            assert_eq!(found, wanted, "{selector}");
        }
    }

    #[test]
    fn edits_are_counted() {
        for (one, other, count) in [("web", "web", 0), ("web", "wbe", 2), ("", "abc", 3), ("kitten", "sitting", 3)] {
            assert_eq!((edits(one, other), edits(other, one)), (count, count), "{one} {other}");
        }
    }
}
