//! The pods of each node, and the Secrets, ConfigMaps and ServiceAccounts that they name.
//!
//! Kept by what the store tells, when a node asks; what a pod names is read once, and again when it has got an ephemeral
//! container: nothing else of it changes after the pod has its node. Source: the graph of `plugin/pkg/auth/authorizer/node`.

use std::collections::HashMap;

use portolan_store::{Expired, Page, Prefix, Store, Watch};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::object;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Named {
    Secret,
    ConfigMap,
    Account,
}

struct Bound {
    node: String,
    ephemeral: usize,
    names: Vec<(Named, String)>,
}

/// What pods of one node in one namespace name.
type Place = (String, String);

#[derive(Default)]
pub(super) struct Pods {
    /// By namespace and name; those that have a node.
    bound: HashMap<(String, String), Bound>,
    /// By node and namespace, each with how many pods name it.
    named: HashMap<Place, HashMap<(Named, String), usize>>,
}

impl Pods {
    pub(super) fn has(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.bound.get(&(namespace.to_owned(), name.to_owned())).is_some_and(|pod| pod.node == node)
    }

    pub(super) fn names(&self, node: &str, namespace: &str, kind: Named, name: &str) -> bool {
        let named = self.named.get(&(node.to_owned(), namespace.to_owned()));
        named.is_some_and(|named| named.contains_key(&(kind, name.to_owned())))
    }

    pub(super) fn put(&mut self, namespace: &str, name: &str, stored: Option<&[u8]>) {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(old) = self.bound.remove(&key) {
            let place = (old.node, key.0.clone());
            if let Some(named) = self.named.get_mut(&place) {
                for what in old.names {
                    if let Some(count) = named.get_mut(&what) {
                        *count -= 1;
                        if *count == 0 {
                            named.remove(&what);
                        }
                    }
                }
                if named.is_empty() {
                    self.named.remove(&place);
                }
            }
        }
        let Some(pod) = stored.map(object::decode) else { return };
        let node = object::text(&pod, "/spec/nodeName").to_owned();
        if node.is_empty() {
            return;
        }
        let names = names(&pod["spec"]);
        let named = self.named.entry((node.clone(), key.0.clone())).or_default();
        for what in &names {
            *named.entry(what.clone()).or_default() += 1;
        }
        let ephemeral = pod["spec"]["ephemeralContainers"].as_array().map_or(0, Vec::len);
        self.bound.insert(key, Bound { node, ephemeral, names });
    }
}

/// How many ephemeral containers a stored pod has, without reading all of it: most changes of a pod are of its status.
fn ephemeral(stored: &[u8]) -> usize {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Spec {
        ephemeral_containers: Vec<IgnoredAny>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Pod {
        spec: Spec,
    }
    serde_json::from_slice::<Pod>(stored).unwrap_or_default().spec.ephemeral_containers.len()
}

fn names(spec: &Value) -> Vec<(Named, String)> {
    fn items<'a>(owner: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
        owner[field].as_array().into_iter().flatten()
    }
    let mut all = Vec::new();
    let mut add = |kind: Named, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            all.push((kind, name.to_owned()));
        }
    };
    add(Named::Account, &spec["serviceAccountName"]);
    for secret in items(spec, "imagePullSecrets") {
        add(Named::Secret, &secret["name"]);
    }
    for container in ["containers", "initContainers", "ephemeralContainers"].iter().flat_map(|list| items(spec, list)) {
        for variable in items(container, "env") {
            add(Named::Secret, &variable["valueFrom"]["secretKeyRef"]["name"]);
            add(Named::ConfigMap, &variable["valueFrom"]["configMapKeyRef"]["name"]);
        }
        for source in items(container, "envFrom") {
            add(Named::Secret, &source["secretRef"]["name"]);
            add(Named::ConfigMap, &source["configMapRef"]["name"]);
        }
    }
    for volume in items(spec, "volumes") {
        add(Named::Secret, &volume["secret"]["secretName"]);
        add(Named::ConfigMap, &volume["configMap"]["name"]);
        for source in items(&volume["projected"], "sources") {
            add(Named::Secret, &source["secret"]["name"]);
            add(Named::ConfigMap, &source["configMap"]["name"]);
        }
    }
    all.sort();
    all.dedup();
    all
}

/// The index, and how far it has read.
pub(super) struct Following {
    store: Store,
    pods: Pods,
    watch: Option<Watch>,
}

impl Following {
    pub(super) fn new(store: Store) -> Self {
        Self { store, pods: Pods::default(), watch: None }
    }

    /// As the store is now.
    ///
    /// # Errors
    /// As `Roles::fresh`.
    pub(super) fn fresh(&mut self) -> Result<&Pods, Expired> {
        let caught_up = match &mut self.watch {
            Some(watch) => take_in(&mut self.pods, watch).is_ok(),
            None => false,
        };
        if !caught_up {
            let prefix = Prefix::resource("", "pods");
            let list = self.store.list(&prefix, &Page::default())?;
            self.pods = Pods::default();
            for (key, entry) in &list.entries {
                self.pods.put(key.namespace(), key.name(), Some(&entry.value));
            }
            self.watch = Some(self.store.watch(prefix, list.revision)?);
        }
        Ok(&self.pods)
    }
}

fn take_in(pods: &mut Pods, watch: &mut Watch) -> Result<(), Expired> {
    loop {
        let batch = watch.poll()?;
        if batch.events.is_empty() {
            return Ok(());
        }
        for event in &batch.events {
            let (namespace, name) = (event.key.namespace(), event.key.name());
            let stored = event.new.as_ref().map(|entry| entry.value.as_ref());
            if let (Some(_), Some(stored)) = (&event.old, stored)
                && let Some(bound) = pods.bound.get(&(namespace.to_owned(), name.to_owned()))
                && bound.ephemeral == ephemeral(stored)
            {
                continue;
            }
            pods.put(namespace, name, stored);
        }
    }
}
