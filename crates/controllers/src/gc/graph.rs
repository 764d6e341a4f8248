//! Every object's metadata -> who owns whom, and what follows for an object whose owners change.
//!
//! Invariants: owners are known by uid, never by name alone; nothing is deleted on the graph's word, which may be
//! behind. Source: "Garbage Collection" and "Owners and Dependents" in the Kubernetes documentation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use kube::api::PropagationPolicy;
use portolan_client::Key;

pub(crate) const FOREGROUND: &str = "foregroundDeletion";
pub(crate) const ORPHAN: &str = "orphan";

/// A kind of object, as paths need it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
}

impl Kind {
    pub(crate) fn of<K: Resource<DynamicType = ()>>() -> Self {
        Self {
            group: K::group(&()).into_owned(),
            version: K::version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            plural: K::plural(&()).into_owned(),
        }
    }

    pub(crate) fn is_meant_by(&self, owner: &OwnerReference) -> bool {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        group == self.group && owner.kind == self.kind
    }
}

/// What the graph keeps of an object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    pub(crate) kind: Arc<Kind>,
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) owners: Vec<OwnerReference>,
    pub(crate) deleting: bool,
    pub(crate) foreground: bool,
    pub(crate) orphan: bool,
}

impl Item {
    pub(crate) fn new(kind: Arc<Kind>, meta: &ObjectMeta) -> Self {
        let has = |name: &str| meta.finalizers.iter().flatten().any(|finalizer| finalizer == name);
        Self {
            kind,
            key: Key::new(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or("")),
            uid: meta.uid.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        }
    }

    /// It stays until all that it owns is gone.
    pub(crate) fn waits_for_dependents(&self) -> bool {
        self.deleting && self.foreground
    }
}

/// How an owner is, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Solid,
    /// It waits for its dependents to go first.
    Waiting,
    Absent,
    /// It is in the graph in another namespace, from where it owns nothing here.
    Elsewhere,
}

#[derive(Default)]
pub(crate) struct Graph {
    items: BTreeMap<String, Item>,
    dependents: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    pub(crate) fn get(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    pub(crate) fn dependents<'a>(&'a self, uid: &str) -> impl Iterator<Item = &'a Item> + use<'a> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|uid| self.items.get(uid))
    }

    /// The uids of all that names an owner of this kind.
    pub(crate) fn owned_by(&self, kind: &Kind) -> Vec<String> {
        let owned = self.items.values().filter(|item| item.owners.iter().any(|owner| kind.is_meant_by(owner)));
        owned.map(|item| item.uid.clone()).collect()
    }

    /// Takes an object in; the uids to look at because of it.
    pub(crate) fn put(&mut self, item: Item) -> Vec<String> {
        let old = self.items.get(&item.uid);
        if old == Some(&item) {
            return Vec::new();
        }
        let mut concerned = vec![item.uid.clone()];
        if item.deleting {
            concerned
                .extend(self.dependents(&item.uid).filter(|_| item.foreground).map(|dependent| dependent.uid.clone()));
        }
        let before: Vec<_> = old.iter().flat_map(|old| &old.owners).map(|owner| owner.uid.clone()).collect();
        for owner in &before {
            self.unlink(owner, &item.uid);
        }
        // An owner that waits may wait no longer.
        concerned.extend(before);
        for owner in &item.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(item.uid.clone());
            concerned.push(owner.uid.clone());
        }
        self.items.insert(item.uid.clone(), item);
        concerned
    }

    /// Takes an object out; the uids to look at because of it.
    pub(crate) fn remove(&mut self, uid: &str) -> Vec<String> {
        // Also of one that was never told of: that it was there when they were looked at is known from elsewhere.
        let mut concerned: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        for owner in self.items.remove(uid).iter().flat_map(|item| &item.owners) {
            self.unlink(&owner.uid, uid);
            concerned.push(owner.uid.clone());
        }
        concerned
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// The owner's standing towards `item`; `None` when the graph does not know it, which proves nothing.
    pub(crate) fn standing(&self, item: &Item, owner: &OwnerReference) -> Option<Standing> {
        let found = self.items.get(&owner.uid)?;
        if !found.key.namespace.is_empty() && found.key.namespace != item.key.namespace {
            return Some(Standing::Elsewhere);
        }
        // A reference that gets the name or the kind wrong is checked at the source.
        let same = found.kind.is_meant_by(owner) && found.key.name == owner.name;
        same.then_some(if found.waits_for_dependents() { Standing::Waiting } else { Standing::Solid })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    Keep,
    /// Takes these owners' references out.
    Unlink(Vec<String>),
    Delete(PropagationPolicy),
}

/// What becomes of an object whose owners stand like this.
pub(crate) fn resolve(item: &Item, standings: &[Standing], has_dependents: bool) -> Action {
    let is = |standing| standings.contains(&standing);
    if is(Standing::Solid) {
        let gone = item.owners.iter().zip(standings).filter(|(_, standing)| **standing != Standing::Solid);
        let gone: Vec<_> = gone.map(|(owner, _)| owner.uid.clone()).collect();
        return if gone.is_empty() { Action::Keep } else { Action::Unlink(gone) };
    }
    if standings.is_empty() {
        return Action::Keep;
    }
    Action::Delete(if item.orphan {
        PropagationPolicy::Orphan
    } else if item.foreground || (is(Standing::Waiting) && has_dependents) {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::api::core::v1::Pod;

    fn owner(uid: &str) -> OwnerReference {
        OwnerReference {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: uid.into(),
            uid: uid.into(),
            ..OwnerReference::default()
        }
    }

    fn item(uid: &str, owners: &[&str]) -> Item {
        let meta = ObjectMeta {
            name: Some(uid.into()),
            namespace: Some("default".into()),
            uid: Some(uid.into()),
            owner_references: Some(owners.iter().map(|uid| owner(uid)).collect()),
            ..ObjectMeta::default()
        };
        let kind = if owners.is_empty() { Kind::of::<ReplicaSet>() } else { Kind::of::<Pod>() };
        Item::new(Arc::new(kind), &meta)
    }

    #[test]
    fn an_owner_that_goes_concerns_its_dependents_and_the_reverse() {
        let mut graph = Graph::default();
        graph.put(item("rs", &[]));
        assert_eq!(graph.put(item("pod", &["rs"])), ["pod", "rs"]);
        assert_eq!(graph.put(item("pod", &["rs"])), [""; 0], "nothing new");
        assert_eq!(graph.dependents("rs").count(), 1);
        assert_eq!(graph.remove("rs"), ["pod"]);
        assert_eq!(graph.remove("rs"), ["pod"], "whether it was known or not");
        assert_eq!(graph.remove("pod"), ["rs"]);
        assert_eq!(graph.dependents("rs").count(), 0);
    }

    #[test]
    fn standings() {
        let mut graph = Graph::default();
        let pod = item("pod", &["rs"]);
        assert_eq!(graph.standing(&pod, &owner("rs")), None);
        graph.put(item("rs", &[]));
        assert_eq!(graph.standing(&pod, &owner("rs")), Some(Standing::Solid));
        let renamed = OwnerReference { name: "other".into(), ..owner("rs") };
        assert_eq!(graph.standing(&pod, &renamed), None);
        graph.put(Item { deleting: true, ..item("rs", &[]) });
        assert_eq!(graph.standing(&pod, &owner("rs")), Some(Standing::Solid));
        graph.put(Item { deleting: true, foreground: true, ..item("rs", &[]) });
        assert_eq!(graph.standing(&pod, &owner("rs")), Some(Standing::Waiting));
        graph.put(Item { key: Key::new("other", "rs"), ..item("rs", &[]) });
        assert_eq!(graph.standing(&pod, &owner("rs")), Some(Standing::Elsewhere));
    }

    #[test]
    fn what_becomes_of_an_object() {
        use Standing::{Absent, Elsewhere, Solid, Waiting};
        let delete = Action::Delete;
        for (standings, dependents, expected) in [
            (&[][..], false, Action::Keep),
            (&[Solid], false, Action::Keep),
            (&[Absent], false, delete(PropagationPolicy::Background)),
            (&[Elsewhere], false, delete(PropagationPolicy::Background)),
            (&[Waiting], false, delete(PropagationPolicy::Background)),
            (&[Waiting], true, delete(PropagationPolicy::Foreground)),
            (&[Absent, Waiting], true, delete(PropagationPolicy::Foreground)),
            (&[Solid, Absent], false, Action::Unlink(vec!["b".into()])),
            (&[Waiting, Solid], true, Action::Unlink(vec!["a".into()])),
        ] {
            assert_eq!(resolve(&item("x", &["a", "b"]), standings, dependents), expected, "{standings:?}");
        }
        let orphaning = Item { orphan: true, ..item("x", &["a"]) };
        assert_eq!(resolve(&orphaning, &[Absent], true), delete(PropagationPolicy::Orphan));
    }
}
