//! A pod's link: a veth pair with one end in the pod and the other in the node, and the routes over it.
//!
//! The pod's end has its address alone (/32) and a default route to 169.254.1.1, which nobody has: a permanent
//! neighbour entry says that it is the node's end. So no pod depends on ARP, and all it sends is routed by the node.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::Ipv4Net;
use nlink::netlink::addr::Ipv4Address;
use nlink::netlink::link::VethLink;
use nlink::netlink::namespace::NetnsRef;
use nlink::netlink::neigh::Neighbor;
use nlink::netlink::route::Ipv4Route;
use nlink::netlink::types::route::RouteScope;
use nlink::netlink::{Connection, Route};

/// The next hop of every pod.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// What the pod calls its end.
const POD_LINK: &str = "eth0";

/// The node's end of the pod's link. Interface names have at most 15 characters.
pub(crate) fn link_name(pod_uid: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, pod_uid.as_bytes());
    digest.as_ref()[..6].iter().fold("pod".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

/// A locally administered address that follows from the pod's: the two ends differ in the second byte.
fn hardware_address(address: Ipv4Addr, node_end: bool) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, u8::from(node_end), a, b, c, d]
}

/// The network of this process's namespace, seen as a node's.
pub(crate) struct Network {
    route: Connection<Route>,
    node_ip: Option<Ipv4Addr>,
}

impl Network {
    /// Sets up the namespace for forwarding pods' traffic.
    pub(crate) fn open(node_ip: Option<Ipv4Addr>) -> Result<Self, nlink::Error> {
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            // Strict reverse-path filtering would drop answers that Service translation sends another way round.
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ] {
            let path = Path::new("/proc/sys").join(key);
            if fs::read_to_string(&path).is_ok_and(|now| now.trim() != value)
                && let Err(error) = fs::write(&path, value)
            {
                tracing::warn!(%key, %value, %error, "cannot set a sysctl; pods may be unreachable");
            }
        }
        Ok(Self { route: Connection::<Route>::new()?, node_ip })
    }

    /// Gives the namespace of process `pid` a link with `address`. A link of this name that is there already is
    /// replaced.
    pub(crate) async fn attach(&self, link: &str, pid: u32, address: Ipv4Addr) -> Result<(), nlink::Error> {
        let (pod_mac, node_mac) = (hardware_address(address, false), hardware_address(address, true));
        let pod = Connection::<Route>::new_in(NetnsRef::Pid(pid))?;
        let veth = || VethLink::new(link, POD_LINK).address(node_mac).peer_address(pod_mac).peer_netns_pid(pid);
        match self.route.add_link(veth()).await {
            Err(error) if error.is_already_exists() => {
                self.route.del_link_if_exists(link).await?;
                self.route.add_link(veth()).await?;
            }
            other => other?,
        }
        pod.set_link_up("lo").await?;
        pod.add_address(Ipv4Address::new(POD_LINK, address, 32)).await?;
        pod.set_link_up(POD_LINK).await?;
        pod.add_neighbor(Neighbor::new_v4(POD_LINK, GATEWAY).lladdr(node_mac).permanent()).await?;
        pod.add_route(Ipv4Route::new(GATEWAY, 32).dev(POD_LINK).scope(RouteScope::Link)).await?;
        pod.add_route(Ipv4Route::default_route().gateway(GATEWAY).dev(POD_LINK).onlink()).await?;
        self.route.set_link_up(link).await?;
        self.route.replace_neighbor(Neighbor::new_v4(link, address).lladdr(pod_mac).permanent()).await?;
        let mut to_pod = Ipv4Route::new(address, 32).dev(link).scope(RouteScope::Link);
        if let Some(node_ip) = self.node_ip {
            to_pod = to_pod.prefsrc(node_ip);
        }
        self.route.replace_route(to_pod).await
    }

    /// Takes a pod's link away, if it is there; its routes go with it.
    pub(crate) async fn detach(&self, link: &str) -> Result<(), nlink::Error> {
        self.route.del_link_if_exists(link).await.map(drop)
    }

    /// Sends what is for another node's pods to that node.
    pub(crate) async fn add_node_route(
        &self,
        net: Ipv4Net,
        gateway: Ipv4Addr,
        uplink: &str,
    ) -> Result<(), nlink::Error> {
        self.route.replace_route(Ipv4Route::new(net.network(), net.prefix_len()).gateway(gateway).dev(uplink)).await
    }

    pub(crate) async fn remove_node_route(&self, net: Ipv4Net) -> Result<(), nlink::Error> {
        self.route.del_route_v4_if_exists(net.network(), net.prefix_len()).await.map(drop)
    }

    /// Drops what is for our own pods but for none that exists, so that it does not wander back over the default
    /// route. A pod's own route is more specific.
    pub(crate) async fn fence(&self, net: Ipv4Net) -> Result<(), nlink::Error> {
        use nlink::netlink::types::route::RouteType;
        let route = Ipv4Route::new(net.network(), net.prefix_len()).route_type(RouteType::Unreachable);
        self.route.replace_route(route).await
    }
}
