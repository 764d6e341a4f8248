//! `portolan trace SOURCE DESTINATION`: a node's kernel, and the API if it is at hand -> step by step, what becomes of
//! the first packet of a connection.
//!
//! Invariant: what is said of the packet comes from the kernel alone, read back as it is (`portolan_dataplane::trace`);
//! the API gives names, and what the kernel should have, which is compared.
//!
//! Deliberately not here: sending packets. `portolan explain` says what should be, and why, without a node.

mod ask;
mod cluster;
mod kernel;
mod render;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use portolan_dataplane::sock::{Leads, Lookup};
use portolan_dataplane::trace::{Outcome, Trace};

use self::ask::{Destination, Place, Source, Transport};
use self::cluster::Cluster;
use self::kernel::Question;
use crate::explain::usual_kubeconfig;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// An IP address, `node` for the node itself, or `pod/NAMESPACE/NAME`
    source: Source,
    /// ADDRESS:PORT or `svc/NAMESPACE/NAME:PORT`, with `/udp`, `/sctp` or `/icmp` behind it
    destination: Destination,
    /// The node of `portolan up` whose kernel is asked [default: the pod's, or the network namespace this runs in]
    #[arg(short, long)]
    node: Option<String>,
    /// [default: the kubeconfig of `portolan up`, or ~/.kube/config, if there is one]
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    #[arg(short, long, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Everything there is to say.
#[derive(Debug)]
struct Told {
    heading: String,
    node: Option<String>,
    source: IpAddr,
    interface: Option<String>,
    destination: SocketAddr,
    transport: Transport,
    service: Option<String>,
    /// What happens before a packet is sent.
    before: Vec<String>,
    trace: Trace,
    /// Whose addresses the backends are.
    names: BTreeMap<IpAddr, String>,
    /// Whether the kernel has what the API says; `None` where that is not known.
    agrees: Option<bool>,
    after: Vec<String>,
}

/// Traces one packet on stdout; the exit code says whether the kernel has what the API says, as far as that is known.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let named = matches!(arguments.source, Source::Pod { .. })
        || matches!(arguments.destination.to, Place::Service { .. })
        || arguments.kubeconfig.is_some();
    let (cluster, unheard) = match cluster(&arguments).await {
        Ok(cluster) => (cluster, None),
        Err(error) if named => return Err(error),
        Err(error) => (None, Some(format!("The API was not asked: {error:#}."))),
    };
    if named && cluster.is_none() {
        bail!("names need an API server to look them up; name its kubeconfig with --kubeconfig");
    }
    let told = trace(&arguments, cluster.as_ref(), unheard).await?;
    match arguments.output {
        Output::Text => print!("{}", render::text(&told)),
        Output::Json => println!("{:#}", render::json(&told)),
    }
    let in_order = told.agrees != Some(false) && told.trace.unknown.is_empty();
    Ok(if in_order { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `None` where no kubeconfig is named and the usual ones are not there.
async fn cluster(arguments: &Arguments) -> Result<Option<Cluster>> {
    let kubeconfig = match &arguments.kubeconfig {
        Some(named) => named.clone(),
        None => usual_kubeconfig(),
    };
    if arguments.kubeconfig.is_none() && !kubeconfig.exists() {
        return Ok(None);
    }
    let client = portolan_client::connect(&kubeconfig).await?;
    Cluster::fetch(&client).await.map(Some)
}

async fn trace(arguments: &Arguments, cluster: Option<&Cluster>, unheard: Option<String>) -> Result<Told> {
    let (mut node, sources) = match (&arguments.source, cluster) {
        (Source::Pod { namespace, name }, Some(cluster)) => cluster.pod(namespace, name)?,
        (Source::Address(address), cluster) => {
            (cluster.and_then(|cluster| cluster.who(*address)).and_then(|who| who.node), vec![*address])
        }
        _ => (None, Vec::new()),
    };
    // A node of another machine is no use; then it is the namespace this runs in.
    node = node.filter(|node| kernel::nodes().contains(node));
    let node = arguments.node.clone().or(node);
    let (destination, transport) = match (&arguments.destination.to, cluster) {
        (Place::Address(address), _) => (*address, arguments.destination.protocol.unwrap_or(Transport::Tcp)),
        (Place::Service { .. }, Some(cluster)) => cluster.resolve(&arguments.destination, sources.first().copied())?,
        (Place::Service { .. }, None) => bail!("a Service's name needs an API server to look it up"),
    };
    let source = sources.iter().copied().find(|source| source.is_ipv4() == destination.is_ipv4());
    if source.is_none() && !sources.is_empty() {
        bail!("the source has no address of the family of {}", destination.ip());
    }
    let question = Question { source, transport, destination: destination.ip(), port: destination.port() };
    let answer = kernel::ask(kernel::namespace(node.as_deref())?, question.clone()).await.context(match &node {
        Some(node) => format!("cannot ask the kernel of {node}"),
        None => "cannot ask the kernel here".to_owned(),
    })?;
    let backends: BTreeSet<SocketAddr> = (answer.trace.ends.iter())
        .filter_map(|end| if let Outcome::To { backend, .. } = end.outcome { Some(backend) } else { None })
        .collect();
    let name_of = |address| {
        let who = cluster?.who(address)?;
        Some(
            who.node
                .filter(|node| !who.name.ends_with(node.as_str()))
                .map_or(who.name.clone(), |node| format!("{} on {node}", who.name)),
        )
    };
    let names = backends.iter().filter_map(|to| Some((to.ip(), name_of(to.ip())?))).collect();
    // The node's name for the API: what runs here may be a node that `up` did not make.
    let here = node.clone().or_else(|| {
        let named = answer.own_addresses.iter().find_map(|own| cluster?.who(*own))?;
        named.node
    });
    let expected = here.as_deref().zip(cluster).and_then(|(name, cluster)| {
        let is_ours = kernel::nodes().iter().any(|node| node == name);
        let receiver = cluster::Receiver { name, own_addresses: &answer.own_addresses, is_ours };
        let question = Question { source: Some(answer.source), ..question };
        cluster.expect(&receiver, &question, answer.interface.as_deref())
    });
    let agrees = expected.as_ref().map(|expected| expected.admits(&answer.trace.ends));
    let service = expected.as_ref().and_then(|expected| Some(expected.service.as_ref()?.to_string()));
    let mut after: Vec<String> = unheard.into_iter().collect();
    if agrees == Some(false) {
        let should = expected.as_ref().map(cluster::Expected::text).unwrap_or_default();
        after.push(format!(
            "The API says otherwise: it should {should}. The node has not heard of it yet, or somebody changed \
             its table; its log says more."
        ));
    }
    let source_who = cluster.and_then(|cluster| cluster.who(answer.source));
    let whose = match (&answer.interface, &source_who) {
        (None, _) => Socket::Here,
        (Some(_), Some(who)) if who.unled => Socket::LeftOut,
        (Some(_), Some(who)) if who.node.is_some() && who.node == here => Socket::Here,
        (Some(_), None) if cluster.is_none() => Socket::Unknown,
        (Some(_), _) => Socket::Elsewhere,
    };
    let source_name = match (&arguments.source, name_of(answer.source)) {
        (Source::Node, _) => " (the node itself)".to_owned(),
        (_, Some(name)) => format!(" ({name})"),
        (_, None) => String::new(),
    };
    let to = if transport == Transport::Icmp { destination.ip().to_string() } else { destination.to_string() };
    if answer.interface.as_deref() == Some("") {
        after.push(format!("The node has no route to {}: no answer gets back there.", answer.source));
    }
    let link = answer.interface.as_ref().filter(|link| !link.is_empty());
    let by = link.map(|link| format!(", coming in by {link},")).unwrap_or_default();
    let service_name = service.as_ref().map(|service| format!(" (Service {service})")).unwrap_or_default();
    let on = here.as_ref().map(|node| format!("on {node}, ")).unwrap_or_default();
    Ok(Told {
        heading: format!("{on}{} from {}{source_name}{by} to {to}{service_name}", transport.name(), answer.source),
        node: here,
        source: answer.source,
        interface: answer.interface,
        destination,
        transport,
        service,
        before: answer.led.map(|led| before(&led, whose)).unwrap_or_default(),
        trace: answer.trace,
        names,
        agrees,
        after,
    })
}

/// Where the socket is that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    /// The node's own, or of one of its pods.
    Here,
    /// Of a pod that asked to be left out.
    LeftOut,
    Elsewhere,
    /// An address that nobody knows.
    Unknown,
}

/// What happens to the socket before it sends a packet.
fn before(led: &Lookup, whose: Socket) -> Vec<String> {
    let what = match &led.leads {
        Leads::Left => return vec![format!("Sockets are left to the rules below: {led}")],
        Leads::Refused => "refused when it connects".to_owned(),
        Leads::To(backends) => {
            let backends: Vec<_> = backends.iter().map(ToString::to_string).collect();
            let stays = if led.affinity.is_some() { ", and stays with it" } else { "" };
            format!("led to {} when it connects, under its own address{stays}", backends.join(" or "))
        }
    };
    let below = "the rules below are for what is sent otherwise.";
    match whose {
        Socket::Here => vec![format!("The socket is {what}; {below}"), led.to_string()],
        Socket::LeftOut => vec!["The pod's sockets are not led, as its annotation asks.".to_owned()],
        Socket::Elsewhere => Vec::new(),
        Socket::Unknown => {
            vec![format!("If this is a pod of the node, its socket is {what}; {below}"), led.to_string()]
        }
    }
}
