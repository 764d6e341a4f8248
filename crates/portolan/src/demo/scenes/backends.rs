//! Scenes 1–3: backends behind one address, and what becomes of it when they die.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::DeleteParams;
use serde_json::json;

use super::{LONG_PATIENCE, PATIENCE, SceneReport, Stage, scene};
use crate::demo::objects::{self, BACKEND, FRONT_END};
use crate::demo::report::{Scene, seconds, shares};
use crate::demo::stage::now_ms;

/// Requests after which each of three backends must have had at least half its fair share.
const SHARED_REQUESTS: u64 = 400;

pub(super) async fn three_behind_a_service(stage: &mut Stage<'_>) -> Result<SceneReport> {
    let mut scene = scene(1);
    let nodes = stage.wait("three ready nodes", LONG_PATIENCE, |stage| {
        let nodes = stage.world.nodes();
        let ready = nodes.iter().filter(|(_, _, ready)| *ready).count();
        if ready == 3 { Ok(nodes) } else { Err(format!("{ready} ready of {}", nodes.len())) }
    });
    let nodes = nodes.await?;
    // With one node kept free for the front end, two of the three backends share a node.
    let (front_end_node, _, _) = nodes.last().context("no node")?;
    stage.world.cordon(front_end_node, true).await?;
    let began = now_ms();
    stage.world.create::<Service>(&objects::backend_service(BACKEND, &json!({}))).await?;
    stage.world.create::<ReplicaSet>(&objects::replica_set(BACKEND, 3)).await?;
    let pods = stage.wait_ready(BACKEND, 3, LONG_PATIENCE).await?;
    stage.world.cordon(front_end_node, false).await?;
    stage.world.create::<Pod>(&objects::front_end(front_end_node)).await?;
    stage.load.attach(stage.world.client.clone(), 0);
    let last = stage.wait_answers_of(&pods, PATIENCE).await?;
    scene.converged_after(last.saturating_sub(began));

    let by_node = nodes_of(stage);
    ensure!(
        by_node.values().any(|pods| pods.len() == 2),
        "two backends were to be on one node, but they are: {by_node:?}"
    );
    stage.watch_load(SHARED_REQUESTS, PATIENCE).await?;
    tell_shares(stage, &mut scene);
    let figures = stage.load.figures();
    for (pod, share) in shares(&figures) {
        if share < 100.0 / 6.0 {
            scene.problem(format!("{pod} got {share:.1} % of the requests; a third is fair"));
        }
    }
    if let Some(first) = figures.backends.values().map(|backend| backend.first_ms).min() {
        let after = first.saturating_sub(stage.started_ms);
        scene.remark(format!("first answer through the Service {} after the start of the cluster", seconds(after)));
    }
    stage.settle(&mut scene).await?;
    Ok(scene.finish())
}

/// Each node's ready backends.
fn nodes_of(stage: &Stage<'_>) -> BTreeMap<String, Vec<String>> {
    let mut nodes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for endpoint in stage.world.ready_endpoints(BACKEND) {
        if let (Some(node), Some(pod)) = (&endpoint.node, endpoint.pod()) {
            nodes.entry(node.to_string()).or_default().push(pod.to_string());
        }
    }
    nodes
}

fn tell_shares(stage: &Stage<'_>, scene: &mut Scene) {
    let figures = stage.load.figures();
    let endpoints = stage.world.ready_endpoints(BACKEND);
    for (pod, share) in shares(&figures) {
        let endpoint = endpoints.iter().find(|endpoint| endpoint.pod() == Some(pod));
        let place = endpoint
            .map(|endpoint| format!("{} on {}", endpoint.address, endpoint.node.as_deref().unwrap_or("no node")));
        scene.remark(format!("{share:>5.1} %  {pod}  {}", place.unwrap_or_default()));
    }
}

pub(super) async fn pod_killed(stage: &mut Stage<'_>) -> Result<SceneReport> {
    let mut scene = scene(2);
    let before = stage.world.ready_pods(BACKEND);
    // The one that is alone on its node, so that the next scene still finds two together.
    let by_node = nodes_of(stage);
    let victim = by_node.values().min_by_key(|pods| pods.len()).and_then(|pods| pods.first()).context("no backend")?;
    let killed = now_ms();
    scene.killed_at(killed);
    stage.world.delete::<Pod>(victim, &DeleteParams::default().grace_period(0)).await?;
    let replaced = replacement(stage, &before, &BTreeSet::from([victim.clone()])).await?;
    converged(stage, &mut scene, killed, &replaced).await?;
    scene.remark(format!("{victim} was killed; {} took its place", join(&replaced)));
    stage.watch_load(100, PATIENCE).await?;
    stage.settle(&mut scene).await?;
    Ok(scene.finish())
}

pub(super) async fn power_cut(stage: &mut Stage<'_>) -> Result<SceneReport> {
    let mut scene = scene(3);
    let before = stage.world.ready_pods(BACKEND);
    let by_node = nodes_of(stage);
    let host = stage.world.pod(FRONT_END).and_then(|pod| pod.spec.as_ref()?.node_name.clone());
    let (node, lost) = by_node
        .iter()
        .find(|(node, pods)| pods.len() >= 2 && Some(*node) != host.as_ref())
        .with_context(|| format!("no node with two backends, other than the front end's: {by_node:?}"))?;
    let lost: BTreeSet<String> = lost.iter().cloned().collect();
    let killed = now_ms();
    scene.killed_at(killed);
    stage.cluster.power_off(node).await?;
    let left = stage.wait("the dead node's endpoints to leave the Service", PATIENCE, |stage| {
        let ready = stage.world.ready_pods(BACKEND);
        if ready.is_disjoint(&lost) { Ok(now_ms()) } else { Err(stage.describe_pods(&ready)) }
    });
    let left = left.await?.saturating_sub(killed);
    let replaced = replacement(stage, &before, &lost).await?;
    converged(stage, &mut scene, killed, &replaced).await?;
    scene.remark(format!("{node} lost its power with {}", join(&lost)));
    scene.remark(format!("its endpoints left the Service after {}", seconds(left)));
    scene.remark(format!("{} took their place", join(&replaced)));
    if let Some(stray) = stage.world.ready_endpoints(BACKEND).iter().find(|e| e.node.as_deref() == Some(node)) {
        scene.problem(format!("{} is still said to be ready on the dead {node}", stray.address));
    }
    stage.watch_load(100, PATIENCE).await?;
    stage.cluster.power_on(node).await?;
    let again = stage.wait("the node to be ready again", LONG_PATIENCE, |stage| {
        let nodes = stage.world.nodes();
        let ready = nodes.iter().any(|(name, _, ready)| name == node && *ready);
        if ready { Ok(()) } else { Err(format!("{nodes:?}")) }
    });
    again.await?;
    stage.settle(&mut scene).await?;
    Ok(scene.finish())
}

/// Waits until as many as before are ready without the lost ones, and gives the new ones.
async fn replacement(
    stage: &Stage<'_>,
    before: &BTreeSet<String>,
    lost: &BTreeSet<String>,
) -> Result<BTreeSet<String>> {
    stage
        .wait("replacements in the Service", LONG_PATIENCE, |stage| {
            let ready = stage.world.ready_pods(BACKEND);
            let whole = ready.len() == before.len() && ready.is_disjoint(lost);
            if whole { Ok(ready.difference(before).cloned().collect()) } else { Err(stage.describe_pods(&ready)) }
        })
        .await
}

/// From the kill until every new backend had answered and nothing failed any more.
async fn converged(stage: &Stage<'_>, scene: &mut Scene, killed: u64, replaced: &BTreeSet<String>) -> Result<()> {
    let answered = stage.wait_answers_of(replaced, PATIENCE).await?;
    let last_failure = stage.load.figures().last_failure_ms.unwrap_or(0);
    scene.converged_after(answered.max(last_failure).saturating_sub(killed));
    Ok(())
}

fn join(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(" and ")
}
