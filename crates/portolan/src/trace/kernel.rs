//! A node's kernel -> what a packet would meet in it.
//!
//! Reads only, and asks nobody's leave: the data plane on the node goes on meanwhile.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use nlink::netlink::namespace::{self, Netns};
use nlink::netlink::{Connection, Route};
use portolan_dataplane::sock::{Lookup, look_up};
use portolan_dataplane::trace::{Packet, Table, Trace, walk};
use portolan_model::forwarding::Family;

use super::ask::Transport;
use crate::sockets::PINS;
use crate::up::plan::NAMESPACE_PREFIX;

/// What is asked of a kernel.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// `None` for what the node sends itself.
    pub(super) source: Option<IpAddr>,
    pub(super) transport: Transport,
    pub(super) destination: IpAddr,
    pub(super) port: u16,
}

/// What a kernel says.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) source: IpAddr,
    /// By which the packet comes in; none for the node's own, and empty where the node has no route to the source.
    pub(super) interface: Option<String>,
    pub(super) own_addresses: Vec<IpAddr>,
    /// What the node's socket programs would do, were the source a socket that they see.
    pub(super) led: Option<Lookup>,
    pub(super) trace: Trace,
}

/// The network namespace of a node of `portolan up`, or the one this process is in.
///
/// # Errors
/// When there is none of that name, with those that there are.
pub(super) fn namespace(node: Option<&str>) -> Result<Netns> {
    let Some(node) = node else { return Netns::current().context("cannot tell the network namespace") };
    Netns::open(&format!("{NAMESPACE_PREFIX}{node}")).with_context(|| {
        let nodes = nodes().join(", ");
        let here = if nodes.is_empty() { "no node runs here".to_owned() } else { format!("there are: {nodes}") };
        format!("there is no node {node} on this machine; {here}")
    })
}

/// The nodes that run on this machine, and the machine beyond them.
pub(super) fn nodes() -> Vec<String> {
    let names = namespace::list().unwrap_or_default();
    let mut nodes: Vec<String> =
        names.iter().filter_map(|name| name.strip_prefix(NAMESPACE_PREFIX)).map(str::to_owned).collect();
    nodes.retain(|name| name != "fabric" && name != "outside");
    nodes.sort();
    nodes
}

/// Walks the packet in the namespace.
pub(super) async fn ask(namespace: Netns, question: Question) -> Result<Answer> {
    tokio::task::spawn_blocking(move || {
        let looked = namespace.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(look(&question))
        });
        let mut answer = looked.context("cannot enter the node's network namespace; this needs root")??;
        answer.led = led(&namespace, &question)?;
        Ok(answer)
    })
    .await
    .context("the thread that reads the kernel ended")?
}

/// What is pinned by the node is seen by the node's processes only, where it has a mount namespace of its own.
fn led(namespace: &Netns, question: &Question) -> Result<Option<Lookup>> {
    let Some(protocol) = question.transport.protocol() else { return Ok(None) };
    let places = namespace.pids().unwrap_or_default().into_iter().map(|pid| format!("/proc/{pid}/root{PINS}"));
    let Some(pins) = places.chain([PINS.to_owned()]).map(PathBuf::from).find(|pins| pins.exists()) else {
        return Ok(None);
    };
    let to = SocketAddr::new(question.destination, question.port);
    look_up(&pins, protocol, to).context("cannot read the maps of the node's socket programs")
}

async fn look(question: &Question) -> Result<Answer> {
    let table = Table::read(Family::of(question.destination)).await?;
    if table.is_empty() {
        let nodes = nodes();
        let hint = if nodes.is_empty() {
            "run this where `portolan proxy` or an agent runs".to_owned()
        } else {
            format!("name a node with --node: {}", nodes.join(", "))
        };
        bail!("nothing of Portolan forwards Services in this network namespace; {hint}");
    }
    let route = Connection::<Route>::new().context("cannot read addresses and routes")?;
    let addresses = route.get_addresses().await.context("cannot read the node's addresses")?;
    let own_addresses: Vec<IpAddr> = addresses.iter().filter_map(|address| address.address().copied()).collect();
    let is_own = |address: &IpAddr| own_addresses.contains(address);
    let (source, interface) = match question.source.filter(|source| !is_own(source)) {
        Some(source) => (source, Some(interface(&route, source).await?)),
        None => (
            match question.source {
                Some(source) => source,
                None => own_source(&route, &own_addresses, question.destination).await,
            },
            None,
        ),
    };
    let packet = Packet {
        source,
        destination: question.destination,
        protocol: question.transport.number(question.destination.is_ipv6()),
        port: question.port,
        interface: interface.clone(),
    };
    let trace = walk(&table, &own_addresses, &packet);
    Ok(Answer { source, interface, own_addresses, led: None, trace })
}

/// The link that the source is reached by, and so the one its packets come in by; empty where there is no route.
async fn interface(route: &Connection<Route>, source: IpAddr) -> Result<String> {
    let Ok(found) = route.lookup_route(source).await else { return Ok(String::new()) };
    let links = route.get_links().await.context("cannot read the node's links")?;
    let link = links.iter().find(|link| Some(link.ifindex()) == found.oif());
    Ok(link.and_then(|link| link.name()).unwrap_or_default().to_owned())
}

/// The address that the node would send from: the one that goes with the route, or its first.
async fn own_source(route: &Connection<Route>, own_addresses: &[IpAddr], destination: IpAddr) -> IpAddr {
    let found = route.lookup_route(destination).await.ok().and_then(|route| route.prefsrc().copied());
    let mut of_family = own_addresses.iter().filter(|own| own.is_ipv4() == destination.is_ipv4() && !own.is_loopback());
    found.or(of_family.next().copied()).unwrap_or(match destination {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    })
}
