//! What `portolan up` needs of a machine, checked before anything is made, each with what to do about it.

use std::path::Path;

use anyhow::{Result, bail};

/// # Errors
/// Names everything that is missing at once.
pub(crate) fn check() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("`portolan up` makes network namespaces and containers and has to run as root; try it with sudo");
    }
    let kernel_files = [
        ("/proc/self/ns/net", "network namespaces (CONFIG_NET_NS)"),
        ("/proc/self/ns/pid", "PID namespaces (CONFIG_PID_NS)"),
        ("/sys/fs/cgroup", "cgroups, mounted at /sys/fs/cgroup"),
    ];
    let mut missing: Vec<String> =
        kernel_files.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, need)| (*need).to_owned()).collect();
    let filesystems = std::fs::read_to_string("/proc/filesystems")?;
    // A module that is not loaded yet is not listed; mounting it once would load it.
    if !filesystems.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay")
        && !Path::new("/sys/module/overlay").exists()
        && !loads("overlay")
    {
        missing.push("overlayfs (modprobe overlay)".to_owned());
    }
    if missing.is_empty() { Ok(()) } else { bail!("this machine's kernel lacks: {}", missing.join("; ")) }
}

/// Asks the kernel for the filesystem, which makes it load the module if there is one.
fn loads(filesystem: &str) -> bool {
    use nix::mount::{MsFlags, mount};
    // Without options no mount comes of it: EINVAL says that the filesystem is there, ENODEV that it is not.
    mount(None::<&str>, "/proc", Some(filesystem), MsFlags::empty(), None::<&str>) != Err(nix::errno::Errno::ENODEV)
}
