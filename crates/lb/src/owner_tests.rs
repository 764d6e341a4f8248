use portolan_model::{EndpointSlice, Event, SliceId};
use proptest::prelude::*;

use super::*;

fn node(name: &str) -> Node {
    Node {
        name: name.into(),
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        zone: None,
        ready: true,
        excluded_from_load_balancers: false,
        going_away: false,
    }
}

fn service(name: &str, policy: TrafficPolicy, addresses: &[IpAddr]) -> Service {
    Service {
        id: ServiceId::new("default", name),
        service_type: ServiceType::LoadBalancer,
        cluster_ips: Vec::new(),
        headless: false,
        external_ips: Vec::new(),
        load_balancer_ips: addresses.to_vec(),
        ports: Vec::new(),
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: policy,
        health_check_node_port: None,
        source_ranges: Vec::new(),
        publish_not_ready: false,
        foreign_proxy: false,
    }
}

/// One endpoint on each node: ready, or serving its last requests.
fn slice(service: &str, nodes: &[(&str, bool)]) -> EndpointSlice {
    let endpoint = |(node, ready): &(&str, bool)| Endpoint {
        address: IpAddr::from([10, 244, 0, 1]),
        ready: *ready,
        serving: true,
        terminating: !ready,
        node: Some((*node).into()),
        own: None,
        hints: None,
    };
    EndpointSlice {
        id: SliceId::new("default", service),
        headless: false,
        service: ServiceId::new("default", service),
        ports: Vec::new(),
        endpoints: nodes.iter().map(endpoint).collect(),
    }
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn snapshot(events: impl IntoIterator<Item = Event>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    events.into_iter().for_each(|event| {
        snapshot.apply(event);
    });
    snapshot
}

fn three_nodes() -> impl Iterator<Item = Event> {
    ["a", "b", "c"].into_iter().map(|name| Event::Node(node(name)))
}

#[test]
fn addresses_spread_over_the_nodes() {
    let all: Vec<IpAddr> = (1..=240).map(ip).collect();
    let snapshot = snapshot(three_nodes().chain([Event::Service(service("s", TrafficPolicy::Cluster, &all))]));
    let mut shares = BTreeMap::new();
    for address in all {
        *shares.entry(owner(&snapshot, address).unwrap()).or_insert(0) += 1;
    }
    assert!(shares.len() == 3 && shares.values().all(|share| (50..=110).contains(share)), "{shares:?}");
}

#[test]
fn only_nodes_that_may_are_chosen() {
    let mut events: Vec<Event> = three_nodes().collect();
    events.push(Event::Service(service("s", TrafficPolicy::Cluster, &[ip(1)])));
    let before = owner(&snapshot(events.clone()), ip(1)).unwrap();
    for spoil in [
        (|node| node.ready = false) as fn(&mut Node),
        |node| node.excluded_from_load_balancers = true,
        |node| node.going_away = true,
    ] {
        let mut spoilt = node(&before);
        spoil(&mut spoilt);
        let after = owner(&snapshot(events.iter().cloned().chain([Event::Node(spoilt)])), ip(1)).unwrap();
        assert_ne!(after, before);
    }
}

#[test]
fn local_services_are_answered_for_where_their_endpoints_are() {
    for (endpoints, expected) in [
        (&[("b", true)][..], Some("b")),
        (&[("b", true), ("c", false)], Some("b")),
        (&[("c", false)], Some("c")),
        (&[("gone", true)], None),
        (&[], None),
    ] {
        let local = service("s", TrafficPolicy::Local, &[ip(1)]);
        let events = [Event::Service(local), Event::Slice(slice("s", endpoints))];
        let snapshot = snapshot(three_nodes().chain(events));
        assert_eq!(owner(&snapshot, ip(1)).as_deref(), expected, "{endpoints:?}");
    }
}

#[test]
fn services_that_share_an_address_agree() {
    let shared = |endpoints: &[(&str, bool)]| {
        let events = [
            Event::Service(service("anywhere", TrafficPolicy::Cluster, &[ip(1)])),
            Event::Service(service("local", TrafficPolicy::Local, &[ip(1)])),
            Event::Service(service("nowhere", TrafficPolicy::Local, &[ip(1)])),
            Event::Slice(slice("local", endpoints)),
        ];
        owner(&snapshot(three_nodes().chain(events)), ip(1))
    };
    for node in ["a", "b", "c"] {
        assert_eq!(shared(&[(node, true)]).as_deref(), Some(node));
    }
    assert!(shared(&[]).is_some());
}

#[test]
fn addresses_that_are_not_ours_to_announce_have_no_owner() {
    let mut of_node = node("a");
    of_node.addresses = vec![ip(9)];
    let mut other_proxy = service("foreign", TrafficPolicy::Cluster, &[ip(2)]);
    other_proxy.foreign_proxy = true;
    let mut plain = service("plain", TrafficPolicy::Cluster, &[ip(3)]);
    plain.service_type = ServiceType::NodePort;
    let strange = [ip(9), IpAddr::from([127, 0, 0, 1]), IpAddr::from([224, 0, 0, 1]), IpAddr::from([0, 0, 0, 0])];
    let snapshot = snapshot([
        Event::Node(of_node),
        Event::Node(node("b")),
        Event::Service(service("strange", TrafficPolicy::Cluster, &strange)),
        Event::Service(other_proxy),
        Event::Service(plain),
    ]);
    for address in strange.into_iter().chain([ip(2), ip(3), ip(4)]) {
        assert_eq!(owner(&snapshot, address), None, "{address}");
    }
}

#[test]
fn the_choice_is_the_same_in_every_version() {
    let figures = [weight(ip(1), "a"), weight(ip(1), "b"), weight("2001:db8::1".parse().unwrap(), "a")];
    assert_eq!(figures, [3_184_212_843_286_543_175, 15_324_436_536_440_031_031, 10_807_844_571_315_327_678]);
}

/// Histories over few names, so that they meet.
fn history() -> impl Strategy<Value = Vec<Event>> {
    let name = prop::sample::select(vec!["a", "b", "c", "d"]);
    let policy = prop::sample::select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local]);
    let event = prop_oneof![
        (name.clone(), any::<bool>(), any::<bool>()).prop_map(|(name, ready, own)| {
            let addresses = if own { vec![ip(4)] } else { Vec::new() };
            Event::Node(Node { ready, addresses, ..node(name) })
        }),
        name.clone().prop_map(|name| Event::NodeGone(name.into())),
        (name.clone(), policy, prop::collection::vec(1u8..6, 0..3)).prop_map(|(name, policy, ips)| {
            Event::Service(service(name, policy, &ips.into_iter().map(ip).collect::<Vec<_>>()))
        }),
        name.clone().prop_map(|name| Event::ServiceGone(ServiceId::new("default", name))),
        (name.clone(), name, any::<bool>()).prop_map(|(of, on, ready)| Event::Slice(slice(of, &[(on, ready)]))),
    ];
    prop::collection::vec(event, 0..40)
}

proptest! {
    /// After any history, step by step: exactly the owner owns, and what a node is told adds up to what it owns.
    #[test]
    fn exactly_the_owner_owns(history in history()) {
        let mut snapshot = Snapshot::default();
        let names = ["a", "b", "c", "d"];
        let mut nodes: Vec<_> = names.map(|name| (name, Ownership::new(name), BTreeSet::new())).into();
        for event in history {
            let delta = snapshot.apply(event);
            for (_, ownership, told) in &mut nodes {
                let change = ownership.apply(&snapshot, &delta);
                for lost in change.lost { prop_assert!(told.remove(&lost)); }
                for gained in change.gained { prop_assert!(told.insert(gained)); }
            }
            for address in (1..6).map(ip) {
                let owner = owner(&snapshot, address);
                for (name, ownership, told) in &nodes {
                    prop_assert_eq!(ownership.owned().any(|owned| owned == address), owner.as_deref() == Some(*name));
                    prop_assert_eq!(told.contains(&address), owner.as_deref() == Some(*name));
                }
            }
        }
    }

    /// A node that goes moves its own addresses and no others; one that comes takes only for itself.
    #[test]
    fn addresses_move_only_from_and_to_the_node_that_changed(which in 0usize..3) {
        let all: Vec<IpAddr> = (1..=50).map(ip).collect();
        let all_three = snapshot(three_nodes().chain([Event::Service(service("s", TrafficPolicy::Cluster, &all))]));
        let changed = ["a", "b", "c"][which];
        let mut without = all_three.clone();
        without.apply(Event::NodeGone(changed.into()));
        for address in all {
            let (with, without) = (owner(&all_three, address), owner(&without, address));
            prop_assert!(with == without || with.as_deref() == Some(changed));
        }
    }
}
