//! What programming the kernel costs at a given size: cold, one endpoint replaced, the count changed, a Service added.
//!
//!     cargo run --release -p portolan-dataplane --example scale -- 10000 10
//!
//! Works in a network namespace of its own and needs root. Prints the realized state's size and percentiles.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::Context;
use portolan_dataplane::{DataPlane, LocalTraffic, ProxyConfig};
use portolan_model::{
    Delta, Endpoint, EndpointPort, EndpointSlice, Event, Protocol, Service, ServiceId, ServicePort, ServiceType,
    SliceId, Snapshot, TrafficPolicy,
};
use portolan_testkit::Netns;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u32>());
    let services = arguments.next().transpose().context("the number of Services")?.unwrap_or(10_000);
    let endpoints = arguments.next().transpose().context("the number of endpoints")?.unwrap_or(10);
    Netns::new().block_on(|| run(services, endpoints))
}

async fn run(services: u32, endpoints: u32) -> anyhow::Result<()> {
    let mut snapshot = Snapshot::default();
    let mut delta = Delta::default();
    for number in 0..services {
        delta.merge(snapshot.apply(Event::Service(service(number))));
        delta.merge(snapshot.apply(Event::Slice(slice(number, &(0..endpoints).collect::<Vec<_>>()))));
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

async fn change(plane: &mut DataPlane, snapshot: &mut Snapshot, events: Vec<Event>) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let mut delta = Delta::default();
    for event in events {
        delta.merge(snapshot.apply(event));
    }
    let report = plane.apply(snapshot, &delta).await;
    anyhow::ensure!(report.refused.is_empty(), "refused: {:?}", report.refused.first());
    Ok(start.elapsed())
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: p50 {:?}, p99 {:?}, max {:?}", at(50), at(99), at(100));
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
        traffic_distribution: None,
        selector: std::collections::BTreeMap::default(),
        foreign_proxy: false,
    }
}

fn slice(number: u32, endpoints: &[u32]) -> EndpointSlice {
    let endpoint = |index: &u32| Endpoint {
        address: IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + number * 256 + index)),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("other".into()),
        zone: None,
        hostname: None,
        pod: None,
        hint_zones: Vec::new(),
        hint_nodes: Vec::new(),
    };
    EndpointSlice {
        id: SliceId::new("bench", &format!("slice-{number}")),
        service: id(number),
        ports: vec![EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: Some(8080) }],
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}
