//! Scene 4: more backends, fewer, and other ones, without a failed request.

use anyhow::Result;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::ResourceExt;
use kube::api::DeleteParams;
use portolan_client::Key;
use serde_json::json;

use super::{LONG_PATIENCE, PATIENCE, SceneReport, Stage, scene};
use crate::demo::objects::{self, BACKEND, NAMESPACE, OWNER};
use crate::demo::report::{Scene, seconds};
use crate::demo::stage::now_ms;

const DEPLOYMENT: &str = "image-backend-rolling";

pub(super) async fn scaling_and_rolling(stage: &mut Stage<'_>) -> Result<SceneReport> {
    let mut scene = scene(4);
    for replicas in [6, 2, 3] {
        scale(stage, &mut scene, replicas).await?;
    }

    // A Deployment beside the ReplicaSet: both are behind the Service, which looks at labels only.
    stage.world.create::<Deployment>(&objects::deployment(DEPLOYMENT, 3, "1")).await?;
    stage.wait_ready(BACKEND, 6, LONG_PATIENCE).await?;
    stage.world.scale::<ReplicaSet>(BACKEND, 0).await?;
    stage.wait_ready(BACKEND, 3, LONG_PATIENCE).await?;
    stage.world.delete::<ReplicaSet>(BACKEND, &DeleteParams::default()).await?;

    let began = now_ms();
    let change = objects::deployment(DEPLOYMENT, 3, "2");
    let template = json!({"spec": {"template": change["spec"]["template"]}});
    let patched = stage.world.patch::<Deployment>(DEPLOYMENT, &template).await?;
    let generation = patched.metadata.generation.unwrap_or_default();
    stage.wait("the rolling change to be complete", LONG_PATIENCE, |stage| rolled(stage, generation)).await?;
    let pods = stage.world.ready_pods(BACKEND);
    let answered = stage.wait_answers_of(&pods, PATIENCE).await?;
    let took = answered.max(now_ms()).saturating_sub(began);
    scene.converged_after(took);
    scene.remark(format!("rolling change of three backends in {}", seconds(took)));
    stage.watch_load(100, PATIENCE).await?;
    stage.settle(&mut scene).await?;
    Ok(scene.finish())
}

async fn scale(stage: &Stage<'_>, scene: &mut Scene, replicas: u32) -> Result<()> {
    let began = now_ms();
    let before = stage.world.ready_pods(BACKEND).len();
    stage.world.scale::<ReplicaSet>(BACKEND, replicas).await?;
    let pods = stage.wait_ready(BACKEND, usize::try_from(replicas)?, LONG_PATIENCE).await?;
    stage.wait_answers_of(&pods, PATIENCE).await?;
    let gone = stage.wait("the surplus pods to be gone", LONG_PATIENCE, |stage| {
        let there = stage.world.pods_with(OWNER, BACKEND);
        if there.len() == pods.len() { Ok(()) } else { Err(stage.describe_pods(&pods)) }
    });
    gone.await?;
    scene.remark(format!("from {before} to {replicas} backends in {}", seconds(now_ms().saturating_sub(began))));
    Ok(())
}

/// As `kubectl rollout status` judges it, and that nothing of the old template is left.
fn rolled(stage: &Stage<'_>, generation: i64) -> Result<(), String> {
    let deployment = stage.world.deployments.get(&Key::new(NAMESPACE, DEPLOYMENT)).ok_or("no Deployment")?;
    let status = deployment.status.clone().unwrap_or_default();
    let seen = status.observed_generation.unwrap_or_default() >= generation;
    let counts = [status.replicas, status.updated_replicas, status.ready_replicas, status.available_replicas];
    if !seen || counts != [Some(3); 4] {
        return Err(format!("replicas, updated, ready, available: {:?}", counts.map(Option::unwrap_or_default)));
    }
    let pods = stage.world.pods_with(OWNER, DEPLOYMENT);
    let old = pods.iter().filter(|pod| pod.labels().get("version").is_none_or(|version| version != "2")).count();
    let ready = stage.world.ready_pods(BACKEND).len();
    if old == 0 && ready == 3 { Ok(()) } else { Err(format!("{old} old pods, {ready} ready endpoints")) }
}
