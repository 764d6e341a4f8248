//! CustomResourceDefinitions -> a watch of each defined kind's metadata, and of a few kinds that no controller here
//! looks at; what they tell comes as the collector's inputs.
//!
//! Invariant: when a kind goes, all of its objects that were told of are told to be gone.
//! Deliberately not here: caches. The graph keeps what it needs of an object, and nobody else asks.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt};
use portolan_client::Key;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::graph::{Item, Kind};
use super::{Input, resource};

/// Held by whoever has still to list for the first time; the last one tells that all have.
struct Unlisted(UnboundedSender<Input>);

impl Drop for Unlisted {
    fn drop(&mut self) {
        let _ = self.0.send(Input::Listed);
    }
}

/// Watches until dropped.
pub(super) async fn follow(client: Client, inputs: UnboundedSender<Input>) {
    let unlisted = Some(Arc::new(Unlisted(inputs.clone())));
    let (started, running) = (BTreeMap::new(), JoinSet::new());
    let mut watches = Watches { client: client.clone(), inputs, unlisted, started, running };
    for (kind, namespaced) in beside() {
        watches.start(String::new(), kind, namespaced);
    }
    let definitions: Api<CustomResourceDefinition> = Api::all(client);
    let mut events = pin!(watcher::watcher(definitions, watcher::Config::default()).default_backoff());
    let mut listed: Vec<String> = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(definition)) => {
                listed.push(definition.name_any());
                watches.take(&definition);
            }
            Ok(Event::InitDone) => {
                watches.keep(&listed);
                watches.unlisted = None;
            }
            Ok(Event::Apply(definition)) => watches.take(&definition),
            Ok(Event::Delete(definition)) => watches.stop(&definition.name_any()),
            Err(error) => tracing::debug!(%error, "cannot watch definitions; trying again"),
        }
    }
}

/// Kinds that only the collector looks at.
fn beside() -> Vec<(Kind, bool)> {
    vec![
        (Kind::of::<Ingress>(), true),
        (Kind::of::<IngressClass>(), false),
        (Kind::of::<Role>(), true),
        (Kind::of::<RoleBinding>(), true),
        (Kind::of::<ClusterRole>(), false),
        (Kind::of::<ClusterRoleBinding>(), false),
    ]
}

struct Watches {
    client: Client,
    inputs: UnboundedSender<Input>,
    /// Until the definitions have been listed.
    unlisted: Option<Arc<Unlisted>>,
    /// By the definition's name.
    started: BTreeMap<String, (Kind, CancellationToken)>,
    running: JoinSet<()>,
}

impl Watches {
    fn take(&mut self, definition: &CustomResourceDefinition) {
        let name = definition.name_any();
        let Some(kind) = served(definition) else { return self.stop(&name) };
        if self.started.get(&name).is_some_and(|(old, _)| *old == kind) {
            return;
        }
        self.stop(&name);
        self.start(name, kind, definition.spec.scope == "Namespaced");
    }

    fn start(&mut self, name: String, kind: Kind, namespaced: bool) {
        let stop = CancellationToken::new();
        let _ = self.inputs.send(Input::Defined(kind.clone(), namespaced));
        while self.running.try_join_next().is_some() {}
        let (client, inputs, unlisted) = (self.client.clone(), self.inputs.clone(), self.unlisted.clone());
        self.running.spawn(watch(client, Arc::new(kind.clone()), inputs, unlisted, stop.clone()));
        if !name.is_empty() {
            self.started.insert(name, (kind, stop));
        }
    }

    fn stop(&mut self, name: &str) {
        if let Some((_, stop)) = self.started.remove(name) {
            stop.cancel();
        }
    }

    /// Of those that are not listed any more nobody will hear.
    fn keep(&mut self, listed: &[String]) {
        let gone: Vec<String> = self.started.keys().filter(|name| !listed.contains(name)).cloned().collect();
        gone.iter().for_each(|name| self.stop(name));
    }
}

/// The kind that an established definition serves: as the version it stores, or as any.
fn served(definition: &CustomResourceDefinition) -> Option<Kind> {
    let conditions = definition.status.iter().flat_map(|status| status.conditions.iter().flatten());
    if !conditions.into_iter().any(|condition| condition.type_ == "Established" && condition.status == "True") {
        return None;
    }
    let spec = &definition.spec;
    let version = spec.versions.iter().filter(|version| version.served).max_by_key(|version| version.storage)?;
    Some(Kind {
        group: spec.group.clone(),
        version: version.name.clone(),
        kind: spec.names.kind.clone(),
        plural: spec.names.plural.clone(),
    })
}

/// Tells of all objects of a kind until it is stopped, and then that they are gone.
async fn watch(
    client: Client,
    kind: Arc<Kind>,
    inputs: UnboundedSender<Input>,
    mut unlisted: Option<Arc<Unlisted>>,
    stop: CancellationToken,
) {
    let objects: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &resource(&kind));
    let mut events = pin!(watcher::watcher(objects, watcher::Config::default()).default_backoff());
    let mut known: BTreeMap<Key, String> = BTreeMap::new();
    let mut listing: BTreeMap<Key, String> = BTreeMap::new();
    let gone = |uid: String| _ = inputs.send(Input::Gone(uid));
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => break,
            Some(event) = events.next() => event,
            else => break,
        };
        let mut seen = |meta: &ObjectMeta| {
            let item = Box::new(Item::new(kind.clone(), meta));
            let replaced = known.insert(item.key.clone(), item.uid.clone()).filter(|old| *old != item.uid);
            let told = (item.key.clone(), item.uid.clone());
            let _ = inputs.send(Input::Seen { item, replaced });
            told
        };
        match event {
            Ok(Event::Init) => listing.clear(),
            Ok(Event::InitApply(object)) => listing.extend([seen(&object.metadata)]),
            Ok(Event::Apply(object)) => _ = seen(&object.metadata),
            Ok(Event::InitDone) => {
                known.retain(|key, uid| {
                    let there = listing.contains_key(key);
                    if !there {
                        gone(std::mem::take(uid));
                    }
                    there
                });
                listing.clear();
                drop(unlisted.take());
            }
            Ok(Event::Delete(object)) => {
                known.remove(&Item::new(kind.clone(), &object.metadata).key);
                gone(object.metadata.uid.unwrap_or_default());
            }
            Err(error) => tracing::debug!(kind = kind.kind, %error, "cannot watch; trying again"),
        }
    }
    known.into_values().for_each(gone);
}
