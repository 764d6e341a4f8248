//! A new process -> the holder of a pod's namespaces.

use std::error::Error;
use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::ShimConfig;

/// Enters new namespaces as the pod needs them, and sets in them what it asks for.
pub(super) fn enter(config: &ShimConfig) -> Result<(), Box<dyn Error>> {
    let mut flags = CloneFlags::CLONE_NEWNS;
    if !config.host_network {
        flags |= CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    }
    if !config.host_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    unshare(flags)?;
    // What is mounted here stays here; what the node mounts later still arrives, for hostPath volumes.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    if !config.host_network {
        nix::unistd::sethostname(&config.hostname)?;
    }
    for (key, value) in &config.sysctls {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        fs::write(&path, value).map_err(|error| format!("cannot set sysctl {key}: {error}"))?;
    }
    for (path, options) in &config.tmpfs {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))?;
    }
    Ok(())
}
