//! What became of a job, a container or a probe -> what the worker knows of its pod, and Events that say so.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;

use super::super::hooks::Target;
use super::super::logs;
use super::super::probing::Answer;
use super::super::spec_of;
use super::super::start::{self, Refused, Unmade, instance_id, log_path};
use super::{Outcome, Sheltered, Worker, names};
use crate::pod::{Ended, Exit, Phase, ProbeKind, Sandbox, Verdict, is_backing_off, sandbox_lost};
use crate::shim::{Instance, ShimEvent, Start};

const FIRST_RETRY: SignedDuration = SignedDuration::from_secs(10);
const LONGEST_RETRY: SignedDuration = SignedDuration::from_mins(5);
/// Bytes of a container's last words, and of those that are taken from its log; and lines of the latter.
const MAX_MESSAGE: u64 = 4096;
const MAX_LOG_MESSAGE: usize = 2048;
const MAX_LOG_LINES: usize = 80;

impl Worker {
    pub(super) fn take(&mut self, outcome: Outcome) {
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
            Outcome::Filled { renewed, result } => self.filled(renewed, result, now),
            Outcome::Deleted(Ok(())) => {}
            Outcome::Deleted(Err(error)) => {
                self.deleting = false;
                self.retry_writing(&error, now);
            }
        }
    }

    fn started(&mut self, name: &str, attempt: u32, result: Result<Box<Instance>, Refused>, now: Timestamp) {
        let Some(container) = self.realized.containers.get_mut(name) else { return };
        // It may have ended before its start was told.
        if container.phase != Phase::Starting || container.attempt != attempt {
            return;
        }
        match result {
            Ok(instance) => {
                let instance = *instance;
                self.failures.remove(name);
                (container.image_id, container.user) = (instance.start.image_id, instance.start.user);
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
    pub(super) fn look_for_images(&mut self) {
        for (name, container) in &mut self.realized.containers {
            let Phase::Waiting { reason, retry_at: retry_at @ Some(_), .. } = &mut container.phase else { continue };
            let Some(spec) = spec_of(&self.pod, name) else { continue };
            if reason.contains("Image") && start::has_images(&self.host, &self.pod, &spec) {
                *retry_at = None;
                self.failures.remove(name);
            }
        }
    }

    /// Starts the probes of a running container.
    pub(super) fn watch_over(&mut self, name: &str) {
        let (Some(spec), Some(Sheltered { shim, .. })) = (spec_of(&self.pod, name), &self.shim) else { return };
        let Some(container) = self.realized.containers.get_mut(name) else { return };
        let id = instance_id(name, container.attempt);
        let target = Target { ip: self.realized.ips.first().copied(), shim: shim.clone(), id };
        container.started |= spec.startup_probe.is_none();
        container.ready |= container.started && spec.readiness_probe.is_none();
        for kind in self.probing.start(&spec, container.attempt, &target, container.started) {
            let message = format!("{} probe errored: its port is not one of the container's", kind.word());
            self.host.events.warning(&self.pod, Some(name), "Unhealthy", message);
        }
    }

    pub(super) fn hear(&mut self, event: ShimEvent) {
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
        let name = instance.start.container.clone();
        let Some(exit) = instance.exit else { return };
        let Some(container) = self.realized.containers.get_mut(&name) else { return };
        if container.attempt != instance.start.attempt {
            return;
        }
        let spec = spec_of(&self.pod, &name);
        let message = last_words(&self.host.pod_dir(&self.uid), &instance.start, spec.as_deref(), &exit);
        (container.image_id, container.user) = (instance.start.image_id, instance.start.user);
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

    pub(super) fn judge(&mut self, answer: Answer) {
        let Some(container) = self.realized.containers.get_mut(&answer.container) else { return };
        if !container.is_running() || container.attempt != answer.attempt {
            return;
        }
        let kind = answer.kind;
        let told = match &answer.result {
            Err(why) => Some(("Unhealthy", format!("{} probe failed: {why}", kind.word()))),
            Ok(Some(what)) => Some(("ProbeWarning", format!("{} probe warning: {what}", kind.word()))),
            Ok(None) => None,
        };
        if let Some((reason, message)) = told {
            self.host.events.warning(&self.pod, Some(&answer.container), reason, message);
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

/// What the container left in its termination log; or, of one that failed without a word there, the end of its output
/// if it is to be that.
fn last_words(dir: &Path, start: &Start, spec: Option<&Container>, exit: &Exit) -> Option<String> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(dir.join("c").join(&start.id).join(start::TERMINATION)) {
        // What can be read counts.
        let _ = file.take(MAX_MESSAGE).read_to_end(&mut bytes);
    }
    let policy = spec.and_then(|spec| spec.termination_message_policy.as_deref());
    if bytes.is_empty() && exit.code != 0 && policy == Some("FallbackToLogsOnError") {
        let log = log_path(dir, &start.container, start.attempt);
        bytes = logs::end_of(&log, MAX_LOG_LINES, MAX_LOG_MESSAGE).unwrap_or_default();
    }
    Some(String::from_utf8_lossy(&bytes).into_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn last_words_are_taken_from_the_log_if_so_asked_and_only_of_failures() {
        let dir = tempfile::tempdir().unwrap();
        let start: Start = serde_json::from_value(json!({
            "id": "a.0", "container": "a", "attempt": 0, "backoff": serde_json::to_value(crate::pod::Backoff::default()).unwrap(),
            "image_id": "", "lower": "", "log": ""
        }))
        .unwrap();
        let log = log_path(dir.path(), "a", 0);
        let said = dir.path().join("c/a.0");
        for dir in [log.parent().unwrap(), &said] {
            std::fs::create_dir_all(dir).unwrap();
        }
        let words = |policy: &str, code: i32| {
            let spec = serde_json::from_value(json!({"name": "a", "terminationMessagePolicy": policy})).unwrap();
            let exit = Exit { code, signal: None, oom_killed: false, at: Timestamp::UNIX_EPOCH };
            last_words(dir.path(), &start, Some(&spec), &exit)
        };
        let lines: String = (0..1000).map(|n| format!("2026-01-01T00:00:01Z stdout F line {n}\n")).collect();
        std::fs::write(&log, format!("{lines}2026-01-01T00:00:02Z stderr P no \n2026-01-01T00:00:02Z stderr F more\n"))
            .unwrap();
        let fallback = words("FallbackToLogsOnError", 1).unwrap();
        assert!(fallback.starts_with("line 921\n") && fallback.ends_with("line 999\nno more\n"), "{fallback}");
        assert_eq!((words("FallbackToLogsOnError", 0), words("File", 1)), (None, None));
        let long = format!("2026-01-01T00:00:02Z stderr F {}\n", "é".repeat(5000));
        std::fs::write(&log, long).unwrap();
        assert!(words("FallbackToLogsOnError", 1).unwrap().len() <= MAX_LOG_MESSAGE + 3);
        std::fs::write(said.join(start::TERMINATION), "bye").unwrap();
        assert_eq!(words("FallbackToLogsOnError", 1).as_deref(), Some("bye"));
    }
}
