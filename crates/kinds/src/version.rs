//! Names of versions, in the order in which clients should like them.
//!
//! Source: "Version priority" in the Kubernetes documentation of custom resources.

use std::cmp::Reverse;

/// A version's name, in the order in which clients should like them: `v2`, `v1`, `v1beta1`, `v1alpha1`, and all others
/// by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version<'a> {
    rank: Reverse<(u8, u64, u64)>,
    pub name: &'a str,
}

impl<'a> Version<'a> {
    pub fn new(name: &'a str) -> Self {
        Self { rank: Reverse(Self::rank(name).unwrap_or_default()), name }
    }

    /// How stable it is, its number, and the number of its draft; the highest first.
    fn rank(name: &str) -> Option<(u8, u64, u64)> {
        let rest = name.strip_prefix('v')?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (major, draft) = rest.split_at(end);
        let (stability, minor) = match (draft, draft.strip_prefix("beta"), draft.strip_prefix("alpha")) {
            ("", ..) => (3, "0"),
            (_, Some(minor), _) => (2, minor),
            (.., Some(minor)) => (1, minor),
            _ => return None,
        };
        Some((stability, major.parse().ok()?, minor.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_the_best_first() {
        let mut versions =
            ["foo1", "v1alpha1", "v10", "v2", "v11beta2", "v1", "v10beta3", "v3beta1", "foo10", "v12alpha1"]
                .map(Version::new);
        versions.sort();
        let names = versions.map(|version| version.name);
        let expected = ["v10", "v2", "v1", "v11beta2", "v10beta3", "v3beta1", "v12alpha1", "v1alpha1", "foo1", "foo10"];
        assert_eq!(names, expected);
    }
}
