//! What an agent adds to the kernel's forwarding: DNS answers, and answers for external addresses.
//!
//! Invariant: after a lapse of its Lease the node answers for no external address before it knows what happened
//! meanwhile (`fence`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use portolan_client::Scope;
use portolan_dataplane::sock::SockConfig;
use portolan_dataplane::{DataPlane, LocalTraffic, ProxyConfig};
use portolan_dns::{DnsServer, ServerConfig};
use portolan_lb::L2Announcer;
use portolan_model::{Delta, Snapshot};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::fence::Fence;
use crate::plane::{self, Follower, HEALTHZ_PORT};

const AUDIT_PERIOD: Duration = Duration::from_secs(60);
/// How soon publishing the node's DNS is tried again: the Node may not be registered yet, or the API away.
const PUBLISH_AGAIN_AFTER: Duration = Duration::from_millis(100);
const DNS_TTL_SECONDS: u32 = 5;

#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) node_name: String,
    pub(crate) node_address: IpAddr,
    pub(crate) uplink: String,
    pub(crate) pod_cidrs: Vec<IpNet>,
    pub(crate) cluster_domain: String,
    pub(crate) dns_upstreams: Vec<SocketAddr>,
    pub(crate) sockets: Option<SockConfig>,
    pub(crate) metrics: SocketAddr,
}

/// Runs until told to stop. What is in the kernel stays: connections outlive this process.
///
/// `renewals` says when the last renewal of the node's Lease runs out: from then on it must not answer for external
/// addresses, because another node may.
pub(crate) async fn run(
    client: Client,
    config: Config,
    renewals: watch::Receiver<Instant>,
    shutdown: CancellationToken,
) -> Result<()> {
    let forwarding = ProxyConfig {
        counters: true,
        sockets: config.sockets.clone(),
        ..ProxyConfig::new(&config.node_name, LocalTraffic::ClusterCidr(config.pod_cidrs.clone()))
    };
    let kernel = DataPlane::open(forwarding).await.context("cannot take over this node's Service forwarding")?;
    let follower = NodeParts::open(client.clone(), &config, renewals)?;
    let settings = plane::Settings {
        node_name: config.node_name.clone(),
        scope: Scope::Everything,
        audit_period: AUDIT_PERIOD,
        healthz: Some((any_address(config.node_address), HEALTHZ_PORT).into()),
        metrics: Some(config.metrics),
        must_bind: false,
    };
    plane::run(client, settings, kernel, follower, shutdown).await
}

/// Where a kube-proxy listens: cloud load balancers ask the node's address, and its own processes `localhost`.
fn any_address(of_family: IpAddr) -> IpAddr {
    match of_family {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

struct NodeParts {
    dns: DnsServer,
    announcer: L2Announcer,
    fence: Fence,
    /// Until the cluster knows of this node's DNS.
    publishing: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl NodeParts {
    fn open(client: Client, config: &Config, renewals: watch::Receiver<Instant>) -> Result<Self> {
        let dns = DnsServer::bind(ServerConfig {
            listen: vec![SocketAddr::new(config.node_address, 53)],
            domain: config.cluster_domain.clone(),
            ttl: DNS_TTL_SECONDS,
            upstreams: config.dns_upstreams.clone(),
            threads: 1,
        })
        .context("cannot serve this node's DNS")?;
        let announcer = L2Announcer::open(&config.uplink, &config.node_name)
            .with_context(|| format!("cannot answer for external addresses on {}", config.uplink))?;
        let publishing = Some(Box::pin(publish_dns_endpoint(client.clone(), config.clone())) as Pin<Box<_>>);
        Ok(Self { dns, announcer, fence: Fence::new(client, renewals), publishing })
    }
}

impl Follower for NodeParts {
    fn apply(&mut self, snapshot: &Snapshot, delta: &Delta, first: bool) {
        self.dns.apply(snapshot, delta);
        self.announcer.apply(snapshot, delta);
        if first {
            self.dns.synced();
        }
    }

    fn look(&mut self, snapshot: &Snapshot) {
        if let Some(until) = self.fence.grant(snapshot) {
            self.announcer.set_alive_until(until.into_std());
        }
    }

    async fn hear(&mut self) {
        match &mut self.publishing {
            Some(publishing) => tokio::select! {
                () = publishing => self.publishing = None,
                () = self.fence.hear() => {}
            },
            None => self.fence.hear().await,
        }
    }
}

/// Tells the cluster that this node answers DNS queries: an EndpointSlice of Service `kube-system/kube-dns`, which goes
/// when the Node does.
async fn publish_dns_endpoint(client: Client, config: Config) {
    while let Err(error) = try_publish_dns_endpoint(client.clone(), &config).await {
        tracing::debug!(%error, "cannot publish this node's DNS endpoint yet");
        tokio::time::sleep(PUBLISH_AGAIN_AFTER).await;
    }
}

async fn try_publish_dns_endpoint(client: Client, config: &Config) -> kube::Result<()> {
    let node = Api::<Node>::all(client.clone()).get(&config.node_name).await?;
    let name = format!("kube-dns-{}", config.node_name);
    let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
        "metadata": {
            "name": name,
            "namespace": "kube-system",
            "labels": {
                "kubernetes.io/service-name": "kube-dns",
                "endpointslice.kubernetes.io/managed-by": "portolan-agent",
            },
            "ownerReferences": [node.owner_ref(&())],
        },
        "addressType": if config.node_address.is_ipv4() { "IPv4" } else { "IPv6" },
        "ports": [
            { "name": "dns", "port": 53, "protocol": "UDP" },
            { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
        ],
        "endpoints": [{
            "addresses": [config.node_address],
            "nodeName": config.node_name,
            "conditions": { "ready": true, "serving": true, "terminating": false },
        }],
    }))
    .map_err(kube::Error::SerdeError)?;
    let api = Api::namespaced(client, "kube-system");
    match api.create(&PostParams::default(), &slice).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            api.patch(&name, &PatchParams::default(), &Patch::Merge(&slice)).await?;
            Ok(())
        }
        Err(error) => Err(error),
    }
}
