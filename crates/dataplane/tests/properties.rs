//! What must hold for any clusters and any changes, in a real kernel: it ends up with what a fresh start would give it.
//!
//! The kernel is read by `nft`, so that nothing that reads for us can hide what it does not know. Every failure names
//! the seed it comes from.
#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

mod lab;

use std::collections::BTreeSet;

use lab::random::Random;
use portolan_dataplane::DataPlane;
use portolan_model::{Delta, Snapshot};
use portolan_testkit::{Netns, require_root, skip};
use rand::RngExt;
use serde_json::{Value, json};

/// The ruleset as `nft` lists it, an object each; `None` where there is no `nft`.
fn objects(netns: &Netns) -> Option<Vec<Value>> {
    let output = netns.command("nft", &["-j", "list", "ruleset"])?;
    assert!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    let mut listing: Value = serde_json::from_slice(&output.stdout).unwrap();
    let Value::Array(objects) = listing["nftables"].take() else { panic!("no list in nft's listing") };
    Some(objects)
}

/// The ruleset as facts that do not depend on how it came about: without handles, and with a frontend's slots in any
/// order. The index of a slot says in its upper bits which of the frontend's sets it is in.
fn facts(objects: Vec<Value>) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    for mut object in objects {
        let (kind, body) = object.as_object_mut().unwrap().iter_mut().next().unwrap();
        body.as_object_mut().unwrap().remove("handle");
        let of = format!("{} {} {}", body["family"], body["table"], body["name"]);
        for mut element in body.as_object_mut().unwrap().remove("elem").iter_mut().flat_map(elements) {
            if body["name"].as_str().is_some_and(|name| name.contains("slots")) {
                let index = element.pointer_mut("/0/concat").and_then(|key| key.as_array_mut()?.last_mut()).unwrap();
                let number = index.as_u64().unwrap();
                // A backend's own number, under which it is remembered, is always the same.
                *index = if number < 1 << 30 { json!(number >> 20) } else { json!(number) };
            }
            facts.insert(format!("{of} element {element}"));
        }
        // Two rules that are the same are the same to a packet too.
        facts.insert(format!("{kind} {body}"));
    }
    facts
}

fn elements(list: &mut Value) -> Vec<Value> {
    list.as_array().cloned().unwrap_or_default()
}

fn difference(one: &BTreeSet<String>, other: &BTreeSet<String>) -> String {
    let only = |title: &str, a: &BTreeSet<String>, b: &BTreeSet<String>| {
        let lines: Vec<_> = a.difference(b).take(20).cloned().collect();
        format!("{title}:\n  {}\n", lines.join("\n  "))
    };
    only("only in the kernel", one, other) + &only("only after a fresh start", other, one)
}

/// What a kernel holds that never knew anything but the snapshot.
fn fresh(snapshot: &Snapshot) -> Option<BTreeSet<String>> {
    let netns = Netns::new();
    netns.block_on(|| async {
        let report = DataPlane::open(lab::config()).await.unwrap().synced(snapshot).await;
        assert!(report.refused.is_empty(), "{:?}", report.refused);
    });
    objects(&netns).map(facts)
}

#[track_caller]
fn assert_as_fresh(netns: &Netns, snapshot: &Snapshot, context: &str) {
    let (Some(kernel), Some(fresh)) = (objects(netns).map(facts), fresh(snapshot)) else { return skip("needs nft") };
    assert!(kernel == fresh, "{context}\n{}", difference(&kernel, &fresh));
}

#[test]
fn any_difference_between_two_clusters_leads_from_one_to_the_other() {
    require_root!();
    for seed in 0..16 {
        let mut random = Random::new(seed);
        let mut snapshot = Snapshot::default();
        let netns = Netns::new();
        netns.block_on(|| async {
            for _ in 0..random.0.random_range(0..80) {
                snapshot.apply(random.cluster_event());
            }
            let mut plane = DataPlane::open(lab::config()).await.unwrap();
            plane.synced(&snapshot).await;
            let mut delta = Delta::default();
            for _ in 0..random.0.random_range(1..60) {
                delta.merge(snapshot.apply(random.cluster_event()));
            }
            let report = plane.apply(&snapshot, &delta).await;
            assert!(report.refused.is_empty(), "seed {seed}: {:?}", report.refused);
            assert_eq!(
                plane.audit(&snapshot).await.unwrap().repaired,
                0,
                "seed {seed}: all is as it was believed to be"
            );
        });
        assert_as_fresh(&netns, &snapshot, &format!("seed {seed}"));
    }
}

#[test]
fn a_thousand_changes_leave_nothing_behind() {
    require_root!();
    let netns = Netns::new();
    let seed = 1_000;
    let mut random = Random::new(seed);
    let mut snapshot = Snapshot::default();
    netns.block_on(|| async {
        let mut plane = DataPlane::open(lab::config()).await.unwrap();
        plane.synced(&snapshot).await;
        for step in 0..1_000 {
            let delta = snapshot.apply(random.cluster_event());
            let report = plane.apply(&snapshot, &delta).await;
            assert!(report.refused.is_empty(), "seed {seed}, step {step}: {:?}", report.refused);
            if step % 250 == 249 {
                assert_eq!(plane.audit(&snapshot).await.unwrap().repaired, 0, "seed {seed}, step {step}");
                assert_as_fresh(&netns, &snapshot, &format!("seed {seed}, step {step}"));
            }
        }
        let mut delta = Delta::default();
        for event in lab::random::farewell(&snapshot) {
            delta.merge(snapshot.apply(event));
        }
        plane.apply(&snapshot, &delta).await;
    });
    assert_as_fresh(&netns, &Snapshot::default(), &format!("seed {seed}, all gone"));
}

/// What somebody could do to the listed objects by hand, one of each kind: an element or a rule deleted, a map or a
/// chain emptied, a rule put in, a table emptied or deleted. Elements that are nobody's are those of `elsewhere`.
fn mischief(listed: &[Value], elsewhere: &[Value], random: &mut Random) -> Vec<(String, Value)> {
    let mut mischief = Vec::new();
    let mut act = |verb: &str, what: &str, object: Value| {
        let kind = format!("{verb} {what} {} {} {}", object["family"], object["name"], object["chain"]);
        mischief.push((kind, json!({ verb: { what: object } })));
    };
    let mut one_of =
        |elements: &Value| Some(elements.as_array()?[random.0.random_range(0..elements.as_array()?.len())].clone());
    for object in listed {
        let (kind, body) = object.as_object().unwrap().iter().next().unwrap();
        let (family, table, name) = (&body["family"], &body["table"], &body["name"]);
        let this = json!({"family": family, "table": table, "name": name});
        match kind.as_str() {
            "table" => {
                act("delete", "table", json!({"family": family, "name": name}));
                act("flush", "table", json!({"family": family, "name": name}));
            }
            "set" | "map" => {
                let with = |element: Value| json!({"family": family, "table": table, "name": name, "elem": [element]});
                if let Some(element) = one_of(&body["elem"]) {
                    act("delete", "element", with(element));
                    act("flush", kind, this);
                }
                let other = elsewhere.iter().find(|other| {
                    ["family", "name"].iter().all(|field| other[kind][field] == body[field]) && other[kind].is_object()
                });
                let strays = other.map(|other| elements(&mut other[kind]["elem"].clone())).unwrap_or_default();
                let ours = elements(&mut body["elem"].clone());
                let key = |element: &Value| element.get(0).unwrap_or(element).clone();
                if let Some(stray) = strays.into_iter().find(|stray| !ours.iter().any(|own| key(own) == key(stray))) {
                    act("add", "element", with(stray));
                }
            }
            "chain" => {
                act("flush", "chain", this);
                let stray = json!({"family": family, "table": table, "chain": name, "expr": [{"drop": null}]});
                act("insert", "rule", stray);
            }
            "rule" => {
                let rule = json!({"family": family, "table": table, "chain": body["chain"], "handle": body["handle"]});
                act("delete", "rule", rule);
            }
            _ => {}
        }
    }
    mischief
}

fn cluster(random: &mut Random) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for _ in 0..60 {
        snapshot.apply(random.cluster_event());
    }
    snapshot
}

#[test]
fn whatever_is_done_by_hand_an_audit_finds_and_repairs() {
    require_root!();
    let seed = 7;
    let mut random = Random::new(seed);
    let (snapshot, other) = (cluster(&mut random), cluster(&mut random));
    let (netns, elsewhere) = (Netns::new(), Netns::new());
    elsewhere.block_on(|| async { DataPlane::open(lab::config()).await.unwrap().synced(&other).await });
    netns.block_on(|| async {
        let mut plane = DataPlane::open(lab::config()).await.unwrap();
        plane.synced(&snapshot).await;
        let (Some(listed), Some(elsewhere)) = (objects(&netns), objects(&elsewhere)) else { return skip("needs nft") };
        let untouched = facts(listed.clone());
        let (mut listed, mut tried, mut done) = (listed, BTreeSet::new(), 0);
        let mut acts = mischief(&listed, &elsewhere, &mut random);
        while let Some((_, act)) = acts.into_iter().find(|(kind, _)| tried.insert(kind.clone())) {
            let command = json!({"nftables": [act]}).to_string();
            // Some cannot be done: the chain that an element leads to cannot be deleted with a rule of its own.
            if netns.command("nft", &["-j", &command]).is_some_and(|output| output.status.success()) {
                done += 1;
                let report = plane.audit(&snapshot).await.unwrap();
                assert!(report.repaired > 0, "seed {seed}: {command} was not noticed");
                assert!(report.refused.is_empty(), "seed {seed}: {command}: {:?}", report.refused);
                listed = objects(&netns).unwrap();
                let repaired = facts(listed.clone());
                assert!(repaired == untouched, "seed {seed}: {command}\n{}", difference(&repaired, &untouched));
            }
            acts = mischief(&listed, &elsewhere, &mut random);
        }
        assert!(done > 100, "only {done} of {} could be done: {tried:?}", tried.len());
    });
}

/// More endpoints than one message, one socket buffer or one batch holds.
#[test]
fn a_service_of_a_hundred_thousand_endpoints_harms_no_other() {
    require_root!();
    let netns = Netns::new();
    let mut snapshot = Snapshot::default();
    let mut delta = Delta::default();
    for event in lab::random::crowd(100_000) {
        delta.merge(snapshot.apply(event));
    }
    delta.merge(lab::apply(&mut snapshot, lab::OBJECTS));
    netns.block_on(|| async {
        let mut plane = DataPlane::open(lab::config()).await.unwrap();
        let report = plane.apply(&snapshot, &delta).await;
        assert!(report.refused.is_empty(), "{:?}", report.refused);
        drop(plane);
        // Who comes next reads what the kernel has, and finds nothing missing: each endpoint in its slot and by its own
        // number, which some few have in common.
        let mut next = DataPlane::open(lab::config()).await.unwrap();
        assert!(next.elements() > 199_900, "{}", next.elements());
        assert_eq!(next.synced(&snapshot).await.operations, 0);
    });
}
