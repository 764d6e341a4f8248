//! What a Service costs a connection: straight to the endpoint, by nftables, and by socket load balancing.
//!
//!     cargo run --release -p portolan-dataplane --example latency -- 1 10000
//!
//! For each number of Services, with ten endpoints each: a short connection (connect, one byte there and back, reset),
//! its rate from one client, and the throughput of one long connection. Rounds of the three ways alternate, each way
//! has a client of its own, and medians are printed: clients, server and everything else share this machine's
//! processors, so that only figures of one run can be compared. Works in namespaces and a cgroup of its own and needs
//! root.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use portolan_dataplane::sock::{SockConfig, SockLb};
use portolan_dataplane::{DataPlane, LocalTraffic, ProxyConfig};
use portolan_model::forwarding::{NodeContext, compile};
use portolan_model::{
    Delta, Endpoint, EndpointPort, EndpointSlice, Event, Protocol, Service, ServiceId, ServicePort, ServiceType,
    SliceId, Snapshot, TrafficPolicy,
};
use portolan_testkit::{Cgroup, Netns, cable, with_bpffs};
use socket2::{Domain, Socket, Type};

const ENDPOINTS: u8 = 10;
const ROUNDS: usize = 40;
const CONNECTIONS_A_ROUND: u32 = 500;
const RATE_ROUNDS: usize = 15;
const RATE_TIME: Duration = Duration::from_secs(1);
const BULK_ROUNDS: usize = 15;
const BULK_TIME: Duration = Duration::from_millis(700);
/// The node's side of every pod's link.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const SHORT: u16 = 8080;
const BULK: u16 = 8081;

fn main() -> anyhow::Result<()> {
    let sizes: Vec<u32> = std::env::args().skip(1).map(|size| size.parse()).collect::<Result<_, _>>()?;
    let cgroup = Cgroup::new().context("no cgroup v2 hierarchy is mounted")?;
    with_bpffs(|bpffs| {
        let bench = Bench::new(cgroup);
        for services in if sizes.is_empty() { vec![1, 10_000] } else { sizes } {
            let config = SockConfig::new(bench.cgroup.path().to_owned(), bpffs.join("portolan"));
            bench.node.block_on(|| bench.measure(services, config))?;
        }
        Ok(())
    })
}

/// How a client reaches the server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Nftables,
    Sockets,
}

impl Way {
    const ALL: [Self; 3] = [Self::Direct, Self::Nftables, Self::Sockets];

    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nftables => "nftables",
            Self::Sockets => "socket LB",
        }
    }

    /// Where a connection goes, for what the server does at one of its ports: the direct ones to each endpoint in turn,
    /// since the kernel keeps something about each.
    fn destination(self, port: u16, connection: u32) -> SocketAddr {
        let endpoint = u8::try_from(connection % u32::from(ENDPOINTS)).unwrap_or(0);
        let address = if self == Self::Direct { server_address(endpoint) } else { cluster_ip(0) };
        (address, port).into()
    }
}

struct Bench {
    cgroup: Cgroup,
    node: Netns,
    /// One a way, in the order of [`Way::ALL`].
    clients: [Netns; 3],
}

impl Bench {
    fn new(cgroup: Cgroup) -> Self {
        let node = Netns::new();
        node.forward();
        let server = pod(&node, "server", &(0..ENDPOINTS).map(server_address).collect::<Vec<_>>());
        let mut next = 1;
        let clients = Way::ALL.map(|_| {
            let client = pod(&node, &format!("client-{next}"), &[Ipv4Addr::new(10, 244, 1, next).into()]);
            next += 1;
            client
        });
        for (port, serve) in [(SHORT, answer as fn(TcpStream)), (BULK, swallow)] {
            let listener = server.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("listen"));
            std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
        }
        Self { cgroup, node, clients }
    }

    /// What the client of this way does, where it has to be for it.
    fn client<T: Send>(&self, way: Way, work: impl FnOnce() -> T + Send) -> T {
        let [direct, nftables, sockets] = &self.clients;
        match way {
            Way::Direct => direct.run(work),
            Way::Nftables => nftables.run(work),
            Way::Sockets => self.cgroup.run(|| sockets.run(work)),
        }
    }

    async fn measure(&self, services: u32, sockets: SockConfig) -> anyhow::Result<()> {
        let mut snapshot = Snapshot::default();
        let mut delta = Delta::default();
        for number in 0..services {
            delta.merge(snapshot.apply(Event::Service(service(number))));
            delta.merge(snapshot.apply(Event::Slice(slice(number))));
        }
        let config = ProxyConfig::new("node", LocalTraffic::ClusterCidr(vec!["10.244.0.0/16".parse()?]));
        let mut plane = DataPlane::open(config).await?;
        let report = plane.apply(&snapshot, &delta).await;
        ensure!(report.refused.is_empty(), "refused: {:?}", report.refused.first());
        let mut led = SockLb::open(&sockets)?;
        let node = NodeContext::default();
        let forwarding =
            snapshot.services().map(|service| (service.id.clone(), compile(&snapshot, &service.id, &node).0)).collect();
        let start = Instant::now();
        let refused = led.apply(&forwarding, &node);
        println!("{services} Services x {ENDPOINTS} endpoints; in the socket maps after {:?}", start.elapsed());
        ensure!(refused.is_empty(), "refused: {:?}", refused.first());

        let mut times: [Vec<Duration>; 3] = Default::default();
        for round in 0..ROUNDS {
            for way in in_turn(round) {
                times[way as usize].extend(self.client(way, || short(way, CONNECTIONS_A_ROUND))?);
            }
        }
        let mut rates: [Vec<f64>; 3] = Default::default();
        for round in 0..RATE_ROUNDS {
            for way in in_turn(round) {
                rates[way as usize].push(self.client(way, || rate(way))?);
            }
        }
        let mut bulks: [Vec<f64>; 3] = Default::default();
        for round in 0..BULK_ROUNDS {
            for way in in_turn(round) {
                bulks[way as usize].push(self.client(way, || bulk(way))?);
            }
        }
        // As many as were asked for, and nobody else's.
        let connections: u64 = led.led().iter().map(|(_, _, led)| led.connections).sum();
        ensure!(
            connections >= u64::try_from(ROUNDS)? * u64::from(CONNECTIONS_A_ROUND),
            "only {connections} connections were led"
        );

        println!("| way | p50 µs | p99 µs | p50 / direct | connections/s | / direct | GB/s | / direct |");
        println!("|---|---|---|---|---|---|---|---|");
        let micros = |way: Way, percent| percentile(&times[way as usize], percent).as_secs_f64() * 1e6;
        for way in Way::ALL {
            let (p50, p99) = (micros(way, 50), micros(way, 99));
            let (rate, bulk) = (median(&rates[way as usize]), median(&bulks[way as usize]));
            println!(
                "| {} | {p50:.1} | {p99:.1} | {:.3} | {rate:.0} | {:.3} | {bulk:.2} | {:.3} |",
                way.name(),
                p50 / micros(Way::Direct, 50),
                rate / median(&rates[0]),
                bulk / median(&bulks[0]),
            );
        }
        Ok(())
    }
}

/// All ways, another one first each time.
fn in_turn(round: usize) -> impl Iterator<Item = Way> {
    Way::ALL.into_iter().cycle().skip(round % 3).take(3)
}

/// A namespace with these addresses behind the node.
fn pod(node: &Netns, name: &str, addresses: &[IpAddr]) -> Netns {
    let pod = Netns::new();
    cable((node, name), (&pod, "eth0"));
    for address in addresses {
        pod.address("eth0", IpNet::from(*address));
        node.on_link(IpNet::from(*address), name);
    }
    node.address(name, IpNet::from(IpAddr::from(GATEWAY)));
    pod.on_link(IpNet::from(IpAddr::from(GATEWAY)), "eth0");
    pod.route("0.0.0.0/0".parse().expect("a network"), GATEWAY.into(), "eth0");
    pod
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Otherwise TIME_WAIT fills the client's ports within seconds.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

fn once(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = connect(to)?;
    let mut byte = [7];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)
}

fn short(way: Way, connections: u32) -> std::io::Result<Vec<Duration>> {
    let one = |connection| {
        let start = Instant::now();
        once(way.destination(SHORT, connection)).map(|()| start.elapsed())
    };
    (0..connections).map(one).collect()
}

/// Connections a second.
fn rate(way: Way) -> std::io::Result<f64> {
    let (start, mut connections) = (Instant::now(), 0u32);
    while start.elapsed() < RATE_TIME {
        once(way.destination(SHORT, connections))?;
        connections += 1;
    }
    Ok(f64::from(connections) / start.elapsed().as_secs_f64())
}

/// Gigabytes a second.
fn bulk(way: Way) -> std::io::Result<f64> {
    let mut stream = connect(way.destination(BULK, 0))?;
    let block = vec![0; 1 << 17];
    let (start, mut blocks) = (Instant::now(), 0u32);
    while start.elapsed() < BULK_TIME {
        stream.write_all(&block)?;
        blocks += 1;
    }
    Ok(f64::from(blocks) * block.len() as f64 / start.elapsed().as_secs_f64() / 1e9)
}

fn answer(mut stream: TcpStream) {
    let mut byte = [0];
    // A client that goes first has what it came for.
    let _ = stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte));
    let _ = stream.read(&mut byte);
}

fn swallow(mut stream: TcpStream) {
    let mut block = vec![0; 1 << 18];
    while stream.read(&mut block).is_ok_and(|read| read > 0) {}
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

fn median(figures: &[f64]) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn cluster_ip(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a60_0000 + number).into()
}

fn server_address(index: u8) -> IpAddr {
    Ipv4Addr::new(10, 244, 2, index + 1).into()
}

fn id(number: u32) -> ServiceId {
    ServiceId::new("bench", &format!("service-{number}"))
}

fn service(number: u32) -> Service {
    let port = |name: &str, port| ServicePort { name: name.into(), protocol: Protocol::Tcp, port, node_port: None };
    Service {
        id: id(number),
        service_type: ServiceType::ClusterIp,
        cluster_ips: vec![cluster_ip(number)],
        headless: false,
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        ports: match number {
            0 => vec![port("short", SHORT), port("bulk", BULK)],
            _ => vec![port("short", SHORT)],
        },
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        source_ranges: Vec::new(),
        publish_not_ready: false,
        foreign_proxy: false,
    }
}

fn slice(number: u32) -> EndpointSlice {
    let address = |index| match number {
        0 => server_address(index),
        _ => Ipv4Addr::from(0x0b00_0000 + number * 256 + u32::from(index)).into(),
    };
    let endpoint = |index| Endpoint {
        address: address(index),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("other".into()),
        own: None,
        hints: None,
    };
    let port = |name: &str, port| EndpointPort { name: name.into(), protocol: Protocol::Tcp, port: Some(port) };
    EndpointSlice {
        id: SliceId::new("bench", &format!("slice-{number}")),
        headless: false,
        service: id(number),
        ports: vec![port("short", SHORT), port("bulk", BULK)],
        endpoints: (0..ENDPOINTS).map(endpoint).collect(),
    }
}
