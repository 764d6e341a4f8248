//! The server on real sockets of the loopback: both transports, limits, forwarding and its failures, and dig.

#![allow(clippy::unwrap_used, reason = "a test's helpers")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use portolan_dns::{DnsServer, Error, ServerConfig};
use portolan_model::{Delta, Event, ServiceId, Snapshot, translate};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// A reply that has not come by then will not come.
const PATIENCE: Duration = Duration::from_secs(10);

fn service(yaml: &str) -> Event {
    let object: core::Service = serde_saphyr::from_str(yaml).unwrap();
    Event::Service(translate::service(&object).unwrap().0)
}

fn web() -> Event {
    service(
        "{metadata: {namespace: default, name: web}, spec: {clusterIP: 10.96.1.1, ports: [{name: http, port: 80}]}}",
    )
}

fn apply(server: &mut DnsServer, snapshot: &mut Snapshot, event: Event) {
    let delta = snapshot.apply(event);
    server.apply(snapshot, &delta);
}

fn bind(upstreams: &[SocketAddr]) -> DnsServer {
    let listen = vec![SocketAddr::new(LOOPBACK, 0)];
    let (domain, upstreams) = ("cluster.local".into(), upstreams.to_vec());
    DnsServer::bind(ServerConfig { listen, domain, ttl: 5, upstreams, threads: 2 }).unwrap()
}

fn synced(upstreams: &[SocketAddr], events: Vec<Event>) -> DnsServer {
    let mut server = bind(upstreams);
    let mut snapshot = Snapshot::default();
    events.into_iter().for_each(|event| apply(&mut server, &mut snapshot, event));
    server.synced();
    server
}

fn query(name: &str, kind: RecordType, size: Option<u16>) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(size) = size {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message
}

fn udp(server: SocketAddr, query: &Message) -> Message {
    let socket = UdpSocket::bind((LOOPBACK, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(&query.to_vec().unwrap(), server).unwrap();
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(reply.metadata.id, query.metadata.id);
    reply
}

fn code(server: &DnsServer, name: &str) -> ResponseCode {
    udp(server.addresses()[0], &query(name, RecordType::A, Some(1232))).metadata.response_code
}

fn framed(message: &Message) -> Vec<u8> {
    let bytes = message.to_vec().unwrap();
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat()
}

fn connect(server: &DnsServer) -> TcpStream {
    let stream = TcpStream::connect(server.addresses()[0]).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn read_framed(stream: &mut TcpStream) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes).unwrap();
    Message::from_vec(&bytes).unwrap()
}

/// Another server: answers as told, over UDP and TCP on one port, and counts the questions.
struct Upstream {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Upstream {
    fn new(answer: impl Fn(&Message, bool) -> Option<Message> + Send + Clone + 'static) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((LOOPBACK, 0)).unwrap();
            if let Ok(tcp) = std::net::TcpListener::bind(udp.local_addr().unwrap()) {
                break (udp, tcp);
            }
        };
        let (address, asked) = (udp.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let (count, over_udp) = (asked.clone(), answer.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
                count.fetch_add(1, Ordering::SeqCst);
                let query = Message::from_vec(&buffer[..length]).unwrap();
                if let Some(reply) = over_udp(&query, false) {
                    udp.send_to(&reply.to_vec().unwrap(), peer).unwrap();
                }
            }
        });
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = tcp.accept() {
                let query = read_framed(&mut stream);
                if let Some(reply) = answer(&query, true) {
                    stream.write_all(&framed(&reply)).unwrap();
                }
            }
        });
        Self { address, asked }
    }

    /// Knows one address of every name.
    fn knowing() -> Self {
        Self::new(|query, _| Some(response(query, ResponseCode::NoError, vec![a_record(query, 30, [192, 0, 2, 1])])))
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn response(query: &Message, code: ResponseCode, answers: Vec<Record>) -> Message {
    let mut message = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    message.metadata.response_code = code;
    message.add_query(query.queries[0].clone());
    message.add_answers(answers);
    message.edns = query.edns.clone();
    message
}

fn a_record(query: &Message, ttl: u32, octets: [u8; 4]) -> Record {
    Record::from_rdata(query.queries[0].name().clone(), ttl, RData::A(A(octets.into())))
}

#[test]
fn it_answers_over_udp_and_tcp_once_synced() {
    let mut server = bind(&[]);
    let mut snapshot = Snapshot::default();
    assert!(!server.ready());
    apply(&mut server, &mut snapshot, web());
    assert_eq!(code(&server, "web.default.svc.cluster.local"), ResponseCode::ServFail);
    server.synced();
    assert!(server.ready());
    let question = query("web.default.svc.cluster.local", RecordType::A, Some(1232));
    let reply = udp(server.addresses()[0], &question);
    assert_eq!(reply.answers[0].data, RData::A(A([10, 96, 1, 1].into())));
    assert!(!reply.metadata.recursion_available && reply.edns.is_some());
    let mut stream = connect(&server);
    stream.write_all(&framed(&question)).unwrap();
    assert_eq!(read_framed(&mut stream).answers, reply.answers);
    apply(&mut server, &mut snapshot, Event::ServiceGone(ServiceId::new("default", "web")));
    assert_eq!(code(&server, "web.default.svc.cluster.local"), ResponseCode::NXDomain);
    let address = server.addresses()[0];
    server.shutdown();
    // Nothing holds the port any more.
    UdpSocket::bind(address).unwrap();
}

#[test]
fn what_udp_cuts_off_tcp_gives_whole_and_questions_may_be_pipelined() {
    let mut slice = discovery::EndpointSlice { address_type: "IPv4".into(), ..Default::default() };
    slice.metadata.namespace = Some("default".into());
    slice.metadata.name = Some("many".into());
    slice.metadata.labels = Some([("kubernetes.io/service-name".into(), "many".into())].into());
    slice.endpoints = (0..500)
        .map(|index| discovery::Endpoint {
            addresses: vec![format!("10.1.{}.{}", index / 250, index % 250)],
            ..Default::default()
        })
        .collect();
    let headless = service("{metadata: {namespace: default, name: many}, spec: {clusterIP: None}}");
    let slice = Event::Slice(translate::endpoint_slice(&slice).unwrap().0);
    let server = synced(&[], vec![headless, slice, web()]);
    let question = query("many.default.svc.cluster.local", RecordType::A, None);
    let cut = udp(server.addresses()[0], &question);
    assert!(cut.metadata.truncation && cut.answers.len() < 32 && !cut.answers.is_empty());
    let mut stream = connect(&server);
    let other = query("web.default.svc.cluster.local", RecordType::A, None);
    stream.write_all(&[framed(&question), framed(&other), framed(&question)].concat()).unwrap();
    for expected in [500, 1, 500] {
        let reply = read_framed(&mut stream);
        assert_eq!((reply.answers.len(), reply.metadata.truncation), (expected, false));
    }
    // A client that writes byte by byte is understood, and one that is done is let go.
    for byte in framed(&other) {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(read_framed(&mut stream).answers.len(), 1);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_tcp_query_of_senseless_size_ends_the_connection() {
    let server = synced(&[], vec![]);
    for length in [0u16, 1, 5_000, u16::MAX] {
        let mut stream = connect(&server);
        stream.write_all(&length.to_be_bytes()).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0, "{length}");
    }
}

#[test]
fn idle_connections_do_not_keep_others_out() {
    let server = synced(&[], vec![web()]);
    // More than it takes at a time; the last ones wait to be accepted.
    let idle: Vec<TcpStream> = (0..150).map(|_| connect(&server)).collect();
    let mut stream = connect(&server);
    stream.write_all(&framed(&query("web.default.svc.cluster.local", RecordType::A, None))).unwrap();
    assert_eq!(read_framed(&mut stream).answers.len(), 1);
    // It is idle connections that made room, though the oldest still have time.
    let closed = idle.iter().filter(|stream| {
        let mut stream: &TcpStream = stream;
        stream.set_nonblocking(true).unwrap();
        matches!(stream.read(&mut [0; 1]), Ok(0))
    });
    assert!(closed.count() > 0);
}

#[test]
fn other_names_are_asked_for_elsewhere_and_remembered() {
    let upstream = Upstream::knowing();
    let server = synced(&[upstream.address], vec![web()]);
    for _ in 0..3 {
        let reply = udp(server.addresses()[0], &query("www.Example.com", RecordType::A, None));
        assert_eq!(reply.answers[0].data, RData::A(A([192, 0, 2, 1].into())));
        assert_eq!(reply.queries[0].name().to_ascii(), "www.Example.com.", "as the client spells it");
        assert!(reply.metadata.recursion_available && !reply.metadata.authoritative && reply.edns.is_none());
    }
    assert_eq!(upstream.asked(), 1);
    let mut stream = connect(&server);
    stream.write_all(&framed(&query("other.example.com", RecordType::A, Some(1232)))).unwrap();
    let reply = read_framed(&mut stream);
    assert!(reply.answers.len() == 1 && reply.edns.is_some());
}

#[test]
fn an_external_name_is_followed() {
    let upstream = Upstream::knowing();
    let alias =
        service("{metadata: {namespace: default, name: out}, spec: {type: ExternalName, externalName: example.com}}");
    let server = synced(&[upstream.address], vec![alias]);
    let reply = udp(server.addresses()[0], &query("out.default.svc.cluster.local", RecordType::A, Some(1232)));
    let kinds: Vec<_> = reply.answers.iter().map(Record::record_type).collect();
    assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
}

#[test]
fn a_truncated_reply_is_fetched_whole_by_tcp() {
    let upstream = Upstream::new(|query, tcp| {
        let texts = (0..20).map(|index| {
            let text = TXT::new(vec![format!("{index}-{}", "x".repeat(200))]);
            Record::from_rdata(query.queries[0].name().clone(), 30, RData::TXT(text))
        });
        let mut reply = response(query, ResponseCode::NoError, if tcp { texts.collect() } else { Vec::new() });
        reply.metadata.truncation = !tcp;
        Some(reply)
    });
    let server = synced(&[upstream.address], vec![]);
    let question = query("big.example.com", RecordType::TXT, Some(1232));
    let mut stream = connect(&server);
    stream.write_all(&framed(&question)).unwrap();
    let reply = read_framed(&mut stream);
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (20, false));
    // Our own client over UDP gets what fits and is told.
    let reply = udp(server.addresses()[0], &question);
    assert!(reply.metadata.truncation && reply.answers.len() == 5, "{}", reply.answers.len());
}

#[test]
fn negative_answers_are_remembered_as_long_as_they_say() {
    let upstream = Upstream::new(|query, _| {
        let mut reply = response(query, ResponseCode::NXDomain, vec![]);
        let name = Name::from_ascii("example.com").unwrap();
        let soa = SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, 60);
        reply.add_authority(Record::from_rdata(name, 60, RData::SOA(soa)));
        Some(reply)
    });
    let server = synced(&[upstream.address], vec![]);
    for _ in 0..2 {
        assert_eq!(code(&server, "absent.example.com"), ResponseCode::NXDomain);
    }
    assert_eq!(upstream.asked(), 1);
}

#[test]
fn a_dead_server_is_passed_over() {
    let dead = UdpSocket::bind((LOOPBACK, 0)).unwrap().local_addr().unwrap();
    let confused = Upstream::new(|query, _| Some(response(query, ResponseCode::ServFail, vec![])));
    let upstream = Upstream::knowing();
    let server = synced(&[dead, confused.address, upstream.address], vec![]);
    for name in ["a.example.com", "b.example.com"] {
        assert_eq!(code(&server, name), ResponseCode::NoError);
    }
    let only_dead = synced(&[dead], vec![]);
    assert_eq!(code(&only_dead, "a.example.com"), ResponseCode::ServFail);
}

#[test]
fn forged_replies_are_not_believed() {
    let upstream = Upstream::new(|query, _| {
        let mut wrong = response(query, ResponseCode::NoError, vec![a_record(query, 30, [203, 0, 113, 66])]);
        wrong.metadata.id = wrong.metadata.id.wrapping_add(1);
        Some(wrong)
    });
    let truthful = Upstream::knowing();
    let server = synced(&[upstream.address, truthful.address], vec![]);
    let reply = udp(server.addresses()[0], &query("a.example.com", RecordType::A, None));
    assert_eq!(reply.answers[0].data, RData::A(A([192, 0, 2, 1].into())));
}

#[test]
fn a_loop_is_refused_and_one_that_cannot_be_seen_ends() {
    let address = SocketAddr::new(LOOPBACK, 9);
    let config = ServerConfig {
        listen: vec![address],
        domain: "cluster.local".into(),
        ttl: 5,
        upstreams: vec![address],
        threads: 1,
    };
    assert!(matches!(DnsServer::bind(config), Err(Error::Loop { .. })));
    // The upstream passes every question on to the server that asked it.
    let (tell, hear) = std::sync::mpsc::channel::<SocketAddr>();
    let target = Arc::new(std::sync::Mutex::new((hear, None)));
    let upstream = Upstream::new(move |question, _| {
        let mut target = target.lock().unwrap();
        if target.1.is_none() {
            target.1 = Some(target.0.recv().unwrap());
        }
        let socket = UdpSocket::bind((LOOPBACK, 0)).unwrap();
        socket.send_to(&question.to_vec().unwrap(), target.1.unwrap()).unwrap();
        None
    });
    let server = synced(&[upstream.address], vec![]);
    tell.send(server.addresses()[0]).unwrap();
    assert_eq!(code(&server, "looping.example.com"), ResponseCode::ServFail);
    assert!(upstream.asked() <= 3, "each attempt once, not {}", upstream.asked());
}

#[test]
fn two_servers_do_not_share_an_address() {
    let server = synced(&[], vec![]);
    let listen = server.addresses().to_vec();
    let config = ServerConfig { listen, domain: "cluster.local".into(), ttl: 5, upstreams: vec![], threads: 1 };
    assert!(matches!(DnsServer::bind(config), Err(Error::Listen { .. })));
}

#[test]
fn a_flood_of_nonsense_leaves_it_answering() {
    let server = synced(&[], vec![web()]);
    let socket = UdpSocket::bind((LOOPBACK, 0)).unwrap();
    for round in 0..2_000usize {
        let nonsense: Vec<u8> =
            (0..round % 700).map(|index| u8::try_from((index * 31 + round * 7) % 256).unwrap()).collect();
        socket.send_to(&nonsense, server.addresses()[0]).unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    while code(&server, "web.default.svc.cluster.local") != ResponseCode::NoError {
        assert!(Instant::now() < deadline);
    }
    assert!(server.ready());
}

#[test]
fn the_stub_client_goes_through_the_search_list() {
    let upstream = Upstream::new(|query, _| Some(response(query, ResponseCode::NXDomain, vec![])));
    let server = synced(&[upstream.address], vec![web()]);
    let address = server.addresses()[0];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // A resolv.conf names no ports, so that the test speaks to the part below it.
        let resolver =
            portolan_dns::stub::Resolver::new("search default.svc.cluster.local svc.cluster.local\noptions ndots:5")
                .with_servers(vec![address]);
        for host in ["web", "web.default", "web.default.svc.cluster.local", "web.default.svc.cluster.local."] {
            assert_eq!(resolver.resolve(host).await.unwrap(), [IpAddr::from([10, 96, 1, 1])], "{host}");
        }
        assert_eq!(resolver.resolve("192.0.2.9").await.unwrap(), [IpAddr::from([192, 0, 2, 9])]);
        assert!(resolver.resolve("absent").await.is_err());
        assert!(resolver.resolve("a..b").await.is_err());
    });
}

#[test]
fn the_relay_passes_everything_on() {
    let upstream = Upstream::knowing();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let tcp = tokio::net::TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp_socket = tokio::net::UdpSocket::bind(address).await.unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let relay = portolan_dns::relay(udp_socket, tcp, vec![upstream.address], async { drop(stopped.await) });
        let client = tokio::task::spawn_blocking(move || {
            let reply = udp(address, &query("web.default.svc.cluster.local", RecordType::A, None));
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&framed(&query("b.example.com", RecordType::A, None))).unwrap();
            let counts = (reply.answers.len(), read_framed(&mut stream).answers.len());
            drop(stop);
            counts
        });
        let (outcome, counts) = tokio::join!(relay, client);
        outcome.unwrap();
        assert_eq!(counts.unwrap(), (1, 1));
    });
}

#[test]
fn dig_understands_it() {
    let server = synced(&[], vec![web()]);
    let port = server.addresses()[0].port().to_string();
    let dig = |arguments: &[&str]| {
        let output = Command::new("dig")
            .args(["@127.0.0.1", "-p", &port, "+noall", "+answer", "+comments"])
            .args(arguments)
            .output();
        match output {
            Ok(output) => Some(String::from_utf8(output.stdout).unwrap()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => panic!("run dig: {error}"),
        }
    };
    let Some(plain) = dig(&["web.default.svc.cluster.local"]) else {
        portolan_testkit::skip("there is no dig (Debian package bind9-dnsutils)");
        return;
    };
    assert!(plain.contains("10.96.1.1") && plain.contains("status: NOERROR"), "{plain}");
    assert!(!plain.contains("WARNING: Message parser reports malformed"), "{plain}");
    for (arguments, expected) in [
        (&["+tcp", "_http._tcp.web.default.svc.cluster.local", "SRV"][..], "0 100 80 web.default.svc.cluster.local."),
        (&["-x", "10.96.1.1"], "web.default.svc.cluster.local."),
        (&["absent.default.svc.cluster.local"], "status: NXDOMAIN"),
        (&["cluster.local", "SOA"], "hostmaster.cluster.local."),
        (&["web.default.svc.cluster.local", "ANY"], "RFC8482"),
        (&["example.com"], "status: REFUSED"),
    ] {
        let output = dig(arguments).unwrap();
        assert!(output.contains(expected) && !output.contains("malformed"), "{arguments:?}: {output}");
    }
}

#[test]
fn a_change_is_answered_for_at_once() {
    let mut server = bind(&[]);
    let mut snapshot = Snapshot::default();
    server.synced();
    for round in 0..100u8 {
        let event = service(&format!("{{metadata: {{namespace: a, name: s}}, spec: {{clusterIP: 10.96.2.{round}}}}}"));
        apply(&mut server, &mut snapshot, event);
        let reply = udp(server.addresses()[0], &query("s.a.svc.cluster.local", RecordType::A, None));
        assert_eq!(reply.answers[0].data, RData::A(A([10, 96, 2, round].into())));
    }
    server.apply(&snapshot, &Delta::default());
}
