//! One pod's worker: asks what to do, has it done, and says what became of it, until nothing of the pod is left.
//!
//! All that takes time runs in `jobs`, whose outcomes come back to the one loop that owns the pod's state. So there
//! are no locks, and no two actions race.

mod act;
mod report;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::hooks::Target;
use super::host::{Adopted, Host};
use super::logs::Containers;
use super::probing::{Answer, Probing};
use super::spec_of;
use super::start::{self, NewSandbox, Refused, Unmade, instance_id};
use super::tokens;
use crate::pod::{
    Action, Ended, Exit, Phase, ProbeKind, Realized, Remembered, Sandbox, Verdict, adopted, is_backing_off, lost,
    next_actions, sandbox_lost,
};
use crate::shim::{Instance, Shim, ShimEvent};

const FIRST_RETRY: SignedDuration = SignedDuration::from_secs(10);
const LONGEST_RETRY: SignedDuration = SignedDuration::from_mins(5);
const MAX_MESSAGE: u64 = 4096;

/// The pod as the API last showed it.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) pod: Arc<Pod>,
    /// It is no longer in the API.
    pub(super) gone: bool,
}

enum Outcome {
    Sandbox(Result<NewSandbox, Unmade>),
    SandboxRemoved,
    Started {
        name: String,
        attempt: u32,
        result: Result<Instance, Refused>,
    },
    /// A container was told to stop; its exit is told by the shim.
    Stopped,
    Status(Map<String, Value>, Result<Box<Pod>, kube::Error>),
    Deleted(Result<(), kube::Error>),
    Tokens(Result<Option<Timestamp>, String>),
}

struct Sheltered {
    shim: Shim,
    /// The shim is gone.
    gone: CancellationToken,
}

struct Worker {
    host: Arc<Host>,
    pod: Arc<Pod>,
    uid: String,
    realized: Realized,
    shim: Option<Sheltered>,
    events: Option<mpsc::UnboundedReceiver<ShimEvent>>,
    address: Option<Ipv4Addr>,
    drivers: JoinSet<()>,
    jobs: JoinSet<Outcome>,
    stops: BTreeMap<String, AbortHandle>,
    probing: Probing,
    written: watch::Sender<Containers>,
    /// Starts of each container, and of the sandbox (the empty name), that failed in a row.
    failures: BTreeMap<String, u32>,
    writing: bool,
    write_failures: u32,
    write_after: Option<Timestamp>,
    /// A patch that the API took and did not keep, with the revision it left.
    unkept: Option<(Option<String>, Map<String, Value>)>,
    deleting: bool,
    /// When to renew the tokens in the pod's volumes.
    renew_tokens: Option<Timestamp>,
    /// Tells of images that come.
    images: watch::Receiver<()>,
}

/// Works until nothing of the pod is left; gives its uid.
pub(super) async fn run(host: Arc<Host>, mut seen: watch::Receiver<Seen>, adopted: Option<Adopted>) -> String {
    let first = seen.borrow_and_update().clone();
    let mut worker = Worker::new(host, first, adopted);
    worker.work(&mut seen).await;
    let Worker { host, pod, uid, .. } = worker;
    let (namespace, name) = names(&pod);
    host.logs.remove(namespace, name, &uid);
    let dir = host.pod_dir(&uid);
    // Its logs may be large.
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir)).await;
    if let Ok(Err(error)) = removed {
        tracing::debug!(%uid, %error, "cannot remove a pod's directory");
    }
    uid
}

fn names(pod: &Pod) -> (&str, &str) {
    (pod.metadata.namespace.as_deref().unwrap_or_default(), pod.metadata.name.as_deref().unwrap_or_default())
}

impl Worker {
    fn new(host: Arc<Host>, seen: Seen, adopted: Option<Adopted>) -> Self {
        let pod = seen.pod;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let (namespace, name) = names(&pod);
        let written = host.logs.add(namespace, name, &uid, host.pod_dir(&uid));
        let mut worker = Self {
            probing: Probing::new(),
            realized: Realized::default(),
            shim: None,
            events: None,
            address: None,
            drivers: JoinSet::new(),
            jobs: JoinSet::new(),
            stops: BTreeMap::new(),
            written,
            failures: BTreeMap::new(),
            writing: false,
            write_failures: 0,
            write_after: None,
            unkept: None,
            deleting: false,
            renew_tokens: None,
            images: host.images.subscribe(),
            host,
            pod,
            uid,
        };
        match adopted {
            Some(found) => worker.adopt(found),
            None => worker.realized = lost(&worker.pod, Timestamp::now()),
        }
        worker.realized.deleted = seen.gone;
        worker
    }

    fn adopt(&mut self, found: Adopted) {
        let remembered = found.instances.into_iter().map(|instance| Remembered {
            container: instance.start.container,
            attempt: instance.start.attempt,
            backoff: instance.start.backoff,
            image_id: instance.start.image_id,
            started_at: instance.started_at,
            exit: instance.exit,
        });
        self.realized = adopted(&self.pod, remembered.collect());
        let ips = vec![found.record.address.map_or(self.host.config.node_ip, IpAddr::V4)];
        // Nobody remembers how old they are.
        let renew_tokens = tokens::has(&self.pod).then(Timestamp::now);
        self.shelter(NewSandbox { shim: found.shim, events: found.events, driver: found.driver, ips, renew_tokens });
        self.address = found.record.address;
        let running: Vec<String> =
            self.realized.containers.iter().filter(|(_, c)| c.is_running()).map(|(name, _)| name.clone()).collect();
        for name in running {
            self.watch_over(&name);
        }
    }

    fn shelter(&mut self, made: NewSandbox) {
        let gone = CancellationToken::new();
        let (driver, done) = (made.driver, gone.clone());
        self.drivers.spawn(async move {
            driver.await;
            done.cancel();
        });
        self.shim = Some(Sheltered { shim: made.shim, gone });
        self.events = Some(made.events);
        self.realized.sandbox = Sandbox::Ready;
        self.realized.sandbox_error = None;
        self.address = made.ips.iter().find_map(|ip| match ip {
            IpAddr::V4(ip) if IpAddr::V4(*ip) != self.host.config.node_ip => Some(*ip),
            _ => None,
        });
        self.realized.ips = made.ips;
        self.renew_tokens = made.renew_tokens;
    }

    async fn work(&mut self, seen: &mut watch::Receiver<Seen>) {
        loop {
            let now = Timestamp::now();
            let plan = next_actions(&self.pod, &self.realized, now);
            let mut again = false;
            for action in plan.actions {
                again |= matches!(action, Action::Fail { .. });
                self.act(action, now);
            }
            if again {
                continue;
            }
            self.publish();
            self.write_status(now);
            self.renew_tokens(now);
            if self.realized.deleted && self.realized.sandbox == Sandbox::Absent {
                return;
            }
            let wake = [plan.wake, self.write_after, self.renew_tokens].into_iter().flatten().min();
            tokio::select! {
                changed = seen.changed() => {
                    // The agent is ending.
                    if changed.is_err() {
                        return;
                    }
                    let seen = seen.borrow_and_update().clone();
                    self.see(seen);
                }
                Some(outcome) = self.jobs.join_next() => match outcome {
                    Ok(outcome) => self.take(outcome),
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => tracing::error!(pod = %self.uid, %error, "a pod's job failed"),
                },
                Some(event) = next_event(&mut self.events) => self.hear(event),
                Some(answer) = self.probing.next() => self.judge(answer),
                Ok(()) = self.images.changed() => self.look_for_images(),
                () = sleep_until(wake) => self.write_after = self.write_after.filter(|at| *at > Timestamp::now()),
            }
        }
    }

    /// Has new tokens fetched when it is time, as long as somebody may read them.
    fn renew_tokens(&mut self, now: Timestamp) {
        if self.renew_tokens.is_none_or(|at| at > now) {
            return;
        }
        self.renew_tokens = None;
        if self.realized.sandbox == Sandbox::Ready && !self.realized.deleted {
            let (host, pod) = (self.host.clone(), self.pod.clone());
            self.jobs.spawn(async move { Outcome::Tokens(start::renew_tokens(&host, &pod).await) });
        }
    }

    fn see(&mut self, seen: Seen) {
        let grace = |pod: &Pod| pod.metadata.deletion_grace_period_seconds.unwrap_or(i64::MAX);
        if grace(&seen.pod) < grace(&self.pod) || seen.gone && !self.realized.deleted {
            // It is to end sooner than it was told: it is told again.
            for (name, stop) in std::mem::take(&mut self.stops) {
                stop.abort();
                if let Some(container) = self.realized.containers.get_mut(&name) {
                    container.stopping = false;
                }
            }
        }
        self.realized.deleted |= seen.gone;
        self.renew(seen.pod);
    }

    /// Takes in the object, unless a newer one is known.
    fn renew(&mut self, pod: Arc<Pod>) {
        let revision = |pod: &Pod| pod.metadata.resource_version.as_deref().and_then(|text| text.parse::<u64>().ok());
        if revision(&pod) >= revision(&self.pod) {
            self.pod = pod;
        }
    }

    fn take(&mut self, outcome: Outcome) {
        let now = Timestamp::now();
        match outcome {
            Outcome::Sandbox(Ok(made)) => {
                self.failures.remove("");
                self.shelter(made);
            }
            Outcome::Sandbox(Err(Unmade::Rejected { reason, message })) => {
                self.host.events.warning(&self.pod, None, reason, message.clone());
                self.realized.sandbox = Sandbox::Absent;
                self.realized.failed = Some((reason.to_owned(), format!("Pod was rejected: {message}")));
            }
            Outcome::Sandbox(Err(Unmade::Failed(message))) => {
                let mount = message.starts_with("MountVolume");
                let reason = if mount { "FailedMount" } else { "FailedCreatePodSandBox" };
                self.host.events.warning(&self.pod, None, reason, message.clone());
                let failures = self.failures.entry(String::new()).or_default();
                *failures += 1;
                let delay = SignedDuration::from_secs(1 << (*failures).min(6));
                self.realized.sandbox = Sandbox::Absent;
                self.realized.sandbox_error = Some((message, now.checked_add(delay).unwrap_or(now)));
            }
            Outcome::SandboxRemoved => {
                self.renew_tokens = None;
                self.realized.sandbox = Sandbox::Absent;
                self.realized.ips.clear();
            }
            Outcome::Started { name, attempt, result } => self.started(&name, attempt, result, now),
            Outcome::Stopped => {}
            Outcome::Status(patch, Ok(pod)) => {
                self.writing = false;
                self.write_failures = 0;
                self.unkept = Some((pod.metadata.resource_version.clone(), patch));
                self.renew(Arc::from(pod));
            }
            Outcome::Status(_, Err(error)) => {
                self.writing = false;
                self.retry_writing(&error, now);
            }
            Outcome::Tokens(Ok(renew_at)) => self.renew_tokens = renew_at,
            Outcome::Tokens(Err(error)) => {
                let (namespace, name) = names(&self.pod);
                tracing::warn!(namespace, name, %error, "cannot renew a pod's tokens; trying again");
                self.renew_tokens = now.checked_add(FIRST_RETRY).ok();
            }
            Outcome::Deleted(Ok(())) => {}
            Outcome::Deleted(Err(error)) => {
                self.deleting = false;
                self.retry_writing(&error, now);
            }
        }
    }

    fn started(&mut self, name: &str, attempt: u32, result: Result<Instance, Refused>, now: Timestamp) {
        let Some(container) = self.realized.containers.get_mut(name) else { return };
        // It may have ended before its start was told.
        if container.phase != Phase::Starting || container.attempt != attempt {
            return;
        }
        match result {
            Ok(instance) => {
                self.failures.remove(name);
                container.image_id = instance.start.image_id;
                container.phase = Phase::Running { since: instance.started_at };
                (container.started, container.ready) = (false, false);
                self.watch_over(name);
            }
            Err(Refused { reason, message }) => {
                let failures = self.failures.entry(name.to_owned()).or_default();
                *failures += 1;
                let delay = (FIRST_RETRY * (1 << (*failures - 1).min(5))).min(LONGEST_RETRY);
                container.phase = Phase::Waiting {
                    reason: reason.to_owned(),
                    message: Some(message.clone()),
                    retry_at: now.checked_add(delay).ok(),
                    failures: *failures,
                };
                if !reason.contains("Image") {
                    self.host.events.warning(&self.pod, Some(name), "Failed", format!("Error: {message}"));
                }
                // One that came while this was tried.
                self.look_for_images();
            }
        }
    }

    /// What waited for an image that is there now waits no longer.
    fn look_for_images(&mut self) {
        for (name, container) in &mut self.realized.containers {
            let Phase::Waiting { reason, retry_at: retry_at @ Some(_), .. } = &mut container.phase else { continue };
            let image = spec_of(&self.pod, name).and_then(|spec| spec.image.as_deref()).unwrap_or_default();
            if reason.contains("Image") && self.host.store.get(image).is_some() {
                *retry_at = None;
                self.failures.remove(name);
            }
        }
    }

    /// Starts the probes of a running container.
    fn watch_over(&mut self, name: &str) {
        let (Some(spec), Some(Sheltered { shim, .. })) = (spec_of(&self.pod, name), &self.shim) else { return };
        let Some(container) = self.realized.containers.get_mut(name) else { return };
        let id = instance_id(name, container.attempt);
        let target = Target { ip: self.realized.ips.first().copied(), shim: shim.clone(), id };
        container.started |= spec.startup_probe.is_none();
        container.ready |= container.started && spec.readiness_probe.is_none();
        for kind in self.probing.start(spec, container.attempt, &target, container.started) {
            let message = format!("{} probe errored: its port is not one of the container's", kind.word());
            self.host.events.warning(&self.pod, Some(name), "Unhealthy", message);
        }
    }

    fn hear(&mut self, event: ShimEvent) {
        match event {
            ShimEvent::Exited(instance) => self.exited(*instance),
            ShimEvent::Gone => {
                self.events = None;
                if self.realized.sandbox == Sandbox::Ready {
                    self.lose_sandbox();
                }
            }
        }
    }

    fn exited(&mut self, instance: Instance) {
        let name = instance.start.container;
        let Some(exit) = instance.exit else { return };
        let Some(container) = self.realized.containers.get_mut(&name) else { return };
        if container.attempt != instance.start.attempt {
            return;
        }
        let message = last_words(&self.host.pod_dir(&self.uid), &instance.start.id);
        container.image_id = instance.start.image_id;
        let started_at = Some(instance.started_at);
        container.phase =
            Phase::Exited(Ended { exit, started_at, message, reason: None, attempt: instance.start.attempt });
        self.over(&name);
        if is_backing_off(&self.pod, &self.realized, &name, Timestamp::now()) {
            let (namespace, pod) = names(&self.pod);
            let message = format!("Back-off restarting failed container {name} in pod {pod}_{namespace}({})", self.uid);
            self.host.events.warning(&self.pod, Some(&name), "BackOff", message);
        }
    }

    /// A container no longer runs.
    fn over(&mut self, name: &str) {
        if let Some(container) = self.realized.containers.get_mut(name) {
            (container.started, container.ready, container.stopping) = (false, false, false);
        }
        if let Some(stop) = self.stops.remove(name) {
            stop.abort();
        }
        self.probing.forget(name);
    }

    /// The shim was killed, and took every container along.
    fn lose_sandbox(&mut self) {
        let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
        self.host.events.normal(&self.pod, None, "SandboxChanged", message);
        let active: Vec<String> =
            self.realized.containers.iter().filter(|(_, c)| c.is_active()).map(|(name, _)| name.clone()).collect();
        for name in active {
            if let Some(container) = self.realized.containers.get_mut(&name) {
                let exit = Exit { code: 137, signal: Some(9), oom_killed: false, at: Timestamp::now() };
                let started_at = match container.phase {
                    Phase::Running { since } => Some(since),
                    _ => None,
                };
                let message = Some("the pod's shim was killed".to_owned());
                let attempt = container.attempt;
                container.phase = Phase::Exited(Ended { exit, started_at, message, reason: None, attempt });
            }
            self.over(&name);
        }
        self.shim = None;
        self.remove_sandbox();
        sandbox_lost(&self.pod, &mut self.realized);
    }

    fn judge(&mut self, answer: Answer) {
        let Some(container) = self.realized.containers.get_mut(&answer.container) else { return };
        if !container.is_running() || container.attempt != answer.attempt {
            return;
        }
        let kind = answer.kind;
        if let Err(reason) = &answer.result {
            let message = format!("{} probe failed: {reason}", kind.word());
            self.host.events.warning(&self.pod, Some(&answer.container), "Unhealthy", message);
        }
        match (kind, answer.verdict) {
            (_, None) => {}
            (ProbeKind::Readiness, Some(verdict)) => container.ready = verdict == Verdict::Succeeded,
            (ProbeKind::Startup, Some(Verdict::Succeeded)) => {
                container.started = true;
                self.probing.stop(&answer.container, &[ProbeKind::Startup]);
                self.watch_over(&answer.container);
            }
            (ProbeKind::Liveness, Some(Verdict::Succeeded)) => {}
            (ProbeKind::Startup | ProbeKind::Liveness, Some(Verdict::Failed)) => {
                if !container.stopping {
                    let grace = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
                    let grace = answer.grace.or(grace).and_then(|grace| u64::try_from(grace).ok()).unwrap_or(30);
                    let name = &answer.container;
                    let why =
                        format!("Container {name} failed {} probe, will be restarted", kind.word().to_lowercase());
                    self.stop(name, Duration::from_secs(grace), why);
                }
            }
        }
    }
}

async fn next_event(events: &mut Option<mpsc::UnboundedReceiver<ShimEvent>>) -> Option<ShimEvent> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Timestamp>) {
    match at {
        Some(at) => {
            let left = at.duration_since(Timestamp::now()).max(SignedDuration::from_millis(1));
            tokio::time::sleep(left.unsigned_abs()).await;
        }
        None => std::future::pending().await,
    }
}

/// What the container left in its termination log.
fn last_words(dir: &std::path::Path, id: &str) -> Option<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(dir.join("c").join(id).join(start::TERMINATION)).ok()?;
    file.take(MAX_MESSAGE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned()).filter(|text| !text.is_empty())
}
