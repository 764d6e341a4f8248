//! Scenes 7–9: Services that are more name than address.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use super::{PATIENCE, SceneReport, Stage, scene};
use crate::demo::objects::{self, BACKEND, PICTURE, dns_name};
use crate::demo::outside;
use crate::demo::stage::now_ms;
use crate::workload::lookup::Found;

const EXTERNAL: &str = "picture-service";
const OUTSIDE: &str = "image-outside";
const OUTSIDE_PORT: u16 = 9000;
const HEADLESS: &str = "image-headless";
const REQUESTS: u32 = 60;

pub(super) async fn external_name(stage: &mut Stage<'_>) -> Result<SceneReport> {
    let mut scene = scene(7);
    let target = dns_name(BACKEND);
    let began = now_ms();
    let created = stage.world.create::<Service>(&objects::external_name(EXTERNAL, &target)).await?;
    if let Some(address) = created.spec.and_then(|spec| spec.cluster_ip).filter(|address| !address.is_empty()) {
        scene.problem(format!("an ExternalName was given the address {address}"));
    }
    let found = look_up(stage, "lookup-external-name", EXTERNAL).await?;
    let alias = found.answers.first().filter(|record| record.record_type == "CNAME");
    match alias {
        Some(record) if same_name(&record.data, &target) => {
            scene.remark(format!("{} is an alias of {}", record.name, record.data));
        }
        _ => scene.problem(format!("the first answer is not a CNAME to {target}: {:?}", found.answers)),
    }
    let service = stage.world.service(BACKEND).with_context(|| format!("Service {BACKEND} is gone"))?;
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.clone()).unwrap_or_default();
    if found.addresses() != BTreeSet::from([address.clone()]) {
        scene.problem(format!("the alias leads to {:?}, the target's address is {address}", found.addresses()));
    }
    let url = format!("http://{}{PICTURE}", dns_name(EXTERNAL));
    let figures = stage.ask_from_pod("ask-external-name", &url, REQUESTS).await?;
    scene.converged_after(figures.from_ms.saturating_sub(began));
    scene.count("the client of the alias", &figures);
    stage.settle(&mut scene).await?;
    Ok(scene.finish())
}

pub(super) async fn hand_written_slice(stage: &mut Stage<'_>) -> Result<SceneReport> {
    let mut scene = scene(8);
    let address = outside::address()?.to_string();
    let arguments = ["image", "--port", &OUTSIDE_PORT.to_string()].map(ToOwned::to_owned);
    let _server = outside::start(stage.cluster.program(), &arguments)?;
    let began = now_ms();
    let (service, slice) = objects::hand_written(OUTSIDE, &address, OUTSIDE_PORT);
    stage.world.create::<Service>(&service).await?;
    stage.world.create::<EndpointSlice>(&slice).await?;
    let figures =
        stage.ask_from_pod("ask-outside", &format!("http://{}{PICTURE}", dns_name(OUTSIDE)), REQUESTS).await?;
    scene.converged_after(figures.from_ms.saturating_sub(began));
    scene.count("the client of the machine outside", &figures);
    let backends: Vec<_> = figures.backends.keys().collect();
    if backends.len() > 1 || backends.iter().any(|name| stage.world.pod(name).is_some()) {
        scene.problem(format!("{backends:?} answered, not the one machine outside"));
    }
    scene.remark(format!("the ClusterIP of {OUTSIDE} leads to {address}:{OUTSIDE_PORT}, a machine beyond the cluster"));
    stage.settle(&mut scene).await?;
    Ok(scene.finish())
}

pub(super) async fn headless(stage: &mut Stage<'_>) -> Result<SceneReport> {
    let mut scene = scene(9);
    let began = now_ms();
    stage.world.create::<Service>(&objects::backend_service(HEADLESS, &json!({"clusterIP": "None"}))).await?;
    let pods = stage.wait_ready(HEADLESS, 3, PATIENCE).await?;
    let addresses: BTreeSet<String> =
        stage.world.ready_endpoints(HEADLESS).iter().map(|endpoint| endpoint.address.to_string()).collect();
    let found = look_up(stage, "lookup-headless", HEADLESS).await?;
    if found.addresses() == addresses {
        scene.remark(format!("{} is {}", found.name, addresses.iter().cloned().collect::<Vec<_>>().join(", ")));
    } else {
        scene.problem(format!("the name has {:?}, the pods have {addresses:?}", found.addresses()));
    }
    let url = format!("http://{}:8080{PICTURE}", dns_name(HEADLESS));
    let figures = stage.ask_from_pod("ask-headless", &url, REQUESTS).await?;
    scene.converged_after(figures.from_ms.saturating_sub(began));
    scene.count("the client of the pods themselves", &figures);
    let answered: BTreeSet<String> = figures.backends.keys().cloned().collect();
    if answered != pods {
        scene.problem(format!("{answered:?} answered, behind the name are {pods:?}"));
    }
    stage.settle(&mut scene).await?;
    Ok(scene.finish())
}

async fn look_up(stage: &Stage<'_>, pod: &str, service: &str) -> Result<Found> {
    let arguments = ["lookup".to_owned(), format!("{}.", dns_name(service))];
    let log = stage.run_in_pod(pod, &arguments).await?;
    serde_json::from_str(log.trim()).with_context(|| format!("pod {pod} said: {log}"))
}

fn same_name(one: &str, other: &str) -> bool {
    one.trim_end_matches('.').eq_ignore_ascii_case(other.trim_end_matches('.'))
}
