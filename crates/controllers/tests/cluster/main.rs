//! All controllers at work together, against the real API server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and helpers are part of it")]

mod operator;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Event, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use world::World;

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
        {"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]}})
}

fn deployment(replicas: i32) -> Value {
    json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template("one"),
        "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}})
}

fn service() -> Value {
    json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {
        "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}})
}

/// The ready addresses in the Service's slices, with their nodes.
fn ready(slices: &[Arc<EndpointSlice>], service: &str) -> BTreeMap<String, String> {
    let of_service = slices
        .iter()
        .filter(|slice| slice.labels().get("kubernetes.io/service-name").is_some_and(|name| name == service));
    let endpoints = of_service.flat_map(|slice| &slice.endpoints);
    let ready = endpoints
        .filter(|endpoint| endpoint.conditions.as_ref().is_some_and(|conditions| conditions.ready == Some(true)));
    ready.map(|endpoint| (endpoint.addresses[0].clone(), endpoint.node_name.clone().unwrap_or_default())).collect()
}

async fn wait_ready(world: &World, count: usize) -> BTreeMap<String, String> {
    world
        .wait(&format!("{count} ready endpoints"), &world.api(), |slices| {
            Some(ready(slices, "web")).filter(|ready| ready.len() == count)
        })
        .await
}

fn active(pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).cloned().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_follows_its_pods() {
    let world = World::new(&["n1", "n2", "n3"]).await;
    world.create::<Service>(service()).await;
    world.create::<Deployment>(deployment(3)).await;
    let first = wait_ready(&world, 3).await;
    let nodes: BTreeSet<_> = first.values().collect();
    assert_eq!(nodes.len(), 3, "spread over the nodes: {first:?}");
    world
        .wait("Endpoints for old clients", &world.api::<Endpoints>(), |all| {
            let web = all.iter().find(|endpoints| endpoints.name_any() == "web")?;
            let subset = web.subsets.as_ref()?.first()?;
            (subset.addresses.as_ref()?.len() == 3 && subset.ports.as_ref()?[0].port == 8080).then_some(())
        })
        .await;

    let killed = world.api::<Pod>().list(&Default::default()).await.unwrap().items[0].name_any();
    let start = Instant::now();
    world.delete::<Pod>(&killed, DeleteParams::default()).await;
    world
        .wait("another pod in its place", &world.api(), |slices| {
            Some(()).filter(|()| ready(slices, "web").len() == 3 && !format!("{slices:?}").contains(&killed))
        })
        .await;
    eprintln!("replaced and published {:?} after the kill", start.elapsed());

    world.merge::<Deployment>("web", json!({"spec": {"replicas": 1}})).await;
    wait_ready(&world, 1).await;
    world.merge::<Deployment>("web", json!({"spec": {"replicas": 0}})).await;
    wait_ready(&world, 0).await;
    world.merge::<Deployment>("web", json!({"spec": {"replicas": 5}})).await;
    wait_ready(&world, 5).await;
    let reasons = |events: &[Arc<Event>]| -> BTreeSet<String> {
        events.iter().filter_map(|event| event.reason.clone()).collect()
    };
    world
        .wait("events about it all", &world.api::<Event>(), |events| {
            let wanted = ["ScalingReplicaSet", "SuccessfulCreate", "SuccessfulDelete", "Scheduled"];
            wanted.iter().all(|reason| reasons(events).contains(*reason)).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_replaces_all_pods_and_never_takes_one_too_many() {
    let world = World::new(&["n1", "n2"]).await;
    world.create::<Service>(service()).await;
    world.create::<Deployment>(deployment(3)).await;
    wait_ready(&world, 3).await;
    world.merge::<Deployment>("web", json!({"spec": {"template": template("two")}})).await;
    let watch = world.api();
    let never_fewer = world.holds(
        "three ready endpoints at any time",
        Duration::from_secs(60),
        &watch,
        |slices: &[Arc<EndpointSlice>]| ready(slices, "web").len() >= 3,
    );
    let deployments = world.api();
    let done = world.wait("the rollout", &deployments, |all: &[Arc<Deployment>]| {
        let status = all[0].status.clone()?;
        let progressing = status.conditions.iter().flatten().find(|condition| condition.type_ == "Progressing")?;
        let complete = progressing.reason.as_deref() == Some("NewReplicaSetAvailable")
            && status.observed_generation == all[0].metadata.generation
            && status.updated_replicas == Some(3)
            && status.replicas == Some(3);
        complete.then_some(())
    });
    tokio::select! { () = never_fewer => {}, () = done => {} }
    let pods = active(
        &world
            .api::<Pod>()
            .list(&Default::default())
            .await
            .unwrap()
            .items
            .into_iter()
            .map(Arc::new)
            .collect::<Vec<_>>(),
    );
    assert!(
        pods.iter().all(|pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("two")),
        "{pods:?}"
    );
    let deployment = world.api::<Deployment>().get("web").await.unwrap();
    assert_eq!(deployment.annotations()["deployment.kubernetes.io/revision"], "2");

    // One that never becomes ready changes nothing for the Service, and going back is quick.
    world.merge::<Deployment>("web", json!({"spec": {"template": template("broken")}})).await;
    world.wait("a pod that is not ready", &world.api::<Pod>(), |pods| (active(pods).len() == 4).then_some(())).await;
    wait_ready(&world, 3).await;
    world.merge::<Deployment>("web", json!({"spec": {"template": template("two")}})).await;
    world.wait("the broken pod to go", &world.api::<Pod>(), |pods| (pods.len() == 3).then_some(())).await;
    let sets = world.api::<ReplicaSet>().list(&Default::default()).await.unwrap().items;
    assert_eq!(sets.len(), 3);
}

/// A pod on that node which is still there when it has been deleted.
fn kept(name: &str, node: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "finalizers": ["example.com/kept"]},
           "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}})
}

/// The phase of a pod that is being deleted, and what its condition says of who does that.
async fn last_word(world: &World, name: &str) -> (String, String) {
    world
        .wait("the pod to be deleted", &world.api::<Pod>(), |pods| {
            let pod = pods.iter().find(|pod| pod.name_any() == name && pod.metadata.deletion_timestamp.is_some())?;
            let status = pod.status.clone().unwrap_or_default();
            let conditions = status.conditions.iter().flatten();
            let disruption = conditions.into_iter().find(|condition| condition.type_ == "DisruptionTarget");
            let told = disruption.map(|told| format!("{} {}", told.status, told.reason.as_deref().unwrap_or_default()));
            Some((status.phase.unwrap_or_default(), told.unwrap_or_default()))
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_a_node_that_is_no_more_fails_and_goes() {
    let world = World::new(&["n1"]).await;
    world.create::<Pod>(kept("orphan", "nowhere")).await;
    assert_eq!(last_word(&world, "orphan").await, ("Failed".into(), "True DeletionByPodGC".into()));
}

/// A status that is written with each try is tried again at once each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_set_that_cannot_be_made_is_told_of_once() {
    let world = World::new(&[]).await;
    // Its ReplicaSet's name is too long.
    let mut deployment = deployment(1);
    deployment["metadata"]["name"] = json!("a".repeat(250));
    world.create::<Deployment>(deployment).await;
    let told = world
        .wait("the refusal to be told", &world.api::<Deployment>(), |deployments| {
            let conditions = deployments.first()?.status.as_ref()?.conditions.as_ref()?;
            let told = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
            let progressing = told("Progressing").filter(|condition| condition.status == "False")?;
            assert_eq!(progressing.reason.as_deref(), Some("ReplicaSetCreateError"));
            assert!(progressing.message.as_deref()?.starts_with("Failed to create new replica set"));
            deployments[0].resource_version()
        })
        .await;
    let same = |deployments: &[Arc<Deployment>]| deployments[0].resource_version().as_ref() == Some(&told);
    world.holds("the status", Duration::from_secs(1), &world.api::<Deployment>(), same).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_loses_its_endpoints_then_its_pods() {
    let mut world = World::new(&["n1", "n2", "n3"]).await;
    world.create::<Service>(service()).await;
    world.create::<Deployment>(deployment(6)).await;
    wait_ready(&world, 6).await;
    world.create::<Pod>(kept("kept", "n2")).await;
    let start = Instant::now();
    world.cut_power("n2");
    world
        .wait("no endpoint on the dead node", &world.api(), |slices| {
            (!ready(slices, "web").values().any(|node| node == "n2")).then_some(())
        })
        .await;
    let gone = start.elapsed();
    eprintln!("endpoints gone {gone:?} after the power cut");
    assert!(gone < Duration::from_millis(3500), "{gone:?}");
    let replaced = wait_ready(&world, 6).await;
    assert!(replaced.values().all(|node| node != "n2"));
    assert_eq!(last_word(&world, "kept").await.1, "True DeletionByTaintManager");
    world.merge::<Pod>("kept", json!({"metadata": {"finalizers": null}})).await;
    world
        .wait("the dead node's pods to be deleted", &world.api::<Pod>(), |pods| {
            let there =
                pods.iter().filter(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some("n2"));
            (there.count() == 0).then_some(())
        })
        .await;
    let taints = |node: &Node| -> Vec<String> {
        node.spec
            .iter()
            .flat_map(|spec| spec.taints.iter().flatten())
            .map(|taint| format!("{}:{}", taint.key, taint.effect))
            .collect()
    };
    let dead = world.all::<Node>().get("n2").await.unwrap();
    assert_eq!(
        taints(&dead),
        ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"]
    );
    world.start_node("n2");
    world
        .wait("the node to be clean again", &world.all::<Node>(), |nodes| {
            nodes.iter().all(|node| taints(node).is_empty()).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_nodes_fall_silent_nothing_is_taken_from_them() {
    let mut world = World::new(&["n1", "n2"]).await;
    world.create::<Service>(service()).await;
    world.create::<Deployment>(deployment(2)).await;
    wait_ready(&world, 2).await;
    world.cut_power("n1");
    world.cut_power("n2");
    let still = |slices: &[Arc<EndpointSlice>]| ready(slices, "web").len() == 2;
    world.holds("both endpoints", Duration::from_secs(5), &world.api(), still).await;
    world.start_node("n1");
    world.start_node("n2");
    world.holds("both endpoints", Duration::from_secs(3), &world.api(), still).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_that_restart_in_the_middle_make_nothing_twice() {
    let mut world = World::new(&["n1", "n2"]).await;
    world.create::<Service>(service()).await;
    world.create::<Deployment>(deployment(20)).await;
    for _ in 0..4 {
        let wanted = world.api::<Pod>().list(&Default::default()).await.unwrap().items.len() + 1;
        world.wait("some progress", &world.api::<Pod>(), |pods| (pods.len() >= wanted.min(20)).then_some(())).await;
        world.stop_controllers().await;
        world.start_controllers();
    }
    wait_ready(&world, 20).await;
    world.holds("twenty pods", Duration::from_secs(1), &world.api::<Pod>(), |pods| pods.len() == 20).await;
    let slices = world.api::<EndpointSlice>().list(&Default::default()).await.unwrap().items;
    assert_eq!(
        slices
            .iter()
            .filter(|slice| slice.labels().get("kubernetes.io/service-name").is_some_and(|name| name == "web"))
            .count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_fit_nowhere_wait_and_say_why() {
    let world = World::new(&["n1"]).await;
    world.merge_node("n1", json!({"spec": {"unschedulable": true}})).await;
    world
        .wait("the cordon's taint", &world.all::<Node>(), |nodes| {
            nodes[0]
                .spec
                .as_ref()?
                .taints
                .as_ref()?
                .iter()
                .any(|taint| taint.key == "node.kubernetes.io/unschedulable")
                .then_some(())
        })
        .await;
    world.create::<Pod>(json!({"metadata": {"name": "p", "namespace": "default"}, "spec": {"containers": [{"name": "c", "image": "i"}]}})).await;
    let message = world
        .wait("the reason", &world.api::<Pod>(), |pods| {
            let conditions = pods.first()?.status.as_ref()?.conditions.as_ref()?;
            conditions
                .iter()
                .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?
                .message
                .clone()
        })
        .await;
    assert_eq!(message, "0/1 nodes are available: 1 node(s) were unschedulable.");
    world.merge_node("n1", json!({"spec": {"unschedulable": null}})).await;
    world
        .wait("the pod to run", &world.api::<Pod>(), |pods| {
            (pods[0].status.as_ref()?.phase.as_deref() == Some("Running")).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_balancer_addresses_stay_and_come_back() {
    let mut world = World::new(&[]).await;
    let balancer = |name: &str| {
        json!({"metadata": {"name": name, "namespace": "default"},
               "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}})
    };
    let addresses = |services: &[Arc<Service>]| -> BTreeMap<String, String> {
        let ip = |service: &Arc<Service>| {
            service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?.first()?.ip.clone()
        };
        services.iter().filter_map(|service| Some((service.name_any(), ip(service)?))).collect()
    };
    for name in ["a", "b", "c"] {
        world.create::<Service>(balancer(name)).await;
    }
    let given = world
        .wait("three addresses", &world.api(), |services| Some(addresses(services)).filter(|given| given.len() == 3))
        .await;
    assert_eq!(given.values().collect::<BTreeSet<_>>().len(), 3, "{given:?}");
    world.create::<Service>(balancer("d")).await;
    world
        .wait("word that there is none left", &world.api::<Event>(), |events| {
            events.iter().any(|event| event.reason.as_deref() == Some("AllocationFailed")).then_some(())
        })
        .await;
    world.stop_controllers().await;
    world.start_controllers();
    world.delete::<Service>("b", DeleteParams::default()).await;
    let after = world
        .wait("d to get what b had", &world.api(), |services| {
            Some(addresses(services)).filter(|given| given.contains_key("d"))
        })
        .await;
    assert_eq!((&after["a"], &after["c"], &after["d"]), (&given["a"], &given["c"], &given["b"]));
    world.merge::<Service>("a", json!({"spec": {"type": "ClusterIP"}})).await;
    world.wait("a to let go", &world.api(), |services| (!addresses(services).contains_key("a")).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_are_furnished_and_emptied() {
    let world = World::new(&["n1"]).await;
    world.create_namespace("shop").await;
    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), "shop");
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "shop");
    world
        .wait("the account", &accounts, |all| all.iter().any(|account| account.name_any() == "default").then_some(()))
        .await;
    world.wait("the CA", &maps, |all| all.iter().any(|map| map.name_any() == "kube-root-ca.crt").then_some(())).await;
    let mut deployment = deployment(2);
    deployment["metadata"]["namespace"] = json!("shop");
    world.create::<Deployment>(deployment).await;
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "shop");
    world.wait("its pods", &pods, |pods| (pods.len() == 2).then_some(())).await;
    let _ = world.all::<Namespace>().delete("shop", &DeleteParams::default()).await.unwrap();
    world
        .wait("the namespace to go", &world.all::<Namespace>(), |all| {
            all.iter().all(|namespace| namespace.name_any() != "shop").then_some(())
        })
        .await;
    assert!(pods.list(&Default::default()).await.unwrap().items.is_empty());
}

fn owned(name: &str, owner: &impl Resource<DynamicType = ()>, blocking: bool) -> Value {
    let mut reference = owner.controller_owner_ref(&()).unwrap();
    reference.controller = None;
    reference.block_owner_deletion = Some(blocking);
    json!({"metadata": {"name": name, "namespace": "default", "ownerReferences": [reference]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_take_along_wait_for_or_spare_what_they_own() {
    let world = World::new(&[]).await;
    let names = |maps: &[Arc<ConfigMap>]| -> BTreeSet<String> {
        maps.iter().map(|map| map.name_any()).filter(|name| name != "kube-root-ca.crt").collect()
    };
    let owner = || json!({"metadata": {"name": "owner", "namespace": "default"}});
    let set = |expected: &[&str]| -> BTreeSet<String> { expected.iter().map(|name| (*name).to_owned()).collect() };

    let object: ConfigMap = world.create(owner()).await;
    world.create::<ConfigMap>(owned("child", &object, true)).await;
    world.create::<ConfigMap>(owned("spared", &object, true)).await;
    world.delete::<ConfigMap>("owner", DeleteParams::background()).await;
    world.wait("all to go", &world.api(), |maps| names(maps).is_empty().then_some(())).await;

    let object: ConfigMap = world.create(owner()).await;
    let mut guarded = owned("guarded", &object, true);
    guarded["metadata"]["finalizers"] = json!(["example.com/guard"]);
    world.create::<ConfigMap>(guarded).await;
    world.delete::<ConfigMap>("owner", DeleteParams::foreground()).await;
    world
        .wait("the child to be told to go", &world.api(), |maps: &[Arc<ConfigMap>]| {
            maps.iter().find(|map| map.name_any() == "guarded")?.metadata.deletion_timestamp.clone()
        })
        .await;
    assert_eq!(
        world.wait("both", &world.api(), |maps| Some(names(maps))).await,
        set(&["guarded", "owner"]),
        "the owner waits"
    );
    world.merge::<ConfigMap>("guarded", json!({"metadata": {"finalizers": null}})).await;
    world.wait("both to go", &world.api(), |maps| names(maps).is_empty().then_some(())).await;

    let object: ConfigMap = world.create(owner()).await;
    world.create::<ConfigMap>(owned("child", &object, false)).await;
    world.delete::<ConfigMap>("owner", DeleteParams::orphan()).await;
    world.wait("the child alone", &world.api(), |maps| (names(maps) == set(&["child"])).then_some(())).await;
    let child = world.api::<ConfigMap>().get("child").await.unwrap();
    assert!(child.owner_references().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hand_written_endpoints_are_mirrored() {
    let world = World::new(&[]).await;
    let metadata = json!({"name": "web", "namespace": "default"});
    let subsets = json!([{"addresses": [{"ip": "192.0.2.80"}], "ports": [{"port": 8080}]}]);
    let written: Endpoints = world.create(json!({"metadata": metadata, "subsets": subsets})).await;
    // They may be there before their Service. Once those of a later Service are made, they have been looked at.
    let mut later = service();
    later["metadata"]["name"] = json!("later");
    world.create::<Service>(later).await;
    let there = |name: &'static str| {
        move |all: &[Arc<Endpoints>]| all.iter().find(|endpoints| endpoints.name_any() == name).map(|found| found.uid())
    };
    world.wait("the later ones", &world.api(), there("later")).await;
    assert_eq!(world.wait("the first", &world.api(), there("web")).await, written.uid());
    world.create::<Service>(json!({"metadata": metadata, "spec": {"ports": [{"port": 80}]}})).await;
    let mirrored = wait_ready(&world, 1).await;
    assert!(mirrored.contains_key("192.0.2.80"));
    world.delete::<Service>("web", DeleteParams::default()).await;
    world
        .wait("both to go with the Service", &world.api::<EndpointSlice>(), |slices| {
            ready(slices, "web").is_empty().then_some(())
        })
        .await;
}
