//! Pods of this node that ask not to be led -> the cgroups that the kubelet makes for them, left out.
//!
//! Invariants: nothing is polled: Pods are watched, and where somebody asks, the few directories that pods' cgroups are
//! made in. A cgroup is left out from the moment that it is there and its pod is known to ask for it, until one of the
//! two is over. Whoever may not see Pods leaves out nobody, and says once what is missing.
//!
//! Deliberately not here: making a pod wait. The kubelet makes a pod's cgroup before it starts anything in it, and the
//! cgroup is listed within milliseconds of that, but nobody holds the kubelet up. And machines whose kubelet uses
//! cgroup v1 alone: there is no telling whose a socket is.
//!
//! Source: Kubernetes `pkg/kubelet/cm/pod_container_manager_linux.go` and `cgroup_manager_linux.go` for the names.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use nix::sys::inotify::AddWatchFlags;
use portolan_client::{PodsSeen, pods_on};
use portolan_dataplane::sock::{Exempt, Exemptions};
use portolan_node::Changes;

use crate::sockets::{ANNOTATION, objection, warn_of};
use crate::up::cgroup;

/// What the kubelet calls a static pod, whose copy in the API has another uid.
const STATIC_POD: &str = "kubernetes.io/config.hash";

/// Runs until dropped. `parent` is where the kubelet's cgroups are, below the hierarchy's root.
pub(super) async fn run(client: &Client, node_name: &str, parent: &str, exempt: Exemptions) {
    let root = match cgroup::v2_root() {
        Ok(Some(root)) => root,
        // Then nobody is led.
        Ok(None) | Err(_) => return,
    };
    let parent = root.join(parent.trim_start_matches('/'));
    let mut keeper = Keeper { root, parent, exempt, changes: None, was_refused: false, is_nowhere: false };
    let (mut seen, driver) = pods_on(client, node_name, uid);
    let keep = async {
        loop {
            let now = seen.borrow_and_update().clone();
            keeper.keep(&now);
            tokio::select! {
                changed = seen.changed() => if changed.is_err() { return },
                () = keeper.changed() => {}
            }
        }
    };
    tokio::join!(driver, keep);
}

/// What the pod's cgroup is called after, if it asks to be left out.
fn uid(pod: &ObjectMeta) -> Option<String> {
    match objection(pod)? {
        "false" => pod.annotations.as_ref()?.get(STATIC_POD).or(pod.uid.as_ref()).cloned(),
        other => {
            warn_of(other, pod);
            None
        }
    }
}

struct Keeper {
    root: PathBuf,
    parent: PathBuf,
    exempt: Exemptions,
    /// While somebody asks.
    changes: Option<Changes>,
    was_refused: bool,
    /// It was said that there are no pods' cgroups.
    is_nowhere: bool,
}

impl Keeper {
    fn keep(&mut self, seen: &PodsSeen<String>) {
        let asking = match seen {
            // Whoever an earlier run left out stays so for now.
            PodsSeen::NotYet => return,
            PodsSeen::Refused => {
                if !std::mem::replace(&mut self.was_refused, true) {
                    tracing::warn!(
                        "this user may not see Pods, so none of them is left out of socket load balancing by the \
                         annotation {ANNOTATION}; grant it list and watch of pods if that is wanted"
                    );
                }
                return;
            }
            PodsSeen::Picked(asking) => asking,
        };
        let found = if asking.is_empty() { Ok(BTreeSet::new()) } else { self.find(asking) };
        if asking.is_empty() {
            self.changes = None;
        }
        let kept = found.map_err(Into::into).and_then(|found| self.exempt.replace(found).map_err(Box::from));
        if let Err(error) = kept {
            let error: Box<dyn std::error::Error> = error;
            tracing::warn!("not every pod that asks for it can be left out of socket load balancing: {error}");
        }
    }

    /// Waits until there are other cgroups than when they were last looked for.
    async fn changed(&mut self) {
        match &mut self.changes {
            Some(changes) => {
                if let Err(error) = changes.next().await {
                    tracing::warn!("new cgroups will not be noticed until a pod changes: {error}");
                    self.changes = None;
                }
            }
            None => std::future::pending().await,
        }
    }

    /// The cgroups of these pods, as far as they are there.
    fn find(&mut self, asking: &BTreeSet<String>) -> io::Result<BTreeSet<Exempt>> {
        let changes = match self.changes.take() {
            Some(changes) => changes,
            None => Changes::of_nothing()?,
        };
        let (mut found, mut holders) = (BTreeSet::new(), 0);
        let mut open = vec![self.parent.clone()];
        while let Some(directory) = open.pop() {
            for (name, path) in watched(&changes, &directory)? {
                if holds_pods(&name) {
                    holders += 1;
                    open.push(path);
                } else if uid_of(&name).is_some_and(|uid| asking.contains(&uid)) {
                    match Exempt::cgroup(&self.root, &path) {
                        Ok(exempt) => drop(found.insert(exempt)),
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        self.changes = Some(changes);
        if holders == 0 && !self.is_nowhere {
            tracing::warn!(
                "a pod asks to be left out of socket load balancing, and there is no cgroup of the kubelet's in {} to \
                 find it by; name the place with --socket-lb-pods-cgroup",
                self.parent.display()
            );
        }
        self.is_nowhere = holders == 0;
        Ok(found)
    }
}

/// The directories in a directory, which is watched first and read then, so that none is missed. One that is gone has
/// none.
fn watched(changes: &Changes, directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let events = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
    let entries = changes.watch(directory, events).and_then(|()| fs::read_dir(directory));
    match entries {
        Ok(entries) => {
            let named = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            Ok(named.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))).collect())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The last part of a cgroup's name, and whether systemd made it: its slices are called after all that they are in.
fn part(name: &str) -> (&str, bool) {
    match name.strip_suffix(".slice") {
        Some(slice) => (slice.rsplit_once('-').map_or(slice, |(_, last)| last), true),
        None => (name, false),
    }
}

/// Whether pods' cgroups are in the cgroup of this name, or such that hold them: all pods', or those of a QoS class.
fn holds_pods(name: &str) -> bool {
    matches!(part(name).0, "kubepods" | "burstable" | "besteffort")
}

/// Whose cgroup it is, if a pod's. Systemd reads a dash as a further level, so that there is another sign for it there.
fn uid_of(name: &str) -> Option<String> {
    let (part, is_systemd) = part(name);
    let uid = part.strip_prefix("pod").filter(|uid| !uid.is_empty())?;
    Some(if is_systemd { uid.replace('_', "-") } else { uid.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_told_by_the_names_that_the_kubelet_gives() {
        let uid = "0b6a3a5e-6a51-4e1b-9f6e-5a0d5a3ae1f2";
        let with_systemd = uid.replace('-', "_");
        let paths = [
            // Guaranteed, burstable and best-effort, by cgroupfs and by systemd, and in a node that is a container.
            format!("kubepods/pod{uid}"),
            format!("kubepods/burstable/pod{uid}"),
            format!("kubepods/besteffort/pod{uid}"),
            format!("kubepods.slice/kubepods-pod{with_systemd}.slice"),
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{with_systemd}.slice"),
            format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{with_systemd}.slice"),
            format!(
                "kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{with_systemd}.slice"
            ),
        ];
        for path in paths {
            let (above, pod) = path.rsplit_once('/').unwrap();
            assert!(above.split('/').all(|name| holds_pods(name) && uid_of(name).is_none()), "{path}");
            assert_eq!(uid_of(pod).as_deref(), Some(uid), "{path}");
            assert!(!holds_pods(pod), "{path}");
        }
        for other in
            ["system.slice", "pod", "cri-containerd-0b6a.scope", "user-1000.slice", "podman.slice", "init.scope"]
        {
            assert!(!holds_pods(other), "{other}");
        }
        assert_eq!(uid_of("system.slice"), None);
    }

    #[test]
    fn a_static_pod_is_called_by_what_the_kubelet_calls_it() {
        let pod = |annotations: &[(&str, &str)]| ObjectMeta {
            uid: Some("of-the-mirror".to_owned()),
            annotations: Some(
                annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ),
            ..ObjectMeta::default()
        };
        assert_eq!(uid(&pod(&[])), None);
        assert_eq!(uid(&pod(&[(ANNOTATION, "true")])), None);
        assert_eq!(uid(&pod(&[(ANNOTATION, "no")])), None);
        assert_eq!(uid(&pod(&[(ANNOTATION, "false")])).as_deref(), Some("of-the-mirror"));
        assert_eq!(uid(&pod(&[(ANNOTATION, "false"), (STATIC_POD, "4f2b")])).as_deref(), Some("4f2b"));
    }
}
