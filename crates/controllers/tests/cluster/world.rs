//! A cluster without machines: the real API server on loopback, the real controllers, and nodes that only say what a
//! kubelet would say.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Once;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};
use portolan_apiserver::{ApiServer, User};
use portolan_client::{Cache, Change, Key};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Whatever is waited for must come within this time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) client: Client,
    /// With no more rights than the controllers have.
    controllers_client: Client,
    _server: JoinSet<()>,
    nodes: BTreeMap<String, JoinSet<()>>,
    controllers: Option<(CancellationToken, JoinSet<()>)>,
    // Last, so that it is removed after everything that writes there.
    _data: tempfile::TempDir,
}

async fn connect(kubeconfig: &str) -> Client {
    let config = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

impl World {
    /// An API server and controllers, with these nodes.
    pub(crate) async fn new(nodes: &[&str]) -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let data = tempfile::tempdir().unwrap();
        let server = ApiServer::open(portolan_apiserver::Config::new(data.path())).await.unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let client = connect(&server.kubeconfig(&url, &User::admin()).unwrap()).await;
        let controllers_client = connect(&server.kubeconfig(&url, &User::controllers()).unwrap()).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { server.serve(vec![listener], CancellationToken::new()).await.unwrap() });
        let mut world =
            Self { client, controllers_client, _server: tasks, nodes: BTreeMap::new(), controllers: None, _data: data };
        world.start_controllers();
        for node in nodes {
            world.start_node(node);
        }
        let wanted = nodes.len();
        world
            .wait("nodes to have pod ranges", &world.all::<Node>(), move |nodes| {
                let ready = nodes.iter().filter(|node| node.spec.as_ref().is_some_and(|spec| spec.pod_cidr.is_some()));
                (ready.count() == wanted).then_some(())
            })
            .await;
        world
    }

    pub(crate) fn start_controllers(&mut self) {
        let token = CancellationToken::new();
        let config = portolan_controllers::Config {
            pod_cidr: "10.244.0.0/16".parse().unwrap(),
            node_mask: 24,
            lb_pools: vec!["192.0.2.10-192.0.2.12".parse().unwrap()],
            node_lease_timeout: Duration::from_secs(2),
            eviction_delay: Duration::from_secs(1),
            root_ca_pem: "-----BEGIN CERTIFICATE-----".into(),
        };
        let mut task = JoinSet::new();
        let running = portolan_controllers::run(self.controllers_client.clone(), config, token.clone());
        task.spawn(async move { running.await.unwrap() });
        self.controllers = Some((token, task));
    }

    pub(crate) async fn stop_controllers(&mut self) {
        if let Some((token, mut task)) = self.controllers.take() {
            token.cancel();
            task.join_next().await;
        }
    }

    pub(crate) fn start_node(&mut self, name: &str) {
        let mut tasks = JoinSet::new();
        tasks.spawn(run_node(self.client.clone(), name.to_owned()));
        self.nodes.insert(name.to_owned(), tasks);
    }

    /// As a power cut would: from one moment to the next it says nothing.
    pub(crate) fn cut_power(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    pub(crate) fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    pub(crate) fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
    {
        let object: K = serde_json::from_value(object).unwrap();
        let namespace = object.namespace().unwrap_or_else(|| "default".into());
        Api::namespaced(self.client.clone(), &namespace).create(&PostParams::default(), &object).await.unwrap()
    }

    pub(crate) async fn create_namespace(&self, name: &str) {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        self.all().create(&PostParams::default(), &namespace).await.unwrap();
    }

    pub(crate) async fn merge<K>(&self, name: &str, patch: Value)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    pub(crate) async fn merge_node(&self, name: &str, patch: Value) {
        patch_whole::<Node>(&self.all(), name, patch).await;
    }

    pub(crate) async fn delete<K>(&self, name: &str, params: DeleteParams)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let _ = self.api::<K>().delete(name, &params).await.unwrap();
    }

    /// Watches until `condition` gives something.
    ///
    /// # Panics
    /// When it has not within [`PATIENCE`], with what there is instead.
    pub(crate) async fn wait<K, T>(
        &self,
        what: &str,
        api: &Api<K>,
        condition: impl Fn(&[std::sync::Arc<K>]) -> Option<T>,
    ) -> T
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static,
    {
        let (cache, driver) = Cache::new(api.clone(), watcher::Config::default());
        let mut changes = cache.subscribe();
        let met = async {
            while changes.recv().await.is_some() {
                if cache.is_synced()
                    && let Some(found) = condition(&cache.list())
                {
                    return found;
                }
            }
            unreachable!("the cache lives as long as this wait")
        };
        let found = async {
            tokio::select! {
                found = met => found,
                () = driver => unreachable!("the watch goes on for ever"),
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| {
            let seen: Vec<_> = cache.list().iter().map(|object| serde_json::to_string(&**object).unwrap()).collect();
            panic!("waited in vain for {what}; there is:\n{}", seen.join("\n"))
        })
    }

    /// Holds for `time`, or panics with what broke it. Something that must not happen is given that long to.
    pub(crate) async fn holds<K>(
        &self,
        what: &str,
        time: Duration,
        api: &Api<K>,
        condition: impl Fn(&[std::sync::Arc<K>]) -> bool,
    ) where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static,
    {
        let broken = self.wait(what, api, |objects| (!condition(objects)).then(|| format!("{objects:?}")));
        if let Ok(broken) = tokio::time::timeout(time, broken).await {
            panic!("{what} does not hold: {broken}");
        }
    }
}

async fn patch_whole<K>(api: &Api<K>, name: &str, patch: Value)
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + Debug + DeserializeOwned,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

/// What a kubelet says: it is there, it lives, and each pod it is given runs at once and goes when told to.
async fn run_node(client: Client, name: String) {
    let nodes: Api<Node> = Api::all(client.clone());
    let now = || Time(Timestamp::now());
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}))
    .unwrap();
    let _ = nodes.create(&PostParams::default(), &node).await;
    let status = json!({"status": {
        "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}, "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": now(), "lastHeartbeatTime": now()}]}});
    let live = async {
        let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            let renewed = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(Timestamp::now());
            let lease = json!({"metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": {"holderIdentity": name, "renewTime": renewed}});
            if leases.patch(&name, &PatchParams::default(), &Patch::Merge(lease.clone())).await.is_err() {
                let _ = leases.create(&PostParams::default(), &serde_json::from_value(lease).unwrap()).await;
            }
        }
    };
    let speak = async {
        let (cache, driver) =
            Cache::<Node>::new(nodes.clone(), watcher::Config::default().fields(&format!("metadata.name={name}")));
        let mut changes = cache.subscribe();
        let keep_ready = async {
            while let Some(change) = changes.recv().await {
                let Change::Applied { new, .. } = change else { continue };
                let conditions = new.status.iter().flat_map(|status| status.conditions.iter().flatten());
                if !conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
                    nodes
                        .patch_status(&name, &PatchParams::default(), &Patch::Strategic(status.clone()))
                        .await
                        .unwrap();
                }
            }
        };
        tokio::join!(driver, keep_ready)
    };
    tokio::join!(live, speak, run_pods(&client, &name));
}

async fn run_pods(client: &Client, node: &str) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let (cache, driver) = Cache::<Pod>::new(Api::all(client.clone()), config);
    let mut changes = cache.subscribe();
    let mut addresses: BTreeMap<Key, String> = BTreeMap::new();
    let serve = async {
        while let Some(change) = changes.recv().await {
            let Change::Applied { new: pod, .. } = change else { continue };
            let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
            if pod.metadata.deletion_timestamp.is_some() {
                let _ = api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
                continue;
            }
            if pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some()) {
                continue;
            }
            let number = addresses.len();
            let last = node.bytes().last().unwrap();
            let ip = addresses.entry(Key::of(&*pod)).or_insert_with(|| format!("10.244.{last}.{}", number + 2)).clone();
            // An image called "broken" never becomes ready.
            let broken = pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("broken");
            let ready = if broken { "False" } else { "True" };
            let patch = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": Time(Timestamp::now())}]}});
            let _ = api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await;
        }
    };
    tokio::join!(driver, serve);
}
