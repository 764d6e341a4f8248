//! Restarts, second proxies, drift and clean-up: what happens to a table whose owner is not there or not alone.
#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

mod lab;

use std::net::SocketAddr;

use lab::Lab;
use portolan_dataplane::{DataPlane, Error, cleanup};
use portolan_model::{Event, ServiceId, Snapshot};
use portolan_testkit::{Dial, Netns, Outcome, require_root, say, skip};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_restart_adopts_what_it_finds_and_drops_no_connection() {
    require_root!();
    let lab = Lab::new();
    let node = lab.at("node-1");
    let mut snapshot = Snapshot::default();
    let delta = lab::apply(&mut snapshot, lab::OBJECTS);
    let before = node.block_on(|| async {
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        projection.apply(&snapshot, &delta).await;
        projection.elements()
    });
    let connection = lab.at("pod-x").run(|| Dial::tcp(address("10.96.0.1:80")).open().unwrap());
    assert!(Outcome::greeting(&connection).by().is_some());

    node.block_on(|| async {
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        assert_eq!(projection.elements(), before, "all of it is found");
        // Before anything is known again, traffic goes on.
        assert!(lab.at("pod-x").run(|| Dial::tcp(address("10.96.0.1:80")).once()).by().is_some());
        let report = projection.synced(&snapshot).await;
        assert_eq!(report.operations, 0, "nothing is written again");
        assert_eq!(projection.elements(), before);
    });
    assert!(say(&connection, "are you still there?"));
}

#[test]
fn what_went_while_nobody_looked_is_pruned_only_when_all_is_known() {
    require_root!();
    let netns = Netns::new();
    let mut snapshot = Snapshot::default();
    let delta = lab::apply(&mut snapshot, lab::OBJECTS);
    netns.block_on(|| async {
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        projection.apply(&snapshot, &delta).await;
    });
    let mut left = Snapshot::default();
    lab::apply(&mut left, lab::OBJECTS);
    left.apply(Event::ServiceGone(ServiceId::new("shop", "both")));
    netns.block_on(|| async {
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        let before = projection.elements();
        let known_first = left.services().next().unwrap().id.clone();
        let partial = portolan_model::Delta { services: [known_first].into(), ..Default::default() };
        projection.apply(&left, &partial).await;
        assert_eq!(projection.elements(), before, "half of the objects are known: nothing may go");
        projection.synced(&left).await;
        assert!(projection.elements() < before);
        assert_eq!(projection.audit(&left).await.unwrap().repaired, 0);
    });
}

#[test]
fn a_second_proxy_is_told_who_is_there() {
    require_root!();
    let netns = Netns::new();
    netns.block_on(|| async {
        let first = DataPlane::open(lab::config()).await.unwrap();
        let second = DataPlane::open(lab::config()).await;
        let Err(error @ Error::Taken { pid, .. }) = second else { panic!("a second proxy was let in") };
        assert_eq!(pid.map(|pid| u32::try_from(pid).unwrap()), Some(std::process::id()));
        assert!(error.to_string().contains("another proxy (process"), "{error}");
        let program = std::env::current_exe().unwrap();
        assert!(error.to_string().contains(program.file_name().unwrap().to_str().unwrap()), "{error}");
        assert!(matches!(cleanup().await, Err(Error::Taken { .. })));
        drop(first);
        DataPlane::open(lab::config()).await.unwrap();
    });
    // In another namespace it is welcome.
    Netns::new().block_on(|| async { drop(DataPlane::open(lab::config()).await.unwrap()) });
}

#[test]
fn drift_is_found_and_repaired() {
    require_root!();
    let netns = Netns::new();
    let nft = |arguments: &[&str]| netns.command("nft", arguments).map(|output| output.status.success());
    netns.block_on(|| async {
        let mut snapshot = Snapshot::default();
        let delta = lab::apply(&mut snapshot, lab::OBJECTS);
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        projection.apply(&snapshot, &delta).await;
        let before = projection.elements();
        for drift in [
            &["delete", "element", "ip", "portolan", "services", "{ 10.96.0.1 . tcp . 80 }"][..],
            &["add", "element", "ip", "portolan", "cluster-ips", "{ 10.96.9.9 }"],
            &["add", "element", "ip", "portolan", "refused", "{ 10.96.9.9 . tcp . 1 }"],
            &["add", "element", "ip", "portolan", "services", "{ 10.96.9.9 . tcp . 1 : 80:1 }"],
            &["flush", "map", "ip", "portolan", "picks"],
            &["flush", "map", "ip", "portolan", "slots-8"],
            &["flush", "chain", "ip", "portolan", "dispatch"],
            &["flush", "chain", "ip", "portolan", "pick-3-part-8"],
            &["add", "rule", "ip6", "portolan", "after-nat", "drop"],
            &["flush", "ruleset"],
            &["delete", "table", "ip6", "portolan"],
        ] {
            match nft(drift) {
                None => return skip("needs nft"),
                Some(done) => assert!(done, "nft {drift:?}"),
            }
            let report = projection.audit(&snapshot).await.unwrap();
            assert!(report.repaired > 0, "{drift:?} was not noticed");
            assert!(report.refused.is_empty(), "{drift:?}: {:?}", report.refused);
            assert_eq!(projection.elements(), before, "{drift:?}");
            assert_eq!(projection.audit(&snapshot).await.unwrap().repaired, 0, "{drift:?} was not repaired");
        }
    });
}

#[test]
fn an_audit_lets_the_node_forward_again() {
    require_root!();
    let netns = Netns::new();
    let forwards = |key: &str| netns.run(|| std::fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap());
    netns.block_on(|| async {
        let snapshot = Snapshot::default();
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        projection.synced(&snapshot).await;
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            assert_eq!(forwards(key), "1\n", "{key}");
            netns.sysctl(&format!("net.{}", key.replace('/', ".")), "0");
            assert_eq!(projection.audit(&snapshot).await.unwrap().repaired, 1, "{key}");
            assert_eq!(forwards(key), "1\n", "{key}");
        }
        assert_eq!(projection.audit(&snapshot).await.unwrap().repaired, 0);
    });
}

#[test]
fn where_ipv6_is_switched_off_ipv4_is_forwarded() {
    require_root!();
    let lab = Lab::new();
    let node = lab.at("node-1");
    node.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
    node.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
    node.block_on(|| async {
        let mut snapshot = Snapshot::default();
        lab::apply(&mut snapshot, lab::OBJECTS);
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        let report = projection.synced(&snapshot).await;
        assert!(report.refused.is_empty(), "{:?}", report.refused);
        assert_eq!(projection.audit(&snapshot).await.unwrap().repaired, 0);
    });
    assert!(lab.at("pod-x").run(|| Dial::tcp(address("10.96.0.1:80")).once()).by().is_some());
}

#[test]
fn a_change_finds_its_way_over_drift() {
    require_root!();
    let netns = Netns::new();
    netns.block_on(|| async {
        let mut snapshot = Snapshot::default();
        let delta = lab::apply(&mut snapshot, lab::OBJECTS);
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        projection.apply(&snapshot, &delta).await;
        let flush = ["flush", "map", "ip", "portolan", "slots-8"];
        if netns.command("nft", &flush).is_none() {
            return skip("needs nft");
        }
        // It wants to delete a slot that is not there.
        let delta = snapshot.apply(Event::ServiceGone(ServiceId::new("shop", "web")));
        let report = projection.apply(&snapshot, &delta).await;
        assert!(report.refused.is_empty(), "{:?}", report.refused);
    });
}

#[test]
fn cleanup_leaves_nothing() {
    require_root!();
    let netns = Netns::new();
    netns.block_on(|| async {
        let mut snapshot = Snapshot::default();
        let delta = lab::apply(&mut snapshot, lab::OBJECTS);
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        projection.apply(&snapshot, &delta).await;
        drop(projection);
        cleanup().await.unwrap();
        cleanup().await.unwrap();
    });
    let Some(listing) = netns.command("nft", &["list", "ruleset"]) else { return skip("needs nft") };
    assert_eq!(String::from_utf8_lossy(&listing.stdout), "");
}

#[test]
fn its_futures_can_move_between_threads() {
    fn movable<T: Send>(_: T) {}
    async fn whole_life(snapshot: &Snapshot) -> Result<(), Error> {
        let mut projection = DataPlane::open(lab::config()).await?;
        projection.synced(snapshot).await;
        projection.apply(snapshot, &portolan_model::Delta::default()).await;
        projection.audit(snapshot).await?;
        cleanup().await
    }
    movable(whole_life(&Snapshot::default()));
}
