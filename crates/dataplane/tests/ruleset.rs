//! The table as an administrator sees it, and what is left of it after use.
#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

mod lab;

use portolan_dataplane::NftProjection;
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
        let mut projection = NftProjection::open(lab::config()).await.unwrap();
        assert!(projection.apply(&snapshot, &delta).await.refused.is_empty());
    });
    let Some(listing) = listing(&netns) else { return skip("needs nft") };
    println!("{listing}");
    for line in [
        "10.96.0.1 . tcp . 80 : goto pick-3",
        "10.96.0.1 . tcp . 80 . 0x00000000 : 10.244.1.2 . 8080",
        "ip daddr . meta l4proto . th dport vmap @services",
        "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @slots",
    ] {
        assert!(listing.contains(line), "{line} is not in\n{listing}");
    }
}
