//! What programming the kernel costs at a given size: cold, one endpoint replaced, the count changed, a Service added.
//!
//!     cargo run --release -p portolan-dataplane --example scale -- 10000 10
//!     cargo run --release -p portolan-dataplane --example scale -- 10000 10 ranges
//!
//! With `ranges`, each Service is a load balancer open to a network of its own. Works in a network namespace of its own
//! and needs root. Prints the realized state's size, percentiles, and how long the slowest changes waited for a
//! processor.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::Context;
use ipnet::Ipv4Net;
use portolan_dataplane::{DataPlane, LocalTraffic, ProxyConfig};
use portolan_model::{
    Delta, Endpoint, EndpointPort, EndpointSlice, Event, Names, Protocol, Service, ServiceId, ServicePort, ServiceType,
    SliceId, Snapshot, TrafficPolicy,
};
use portolan_testkit::Netns;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |what, usual| arguments.next().map_or(Ok(usual), |text| text.parse().context(what));
    let services = number("the number of Services", 10_000)?;
    let endpoints = number("the number of endpoints", 10)?;
    let ranges = arguments.next().is_some_and(|word| word == "ranges");
    let service = move |number| if ranges { restricted(number) } else { service(number) };
    Netns::new().block_on(|| run(services, endpoints, service))
}

async fn run(services: u32, endpoints: u32, service: impl Fn(u32) -> Service) -> anyhow::Result<()> {
    let mut snapshot = Snapshot::default();
    let mut delta = Delta::default();
    // As the feed does it.
    let mut names = Names::default();
    for number in 0..services {
        let slice = slice(number, &(0..endpoints).collect::<Vec<_>>());
        for mut event in [Event::Service(service(number)), Event::Slice(slice)] {
            names.share(&mut event);
            delta.merge(snapshot.apply(event));
        }
    }
    let mut plane = DataPlane::open(config()?).await?;
    println!("resident with the snapshot alone: {}", resident()?);
    let start = Instant::now();
    let report = plane.apply(&snapshot, &delta).await;
    anyhow::ensure!(report.refused.is_empty(), "refused: {:?}", report.refused.first());
    println!("{services} services x {endpoints} endpoints, cold: {:?}, {} elements", start.elapsed(), plane.elements());
    let start = Instant::now();
    plane.synced(&snapshot).await;
    println!("synced, nothing to change: {:?}; resident: {}", start.elapsed(), resident()?);

    let mut usual: Vec<u32> = (0..endpoints).collect();
    let mut replace = Vec::new();
    let mut count = Vec::new();
    let mut add = Vec::new();
    for round in 0..2_000 {
        let number = round * 7 % services;
        usual[0] = endpoints + round % 2;
        replace.push(change(&mut plane, &mut snapshot, vec![Event::Slice(slice(number, &usual))]).await?);
        let fewer = slice(number, &usual[..usual.len() - (round % 2) as usize]);
        count.push(change(&mut plane, &mut snapshot, vec![Event::Slice(fewer)]).await?);
        let new = services + round;
        let events = vec![Event::Service(service(new)), Event::Slice(slice(new, &usual))];
        add.push(change(&mut plane, &mut snapshot, events).await?);
    }
    for (what, times) in [("one endpoint replaced", replace), ("and one less", count), ("one Service added", add)] {
        print(what, times);
    }
    let start = Instant::now();
    plane.audit(&snapshot).await?;
    println!("audited, nothing changed by others: {:?}", start.elapsed());
    let start = Instant::now();
    drop(plane);
    let mut plane = DataPlane::open(config()?).await?;
    println!("read back after a restart: {:?}", start.elapsed());
    let report = plane.synced(&snapshot).await;
    println!("adopted: {:?}, {} operations; resident: {}", start.elapsed(), report.operations, resident()?);
    Ok(())
}

fn config() -> anyhow::Result<ProxyConfig> {
    Ok(ProxyConfig::new("node", LocalTraffic::ClusterCidr(vec!["10.0.0.0/8".parse()?])))
}

/// This process's memory, now and at most.
fn resident() -> anyhow::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    Ok(format!("{}, at most {}", field("VmRSS:"), field("VmHWM:")))
}

/// How long something took, and of that how long this thread waited for a processor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Took {
    all: Duration,
    waited: Duration,
}

/// How long this thread has waited for a processor since it began. Kernel `sched-stats.rst`, `/proc/<pid>/schedstat`.
fn waited() -> anyhow::Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split(' ').nth(1).context("no wait in schedstat")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

async fn change(plane: &mut DataPlane, snapshot: &mut Snapshot, events: Vec<Event>) -> anyhow::Result<Took> {
    let before = waited()?;
    let start = Instant::now();
    let mut delta = Delta::default();
    for event in events {
        delta.merge(snapshot.apply(event));
    }
    let report = plane.apply(snapshot, &delta).await;
    anyhow::ensure!(report.refused.is_empty(), "refused: {:?}", report.refused.first());
    let all = start.elapsed();
    Ok(Took { all, waited: waited()? - before })
}

fn print(what: &str, mut times: Vec<Took>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].all;
    println!("{what}: p50 {:?}, p99 {:?}, max {:?}", at(50), at(99), at(100));
    let mut rest: Vec<Duration> = times.iter().map(|took| took.all.saturating_sub(took.waited)).collect();
    rest.sort_unstable();
    let at = |percent: usize| rest[(rest.len() - 1) * percent / 100];
    println!("  without waiting for a processor: p50 {:?}, p99 {:?}, max {:?}", at(50), at(99), at(100));
}

fn id(number: u32) -> ServiceId {
    ServiceId::new("bench", &format!("service-{number}"))
}

fn service(number: u32) -> Service {
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    Service {
        id: id(number),
        service_type: ServiceType::ClusterIp,
        cluster_ips: vec![IpAddr::V4(Ipv4Addr::from(0x0a60_0000 + number))],
        headless: false,
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        ports: vec![port],
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        source_ranges: Vec::new(),
        publish_not_ready: false,
        foreign_proxy: false,
    }
}

/// A load balancer that a network of 256 addresses may use, each Service another.
fn restricted(number: u32) -> Service {
    let network = Ipv4Net::new_assert(Ipv4Addr::from(0xc000_0000 + number * 256), 24);
    Service {
        service_type: ServiceType::LoadBalancer,
        load_balancer_ips: vec![IpAddr::V4(Ipv4Addr::from(0x0ac0_0000 + number))],
        source_ranges: vec![network.into()],
        ..service(number)
    }
}

fn slice(number: u32, endpoints: &[u32]) -> EndpointSlice {
    let endpoint = |index: &u32| Endpoint {
        address: IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + number * 256 + index)),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("other".into()),
        own: None,
        hints: None,
    };
    EndpointSlice {
        id: SliceId::new("bench", &format!("slice-{number}")),
        headless: false,
        service: id(number),
        ports: vec![EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: Some(8080) }],
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}
