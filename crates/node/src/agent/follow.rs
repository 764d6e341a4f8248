//! Which ConfigMaps and Secrets the volumes of running pods are made from -> a word to those pods when one changes.
//!
//! Invariant: one watch for an object, however many of the node's pods name it, and none for what no pod names. A node
//! may watch nothing else: the API server shows it single objects that its pods name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::runtime::watcher;
use kube::{Api, Client};
use portolan_client::{Cache, Change};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::objects::{CONFIG_MAP, in_volumes};

type Key = (&'static str, String, String);

/// The objects that are followed on this node.
pub(super) struct Follow(Mutex<All>);

struct All {
    client: Client,
    objects: HashMap<Key, Weak<Followed>>,
    watches: JoinSet<()>,
}

/// Ends with the last pod that holds on to it.
struct Followed {
    changes: watch::Receiver<()>,
    watch: AbortHandle,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// What one pod follows.
#[derive(Default)]
pub(super) struct Following(Vec<(watch::Receiver<()>, Arc<Followed>)>);

impl Following {
    /// Waits for a change of any; nothing that happens between two calls is missed.
    pub(super) async fn changed(&mut self) {
        if self.0.is_empty() {
            return std::future::pending().await;
        }
        let changes = self.0.iter_mut().map(|(changes, _)| Box::pin(changes.changed()));
        let (told, which, _) = futures::future::select_all(changes).await;
        if told.is_err() {
            // The watch is over, which it should never be.
            self.0.swap_remove(which);
        }
    }
}

impl Follow {
    /// `client` had better share one connection among all watches.
    pub(super) fn new(client: Client) -> Self {
        Self(Mutex::new(All { client, objects: HashMap::new(), watches: JoinSet::new() }))
    }

    /// Follows what the pod's volumes are made from. Of each there is a first word once it is known.
    pub(super) fn volumes(&self, pod: &Pod) -> Following {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.objects.retain(|_, followed| followed.strong_count() > 0);
        while all.watches.try_join_next().is_some() {}
        let following = in_volumes(pod).into_iter().map(|(kind, name)| {
            let followed = all.follow((kind, namespace.clone(), name));
            (followed.changes.clone(), followed)
        });
        Following(following.collect())
    }
}

impl All {
    fn follow(&mut self, key: Key) -> Arc<Followed> {
        if let Some(followed) = self.objects.get(&key).and_then(Weak::upgrade) {
            return followed;
        }
        let (told, changes) = watch::channel(());
        let client = self.client.clone();
        let (kind, namespace, name) = &key;
        let one = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let watch = if *kind == CONFIG_MAP {
            self.watches.spawn(tell(Api::<ConfigMap>::namespaced(client, namespace), one, told))
        } else {
            self.watches.spawn(tell(Api::<Secret>::namespaced(client, namespace), one, told))
        };
        let followed = Arc::new(Followed { changes, watch });
        self.objects.insert(key, Arc::downgrade(&followed));
        followed
    }
}

async fn tell<K>(api: Api<K>, config: watcher::Config, told: watch::Sender<()>)
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let (cache, watch) = Cache::new(api, config);
    let mut changes = cache.subscribe();
    let tell = async {
        let mut synced = false;
        while let Some(change) = changes.recv().await {
            // What was there at first is told of once.
            synced |= matches!(change, Change::Synced { .. });
            if synced {
                told.send_replace(());
            }
        }
    };
    tokio::join!(watch, tell);
}
