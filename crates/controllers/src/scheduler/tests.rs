//! Nodes and pods as rows, through the same choice and ledger that the scheduler uses.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::fit::{Cluster, choose};
use super::ledger::{Ledger, Peers, Requests};
use super::{Cache, Change, Controller, Input, Key, Outcome, Queue, Recorder, Scheduler};

fn node(name: &str, extra: Value) -> Arc<Node> {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": &name[..1]}},
        "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"},
                   "conditions": [{"type": "Ready", "status": "True"}]}});
    merge(&mut node, extra);
    Arc::new(serde_json::from_value(node).unwrap())
}

fn pod(name: &str, spec: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c"}]}});
    merge(&mut pod["spec"], spec);
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn asking(cpu: &str, memory: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]})
}

fn three() -> Vec<Arc<Node>> {
    ["a1", "a2", "b1"].map(|name| node(name, json!({}))).to_vec()
}

fn choose_one(nodes: &[Arc<Node>], ledger: &Ledger, pod: &Pod, peers: &Peers) -> Result<String, String> {
    choose(pod, peers, &Cluster { nodes, ledger }, 0)
}

fn check(nodes: &[Arc<Node>], there: &[(&str, Value)], spec: Value, expected: Result<&str, &str>) {
    let mut ledger = Ledger::default();
    for (index, (node, spec)) in there.iter().enumerate() {
        ledger.assume(pod(&format!("there-{index}"), spec.clone()), node);
    }
    let chosen = choose_one(nodes, &ledger, &pod("new", spec.clone()), &Peers::Nobody);
    assert_eq!(chosen.as_deref().map_err(String::as_str), expected, "{spec}");
}

#[test]
fn filters_say_why_in_words_people_know() {
    let tainted = || node("b1", json!({"spec": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}}));
    let cordoned = || node("a1", json!({"spec": {"unschedulable": true}}));
    let unready = || node("a2", json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}));
    check(&[], &[], json!({}), Err("no nodes available to schedule pods"));
    check(&[cordoned()], &[], json!({}), Err("0/1 nodes are available: 1 node(s) were unschedulable."));
    check(&[unready()], &[], json!({}), Err("0/1 nodes are available: 1 node(s) were not ready."));
    check(
        &[tainted(), cordoned(), node("c1", json!({}))],
        &[],
        asking("3", "5Gi"),
        Err("0/3 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, \
             1 node(s) had untolerated taint {gpu: yes}, 1 node(s) were unschedulable."),
    );
    check(&[tainted()], &[], json!({"tolerations": [{"key": "gpu", "operator": "Exists"}]}), Ok("b1"));
    check(&three(), &[], json!({"nodeSelector": {"zone": "b"}}), Ok("b1"));
    check(
        &three(),
        &[],
        json!({"nodeSelector": {"zone": "c"}}),
        Err("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."),
    );
    let affinity = |operator: &str, values: Value| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": operator, "values": values}]}]}}}})
    };
    check(&three(), &[], affinity("NotIn", json!(["a"])), Ok("b1"));
    check(
        &three()[..2],
        &[],
        affinity("In", json!(["b"])),
        Err("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."),
    );
    let by_name = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a2"]}]}]}}}});
    check(&three(), &[], by_name, Ok("a2"));
}

#[test]
fn resources_and_ports_are_not_given_twice() {
    let one = [node("a1", json!({}))];
    check(&one, &[("a1", asking("1500m", "0"))], asking("500m", "0"), Ok("a1"));
    check(
        &one,
        &[("a1", asking("1500m", "0"))],
        asking("501m", "0"),
        Err("0/1 nodes are available: 1 Insufficient cpu."),
    );
    let full: Vec<_> = (0..10).map(|_| ("a1", json!({}))).collect();
    check(&one, &full, json!({}), Err("0/1 nodes are available: 1 Too many pods."));
    let port = |ip: Value| json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip}]}]});
    check(
        &one,
        &[("a1", port(json!(null)))],
        port(json!("127.0.0.1")),
        Err("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."),
    );
    check(&one, &[("a1", port(json!("127.0.0.1")))], port(json!("127.0.0.2")), Ok("a1"));
    let mut sidecar = port(json!(null));
    sidecar["initContainers"] = sidecar["containers"].take();
    sidecar["containers"] = json!([{"name": "main"}]);
    // What ends before the others begin holds no port.
    check(&one, &[("a1", sidecar.clone())], port(json!(null)), Ok("a1"));
    sidecar["initContainers"][0]["restartPolicy"] = json!("Always");
    check(
        &one,
        &[("a1", sidecar)],
        port(json!(null)),
        Err("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."),
    );
}

#[test]
fn a_burst_of_one_owner_is_spread_and_never_overcommits() {
    let nodes = three();
    let mut ledger = Ledger::default();
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..9 {
        let mut pod = (*pod(&format!("p{number}"), asking("600m", "1Mi"))).clone();
        pod.metadata.owner_references = serde_json::from_value(json!([
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "rs", "controller": true}]))
        .unwrap();
        let chosen = choose_one(&nodes, &ledger, &pod, &Peers::Owner("rs".into())).unwrap();
        *count.entry(chosen.clone()).or_default() += 1;
        ledger.assume(Arc::new(pod), &chosen);
    }
    assert_eq!(count.values().copied().collect::<Vec<_>>(), [3, 3, 3]);
    let refused = choose_one(&nodes, &ledger, &pod("last", asking("600m", "1Mi")), &Peers::Nobody);
    assert_eq!(refused.unwrap_err(), "0/3 nodes are available: 3 Insufficient cpu.");
}

#[test]
fn services_spread_pods_without_an_owner() {
    let peers = Peers::Selected(vec![[("app".to_owned(), "web".to_owned())].into()]);
    let mut ledger = Ledger::default();
    // The emptier node has the peer already.
    ledger.assume(pod("peer", json!({})), "a1");
    let mut stranger = (*pod("stranger", asking("1", "2Gi"))).clone();
    stranger.metadata.labels = None;
    ledger.assume(Arc::new(stranger), "a2");
    assert_eq!(choose_one(&three()[..2], &ledger, &pod("new", json!({})), &peers), Ok("a2".into()));
    assert_eq!(choose_one(&three()[..2], &ledger, &pod("new", json!({})), &Peers::Nobody), Ok("a1".into()));
}

#[test]
fn equal_nodes_take_turns() {
    let nodes = three();
    let ledger = Ledger::default();
    let chosen: std::collections::BTreeSet<_> = (0..3)
        .map(|turn| {
            choose(&pod("p", json!({})), &Peers::Nobody, &Cluster { nodes: &nodes, ledger: &ledger }, turn).unwrap()
        })
        .collect();
    assert_eq!(chosen.len(), 3);
}

#[test]
fn the_ledger_keeps_an_assumption_until_better_is_known() {
    let mut ledger = Ledger::default();
    let unbound = pod("p", asking("1", "0"));
    ledger.assume(unbound.clone(), "a1");
    ledger.observe(&unbound);
    assert_eq!(ledger.load("a1").unwrap().requested.cpu, 1000, "the watch is only behind");
    let bound = pod("p", json!({"nodeName": "a1"}));
    ledger.observe(&bound);
    ledger.forget("p");
    assert!(ledger.is_placed("p"), "a binding that the watch has shown did not fail");
    let mut finished = (*bound).clone();
    finished.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
    assert!(ledger.observe(&Arc::new(finished)));
    assert!(ledger.load("a1").is_none());
    ledger.assume(unbound, "a1");
    ledger.forget("p");
    assert!(!ledger.is_placed("p"));
}

#[test]
fn what_a_pod_needs() {
    let needs = Requests::of(&pod(
        "p",
        json!({
        "containers": [
            {"name": "a", "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1", "memory": "10"}}},
            {"name": "b", "resources": {"requests": {"cpu": "200m", "example.com/gpu": "1"}}}],
        "initContainers": [
            {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
            {"name": "big", "resources": {"requests": {"cpu": "900m"}}}],
        "overhead": {"memory": "5"}}),
    ));
    assert_eq!((needs.cpu, needs.memory, needs.pods), (950, 15, 1));
    assert_eq!(needs.other["example.com/gpu"], 1);
}

#[test]
fn preferences_come_before_fullness() {
    let prefer = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}}]}}});
    check(&three(), &[("b1", asking("1", "2Gi"))], prefer, Ok("b1"));
    let disliked = node("a1", json!({"spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}}));
    check(&[disliked, node("b1", json!({}))], &[("b1", asking("1", "2Gi"))], json!({}), Ok("b1"));
}

#[test]
fn affinity_between_pods() {
    let term = |key: &str| json!([{"topologyKey": key, "labelSelector": {"matchLabels": {"app": "web"}}}]);
    let required = |kind: &str, key: &str| json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": term(key)}}});
    let host = "kubernetes.io/hostname";
    check(&three(), &[("a1", json!({})), ("b1", json!({}))], required("podAntiAffinity", host), Ok("a2"));
    check(&three(), &[("a1", json!({}))], required("podAntiAffinity", "zone"), Ok("b1"));
    check(
        &three()[..1],
        &[("a1", json!({}))],
        required("podAntiAffinity", host),
        Err("0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules."),
    );
    check(
        &three()[..1],
        &[("a1", required("podAntiAffinity", host))],
        json!({}),
        Err("0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."),
    );
    check(&three(), &[("b1", asking("1", "2Gi"))], required("podAffinity", "zone"), Ok("b1"));
    // The first of a group that wants to be together has nobody to be near.
    assert!(choose_one(&three(), &Ledger::default(), &pod("p", required("podAffinity", host)), &Peers::Nobody).is_ok());
    let spread = |binding: &str| {
        json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": binding, "labelSelector": {"matchLabels": {"app": "web"}}}]})
    };
    let crowd = [("a1", json!({})), ("b1", asking("1", "2Gi"))];
    check(&three(), &[crowd[0].clone()], spread("DoNotSchedule"), Ok("b1"));
    check(&three(), &[crowd[0].clone(), crowd[1].clone()], spread("ScheduleAnyway"), Ok("a2"));
    check(&three()[..2], &[crowd[0].clone()], spread("DoNotSchedule"), Ok("a2"));
}

#[test]
fn company_is_who_all_terms_are_about() {
    let term = |key: &str, label: &str| json!({"topologyKey": key, "labelSelector": {"matchLabels": {label: "yes"}}});
    let terms = [term("zone", "x"), term("kubernetes.io/hostname", "y")];
    let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}});
    let labelled = |name: &str, spec: &Value, labels: &str| {
        let mut pod = (*pod(name, spec.clone())).clone();
        pod.metadata.labels = Some(labels.chars().map(|label| (label.to_string(), "yes".to_owned())).collect());
        Arc::new(pod)
    };
    let nobody = Err("0/3 nodes are available: 3 node(s) didn't match pod affinity rules.".to_owned());
    for (there, own, expected) in [
        (&[("b1", "x"), ("b1", "y")][..], "", nobody.clone()),
        (&[("a1", "x"), ("b1", "xy")], "", Ok("b1".to_owned())),
        (&[("b1", "xy")], "xy", Ok("b1".to_owned())),
        // The first of its kind, and one that is of another kind.
        (&[("a1", "x")], "xy", Ok("a2".to_owned())),
        (&[], "x", nobody.clone()),
    ] {
        let mut ledger = Ledger::default();
        for (index, (node, labels)) in there.iter().enumerate() {
            ledger.assume(labelled(&format!("there-{index}"), &json!({}), labels), node);
        }
        let chosen = choose_one(&three(), &ledger, &labelled("new", &near, own), &Peers::Nobody);
        assert_eq!(chosen, expected, "{there:?} {own}");
    }
    let bare = node("c1", json!({"metadata": {"labels": null}}));
    let first = choose_one(&[bare], &Ledger::default(), &labelled("new", &near, "xy"), &Peers::Nobody);
    assert!(first.is_err(), "also the first wants to be where others can be near");
}

#[test]
fn only_nodes_that_will_do_are_domains_to_spread_over() {
    let apart = |policy: &str, value: &str, key: &str| {
        let mut spec = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
        let other = json!({"maxSkew": 9, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}}});
        spec["topologySpreadConstraints"][0][policy] = json!(value);
        spec["topologySpreadConstraints"].as_array_mut().unwrap().push(other);
        spec
    };
    let with = |mut spec: Value, more: Value| {
        merge(&mut spec, more);
        spec
    };
    let there = [("a1", asking("1", "2Gi")), ("a2", json!({}))];
    let in_a = json!({"nodeSelector": {"zone": "a"}});
    let crowded = "0/3 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, \
                   2 node(s) didn't match pod topology spread constraints.";
    check(&three(), &there, with(apart("nodeAffinityPolicy", "Honor", "zone"), in_a.clone()), Ok("a2"));
    check(&three(), &there, with(apart("nodeAffinityPolicy", "Ignore", "zone"), in_a), Err(crowded));
    let tainted = node("b1", json!({"spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}]}}));
    let nodes = [three()[0].clone(), three()[1].clone(), tainted];
    check(&nodes, &there, apart("nodeTaintsPolicy", "Honor", "zone"), Ok("a2"));
    let crowded = "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: }, \
                   2 node(s) didn't match pod topology spread constraints.";
    check(&nodes, &there, apart("nodeTaintsPolicy", "Ignore", "zone"), Err(crowded));
    let bare = node("b1", json!({"metadata": {"labels": null}}));
    let nodes = [three()[0].clone(), three()[1].clone(), bare];
    check(&nodes, &there, apart("nodeTaintsPolicy", "Ignore", "zone"), Ok("a2"));
}

/// The scheduler, a node, and what it was told of pods.
fn scheduler(nodes: &[Arc<Node>]) -> (Scheduler, Queue<Key>) {
    let (nodes_cache, client) = (Cache::detached(), crate::nowhere());
    nodes.iter().for_each(|node| nodes_cache.put((**node).clone()));
    let (events, _) = Recorder::new(client.clone(), "");
    let scheduler = Scheduler::new(client, events, Cache::detached(), nodes_cache, Cache::detached());
    (scheduler, Queue::default())
}

/// The watch shows the pod; then everything that is queued is decided.
fn show(scheduler: &mut Scheduler, queue: &mut Queue<Key>, pod: &Arc<Pod>) -> Vec<String> {
    let old = scheduler.pods.get(&Key::of(&**pod));
    scheduler.pods.put((**pod).clone());
    scheduler.observe(Input::Pod(Change::Applied { new: pod.clone(), old }), queue);
    decide(scheduler, queue)
}

fn decide(scheduler: &mut Scheduler, queue: &mut Queue<Key>) -> Vec<String> {
    let mut decided = Vec::new();
    while let Some(key) = queue.take(Instant::now()) {
        decided.extend(scheduler.reconcile(&key, queue).map(|_| key.name.clone()));
        queue.done(&key);
    }
    decided
}

#[tokio::test]
async fn who_waits_for_company_is_tried_again_when_it_comes() {
    let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "db"}}}]}}});
    let (mut scheduler, mut queue) = scheduler(&[node("a1", json!({}))]);
    assert_eq!(show(&mut scheduler, &mut queue, &pod("lonely", near)), ["lonely"]);
    assert_eq!(show(&mut scheduler, &mut queue, &pod("large", asking("9", "0"))), ["large"]);
    assert!(!scheduler.ledger.is_placed("lonely"));
    assert_eq!(show(&mut scheduler, &mut queue, &pod("other", json!({"nodeName": "a1"}))), ["lonely"]);
    assert!(!scheduler.ledger.is_placed("lonely"));
    let mut company = (*pod("other", json!({"nodeName": "a1"}))).clone();
    company.metadata.labels = Some([("app".to_owned(), "db".to_owned())].into());
    let company = Arc::new(company);
    assert_eq!(show(&mut scheduler, &mut queue, &company), ["lonely"]);
    assert!(scheduler.ledger.is_placed("lonely"));
    assert_eq!(show(&mut scheduler, &mut queue, &company), [""; 0], "nothing new");
}

#[tokio::test]
async fn a_binding_that_fails_makes_room_for_others() {
    let (mut scheduler, mut queue) = scheduler(&[node("a1", json!({}))]);
    let first = pod("first", asking("2", "0"));
    assert_eq!(show(&mut scheduler, &mut queue, &first), ["first"]);
    assert_eq!(show(&mut scheduler, &mut queue, &pod("second", asking("2", "0"))), ["second"]);
    assert!(!scheduler.ledger.is_placed("second"));
    let failed = Outcome { writes: Vec::new(), error: Some(kube::Error::TlsRequired) };
    scheduler.finish(&Key::of(&*first), &failed, &mut queue);
    assert_eq!(decide(&mut scheduler, &mut queue), ["second"]);
    assert!(scheduler.ledger.is_placed("second"));
}
