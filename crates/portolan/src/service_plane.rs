//! The Service feed -> every projection of it on this node: nftables, DNS answers, announced addresses.
//!
//! Invariants: events that arrived together are applied together; the kernel comes first, so that a name never leads to
//! an address that does not forward yet; before all watches have listed nothing is told at all, so that what a
//! predecessor left in the kernel goes on as it was.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use portolan_client::{Feed, FeedItem, Scope, service_feed};
use portolan_dataplane::{DataPlane, ProxyConfig, Report};
use portolan_dns::{DnsServer, ServerConfig};
use portolan_lb::L2Announcer;
use portolan_model::{Delta, Snapshot};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::fence::Fence;

/// How often the kernel is read back to find what somebody changed by hand.
const AUDIT_PERIOD: Duration = Duration::from_secs(60);
/// How soon a Service that the kernel refused is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How soon publishing the node's DNS is tried again: the Node may not be registered yet, or the API away.
const PUBLISH_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Events applied in one go at most, so that a flood cannot postpone the first of it for ever.
const LARGEST_BATCH: usize = 10_000;
const DNS_TTL_SECONDS: u32 = 5;

pub(crate) struct Config {
    pub(crate) node_name: String,
    pub(crate) node_address: IpAddr,
    pub(crate) uplink: String,
    pub(crate) pod_cidrs: Vec<IpNet>,
    pub(crate) cluster_domain: String,
    pub(crate) dns_upstreams: Vec<SocketAddr>,
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
    let mut plane = Plane::open(&config).await?;
    let (mut feed, driver) = service_feed(&client, &Scope::Everything);
    let mut driver = std::pin::pin!(driver);
    let mut audit = tokio::time::interval_at(Instant::now() + AUDIT_PERIOD, AUDIT_PERIOD);
    audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut publishing = std::pin::pin!(publish_dns_endpoint(client.clone(), &config));
    let mut published = false;
    let mut fence = Fence::new(client.clone(), renewals);
    loop {
        if let Some(until) = fence.grant(&plane.snapshot) {
            plane.announcer.set_alive_until(until.into_std());
        }
        let retry = async {
            match plane.failed.is_empty() {
                true => std::future::pending().await,
                false => tokio::time::sleep(RETRY_AFTER).await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = &mut driver => anyhow::bail!("the watches on Services ended by themselves"),
            Some(item) = feed.next() => plane.take(item, &mut feed).await,
            () = retry => plane.retry().await,
            _ = audit.tick(), if plane.synced => plane.audit().await,
            () = fence.hear(), if plane.synced => {}
            () = &mut publishing, if plane.synced && !published => published = true,
        }
    }
    plane.dns.shutdown();
    Ok(())
}

struct Plane {
    snapshot: Snapshot,
    kernel: DataPlane,
    dns: DnsServer,
    announcer: L2Announcer,
    /// What the projections have not been told yet. Until every watch has listed, a Service may be known without its
    /// endpoints, and telling that would break what a predecessor left working.
    pending: Delta,
    /// What the kernel refused, to be tried again.
    failed: Delta,
    synced: bool,
}

impl Plane {
    async fn open(config: &Config) -> Result<Self> {
        let kernel = DataPlane::open(ProxyConfig::new(&config.node_name, config.pod_cidrs.clone()))
            .await
            .context("cannot take over this node's Service forwarding")?;
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
        Ok(Self {
            snapshot: Snapshot::default(),
            kernel,
            dns,
            announcer,
            pending: Delta::default(),
            failed: Delta::default(),
            synced: false,
        })
    }

    async fn take(&mut self, first: FeedItem, feed: &mut Feed) {
        let mut delta = Delta::default();
        let mut synced = false;
        let mut next = Some(first);
        for _ in 0..LARGEST_BATCH {
            match next {
                Some(FeedItem::Change { event, .. }) => delta.merge(self.snapshot.apply(event)),
                Some(FeedItem::Synced) => synced = true,
                Some(FeedItem::Diagnostics { kind, namespace, name, diagnostics }) => {
                    for diagnostic in diagnostics {
                        tracing::warn!("{kind} {namespace}/{name}: {}: {}", diagnostic.field, diagnostic.message);
                    }
                }
                None => break,
            }
            next = feed.try_next();
        }
        self.pending.merge(delta);
        if synced {
            let report = self.kernel.synced(&self.snapshot).await;
            self.note(report);
            self.synced = true;
        } else if self.synced && !self.pending.is_empty() {
            let report = self.kernel.apply(&self.snapshot, &self.pending).await;
            self.note(report);
        }
        if self.synced {
            let delta = std::mem::take(&mut self.pending);
            self.dns.apply(&self.snapshot, &delta);
            self.announcer.apply(&self.snapshot, &delta);
        }
        if synced {
            self.dns.synced();
        }
    }

    async fn retry(&mut self) {
        let failed = std::mem::take(&mut self.failed);
        let report = self.kernel.apply(&self.snapshot, &failed).await;
        self.note(report);
    }

    async fn audit(&mut self) {
        match self.kernel.audit(&self.snapshot).await {
            Ok(report) => {
                if report.repaired > 0 {
                    tracing::warn!("repaired {} nftables elements and chains that somebody changed", report.repaired);
                }
                self.note(report);
            }
            Err(error) => tracing::warn!("cannot read the kernel back: {error}"),
        }
    }

    fn note(&mut self, report: Report) {
        for (service, diagnostic) in report.diagnostics {
            tracing::warn!("Service {service}: {}: {}", diagnostic.field, diagnostic.message);
        }
        for (service, error) in report.refused {
            tracing::warn!("{service} is not forwarded as it should be: {error}; trying again in {RETRY_AFTER:?}");
            self.failed.services.insert(service);
        }
    }
}

/// Tells the cluster that this node answers DNS queries: an EndpointSlice of Service `kube-system/kube-dns`, which goes
/// when the Node does.
async fn publish_dns_endpoint(client: Client, config: &Config) {
    while let Err(error) = try_publish_dns_endpoint(client.clone(), config).await {
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
