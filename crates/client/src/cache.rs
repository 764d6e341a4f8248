//! A watch -> all objects of one kind, by key, with a stream of what changed.
//!
//! The caller runs the driver future that [`Cache::new`] returns, inside whatever supervises its tasks; dropping the
//! driver ends the watch. Subscribers get every change after they subscribed, in order, and never block the cache.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures::StreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::backoff::Backoff;

/// `namespace/name`; the namespace is empty for cluster-scoped objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub fn of<K: Resource>(object: &K) -> Self {
        Self { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// One object changed. An object deleted and made anew while the watch was down is one `Applied` with another uid.
#[derive(Debug)]
pub enum Change<K> {
    Applied {
        new: Arc<K>,
        old: Option<Arc<K>>,
    },
    Deleted(Arc<K>),
    /// Everything that existed when the watch (re)started has been sent. What was written before that was `asked` for is
    /// in it, unless it has gone since.
    Synced {
        asked: Instant,
    },
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Applied { new, old } => Self::Applied { new: new.clone(), old: old.clone() },
            Self::Deleted(object) => Self::Deleted(object.clone()),
            Self::Synced { asked } => Self::Synced { asked: *asked },
        }
    }
}

/// Who owns which field takes as much memory as the object, and nobody asks a cache for it. To write an object without
/// that leaves it as it is.
fn without_owners<K: Resource>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}

/// A list that is being received.
struct Listing<K> {
    asked: Instant,
    objects: BTreeMap<Key, Arc<K>>,
}

impl<K> Listing<K> {
    fn begin() -> Self {
        Self { asked: Instant::now(), objects: BTreeMap::new() }
    }
}

struct Shared<K> {
    objects: RwLock<BTreeMap<Key, Arc<K>>>,
    subscribers: Mutex<Vec<mpsc::UnboundedSender<Change<K>>>>,
    /// When the last whole list was asked for.
    synced: watch::Sender<Option<Instant>>,
}

/// Cheap to clone; all clones see the same objects.
pub struct Cache<K>(Arc<Shared<K>>);

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// A cache of what `api` lists under `config`'s selectors, and the future that keeps it fresh until dropped.
    pub fn new(api: Api<K>, config: watcher::Config) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let cache = Self::detached();
        let driver = cache.clone().drive(api, config);
        (cache, driver)
    }

    /// A cache without a watch, for tests: fill it with [`Cache::put`].
    pub fn detached() -> Self {
        Self(Arc::new(Shared {
            objects: RwLock::default(),
            subscribers: Mutex::default(),
            synced: watch::Sender::new(None),
        }))
    }

    async fn drive(self, api: Api<K>, config: watcher::Config) {
        let mut events = std::pin::pin!(watcher::watcher(api, config));
        let mut listing = Listing::begin();
        let mut backoff = Backoff::default();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    backoff.heard(&event);
                    self.take(event, &mut listing);
                }
                Err(error) => backoff.pause(&K::kind(&()), &error).await,
            }
        }
    }

    fn take(&self, event: Event<K>, listing: &mut Listing<K>) {
        match event {
            // Which comes before the request is sent; of a list that were streamed it would come after.
            Event::Init => *listing = Listing::begin(),
            Event::InitApply(object) => {
                listing.objects.insert(Key::of(&object), Arc::new(without_owners(object)));
            }
            Event::InitDone => self.replace(std::mem::replace(listing, Listing::begin())),
            Event::Apply(object) => self.put(without_owners(object)),
            Event::Delete(object) => self.remove(&object),
        }
    }

    fn replace(&self, Listing { asked, objects: listed }: Listing<K>) {
        let gone: Vec<_> =
            self.read().iter().filter(|(key, _)| !listed.contains_key(key)).map(|(_, o)| o.clone()).collect();
        for object in gone {
            self.remove(&object);
        }
        // In the order of their changes, as a watch would have told: who has seen one has seen all before it.
        let mut listed: Vec<_> = listed.into_iter().collect();
        listed.sort_by_key(|(_, object)| object.resource_version().and_then(|text| text.parse::<u64>().ok()));
        for (key, new) in listed {
            let same = self.get(&key).is_some_and(|old| old.resource_version() == new.resource_version());
            if !same {
                self.insert(key, new);
            }
        }
        self.0.synced.send_replace(Some(asked));
        tell(&mut self.subscribers(), &Change::Synced { asked });
    }

    /// Takes in one object as a watch would.
    pub fn put(&self, object: K) {
        self.insert(Key::of(&object), Arc::new(object));
    }

    fn insert(&self, key: Key, new: Arc<K>) {
        let mut subscribers = self.subscribers();
        let old = self.write().insert(key, new.clone());
        tell(&mut subscribers, &Change::Applied { new, old });
    }

    /// Takes one object out as a watch would.
    pub fn remove(&self, object: &K) {
        let mut subscribers = self.subscribers();
        if self.write().remove(&Key::of(object)).is_some() {
            tell(&mut subscribers, &Change::Deleted(Arc::new(object.clone())));
        }
    }

    /// Every object as `Applied`, then `Synced` if the cache already is, then each change as it comes.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Change<K>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut subscribers = self.subscribers();
        for new in self.read().values() {
            let _ = sender.send(Change::Applied { new: new.clone(), old: None });
        }
        if let Some(asked) = *self.0.synced.borrow() {
            let _ = sender.send(Change::Synced { asked });
        }
        subscribers.push(sender);
        receiver
    }

    /// Taken before the objects' lock and held while they change, so that every subscriber sees every change once and
    /// in order.
    fn subscribers(&self) -> MutexGuard<'_, Vec<mpsc::UnboundedSender<Change<K>>>> {
        self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Key, Arc<K>>> {
        self.0.objects.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Key, Arc<K>>> {
        self.0.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read().get(key).cloned()
    }

    /// In the order of their keys.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.read().values().cloned().collect()
    }

    /// Of one namespace, in the order of their names.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        let objects = self.read();
        let first = Key::new(namespace, "");
        objects.range(first..).take_while(|(key, _)| key.namespace == namespace).map(|(_, o)| o.clone()).collect()
    }

    pub fn is_synced(&self) -> bool {
        self.0.synced.borrow().is_some()
    }

    /// Returns once the first whole list is in the cache.
    pub async fn synced(&self) {
        let mut synced = self.0.synced.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = synced.wait_for(Option::is_some).await;
    }
}

fn tell<K>(subscribers: &mut Vec<mpsc::UnboundedSender<Change<K>>>, change: &Change<K>) {
    subscribers.retain(|subscriber| subscriber.send(change.clone()).is_ok());
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;

    use super::*;

    #[test]
    fn a_list_made_anew_is_told_in_the_order_of_its_changes() {
        let cache = Cache::<ConfigMap>::detached();
        let mut told = cache.subscribe();
        let mut listing = Listing::begin();
        cache.take(Event::Init, &mut listing);
        let sent = Instant::now();
        for (name, revision) in [("a", "12"), ("b", "9"), ("c", "10")] {
            let mut object = ConfigMap::default();
            object.metadata.name = Some(name.to_owned());
            object.metadata.resource_version = Some(revision.to_owned());
            cache.take(Event::InitApply(object), &mut listing);
        }
        cache.take(Event::InitDone, &mut listing);
        let mut names = Vec::new();
        while let Ok(change) = told.try_recv() {
            match change {
                Change::Applied { new, .. } => names.push(new.name_any()),
                Change::Synced { asked } => assert!(asked <= sent, "what was written since may be missing"),
                Change::Deleted(_) => unreachable!("there was nothing before"),
            }
        }
        assert_eq!(names, ["b", "c", "a"]);
    }

    #[test]
    fn owners_are_not_kept() {
        let mut object = ConfigMap::default();
        object.metadata.name = Some("a".to_owned());
        object.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default()]);
        let kept = without_owners(object);
        // An empty list would tell the API server to forget them.
        assert_eq!((kept.metadata.name.as_deref(), kept.metadata.managed_fields), (Some("a"), None));
    }
}
