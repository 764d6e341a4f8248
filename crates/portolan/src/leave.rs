//! A node that is about to go down -> out of every Service, before anything on it ends.
//!
//! Says through the API that the Node and its pods are not ready, and waits until nobody is led to them any more, so
//! that an orderly shutdown costs no request. Invariants: bounded in time, since power may go any moment, and whatever
//! fails is no reason not to go down; nothing is deleted, so a node that comes back has its pods.
//!
//! Deliberately not here: moving pods elsewhere. That is the node lifecycle controller's, if the node stays away.

use std::time::Duration;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use portolan_client::Cache;
use serde_json::{Value, json};

/// What all of it may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// The other nodes hear of it when this one does, and have it in their kernels a moment later.
const SETTLE: Duration = Duration::from_millis(250);
/// Patches side by side.
const ABREAST: usize = 16;

/// Nothing else may write this node's status, or its pods', any more.
pub(crate) async fn leave(client: &Client, node: &str) {
    match tokio::time::timeout(PATIENCE, depart(client, node)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("cannot say that this node goes down: {error:#}"),
        Err(_) => tracing::warn!("some Services still lead here after {PATIENCE:?}; going down all the same"),
    }
}

async fn depart(client: &Client, node: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.patch_status(node, &PatchParams::default(), &not_ready("KubeletNotReady", "node is shutting down")).await?;
    let own = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let pods = Api::<Pod>::all(client.clone()).list(&own).await?.items;
    let terminated = not_ready("Terminated", "Pod was terminated in response to imminent node shutdown.");
    futures::stream::iter(pods.iter().filter(|pod| is_ready(pod)))
        .map(|pod| {
            let api = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
            let (name, params) = (pod.name_any(), PatchParams::default());
            let terminated = &terminated;
            async move {
                match api.patch_status(&name, &params, terminated).await {
                    // Deleted meanwhile.
                    Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                    patched => patched.map(drop),
                }
            }
        })
        .buffer_unordered(ABREAST)
        .try_collect::<()>()
        .await?;
    if pods.iter().any(is_ready) {
        nobody_is_led_to(client, node).await;
        tokio::time::sleep(SETTLE).await;
    }
    Ok(())
}

fn not_ready(reason: &str, message: &str) -> Patch<Value> {
    let now = jiff::Timestamp::now();
    let since = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now);
    let condition =
        json!({"type": "Ready", "status": "False", "reason": reason, "message": message, "lastTransitionTime": since});
    Patch::Strategic(json!({"status": {"conditions": [condition]}}))
}

fn is_ready(pod: &Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Returns once no EndpointSlice has a ready endpoint on the node.
async fn nobody_is_led_to(client: &Client, node: &str) {
    // This node's own DNS is asked by its own pods only.
    let pods = watcher::Config::default().labels("kubernetes.io/service-name!=kube-dns");
    let (slices, drive) = Cache::<EndpointSlice>::new(Api::all(client.clone()), pods);
    let mut changes = slices.subscribe();
    let gone = async {
        slices.synced().await;
        while slices.list().iter().any(|slice| leads_to(slice, node)) && changes.recv().await.is_some() {}
    };
    tokio::select! {
        () = drive => {}
        () = gone => {}
    }
}

fn leads_to(slice: &EndpointSlice, node: &str) -> bool {
    slice.endpoints.iter().any(|endpoint| {
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        ready && endpoint.node_name.as_deref() == Some(node)
    })
}
