//! `portolan up`: a whole cluster on this machine, in the foreground.
//!
//! This process is the machine room (namespaces, a bridge, power switches) and the control plane (API server,
//! controllers). Nodes are process trees of their own that reach it over the fabric, as they would over a network.
//!
//! Invariants: everything made is undone on the way out, however that way is taken, or found by the next start or
//! `portolan clean`; the state in the data directory outlives all of it.

mod apply;
pub(crate) mod cgroup;
pub(crate) mod control;
pub(crate) mod data_dir;
pub(crate) mod fabric;
pub(crate) mod plan;
mod preflight;
mod room;
mod spawn;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use portolan_apiserver::{ApiServer, User};
use portolan_client::Cache;
use portolan_controllers::AddressRange;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::fabric::Fabric;
use self::plan::Plan;
use self::room::{MachineRoom, NodeSettings};
use crate::clean;
use crate::plane::METRICS_PORT;

/// How long a start may take before it is given up, with what was missing.
const READY_DEADLINE: Duration = Duration::from_secs(120);
/// After this long a start says what it waits for.
const SLOW_START: Duration = Duration::from_secs(10);
const API_PORT: u16 = 6443;
/// How often the sizes of the nodes' logs are looked at.
const LOG_AUDIT_PERIOD: Duration = Duration::from_secs(60);
/// A dead node's pods are replaced this much later, so that a node that only stumbled keeps them.
const EVICTION_DELAY: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How many nodes
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// Where the cluster's state is kept; it survives a restart
    #[arg(long, default_value = data_dir::DEFAULT)]
    data_dir: PathBuf,
    /// Where to write the administrator's kubeconfig [default: DATA_DIR/kubeconfig]
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Manifests to apply once the cluster is ready: a file, a directory, or - for standard input
    #[arg(long, value_name = "FILE|DIR|-")]
    apply: Vec<PathBuf>,
    /// Make no link from this machine into the cluster
    #[arg(long)]
    no_host_link: bool,
    /// The port of the API server on 127.0.0.1
    #[arg(long, default_value_t = API_PORT)]
    api_port: u16,
    /// The addresses of Services
    #[arg(long, default_value = "10.96.0.0/12")]
    service_cidr: Ipv4Net,
    /// The address of the cluster's DNS, within the Service addresses
    #[arg(long, default_value = "10.96.0.10")]
    cluster_dns: Ipv4Addr,
    /// The domain that Services have their names in
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// The addresses of pods; each node takes a /24
    #[arg(long, default_value = "10.244.0.0/16")]
    pod_cidr: Ipv4Net,
    /// The network that the nodes are on
    #[arg(long, default_value = "10.203.0.0/24")]
    node_network: Ipv4Net,
    /// The addresses for Services of type LoadBalancer [default: hosts 200 to 250 of the node network]
    #[arg(long, value_name = "FIRST-LAST")]
    lb_pool: Option<AddressRange>,
    /// The ports for Services of type NodePort
    #[arg(long, default_value = "30000-32767", value_parser = parse_ports, value_name = "FIRST-LAST")]
    node_ports: (u16, u16),
    /// Lead sockets of nodes and pods to a Service's endpoint when they connect, instead of translating their packets
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "true|false")]
    socket_lb: bool,
    /// End TCP connections of led sockets so long after their backend left the Service; it breaks clients that wait for
    /// what the backend is still finishing [default: never]
    #[arg(long, value_name = "SECONDS")]
    socket_lb_end_tcp_after: Option<u64>,
    /// Where each node answers /metrics and /proxyMode; 0.0.0.0:10249 shows them to whoever reaches a node
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT)))]
    metrics_bind_address: SocketAddr,
}

fn parse_ports(text: &str) -> Result<(u16, u16)> {
    let (first, last) = text.split_once('-').context("write it as FIRST-LAST, as in 30000-32767")?;
    let (first, last) = (first.parse()?, last.parse()?);
    anyhow::ensure!(0 < first && first <= last, "the first port must be above 0 and not above the last");
    Ok((first, last))
}

impl Arguments {
    fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.clone().unwrap_or_else(|| self.data_dir.join("kubeconfig"))
    }
}

/// Runs until a signal, or until a part of the control plane fails.
pub(crate) async fn run(mut arguments: Arguments) -> Result<()> {
    let started = Instant::now();
    let plan = Plan::new(
        arguments.nodes,
        arguments.node_network,
        arguments.pod_cidr,
        arguments.service_cidr,
        arguments.cluster_dns,
        arguments.lb_pool,
    )?;
    preflight::check()?;
    // Nodes do not share this process's working directory.
    arguments.data_dir = std::path::absolute(&arguments.data_dir)?;
    let manifests = apply::read(&arguments.apply)?;
    let _locks = data_dir::lock(&arguments.data_dir)?;
    data_dir::check_ties(&arguments.data_dir, &plan.ties())?;
    let remains = clean::sweep().await?;
    if !remains.is_empty() {
        tracing::info!("removed what an earlier cluster left: {}", remains.join(", "));
    }
    if !arguments.no_host_link {
        fabric::check_host_routes(&plan).await?;
    }
    let outcome = cluster(&arguments, &plan, manifests, started).await;
    clean::sweep().await.context("the cluster stopped, but not everything of it could be removed")?;
    outcome
}

async fn cluster(arguments: &Arguments, plan: &Plan, manifests: Vec<apply::Manifest>, started: Instant) -> Result<()> {
    let mut stop = Stop::new()?;
    let fabric = Fabric::create(plan).await?;
    let mut parts = Parts::default();
    let outcome = match start(arguments, plan, fabric, &mut parts, &mut stop).await {
        Ok((mut room, calls)) => {
            let outcome = serve(arguments, plan, &mut room, calls, &mut parts, &mut stop, manifests, started).await;
            room.stop_all().await;
            outcome
        }
        Err(error) => Err(error),
    };
    parts.stop().await;
    match outcome {
        Err(error) if error.is::<Stopped>() => Ok(()),
        outcome => outcome,
    }
}

/// Why the cluster ends when somebody asked it to.
#[derive(Debug, thiserror::Error)]
#[error("stopped by a signal")]
struct Stopped;

/// SIGINT or SIGTERM.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn requested(&mut self) -> Stopped {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        Stopped
    }
}

/// The control plane's tasks. One that ends before it was told to takes the cluster down with its reason.
#[derive(Default)]
struct Parts {
    tasks: JoinSet<Result<()>>,
    shutdown: CancellationToken,
    /// Ends last, so that the others can still write.
    api: CancellationToken,
}

impl Parts {
    async fn failed(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(Ok(()))) => anyhow::anyhow!("a part of the control plane ended by itself"),
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => error.into(),
            None => std::future::pending().await,
        }
    }

    async fn stop(mut self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        self.shutdown.cancel();
        // The controllers' and the relay's share of the time is short: nothing of theirs has to be waited for.
        self.api.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::warn!("parts of the control plane did not stop within {PATIENCE:?}");
        }
    }
}

/// Starts the control plane and the nodes.
async fn start(
    arguments: &Arguments,
    plan: &Plan,
    fabric: Fabric,
    parts: &mut Parts,
    stop: &mut Stop,
) -> Result<(MachineRoom, mpsc::Receiver<control::Call>)> {
    let data_dir = &arguments.data_dir;
    for node in &plan.nodes {
        fabric.add_node(node, plan.node_network.prefix_len()).await?;
    }
    let images = portolan_node::image::Store::open(&data_dir::images(data_dir))?;
    let built_in = tokio::task::spawn_blocking(move || images.builtin(Path::new("/proc/self/exe")));

    let host_api = SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.api_port));
    let host_listener = TcpListener::bind(host_api)
        .with_context(|| format!("cannot listen on {host_api}; choose another port with --api-port"))?;
    let control_api = SocketAddr::from((plan.control(), API_PORT));
    let node_listener = fabric.run(|| TcpListener::bind(control_api))?.context("cannot listen on the fabric")?;
    data_dir::write_ties(data_dir, &plan.ties())?;
    let server = open_api_server(arguments, plan, control_api, &fabric).await?;

    let private = |name: &str, content: &str| -> Result<PathBuf> {
        let path = data_dir.join(name);
        data_dir::write_private(&path, content.as_bytes())?;
        Ok(path)
    };
    let host_url = format!("https://{host_api}");
    let admin = server.kubeconfig(&host_url, &User::admin())?;
    data_dir::write_private(&arguments.kubeconfig(), admin.as_bytes())?;
    let controllers = private("controllers.kubeconfig", &server.kubeconfig(&host_url, &User::controllers())?)?;
    let node_url = format!("https://{control_api}");
    let mut settings = Vec::new();
    for node in &plan.nodes {
        settings.push(NodeSettings::write(arguments, plan, node, &server, &node_url)?);
    }
    let root_ca_pem = server.ca().to_owned();
    let api = parts.api.clone();
    parts.tasks.spawn(async move {
        server.serve(vec![host_listener, node_listener], api).await.context("the API server failed")
    });
    parts.tasks.spawn(run_controllers(controllers, plan.clone(), root_ca_pem, parts.shutdown.clone()));

    let (udp, tcp) = fabric.run(|| {
        let address = SocketAddr::from((plan.control(), 53));
        std::io::Result::Ok((UdpSocket::bind(address)?, TcpListener::bind(address)?))
    })??;
    parts.tasks.spawn(relay_dns(udp, tcp, parts.shutdown.clone()));

    let (calls, receiver) = mpsc::channel(1);
    let listener = control::bind(data_dir)?;
    let shutdown = parts.shutdown.clone();
    parts.tasks.spawn(async move {
        tokio::select! {
            () = control::serve(listener, calls) => {}
            () = shutdown.cancelled() => {}
        }
        Ok(())
    });

    tokio::select! {
        built = built_in => { built?.context("cannot make the built-in image")?; }
        stopped = stop.requested() => return Err(stopped.into()),
    }
    let host_link = match (arguments.no_host_link, plan.nodes.first()) {
        (false, Some(first)) => Some(fabric.link_host(plan, first.address).await?),
        _ => None,
    };
    let mut room = MachineRoom::new(fabric, plan.node_network.prefix_len(), settings, host_link);
    room.start_all().await?;
    Ok((room, receiver))
}

async fn open_api_server(
    arguments: &Arguments,
    plan: &Plan,
    control_api: SocketAddr,
    fabric: &Fabric,
) -> Result<ApiServer> {
    let config = portolan_apiserver::Config {
        service_cidrs: vec![plan.service_cidr.into()],
        node_ports: arguments.node_ports.0..=arguments.node_ports.1,
        cluster_domain: arguments.cluster_domain.clone(),
        advertise: Some(control_api),
        node_dialer: Some(fabric.dialer()?),
        ..portolan_apiserver::Config::new(&arguments.data_dir)
    };
    ApiServer::open(config).await.context("cannot open the cluster's state")
}

async fn run_controllers(
    kubeconfig: PathBuf,
    plan: Plan,
    root_ca_pem: String,
    shutdown: CancellationToken,
) -> Result<()> {
    let client = portolan_client::connect(&kubeconfig).await?;
    create_dns_service(&client, plan.cluster_dns).await?;
    retire_nodes(&client, &plan).await.context("cannot remove the nodes that this cluster no longer has")?;
    let config = portolan_controllers::Config {
        pod_cidr: plan.pod_cidr.into(),
        lb_pools: vec![plan.pool],
        root_ca_pem,
        node_mask: 24,
        node_lease_timeout: portolan_node::LEASE_EXPIRY,
        eviction_delay: EVICTION_DELAY,
    };
    portolan_controllers::run(client, config, shutdown).await.context("the controllers failed")
}

/// A cluster started with fewer nodes than before: the machines do not exist any more, and Nodes that nobody will ever
/// switch on again would keep their pods waiting. What other Nodes somebody made is theirs.
async fn retire_nodes(client: &kube::Client, plan: &Plan) -> Result<(), kube::Error> {
    let nodes = Api::<Node>::all(client.clone());
    for node in nodes.list_metadata(&ListParams::default()).await? {
        let name = node.name_any();
        if plan::is_machine(&name) && !plan.nodes.iter().any(|node| node.name == name) {
            tracing::info!("{name} is no longer a part of this cluster");
            match nodes.delete(&name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                deleted => drop(deleted?),
            }
        }
    }
    Ok(())
}

/// The Service that pods send their DNS queries to. Each node's agent adds its own endpoint, and
/// `internalTrafficPolicy: Local` keeps every query on the node it was asked on.
async fn create_dns_service(client: &kube::Client, address: Ipv4Addr) -> Result<()> {
    let service: Service = serde_json::from_value(serde_json::json!({
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": { "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true" },
        },
        "spec": {
            "clusterIP": address,
            "internalTrafficPolicy": "Local",
            "ports": [
                { "name": "dns", "port": 53, "protocol": "UDP" },
                { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
            ],
        },
    }))?;
    match Api::namespaced(client.clone(), "kube-system").create(&PostParams::default(), &service).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(error).context("cannot create the Service kube-system/kube-dns"),
    }
}

/// Nodes have no way to the host's network; names outside the cluster reach the host's resolvers through this.
async fn relay_dns(udp: UdpSocket, tcp: TcpListener, shutdown: CancellationToken) -> Result<()> {
    let resolv_conf = tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default();
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    let (udp, tcp) = (tokio::net::UdpSocket::from_std(udp)?, tokio::net::TcpListener::from_std(tcp)?);
    portolan_dns::relay(udp, tcp, portolan_dns::resolvers(&resolv_conf), shutdown.cancelled_owned())
        .await
        .context("the DNS relay failed")
}

/// Waits for the nodes, applies the manifests, says `ready`, and then minds the machine room.
#[expect(clippy::too_many_arguments, reason = "the one place where all parts of a cluster meet")]
async fn serve(
    arguments: &Arguments,
    plan: &Plan,
    room: &mut MachineRoom,
    mut calls: mpsc::Receiver<control::Call>,
    parts: &mut Parts,
    stop: &mut Stop,
    manifests: Vec<apply::Manifest>,
    started: Instant,
) -> Result<()> {
    let mut becoming_ready = std::pin::pin!(become_ready(arguments, plan, manifests));
    let mut ready = false;
    let mut audit = tokio::time::interval(LOG_AUDIT_PERIOD);
    loop {
        tokio::select! {
            outcome = &mut becoming_ready, if !ready => {
                let applied = outcome?;
                ready = true;
                announce(arguments, plan, started.elapsed(), applied);
            }
            Some((request, answer)) = calls.recv() => {
                // Nobody waits for the answer any more: nothing to do about it.
                let _ = answer.send(room.handle(request).await);
            }
            exited = room.node_exited() => room.lost_power(exited).await,
            _ = audit.tick() => room.bound_logs(),
            error = parts.failed() => return Err(error),
            stopped = stop.requested() => return Err(stopped.into()),
        }
    }
}

/// Returns how many objects were applied.
async fn become_ready(arguments: &Arguments, plan: &Plan, manifests: Vec<apply::Manifest>) -> Result<usize> {
    let client = portolan_client::connect(&arguments.kubeconfig()).await?;
    let (nodes, drive_nodes) = Cache::<Node>::new(Api::all(client.clone()), watcher::Config::default());
    let dns = watcher::Config::default().labels("kubernetes.io/service-name=kube-dns");
    let (slices, drive_slices) = Cache::<EndpointSlice>::new(Api::namespaced(client.clone(), "kube-system"), dns);
    let (mut node_changes, mut slice_changes) = (nodes.subscribe(), slices.subscribe());
    let mut slow = tokio::time::interval_at(tokio::time::Instant::now() + SLOW_START, SLOW_START);
    let wait = async {
        loop {
            let missing = not_ready(plan, &nodes, &slices);
            if missing.is_empty() {
                return;
            }
            tokio::select! {
                _ = slow.tick() => tracing::info!("still waiting: {}", missing.join(", ")),
                Some(_) = node_changes.recv() => {}
                Some(_) = slice_changes.recv() => {}
                else => return,
            }
        }
    };
    tokio::select! {
        () = drive_nodes => {}
        () = drive_slices => {}
        waited = tokio::time::timeout(READY_DEADLINE, wait) => {
            waited.map_err(|_| {
                let missing = not_ready(plan, &nodes, &slices).join(", ");
                let logs = data_dir::node(&arguments.data_dir, "NODE").join("log");
                anyhow::anyhow!("not ready after {READY_DEADLINE:?}: {missing}; see {}", logs.display())
            })?;
        }
    }
    let count = manifests.len();
    apply::apply(&client, manifests).await?;
    Ok(count)
}

/// What a node still lacks before Services work on it.
fn not_ready(plan: &Plan, nodes: &Cache<Node>, slices: &Cache<EndpointSlice>) -> Vec<String> {
    let ready: Vec<_> = nodes.list().iter().filter_map(|node| portolan_model::translate::node(node)).collect();
    let answering: Vec<_> = slices.list().iter().flat_map(|slice| slice.endpoints.clone()).collect();
    let mut missing = Vec::new();
    for node in &plan.nodes {
        if !ready.iter().any(|other| *other.name == node.name && other.ready) {
            missing.push(format!("{} is not Ready", node.name));
        } else if !answering.iter().any(|endpoint| endpoint.node_name.as_deref() == Some(&node.name)) {
            missing.push(format!("the DNS of {} does not answer", node.name));
        }
    }
    missing
}

fn announce(arguments: &Arguments, plan: &Plan, took: Duration, applied: usize) {
    let kubeconfig = arguments.kubeconfig();
    let first = plan.nodes.first().map(|node| node.address.to_string()).unwrap_or_default();
    println!("ready in {:.1} s: {} nodes, KUBECONFIG={}", took.as_secs_f64(), plan.nodes.len(), kubeconfig.display());
    if applied > 0 {
        println!("  applied     {applied} objects");
    }
    println!("  kubectl     kubectl --kubeconfig {} get services,pods -A", kubeconfig.display());
    if arguments.no_host_link {
        println!("  addresses   from `ip netns exec {}` (no link to this machine)", plan::OUTSIDE_NAMESPACE);
    } else {
        println!("  addresses   curl any ClusterIP, LoadBalancer address, or {first}:NODEPORT from this machine");
    }
    println!("  why         portolan explain SERVICE --kubeconfig {}", kubeconfig.display());
    println!("  stop        Ctrl-C");
}
