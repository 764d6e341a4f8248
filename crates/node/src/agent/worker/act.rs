//! An action of the plan -> a job that carries it out, and the state that says it is under way.

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;

use super::super::hooks::Target;
use super::super::spec_of;
use super::super::start::{self, Wanted, instance_id, log_path};
use super::super::stop::{self, LEAST_GRACE};
use super::{Outcome, Sheltered, Worker};
use crate::pod::{Action, Phase, ProbeKind, Sandbox};
use crate::shim::{Request, kill};

impl Worker {
    pub(super) fn act(&mut self, action: Action, now: Timestamp) {
        match action {
            Action::CreateSandbox => {
                self.realized.sandbox = Sandbox::Creating;
                self.filling.follow(&self.host, &self.pod);
                let (host, pod) = (self.host.clone(), self.pod.clone());
                self.jobs.spawn(async move { Outcome::Sandbox(start::sandbox(&host, &pod).await) });
            }
            Action::RemoveSandbox => self.remove_sandbox(),
            Action::StartContainer { name, attempt } => self.start(name, attempt, now),
            Action::StopContainer { name, grace } => {
                self.stop(&name, grace.unsigned_abs(), format!("Stopping container {name}"));
            }
            Action::Fail { reason, message } => {
                self.host.events.warning(&self.pod, None, "DeadlineExceeded", message.clone());
                self.realized.failed = Some((reason, message));
            }
            Action::DeleteObject => self.delete_object(now),
        }
    }

    pub(super) fn remove_sandbox(&mut self) {
        self.realized.sandbox = Sandbox::Removing;
        self.probing.clear();
        self.filling.stop();
        let (host, uid, address) = (self.host.clone(), self.uid.clone(), self.address.take());
        let shim = self.shim.take();
        self.jobs.spawn(async move {
            if let Some(Sheltered { shim, gone }) = shim {
                let stopped = async {
                    // Nothing runs in it any more.
                    let _ = shim.call(Request::Stop { grace_ms: 0 }).await;
                    gone.cancelled().await;
                };
                if tokio::time::timeout(LEAST_GRACE, stopped).await.is_err() {
                    let dir = host.pod_dir(&uid);
                    let _ = tokio::task::spawn_blocking(move || kill(&dir)).await;
                }
            }
            host.clean_up(&uid).await;
            if let Some(address) = address {
                host.release_address(address);
            }
            Outcome::SandboxRemoved
        });
    }

    fn start(&mut self, name: String, attempt: u32, now: Timestamp) {
        let (Some(spec), Some(Sheltered { shim, .. })) = (spec_of(&self.pod, &name).map(Cow::into_owned), &self.shim)
        else {
            return;
        };
        let container = self.realized.containers.entry(name.clone()).or_default();
        if let Phase::Exited(ended) = std::mem::replace(&mut container.phase, Phase::Starting) {
            container.backoff = container.backoff.raised(ended.exit.at, now);
            container.last = Some(ended);
        }
        container.attempt = attempt;
        let wanted = Wanted {
            name: name.clone(),
            attempt,
            backoff: container.backoff,
            ips: self.realized.ips.clone(),
            again: self.failures.contains_key(&name),
            ending: self.ending.clone(),
        };
        let (host, pod, shim, dir) = (self.host.clone(), self.pod.clone(), shim.clone(), self.host.pod_dir(&self.uid));
        self.jobs.spawn(async move {
            // The start before the last is of no more interest.
            if let Some(old) = attempt.checked_sub(2) {
                let _ = shim.call(Request::Remove { id: instance_id(&wanted.name, old) }).await;
                let log = log_path(&dir, &wanted.name, old);
                let _ = std::fs::remove_file(crate::shim::rotated(&log));
                let _ = std::fs::remove_file(log);
            }
            let result = start::container(&host, &pod, &spec, &shim, &wanted).await;
            Outcome::Started { name, attempt, result }
        });
    }

    /// Runs the preStop hook, signals, and kills what is left after `grace`.
    pub(super) fn stop(&mut self, name: &str, grace: Duration, why: String) {
        let (Some(container), Some(Sheltered { shim, .. })) = (self.realized.containers.get_mut(name), &self.shim)
        else {
            return;
        };
        container.stopping = true;
        self.probing.stop(name, &[ProbeKind::Startup, ProbeKind::Liveness]);
        self.host.events.normal(&self.pod, Some(name), "Killing", why);
        let spec = spec_of(&self.pod, name).map(Cow::into_owned).unwrap_or_default();
        let id = instance_id(name, container.attempt);
        let target = Target { ip: self.realized.ips.first().copied(), shim: shim.clone(), id };
        let (host, pod) = (self.host.clone(), self.pod.clone());
        let stop = self.jobs.spawn(async move {
            let failed = |message| host.events.warning(&pod, Some(&spec.name), "FailedPreStopHook", message);
            stop::container(&host.store, &spec, &target, grace, failed).await;
            Outcome::Stopped
        });
        self.stops.insert(name.to_owned(), stop);
    }
}
