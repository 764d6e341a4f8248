//! Scenes 5 and 6: reaching the backends from beyond the cluster.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Service;
use serde_json::json;

use super::{LONG_PATIENCE, PATIENCE, SceneReport, Stage, scene};
use crate::demo::objects::{self, BACKEND, PICTURE};
use crate::demo::report::seconds;
use crate::demo::stage::{World, now_ms};

const NODE_PORT: &str = "image-node-port";
const LOAD_BALANCER: &str = "image-public";
const REQUESTS: u32 = 60;
/// Time without a failure after which the restart counts as over.
const CALM: Duration = Duration::from_secs(1);

pub(super) async fn node_port(stage: &mut Stage<'_>) -> Result<SceneReport> {
    let mut scene = scene(5);
    let created =
        stage.world.create::<Service>(&objects::backend_service(NODE_PORT, &json!({"type": "NodePort"}))).await?;
    let ports = created.spec.and_then(|spec| spec.ports).unwrap_or_default();
    let port = ports.first().and_then(|port| port.node_port).context("the Service was given no NodePort")?;
    let nodes = stage.world.nodes();
    stage.progress.step(&format!("answers at port {port} of every node"));
    let asked = nodes.iter().map(async |(node, address, _)| {
        let figures = stage.ask_from_outside(&format!("http://{address}:{port}{PICTURE}"), REQUESTS, "10s").await?;
        Ok::<_, anyhow::Error>((node, address, figures))
    });
    let answers = try_join_all(asked).await?;
    scene
        .converged_after(answers.iter().filter_map(|(_, _, figures)| figures.first_answer_after_ms).max().unwrap_or(0));
    for (node, address, figures) in &answers {
        scene.count(&format!("the client of {node}"), figures);
        let backends = figures.backends.len();
        scene.remark(format!("{address}:{port} ({node}) answers from {backends} backends"));
    }
    if answers.len() != 3 {
        scene.problem(format!("{} nodes rather than three", answers.len()));
    }
    stage.settle(&mut scene).await?;
    Ok(scene.finish())
}

pub(super) async fn load_balancer(stage: &mut Stage<'_>) -> Result<SceneReport> {
    let mut scene = scene(6);
    let began = now_ms();
    stage.world.create::<Service>(&objects::backend_service(LOAD_BALANCER, &json!({"type": "LoadBalancer"}))).await?;
    let address = wait_address(stage).await?;
    let cluster_ip = cluster_ip(&stage.world)?;
    let before = stage.ask_from_outside(&format!("http://{address}{PICTURE}"), REQUESTS, "10s").await?;
    let first = before.from_ms.saturating_sub(began);
    scene.count("the client outside", &before);
    scene.remark(format!("{address} answers from outside after {}", seconds(first)));

    // What the front end sees while there is no cluster is nobody's failure.
    stage.settle(&mut scene).await?;
    stage.load.detach();
    stage.progress.step("the cluster to stop");
    let stopped = now_ms();
    stage.cluster.stop().await?;
    stage.progress.step("the cluster to start again");
    stage.cluster.start().await?;
    stage.world = World::connect(&stage.cluster.kubeconfig(), &stage.signals).await?;
    let first = stage.ask_from_outside(&format!("http://{address}{PICTURE}"), 1, "60s").await?;
    let first = first.from_ms.saturating_sub(stopped);

    // The restart is over when every backend has answered and nothing fails any more.
    stage.load.attach(stage.world.client.clone(), stopped);
    let pods = stage.wait_ready(BACKEND, 3, LONG_PATIENCE).await?;
    let answered = stage.wait_answers_of(&pods, LONG_PATIENCE).await?;
    let last_failure = stage.wait_calm(CALM, LONG_PATIENCE).await?;
    scene.converged_after(answered.max(last_failure.unwrap_or(0)).saturating_sub(stopped));
    stage.load.take();

    let after = stage.ask_from_outside(&format!("http://{address}{PICTURE}"), REQUESTS, "1s").await?;
    scene.count("the client outside, after the restart", &after);
    let address_after = wait_address(stage).await?;
    if address_after != address {
        scene.problem(format!("the address was {address} and is {address_after} after the restart"));
    }
    let cluster_ip_after = self::cluster_ip(&stage.world)?;
    if cluster_ip_after != cluster_ip {
        scene.problem(format!("the ClusterIP was {cluster_ip} and is {cluster_ip_after} after the restart"));
    }
    scene.remark(format!("stopped, started again and answering at {address_after} {} later", seconds(first)));
    stage.watch_load(100, PATIENCE).await?;
    stage.settle(&mut scene).await?;
    Ok(scene.finish())
}

/// The one address the Service is given; a second one is as wrong as none.
async fn wait_address(stage: &Stage<'_>) -> Result<String> {
    stage
        .wait("an address for the LoadBalancer", PATIENCE, |stage| {
            let service = stage.world.service(LOAD_BALANCER).ok_or("no Service")?;
            let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
            let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
            match ingress {
                [only] => only.ip.clone().ok_or_else(|| "an ingress without an ip".to_owned()),
                several => Err(format!("{} addresses", several.len())),
            }
        })
        .await
}

fn cluster_ip(world: &World) -> Result<String> {
    let service = world.service(BACKEND).with_context(|| format!("Service {BACKEND} is gone"))?;
    match service.spec.as_ref().and_then(|spec| spec.cluster_ip.clone()) {
        Some(address) if !address.is_empty() => Ok(address),
        _ => bail!("Service {BACKEND} has no ClusterIP"),
    }
}
