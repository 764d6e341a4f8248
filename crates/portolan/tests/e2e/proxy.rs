//! `portolan proxy` on a node of its own: against a bare API server, which is stopped and started, and with backends that
//! echo. No cluster is needed for that, and no machine to itself; one test has both.
//!
//! ```text
//! node 192.0.2.2 ──────── 192.0.2.1 away
//! the proxy, clients      the API server, backends, clients
//! ```

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
const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
/// What went by nftables to Service `web`'s ClusterIP.
const CONNECTIONS: &str = "portolan_service_connections_total{namespace=\"default\",service=\"web\",port=\"\",\
    protocol=\"TCP\",kind=\"ClusterIP\",by=\"nftables\"}";

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
        let kubeconfig = self.path(&format!("kubeconfig-{API_PORT}"));
        // The table of connections is the machine's, and its size nothing for a test to change.
        let fixed = ["--hostname-override=node1", "--cluster-cidr=10.244.0.0/16", "--conntrack-max-per-core=0"];
        let fixed = fixed.into_iter().chain(["--oom-score-adj=0", "--socket-lb=false", "--service-counters"]);
        let fixed = fixed.map(str::to_owned);
        fixed.chain([format!("--kubeconfig={}", kubeconfig.display())]).collect()
    }

    fn proxy(&self) -> Proxy {
        let arguments = self.arguments();
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

    /// Everything that forwards, with the handles of tables, chains and maps, which change when one is made anew; `None`
    /// without `nft`. Rules go without theirs: they are a constant few, and a new proxy writes its own in one transaction.
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

#[test]
fn a_node_of_any_cluster_is_forwarded_for_and_says_how_it_is() {
    require_root!();
    let lab = Lab::new();
    let (_echo, server, web) = lab.with_web();
    let before = lab.ruleset();
    let proxy = lab.proxy();
    lab.reaches(cluster_ip(&web), "a");

    let health = address("127.0.0.1", 10256);
    let (status, _, body) = lab.get(health, "/healthz").unwrap();
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["healthy"], &body["nodeEligible"]), (200, &json!(true), &json!(true)), "{body}");
    assert_eq!(lab.get(address("127.0.0.1", 10249), "/proxyMode").unwrap().2, "nftables");
    let changes = lab.metric("kubeproxy_sync_proxy_rules_service_changes_total").unwrap();
    assert!(changes >= 2.0, "kubernetes and web: {changes}");
    assert_eq!(lab.metric("kubeproxy_proxy_healthz_total{code=\"200\"}"), Some(1.0));

    let counted = lab.metric(CONNECTIONS).unwrap();
    lab.reaches(cluster_ip(&web), "a");
    assert_eq!(lab.metric(CONNECTIONS), Some(counted + 1.0));

    // The load balancer's question has another answer once the endpoint is elsewhere.
    let check = address(NODE, u16::try_from(web["spec"]["healthCheckNodePort"].as_u64().unwrap()).unwrap());
    let (status, head, body) = lab.get(check, "/").unwrap();
    assert!(head.to_lowercase().contains("x-load-balancing-endpoint-weight: 1"), "{head}");
    let expected = json!({"service": {"namespace": "default", "name": "web"}, "localEndpoints": 1,
        "serviceProxyHealthy": true});
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, expected));
    let elsewhere = json!({"endpoints": slice("web", "node2", 9001)["endpoints"]});
    lab.api(API_PORT, |api| api.merge(&format!("{SLICES}/web"), &elsewhere));
    eventually("the health check says no", SOON, || match lab.get(check, "/") {
        Ok((503, ..)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    lab.reaches(cluster_ip(&web), "a");
    let no_local =
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"}";
    assert_eq!(lab.metric(no_local), Some(1.0));

    // A node that is about to go gets no traffic, and no restart either.
    let taints = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    lab.api(API_PORT, |api| api.merge("/api/v1/nodes/node1", &json!({"spec": {"taints": taints}})));
    eventually("the node is not eligible any more", SOON, || match lab.get(health, "/healthz") {
        Ok((503, ..)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(lab.get(health, "/livez").unwrap().0, 200);

    // There is one proxy, and it is known who.
    let arguments = lab.arguments();
    let second = lab.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains(&proxy.child.id().to_string()), "{said}");
    assert!(said.contains("portolan proxy"), "{said}");
    let cleanup = lab.run(&["--cleanup"]);
    assert!(!cleanup.status.success(), "nothing is removed from under a proxy that runs");
    lab.reaches(cluster_ip(&web), "a");

    proxy.stop();
    lab.reaches(cluster_ip(&web), "a");
    let cleanup = lab.run(&["--cleanup"]);
    assert!(cleanup.status.success(), "{}", String::from_utf8_lossy(&cleanup.stderr));
    assert_eq!(lab.ruleset(), before);
    let cleanup = lab.run(&["--cleanup"]);
    assert!(cleanup.status.success(), "there is nothing to remove, and that is no failure");
    server.stop();
}

#[test]
fn a_killed_proxy_is_replaced_without_a_connection_or_a_rule_noticing() {
    require_root!();
    let lab = Lab::new();
    let (_echo, server, web) = lab.with_web();
    let proxy = lab.proxy();
    lab.reaches(cluster_ip(&web), "a");
    let connection = lab.node.run(|| Dial::tcp(cluster_ip(&web)).open().unwrap());
    assert_eq!(Outcome::greeting(&connection).by(), Some("a"));
    assert!(say(&connection, "before"));
    let counted = lab.metric(CONNECTIONS).unwrap();
    let before = lab.ruleset();
    proxy.kill();
    assert!(say(&connection, "without"));
    lab.reaches(cluster_ip(&web), "a");
    let proxy = lab.proxy();
    assert!(say(&connection, "after"));
    assert_eq!(lab.operations(), 0.0, "what was there was adopted");
    assert!(lab.metric(CONNECTIONS).unwrap() > counted, "counting went on");
    match &before {
        Some(before) => assert_eq!(lab.ruleset().as_ref(), Some(before)),
        None => skip("needs nft, to look at the rules' handles"),
    }
    proxy.stop();
    server.stop();
}

#[test]
fn an_api_server_that_was_away_changes_what_differs() {
    require_root!();
    let lab = Lab::new();
    let _a = Echo::start(&lab.away, "a", &[address(AWAY, 9001)]);
    let _b = Echo::start(&lab.away, "b", &[address(AWAY, 9002)]);
    let server = lab.serve(API_PORT);
    let services = lab.api(API_PORT, |api| {
        register(api);
        ["one", "two", "three"].map(|name| {
            api.post(SLICES, &slice(name, "node1", 9001));
            service(api, name)
        })
    });
    let [one, two, three] = services.each_ref().map(cluster_ip);
    let proxy = lab.proxy();
    [one, two, three].into_iter().for_each(|service| lab.reaches(service, "a"));
    let programmed = lab.operations();
    server.stop();
    for service in [one, two, three] {
        assert_eq!(lab.dial(service).by(), Some("a"), "nobody needs the API server to forward");
    }
    // While the proxy cannot hear of it, an endpoint moves and a Service goes.
    let server = lab.serve(OTHER_PORT);
    let moved = json!({"ports": [{"port": 9002}]});
    lab.api(OTHER_PORT, |api| {
        api.merge(&format!("{SLICES}/two"), &moved);
        api.delete(&format!("{SERVICES}/three"));
    });
    server.stop();
    assert_eq!(lab.dial(two).by(), Some("a"));
    let server = lab.serve(API_PORT);
    lab.reaches(two, "b");
    eventually("the Service that went is gone", SOON, || match lab.dial(three) {
        Outcome::Answered { .. } => Err("it answers still".to_owned()),
        _ => Ok(()),
    });
    lab.reaches(one, "a");
    let difference = lab.operations() - programmed;
    assert!((1.0..programmed).contains(&difference), "{difference} operations, and {programmed} for everything");
    let log = std::fs::read_to_string(lab.path("log")).unwrap();
    assert!(!log.contains("panic"), "{log}");

    // The same once more, with nothing to change.
    let settled = lab.operations();
    server.stop();
    let server = lab.serve(API_PORT);
    lab.api(API_PORT, |api| api.post(SLICES, &slice("four", "node1", 9001)));
    let four = lab.api(API_PORT, |api| service(api, "four"));
    lab.reaches(cluster_ip(&four), "a");
    let each = programmed / 3.0;
    assert!(lab.operations() - settled <= each + 2.0, "one more Service and nothing else");
    proxy.stop();
    server.stop();
}

#[test]
fn what_is_wrong_with_a_service_shows_in_its_events() {
    require_root!();
    let lab = Lab::new();
    let server = lab.serve(API_PORT);
    let web = lab.api(API_PORT, |api| {
        register(api);
        let with_address = |name: &str| {
            api.service(json!({
                "metadata": {"name": name},
                "spec": {"externalIPs": ["198.51.100.7"], "ports": [{"port": 80}]},
            }))
        };
        with_address("first");
        with_address("second");
        service(api, "web")
    });
    let port = u16::try_from(web["spec"]["healthCheckNodePort"].as_u64().unwrap()).unwrap();
    let taken = lab.node.run(|| TcpListener::bind(address(NODE, port)).unwrap());
    let proxy = lab.proxy();
    let event = |reason: &str| {
        eventually(reason, SOON, || {
            let events = lab.api(API_PORT, |api| api.get("/api/v1/namespaces/default/events"));
            let events = events["items"].as_array().unwrap();
            events.iter().find(|event| event["reason"] == reason).cloned().ok_or_else(|| format!("{events:?}"))
        })
    };
    let conflict = event("ServiceFieldIgnored");
    assert_eq!(conflict["source"]["component"], "portolan-proxy");
    let message = conflict["message"].as_str().unwrap();
    assert!(message.contains("198.51.100.7") && message.contains("belongs to Service default/"), "{message}");
    let about = conflict["involvedObject"]["name"].as_str().unwrap();
    let object = lab.api(API_PORT, |api| api.get(&format!("{SERVICES}/{about}")));
    assert_eq!(conflict["involvedObject"]["uid"], object["metadata"]["uid"], "describe looks for the uid");
    let message = event("FailedToStartServiceHealthcheck")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("node1") && message.contains(&port.to_string()), "{message}");
    // Who listens where a NodePort comes is told of.
    let held = lab.node.run(|| TcpListener::bind(address("0.0.0.0", 30_090)).unwrap());
    lab.api(API_PORT, |api| {
        api.service(json!({
            "metadata": {"name": "outward"},
            "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_090}]},
        }))
    });
    let message = event("NodePortHeld")["message"].as_str().unwrap().to_owned();
    let process = format!("(process {}) at 0.0.0.0:30090", std::process::id());
    assert!(message.contains("TCP port 30090 of node node1") && message.contains(&process), "{message}");
    drop((taken, held));
    eventually("the port is had once it is free", SOON, || match lab.get(address(NODE, port), "/") {
        Ok((503, ..)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    proxy.stop();
    server.stop();
}

#[test]
fn a_machine_outside_joins_a_running_cluster_as_a_further_node() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "1"]);
        let api = cluster.client();
        api.deploy("web", 2);
        let web = api.service(json!({
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
        }));
        api.post("/api/v1/nodes", &json!({"metadata": {"name": "further"}}));
        let addresses = json!([{"type": "InternalIP", "address": "10.203.0.2"}]);
        api.merge("/api/v1/nodes/further/status", &json!({"status": {"addresses": addresses}}));

        let outside = nlink::netlink::namespace::Netns::open("portolan-outside").unwrap();
        // Pods are behind their node. Services are nowhere: without a proxy, nobody would answer for them.
        let routes = || {
            block_on(async {
                let route = Connection::<Route>::new().unwrap();
                let pods = Ipv4Route::new(Ipv4Addr::new(10, 244, 0, 0), 16);
                route.add_route(pods.gateway(Ipv4Addr::new(10, 203, 0, 11)).dev("eth0")).await.unwrap();
                route.add_route(Ipv4Route::new(Ipv4Addr::new(10, 96, 0, 0), 12).dev("eth0")).await.unwrap();
            });
        };
        outside.run(routes).unwrap();
        let target = cluster_ip(&web);
        let ask = || http_from("portolan-outside", target.ip(), target.port());
        assert!(ask().is_err(), "there is no proxy yet");

        let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
        command.args(["proxy", "--hostname-override=further", "--cluster-cidr=10.244.0.0/16"]);
        command.args(["--conntrack-max-per-core=0", "--oom-score-adj=0", "--socket-lb=false"]);
        // The cluster's own kubeconfig says where the API server is for the machine that it runs on.
        command.args(["--master=https://10.203.0.1:6443", "--kubeconfig"]);
        command.arg(cluster.kubeconfig());
        command.stderr(File::create(machine.path("proxy.log")).unwrap()).stdout(Stdio::null());
        let proxy = Proxy { log: machine.path("proxy.log"), child: outside.run(|| command.spawn().unwrap()).unwrap() };
        let backends = eventually("both pods answer", SOON, || {
            let answers: BTreeSet<String> = (0..20).map(|_| ask()).collect::<Result<_, _>>()?;
            if answers.len() == 2 { Ok(answers) } else { Err(format!("{answers:?}")) }
        });
        // An agent says the same things of its own node, where the others can ask.
        let node1 = |port, path: &'static str| outside.run(move || get(address("10.203.0.11", port), path)).unwrap();
        assert_eq!(node1(10256, "/healthz").unwrap().0, 200);
        assert!(node1(10249, "/metrics").is_err(), "what goes through Services is nobody else's business");
        let own = nlink::netlink::namespace::Netns::open("portolan-node1").unwrap();
        let metrics = own.run(|| get(address("127.0.0.1", 10249), "/metrics")).unwrap().unwrap().2;
        assert!(metrics.contains("portolan_service_bytes_total{namespace=\"default\",service=\"web\""), "{metrics}");
        // The pods are replaced, and the proxy follows as every node does.
        api.delete("/api/v1/namespaces/default/pods?labelSelector=app=web");
        eventually("the new pods answer", SOON, || match ask() {
            Ok(answer) if !backends.contains(&answer) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        proxy.stop();
        assert!(cluster.stop().success());
    });
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_in_words() {
    require_root!();
    let lab = Lab::new();
    let file = lab.path("config.yaml");
    std::fs::write(
        &file,
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nnftables: {masqueradeBit: 99}\n",
    )
    .unwrap();
    let began = Instant::now();
    let output = lab.run(&["--config", &file.display().to_string()]);
    assert!(began.elapsed() < SOON, "it does not start to run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("config.yaml") && said.contains("nftables.masqueradeBit: 99"), "{said}");
    let output = lab.run(&["--kubeconfig=/nowhere"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("/nowhere"), "{said}");
    let output = lab.run(&["--hostname-override=node1"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--kubeconfig"), "{said}");
}

#[test]
fn an_api_server_that_is_gone_without_a_word_is_noticed() {
    require_root!();
    let lab = Lab::new();
    let (_echo, server, _) = lab.with_web();
    let proxy = lab.proxy();
    // From now on nobody hears anything of the connections that there are; new ones are let through.
    let rules = "add table ip cut; \
        add chain ip cut first { type filter hook prerouting priority 0; }; \
        add rule ip cut first tcp dport 6443 tcp flags & (syn | ack) == syn ct mark set 1; \
        add chain ip cut in { type filter hook input priority 0; }; \
        add rule ip cut in tcp dport 6443 ct mark 0 drop; \
        add chain ip cut out { type filter hook output priority 0; }; \
        add rule ip cut out tcp sport 6443 ct mark 0 drop";
    let Some(cut) = lab.away.command("nft", &[rules]) else { return skip("needs nft, to lose packets") };
    assert!(cut.status.success(), "{}", String::from_utf8_lossy(&cut.stderr));
    let began = Instant::now();
    let late = lab.away.run(|| {
        let api = Api::new(lab.path(&format!("kubeconfig-{API_PORT}")));
        api.post(SLICES, &slice("late", "node1", 9001));
        service(&api, "late")
    });
    let deadline = Duration::from_secs(60);
    eventually("the proxy asks anew", deadline, || match lab.dial(cluster_ip(&late)) {
        outcome if outcome.by() == Some("a") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let took = began.elapsed();
    assert!(took < Duration::from_secs(45), "client-go is as fast: {took:?}");
    eprintln!("noticed after {took:?}");
    proxy.stop();
    server.stop();
}

#[test]
fn another_configuration_ends_the_proxy_and_what_is_written_can_be_used() {
    require_root!();
    let lab = Lab::new();
    let (_echo, server, web) = lab.with_web();
    let file = lab.path("written.yaml");
    let write = format!("--write-config-to={}", file.display());
    let arguments: Vec<String> = lab.arguments().into_iter().chain([write]).collect();
    let written = lab.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("kind: KubeProxyConfiguration") && text.contains("clusterCIDR: 10.244.0.0/16"), "{text}");

    let config = format!("--config={}", file.display());
    let arguments = [&config, "--hostname-override=node1", "--socket-lb=false"];
    let log = File::create(lab.path("log")).unwrap();
    let mut child = lab.node.run(|| lab.command(&arguments).stderr(log).spawn().unwrap());
    lab.reaches(cluster_ip(&web), "a");
    std::fs::write(&file, text.replace("masqueradeAll: false", "masqueradeAll: true")).unwrap();
    let status = eventually("the proxy ends", SOON, || child.try_wait().unwrap().ok_or("it runs on".to_owned()));
    let log = std::fs::read_to_string(lab.path("log")).unwrap();
    assert!(!status.success() && log.contains("written.yaml has changed"), "{log}");
    lab.reaches(cluster_ip(&web), "a");
    server.stop();
}
