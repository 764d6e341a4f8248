//! Flows as data: each row of `flows/rows.txt` through the pure tracer, and through nftables with real packets.
#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

mod lab;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::Lab;
use portolan_dataplane::DataPlane;
use portolan_model::forwarding::{Flow, NodeContext, Outcome as Traced, Table, trace};
use portolan_model::{Protocol, Snapshot};
use portolan_testkit::{Dial, Outcome, Transport, require_root};

#[derive(Debug)]
struct Row {
    text: &'static str,
    source: &'static str,
    protocol: Protocol,
    destination: SocketAddr,
    expected: Expected,
}

#[derive(Debug, PartialEq, Eq)]
enum Expected {
    /// `pod:port`, with `~` behind it where the source address is replaced.
    Backends(BTreeSet<String>),
    Reject,
    Drop,
    Pass,
}

fn rows() -> Vec<Row> {
    let lines = include_str!("flows/rows.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|text| parse(text).unwrap_or_else(|| panic!("not a row: {text}"))).collect()
}

fn parse(text: &'static str) -> Option<Row> {
    let (flow, expected) = text.split_once("=>")?;
    let mut flow = flow.split_whitespace();
    let source = flow.next()?;
    let protocol = match flow.next()? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    let destination = flow.next()?.parse().ok()?;
    let expected = match expected.trim() {
        "reject" => Expected::Reject,
        "drop" => Expected::Drop,
        "pass" => Expected::Pass,
        backends => Expected::Backends(backends.split_whitespace().map(str::to_owned).collect()),
    };
    Some(Row { text, source, protocol, destination, expected })
}

fn backend(name: &str, port: u16, masqueraded: bool) -> String {
    format!("{name}:{port}{}", if masqueraded { "~" } else { "" })
}

#[test]
fn by_the_tracer() {
    let mut snapshot = Snapshot::default();
    lab::apply(&mut snapshot, lab::OBJECTS);
    let node = NodeContext::from_snapshot(&snapshot, "node-1", &lab::config().pod_networks);
    let table = Table::compile(&snapshot, &node);
    let mut wrong = Vec::new();
    for row in rows() {
        let source = lab::address(row.source, row.destination.is_ipv6());
        let flow =
            Flow { source, protocol: row.protocol, destination: row.destination.ip(), port: row.destination.port() };
        let traced = match trace(&table, &node, flow) {
            Traced::Forward { backends, .. } => Expected::Backends(
                backends
                    .iter()
                    .map(|p| backend(lab::machine_at(p.backend.address), p.backend.port, p.masquerade))
                    .collect(),
            ),
            Traced::Reject { .. } => Expected::Reject,
            Traced::Drop { .. } => Expected::Drop,
            Traced::Pass => Expected::Pass,
        };
        if traced != row.expected {
            wrong.push(format!("{}\n    traced {traced:?}", row.text));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn by_the_kernel() {
    require_root!();
    let lab = Lab::new();
    let mut snapshot = Snapshot::default();
    let delta = lab::apply(&mut snapshot, lab::OBJECTS);
    lab.at("node-1").block_on(|| async {
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        let report = projection.apply(&snapshot, &delta).await;
        assert!(report.refused.is_empty(), "{:?}", report.refused);
    });
    let mut wrong = Vec::new();
    for row in rows() {
        let observed = observe(&lab, &row);
        if observed != row.expected {
            wrong.push(format!("{}\n    observed {observed:?}", row.text));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Tries until every expected backend was seen, or often enough to tell that it will not be.
fn observe(lab: &Lab, row: &Row) -> Expected {
    let own = lab::address(row.source, row.destination.is_ipv6());
    let transport = if row.protocol == Protocol::Tcp { Transport::Tcp } else { Transport::Udp };
    let dial = Dial::new(transport, row.destination);
    let dial = if row.expected == Expected::Drop { dial.patience(Duration::from_millis(150)) } else { dial };
    let mut seen = BTreeSet::new();
    // A backend of three is missed by sixty tries once in a hundred thousand million.
    for _ in 0..60 {
        match lab.at(row.source).run(|| dial.once()) {
            Outcome::Answered { by, at, seen_as } => {
                seen.insert(backend(&by, at, is_masqueraded(row, own, seen_as)));
            }
            Outcome::Refused if row.expected == Expected::Pass => return Expected::Pass,
            Outcome::Refused => return Expected::Reject,
            Outcome::Silent => return Expected::Drop,
            Outcome::Unreachable => panic!("no route in the lab: {}", row.text),
        }
        if matches!(&row.expected, Expected::Backends(expected) if *expected == seen) {
            break;
        }
    }
    Expected::Backends(seen)
}

/// A client on the node itself has several addresses that could be its own; there, replaced or not is the same.
fn is_masqueraded(row: &Row, own: IpAddr, seen_as: IpAddr) -> bool {
    row.source == "node-1" || seen_as != own
}
