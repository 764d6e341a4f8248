//! Tests of what the zone says, section by section, and of what no query may do to it. The replies are read by
//! hickory-proto, which shares no code with ours.

use std::collections::BTreeSet;
use std::fmt::Write;

use expect_test::expect_file;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use portolan_model::{Delta, Event, ServiceId, SliceId, Snapshot, translate};
use proptest::prelude::*;

use crate::query::Transport;
use crate::respond::{Outcome, Sources, reply, reply_unanswered};
use crate::wire::{encode, kind, put_u16};
use crate::zone::Zone;

const OBJECTS: &str = include_str!("../tests/golden/spec/objects.yaml");

fn events(yaml: &str) -> Vec<Event> {
    let objects: Vec<serde_json::Value> = serde_saphyr::from_multiple(yaml).unwrap();
    let event = |object: serde_json::Value| match object["kind"].as_str().unwrap() {
        "Service" => {
            let service: core::Service = serde_json::from_value(object).unwrap();
            Event::Service(translate::service(&service).unwrap().0)
        }
        "EndpointSlice" => {
            let slice: discovery::EndpointSlice = serde_json::from_value(object).unwrap();
            Event::Slice(translate::endpoint_slice(&slice).unwrap().0)
        }
        other => panic!("no {other} in these fixtures"),
    };
    objects.into_iter().map(event).collect()
}

struct Lab {
    snapshot: Snapshot,
    zone: Zone,
    synced: bool,
    upstreams: bool,
}

impl Lab {
    fn new() -> Self {
        let zone = Zone::new("cluster.local", 5).unwrap();
        Self { snapshot: Snapshot::default(), zone, synced: true, upstreams: true }
    }

    fn with(yaml: &str) -> Self {
        let mut lab = Self::new();
        lab.apply(events(yaml));
        lab
    }

    fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> bool {
        let mut delta = Delta::default();
        events.into_iter().for_each(|event| delta.merge(self.snapshot.apply(event)));
        self.zone.apply(&self.snapshot, &delta, 1_000)
    }

    fn respond(&self, query: &[u8], transport: Transport) -> (Outcome, Vec<u8>) {
        let sources = Sources { zone: Some(&self.zone), synced: self.synced, upstreams: self.upstreams };
        let mut out = b"left over".to_vec();
        (sources.respond(query, transport, 0, &mut out), out)
    }

    /// The reply, read; panics if there is none.
    fn ask(&self, name: &str, kind: RecordType) -> Message {
        let (outcome, reply) = self.respond(&query(name, u16::from(kind), Some(1232)), Transport::Tcp);
        assert!(matches!(outcome, Outcome::Reply), "{name} {kind}: {outcome:?}");
        Message::from_vec(&reply).unwrap()
    }

    fn code(&self, name: &str, kind: RecordType) -> ResponseCode {
        self.ask(name, kind).metadata.response_code
    }
}

/// A query as any client writes it; `size` is for an OPT record.
fn query(name: &str, kind: u16, size: Option<u16>) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, u8::from(size.is_some())];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    if let Some(size) = size {
        message.extend_from_slice(&[0, 0, 41]);
        message.extend_from_slice(&size.to_be_bytes());
        message.extend_from_slice(&[0; 6]);
    }
    message
}

fn show(message: &Message) -> String {
    let mut out = format!("  {:?}", message.metadata.response_code);
    for (set, word) in [(message.metadata.authoritative, "aa"), (message.metadata.truncation, "tc")] {
        if set {
            write!(out, " {word}").unwrap();
        }
    }
    let sections =
        [("", &message.answers), ("authority ", &message.authorities), ("additional ", &message.additionals)];
    for (section, records) in sections {
        for Record { name, ttl, data, .. } in records {
            write!(out, "\n  {section}{name} {ttl} {} {data}", data.record_type()).unwrap();
        }
    }
    out
}

#[test]
fn the_specification() {
    use RecordType::{A, AAAA, ANY, CNAME, HINFO, MX, NS, PTR, SOA, SRV, TXT};
    let sections: &[(&str, &[(&str, RecordType)])] = &[
        (
            "apex, and names that only lead to others",
            &[
                ("cluster.local", SOA),
                ("cluster.local", NS),
                ("cluster.local", A),
                ("cluster.local", ANY),
                ("svc.cluster.local", A),
                ("pod.cluster.local", A),
                ("dns.cluster.local", A),
                ("ns.dns.cluster.local", A),
                ("ns.dns.cluster.local", AAAA),
                ("other.cluster.local", A),
                ("default.svc.cluster.local", A),
                ("default.pod.cluster.local", A),
                ("absent.svc.cluster.local", A),
                ("absent.pod.cluster.local", A),
                ("10-244-1-1.default.pod.cluster.local", A),
            ],
        ),
        (
            "2.2 version",
            &[
                ("dns-version.cluster.local", TXT),
                ("dns-version.cluster.local", A),
                ("x.dns-version.cluster.local", TXT),
            ],
        ),
        (
            "2.3.1 ClusterIP addresses",
            &[
                ("web.default.svc.cluster.local", A),
                ("WEB.Default.sVC.cluster.LOCAL", A),
                ("web.default.svc.cluster.local", AAAA),
                ("web.default.svc.cluster.local", MX),
                ("web.default.svc.cluster.local", ANY),
                ("lonely.default.svc.cluster.local", A),
                ("lonely.default.svc.cluster.local", AAAA),
                ("absent.default.svc.cluster.local", A),
                ("x.y.z.web.default.svc.cluster.local", A),
                ("pending.default.svc.cluster.local", A),
            ],
        ),
        (
            "2.3.2 ClusterIP ports",
            &[
                ("_http._tcp.web.default.svc.cluster.local", SRV),
                ("_HTTP._udp.web.default.svc.cluster.local", SRV),
                ("_https._tcp.web.default.svc.cluster.local", A),
                ("_tcp.web.default.svc.cluster.local", SRV),
                ("_sctp.web.default.svc.cluster.local", SRV),
                ("_ftp._tcp.web.default.svc.cluster.local", SRV),
                ("x._http._tcp.web.default.svc.cluster.local", SRV),
                ("web.default.svc.cluster.local", SRV),
                ("lonely.default.svc.cluster.local", SRV),
            ],
        ),
        (
            "2.3.3 ClusterIP reverse",
            &[
                ("1.1.96.10.in-addr.arpa", PTR),
                ("1.1.96.10.in-addr.arpa", A),
                ("1.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.d.f.ip6.arpa", PTR),
            ],
        ),
        (
            "2.4.1 headless addresses",
            &[
                ("db.data.svc.cluster.local", A),
                ("db.data.svc.cluster.local", AAAA),
                ("db-0.db.data.svc.cluster.local", A),
                ("db-0.db.data.svc.cluster.local", AAAA),
                ("db-1.db.data.svc.cluster.local", AAAA),
                ("db-2.db.data.svc.cluster.local", A),
                ("10-244-2-4.db.data.svc.cluster.local", A),
                ("fd24--24.db.data.svc.cluster.local", AAAA),
                ("10-244-2-1.db.data.svc.cluster.local", A),
                ("x.db-0.db.data.svc.cluster.local", A),
                ("starting.data.svc.cluster.local", A),
                ("gossip.data.svc.cluster.local", A),
                ("10-244-1-1.web.default.svc.cluster.local", A),
                ("named.web.default.svc.cluster.local", A),
                ("10-244-1-2.web.default.svc.cluster.local", A),
            ],
        ),
        (
            "2.4.2 headless ports",
            &[
                ("_sql._tcp.db.data.svc.cluster.local", SRV),
                ("_metrics._tcp.db.data.svc.cluster.local", SRV),
                ("_sql._tcp.starting.data.svc.cluster.local", SRV),
                ("gossip.data.svc.cluster.local", SRV),
            ],
        ),
        (
            "2.4.3 headless reverse",
            &[
                ("1.2.244.10.in-addr.arpa", PTR),
                ("4.2.244.10.in-addr.arpa", PTR),
                ("1.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.2.d.f.ip6.arpa", PTR),
            ],
        ),
        (
            "2.5 ExternalName",
            &[
                ("outside.default.svc.cluster.local", CNAME),
                ("outside.default.svc.cluster.local", SRV),
                ("outside.default.svc.cluster.local", ANY),
                ("_http._tcp.outside.default.svc.cluster.local", SRV),
                ("inside.default.svc.cluster.local", A),
                ("Inside-twice.default.svc.cluster.local", AAAA),
                ("inside.default.svc.cluster.local", HINFO),
                ("dangling.default.svc.cluster.local", A),
                ("round.default.svc.cluster.local", A),
                ("round.default.svc.cluster.local", CNAME),
                ("nowhere.default.svc.cluster.local", A),
                ("address.default.svc.cluster.local", A),
            ],
        ),
        (
            "nonsense harms nothing else",
            &[
                ("odd.default.svc.cluster.local", A),
                ("odd.default.svc.cluster.local", SRV),
                ("_fine._tcp.odd.default.svc.cluster.local", SRV),
                ("10-244-9-1.odd.default.svc.cluster.local", A),
            ],
        ),
    ];
    let lab = Lab::with(OBJECTS);
    let mut golden = String::new();
    for (section, questions) in sections {
        writeln!(golden, "# {section}").unwrap();
        for (name, kind) in *questions {
            writeln!(golden, "{name} {kind}\n{}", show(&lab.ask(name, *kind))).unwrap();
        }
        golden.push('\n');
    }
    expect_file!["../tests/golden/spec/answers.txt"].assert_eq(&golden);
}

#[test]
fn before_it_is_synced_the_zone_says_neither_yes_nor_no() {
    let mut lab = Lab::with(OBJECTS);
    lab.synced = false;
    for name in ["web.default.svc.cluster.local", "absent.default.svc.cluster.local", "1.1.96.10.in-addr.arpa"] {
        assert_eq!(lab.code(name, RecordType::A), ResponseCode::ServFail, "{name}");
    }
    assert!(matches!(lab.respond(&query("example.com", 1, None), Transport::Udp).0, Outcome::Forward(_)));
}

#[test]
fn what_is_elsewhere_is_forwarded_or_refused() {
    let mut lab = Lab::with(OBJECTS);
    let elsewhere =
        ["example.com", "xcluster.local", "9.9.9.10.in-addr.arpa", "in-addr.arpa", "1.1.096.10.in-addr.arpa", ""];
    for name in elsewhere {
        let (outcome, _) = lab.respond(&query(name, kind::PTR, None), Transport::Udp);
        assert!(matches!(outcome, Outcome::Forward(_)), "{name}");
    }
    lab.upstreams = false;
    for name in elsewhere {
        assert_eq!(lab.code(name, RecordType::PTR), ResponseCode::Refused, "{name}");
    }
    // Without anyone to ask the alias itself is still ours to tell.
    let alias = lab.ask("outside.default.svc.cluster.local", RecordType::A);
    assert_eq!(show(&alias), "  NoError aa\n  outside.default.svc.cluster.local. 5 CNAME www.example.com.");
}

#[test]
fn an_alias_is_answered_with_what_another_server_knows_of_its_target() {
    let lab = Lab::with(OBJECTS);
    let asked = query("Outside.default.svc.cluster.local", kind::A, Some(1232));
    let (Outcome::Forward(question), _) = lab.respond(&asked, Transport::Udp) else { panic!("not forwarded") };
    assert_eq!(&*question.name, encode("www.example.com").unwrap());
    let mut response = query("www.example.com", kind::A, None);
    response[2] = 0x81;
    put_u16(&mut response, 6, 1);
    response.extend_from_slice(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x01");
    let mut out = Vec::new();
    reply(&question, &response, &mut out);
    assert_eq!(
        show(&Message::from_vec(&out).unwrap()),
        "  NoError aa\n  Outside.default.svc.cluster.local. 5 CNAME www.example.com.\n  www.example.com. 60 A 192.0.2.1"
    );
    assert_eq!(out[..2], [0x12, 0x34]);
    reply_unanswered(&question, &mut out);
    assert_eq!(
        show(&Message::from_vec(&out).unwrap()),
        "  ServFail aa\n  Outside.default.svc.cluster.local. 5 CNAME www.example.com."
    );
}

#[test]
fn what_is_no_question_gets_its_code() {
    let lab = Lab::with(OBJECTS);
    let web = "web.default.svc.cluster.local";
    let changed = |at: usize, value: u8| {
        let mut message = query(web, kind::A, None);
        message[at] = value;
        message
    };
    let with_two_opts = {
        let mut message = query(web, kind::A, Some(1232));
        message[11] = 2;
        message.extend_from_slice(&[0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0]);
        message
    };
    let with_version_1 = {
        let mut message = query(web, kind::A, Some(1232));
        let version = message.len() - 5;
        message[version] = 1;
        message
    };
    let end = query(web, kind::A, None).len();
    let rows: Vec<(&str, Vec<u8>, Option<ResponseCode>)> = vec![
        ("a response", changed(2, 0x81), None),
        ("half a header", vec![0; 11], None),
        ("an update", changed(2, 0x28), Some(ResponseCode::NotImp)),
        ("no question", changed(5, 0), Some(ResponseCode::FormErr)),
        ("two questions", changed(5, 2), Some(ResponseCode::FormErr)),
        ("a compressed name", changed(12, 0xc0), Some(ResponseCode::FormErr)),
        ("a name that does not end", query(web, kind::A, None)[..20].to_vec(), Some(ResponseCode::FormErr)),
        ("records that are not there", changed(7, 1), Some(ResponseCode::FormErr)),
        ("class CHAOS", changed(end - 1, 3), Some(ResponseCode::Refused)),
        ("a zone transfer", query("cluster.local", kind::AXFR, None), Some(ResponseCode::Refused)),
        ("a meta-type", query(web, 250, None), Some(ResponseCode::NotImp)),
        ("two OPT records", with_two_opts, Some(ResponseCode::FormErr)),
        ("EDNS version 1", with_version_1, Some(ResponseCode::BADVERS)),
    ];
    for (what, message, expected) in rows {
        for transport in [Transport::Udp, Transport::Tcp] {
            let (outcome, reply) = lab.respond(&message, transport);
            let code = match outcome {
                Outcome::Silence => None,
                // As a number: 16 has two names.
                Outcome::Reply => Some(u16::from(Message::from_vec(&reply).unwrap().metadata.response_code)),
                Outcome::Forward(_) => panic!("{what} was forwarded"),
            };
            assert_eq!(code, expected.map(u16::from), "{what}");
        }
    }
}

/// A headless Service of `endpoints` endpoints.
fn many(endpoints: usize) -> Vec<Event> {
    let mut yaml =
        "kind: Service\nmetadata: {namespace: a, name: b}\nspec: {clusterIP: None}\n---\nkind: EndpointSlice\n\
        metadata: {namespace: a, name: b, labels: {kubernetes.io/service-name: b}}\naddressType: IPv4\n\
        ports: [{name: p, port: 1}]\nendpoints:\n"
            .to_owned();
    for index in 0..endpoints {
        writeln!(yaml, "- {{addresses: [10.1.{}.{}]}}", index / 250, index % 250).unwrap();
    }
    events(&yaml)
}

#[test]
fn a_reply_is_cut_to_what_the_client_takes() {
    let mut lab = Lab::new();
    lab.apply(many(3_000));
    for (size, transport, expected) in [
        (None, Transport::Udp, 29),
        (Some(100), Transport::Udp, 28),
        (Some(1_000), Transport::Udp, 59),
        (Some(4_096), Transport::Udp, 73),
        (None, Transport::Tcp, 3_000),
    ] {
        let (_, reply) = lab.respond(&query("b.a.svc.cluster.local", kind::A, size), transport);
        let message = Message::from_vec(&reply).unwrap();
        assert_eq!(message.metadata.truncation, transport == Transport::Udp);
        assert_eq!(message.answers.len(), expected, "{size:?}");
        assert_eq!(message.edns.is_some(), size.is_some());
    }
    let (_, reply) = lab.respond(&query("_p._tcp.b.a.svc.cluster.local", kind::SRV, Some(1232)), Transport::Udp);
    let message = Message::from_vec(&reply).unwrap();
    assert!(message.metadata.truncation && message.answers.len() > 10 && message.additionals.is_empty());
    assert!(reply.len() <= 1232);
}

#[test]
fn what_no_reply_can_hold_is_truncated_by_tcp_too_and_in_turns_told_whole() {
    let mut lab = Lab::new();
    lab.apply(many(5_000));
    lab.apply(events(
        "kind: Service\nmetadata: {namespace: a, name: alias}\nspec: {type: ExternalName, externalName: \
         b.a.svc.cluster.local}\n",
    ));
    let sources = Sources { zone: Some(&lab.zone), synced: true, upstreams: false };
    let mut told = BTreeSet::new();
    for turn in [0, 2_500] {
        let mut out = Vec::new();
        sources.respond(&query("b.a.svc.cluster.local", kind::A, Some(1232)), Transport::Tcp, turn, &mut out);
        let message = Message::from_vec(&out).unwrap();
        assert!(message.metadata.truncation && message.answers.len() > 4_000 && out.len() > 65_000, "{}", out.len());
        told.extend(message.answers.iter().map(|record| record.data.to_string()));
    }
    assert_eq!(told.len(), 5_000);
    let (_, reply) = lab.respond(&query("alias.a.svc.cluster.local", kind::A, None), Transport::Tcp);
    let message = Message::from_vec(&reply).unwrap();
    assert!(message.metadata.truncation, "{} answers", message.answers.len());
    assert!(message.answers.len() > 1_000 && reply.len() > 60_000, "{} answers", message.answers.len());
}

#[test]
fn clients_that_take_the_first_address_spread_over_all() {
    let mut lab = Lab::new();
    lab.apply(many(8));
    let sources = Sources { zone: Some(&lab.zone), synced: true, upstreams: false };
    let mut firsts = BTreeSet::new();
    for turn in 0..8 {
        let mut out = Vec::new();
        sources.respond(&query("b.a.svc.cluster.local", kind::A, None), Transport::Udp, turn, &mut out);
        match &Message::from_vec(&out).unwrap().answers[0].data {
            RData::A(address) => firsts.insert(address.0),
            other => panic!("{other}"),
        };
    }
    assert_eq!(firsts.len(), 8);
}

#[test]
fn what_goes_leaves_nothing_behind() {
    let mut lab = Lab::with(OBJECTS);
    assert!(!lab.apply(events(OBJECTS)), "nothing changed");
    let slice = SliceId::new("data", "gossip-1");
    assert!(lab.apply([Event::SliceGone(slice)]));
    assert_eq!(lab.code("gossip.data.svc.cluster.local", RecordType::A), ResponseCode::NXDomain);
    let pointers = lab.ask("1.2.244.10.in-addr.arpa", RecordType::PTR);
    assert_eq!(pointers.answers.len(), 1, "{}", show(&pointers));
    let services: Vec<ServiceId> = lab.snapshot.services().map(|service| service.id.clone()).collect();
    lab.apply(services.into_iter().map(Event::ServiceGone));
    for name in ["default.svc.cluster.local", "data.svc.cluster.local", "web.default.svc.cluster.local"] {
        assert_eq!(lab.code(name, RecordType::A), ResponseCode::NXDomain, "{name}");
    }
    assert!(lab.zone.is_empty());
}

#[test]
fn the_serial_grows_with_every_change_and_only_then() {
    let serial = |lab: &Lab| match &lab.ask("cluster.local", RecordType::SOA).answers[0].data {
        RData::SOA(soa) => soa.serial,
        other => panic!("{other}"),
    };
    let mut lab = Lab::with(OBJECTS);
    let first = serial(&lab);
    lab.apply(events(OBJECTS));
    assert_eq!(serial(&lab), first);
    lab.apply([Event::ServiceGone(ServiceId::new("default", "web"))]);
    assert_eq!(serial(&lab), first + 1, "within one second");
}

proptest! {
    /// Rows of random Services, applied one by one and all at once, give the same zone.
    #[test]
    fn the_zone_depends_on_the_snapshot_alone(order in Just(events(OBJECTS)).prop_shuffle(), gone in 0usize..6) {
        let (mut by_one, mut at_once) = (Lab::new(), Lab::new());
        let services: Vec<_> = order.iter().filter_map(|event| match event {
            Event::Service(service) => Some(service.id.clone()),
            _ => None,
        }).take(gone).collect();
        let history: Vec<Event> = order.into_iter().chain(services.into_iter().map(Event::ServiceGone)).collect();
        history.iter().cloned().for_each(|event| { by_one.apply([event]); });
        at_once.apply(history);
        prop_assert!(by_one.zone.holds_the_same_as(&at_once.zone));
    }

    #[test]
    fn no_bytes_panic_or_amplify(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let lab = Lab::with(OBJECTS);
        let (outcome, reply) = lab.respond(&bytes, Transport::Udp);
        if matches!(outcome, Outcome::Reply) {
            prop_assert!(reply.len() <= bytes.len() + 11);
            prop_assert!(Message::from_vec(&reply).is_ok());
        }
    }

    #[test]
    fn no_damage_to_a_query_panics_or_exceeds_the_limit(
        name in "(web|db|outside|round|_http\\._tcp\\.web|)\\.(default|data)\\.svc\\.cluster\\.local",
        kind in any::<u16>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let lab = Lab::with(OBJECTS);
        let mut message = query(&name, kind, Some(512));
        for (index, value) in damage {
            let index = index.index(message.len());
            message[index] = value;
        }
        let (outcome, reply) = lab.respond(&message, Transport::Udp);
        if matches!(outcome, Outcome::Reply) {
            prop_assert!(reply.len() <= 1232);
            prop_assert!(Message::from_vec(&reply).is_ok());
        }
    }

    /// What other servers send is no more to be trusted than what clients do.
    #[test]
    fn no_response_panics(response in proptest::collection::vec(any::<u8>(), 0..300), alias in any::<bool>()) {
        let lab = Lab::with(OBJECTS);
        let name = if alias { "outside.default.svc.cluster.local" } else { "example.com" };
        let (Outcome::Forward(question), _) = lab.respond(&query(name, 1, None), Transport::Udp) else { panic!() };
        let mut out = Vec::new();
        reply(&question, &response, &mut out);
        prop_assert!(out.len() <= 512);
    }
}
