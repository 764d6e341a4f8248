//! What an operator does: it defines a kind, watches its objects, writes what belongs to them, and says how they are.

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams, PropagationPolicy,
};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::world::{PATIENCE, World};

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crontabs.stable.example.com"},
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced", "names": {"plural": "crontabs", "kind": "CronTab"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"image": {"type": "string", "default": "busybox"}}},
                    "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}}
                }}}
            }]
        }
    })
}

fn crontab(name: &str, namespace: &str) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "stable.example.com/v1", "kind": "CronTab",
        "metadata": {"name": name, "namespace": namespace}, "spec": {}
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_works_and_what_its_objects_own_goes_with_them() {
    let world = World::new(&[]).await;
    let client = world.client.clone();
    let definitions = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let definitions: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&definitions));
    let parameters = PatchParams::apply("operator");
    definitions.patch("crontabs.stable.example.com", &parameters, &Patch::Apply(definition())).await.unwrap();

    let gvk = GroupVersionKind::gvk("stable.example.com", "v1", "CronTab");
    let (resource, _) = kube::discovery::pinned_kind(&client, &gvk).await.unwrap();
    let crontabs: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &resource);
    let seen = watcher(crontabs.clone(), watcher::Config::default()).default_backoff().applied_objects();
    let mut seen = std::pin::pin!(seen);
    crontabs.create(&PostParams::default(), &crontab("a", "default")).await.unwrap();
    let object = tokio::time::timeout(PATIENCE, seen.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((object.name_any().as_str(), &object.data["spec"]["image"]), ("a", &json!("busybox")));
    let status = json!({"status": {"replicas": 1}});
    crontabs.patch_status("a", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let object = tokio::time::timeout(PATIENCE, seen.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(object.data["status"]["replicas"], 1);

    let owned = json!({"metadata": {"name": "owned", "namespace": "default", "ownerReferences": [{
        "apiVersion": "stable.example.com/v1", "kind": "CronTab", "name": "a", "uid": object.uid()}]}});
    let map: ConfigMap = world.create(owned).await;
    // And the other way: a custom resource that belongs to what it found here.
    let mut dependent = crontab("dependent", "default");
    dependent.metadata.owner_references = Some(vec![map.controller_owner_ref(&()).unwrap()]);
    crontabs.create(&PostParams::default(), &dependent).await.unwrap();
    crontabs.delete("a", &DeleteParams::background()).await.unwrap();
    world
        .wait("what it owned to go", &world.api::<ConfigMap>(), |maps| {
            maps.iter().all(|map| map.name_any() != "owned").then_some(())
        })
        .await;
    wait_until_gone(&crontabs, "dependent").await;

    // A namespace takes them along.
    world.create_namespace("other").await;
    let elsewhere: Api<DynamicObject> = Api::namespaced_with(client.clone(), "other", &resource);
    elsewhere.create(&PostParams::default(), &crontab("b", "other")).await.unwrap();
    let namespaces: Api<Namespace> = world.all();
    namespaces.delete("other", &DeleteParams::default()).await.unwrap();
    world
        .wait("the namespace to go", &namespaces, |all| all.iter().all(|one| one.name_any() != "other").then_some(()))
        .await;
}

/// Of the definition's new version nothing can be listed: whoever is to convert it does not answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_cannot_be_emptied_keeps_its_namespace_and_says_why() {
    let world = World::new(&[]).await;
    let client = world.client.clone();
    let gvk = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let definitions: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&gvk));
    let name = "crontabs.stable.example.com";
    let parameters = PatchParams::apply("operator");
    definitions.patch(name, &parameters, &Patch::Apply(definition())).await.unwrap();
    let (resource, _) =
        kube::discovery::pinned_kind(&client, &GroupVersionKind::gvk("stable.example.com", "v1", "CronTab"))
            .await
            .unwrap();
    world.create_namespace("shop").await;
    let crontabs: Api<DynamicObject> = Api::namespaced_with(client.clone(), "shop", &resource);
    crontabs.create(&PostParams::default(), &crontab("a", "shop")).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client, "shop");
    let map = json!({"metadata": {"name": "settings"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();

    let mut broken = definition();
    let mut second = broken["spec"]["versions"][0].clone();
    (second["name"], second["storage"]) = (json!("v2"), json!(false));
    broken["spec"]["versions"].as_array_mut().unwrap().push(second);
    broken["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {
        "clientConfig": {"url": "https://127.0.0.1:1/"}, "conversionReviewVersions": ["v1"]}});
    definitions.patch(name, &parameters, &Patch::Apply(broken.clone())).await.unwrap();
    let namespaces: Api<Namespace> = world.all();
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    let failure = |namespace: &Namespace| {
        let conditions = namespace.status.as_ref()?.conditions.as_ref()?;
        let told = conditions.iter().find(|condition| condition.type_ == "NamespaceDeletionContentFailure")?;
        (told.status == "True").then(|| (told.reason.clone().unwrap(), told.message.clone().unwrap()))
    };
    let (reason, message) = world
        .wait("the reason", &namespaces, |all| {
            all.iter().find(|one| one.name_any() == "shop").and_then(|one| failure(one))
        })
        .await;
    assert_eq!(reason, "ContentDeletionFailed");
    assert!(message.starts_with("Failed to delete all resource types, 1 remaining: conversion webhook"), "{message}");
    world.wait("all else to go", &maps, |maps| maps.is_empty().then_some(())).await;

    broken["spec"]["conversion"] = json!({"strategy": "None"});
    definitions.patch(name, &parameters.force(), &Patch::Apply(broken)).await.unwrap();
    world
        .wait("the namespace to go", &namespaces, |all| all.iter().all(|one| one.name_any() != "shop").then_some(()))
        .await;
}

/// The controllers know what a definition defines a little later than all else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custom_resource_is_spared_with_its_owner_also_at_the_start() {
    let mut world = World::new(&[]).await;
    let client = world.client.clone();
    let gvk = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let definitions: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&gvk));
    let parameters = PatchParams::apply("operator");
    definitions.patch("crontabs.stable.example.com", &parameters, &Patch::Apply(definition())).await.unwrap();
    let gvk = GroupVersionKind::gvk("stable.example.com", "v1", "CronTab");
    let (resource, _) = kube::discovery::pinned_kind(&client, &gvk).await.unwrap();
    let crontabs: Api<DynamicObject> = Api::default_namespaced_with(client, &resource);
    world.stop_controllers().await;
    let map: ConfigMap = world.create(json!({"metadata": {"name": "owner", "namespace": "default"}})).await;
    let mut spared = crontab("spared", "default");
    spared.metadata.owner_references = Some(vec![map.controller_owner_ref(&()).unwrap()]);
    crontabs.create(&PostParams::default(), &spared).await.unwrap();
    let orphan = DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    world.api::<ConfigMap>().delete("owner", &orphan).await.unwrap();
    world.start_controllers();
    let maps: Api<ConfigMap> = world.api();
    world.wait("the owner to go", &maps, |maps| maps.iter().all(|map| map.name_any() != "owner").then_some(())).await;
    let spared = crontabs.get("spared").await.unwrap();
    assert!(spared.owner_references().is_empty() && spared.metadata.deletion_timestamp.is_none());
}

async fn wait_until_gone(api: &Api<DynamicObject>, name: &str) {
    let gone =
        kube::runtime::wait::await_condition(api.clone(), name, |object: Option<&DynamicObject>| object.is_none());
    tokio::time::timeout(PATIENCE, gone).await.unwrap().unwrap();
}
