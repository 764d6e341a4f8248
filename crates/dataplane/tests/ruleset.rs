//! The table as an administrator sees it, and what is left of it after use.
#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

mod lab;

use portolan_dataplane::{DataPlane, ProxyConfig};
use portolan_model::Snapshot;
use portolan_testkit::{Netns, require_root, skip};

/// What `nft list ruleset` prints, or `None` where there is no `nft`.
fn listing(netns: &Netns) -> Option<String> {
    let output = netns.command("nft", &["-a", "list", "ruleset"])?;
    assert!(output.status.success(), "nft: {}{}", output.status, String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn stock_nft_prints_the_table() {
    require_root!();
    let netns = Netns::new();
    netns.block_on(|| async {
        let mut snapshot = Snapshot::default();
        let delta = lab::apply(&mut snapshot, lab::OBJECTS);
        let config = ProxyConfig { counters: true, ..lab::config() };
        let mut projection = DataPlane::open(config).await.unwrap();
        assert!(projection.apply(&snapshot, &delta).await.refused.is_empty());
    });
    let Some(listing) = listing(&netns) else { return skip("needs nft") };
    println!("{listing}");
    for line in [
        "10.96.0.1 . tcp . 80 : 800:3",
        "800:3 : goto pick-3-part-8",
        "10.96.0.1 . tcp . 80 . 0x00000000 : 10.244.1.2 . 8080",
        "meta priority set ip daddr . meta l4proto . th dport map @services goto pick",
        "meta priority vmap @picks",
        "ct original ip daddr . meta l4proto . ct original proto-dst @traffic return",
        "10.96.0.1 . tcp . 80 counter packets 0 bytes 0",
        "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @slots-8",
        "meta priority set ip saddr . meta priority map @affinity",
        "meta priority set meta priority | 2000:0",
        "dnat ip to ip daddr . meta l4proto . th dport . meta priority map @slots-9",
        "delete @affinity { ip saddr . meta priority : meta mark }",
        "update @affinity { ip saddr . meta priority timeout 3h : jhash ip daddr . th dport mod 536870912 seed 0x0 offset 1073741824 }",
        "update @affinity { ip6 saddr . meta priority timeout 3h : jhash ip6 daddr . th dport mod 536870912 seed 0x0 offset 1073741824 }",
    ] {
        assert!(listing.contains(line), "{line} is not in\n{listing}");
    }
}

#[test]
fn random_changes_leave_no_stray_element() {
    require_root!();
    let netns = Netns::new();
    for seed in 0..4 {
        netns.block_on(|| async {
            let mut random = lab::random::Random::new(seed);
            let mut snapshot = Snapshot::default();
            let mut projection = DataPlane::open(lab::config()).await.unwrap();
            for _ in 0..250 {
                let delta = snapshot.apply(random.event());
                let report = projection.apply(&snapshot, &delta).await;
                assert!(report.refused.is_empty(), "seed {seed}: {:?}", report.refused);
            }
            let audit = projection.audit(&snapshot).await.unwrap();
            assert_eq!(
                (audit.repaired, audit.operations),
                (0, 0),
                "seed {seed}: the kernel is as it was believed to be"
            );
            // Who comes anew and sees only the result finds nothing to write.
            drop(projection);
            let mut projection = DataPlane::open(lab::config()).await.unwrap();
            assert_eq!(projection.synced(&snapshot).await.operations, 0, "seed {seed}: the kernel is as compiled");
            projection.synced(&Snapshot::default()).await;
        });
        let Some(listing) = listing(&netns) else { return skip("needs nft") };
        assert!(!listing.contains("10.96.") && !listing.contains("pick-"), "seed {seed}:\n{listing}");
    }
}

/// A Service with these hosts of 10.244.2.0/24, another node's, behind it.
fn plain(hosts: &[u8]) -> String {
    let endpoints: Vec<String> =
        hosts.iter().map(|host| format!("{{addresses: [10.244.2.{host}], nodeName: x}}")).collect();
    format!(
        "kind: Service
metadata: {{namespace: shop, name: plain}}
spec: {{clusterIPs: [10.96.2.1], ports: [{{port: 80}}]}}
---
kind: EndpointSlice
metadata: {{namespace: shop, name: plain-1, labels: {{kubernetes.io/service-name: plain}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints: [{}]
",
        endpoints.join(", ")
    )
}

#[test]
fn a_change_costs_what_changed() {
    require_root!();
    Netns::new().block_on(|| async {
        let mut snapshot = Snapshot::default();
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        lab::apply(&mut snapshot, lab::OBJECTS);
        projection.synced(&snapshot).await;
        for (what, hosts, operations) in [
            ("the ClusterIP, the pick and three slots", &[1, 2, 3][..], 5),
            ("one endpoint replaced: its slot out and in", &[1, 2, 4], 2),
            ("one more: its slot in, the pick out and in", &[1, 2, 4, 5], 3),
            ("one less: the last slot into the hole, the pick out and in", &[2, 4, 5], 5),
            ("the last one goes: its slot out, the pick out and in", &[5, 2], 3),
            ("none left: slots and pick out, the refusal in", &[], 4),
        ] {
            let delta = lab::apply(&mut snapshot, &plain(hosts));
            assert_eq!(projection.apply(&snapshot, &delta).await.operations, operations, "{what}");
        }
    });
}
