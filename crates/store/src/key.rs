//! Group, resource, namespace and name -> the one string an object is kept under.
//!
//! Every prefix ends in a slash, so `ns1` never takes in `ns11`.

use std::fmt;
use std::sync::Arc;

/// `/<group>/<plural>/<namespace>/<name>`; group and namespace may be empty. Only the name may contain a slash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    pub fn new(group: &str, plural: &str, namespace: &str, name: &str) -> Self {
        debug_assert!(![group, plural, namespace].iter().any(|part| part.contains('/')));
        Self(format!("/{group}/{plural}/{namespace}/{name}").into())
    }

    /// What [`Key::as_str`] gave.
    pub fn parse(text: &str) -> Option<Self> {
        (text.starts_with('/') && text.matches('/').count() >= 4).then(|| Self(text.into()))
    }

    pub(crate) fn from_stored(key: &str) -> Self {
        Self(key.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn part(&self, index: usize) -> &str {
        self.0.splitn(5, '/').nth(index).unwrap_or_default()
    }

    pub fn group(&self) -> &str {
        self.part(1)
    }

    pub fn plural(&self) -> &str {
        self.part(2)
    }

    pub fn namespace(&self) -> &str {
        self.part(3)
    }

    pub fn name(&self) -> &str {
        self.part(4)
    }

    /// The prefix that all objects of this key's resource share.
    pub(crate) fn resource(&self) -> &str {
        resource_of(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All objects of a resource, or those of it in one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(String);

impl Prefix {
    /// All objects there are, for lists of the present alone: history is a resource's.
    pub fn everything() -> Self {
        Self("/".to_owned())
    }

    pub fn resource(group: &str, plural: &str) -> Self {
        Self(format!("/{group}/{plural}/"))
    }

    pub fn namespace(group: &str, plural: &str, namespace: &str) -> Self {
        Self(format!("/{group}/{plural}/{namespace}/"))
    }

    pub fn contains(&self, key: &Key) -> bool {
        key.as_str().starts_with(&self.0)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn of_resource(&self) -> &str {
        resource_of(&self.0)
    }
}

fn resource_of(path: &str) -> &str {
    let end = path.match_indices('/').nth(2).map_or(path.len(), |(at, _)| at + 1);
    &path[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back() {
        for (group, plural, namespace, name) in [
            ("", "pods", "default", "a"),
            ("apps", "deployments", "x", "b"),
            ("", "nodes", "", "n"),
            ("", "y", "z", "a/b"),
        ] {
            let key = Key::new(group, plural, namespace, name);
            assert_eq!((key.group(), key.plural(), key.namespace(), key.name()), (group, plural, namespace, name));
            assert_eq!(Key::parse(key.as_str()), Some(key.clone()));
            assert!(Prefix::everything().contains(&key));
            assert_eq!(key.resource(), Prefix::resource(group, plural).as_str());
            assert_eq!(Prefix::namespace(group, plural, namespace).of_resource(), key.resource());
        }
    }

    #[test]
    fn a_prefix_takes_in_only_its_own() {
        let key = Key::new("", "pods", "ns11", "a");
        assert!(!Prefix::namespace("", "pods", "ns1").contains(&key));
        assert!(!Prefix::resource("", "pod").contains(&key));
        assert!(Prefix::namespace("", "pods", "ns11").contains(&key));
        assert!(Prefix::resource("", "pods").contains(&key));
    }
}
