//! The pods of each node, and the Secrets, ConfigMaps and ServiceAccounts that they name.
//!
//! Kept by what the store tells, when a node asks; what a pod names is read once, since it does not change after the
//! pod has its node. Source: the graph of `plugin/pkg/auth/authorizer/node`.

use std::collections::HashMap;

use portolan_store::{Expired, Page, Prefix, Store, Watch};
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
        self.bound.insert(key, Bound { node, names });
    }
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
            // Nothing that counts here changes in a pod that has its node.
            let updated = event.old.is_some() && event.new.is_some();
            if updated && pods.bound.contains_key(&(namespace.to_owned(), name.to_owned())) {
                continue;
            }
            let stored = event.new.as_ref().map(|entry| entry.value.as_ref());
            pods.put(namespace, name, stored);
        }
    }
}
