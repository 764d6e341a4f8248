//! What a node left behind when everything of it was killed at once -> nothing.
//!
//! Shims take their pods' namespaces and mounts along when they die, so what can be left is a shim that outlived its
//! agent, cgroups, and links. Everything is tolerated as absent.

use std::fs;
use std::io;
use std::path::Path;

use crate::{cgroup, shim};

/// Ends the pods in `state_dir`, and removes their cgroups below `cgroup_parent` and their directories. Pods' links
/// go with their namespaces.
///
/// # Errors
/// When the state directory is there and cannot be read, or a pod's directory cannot be removed.
pub fn sweep(state_dir: &Path, cgroup_parent: &str) -> io::Result<()> {
    let pods = state_dir.join("pods");
    let entries = match fs::read_dir(&pods) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        other => Some(other?),
    };
    for entry in entries.into_iter().flatten().flatten() {
        shim::kill(&entry.path());
    }
    cgroup::remove(cgroup_parent);
    match fs::remove_dir_all(&pods) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
