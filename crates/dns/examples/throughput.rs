//! Queries a second on the loopback against an echo server on the same kind of sockets, and what changes cost.
//!
//! `cargo run --release -p portolan-dns --example throughput [SERVICES] [ENDPOINTS_EACH]`
//!
//! Load and server share the machine's cores, so that only the ratio of one run means anything.

#![allow(clippy::unwrap_used, reason = "a measurement stops at the first surprise")]

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use portolan_dns::{DnsServer, ServerConfig};
use portolan_model::{
    Delta, Endpoint, EndpointPort, EndpointSlice, Event, Protocol, Service, ServiceId, ServicePort, ServiceType,
    SliceId, Snapshot, TrafficPolicy,
};

const BATCH: usize = 64;
const RUN: Duration = Duration::from_secs(3);

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().unwrap());
    let (services, endpoints) = (arguments.next().unwrap_or(10_000), arguments.next().unwrap_or(10));
    let threads = std::thread::available_parallelism().unwrap().get().div_ceil(2);
    let listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    let config = ServerConfig { listen, domain: "cluster.local".into(), ttl: 5, upstreams: vec![], threads };
    let mut server = DnsServer::bind(config).unwrap();

    let mut snapshot = Snapshot::default();
    let mut delta = Delta::default();
    for index in 0..services {
        delta.merge(snapshot.apply(Event::Service(service(index))));
        delta.merge(snapshot.apply(Event::Slice(slice(index, endpoints, 0))));
    }
    let before = resident();
    let start = Instant::now();
    server.apply(&snapshot, &delta);
    server.synced();
    println!(
        "{services} Services x {endpoints} endpoints: loaded in {:.0?}; the zone takes {:.1} MB of {:.1} MB resident",
        start.elapsed(),
        resident() - before,
        resident()
    );

    let mut times: Vec<Duration> = (0..2_000u32)
        .map(|round| {
            let delta = snapshot.apply(Event::Slice(slice(round * 7 % services, endpoints, 1 + round)));
            let start = Instant::now();
            server.apply(&snapshot, &delta);
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("one endpoint changed: p50 {:.1?}, p99 {:.1?}", times[1_000], times[1_980]);

    let queries: Vec<Vec<u8>> = (0..services.min(10_000)).map(query).collect();
    let stop = AtomicBool::new(false);
    let echo = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    echo.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    // As the server's, or what is lost decides.
    socket2::SockRef::from(&echo).set_recv_buffer_size(1 << 20).unwrap();
    std::thread::scope(|scope| {
        let echo_address = echo.local_addr().unwrap();
        scope.spawn(|| echo_until(&echo, &stop));
        let (mut answered, mut echoed) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            answered.push(load(server.addresses()[0], &queries));
            echoed.push(load(echo_address, &queries));
        }
        stop.store(true, Ordering::Relaxed);
        answered.sort_by(f64::total_cmp);
        echoed.sort_by(f64::total_cmp);
        println!(
            "queries/s, median of 3: {:.0} answered by {threads} thread(s), {:.0} echoed by one: {:.0} %",
            answered[1],
            echoed[1],
            100.0 * answered[1] / echoed[1]
        );
    });
}

fn service(index: u32) -> Service {
    Service {
        id: ServiceId::new(&format!("ns-{}", index % 100), &format!("service-{index}")),
        service_type: ServiceType::ClusterIp,
        cluster_ips: vec![IpAddr::from(Ipv4Addr::from(0x0a60_0000 + index))],
        headless: false,
        external_ips: vec![],
        load_balancer_ips: vec![],
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        source_ranges: vec![],
        publish_not_ready: false,
        foreign_proxy: false,
    }
}

fn slice(index: u32, endpoints: u32, round: u32) -> EndpointSlice {
    let service = service(index).id;
    let endpoint = |last: u32| Endpoint {
        // The last one changes from round to round.
        address: IpAddr::from(Ipv4Addr::from(if last == 0 && round > 0 {
            0x0bf4_0000 + round
        } else {
            0x0af4_0000 + index * endpoints + last
        })),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        own: None,
        hints: None,
    };
    EndpointSlice {
        id: SliceId::new(&service.namespace, &service.name),
        headless: false,
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: Some(8080) }],
        endpoints: (0..endpoints).map(endpoint).collect(),
        service,
    }
}

fn query(index: u32) -> Vec<u8> {
    let id = service(index).id;
    let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [&*id.name, &*id.namespace, "svc", "cluster", "local"] {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

/// Replies a second to one client that always has a batch under way on each of its sockets.
fn load(server: SocketAddr, queries: &[Vec<u8>]) -> f64 {
    let sockets: Vec<UdpSocket> = (0..4).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
    for socket in &sockets {
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        socket.connect(server).unwrap();
    }
    let (start, mut received, mut next) = (Instant::now(), 0, 0);
    let mut batch = Batch::new();
    sockets.iter().for_each(|socket| batch.ask(socket, queries, BATCH, &mut next));
    while start.elapsed() < RUN {
        for socket in &sockets {
            let replies = batch.receive(socket);
            received += replies;
            // What was lost is replaced, or the client would starve itself.
            batch.ask(socket, queries, if replies == 0 { BATCH } else { replies }, &mut next);
        }
    }
    f64::from(u32::try_from(received).unwrap()) / start.elapsed().as_secs_f64()
}

fn echo_until(socket: &UdpSocket, stop: &AtomicBool) {
    let mut batch = Batch::new();
    while !stop.load(Ordering::Relaxed) {
        let received = batch.receive(socket);
        let messages = batch.buffers.iter().zip(&batch.lengths).map(|(buffer, length)| &buffer[..*length]);
        send(socket, &mut batch.sent, messages.take(received), &batch.peers);
    }
}

struct Batch {
    buffers: Vec<[u8; 512]>,
    lengths: Vec<usize>,
    peers: Vec<Option<SockaddrStorage>>,
    received: MultiHeaders<SockaddrStorage>,
    sent: MultiHeaders<SockaddrStorage>,
}

impl Batch {
    fn new() -> Self {
        let (received, sent) = (MultiHeaders::preallocate(BATCH, None), MultiHeaders::preallocate(BATCH, None));
        Self { buffers: vec![[0; 512]; BATCH], lengths: Vec::new(), peers: Vec::new(), received, sent }
    }

    /// Waits for one message and takes all that are there.
    fn receive(&mut self, socket: &UdpSocket) -> usize {
        self.lengths.clear();
        self.peers.clear();
        let mut slices: Vec<_> = self.buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let flags = MsgFlags::MSG_WAITFORONE;
        if let Ok(messages) = recvmmsg(socket.as_raw_fd(), &mut self.received, &mut slices, flags, None) {
            for message in messages {
                self.lengths.push(message.bytes);
                self.peers.push(message.address);
            }
        }
        self.lengths.len()
    }

    fn ask(&mut self, socket: &UdpSocket, queries: &[Vec<u8>], count: usize, next: &mut usize) {
        let messages = (0..count).map(|index| &queries[(*next + index) % queries.len()][..]);
        send(socket, &mut self.sent, messages, &[None; BATCH]);
        *next += count;
    }
}

/// To the peers, or to whom the socket is connected to.
fn send<'m>(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<SockaddrStorage>,
    messages: impl Iterator<Item = &'m [u8]>,
    peers: &[Option<SockaddrStorage>],
) {
    let slices: Vec<_> = messages.map(|message| [IoSlice::new(message)]).collect();
    let none: [ControlMessage<'_>; 0] = [];
    // What does not fit into the buffer is lost.
    let _ = sendmmsg(socket.as_raw_fd(), headers, &slices, peers, none, MsgFlags::empty());
}

/// Megabytes.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
}
