//! `portolan proxy` and, if there is one, kube-proxy, side by side against the same API server in one run.
//!
//!     cargo build --release
//!     KUBE_PROXY=/path/of/kube-proxy cargo run --release -p portolan --example proxies -- 10000 10
//!
//! For each proxy: the time from the start of its process until every Service of a sample answers; from the API's
//! answer to a change until new connections go by it (the endpoint of a Service with one, the thousand endpoints of a
//! Service, a Service added); its memory; its CPU time while 100 endpoints change a second. Last, with all of them
//! still there and taking turns, what a short connection by a ClusterIP takes beside one straight to a backend.
//! `PORTOLAN=/path` names another build.
//!
//! Everything happens in network namespaces of its own: one a proxy, with the API server and all backends on its
//! loopback. Times are what a client sees, probed again and again without a pause, so they hold the prober's own share
//! of the machine. Needs root. Memory is the process's resident set, CPU time its user and system time.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, PostParams};
use kube::{Client, Resource};
use portolan_apiserver::{ApiServer, Config, User};
use portolan_testkit::{Netns, cable};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "default";
const NODE: &str = "node";
const API: u16 = 6443;
const BACKEND_PORT: u16 = 8080;
/// Services with one endpoint each, which the prober knows the backends of.
const PROBES: u32 = 50;
/// Connections that must all agree before a rollout counts as seen.
const AGREEING: usize = 30;
/// How long a connection attempt may take: a packet that no rule redirects goes nowhere. Times are known to that.
const ATTEMPT: Duration = Duration::from_millis(2);
/// How long a proxy may take for anything.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long each kind of change is repeated.
const REPEATING: Duration = Duration::from_secs(20);
const CONNECTION_ROUNDS: usize = 20;
const CONNECTIONS_A_ROUND: u32 = 1_000;
const CHURN: Duration = Duration::from_secs(10);
const CHURN_RATE: u32 = 100;
/// The Service with a thousand endpoints, in ten slices.
const LARGE: u32 = 0x000F_0000;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u32>());
    let services = arguments.next().transpose().context("the number of Services")?.unwrap_or(1_000);
    let endpoints = arguments.next().transpose().context("the number of endpoints of each")?.unwrap_or(10);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir()?;
    let mut contenders = vec![Contender::portolan()?];
    contenders.extend(std::env::var_os("KUBE_PROXY").map(|path| Contender::kube_proxy(path.into())));
    println!("{services} Services x {endpoints} endpoints");
    let rooms: Vec<Room> = contenders.iter().map(|_| Room::new()).collect();
    let listeners = rooms.iter().map(|room| room.netns.run(|| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, API))));
    let listeners = listeners.collect::<Result<_, _>>()?;

    let runtime = tokio::runtime::Runtime::new()?;
    let shutdown = CancellationToken::new();
    let server = Arc::new(runtime.block_on(ApiServer::open(Config::new(directory.path().join("api"))))?);
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig(&format!("https://127.0.0.1:{API}"), &User::admin())?)?;
    let serving = runtime.spawn({
        let (server, shutdown) = (server.clone(), shutdown.clone());
        async move { server.serve(listeners, shutdown).await }
    });
    let mut cluster = Cluster::connect(&rooms[0].netns, &kubeconfig, endpoints)?;
    let start = Instant::now();
    cluster.populate(services)?;
    println!("written to the API in {:.1?}", start.elapsed());
    let mut processes = Vec::new();
    for (contender, room) in contenders.iter().zip(&rooms) {
        let measured = room.netns.run(|| measure(contender, &mut cluster, &kubeconfig));
        processes.push(measured.with_context(|| contender.name.clone())?);
    }
    connections(&contenders, &rooms)?;
    drop(processes);
    shutdown.cancel();
    runtime.block_on(serving)??;
    Ok(())
}

struct Contender {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
}

impl Contender {
    fn portolan() -> Result<Self> {
        let beside = || Some(std::env::current_exe().ok()?.parent()?.parent()?.join("portolan"));
        let program = std::env::var_os("PORTOLAN").map(PathBuf::from).or_else(beside).context("no path of our own")?;
        ensure!(program.exists(), "there is no {}: run `cargo build --release` first", program.display());
        let arguments = ["proxy", "--hostname-override", NODE, "--cluster-cidr", "11.0.0.0/8"].map(str::to_owned);
        Ok(Self { name: "portolan".to_owned(), program, arguments: arguments.into() })
    }

    fn kube_proxy(program: PathBuf) -> Self {
        let mut arguments = vec!["--hostname-override", NODE, "--cluster-cidr", "11.0.0.0/8"];
        arguments.extend(["--proxy-mode", "nftables", "--feature-gates", "NFTablesProxyMode=true"]);
        // The namespace's limits are the machine's, and not its to set.
        arguments.extend(["--conntrack-max-per-core", "0", "--conntrack-min", "0"]);
        arguments.extend(["--conntrack-tcp-timeout-established", "0", "--conntrack-tcp-timeout-close-wait", "0"]);
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        Self { name: "kube-proxy".to_owned(), program, arguments }
    }

    /// In the calling thread's network namespace.
    fn start(&self, kubeconfig: &Path) -> Result<Process> {
        let log = tempfile::NamedTempFile::new()?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg("--kubeconfig").arg(kubeconfig).stdin(Stdio::null());
        command.stdout(log.reopen()?).stderr(log.reopen()?);
        let child = command.spawn().with_context(|| self.program.display().to_string())?;
        Ok(Process { child, log })
    }
}

struct Process {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Process {
    fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended with {status}: {}", std::fs::read_to_string(self.log.path())?);
        }
        Ok(())
    }

    /// Kilobytes resident now and at the most.
    fn memory(&self) -> Result<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        field("VmRSS:").zip(field("VmHWM:")).context("no memory figures in /proc")
    }

    /// User and system time so far, in seconds, of the process and of the children it has waited for (`nft`).
    fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat.rsplit_once(") ").context("no CPU figures in /proc")?;
        let ticks: u64 = fields.split(' ').skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
        // SAFETY: sysconf only reads a constant of the system.
        #[allow(unsafe_code, reason = "no safe wrapper without another feature of nix")]
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Ok(ticks as f64 / per_second as f64)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A network namespace with every backend's address on its loopback, and a way out that leads nowhere.
struct Room {
    netns: Netns,
    _beyond: Netns,
}

impl Room {
    fn new() -> Self {
        let (netns, beyond) = (Netns::new(), Netns::new());
        cable((&netns, "eth0"), (&beyond, "eth0"));
        netns.address("eth0", "10.200.0.1/24".parse().expect("a network"));
        beyond.address("eth0", "10.200.0.2/24".parse().expect("a network"));
        netns.route("0.0.0.0/0".parse().expect("a network"), Ipv4Addr::new(10, 200, 0, 2).into(), "eth0");
        let local = netns.command("ip", &["route", "add", "local", "11.0.0.0/8", "dev", "lo"]);
        assert!(local.is_some_and(|output| output.status.success()), "needs ip (Debian: iproute2)");
        netns.run(|| {
            let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, BACKEND_PORT)).expect("a free port");
            std::thread::spawn(move || {
                listener.incoming().flatten().for_each(|stream| {
                    let stream = Socket::from(stream);
                    let own = stream.local_addr().ok().and_then(|address| address.as_socket_ipv4());
                    // Reset on close, so that no port waits.
                    let _ = stream.set_linger(Some(Duration::ZERO));
                    let _ = own.map(|own| stream.send(&own.ip().octets()));
                    let _ = stream.set_read_timeout(Some(ATTEMPT * 10));
                    let mut rest = [std::mem::MaybeUninit::uninit()];
                    let _ = stream.recv(&mut rest);
                })
            });
        });
        Self { netns, _beyond: beyond }
    }
}

/// The backend that a new connection from the calling thread's network namespace gets.
fn connect(address: Ipv4Addr) -> Option<Ipv4Addr> {
    connect_to((address, 80).into())
}

fn connect_to(address: SocketAddr) -> Option<Ipv4Addr> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
    socket.set_linger(Some(Duration::ZERO)).ok()?;
    socket.connect_timeout(&SockAddr::from(address), ATTEMPT).ok()?;
    socket.set_read_timeout(Some(ATTEMPT * 10)).ok()?;
    let mut octets = [0u8; 4];
    std::io::Read::read_exact(&mut &socket, &mut octets).ok()?;
    Some(octets.into())
}

/// The objects, and a client to write them with.
struct Cluster {
    runtime: tokio::runtime::Runtime,
    client: Client,
    endpoints: u32,
    services: u32,
    /// Counts changes, so that each gives an address that was not there before.
    round: u32,
}

fn cluster_ip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0A60_1000 + service)
}

/// The `index`th endpoint of a Service in some round.
fn backend(service: u32, index: u32, round: u32) -> Ipv4Addr {
    Ipv4Addr::from(
        0x0B00_0000 | (service.wrapping_mul(2_654_435_761).wrapping_add(round * 65_537 + index) & 0x00FF_FFFF),
    )
}

impl Cluster {
    fn connect(netns: &Netns, kubeconfig: &Path, endpoints: u32) -> Result<Self> {
        // Its threads, and so its connections, are in the namespace.
        let runtime = netns.run(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
            runtime.block_on(async { tokio::spawn(async {}).await })?;
            anyhow::Ok(runtime)
        })?;
        let path = kubeconfig.to_owned();
        let client = runtime.block_on(runtime.spawn(async move { portolan_client::connect(&path).await }))??;
        Ok(Self { runtime, client, endpoints, services: 0, round: 0 })
    }

    fn run<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        self.runtime.block_on(self.runtime.spawn(work))?
    }

    fn populate(&mut self, services: u32) -> Result<()> {
        let client = self.client.clone();
        let node = json!({"metadata": {"name": NODE}, "status": {"addresses": [{"type": "InternalIP", "address": "10.200.0.1"}]}});
        self.run(async move {
            let api = Api::<Node>::all(client);
            let node: Node = serde_json::from_value(node)?;
            let mut created = api.create(&PostParams::default(), &node).await?;
            created.status = node.status;
            api.replace_status(NODE, &PostParams::default(), &created).await?;
            Ok(())
        })?;
        let mut all: Vec<(Value, Vec<Value>)> = Vec::new();
        for number in 0..services {
            all.push((service(number), vec![slice(number, 0, 0..self.endpoints_of(number), 0)]));
        }
        all.push((service(LARGE), (0..10).map(|part| slice(LARGE, part, part * 100..part * 100 + 100, 0)).collect()));
        let client = self.client.clone();
        self.run(async move {
            let write = |(service, slices): (Value, Vec<Value>)| {
                let client = client.clone();
                async move {
                    create::<Service>(&client, service).await?;
                    for slice in slices {
                        create::<EndpointSlice>(&client, slice).await?;
                    }
                    anyhow::Ok(())
                }
            };
            stream::iter(all).map(write).buffer_unordered(64).try_collect::<Vec<()>>().await.map(drop)
        })?;
        self.services = services;
        Ok(())
    }

    fn endpoints_of(&self, service: u32) -> u32 {
        if service < PROBES { 1 } else { self.endpoints }
    }

    /// Moves all endpoints of a Service's slices to new addresses; gives them.
    fn move_endpoints(&mut self, service: u32, parts: u32, count: u32) -> Result<BTreeSet<Ipv4Addr>> {
        self.round += 1;
        let round = self.round;
        let slices: Vec<Value> =
            (0..parts).map(|part| slice(service, part, part * 100..part * 100 + count, round)).collect();
        let client = self.client.clone();
        self.run(async move {
            let api = Api::<EndpointSlice>::namespaced(client, NAMESPACE);
            for slice in slices {
                let slice: EndpointSlice = serde_json::from_value(slice)?;
                api.replace(slice.metadata.name.as_deref().unwrap_or_default(), &PostParams::default(), &slice).await?;
            }
            Ok(())
        })?;
        let indices = (0..parts).flat_map(|part| part * 100..part * 100 + count);
        Ok(indices.map(|index| backend(service, index, round)).collect())
    }

    /// A new Service with one endpoint.
    fn add(&mut self) -> Result<(Ipv4Addr, Ipv4Addr)> {
        self.round += 1;
        let number = 0x000E_0000 + self.round;
        let client = self.client.clone();
        self.run(async move {
            create::<EndpointSlice>(&client, slice(number, 0, 0..1, 0)).await?;
            create::<Service>(&client, service(number)).await
        })?;
        Ok((cluster_ip(number), backend(number, 0, 0)))
    }

    /// Replaces an endpoint of one Service after the other, so many times a second.
    fn churn(&mut self) -> Result<()> {
        let (start, mut done) = (Instant::now(), 0);
        while start.elapsed() < CHURN {
            let number = done * 7 % self.services;
            self.move_endpoints(number, 1, self.endpoints_of(number))?;
            done += 1;
            std::thread::sleep(
                (start + Duration::from_secs(1) * done / CHURN_RATE).saturating_duration_since(Instant::now()),
            );
        }
        Ok(())
    }
}

async fn create<K>(client: &Client, object: Value) -> Result<()>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Serialize
        + DeserializeOwned
        + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object)?;
    Api::<K>::namespaced(client.clone(), NAMESPACE).create(&PostParams::default(), &object).await?;
    Ok(())
}

fn service(number: u32) -> Value {
    json!({
        "metadata": { "name": format!("service-{number}") },
        "spec": { "clusterIP": cluster_ip(number), "ports": [{ "port": 80, "targetPort": BACKEND_PORT }] },
    })
}

fn slice(service: u32, part: u32, indices: std::ops::Range<u32>, round: u32) -> Value {
    let endpoint = |index| json!({ "addresses": [backend(service, index, round)], "conditions": { "ready": true } });
    json!({
        "metadata": {
            "name": format!("service-{service}-{part}"),
            "labels": { "kubernetes.io/service-name": format!("service-{service}") },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": BACKEND_PORT, "protocol": "TCP" }],
        "endpoints": indices.map(endpoint).collect::<Vec<_>>(),
    })
}

/// In the calling thread's network namespace. The process goes on afterwards.
fn measure(contender: &Contender, cluster: &mut Cluster, kubeconfig: &Path) -> Result<Process> {
    println!("\n{}", contender.name);
    let start = Instant::now();
    let mut process = contender.start(kubeconfig)?;
    let sample = (0..cluster.services).step_by(usize::try_from(cluster.services / 100)?.max(1));
    for service in sample.chain([cluster.services - 1, LARGE]) {
        until(&mut process, || connect(cluster_ip(service)).is_some())?;
    }
    println!("  from start to programmed: {:.3?}", start.elapsed());
    let (now, most) = process.memory()?;
    println!("  memory: {:.1} MB, at the most {:.1} MB", now as f64 / 1024.0, most as f64 / 1024.0);

    let mut replaced = Vec::new();
    repeat(|round| {
        let service = round % PROBES.min(cluster.services);
        let backends = cluster.move_endpoints(service, 1, 1)?;
        let start = Instant::now();
        until(&mut process, || connect(cluster_ip(service)).is_some_and(|seen| backends.contains(&seen)))?;
        replaced.push(start.elapsed());
        Ok(())
    })?;
    print("one endpoint replaced", &mut replaced);
    let mut added = Vec::new();
    repeat(|_| {
        let (address, backend) = cluster.add()?;
        let start = Instant::now();
        until(&mut process, || connect(address) == Some(backend))?;
        added.push(start.elapsed());
        Ok(())
    })?;
    print("a Service added", &mut added);
    let mut rolled = Vec::new();
    repeat(|_| {
        let backends = cluster.move_endpoints(LARGE, 10, 100)?;
        let start = Instant::now();
        let mut agreeing = 0;
        until(&mut process, || {
            let seen = connect(cluster_ip(LARGE)).is_some_and(|seen| backends.contains(&seen));
            agreeing = if seen { agreeing + 1 } else { 0 };
            agreeing >= AGREEING
        })?;
        rolled.push(start.elapsed());
        Ok(())
    })?;
    print("1,000 endpoints replaced", &mut rolled);
    let (before, start) = (process.cpu()?, Instant::now());
    cluster.churn()?;
    let share = (process.cpu()? - before) / start.elapsed().as_secs_f64() * 100.0;
    println!("  CPU while {CHURN_RATE} Services' endpoints change a second: {share:.1} % of one core");
    let (now, most) = process.memory()?;
    println!("  memory in the end: {:.1} MB, at the most {:.1} MB", now as f64 / 1024.0, most as f64 / 1024.0);
    process.check()?;
    Ok(process)
}

/// A short connection from the node itself: opened, answered and reset.
fn connections(contenders: &[Contender], rooms: &[Room]) -> Result<()> {
    let time = |room: &Room, address: &(dyn Fn(u32) -> SocketAddr + Sync)| {
        room.netns.run(|| {
            (0..CONNECTIONS_A_ROUND)
                .map(|connection| {
                    let address = address(connection);
                    let start = Instant::now();
                    connect_to(address).map(|_| start.elapsed()).context("a connection failed")
                })
                .collect::<Result<Vec<_>>>()
        })
    };
    let mut times = vec![(Vec::new(), Vec::new()); rooms.len()];
    for _ in 0..CONNECTION_ROUNDS {
        for (room, (direct, through)) in rooms.iter().zip(&mut times) {
            // To as many backends as the Service has: the kernel keeps something about each.
            direct.extend(time(room, &|connection| (backend(LARGE, connection, 0), BACKEND_PORT).into())?);
            through.extend(time(room, &|_| (cluster_ip(LARGE), 80).into())?);
        }
    }
    println!("\nshort connections, taking turns");
    for (contender, (direct, through)) in contenders.iter().zip(&mut times) {
        print(&format!("{}, direct", contender.name), direct);
        print(&format!("{}, by ClusterIP", contender.name), through);
        let median = |times: &[Duration]| times[times.len() / 2].as_secs_f64();
        println!("  {}: {:.3} of direct", contender.name, median(through) / median(direct));
    }
    Ok(())
}

fn until(process: &mut Process, mut condition: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !condition() {
        process.check()?;
        ensure!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}");
    }
    Ok(())
}

fn repeat(mut once: impl FnMut(u32) -> Result<()>) -> Result<()> {
    let start = Instant::now();
    (0..1_000).take_while(|_| start.elapsed() < REPEATING).try_for_each(&mut once)
}

fn print(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("  {what}: p50 {:.2?}, p99 {:.2?}, max {:.2?} of {}", at(50), at(99), at(100), times.len());
}
