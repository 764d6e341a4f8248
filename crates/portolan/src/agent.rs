//! `portolan agent`: what a machine runs to be a node. Pods, and everything Services need on a node.
//!
//! Invariants: it talks to the Kubernetes API and to its own kernel, and to nothing else; it may be killed and started
//! again at any moment without a pod, a connection or a rule noticing. SIGTERM stops it and leaves pods running; SIGPWR
//! says that the machine is going down: the node leaves every Service, and then its pods end.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use portolan_dataplane::sock::SockConfig;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::leave::leave;
use crate::service_plane;
use crate::sockets::{self, LeftOut};

/// How long pods get to end when the machine goes down, whatever their own grace period says.
const POD_GRACE: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The agent's configuration, a JSON file
    #[arg(long)]
    config: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) node_name: String,
    pub(crate) node_address: IpAddr,
    /// The link to the other nodes.
    pub(crate) uplink: String,
    pub(crate) kubeconfig: PathBuf,
    /// The agent's own; it outlives the agent.
    pub(crate) state_dir: PathBuf,
    pub(crate) image_dir: PathBuf,
    /// What a person types to put an image there, but for the archive.
    pub(crate) import_command: String,
    /// Relative to the root of each cgroup hierarchy, with a leading slash.
    pub(crate) cgroup_parent: String,
    /// Sockets of processes in this cgroup (of the v2 hierarchy, with a leading slash) and below are led to a Service's
    /// endpoint when they connect; absent: none are.
    pub(crate) socket_lb: Option<String>,
    /// How long TCP connections of led sockets may go on after their backend left the Service; absent: for ever.
    pub(crate) socket_lb_end_tcp_after_seconds: Option<u64>,
    /// Where `/metrics` answers.
    pub(crate) metrics_bind_address: SocketAddr,
    pub(crate) cluster_dns: Vec<IpAddr>,
    pub(crate) cluster_domain: String,
    /// Sources within these are pods: they keep their address on the way to a Service.
    pub(crate) pod_cidrs: Vec<IpNet>,
    /// Who answers for names outside the cluster.
    pub(crate) dns_upstreams: Vec<SocketAddr>,
    /// Where the API server fetches logs.
    pub(crate) kubelet_port: u16,
    pub(crate) serving_certificate_pem: String,
    pub(crate) serving_key_pem: String,
    pub(crate) ca_pem: String,
}

impl Config {
    fn read(path: &PathBuf) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no agent configuration", path.display()))
    }
}

/// Why the agent ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Replaced or upgraded: pods go on.
    Agent,
    /// The machine goes down.
    Node,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let config = Config::read(&arguments.config)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut power = signal(SignalKind::from_raw(nix::libc::SIGPWR))?;
    let client = portolan_client::connect(&config.kubeconfig).await?;
    let following = portolan_client::connect_from(Some(&config.kubeconfig), None).await?;
    // The pods' keeper ends first, so that the plane still forwards while the node takes its leave.
    let shutdown = CancellationToken::new();
    let keeping_pods = shutdown.child_token();
    let (renewed, renewals) = watch::channel(Instant::now());
    let mut parts = JoinSet::new();
    let end_tcp_after = config.socket_lb_end_tcp_after_seconds.map(Duration::from_secs);
    let sockets = sockets::config(config.socket_lb.as_deref(), sockets::SMALL)
        .map(|sockets| SockConfig { end_tcp_after, ..sockets });
    let pods = portolan_node::AgentConfig {
        node_name: config.node_name.clone(),
        state_dir: config.state_dir.clone(),
        image_dir: config.image_dir.clone(),
        import_command: config.import_command.clone(),
        node_ip: config.node_address,
        uplink: config.uplink.clone(),
        pod_networks: config.pod_cidrs.clone(),
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
        kubelet_listen: (Ipv4Addr::UNSPECIFIED, config.kubelet_port).into(),
        tls: portolan_node::TlsIdentity {
            certificate: config.serving_certificate_pem.clone(),
            key: config.serving_key_pem.clone(),
            client_ca: config.ca_pem.clone(),
        },
        labels: BTreeMap::new(),
        capacity: portolan_node::Capacity::default(),
        sandboxes: sockets.as_ref().map(|sockets| LeftOut::new(sockets.exempt.clone(), &config.cgroup_parent) as _),
    };
    let plane = service_plane::Config {
        node_name: config.node_name.clone(),
        node_address: config.node_address,
        uplink: config.uplink.clone(),
        pod_cidrs: config.pod_cidrs.clone(),
        cluster_domain: config.cluster_domain.clone(),
        dns_upstreams: config.dns_upstreams.clone(),
        sockets,
        metrics: config.metrics_bind_address,
    };
    {
        let (client, following, pods, ending) = (client.clone(), following.clone(), pods.clone(), keeping_pods.clone());
        parts.spawn(async move {
            portolan_node::run(client, following, pods, renewed, ending).await.context("cannot go on running pods")
        });
    }
    parts.spawn(service_plane::run(following, plane, renewals, shutdown.clone()));
    let end = tokio::select! {
        _ = terminate.recv() => End::Agent,
        _ = power.recv() => End::Node,
        Some(ended) = parts.join_next() => {
            ended??;
            anyhow::bail!("a part of the agent ended by itself");
        }
    };
    if end == End::Node {
        keeping_pods.cancel();
        if let Some(ended) = parts.join_next().await {
            ended??;
        }
        leave(&client, &config.node_name).await;
    }
    shutdown.cancel();
    while let Some(ended) = parts.join_next().await {
        ended??;
    }
    if end == End::Node {
        portolan_node::drain(&pods, POD_GRACE).await.context("cannot end this node's pods")?;
    }
    Ok(())
}
