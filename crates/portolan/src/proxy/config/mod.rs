//! A KubeProxyConfiguration v1alpha1, or the flags that stand for one -> what this proxy goes by.
//!
//! Every field that kube-proxy knows is known here. One that means nothing here is named in a warning if it is set to
//! something; one that nobody knows is named in a warning too, as kube-proxy does after its strict reading failed; a
//! value that makes no sense is an error, and all errors are told at once. With a file, flags count for nothing, except
//! for a few; that is said.
//!
//! Invariant: pure; one reader for both ways, so that they cannot come to differ.
//!
//! Source: `k8s.io/kube-proxy/config/v1alpha1` types.go, and Kubernetes `pkg/proxy/apis/config` for defaults and what
//! is valid.

mod flags;
mod section;
mod write;

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portolan_dataplane::{LocalTraffic, NodePortAddresses};
use serde_json::{Map, Value};

pub(crate) use flags::Flags;
use section::{Findings, Section};
pub(super) use write::write;

use crate::plane::{HEALTHZ_PORT, METRICS_PORT};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";
/// Flags that count beside a configuration file.
const BESIDE_FILE: [&str; 2] = ["kubeconfig", "v"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Configuration {
    /// The name of the Node this runs on, if it is not the machine's.
    pub(crate) node_name: Option<String>,
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) masquerade_all: bool,
    pub(crate) masquerade_bit: u8,
    pub(crate) local: LocalTraffic,
    pub(crate) node_port_addresses: NodePortAddresses,
    pub(crate) sync_period: Duration,
    pub(crate) healthz: Option<SocketAddr>,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) must_bind: bool,
    pub(crate) conntrack: Conntrack,
    pub(crate) oom_score_adj: i64,
    pub(crate) warnings: Vec<String>,
}

/// What to ask of the kernel's connection tracking; `None` leaves a setting as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conntrack {
    pub(crate) max_per_core: Option<u32>,
    pub(crate) min: u32,
    pub(crate) tcp_established: Option<Duration>,
    pub(crate) tcp_close_wait: Option<Duration>,
    pub(crate) tcp_be_liberal: bool,
    pub(crate) udp: Option<Duration>,
    pub(crate) udp_stream: Option<Duration>,
}

/// What made a configuration unusable, in lines.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}", .0.join("\n  "))]
pub(crate) struct Unusable(Vec<String>);

/// Reads a configuration file's text. Flags beside it count only where it is silent.
///
/// # Errors
/// When the text is no KubeProxyConfiguration, or values in it make no sense.
pub(crate) fn from_file(text: &str, flags: &Flags) -> Result<Configuration, Unusable> {
    let document: Value = serde_saphyr::from_str(text)
        .map_err(|error| Unusable(vec![format!("it is neither YAML nor JSON: {error}")]))?;
    let Value::Object(mut fields) = document else {
        return Err(Unusable(vec![format!("it is no object; it has to begin with apiVersion: {API_VERSION}")]));
    };
    for (name, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        match fields.remove(name) {
            Some(Value::String(found)) if found == wanted => {}
            found => {
                let found = found.map_or_else(|| "missing".to_owned(), |found| found.to_string());
                return Err(Unusable(vec![format!("{name} is {found}; this reads {wanted}")]));
            }
        }
    }
    let findings = RefCell::new(Findings::default());
    let ignored = flags.given_besides(&BESIDE_FILE);
    if !ignored.is_empty() {
        let message = format!("with a configuration file, these flags have no effect: {}", ignored.join(", "));
        findings.borrow_mut().warnings.push(message);
    }
    let mut configuration = read(fields, &findings)?;
    if configuration.kubeconfig.is_none() {
        configuration.kubeconfig = flags.kubeconfig().map(PathBuf::from);
    }
    Ok(configuration)
}

/// Reads the flags by themselves.
///
/// # Errors
/// When values make no sense.
pub(crate) fn from_flags(flags: &Flags) -> Result<Configuration, Unusable> {
    let (settings, names) = flags.settings();
    read(settings, &RefCell::new(Findings { flags: names, ..Findings::default() }))
}

fn read(fields: Map<String, Value>, findings: &RefCell<Findings>) -> Result<Configuration, Unusable> {
    let mut root = Section::root(fields, findings);
    let mode = mode(&mut root);
    let (masquerade_all, masquerade_bit, sync_period) = rules(&mut root, mode);
    let local = local(&mut root);
    let node_port_addresses = node_port_addresses(&mut root);
    let (healthz, metrics) = servers(&mut root);
    let conntrack = conntrack(&mut root);
    let kubeconfig = connection(&mut root);
    let mut configuration = Configuration {
        node_name: root.text("hostnameOverride").map(|name| name.trim().to_lowercase()),
        kubeconfig,
        masquerade_all,
        masquerade_bit,
        local,
        node_port_addresses,
        sync_period,
        healthz,
        metrics,
        must_bind: root.boolean("bindAddressHardFail").unwrap_or_default(),
        conntrack,
        oom_score_adj: root.integer("oomScoreAdj", -1000..=1000).unwrap_or(-999),
        warnings: Vec::new(),
    };
    root.unused("logging", "RUST_LOG says what is logged, as in RUST_LOG=debug");
    root.unused("enableProfiling", "there are no profiles to serve");
    root.unused("showHiddenMetricsForVersion", "no metrics are hidden");
    root.unused("featureGates", "nothing here is behind a gate");
    root.unused("configSyncPeriod", "watches bring every change when it happens");
    root.unused("portRange", "it was for a mode that is gone");
    root.unused("winkernel", "this runs on Linux");
    root.unused("windowsRunAsService", "this runs on Linux");
    root.finish();
    let findings = findings.take();
    configuration.warnings = findings.warnings;
    if !findings.unknown.is_empty() {
        let message = format!("{KIND} has no such fields, and they are ignored: {}", findings.unknown.join(", "));
        configuration.warnings.push(message);
    }
    if findings.errors.is_empty() { Ok(configuration) } else { Err(Unusable(findings.errors)) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Unset,
    Nftables,
    /// One whose users have their settings under `iptables`.
    Other,
}

fn mode(root: &mut Section<'_>) -> Mode {
    let Some(mode) = root.text("mode") else { return Mode::Unset };
    match mode.as_str() {
        "nftables" => Mode::Nftables,
        "iptables" | "ipvs" => {
            let message = format!(
                "rules are nftables rules, whatever the mode is called; unlike with {mode}, NodePorts answer on the \
                 node's primary addresses unless nodePortAddresses says otherwise, and never on localhost"
            );
            root.warning("mode", message);
            Mode::Other
        }
        _ => {
            root.error("mode", format_args!("{mode:?} is none of nftables, iptables, ipvs"));
            Mode::Unset
        }
    }
}

/// Whether everything is masqueraded, by which bit, and how often the kernel is looked at.
fn rules(root: &mut Section<'_>, mode: Mode) -> (bool, u8, Duration) {
    const AT_ONCE: &str = "every change is written when it arrives";
    let mut read = |name: &'static str| {
        let mut section = root.section(name);
        let all = section.boolean("masqueradeAll");
        let bit = section.integer("masqueradeBit", 0..=31);
        let period = section.duration("syncPeriod").filter(|period| !period.is_zero());
        section.unused("minSyncPeriod", AT_ONCE);
        if name == "iptables" {
            if section.boolean("localhostNodePorts") == Some(true) {
                section.warning("localhostNodePorts", "does not apply: NodePorts do not answer on localhost");
            }
            section.unused("snatNodeInternalIP", "the node's address is that of the link a packet leaves by");
        }
        section.finish();
        (all, bit, period)
    };
    let (nftables, iptables) = (read("nftables"), read("iptables"));
    // The settings of the mode that was asked for count; where there is none, both do.
    let (first, second) = if mode == Mode::Other { (iptables, nftables) } else { (nftables, iptables) };
    let all = match mode {
        Mode::Nftables => first.0,
        Mode::Other => first.0.or(second.0),
        Mode::Unset => Some(first.0 == Some(true) || second.0 == Some(true)),
    };
    let bit = first.1.or(second.1).and_then(|bit| u8::try_from(bit).ok()).unwrap_or(14);
    let period = first.2.or(second.2).unwrap_or(Duration::from_secs(30));
    let mut ipvs = root.section("ipvs");
    for name in [
        "syncPeriod",
        "minSyncPeriod",
        "scheduler",
        "excludeCIDRs",
        "strictARP",
        "tcpTimeout",
        "tcpFinTimeout",
        "udpTimeout",
    ] {
        ipvs.unused(name, "there is no IPVS here");
    }
    ipvs.finish();
    (all.unwrap_or_default(), bit, period)
}

fn local(root: &mut Section<'_>) -> LocalTraffic {
    let cluster = match root.text("clusterCIDR") {
        Some(text) => cluster_networks(root, &text),
        None => Vec::new(),
    };
    let mode = root.text("detectLocalMode");
    let mut section = root.section("detectLocal");
    let bridge = section.text("bridgeInterface");
    let prefix = section.text("interfaceNamePrefix");
    let needed = |section: &Section<'_>, name: &str, value: Option<String>| {
        let longest = 15;
        match value {
            Some(value) if value.len() <= longest => value,
            Some(value) => {
                section
                    .error(name, format_args!("{value:?} is longer than a link's name can be, {longest} characters"));
                value
            }
            None => {
                section.error(name, "is empty, but the mode to detect local traffic needs it");
                String::new()
            }
        }
    };
    let local = match mode.as_deref() {
        None | Some("ClusterCIDR") => LocalTraffic::ClusterCidr(cluster),
        Some("NodeCIDR") => LocalTraffic::NodeCidr,
        Some("BridgeInterface") => LocalTraffic::BridgeInterface(needed(&section, "bridgeInterface", bridge)),
        Some("InterfaceNamePrefix") => {
            LocalTraffic::InterfaceNamePrefix(needed(&section, "interfaceNamePrefix", prefix))
        }
        Some(other) => {
            let message = format!("{other:?} is none of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix");
            root.error("detectLocalMode", message);
            LocalTraffic::ClusterCidr(cluster)
        }
    };
    section.finish();
    local
}

fn cluster_networks(root: &Section<'_>, text: &str) -> Vec<IpNet> {
    let networks: Option<Vec<IpNet>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
    match networks.as_deref() {
        Some([_]) => {}
        Some([a, b]) if a.addr().is_ipv4() != b.addr().is_ipv4() => {}
        _ => root.error(
            "clusterCIDR",
            format_args!(
                "{text:?} is neither one network nor one of each family, as in 10.244.0.0/16,fd00:10:244::/56"
            ),
        ),
    }
    networks.unwrap_or_default().iter().map(IpNet::trunc).collect()
}

fn node_port_addresses(root: &mut Section<'_>) -> NodePortAddresses {
    const NAME: &str = "nodePortAddresses";
    let texts = root.texts(NAME);
    if texts.is_empty() || texts == ["primary"] {
        return NodePortAddresses::OfNode;
    }
    let mut networks = Vec::new();
    for text in &texts {
        match (text.as_str(), text.parse::<IpNet>()) {
            (_, Ok(network)) => networks.push(network.trunc()),
            ("all", _) => networks.extend([IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]),
            ("localhost", _) => root.warning(NAME, "localhost does not apply: NodePorts do not answer there"),
            _ => root.error(
                NAME,
                format_args!("{text:?} is no network, as in 192.0.2.0/24; give networks, or all, or primary alone"),
            ),
        }
    }
    let everywhere = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
    for (all, family) in everywhere.into_iter().zip(["IPv4", "IPv6"]) {
        if !networks.iter().any(|network| network.addr().is_ipv4() == all.addr().is_ipv4()) {
            let message = format!(
                "names no {family} network, so NodePorts answer on all of the node's {family} addresses, as with \
                 kube-proxy; add one to say where"
            );
            root.warning(NAME, message);
            networks.push(all);
        }
    }
    NodePortAddresses::In(networks)
}

fn servers(root: &mut Section<'_>) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let family = match root.text("bindAddress").map(|text| (text.parse::<IpAddr>(), text)) {
        None => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        Some((Ok(address), _)) => {
            if !address.is_unspecified() {
                root.warning("bindAddress", "does not apply: a node's addresses are those of its Node object");
            }
            address
        }
        Some((Err(_), text)) => {
            root.error("bindAddress", format_args!("{text:?} is no IP address"));
            IpAddr::from(Ipv4Addr::UNSPECIFIED)
        }
    };
    let (everywhere, here): (IpAddr, IpAddr) = match family {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
    };
    let mut address = |name: &'static str, old: &'static str, default: IpAddr, port: u16| {
        // Of the port alone there is a flag, and no field.
        let port = match root.given_by_flag(old).then(|| root.integer(old, 0..=65_535)).flatten() {
            Some(0) => return None,
            Some(port) => u16::try_from(port).unwrap_or_default(),
            None => port,
        };
        match root.switchable_text(name) {
            None => Some(SocketAddr::new(default, port)),
            Some(None) => None,
            Some(Some(text)) => {
                let parsed = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
                let alone = text.trim_matches(['[', ']']).parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
                let found = parsed.or(alone);
                if found.is_none() {
                    root.error(name, format_args!("{text:?} is no address with a port, as in 0.0.0.0:{port}"));
                }
                found
            }
        }
    };
    (
        address("healthzBindAddress", "healthzPort", everywhere, HEALTHZ_PORT),
        address("metricsBindAddress", "metricsPort", here, METRICS_PORT),
    )
}

fn conntrack(root: &mut Section<'_>) -> Conntrack {
    let mut section = root.section("conntrack");
    let mut count = |name, default| {
        let count = section.integer(name, 0..=i64::from(i32::MAX));
        count.and_then(|count| u32::try_from(count).ok()).unwrap_or(default)
    };
    let (max_per_core, min) = (count("maxPerCore", 32 * 1024), count("min", 128 * 1024));
    let mut time = |name, default| Some(section.duration(name).unwrap_or(default)).filter(|time| !time.is_zero());
    let conntrack = Conntrack {
        max_per_core: Some(max_per_core).filter(|max| *max > 0),
        min,
        tcp_established: time("tcpEstablishedTimeout", Duration::from_secs(86_400)),
        tcp_close_wait: time("tcpCloseWaitTimeout", Duration::from_secs(3_600)),
        udp: time("udpTimeout", Duration::ZERO),
        udp_stream: time("udpStreamTimeout", Duration::ZERO),
        tcp_be_liberal: section.boolean("tcpBeLiberal").unwrap_or_default(),
    };
    section.finish();
    conntrack
}

fn connection(root: &mut Section<'_>) -> Option<PathBuf> {
    let mut section = root.section("clientConnection");
    let kubeconfig = section.text("kubeconfig").map(PathBuf::from);
    const FEW: &str = "there are a few watches and now and then an Event, nothing to hold back";
    section.unused("qps", FEW);
    section.unused("burst", FEW);
    const JSON: &str = "the API is spoken in JSON";
    section.unused("contentType", JSON);
    section.unused("acceptContentTypes", JSON);
    section.finish();
    kubeconfig
}

#[cfg(test)]
mod tests;
