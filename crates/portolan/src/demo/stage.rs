//! What every scene stands on: the cluster, a live picture of its objects, the steady load, and waiting.
//!
//! Invariants: nothing is polled, a wait looks again whenever a watched object or the load's log changed; every wait
//! has a deadline and, when it passes, says what it waited for and what it saw instead.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, LogParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use portolan_client::{Cache, Change, Key};
use portolan_model::{Endpoint, translate};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::cluster::Cluster;
use super::objects::{self, NAMESPACE};
use super::outside;
use super::progress::Progress;
use super::report::Scene;
use super::steady::SteadyLoad;
use crate::workload::figures::Figures;

const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
const CLIENT_PATIENCE: Duration = Duration::from_secs(40);
const LOG_PATIENCE: Duration = Duration::from_secs(10);

/// Tells whoever waits that something changed.
#[derive(Clone)]
pub(super) struct Signals(Arc<watch::Sender<()>>);

impl Signals {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(())))
    }

    pub(super) fn changed(&self) {
        self.0.send_replace(());
    }

    /// Looks at each change until `check` gives something; gives up when the time is over or there is a reason to.
    async fn wait<T>(
        &self,
        what: &str,
        patience: Duration,
        give_up: impl Fn() -> Option<String>,
        check: impl Fn() -> Result<T, String>,
    ) -> Result<T> {
        let mut changes = self.0.subscribe();
        let deadline = Instant::now() + patience;
        loop {
            // Before looking, so that what changes meanwhile is looked at again.
            changes.mark_unchanged();
            let saw = match check() {
                Ok(found) => return Ok(found),
                Err(saw) => saw,
            };
            if let Some(why) = give_up() {
                bail!("while waiting for {what}, {why}");
            }
            if timeout_at(deadline, changes.changed()).await.is_err() {
                bail!("waited {patience:?} for {what}; saw {saw}");
            }
        }
    }
}

/// The cluster's objects, as its API tells them.
pub(super) struct World {
    pub(super) client: Client,
    pub(super) nodes: Cache<Node>,
    pub(super) pods: Cache<Pod>,
    pub(super) services: Cache<Service>,
    pub(super) slices: Cache<EndpointSlice>,
    pub(super) deployments: Cache<Deployment>,
    _watches: JoinSet<()>,
}

impl World {
    pub(super) async fn connect(kubeconfig: &Path, signals: &Signals) -> Result<Self> {
        let client = portolan_client::connect(kubeconfig).await?;
        let mut watches = JoinSet::new();
        let world = Self {
            nodes: watched(Api::all(client.clone()), signals, &mut watches),
            pods: watched(Api::namespaced(client.clone(), NAMESPACE), signals, &mut watches),
            services: watched(Api::namespaced(client.clone(), NAMESPACE), signals, &mut watches),
            slices: watched(Api::namespaced(client.clone(), NAMESPACE), signals, &mut watches),
            deployments: watched(Api::namespaced(client.clone(), NAMESPACE), signals, &mut watches),
            client,
            _watches: watches,
        };
        let synced = async {
            tokio::join!(
                world.nodes.synced(),
                world.pods.synced(),
                world.services.synced(),
                world.slices.synced(),
                world.deployments.synced()
            )
        };
        tokio::time::timeout(CONNECT_PATIENCE, synced)
            .await
            .with_context(|| format!("the API server did not list the objects within {CONNECT_PATIENCE:?}"))?;
        Ok(world)
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub(super) async fn create<K>(&self, manifest: &Value) -> Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize,
    {
        let kind = K::kind(&());
        let object = K::deserialize(manifest).with_context(|| format!("the demo's {kind} is not one"))?;
        let created = self.api::<K>().create(&PostParams::default(), &object).await;
        created.with_context(|| format!("cannot create {kind} {}", object.name_any()))
    }

    pub(super) async fn delete<K>(&self, name: &str, parameters: &DeleteParams) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let deleted = self.api::<K>().delete(name, parameters).await;
        deleted.map(drop).with_context(|| format!("cannot delete {} {name}", K::kind(&())))
    }

    pub(super) async fn patch<K>(&self, name: &str, patch: &Value) -> Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let patched = self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.with_context(|| format!("cannot patch {} {name}", K::kind(&())))
    }

    /// Through the scale subresource.
    pub(super) async fn scale<K>(&self, name: &str, replicas: u32) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let patch = serde_json::json!({"spec": {"replicas": replicas}});
        let scaled = self.api::<K>().patch_scale(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        scaled.map(drop).with_context(|| format!("cannot scale {} {name} to {replicas}", K::kind(&())))
    }

    pub(super) async fn cordon(&self, node: &str, unschedulable: bool) -> Result<()> {
        let patch = serde_json::json!({"spec": {"unschedulable": unschedulable}});
        let nodes: Api<Node> = Api::all(self.client.clone());
        let patched = nodes.patch(node, &PatchParams::default(), &Patch::Merge(&patch)).await;
        patched.map(drop).with_context(|| format!("cannot make Node {node} unschedulable: {unschedulable}"))
    }

    pub(super) fn service(&self, name: &str) -> Option<Arc<Service>> {
        self.services.get(&Key::new(NAMESPACE, name))
    }

    pub(super) fn pod(&self, name: &str) -> Option<Arc<Pod>> {
        self.pods.get(&Key::new(NAMESPACE, name))
    }

    /// Where the Service's new connections go.
    pub(super) fn ready_endpoints(&self, service: &str) -> Vec<Endpoint> {
        let slices = self.slices.list();
        let of_service = slices.iter().filter_map(|slice| translate::endpoint_slice(slice)).map(|(slice, _)| slice);
        let endpoints = of_service.filter(|slice| &*slice.service.name == service).flat_map(|slice| slice.endpoints);
        endpoints.filter(|endpoint| endpoint.ready && !endpoint.terminating).collect()
    }

    /// The pods behind [`World::ready_endpoints`].
    pub(super) fn ready_pods(&self, service: &str) -> BTreeSet<String> {
        self.ready_endpoints(service).iter().filter_map(|endpoint| Some(endpoint.pod()?.to_owned())).collect()
    }

    pub(super) fn pods_with(&self, label: &str, value: &str) -> Vec<Arc<Pod>> {
        let mut pods = self.pods.list();
        pods.retain(|pod| pod.labels().get(label).is_some_and(|found| found == value));
        pods
    }

    /// Every node's first InternalIP, by name.
    pub(super) fn nodes(&self) -> Vec<(String, String, bool)> {
        let nodes = self.nodes.list();
        let nodes = nodes.iter().filter_map(|node| translate::node(node));
        nodes
            .map(|node| {
                let address = node.addresses.first().map(ToString::to_string).unwrap_or_default();
                (node.name.to_string(), address, node.ready)
            })
            .collect()
    }
}

fn watched<K>(api: Api<K>, signals: &Signals, watches: &mut JoinSet<()>) -> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (cache, driver) = Cache::new(api, watcher::Config::default());
    watches.spawn(driver);
    watches.spawn(pass_on(cache.subscribe(), signals.clone()));
    cache
}

async fn pass_on<K>(mut changes: mpsc::UnboundedReceiver<Change<K>>, signals: Signals) {
    while changes.recv().await.is_some() {
        signals.changed();
    }
}

pub(super) struct Stage<'a> {
    pub(super) cluster: &'a mut Cluster,
    pub(super) world: World,
    pub(super) load: SteadyLoad,
    pub(super) progress: Progress,
    pub(super) signals: Signals,
    /// When the cluster was told to start.
    pub(super) started_ms: u64,
}

impl Stage<'_> {
    /// Looks again at each change until `check` gives something; its error says what is there instead.
    pub(super) async fn wait<T>(
        &self,
        what: &str,
        patience: Duration,
        check: impl Fn(&Self) -> Result<T, String>,
    ) -> Result<T> {
        self.progress.step(what);
        self.signals.wait(what, patience, || self.cluster.over(), || check(self)).await
    }

    /// Waits until exactly so many pods are ready behind the Service, and gives their names.
    pub(super) async fn wait_ready(&self, service: &str, count: usize, patience: Duration) -> Result<BTreeSet<String>> {
        self.wait(&format!("{count} ready endpoints of {service}"), patience, |stage| {
            let ready = stage.world.ready_pods(service);
            if ready.len() == count { Ok(ready) } else { Err(stage.describe_pods(&ready)) }
        })
        .await
    }

    /// For messages: every backend pod, its phase, and whether it is in the Service.
    pub(super) fn describe_pods(&self, ready: &BTreeSet<String>) -> String {
        let pods = self.world.pods_with("app", objects::BACKEND);
        if pods.is_empty() {
            return "no pod at all".to_owned();
        }
        let each = pods.iter().map(|pod| {
            let name = pod.name_any();
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("no phase");
            let going = if pod.metadata.deletion_timestamp.is_some() { ", terminating" } else { "" };
            let there = if ready.contains(&name) { "ready" } else { "not ready" };
            format!("{name} ({phase}{going}, {there})")
        });
        each.collect::<Vec<_>>().join(", ")
    }

    /// Waits until each of the pods has answered the front end; gives when the last of them first did.
    pub(super) async fn wait_answers_of(&self, pods: &BTreeSet<String>, patience: Duration) -> Result<u64> {
        self.wait("every backend to answer the front end", patience, |stage| {
            let mut last = 0;
            for pod in pods {
                match stage.load.first_answer_of(pod) {
                    Some(ms) => last = last.max(ms),
                    None => return Err(format!("no answer of {pod} among {}", describe(&stage.load.figures()))),
                }
            }
            Ok(last)
        })
        .await
    }

    /// Waits until the front end has had no failure for so long; gives when the last one was.
    pub(super) async fn wait_calm(&self, calm: Duration, patience: Duration) -> Result<Option<u64>> {
        self.wait(&format!("{calm:?} without a failed request"), patience, |stage| {
            let figures = stage.load.figures();
            let since = figures.last_failure_ms.unwrap_or(figures.from_ms);
            let quiet = u128::from(figures.until_ms.saturating_sub(since)) >= calm.as_millis();
            if quiet && figures.answered > 0 { Ok(figures.last_failure_ms) } else { Err(describe(&figures)) }
        })
        .await
    }

    /// Waits for so many further requests of the front end, however they end.
    pub(super) async fn watch_load(&self, requests: u64, patience: Duration) -> Result<()> {
        let before = self.load.figures().requests();
        self.wait(&format!("{requests} requests of the front end"), patience, |stage| {
            let seen = stage.load.figures().requests() - before;
            if seen >= requests { Ok(()) } else { Err(format!("{seen}")) }
        })
        .await
    }

    /// Takes into account what the front end saw since this was last done.
    pub(super) async fn settle(&mut self, scene: &mut Scene) -> Result<()> {
        let now = now_ms();
        self.wait("the front end's log", LOG_PATIENCE, |stage| stage.load.covers(now)).await?;
        let (figures, uncovered_ms) = self.load.take();
        scene.count("the front end", &figures);
        if uncovered_ms > 0 {
            scene.problem(format!("the front end did not run for {uncovered_ms} ms"));
        }
        Ok(())
    }

    /// A short load from beyond the cluster.
    pub(super) async fn ask_from_outside(&self, url: &str, requests: u32, await_first: &str) -> Result<Figures> {
        let arguments = objects::short_load(url, requests, await_first);
        let patience = CLIENT_PATIENCE + crate::workload::duration(await_first).unwrap_or_default();
        outside::load(self.cluster.program(), &arguments, patience).await.with_context(|| format!("asking {url}"))
    }

    /// A short load from a pod of its own.
    pub(super) async fn ask_from_pod(&self, pod: &str, url: &str, requests: u32) -> Result<Figures> {
        let log = self.run_in_pod(pod, &objects::short_load(url, requests, "5s")).await?;
        outside::summary(&log).with_context(|| format!("pod {pod} said no figures: {log}"))
    }

    /// Runs one workload command in a pod to its end, and gives what it said.
    pub(super) async fn run_in_pod(&self, name: &str, arguments: &[String]) -> Result<String> {
        self.world.create::<Pod>(&objects::client(name, arguments)).await?;
        let phase = self
            .wait(&format!("pod {name} to end"), CLIENT_PATIENCE, |stage| {
                let pod = stage.world.pod(name).ok_or("no such pod")?;
                match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
                    Some(phase @ ("Succeeded" | "Failed")) => Ok(phase.to_owned()),
                    phase => Err(format!("phase {}", phase.unwrap_or("none"))),
                }
            })
            .await?;
        let pods: Api<Pod> = self.world.api();
        let log = pods.logs(name, &LogParams::default()).await.with_context(|| format!("cannot read pod {name}'s log"));
        self.world.delete::<Pod>(name, &DeleteParams::default().grace_period(0)).await?;
        let log = log?;
        if phase != "Succeeded" {
            bail!("pod {name} ended as {phase}: {}", log.trim());
        }
        Ok(log)
    }
}

/// For messages: who answered how often.
fn describe(figures: &Figures) -> String {
    let each = figures.backends.iter().map(|(name, backend)| format!("{} of {name}", backend.answered));
    let last = figures.failures.last().map(|failure| format!(", the last because: {}", failure.reason));
    format!(
        "{} answers ({}) and {} failures{}",
        figures.answered,
        each.collect::<Vec<_>>().join(", "),
        figures.failed,
        last.unwrap_or_default()
    )
}

/// The clock that the load client's figures are in.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_wait_looks_again_at_each_change() {
        let (signals, left) = (Signals::new(), Cell::new(3));
        let check = || {
            left.set(left.get() - 1);
            if left.get() == 0 { Ok("there") } else { Err("not yet".to_owned()) }
        };
        let wait = signals.wait("it", LONG, || None, check);
        let change = async {
            loop {
                signals.changed();
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            found = wait => assert_eq!(found.unwrap(), "there"),
            () = change => (),
        }
    }

    #[tokio::test]
    async fn a_wait_in_vain_says_what_it_saw() {
        let signals = Signals::new();
        let nothing = || Err::<(), _>("two of three".to_owned());
        let error = signals.wait("three pods", Duration::from_millis(20), || None, nothing).await.unwrap_err();
        assert_eq!(error.to_string(), "waited 20ms for three pods; saw two of three");
        let error = signals.wait("three pods", LONG, || Some("the cluster is gone".into()), nothing).await.unwrap_err();
        assert_eq!(error.to_string(), "while waiting for three pods, the cluster is gone");
    }
}
