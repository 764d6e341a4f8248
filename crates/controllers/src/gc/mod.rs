//! Objects whose owners are gone -> gone; and deletions that wait for dependents, or spare them, carried through.
//!
//! Invariant: no owner goes ahead of dependents that it waits for or spares for want of having asked who they are.
//!
//! Deliberately not here: kinds that nobody defined. An owner of an unknown kind is never taken for gone.

mod defined;
mod graph;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::{Client, Resource};
use portolan_client::{Change, Key, Recorder};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::drive::{Controller, Effects, drive, inputs};
use crate::queue::Queue;
use crate::{Shared, refusal};
use graph::{Action, FOREGROUND, Graph, Item, Kind, ORPHAN, Standing};

/// How long kinds that cannot be listed, as for want of a conversion, hold up the others at the start.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) enum Input {
    Seen {
        item: Box<Item>,
        /// The uid of the object of this name that the watch told last, if it was another.
        replaced: Option<String>,
    },
    Gone(String),
    /// A kind that owners may be of, and whether it is namespaced. One that goes again stays known: its objects are
    /// gone for good.
    Defined(Kind, bool),
    /// What there was of all kinds, defined ones too, has been told.
    Listed,
    Nothing,
}

fn input<K: Resource<DynamicType = ()>>(change: Change<K>) -> Input {
    let kind = || Arc::new(Kind::of::<K>());
    match change {
        Change::Applied { new, old } => Input::Seen {
            item: Box::new(Item::new(kind(), new.meta())),
            replaced: old.and_then(|old| old.meta().uid.clone()).filter(|old| Some(old) != new.meta().uid.as_ref()),
        },
        Change::Deleted(old) => Input::Gone(old.meta().uid.clone().unwrap_or_default()),
        Change::Synced { .. } => Input::Nothing,
    }
}

pub(crate) async fn run(shared: Arc<Shared>) {
    let caches = &shared.caches;
    let (sender, mut told) = mpsc::unbounded_channel();
    let inputs = vec![
        Box::pin(stream::poll_fn(move |context| told.poll_recv(context))),
        inputs(&caches.namespaces, input),
        inputs(&caches.nodes, input),
        inputs(&caches.deployments, input),
        inputs(&caches.replica_sets, input),
        inputs(&caches.pods, input),
        inputs(&caches.services, input),
        inputs(&caches.slices, input),
        inputs(&caches.endpoints, input),
        inputs(&caches.leases, input),
        inputs(&caches.service_accounts, input),
        inputs(&caches.config_maps, input),
        inputs(&caches.secrets, input),
        inputs(&caches.service_cidrs, input),
        inputs(&caches.ip_addresses, input),
    ];
    let controller = GarbageCollector {
        client: shared.client.clone(),
        events: shared.events.component("garbage-collector-controller"),
        graph: Graph::default(),
        kinds: kinds(),
        listed: Err(Instant::now() + PATIENCE),
        waiting: BTreeSet::new(),
    };
    tokio::select! {
        () = drive(controller, inputs, 16) => {}
        () = defined::follow(shared.client.clone(), sender) => {}
    }
}

/// The kinds above, which can be looked up as owners from the start.
fn kinds() -> Vec<(Kind, bool)> {
    use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
    use k8s_openapi::api::coordination::v1::Lease;
    use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Secret, Service, ServiceAccount};
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
    let (namespaced, clusterwide) = (true, false);
    vec![
        (Kind::of::<Namespace>(), clusterwide),
        (Kind::of::<Node>(), clusterwide),
        (Kind::of::<Deployment>(), namespaced),
        (Kind::of::<ReplicaSet>(), namespaced),
        (Kind::of::<Pod>(), namespaced),
        (Kind::of::<Service>(), namespaced),
        (Kind::of::<EndpointSlice>(), namespaced),
        (Kind::of::<Endpoints>(), namespaced),
        (Kind::of::<Lease>(), namespaced),
        (Kind::of::<ServiceAccount>(), namespaced),
        (Kind::of::<ConfigMap>(), namespaced),
        (Kind::of::<Secret>(), namespaced),
        (Kind::of::<ServiceCIDR>(), clusterwide),
        (Kind::of::<IPAddress>(), clusterwide),
    ]
}

fn resource(kind: &Kind) -> ApiResource {
    let api_version =
        if kind.group.is_empty() { kind.version.clone() } else { format!("{}/{}", kind.group, kind.version) };
    ApiResource {
        group: kind.group.clone(),
        version: kind.version.clone(),
        api_version,
        kind: kind.kind.clone(),
        plural: kind.plural.clone(),
    }
}

fn api(client: &Client, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
    let resource = resource(kind);
    if namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), namespace, &resource)
    }
}

struct GarbageCollector {
    client: Client,
    events: Recorder,
    graph: Graph,
    kinds: Vec<(Kind, bool)>,
    /// Whether all dependents are known that there were at the start, or how long that is waited for.
    listed: Result<(), Instant>,
    /// Owners that cannot be let go before that.
    waiting: BTreeSet<String>,
}

impl Controller for GarbageCollector {
    const NAME: &'static str = "garbagecollector";
    type Input = Input;
    /// A uid.
    type Key = String;

    fn observe(&mut self, input: Input, queue: &mut Queue<String>) {
        let concerned = match input {
            Input::Seen { item, replaced } => {
                let mut concerned = replaced.map(|uid| self.graph.remove(&uid)).unwrap_or_default();
                concerned.extend(self.graph.put(*item));
                concerned
            }
            Input::Gone(uid) => self.graph.remove(&uid),
            Input::Defined(kind, namespaced) => {
                let known = self.kinds.len();
                self.kinds.retain(|(old, _)| (&old.group, &old.kind) != (&kind.group, &kind.kind));
                // Until now nothing could be said of its objects as owners.
                let concerned = if self.kinds.len() == known { self.graph.owned_by(&kind) } else { Vec::new() };
                self.kinds.push((kind, namespaced));
                concerned
            }
            Input::Listed => {
                self.listed = Ok(());
                std::mem::take(&mut self.waiting).into_iter().collect()
            }
            Input::Nothing => return,
        };
        concerned.into_iter().for_each(|uid| queue.add(uid));
    }

    fn reconcile(&mut self, uid: &String, queue: &mut Queue<String>) -> Option<Effects> {
        let item = self.graph.get(uid)?;
        if item.deleting
            && (item.orphan || item.foreground)
            && let Err(until) = self.listed
            && Instant::now() < until
        {
            self.waiting.insert(uid.clone());
            queue.add_at(uid.clone(), until);
            return None;
        }
        let collector = || Collector { client: self.client.clone(), item: item.clone() };
        if item.deleting && item.orphan {
            let (collector, dependents) = (collector(), self.graph.dependents(uid).cloned().collect());
            return Some(Box::pin(async move { collector.orphan(dependents).await.into() }));
        }
        if item.waits_for_dependents() {
            let blocks = |dependent: &Item| {
                dependent.owners.iter().any(|owner| owner.uid == item.uid && owner.block_owner_deletion == Some(true))
            };
            if self.graph.dependents(uid).any(blocks) {
                return None;
            }
            let collector = collector();
            return Some(Box::pin(async move { collector.drop_finalizer(FOREGROUND).await.into() }));
        }
        if item.deleting || item.owners.is_empty() {
            return None;
        }
        let standings: Vec<_> = item.owners.iter().map(|owner| self.graph.standing(item, owner)).collect();
        if standings.iter().all(|standing| *standing == Some(Standing::Solid)) {
            return None;
        }
        let mut owners = Vec::new();
        for (owner, standing) in item.owners.iter().zip(standings) {
            // An owner of a kind that is not known here may well exist.
            let (kind, namespaced) = self.kinds.iter().find(|(kind, _)| kind.is_meant_by(owner))?;
            if *namespaced && item.key.namespace.is_empty() {
                // A cluster-wide object cannot be owned from within a namespace; it is left alone, as upstream.
                return None;
            }
            if standing == Some(Standing::Elsewhere) {
                self.tell_elsewhere(item, owner);
            }
            let namespace = if *namespaced { item.key.namespace.clone() } else { String::new() };
            owners.push((owner.clone(), standing, api(&self.client, kind, &namespace)));
        }
        let dependents = Dependents {
            any: self.graph.dependents(uid).next().is_some(),
            waiting: self.graph.dependents(uid).any(Item::waits_for_dependents),
        };
        let collector = collector();
        Some(Box::pin(async move { collector.collect(owners, dependents).await.into() }))
    }
}

impl GarbageCollector {
    fn tell_elsewhere(&self, item: &Item, owner: &OwnerReference) {
        let (kind, namespace) = (&item.kind, &item.key.namespace);
        let api_version =
            if kind.group.is_empty() { kind.version.clone() } else { format!("{}/{}", kind.group, kind.version) };
        let about = ObjectReference {
            api_version: Some(api_version),
            kind: Some(kind.kind.clone()),
            namespace: Some(namespace.clone()),
            name: Some(item.key.name.clone()),
            uid: Some(item.uid.clone()),
            ..ObjectReference::default()
        };
        let message = format!(
            "ownerRef [{}/{}, namespace: {namespace}, name: {}, uid: {}] does not exist in namespace {namespace:?}",
            owner.api_version, owner.kind, owner.name, owner.uid
        );
        self.events.record(about, true, "OwnerRefInvalidNamespace", message);
    }
}

/// What an object owns.
#[derive(Clone, Copy)]
struct Dependents {
    any: bool,
    /// Some wait for what they own themselves.
    waiting: bool,
}

struct Collector {
    client: Client,
    item: Item,
}

impl Collector {
    fn api(&self) -> Api<DynamicObject> {
        api(&self.client, &self.item.kind, &self.item.key.namespace)
    }

    /// The object as the server has it now; `None` if it is another one or gone.
    async fn fresh(api: &Api<DynamicObject>, key: &Key, uid: &str) -> Result<Option<ObjectMeta>, kube::Error> {
        let found = api.get_metadata_opt(&key.name).await?.map(|found| found.metadata);
        Ok(found.filter(|meta| meta.uid.as_deref() == Some(uid)))
    }

    async fn collect(
        self,
        owners: Vec<(OwnerReference, Option<Standing>, Api<DynamicObject>)>,
        dependents: Dependents,
    ) -> Result<(), kube::Error> {
        let Some(meta) = Self::fresh(&self.api(), &self.item.key, &self.item.uid).await? else { return Ok(()) };
        let item = Item::new(self.item.kind.clone(), &meta);
        if item.owners != self.item.owners || item.deleting {
            // The graph is behind; it will be asked again when it has caught up.
            return Ok(());
        }
        let mut standings = Vec::new();
        for (owner, standing, api) in owners {
            standings.push(match standing {
                Some(standing) => standing,
                None => match api.get_metadata_opt(&owner.name).await?.map(|found| found.metadata) {
                    Some(found) if found.uid.as_ref() == Some(&owner.uid) => {
                        let waits = Item::new(self.item.kind.clone(), &found).waits_for_dependents();
                        if waits { Standing::Waiting } else { Standing::Solid }
                    }
                    _ => Standing::Absent,
                },
            });
        }
        match graph::resolve(&item, &standings, dependents.any) {
            Action::Keep => Ok(()),
            Action::Unlink(gone) => unlink(&self.api(), &meta, |owner| gone.contains(&owner.uid)).await,
            Action::Delete(policy) => {
                // Each of a circle would wait for the next. One that is waited for, and would wait for one that waits,
                // lets its owners go before it.
                let circle = standings.contains(&Standing::Waiting) && dependents.waiting;
                let meta = if circle { self.unblock(meta).await? } else { Some(meta) };
                match meta {
                    Some(meta) => self.delete(meta, policy).await,
                    None => Ok(()),
                }
            }
        }
    }

    /// Has the object's owners wait for it no longer; `None` if it is gone.
    async fn unblock(&self, meta: ObjectMeta) -> Result<Option<ObjectMeta>, kube::Error> {
        let mut owners = meta.owner_references.clone().unwrap_or_default();
        owners.iter_mut().for_each(|owner| owner.block_owner_deletion = Some(false));
        set_owners(&self.api(), &meta, &owners).await
    }

    async fn delete(&self, meta: ObjectMeta, policy: PropagationPolicy) -> Result<(), kube::Error> {
        tracing::debug!(kind = self.item.kind.kind, object = %self.item.key, "deleting: its owners are gone");
        // Exactly the object that was judged: new owners would have given it a new version.
        let only = Preconditions { uid: meta.uid, resource_version: meta.resource_version };
        let params = DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() }.preconditions(only);
        refusal::ignore_not_found(self.api().delete(&self.item.key.name, &params).await).map(drop)
    }

    /// Cuts the dependents loose, then lets the object go.
    async fn orphan(self, dependents: Vec<Item>) -> Result<(), kube::Error> {
        for dependent in dependents {
            let api = api(&self.client, &dependent.kind, &dependent.key.namespace);
            if let Some(meta) = Self::fresh(&api, &dependent.key, &dependent.uid).await? {
                unlink(&api, &meta, |owner| owner.uid == self.item.uid).await?;
            }
        }
        self.drop_finalizer(ORPHAN).await
    }

    async fn drop_finalizer(&self, finalizer: &str) -> Result<(), kube::Error> {
        let api = self.api();
        let Some(meta) = Self::fresh(&api, &self.item.key, &self.item.uid).await? else { return Ok(()) };
        let mut finalizers = meta.finalizers.unwrap_or_default();
        finalizers.retain(|other| other != finalizer);
        let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "finalizers": finalizers}});
        let patched = api.patch_metadata(&self.item.key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        refusal::ignore_not_found(patched).map(drop)
    }
}

/// Takes these owners' references out.
async fn unlink(
    api: &Api<DynamicObject>,
    meta: &ObjectMeta,
    goes: impl Fn(&OwnerReference) -> bool,
) -> Result<(), kube::Error> {
    let mut owners = meta.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| !goes(owner));
    set_owners(api, meta, &owners).await.map(drop)
}

/// Gives the object these owners, unless it has changed; as it is then, or `None` if it is gone.
async fn set_owners(
    api: &Api<DynamicObject>,
    meta: &ObjectMeta,
    owners: &[OwnerReference],
) -> Result<Option<ObjectMeta>, kube::Error> {
    let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "ownerReferences": owners}});
    let name = meta.name.as_deref().unwrap_or_default();
    let patched = api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)).await;
    refusal::ignore_not_found(patched).map(|patched| patched.map(|patched| patched.metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collector(listed: Result<(), Instant>) -> GarbageCollector {
        let client = crate::nowhere();
        let (events, _) = Recorder::new(client.clone(), "");
        let (graph, waiting) = (Graph::default(), BTreeSet::new());
        GarbageCollector { client, events, graph, kinds: kinds(), listed, waiting }
    }

    #[tokio::test]
    async fn who_spares_or_waits_for_dependents_stays_until_they_are_known() {
        for finalizer in [ORPHAN, FOREGROUND] {
            let mut collector = collector(Err(Instant::now() + PATIENCE));
            let mut queue = Queue::default();
            let meta = ObjectMeta {
                name: Some("owner".into()),
                uid: Some("1".into()),
                finalizers: Some(vec![finalizer.to_owned()]),
                deletion_timestamp: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now())),
                ..ObjectMeta::default()
            };
            let item = Item::new(Arc::new(Kind::of::<k8s_openapi::api::core::v1::ConfigMap>()), &meta);
            collector.observe(Input::Seen { item: Box::new(item), replaced: None }, &mut queue);
            let uid = queue.take(Instant::now()).unwrap();
            assert!(collector.reconcile(&uid, &mut queue).is_none(), "{finalizer}");
            queue.done(&uid);
            collector.observe(Input::Listed, &mut queue);
            assert_eq!(queue.take(Instant::now()).as_ref(), Some(&uid));
            assert!(collector.reconcile(&uid, &mut queue).is_some(), "{finalizer}");
        }
    }

    /// As after a start, when objects are known before the definitions of what owned them.
    #[tokio::test]
    async fn what_a_kind_owns_is_looked_at_when_the_kind_becomes_known() {
        let mut collector = collector(Ok(()));
        let mut queue = Queue::default();
        let owner = OwnerReference {
            api_version: "example.com/v1".into(),
            kind: "Thing".into(),
            name: "gone".into(),
            uid: "1".into(),
            ..OwnerReference::default()
        };
        let meta = ObjectMeta {
            name: Some("owned".into()),
            namespace: Some("default".into()),
            uid: Some("2".into()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        };
        let item = Item::new(Arc::new(Kind::of::<k8s_openapi::api::core::v1::Pod>()), &meta);
        collector.observe(Input::Seen { item: Box::new(item), replaced: None }, &mut queue);
        let thing =
            Kind { group: "example.com".into(), version: "v1".into(), kind: "Thing".into(), plural: "things".into() };
        while let Some(uid) = queue.take(Instant::now()) {
            assert!(collector.reconcile(&uid, &mut queue).is_none(), "nobody knows where to look for a Thing");
            queue.done(&uid);
        }
        collector.observe(Input::Defined(thing.clone(), true), &mut queue);
        let uid = queue.take(Instant::now()).expect("it may be an orphan");
        assert_eq!(uid, "2");
        assert!(collector.reconcile(&uid, &mut queue).is_some());
        queue.done(&uid);
        collector.observe(Input::Defined(Kind { version: "v2".into(), ..thing }, true), &mut queue);
        assert_eq!(queue.take(Instant::now()), None, "another version of a kind tells nothing new");
    }
}
