//! `portolan proxy` on a node of its own: against a bare API server, which is stopped and started, and with backends
//! that echo. No cluster is needed for that, and no machine to itself; one test has both.
//!
//! ```text
//! node 192.0.2.2 ──────── 192.0.2.1 away
//! the proxy, clients      the API server, backends, clients
//! ```

mod left_out;
mod running;
mod server;
mod words;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nlink::netlink::route::Ipv4Route;
use nlink::netlink::{Connection, Route};
use portolan_apiserver::{ApiServer, Config, User};
use portolan_testkit::{Dial, Echo, Netns, Outcome, cable, require_root, say, skip};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Api, Cluster, SOON, http_from};
use crate::machine::{block_on, eventually, on_a_machine};

const NODE: &str = "192.0.2.2";
const AWAY: &str = "192.0.2.1";
/// Where the proxy looks for the API server, and where else it can stand.
const API_PORT: u16 = 6443;
const OTHER_PORT: u16 = 6444;
/// A user with the rights of kube-proxy, and the name of a kubeconfig for it.
const KUBE_PROXY: &str = "system:kube-proxy";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
/// What went by nftables to Service `web`'s ClusterIP, and what was led there.
const CONNECTIONS: &str = "portolan_service_connections_total{namespace=\"default\",service=\"web\",port=\"\",\
    protocol=\"TCP\",kind=\"ClusterIP\",by=\"nftables\"}";
const LED: &str = "portolan_service_connections_total{namespace=\"default\",service=\"web\",port=\"\",\
    protocol=\"TCP\",kind=\"ClusterIP\",by=\"socket\"}";

fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// An API server on a thread of its own, until stopped.
struct Server {
    shutdown: CancellationToken,
    thread: std::thread::JoinHandle<()>,
}

impl Server {
    fn stop(self) {
        self.shutdown.cancel();
        self.thread.join().unwrap();
    }
}

struct Lab {
    node: Netns,
    away: Netns,
    directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let lab = Self { node: Netns::new(), away: Netns::new(), directory: tempfile::tempdir().unwrap() };
        cable((&lab.node, "eth0"), (&lab.away, "eth0"));
        lab.node.address("eth0", format!("{NODE}/24").parse().unwrap());
        lab.away.address("eth0", format!("{AWAY}/24").parse().unwrap());
        // Without a route to a Service's address, nothing would come to the rules.
        lab.node.route("0.0.0.0/0".parse().unwrap(), AWAY.parse().unwrap(), "eth0");
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The server's state is the lab's; it is the same server whenever it is started.
    fn serve(&self, port: u16) -> Server {
        let listener = self.away.run(|| TcpListener::bind(address(AWAY, port)).unwrap());
        let (data, kubeconfig) = (self.path("state"), self.path(&format!("kubeconfig-{port}")));
        let as_kube_proxy = self.path(KUBE_PROXY);
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                let mut config = Config::new(data);
                config.names = vec![AWAY.to_owned()];
                let server = Arc::new(ApiServer::open(config).await.unwrap());
                let text = server.kubeconfig(&format!("https://{AWAY}:{port}"), &User::admin()).unwrap();
                std::fs::write(kubeconfig, text).unwrap();
                let text = server.kubeconfig(&format!("https://{AWAY}:{port}"), &User::new(KUBE_PROXY, &[])).unwrap();
                std::fs::write(as_kube_proxy, text).unwrap();
                ready.send(()).unwrap();
                server.serve(vec![listener], stop).await.unwrap();
            });
        });
        is_ready.recv().unwrap();
        Server { shutdown, thread }
    }

    /// Talks to the API server from where it stands.
    fn api<T: Send>(&self, port: u16, work: impl FnOnce(&Api) -> T + Send) -> T {
        let kubeconfig = self.path(&format!("kubeconfig-{port}"));
        self.away.run(|| work(&Api::new(kubeconfig)))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
        command.arg("proxy").args(arguments);
        command
    }

    /// Runs the proxy to its end.
    fn run(&self, arguments: &[&str]) -> Output {
        self.node.run(|| self.command(arguments).output().unwrap())
    }

    fn arguments(&self) -> Vec<String> {
        self.arguments_as(&format!("kubeconfig-{API_PORT}"), &["--socket-lb=false"])
    }

    /// By one of the kubeconfigs, and with these arguments besides those that all have.
    fn arguments_as(&self, kubeconfig: &str, further: &[&str]) -> Vec<String> {
        // The table of connections is the machine's, and its size nothing for a test to change.
        let fixed = ["--hostname-override=node1", "--cluster-cidr=10.244.0.0/16", "--conntrack-max-per-core=0"];
        let fixed = fixed.into_iter().chain(["--oom-score-adj=0", "--service-counters"]);
        let fixed = fixed.chain(further.iter().copied()).map(str::to_owned);
        fixed.chain([format!("--kubeconfig={}", self.path(kubeconfig).display())]).collect()
    }

    fn proxy(&self) -> Proxy {
        self.start(&self.arguments())
    }

    fn start(&self, arguments: &[String]) -> Proxy {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = self.node.run(|| self.command(&arguments).stderr(log).spawn().unwrap());
        let proxy = Proxy { log: self.path("log"), child };
        eventually("the proxy has written everything once", SOON, || {
            match self.metric("kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}") {
                Some(rounds) if rounds >= 1.0 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        proxy
    }

    /// What comes of a connection from the node itself.
    fn dial(&self, to: SocketAddr) -> Outcome {
        self.node.run(|| Dial::tcp(to).once())
    }

    fn reaches(&self, to: SocketAddr, backend: &str) {
        eventually(&format!("{to} leads to {backend}"), SOON, || match self.dial(to) {
            outcome if outcome.by() == Some(backend) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// What a server on the node answers.
    fn get(&self, to: SocketAddr, path: &str) -> std::io::Result<(u16, String, String)> {
        self.node.run(|| get(to, path))
    }

    fn metric(&self, name: &str) -> Option<f64> {
        let (status, _, body) = self.get(address("127.0.0.1", 10249), "/metrics").ok()?;
        assert_eq!(status, 200);
        let line = body.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next().unwrap().parse().ok()
    }

    fn operations(&self) -> f64 {
        self.metric("portolan_kernel_operations_total").unwrap()
    }

    /// Everything that forwards, with the handles of tables, chains and maps, which change when one is made anew;
    /// `None` without `nft`. Rules go without theirs: they are a constant few, and a new proxy writes its own in one
    /// transaction.
    fn ruleset(&self) -> Option<Vec<String>> {
        let listed = self.node.command("nft", &["-a", "list", "ruleset"])?;
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let text = String::from_utf8(listed.stdout).unwrap();
        Some(text.lines().map(what_stays).collect())
    }
}

struct Proxy {
    log: PathBuf,
    child: Child,
}

impl Proxy {
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and whether it ended well.
    fn stop(mut self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
        // Ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status, head and body.
fn get(to: SocketAddr, path: &str) -> std::io::Result<(u16, String, String)> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: node\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((head[9..12].parse().unwrap(), head.to_owned(), body.to_owned()))
}

/// A line of a ruleset without a rule's handle and without what was counted.
fn what_stays(line: &str) -> String {
    let rule = line.starts_with("\t\t").then(|| line.split_once(" # handle ")).flatten();
    let mut parts = rule.map_or(line, |(rule, _)| rule).split(" counter packets ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let after = part.split_once(" bytes ").unwrap().1;
        text + after.trim_start_matches(|c: char| c.is_ascii_digit())
    })
}

/// The Node that the proxy runs on.
fn register(api: &Api) {
    api.post("/api/v1/nodes", &json!({"metadata": {"name": "node1"}}));
    let addresses = json!([{"type": "InternalIP", "address": NODE}]);
    api.merge("/api/v1/nodes/node1/status", &json!({"status": {"addresses": addresses}}));
}

/// A Service for external traffic whose endpoints are written by hand.
fn service(api: &Api, name: &str) -> Value {
    api.service(json!({
        "metadata": {"name": name},
        "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]},
    }))
}

fn cluster_ip(service: &Value) -> SocketAddr {
    let ip: IpAddr = service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
    SocketAddr::new(ip, 80)
}

fn slice(service: &str, node: &str, port: u16) -> Value {
    json!({
        "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"port": port}],
        "endpoints": [{"addresses": [AWAY], "nodeName": node, "conditions": {"ready": true}}],
    })
}

impl Lab {
    /// A backend that answers as `a`, and an API server with this node and a Service in front of the backend.
    fn with_web(&self) -> (Echo, Server, Value) {
        let echo = Echo::start(&self.away, "a", &[address(AWAY, 9001)]);
        let server = self.serve(API_PORT);
        let web = self.api(API_PORT, |api| {
            register(api);
            api.post(SLICES, &slice("web", "node1", 9001));
            service(api, "web")
        });
        (echo, server, web)
    }
}
