//! One pod's worker: asks what to do, has it done, and says what became of it, until nothing of the pod is left.
//!
//! All that takes time runs in `jobs`, whose outcomes come back to the one loop that owns the pod's state. So there
//! are no locks, and no two actions race.

mod act;
mod fill;
mod hear;
mod report;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::host::{Adopted, Host};
use super::logs::Containers;
use super::probing::Probing;
use super::start::{NewSandbox, Refused, Unmade};
use super::tokens;
use crate::pod::{Action, Realized, Remembered, Sandbox, adopted, lost, next_actions};
use crate::shim::{Instance, Shim, ShimEvent};
use fill::Filling;

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
        result: Result<Box<Instance>, Refused>,
    },
    /// A container was told to stop; its exit is told by the shim.
    Stopped,
    Status(Map<String, Value>, Result<Box<Pod>, kube::Error>),
    Deleted(Result<(), kube::Error>),
    Filled {
        renewed: bool,
        result: Result<Option<Timestamp>, String>,
    },
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
    /// Tells starts under way that the pod is to end.
    ending: CancellationToken,
    filling: Filling,
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
            ending: CancellationToken::new(),
            filling: Filling::default(),
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
            user: instance.start.user,
            started_at: instance.started_at,
            exit: instance.exit,
        });
        self.realized = adopted(&self.pod, remembered.collect());
        let ips = vec![found.record.address.map_or(self.host.config.node_ip, IpAddr::V4)];
        // Nobody remembers how old they are.
        let renew_tokens = tokens::has(&self.pod).then(Timestamp::now);
        self.filling.follow(&self.host, &self.pod);
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
        self.filling.renew_at(made.renew_tokens);
    }

    async fn work(&mut self, seen: &mut watch::Receiver<Seen>) {
        loop {
            let now = Timestamp::now();
            if self.realized.deleted || self.realized.failed.is_some() || self.pod.metadata.deletion_timestamp.is_some()
            {
                self.ending.cancel();
            }
            let plan = next_actions(&self.pod, &self.realized, now);
            let mut again = false;
            for action in plan.actions {
                again |= matches!(action, Action::Fail { .. });
                self.act(action, now);
            }
            if again {
                continue;
            }
            let desired = self.status(now);
            self.publish(&desired);
            self.write_status(&desired);
            self.refill(now);
            if self.realized.deleted && self.realized.sandbox == Sandbox::Absent {
                return;
            }
            let wake = [plan.wake, self.write_after, self.filling.wake()].into_iter().flatten().min();
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
                () = self.filling.changed() => {}
                () = sleep_until(wake) => self.write_after = self.write_after.filter(|at| *at > Timestamp::now()),
            }
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
            self.filling.see(&self.pod, &pod);
            self.pod = pod;
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
