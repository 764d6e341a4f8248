//! What `portolan trace` says of a node's kernel: the rules and elements that decide, word for word.
#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

mod lab;

use std::fmt::Write;

use expect_test::{Expect, expect};
use portolan_dataplane::trace::{Outcome, Packet, Table, Trace, walk};
use portolan_dataplane::{DataPlane, ProxyConfig};
use portolan_model::Snapshot;
use portolan_model::forwarding::Family;
use portolan_testkit::{Netns, require_root, skip};

/// The lab's objects on node-1, in a kernel.
fn node(config: ProxyConfig) -> Netns {
    let netns = Netns::new();
    netns.block_on(|| async {
        let mut snapshot = Snapshot::default();
        lab::apply(&mut snapshot, lab::OBJECTS);
        let report = DataPlane::open(config).await.unwrap().synced(&snapshot).await;
        assert!(report.refused.is_empty(), "{:?}", report.refused);
    });
    netns
}

/// From a machine by a link (`-` for none) to an address and port.
fn traced(netns: &Netns, flow: &str) -> Trace {
    let words: Vec<&str> = flow.split_whitespace().collect();
    let [source, link, protocol, destination] = words[..] else { panic!("not a flow: {flow}") };
    let destination: std::net::SocketAddr = destination.parse().unwrap();
    let packet = Packet {
        source: lab::address(source, destination.is_ipv6()),
        destination: destination.ip(),
        protocol: match protocol {
            "tcp" => 6,
            "udp" => 17,
            other => panic!("{other}"),
        },
        port: destination.port(),
        interface: (link != "-").then(|| link.to_owned()),
    };
    let family = Family::of(destination.ip());
    let table = netns.block_on(|| async { Table::read(family).await.unwrap() });
    walk(&table, &lab::addresses_of("node-1"), &packet)
}

fn check(netns: &Netns, flow: &str, expected: Expect) {
    let trace = traced(netns, flow);
    let mut text = trace.to_string();
    for end in &trace.ends {
        let share = format!("{}/{}", end.ways, end.of);
        let _ = match &end.outcome {
            Outcome::To { backend, masqueraded: None } => writeln!(text, "{share} {backend}"),
            Outcome::To { backend, masqueraded: Some(why) } => writeln!(text, "{share} {backend} masqueraded: {why}"),
            other => writeln!(text, "{share} {other:?}"),
        };
        let _ = end.element.iter().try_for_each(|element| writeln!(text, "    {element}"));
    }
    for unknown in &trace.unknown {
        let _ = writeln!(text, "unknown: {unknown}");
    }
    expected.assert_eq(&text);
}

#[test]
fn every_kind_of_decision_is_told() {
    require_root!();
    let node = node(lab::config());
    let check = |flow: &str, expected: Expect| check(&node, flow, expected);
    // A pod to a ClusterIP, which may lead back to it.
    check(
        "pod-a pod-a tcp 10.96.0.1:80",
        expect![[r#"
              nat prerouting
                nat-prerouting: jump dispatch
                dispatch: @services { 10.96.0.1 . tcp . 80 : 300:8 }
                  -> meta priority set 300:8, goto pick
                pick: @picks { 300:8 : goto pick-3-part-8 }
                  -> goto pick-3-part-8
                pick-3-part-8: @slots-8 { 10.96.0.1 . tcp . 80 . 0x00000000 : 10.244.1.2 . 8080 }
                  -> dnat to 10.244.1.2:8080
              filter prerouting
                filter-prerouting: jump after-nat
                after-nat: ct status dnat goto remember  # it found a backend
              nat postrouting
                source: @hairpin { 10.244.1.2 . 10.244.1.2 }
                  -> masquerade  # a pod that reached itself
            1/3 10.244.1.2:8080 masqueraded: a pod that reached itself
                @slots-8 { 10.96.0.1 . tcp . 80 . 0x00000000 : 10.244.1.2 . 8080 }
            1/3 10.244.1.3:8080
                @slots-8 { 10.96.0.1 . tcp . 80 . 0x00000001 : 10.244.1.3 . 8080 }
            1/3 10.244.2.2:8080
                @slots-8 { 10.96.0.1 . tcp . 80 . 0x00000002 : 10.244.2.2 . 8080 }
        "#]],
    );
    // From the node itself, and from beyond.
    check(
        "node-1 - tcp 10.96.0.42:80",
        expect![[r#"
              nat output
                nat-output: jump dispatch
                dispatch: @cluster-ips { 10.96.0.42 }, no @keeps-address { 10.203.0.11 }
                  -> jump mark-for-masquerade  # the answer must come back through this node
                mark-for-masquerade: meta mark set meta mark | 0x00004000  # the node's address will replace the source
                dispatch: @services { 10.96.0.42 . tcp . 80 : 100:e }
                  -> meta priority set 100:e, goto pick
                pick: @picks { 100:e : goto pick-1-part-14 }
                  -> goto pick-1-part-14
                pick-1-part-14: @slots-14 { 10.96.0.42 . tcp . 80 . 0x00000000 : 10.244.1.2 . 8080 }
                  -> dnat to 10.244.1.2:8080
              filter output
                filter-output: jump after-nat
                after-nat: ct status dnat goto remember  # it found a backend
              nat postrouting
                source: meta mark & 0x00004000 != 0x00000000 meta mark set meta mark & 0xffffbfff masquerade fully-random  # marked on the way in
            1/1 10.244.1.2:8080 masqueraded: the answer must come back through this node
                @slots-14 { 10.96.0.42 . tcp . 80 . 0x00000000 : 10.244.1.2 . 8080 }
        "#]],
    );
    check(
        "outside eth0 udp [fd00:96::1]:53",
        expect![[r#"
              nat prerouting
                nat-prerouting: jump dispatch
                dispatch: @cluster-ips { fd00:96::1 }, no @keeps-address { fd00:203::2 }
                  -> jump mark-for-masquerade  # the answer must come back through this node
                mark-for-masquerade: meta mark set meta mark | 0x00004000  # the node's address will replace the source
                dispatch: @services { fd00:96::1 . udp . 53 : 300:5 }
                  -> meta priority set 300:5, goto pick
                pick: @picks { 300:5 : goto pick-3-part-5 }
                  -> goto pick-3-part-5
                pick-3-part-5: @slots-5 { fd00:96::1 . udp . 53 . 0x00000000 : fd00:244:1::2 . 9090 }
                  -> dnat to [fd00:244:1::2]:9090
              filter prerouting
                filter-prerouting: jump after-nat
                after-nat: ct status dnat goto remember  # it found a backend
              nat postrouting
                source: meta mark & 0x00004000 != 0x00000000 meta mark set meta mark & 0xffffbfff masquerade fully-random  # marked on the way in
            1/3 [fd00:244:1::2]:9090 masqueraded: the answer must come back through this node
                @slots-5 { fd00:96::1 . udp . 53 . 0x00000000 : fd00:244:1::2 . 9090 }
            1/3 [fd00:244:1::3]:9090 masqueraded: the answer must come back through this node
                @slots-5 { fd00:96::1 . udp . 53 . 0x00000001 : fd00:244:1::3 . 9090 }
            1/3 [fd00:244:2::2]:9090 masqueraded: the answer must come back through this node
                @slots-5 { fd00:96::1 . udp . 53 . 0x00000002 : fd00:244:2::2 . 9090 }
        "#]],
    );
    // NodePorts, with the policy Cluster and with Local.
    check(
        "outside eth0 tcp 10.203.0.11:30080",
        expect![[r#"
              nat prerouting
                nat-prerouting: jump dispatch
                dispatch: @node-addresses { 10.203.0.11 }
                  -> jump node-ports
                node-ports: @node-port-masqueraded { tcp . 30080 }
                  -> jump mark-for-masquerade  # the backend may be another node's
                mark-for-masquerade: meta mark set meta mark | 0x00004000  # the node's address will replace the source
                node-ports: @node-port-services { tcp . 30080 : 300:1000 }
                  -> meta priority set 300:1000, goto pick
                pick: @picks { 300:1000 : goto node-port-pick-3 }
                  -> goto node-port-pick-3
                node-port-pick-3: @node-port-slots { tcp . 30080 . 0x00000000 : 10.244.1.2 . 8080 }
                  -> dnat to 10.244.1.2:8080
              filter prerouting
                filter-prerouting: jump after-nat
                after-nat: ct status dnat goto remember  # it found a backend
              nat postrouting
                source: meta mark & 0x00004000 != 0x00000000 meta mark set meta mark & 0xffffbfff masquerade fully-random  # marked on the way in
            1/3 10.244.1.2:8080 masqueraded: the backend may be another node's
                @node-port-slots { tcp . 30080 . 0x00000000 : 10.244.1.2 . 8080 }
            1/3 10.244.1.3:8080 masqueraded: the backend may be another node's
                @node-port-slots { tcp . 30080 . 0x00000001 : 10.244.1.3 . 8080 }
            1/3 10.244.2.2:8080 masqueraded: the backend may be another node's
                @node-port-slots { tcp . 30080 . 0x00000002 : 10.244.2.2 . 8080 }
        "#]],
    );
    check(
        "outside eth0 tcp 10.203.0.11:30002",
        expect![[r#"
              nat prerouting
                nat-prerouting: jump dispatch
                dispatch: @node-addresses { 10.203.0.11 }
                  -> jump node-ports
                node-ports: @node-port-local-only { tcp . 30002 }
                  -> jump node-port-external-local
                node-port-external-local: @node-port-outside { tcp . 30002 : 100:3000 }
                  -> meta priority set 100:3000, goto pick  # others by this node's own, with their address kept
                pick: @picks { 100:3000 : goto node-port-outside-pick-1 }
                  -> goto node-port-outside-pick-1
                node-port-outside-pick-1: @node-port-slots { tcp . 30002 . 0x00100000 : 10.244.1.2 . 8080 }
                  -> dnat to 10.244.1.2:8080
              filter prerouting
                filter-prerouting: jump after-nat
                after-nat: ct status dnat goto remember  # it found a backend
            1/1 10.244.1.2:8080
                @node-port-slots { tcp . 30002 . 0x00100000 : 10.244.1.2 . 8080 }
        "#]],
    );
    check(
        "outside eth0 tcp 10.203.0.11:30003",
        expect![[r#"
              nat prerouting
                nat-prerouting: jump dispatch
                dispatch: @node-addresses { 10.203.0.11 }
                  -> jump node-ports
                node-ports: @node-port-local-only { tcp . 30003 }
                  -> jump node-port-external-local
                node-port-external-local: drop  # it has none: another node should be asked
            1/1 Dropped
        "#]],
    );
    check(
        "pod-x pod-x tcp 10.203.0.11:30002",
        expect![[r#"
              nat prerouting
                nat-prerouting: jump dispatch
                dispatch: @node-addresses { 10.203.0.11 }
                  -> jump node-ports
                node-ports: @node-port-local-only { tcp . 30002 }
                  -> jump node-port-external-local
                node-port-external-local: @pod-networks { 10.244.0.0/16 }
                  -> return  # pods are served by any backend
                node-ports: @node-port-services { tcp . 30002 : 200:1000 }
                  -> meta priority set 200:1000, goto pick
                pick: @picks { 200:1000 : goto node-port-pick-2 }
                  -> goto node-port-pick-2
                node-port-pick-2: @node-port-slots { tcp . 30002 . 0x00000000 : 10.244.1.2 . 8080 }
                  -> dnat to 10.244.1.2:8080
              filter prerouting
                filter-prerouting: jump after-nat
                after-nat: ct status dnat goto remember  # it found a backend
            1/2 10.244.1.2:8080
                @node-port-slots { tcp . 30002 . 0x00000000 : 10.244.1.2 . 8080 }
            1/2 10.244.2.2:8080
                @node-port-slots { tcp . 30002 . 0x00000001 : 10.244.2.2 . 8080 }
        "#]],
    );
    // Source ranges.
    check(
        "outside eth0 tcp 10.203.0.214:80",
        expect![[r#"
              nat prerouting
                nat-prerouting: jump dispatch
                dispatch: @restricted { 10.203.0.214 . tcp . 80 }
                  -> jump admission  # loadBalancerSourceRanges
                admission: drop  # none of loadBalancerSourceRanges
            1/1 Dropped
        "#]],
    );
    check(
        "outside eth0 tcp 10.203.0.215:80",
        expect![[r#"
              nat prerouting
                nat-prerouting: jump dispatch
                dispatch: @restricted { 10.203.0.215 . tcp . 80 }
                  -> jump admission  # loadBalancerSourceRanges
                admission: @admitted-networks { 10.203.0.215 . tcp . 80 . 10.203.0.128 }
                  -> return
                dispatch: @masqueraded { 10.203.0.215 . tcp . 80 }
                  -> jump mark-for-masquerade  # the backend may be another node's
                mark-for-masquerade: meta mark set meta mark | 0x00004000  # the node's address will replace the source
                dispatch: @services { 10.203.0.215 . tcp . 80 : 100:6 }
                  -> meta priority set 100:6, goto pick
                pick: @picks { 100:6 : goto pick-1-part-6 }
                  -> goto pick-1-part-6
                pick-1-part-6: @slots-6 { 10.203.0.215 . tcp . 80 . 0x00000000 : 10.244.1.2 . 8080 }
                  -> dnat to 10.244.1.2:8080
              filter prerouting
                filter-prerouting: jump after-nat
                after-nat: ct status dnat goto remember  # it found a backend
              nat postrouting
                source: meta mark & 0x00004000 != 0x00000000 meta mark set meta mark & 0xffffbfff masquerade fully-random  # marked on the way in
            1/1 10.244.1.2:8080 masqueraded: the backend may be another node's
                @slots-6 { 10.203.0.215 . tcp . 80 . 0x00000000 : 10.244.1.2 . 8080 }
        "#]],
    );
    // No backend, no such port, no such Service, none of ours.
    check(
        "pod-x pod-x tcp 10.96.0.8:80",
        expect![[r#"
              nat prerouting
                nat-prerouting: jump dispatch
              filter prerouting
                filter-prerouting: jump after-nat
                after-nat: @refused { 10.96.0.8 . tcp . 80 }
                  -> goto refuse  # no backend anywhere
                refuse: reject with tcp reset  # a client shall know at once
            1/1 Refused
        "#]],
    );
    check(
        "pod-x pod-x tcp 10.96.0.1:81",
        expect![[r#"
              nat prerouting
                nat-prerouting: jump dispatch
              filter prerouting
                filter-prerouting: jump after-nat
                after-nat: @cluster-ips { 10.96.0.1 }
                  -> goto refuse  # no such port
                refuse: reject with tcp reset  # a client shall know at once
            1/1 Refused
        "#]],
    );
    check(
        "pod-x pod-x tcp 10.96.0.200:80",
        expect![[r#"
              nat prerouting
                nat-prerouting: jump dispatch
              filter prerouting
                filter-prerouting: jump after-nat
                after-nat: @service-cidrs { 10.96.0.0/16 }
                  -> drop  # no such Service
            1/1 Dropped
        "#]],
    );
    check(
        "pod-x pod-x tcp 10.203.0.2:80",
        expect![[r#"
          nat prerouting
            nat-prerouting: jump dispatch
          filter prerouting
            filter-prerouting: jump after-nat
        1/1 Passed
    "#]],
    );
    // Affinity, before any session.
    check(
        "pod-x pod-x tcp 10.96.0.44:80",
        expect![[r#"
              nat prerouting
                nat-prerouting: jump dispatch
                dispatch: @services { 10.96.0.44 . tcp . 80 : 300:4009 }
                  -> meta priority set 300:4009, goto pick
                pick: @picks { 300:4009 : goto sticky-pick-3-part-9 }
                  -> goto sticky-pick-3-part-9
                sticky-pick-3-part-9: @sessions { 10.96.0.44 . tcp . 80 : 9c01:349d }
                  -> meta priority set 9c01:349d
                sticky-pick-3-part-9: @sessions { 10.96.0.44 . tcp . 80 : 9c01:349d }
                  -> meta priority set 9c01:349d, delete @affinity { 10.244.1.9 . 9c01:349d }  # it is given another, or its first
                sticky-pick-3-part-9: @slots-9 { 10.96.0.44 . tcp . 80 . 0x00000000 : 10.244.1.2 . 8080 }
                  -> dnat to 10.244.1.2:8080
              filter prerouting
                filter-prerouting: jump after-nat
                after-nat: ct status dnat goto remember  # it found a backend
                remember: @sticky { 10.96.0.44 . tcp . 80 : 302a:8000 }
                  -> meta priority set 302a:8000, goto remember-for  # session affinity
                remember-for: @remembers { 302a:8000 : goto remember-10800 }
                  -> goto remember-10800
                remember-10800: @sessions { 10.96.0.44 . tcp . 80 : 9c01:349d }
                  -> meta priority set 9c01:349d, update @affinity { 10.244.1.9 . 9c01:349d timeout 10800s }
            1/3 10.244.1.2:8080
                @slots-9 { 10.96.0.44 . tcp . 80 . 0x00000000 : 10.244.1.2 . 8080 }
            1/3 10.244.1.3:8080
                @slots-9 { 10.96.0.44 . tcp . 80 . 0x00000001 : 10.244.1.3 . 8080 }
            1/3 10.244.2.2:8080
                @slots-9 { 10.96.0.44 . tcp . 80 . 0x00000002 : 10.244.2.2 . 8080 }
        "#]],
    );
}

#[test]
fn a_session_is_told_as_it_is_remembered() {
    require_root!();
    let node = node(lab::config());
    // As the map `sessions` has it, in the order of this host's bytes; and the number of the backend 10.244.1.3, in the other.
    let remember = "{ 10.244.1.9 . e390:ef0e timeout 1h : 0x78b59a56 }";
    let Some(done) = node.command("nft", &["add", "element", "ip", "portolan", "affinity", remember]) else {
        return skip("needs nft");
    };
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    check(
        &node,
        "pod-x pod-x tcp 10.96.0.43:80",
        expect![[r#"
              nat prerouting
                nat-prerouting: jump dispatch
                dispatch: @services { 10.96.0.43 . tcp . 80 : 300:4006 }
                  -> meta priority set 300:4006, goto pick
                pick: @picks { 300:4006 : goto sticky-pick-3-part-6 }
                  -> goto sticky-pick-3-part-6
                sticky-pick-3-part-6: @sessions { 10.96.0.43 . tcp . 80 : e390:ef0e }
                  -> meta priority set e390:ef0e
                sticky-pick-3-part-6: @affinity { 10.244.1.9 . e390:ef0e : 0x569ab578 }
                  -> meta priority set 569a:b578
                sticky-pick-3-part-6: @slots-6 { 10.96.0.43 . tcp . 80 . 0x569ab578 : 10.244.1.3 . 8080 }
                  -> dnat to 10.244.1.3:8080  # as last time
              filter prerouting
                filter-prerouting: jump after-nat
                after-nat: ct status dnat goto remember  # it found a backend
                remember: @sticky { 10.96.0.43 . tcp . 80 : 302a:8000 }
                  -> meta priority set 302a:8000, goto remember-for  # session affinity
                remember-for: @remembers { 302a:8000 : goto remember-10800 }
                  -> goto remember-10800
                remember-10800: @sessions { 10.96.0.43 . tcp . 80 : e390:ef0e }
                  -> meta priority set e390:ef0e, update @affinity { 10.244.1.9 . e390:ef0e timeout 10800s }
            1/1 10.244.1.3:8080
        "#]],
    );
}

#[test]
fn what_somebody_else_put_there_is_told_too() {
    require_root!();
    let node = node(lab::config());
    for (command, what) in [
        (
            &["delete", "element", "ip", "portolan", "slots-11", "{ 10.96.0.19 . tcp . 80 . 0x00000001 }"][..],
            "a lost slot",
        ),
        (&["insert", "rule", "ip", "portolan", "dispatch", "ip", "saddr", "10.244.1.9", "drop"], "a stray rule"),
        (&["insert", "rule", "ip", "portolan", "dispatch", "meta", "cpu", "0", "accept"], "a rule beyond a trace"),
    ] {
        let Some(done) = node.command("nft", command) else { return skip("needs nft") };
        assert!(done.status.success(), "{what}: {}", String::from_utf8_lossy(&done.stderr));
    }
    check(
        &node,
        "pod-b pod-b tcp 10.96.0.19:80",
        expect![[r#"
              nat prerouting
                nat-prerouting: jump dispatch
                dispatch: @services { 10.96.0.19 . tcp . 80 : 200:b }
                  -> meta priority set 200:b, goto pick
                pick: @picks { 200:b : goto pick-2-part-11 }
                  -> goto pick-2-part-11
                pick-2-part-11: @slots-11 { 10.96.0.19 . tcp . 80 . 0x00000000 : 10.244.1.2 . 8080 }
                  -> dnat to 10.244.1.2:8080
              filter prerouting
                filter-prerouting: jump after-nat
                after-nat: ct status dnat goto remember  # it found a backend
            1/2 10.244.1.2:8080
                @slots-11 { 10.96.0.19 . tcp . 80 . 0x00000000 : 10.244.1.2 . 8080 }
            1/2 Refused
            unknown: Meta { dreg: R0, key: Cpu }
        "#]],
    );
    check(
        &node,
        "pod-x pod-x tcp 10.96.0.1:80",
        expect![[r#"
              nat prerouting
                nat-prerouting: jump dispatch
                dispatch: ip saddr 10.244.1.9 drop
            1/1 Dropped
            unknown: Meta { dreg: R0, key: Cpu }
        "#]],
    );
}
