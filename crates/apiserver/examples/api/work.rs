//! What is asked of a server, and how long each answer took.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::Client;
use crate::contender::Running;

/// Of each kind, in the large state.
pub(crate) const OBJECTS: usize = 10_000;
const FILLERS: usize = 32;
const WARM_UP: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(5);
const WATCHERS: usize = 100;
const CHANGES_A_SECOND: u64 = 1_000;
const CHANGERS: u64 = 8;
const FAN_OUT: Duration = Duration::from_secs(10);
const LISTS: usize = 20;

/// Times of answers, in the order they came.
#[derive(Default)]
pub(crate) struct Times {
    each: Vec<Duration>,
    took: Duration,
    /// Processor time of the server.
    processor: Duration,
}

impl Times {
    /// Processor time for each, in microseconds.
    pub(crate) fn cost(&self) -> String {
        format!("{:.0}", self.processor.as_secs_f64() * 1e6 / self.each.len() as f64)
    }

    pub(crate) fn rate(&self) -> String {
        format!("{:.0}", self.each.len() as f64 / self.took.as_secs_f64())
    }

    pub(crate) fn times(&self) -> String {
        let mut sorted = self.each.clone();
        sorted.sort();
        let at = |percent: usize| sorted[(sorted.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        format!("{:.2} / {:.2} ms", at(50), at(99))
    }
}

/// `clients` do `one` again and again; what they do in the first second does not count.
async fn again_and_again<F, R>(running: &Running, clients: usize, one: F) -> Result<Times>
where
    F: Fn(Client, usize, u64) -> R + Clone + Send + 'static,
    R: Future<Output = Result<Client>> + Send,
{
    let start = Instant::now() + WARM_UP;
    let end = start + MEASURED;
    let mut tasks = JoinSet::new();
    for index in 0..clients {
        let mut client = running.access.connect().await?;
        let one = one.clone();
        tasks.spawn(async move {
            let mut each = Vec::new();
            for round in 0.. {
                let before = Instant::now();
                if before >= end {
                    break;
                }
                client = one(client, index, round).await?;
                if before >= start {
                    each.push(before.elapsed());
                }
            }
            anyhow::Ok(each)
        });
    }
    tokio::time::sleep_until(start.into()).await;
    let before = running.processor()?;
    let mut times = Times { each: Vec::new(), took: MEASURED, processor: Duration::ZERO };
    while let Some(each) = tasks.join_next().await {
        times.each.extend(each??);
    }
    times.processor = running.processor()? - before;
    Ok(times)
}

pub(crate) async fn creates(running: &Running, clients: usize) -> Result<Times> {
    again_and_again(running, clients, move |mut client, index, round| async move {
        let body = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("c{clients}-{index}-{round}"), "labels": {"app": "bench"}},
            "data": {"config": "x".repeat(300)}
        });
        client.post("/api/v1/namespaces/default/configmaps", body.to_string()).await?;
        Ok(client)
    })
    .await
}

pub(crate) async fn renewals(running: &Running, clients: usize) -> Result<Times> {
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let mut setup = running.access.connect().await?;
    for index in 0..clients {
        let body = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": format!("l{clients}-{index}")},
            "spec": {"holderIdentity": "node", "leaseDurationSeconds": 40, "renewTime": "2026-01-01T00:00:00.000000Z"}
        });
        setup.post(leases, body.to_string()).await?;
    }
    again_and_again(running, clients, move |mut client, index, round| async move {
        let time =
            format!("2026-01-01T00:{:02}:{:02}.{:06}Z", round / 60_000_000, round / 1_000_000, round % 1_000_000);
        let body = json!({"spec": {"renewTime": time}}).to_string();
        client.merge(&format!("{leases}/l{clients}-{index}"), body).await?;
        Ok(client)
    })
    .await
}

/// `WATCHERS` connections that watch, while objects change at a fixed rate whatever becomes of the answers.
pub(crate) async fn fan_out(running: &Running) -> Result<String> {
    let maps = "/api/v1/namespaces/default/configmaps";
    let start = Instant::now();
    let mut setup = running.access.connect().await?;
    for index in 0..CHANGERS {
        let body = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("fan{index}"), "labels": {"fan": "out"}}, "data": {"at": "0"}
        });
        setup.post(maps, body.to_string()).await?;
    }
    let list: Value = serde_json::from_slice(&setup.get(&format!("{maps}?labelSelector=fan"), false).await?)?;
    let revision = list["metadata"]["resourceVersion"].as_str().context("a list without a revision")?;
    let path = format!("{maps}?watch=1&labelSelector=fan&resourceVersion={revision}");
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS {
        let (client, stream) = running.access.connect().await?.watch(&path).await?;
        watchers.spawn(watcher(client, stream, start, CHANGES_A_SECOND * FAN_OUT.as_secs()));
    }
    let next = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let mut changers = JoinSet::new();
    for index in 0..CHANGERS {
        let (mut client, next) = (running.access.connect().await?, next.clone());
        changers.spawn(async move {
            loop {
                let change = next.fetch_add(1, Ordering::Relaxed);
                if change >= CHANGES_A_SECOND * FAN_OUT.as_secs() {
                    return anyhow::Ok(());
                }
                let due = begin + Duration::from_secs(1) * u32::try_from(change)? / u32::try_from(CHANGES_A_SECOND)?;
                tokio::time::sleep_until(due.into()).await;
                let at = start.elapsed().as_nanos();
                client
                    .merge(&format!("{maps}/fan{index}"), json!({"data": {"at": at.to_string()}}).to_string())
                    .await?;
            }
        });
    }
    while let Some(done) = changers.join_next().await {
        done??;
    }
    let changed_in = begin.elapsed();
    let mut all = Times::default();
    while let Some(each) = watchers.join_next().await {
        all.each.extend(each??);
    }
    let rate = (CHANGES_A_SECOND * FAN_OUT.as_secs()) as f64 / changed_in.as_secs_f64();
    Ok(format!("{} to {WATCHERS} watchers, {rate:.0} changes/s", all.times()))
}

/// From before a change was sent until it is here, for each of `count` changes.
async fn watcher(_client: Client, mut stream: Incoming, start: Instant, count: u64) -> Result<Vec<Duration>> {
    const MARK: &[u8] = br#""at":""#;
    let mut each = Vec::new();
    let mut rest: Vec<u8> = Vec::new();
    while (each.len() as u64) < count {
        let frame = tokio::time::timeout(Duration::from_secs(60), stream.frame()).await.context("no event in time")?;
        let frame = frame.context("the watch ended early")??;
        rest.extend_from_slice(&frame.into_data().unwrap_or_default());
        let now = start.elapsed();
        let mut done = 0;
        while let Some(length) = rest[done..].iter().position(|byte| *byte == b'\n') {
            let line = &rest[done..done + length];
            done += length + 1;
            // The data comes last.
            let at = line.windows(MARK.len()).rposition(|window| window == MARK);
            let digits = &line[at.with_context(|| String::from_utf8_lossy(line).into_owned())? + MARK.len()..];
            let digits = digits.split(|byte| *byte == b'"').next().unwrap_or_default();
            each.push(now.saturating_sub(Duration::from_nanos(std::str::from_utf8(digits)?.parse()?)));
        }
        rest.drain(..done);
    }
    Ok(each)
}

fn service(index: usize) -> (&'static str, Value) {
    let body = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("svc-{index}"), "labels": {"app": format!("app-{index}")}},
        "spec": {"selector": {"app": format!("app-{index}")}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
    });
    ("/api/v1/namespaces/default/services", body)
}

fn slice(index: usize) -> (&'static str, Value) {
    let endpoint = |n: usize| {
        json!({
            "addresses": [format!("10.{}.{}.{}", 200 + n, index / 250, index % 250 + 1)], "nodeName": format!("node-{n}"),
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("pod-{index}-{n}")}
        })
    };
    let body = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("svc-{index}-abcde"),
            "labels": {"kubernetes.io/service-name": format!("svc-{index}"), "app": format!("app-{index}")}
        },
        "endpoints": (0..10).map(endpoint).collect::<Vec<_>>(), "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]
    });
    ("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", body)
}

fn pod(index: usize) -> (&'static str, Value) {
    let body = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{index}"), "labels": {"app": format!("app-{index}"), "pod-template-hash": "5d8f9c7b6"}},
        "spec": {
            "nodeName": format!("node-{}", index % 100),
            "containers": [{
                "name": "web", "image": "registry.example/web:1.2.3", "ports": [{"containerPort": 8080}],
                "env": [{"name": "PORT", "value": "8080"}], "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}}
            }]
        }
    });
    ("/api/v1/namespaces/default/pods", body)
}

/// Makes the large state.
pub(crate) async fn fill(running: &Running) -> Result<Times> {
    let start = Instant::now();
    let mut all = Times::default();
    for kind in [service, slice, pod] {
        let mut tasks = JoinSet::new();
        for filler in 0..FILLERS {
            let mut client = running.access.connect().await?;
            tasks.spawn(async move {
                let mut each = Vec::new();
                for index in (filler..OBJECTS).step_by(FILLERS) {
                    let (path, body) = kind(index);
                    let before = Instant::now();
                    client.post(path, body.to_string()).await?;
                    each.push(before.elapsed());
                }
                anyhow::Ok(each)
            });
        }
        while let Some(each) = tasks.join_next().await {
            all.each.extend(each??);
        }
    }
    all.took = start.elapsed();
    Ok(all)
}

/// All Services, and how many bytes that is.
pub(crate) async fn list_once(running: &Running, gzip: bool) -> Result<(Duration, usize)> {
    let mut client = running.access.connect().await?;
    let before = Instant::now();
    let bytes = client.get("/api/v1/services", gzip).await?;
    Ok((before.elapsed(), bytes.len()))
}

pub(crate) async fn list(running: &Running, gzip: bool) -> Result<(Times, usize)> {
    let mut times = Times::default();
    let mut size = 0;
    for _ in 0..LISTS {
        let (took, bytes) = list_once(running, gzip).await?;
        // The list's own revision is in it, and moves with whatever the server writes for itself.
        (size, times.took) = (bytes, times.took + took);
        times.each.push(took);
    }
    Ok((times, size))
}
