//! One kind's changes -> its objects by group (their owner, say), as far as one controller has been told.
//!
//! And the writes of which it has not been told yet: deciding again before a watch has shown the last decision's writes
//! would make everything twice (kubernetes/kubernetes#100033).
//!
//! Invariant: `shows` is true of a write for ever once it was true. Deliberately not here: counting what is expected;
//! an object's uid and the watch's revision say exactly what has been seen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::{Resource, ResourceExt};
use portolan_client::{Change, Key};
use tokio::time::Instant;

use crate::queue::Queue;

/// Long enough for any watch to catch up; after that, better a wrong guess than a stuck object.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Index<K> {
    group_of: fn(&K) -> Option<String>,
    objects: BTreeMap<Key, Arc<K>>,
    groups: BTreeMap<String, BTreeMap<Key, Arc<K>>>,
    /// The highest resourceVersion seen.
    revision: u64,
}

impl<K: Resource> Index<K> {
    pub(crate) fn new(group_of: fn(&K) -> Option<String>) -> Self {
        Self { group_of, objects: BTreeMap::new(), groups: BTreeMap::new(), revision: 0 }
    }

    pub(crate) fn observe(&mut self, change: &Change<K>) {
        match change {
            Change::Applied { new, .. } => {
                self.revision = self.revision.max(revision(&**new));
                let key = Key::of(&**new);
                self.take_out(&key);
                if let Some(group) = (self.group_of)(new) {
                    self.groups.entry(group).or_default().insert(key.clone(), new.clone());
                }
                self.objects.insert(key, new.clone());
            }
            Change::Deleted(old) => {
                self.revision = self.revision.max(revision(&**old));
                self.take_out(&Key::of(&**old));
            }
            Change::Synced { .. } => {}
        }
    }

    fn take_out(&mut self, key: &Key) {
        let Some(old) = self.objects.remove(key) else { return };
        let Some(group) = (self.group_of)(&old) else { return };
        if let Some(members) = self.groups.get_mut(&group) {
            members.remove(key);
            if members.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    /// In the order of their keys.
    pub(crate) fn group<'a>(&'a self, group: &str) -> impl Iterator<Item = &'a Arc<K>> + use<'a, K> {
        self.groups.get(group).into_iter().flat_map(BTreeMap::values)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.objects.get(key).cloned()
    }

    pub(crate) fn shows(&self, write: &Write) -> bool {
        match write {
            Write::Applied { revision, .. } if *revision <= self.revision => true,
            Write::Applied { key, uid, revision: written } => self.objects.get(key).is_some_and(|object| {
                object.meta().uid.as_deref() == Some(uid) && revision(&**object) >= *written && *written > 0
            }),
            Write::Deleted { key, uid } => self.objects.get(key).is_none_or(|object| {
                object.meta().uid.as_deref() != Some(uid) || object.meta().deletion_timestamp.is_some()
            }),
        }
    }
}

/// The object's resourceVersion as a number; 0 when it has none.
fn revision<K: Resource>(object: &K) -> u64 {
    object.resource_version().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A write that the API server has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Applied { key: Key, uid: String, revision: u64 },
    Deleted { key: Key, uid: String },
}

impl Write {
    /// `object` as the API server answered it.
    pub(crate) fn applied<K: Resource>(object: &K) -> Self {
        Self::Applied { key: Key::of(object), uid: object.uid().unwrap_or_default(), revision: revision(object) }
    }

    pub(crate) fn deleted<K: Resource>(object: &K) -> Self {
        Self::Deleted { key: Key::of(object), uid: object.uid().unwrap_or_default() }
    }
}

/// For each key of a controller, its writes that the watch has not shown yet, and when the last of them was answered.
pub(crate) struct Unseen<Q>(BTreeMap<Q, (Instant, Vec<Write>)>);

impl<Q> Default for Unseen<Q> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<Q: Ord + Clone> Unseen<Q> {
    pub(crate) fn record(&mut self, key: &Q, writes: &[Write], now: Instant) {
        if writes.is_empty() {
            return;
        }
        let (answered, unseen) = self.0.entry(key.clone()).or_insert_with(|| (now, Vec::new()));
        *answered = now;
        unseen.extend_from_slice(writes);
    }

    /// Whether all that the key wrote has been seen. If not, the watch's next change about it is the time to look
    /// again, or at the latest the time returned.
    pub(crate) fn settled(&mut self, key: &Q, now: Instant, shows: impl Fn(&Write) -> bool) -> Result<(), Instant> {
        let Some((answered, unseen)) = self.0.get_mut(key) else { return Ok(()) };
        let until = *answered + PATIENCE;
        unseen.retain(|write| !shows(write));
        if unseen.is_empty() || until <= now {
            self.0.remove(key);
            return Ok(());
        }
        Err(until)
    }

    /// Takes in that the watch has begun anew, with a list of what the writes are about: of those answered before it was
    /// asked for it shows what is left. Wakes the keys that wait for nothing else.
    pub(crate) fn listed(&mut self, asked: Instant, queue: &mut Queue<Q>) {
        self.0.retain(|key, (answered, _)| {
            let waits = *answered > asked;
            if !waits {
                queue.add(key.clone());
            }
            waits
        });
    }

    pub(crate) fn forget(&mut self, key: &Q) {
        self.0.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn pod(name: &str, uid: &str, revision: &str, owner: &str) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("default".into());
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(uid.into());
        pod.metadata.resource_version = Some(revision.into());
        pod.metadata.labels = Some([("owner".to_owned(), owner.to_owned())].into());
        Arc::new(pod)
    }

    fn index() -> Index<Pod> {
        Index::new(|pod| pod.metadata.labels.as_ref()?.get("owner").cloned())
    }

    fn applied(new: &Arc<Pod>) -> Change<Pod> {
        Change::Applied { new: new.clone(), old: None }
    }

    #[test]
    fn an_object_moves_between_groups() {
        let mut index = index();
        index.observe(&applied(&pod("a", "1", "5", "x")));
        index.observe(&applied(&pod("a", "1", "6", "y")));
        assert_eq!(index.group("x").count(), 0);
        assert_eq!(index.group("y").count(), 1);
        index.observe(&Change::Deleted(pod("a", "1", "7", "y")));
        assert_eq!(index.group("y").count(), 0);
    }

    #[test]
    fn a_write_is_unseen_until_the_watch_shows_it() {
        let now = Instant::now();
        let mut index = index();
        let mut unseen = Unseen::default();
        let created = pod("a", "1", "5", "x");
        unseen.record(&"x", &[Write::applied(&*created)], now);
        assert!(unseen.settled(&"x", now, |write| index.shows(write)).is_err());
        assert!(unseen.settled(&"other", now, |write| index.shows(write)).is_ok());
        index.observe(&applied(&created));
        assert!(unseen.settled(&"x", now, |write| index.shows(write)).is_ok());

        unseen.record(&"x", &[Write::deleted(&*created)], now);
        assert!(unseen.settled(&"x", now, |write| index.shows(write)).is_err());
        index.observe(&Change::Deleted(created));
        assert!(unseen.settled(&"x", now, |write| index.shows(write)).is_ok());
    }

    #[test]
    fn an_object_that_came_and_went_before_the_answer_was_seen() {
        let mut index = index();
        let created = pod("a", "1", "5", "x");
        index.observe(&applied(&created));
        index.observe(&Change::Deleted(pod("a", "1", "6", "x")));
        assert!(index.shows(&Write::applied(&*created)));
    }

    #[test]
    fn what_a_list_does_not_show_is_no_more() {
        let answered = Instant::now();
        let (mut unseen, mut queue) = (Unseen::default(), Queue::default());
        unseen.record(&"x", &[Write::applied(&*pod("a", "1", "5", "x"))], answered);
        unseen.listed(answered - Duration::from_millis(1), &mut queue);
        assert_eq!(queue.take(answered), None, "the list may be of before the write");
        assert!(unseen.settled(&"x", answered, |_| false).is_err());
        unseen.listed(answered, &mut queue);
        assert_eq!(queue.take(answered), Some("x"));
        assert!(unseen.settled(&"x", answered, |_| false).is_ok());
    }

    #[test]
    fn patience_ends() {
        let now = Instant::now();
        let index = index();
        let mut unseen = Unseen::default();
        unseen.record(&"x", &[Write::applied(&*pod("a", "1", "5", "x"))], now);
        assert_eq!(unseen.settled(&"x", now, |write| index.shows(write)), Err(now + PATIENCE));
        assert!(unseen.settled(&"x", now + PATIENCE, |write| index.shows(write)).is_ok());
    }
}
