//! The plan -> namespaces, a bridge and links between them, and all of it away again.
//!
//! Invariants: whatever is made here has a name from `plan`, so that `sweep` finds it after a `kill -9`; the host's own
//! namespace gains one link and the routes over it, or nothing.
//!
//! Deliberately not here: what happens inside a node's namespace, which is the agent's to set up.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net};
use nlink::netlink::addr::Ipv4Address;
use nlink::netlink::link::{BridgeLink, VethLink};
use nlink::netlink::namespace::{self, Netns};
use nlink::netlink::route::Ipv4Route;
use nlink::netlink::{Connection, Route};
use portolan_apiserver::NodeDialer;
use tokio::net::TcpSocket;

use super::plan::{BRIDGE, FABRIC_NAMESPACE, HOST_LINK, NAMESPACE_PREFIX, NodePlan, OUTSIDE_NAMESPACE, Plan, UPLINK};

pub(crate) struct Fabric {
    namespace: Netns,
    route: Connection<Route>,
    services: Ipv4Net,
}

impl Fabric {
    /// Makes the fabric's namespace, the bridge with the control address, and the machine outside.
    pub(crate) async fn create(plan: &Plan) -> Result<Self> {
        let namespace = Netns::create(FABRIC_NAMESPACE)
            .with_context(|| format!("cannot make the network namespace {FABRIC_NAMESPACE}"))?;
        let route = Connection::<Route>::new_in(&namespace)?;
        route.set_link_up("lo").await?;
        route.add_link(BridgeLink::new(BRIDGE)).await.context("cannot make the bridge between the nodes")?;
        let prefix = plan.node_network.prefix_len();
        route.add_address(Ipv4Address::new(BRIDGE, plan.control(), prefix)).await?;
        route.set_link_up(BRIDGE).await?;
        let fabric = Self { namespace, route, services: plan.service_cidr };
        fabric.attach(OUTSIDE_NAMESPACE, "outside", plan.outside(), prefix).await?;
        Ok(fabric)
    }

    /// Makes a node's namespace and joins it to the bridge.
    pub(crate) async fn add_node(&self, node: &NodePlan, prefix: u8) -> Result<()> {
        let route = self.attach(&node.namespace(), &node.name, node.address, prefix).await?;
        // What the node itself sends to a Service meets the rules only if it has a way to go; they send it another.
        let services = Ipv4Route::from_addr(self.services.network(), self.services.prefix_len()).dev(UPLINK);
        route.add_route(services).await.context("cannot route the Service addresses on a node")
    }

    /// Gives the way to change the new namespace's network.
    async fn attach(&self, namespace: &str, port: &str, address: Ipv4Addr, prefix: u8) -> Result<Connection<Route>> {
        let inside =
            Netns::create(namespace).with_context(|| format!("cannot make the network namespace {namespace}"))?;
        let cable = VethLink::new(port, UPLINK).peer_netns_fd(&inside).peer_address(hardware_address(address));
        self.route.add_link(cable).await?;
        self.route.enslave(port, BRIDGE).await?;
        self.route.set_link_up(port).await?;
        let route = Connection::<Route>::new_in(&inside)?;
        route.set_link_up("lo").await?;
        route.add_address(Ipv4Address::new(UPLINK, address, prefix)).await?;
        route.set_link_up(UPLINK).await?;
        Ok(route)
    }

    /// Pulls a node's cable, or plugs it in again.
    pub(crate) async fn set_port(&self, node: &NodePlan, up: bool) -> Result<()> {
        Ok(self.route.set_link_state(node.name.as_str(), up).await?)
    }

    /// A node that lost power keeps nothing in its network: its namespace is made anew.
    pub(crate) async fn renew_node(&self, node: &NodePlan, prefix: u8) -> Result<()> {
        self.route.del_link_if_exists(node.name.as_str()).await?;
        if namespace::exists(&node.namespace()) {
            namespace::delete(&node.namespace())?;
        }
        self.add_node(node, prefix).await
    }

    /// Runs `f` on a thread inside the fabric's namespace: sockets made there stay there.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(self.namespace.run(f)?)
    }

    /// Connects from within the fabric, for the API server to reach nodes with.
    pub(crate) fn dialer(&self) -> Result<NodeDialer> {
        let namespace = Arc::new(self.namespace.try_clone()?);
        Ok(Arc::new(move |address| {
            let namespace = namespace.clone();
            Box::pin(async move {
                let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
                let socket = namespace.socket(libc::AF_INET, kind, 0).map_err(io::Error::other)?;
                TcpSocket::from_std_stream(socket.into()).connect(address).await
            })
        }))
    }

    /// Gives the host its one link, with an address in the node network and a route to the Services through `via`.
    pub(crate) async fn link_host(&self, plan: &Plan, via: Ipv4Addr) -> Result<HostLink> {
        let host = Connection::<Route>::new()?;
        let current = Netns::current()?;
        self.route.add_link(VethLink::new("host", HOST_LINK).peer_netns_fd(&current)).await?;
        self.route.enslave("host", BRIDGE).await?;
        self.route.set_link_up("host").await?;
        host.add_address(Ipv4Address::new(HOST_LINK, plan.host_link(), plan.node_network.prefix_len())).await?;
        host.set_link_up(HOST_LINK).await?;
        let link = HostLink { route: host, services: plan.service_cidr };
        link.route_through(via).await?;
        Ok(link)
    }
}

/// A machine keeps its hardware address when it is switched off and on: its neighbours know it by that. Locally
/// administered (RFC 7042), and made of the one thing that is unique here.
fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x50, a, b, c, d]
}

/// The host's way in. Services are routed through one node at a time, as a router outside a cluster would.
pub(crate) struct HostLink {
    route: Connection<Route>,
    services: Ipv4Net,
}

impl HostLink {
    pub(crate) async fn route_through(&self, node: Ipv4Addr) -> Result<()> {
        let route = Ipv4Route::from_addr(self.services.network(), self.services.prefix_len()).gateway(node);
        self.route.replace_route(route).await.context("cannot route the Service addresses over the host link")
    }
}

/// Says whether the host can have its link, before anything is made.
///
/// # Errors
/// Names the route that is in the way, and the flag.
pub(crate) async fn check_host_routes(plan: &Plan) -> Result<()> {
    let host = Connection::<Route>::new()?;
    for (flag, range) in [("--node-network", plan.node_network), ("--service-cidr", plan.service_cidr)] {
        if let Some(taken) = overlapping_route(&host, range).await? {
            bail!(
                "this machine already has a route to {taken}, which {flag} {range} overlaps; \
                 choose another range with {flag}, or do without the link with --no-host-link"
            );
        }
    }
    Ok(())
}

/// A route of this namespace, other than a default route, that covers or lies within `range`.
async fn overlapping_route(route: &Connection<Route>, range: Ipv4Net) -> Result<Option<IpNet>> {
    for entry in route.get_routes().await? {
        let Some(IpAddr::V4(address)) = entry.destination().copied() else { continue };
        let Ok(net) = Ipv4Net::new(address, entry.dst_len()) else { continue };
        if net.prefix_len() > 0 && (net.contains(&range) || range.contains(&net)) {
            return Ok(Some(net.into()));
        }
    }
    Ok(None)
}

/// Removes every namespace and link of a cluster. Deleting a namespace deletes the links in it, and their peers.
/// Returns what was there.
pub(crate) async fn sweep() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    // The host's end goes first, so that no half of a pair is left if a namespace lingers.
    if Connection::<Route>::new()?.del_link_if_exists(HOST_LINK).await? {
        removed.push(format!("link {HOST_LINK}"));
    }
    for name in namespace::list()?.into_iter().filter(|name| name.starts_with(NAMESPACE_PREFIX)) {
        namespace::delete(&name).with_context(|| format!("cannot remove the network namespace {name}"))?;
        removed.push(format!("network namespace {name}"));
    }
    Ok(removed)
}
