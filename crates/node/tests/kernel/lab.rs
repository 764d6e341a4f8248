//! A node of its own for each test: a network namespace, a state directory, cgroups, an API, and an agent in it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use portolan_node::image::Store;
use portolan_node::{AgentConfig, Capacity, TlsIdentity};
use portolan_testkit::Netns;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::Api;

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Lab {
    pub(crate) netns: Netns,
    /// Another machine on the node's network.
    pub(crate) outside: Netns,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) api: Api,
    pub(crate) tls: TlsIdentity,
    /// A certificate and its key: the API server's for its nodes, and one that any node has.
    pub(crate) api_server: (String, String),
    pub(crate) other_node: (String, String),
    /// Until when each renewal of the Lease is good.
    pub(crate) renewed: watch::Sender<Instant>,
    cgroup: String,
}

/// The node's address.
pub(crate) const NODE_IP: &str = "10.203.0.11";

impl Lab {
    pub(crate) fn new() -> Self {
        let netns = Netns::new();
        let outside = Netns::new();
        portolan_testkit::cable((&netns, "eth0"), (&outside, "node"));
        outside.address("node", "10.203.0.2/24".parse().unwrap());
        netns.address("eth0", format!("{NODE_IP}/24").parse().unwrap());
        outside.route("10.244.1.0/24".parse().unwrap(), NODE_IP.parse().unwrap(), "node");
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let issue = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["node".to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            (params.signed_by(&key, &authority).unwrap().pem(), key.serialize_pem())
        };
        let (certificate, key) = issue("node");
        let tls = TlsIdentity { certificate, key, client_ca: authority.pem() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("/portolan-test-{}-{number}/pods", std::process::id());
        let lab = Self {
            netns,
            outside,
            dir: tempfile::tempdir().unwrap(),
            api: Api::new(),
            tls,
            api_server: issue("kube-apiserver-kubelet-client"),
            other_node: issue("system:node:node-2"),
            renewed: watch::Sender::new(Instant::now()),
            cgroup,
        };
        Store::open(&lab.images()).unwrap().builtin("/proc/self/exe".as_ref()).unwrap();
        lab.api
            .put("nodes", json!({"metadata": {"name": "node-1", "uid": "n1"}, "spec": {"podCIDR": "10.244.1.0/24"}}));
        lab
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    pub(crate) fn config(&self) -> AgentConfig {
        AgentConfig {
            node_name: "node-1".into(),
            state_dir: self.dir.path().join("state"),
            image_dir: self.images(),
            import_command: "portolan image import --data-dir /somewhere".into(),
            node_ip: NODE_IP.parse().unwrap(),
            uplink: "eth0".into(),
            pod_networks: vec!["10.244.0.0/16".parse().unwrap()],
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            cgroup_parent: self.cgroup.clone(),
            kubelet_listen: "0.0.0.0:10250".parse().unwrap(),
            tls: self.tls.clone(),
            labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
            capacity: Capacity { pods: Some(20), ..Capacity::default() },
            sandboxes: None,
        }
    }

    /// Runs an agent for as long as `test` takes.
    pub(crate) fn with_agent(&self, test: impl AsyncFnOnce(Api) + Send) {
        self.netns.block_on(|| async {
            let stop = CancellationToken::new();
            let agent = portolan_node::run(
                self.api.client(),
                self.api.client(),
                self.config(),
                self.renewed.clone(),
                stop.clone(),
            );
            let test = async {
                test(self.api.clone()).await;
                stop.cancel();
            };
            let (ended, ()) = tokio::join!(agent, test);
            ended.unwrap();
        });
    }

    pub(crate) fn drain(&self) {
        self.netns.block_on(|| async {
            portolan_node::drain(&self.config(), Duration::from_secs(5)).await.unwrap();
        });
    }

    /// Creates a pod with these containers.
    pub(crate) fn create(&self, name: &str, spec: Value) {
        create(&self.api, name, spec);
    }

    /// What a container wrote, from its file.
    pub(crate) fn log(&self, pod: &str, container: &str, attempt: u32) -> String {
        let path = self.pod_dir(pod).join(format!("logs/{container}/{attempt}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(|line| format!("{line}\n")).collect()
    }

    /// Waits until the pod's app has said that it started. Before, it is running but not yet listening to signals, and
    /// the first process of a PID namespace does not get those it has no handler for.
    pub(crate) async fn started(&self, pod: &str) {
        let log = self.pod_dir(pod).join("logs/app/0.log");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains(" started\n")) {
            assert!(Instant::now() < deadline, "{pod} does not say that it started");
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn pod_dir(&self, pod: &str) -> PathBuf {
        self.dir.path().join("state/pods").join(format!("uid-{pod}"))
    }

    /// The process id of a pod's shim.
    pub(crate) fn shim(&self, pod: &str) -> Option<i32> {
        let dir = self.pod_dir(pod).into_os_string().into_string().unwrap();
        processes().into_iter().find(|(_, line)| line.contains(" pod-shim ") && line.contains(&dir)).map(|(pid, _)| pid)
    }

    /// Whatever is left of this lab in the machine.
    pub(crate) fn remains(&self) -> Vec<String> {
        let dir = self.dir.path().to_str().unwrap().to_owned();
        let mut left: Vec<String> =
            processes().into_iter().map(|(_, line)| line).filter(|line| line.contains(&dir)).collect();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(&dir)).map(ToOwned::to_owned));
        let roots = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
        let cgroups =
            roots.chain([PathBuf::from("/sys/fs/cgroup")]).map(|root| root.join(self.cgroup.trim_start_matches('/')));
        left.extend(cgroups.filter(|path| path.exists()).map(|path| path.display().to_string()));
        let links = self.netns.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        left.extend(links.lines().filter(|line| line.trim_start().starts_with("pod")).map(ToOwned::to_owned));
        left
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let config = self.config();
        let _ = portolan_node::sweep(&config.state_dir, &config.cgroup_parent);
        let _ = portolan_node::sweep(&config.state_dir, config.cgroup_parent.trim_end_matches("/pods"));
    }
}

pub(crate) fn create(api: &Api, name: &str, spec: Value) {
    let mut spec = spec;
    spec["nodeName"] = json!("node-1");
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            if container["image"].is_null() {
                container["image"] = json!("portolan/workload");
            }
        }
    }
    if spec["initContainers"].is_null() {
        spec.as_object_mut().unwrap().remove("initContainers");
    }
    api.put(
        "pods",
        json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")}, "spec": spec}),
    );
}

/// Asks for a pod's deletion, as the API server records it.
pub(crate) fn delete(api: &Api, name: &str, grace: i64) {
    api.edit("pods", "shop", name, |pod| {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
    });
}

/// A container that runs this workload.
pub(crate) fn app(args: &[&str]) -> Value {
    json!({"name": "app", "args": args})
}

/// Every process and its command line.
fn processes() -> Vec<(i32, String)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let line = |pid: i32| {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&bytes).replace('\0', " ")))
    };
    pids.filter_map(line).collect()
}
