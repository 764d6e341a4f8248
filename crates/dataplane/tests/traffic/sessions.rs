//! Clients that are remembered: where, for how long, and until when.

use std::time::Duration;

use nlink::netlink::{Connection, Nftables};
use portolan_dataplane::DataPlane;
use portolan_model::Snapshot;
use portolan_model::forwarding::Family;
use portolan_testkit::{Dial, Netns, eventually, require_root, skip};

use super::{CART, address, cart_slice, share};
use crate::lab::{self, Lab};

/// The clients that `node` remembers, in nft's words; `None` where there is no nft.
fn listed(node: &Netns) -> Option<String> {
    let listed = node.command("nft", &["list", "map", "ip", "portolan", "affinity"])?;
    Some(String::from_utf8(listed.stdout).unwrap())
}

#[test]
fn a_session_stays_until_its_backend_goes() {
    require_root!();
    let lab = Lab::new();
    let (node, client) = (lab.at("node-1"), lab.at("pod-x"));
    node.block_on(|| async {
        let mut snapshot = Snapshot::default();
        let mut delta = lab::apply(&mut snapshot, lab::OBJECTS);
        delta.merge(lab::apply(&mut snapshot, CART));
        delta.merge(lab::apply(&mut snapshot, &cart_slice(&["pod-a", "pod-b"])));
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        projection.apply(&snapshot, &delta).await;

        for (from, dial) in [
            (client, Dial::tcp(address("10.96.1.1:80"))),
            (client, Dial::udp(address("10.96.1.1:53"))),
            (client, Dial::tcp(address("10.203.0.11:30100"))),
            (lab.at("outside"), Dial::tcp(address("10.203.0.11:30100"))),
            (node, Dial::tcp(address("10.96.1.1:80"))),
        ] {
            let delta = lab::apply(&mut snapshot, &cart_slice(&["pod-a", "pod-b"]));
            projection.apply(&snapshot, &delta).await;
            let first = share(from, &dial, 20);
            assert_eq!(first.len(), 1, "{dial:?}: {first:?}");
            // Another backend comes: nobody moves.
            let delta = lab::apply(&mut snapshot, &cart_slice(&["pod-a", "pod-b", "pod-c"]));
            projection.apply(&snapshot, &delta).await;
            assert_eq!(share(from, &dial, 20), first, "{dial:?}");
            // Its own goes: it moves on, and stays where it went.
            let own = first.keys().next().unwrap().clone();
            let left: Vec<&str> = ["pod-a", "pod-b", "pod-c"].into_iter().filter(|pod| *pod != own).collect();
            let delta = lab::apply(&mut snapshot, &cart_slice(&left));
            projection.apply(&snapshot, &delta).await;
            // A new socket may get the port of an earlier one, and follow its flow while that is still known.
            projection.settled().await;
            let next = share(from, &dial, 20);
            assert!(next.len() == 1 && !next.contains_key(&own), "{dial:?}: {first:?} then {next:?}");
        }
    });
}

#[test]
fn a_client_is_remembered_at_every_address_of_a_port() {
    require_root!();
    let lab = Lab::new();
    let client = lab.at("pod-x");
    lab.at("node-1").block_on(|| async {
        let mut snapshot = Snapshot::default();
        let mut delta = lab::apply(&mut snapshot, lab::OBJECTS);
        delta
            .merge(lab::apply(&mut snapshot, &CART.replace("clusterIPs", "externalIPs: [10.203.0.241]\n  clusterIPs")));
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        projection.apply(&snapshot, &delta).await;
        let mut pods = vec!["pod-a", "pod-b", "pod-c"];
        // By chance alone they agree in one round of four or nine.
        for round in 0..8 {
            let delta = lab::apply(&mut snapshot, &cart_slice(&pods));
            projection.apply(&snapshot, &delta).await;
            projection.settled().await;
            let at = ["10.96.1.1:80", "10.203.0.11:30100", "10.203.0.241:80"];
            let by: Vec<_> = at.into_iter().map(|at| share(client, &Dial::tcp(address(at)), 4)).collect();
            assert_eq!(by[0].len(), 1, "round {round}: {by:?}");
            assert!(by.iter().all(|by| *by == share(client, &Dial::tcp(address(at[0])), 4)), "round {round}: {by:?}");
            pods = ["pod-a", "pod-b", "pod-c"].into_iter().filter(|pod| !by[0].contains_key(*pod)).collect();
        }
    });
}

#[test]
fn a_client_is_sent_where_it_was_last_by_every_address_that_may() {
    require_root!();
    let lab = Lab::new();
    let outside = lab.at("outside");
    lab.at("node-1").block_on(|| async {
        let mut snapshot = Snapshot::default();
        let cart = CART.replace("  clusterIPs", "  externalTrafficPolicy: Local\n  clusterIPs");
        let mut delta = lab::apply(&mut snapshot, lab::OBJECTS);
        delta.merge(lab::apply(&mut snapshot, &cart));
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        projection.apply(&snapshot, &delta).await;
        // The ClusterIP leads to all of these, the NodePort to those of them that are on this node: not to pod-c.
        for (pods, at, by, why) in [
            (&["pod-c"][..], "10.96.1.1:80", "pod-c", "there is no other"),
            (&["pod-a", "pod-b", "pod-c"], "10.96.1.1:80", "pod-c", "it was there last"),
            (&["pod-a", "pod-c"], "10.203.0.11:30100", "pod-a", "this address may not use the other one"),
            (&["pod-a", "pod-b", "pod-c"], "10.203.0.11:30100", "pod-a", "it was there last"),
            (&["pod-a", "pod-b", "pod-c"], "10.96.1.1:80", "pod-a", "it was there last, by another address"),
            (&["pod-b", "pod-c"], "10.203.0.11:30100", "pod-b", "the one where it was is gone"),
            (&["pod-a", "pod-b", "pod-c"], "10.96.1.1:80", "pod-b", "it was there last"),
        ] {
            let delta = lab::apply(&mut snapshot, &cart_slice(pods));
            projection.apply(&snapshot, &delta).await;
            // Chance would have it so in one of two or three times, and not in all of these.
            assert_eq!(share(outside, &Dial::tcp(address(at)), 12), [(by.to_owned(), 12)].into(), "{at}: {why}");
        }
    });
}

#[test]
fn what_a_backend_leaves_costs_the_same_for_any_number_of_clients() {
    require_root!();
    let lab = Lab::new();
    let node = lab.at("node-1");
    node.block_on(|| async {
        let mut snapshot = Snapshot::default();
        let mut delta = lab::apply(&mut snapshot, CART);
        delta.merge(lab::apply(&mut snapshot, &cart_slice(&["pod-a"])));
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        projection.synced(&snapshot).await;
        assert_eq!(lab.at("pod-x").run(|| Dial::tcp(address("10.96.1.1:80")).once()).by(), Some("pod-a"));
        let Some(one) = listed(node) else { return skip("needs nft, to remember clients by hand") };
        let (number, seat) = one.split("10.244.1.9 . ").nth(1).unwrap().split_once(" timeout").unwrap();
        let seat = seat.split(" : ").nth(1).unwrap().split_whitespace().next().unwrap();
        let client = |n: usize| format!("10.99.{}.{} . {number} timeout 10m : {seat}", n / 256, n % 256);
        for clients in (0..6_000).map(client).collect::<Vec<_>>().chunks(500) {
            let clients = format!("{{ {} }}", clients.join(", "));
            let add = ["add", "element", "ip", "portolan", "affinity", &clients];
            assert!(node.command("nft", &add).unwrap().status.success());
        }
        // Only newer kernels say.
        for size in projection.sizes().await.into_iter().filter(|size| size.set == "affinity") {
            assert_eq!(size.elements, if size.family == Family::V4 { 6_001 } else { 0 });
            assert!(size.room.is_some_and(|room| room > 6_001), "{size:?}");
        }
        projection.audit(&snapshot).await.unwrap();
        let generation = async || Connection::<Nftables>::new().unwrap().generation().await.unwrap();
        let before = generation().await;
        let delta = lab::apply(&mut snapshot, &cart_slice(&["pod-b"]));
        projection.apply(&snapshot, &delta).await;
        assert_eq!(lab.at("pod-x").run(|| Dial::tcp(address("10.96.1.1:80")).once()).by(), Some("pod-b"));
        projection.settled().await;
        assert_eq!(generation().await - before, 1, "commits");
        assert_eq!(projection.audit(&snapshot).await.unwrap().repaired, 0);
    });
}

#[test]
fn sessions_run_out() {
    require_root!();
    let lab = Lab::new();
    let (node, client) = (lab.at("node-1"), lab.at("pod-x"));
    node.block_on(|| async {
        let mut snapshot = Snapshot::default();
        let mut delta = lab::apply(&mut snapshot, &CART.replace("timeoutSeconds: 600", "timeoutSeconds: 1"));
        delta.merge(lab::apply(&mut snapshot, &cart_slice(&["pod-a", "pod-b", "pod-c"])));
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        projection.apply(&snapshot, &delta).await;
        let dial = Dial::tcp(address("10.96.1.1:80"));
        let first = share(client, &dial, 10);
        assert_eq!(first.len(), 1, "{first:?}");
        if listed(node).is_none() {
            return skip("needs nft, to see what is remembered");
        }
        let often = (Duration::from_millis(20), Duration::from_secs(30));
        // Each time that it is forgotten is a chance of two in three to see it.
        eventually("the client comes to another backend", often, async || {
            eventually("the client is forgotten", often, async || {
                let known = listed(node).unwrap();
                if known.contains("10.244.1.9 . ") { Err(known) } else { Ok(()) }
            })
            .await;
            if share(client, &dial, 1) == first { Err(format!("{first:?} again")) } else { Ok(()) }
        })
        .await;
    });
}
