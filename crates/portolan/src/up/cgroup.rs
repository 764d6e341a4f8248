//! The cgroups of a cluster: made per node in every hierarchy that counts, found again and removed.
//!
//! Machines differ: v2 alone, v1 alone, or both side by side (v2 then at a sub-directory and without controllers). What
//! is mounted decides. Invariant: everything is below one directory, [`CGROUP`], of each hierarchy.
//!
//! Source: cgroups(7).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::plan::CGROUP;

/// v1 hierarchies whose limits or accounts pods use.
const CONTROLLERS: [&str; 4] = ["memory", "cpu", "pids", "freezer"];

/// The roots of the mounted hierarchies.
#[derive(Debug, PartialEq, Eq, Default)]
struct Hierarchies {
    all: BTreeSet<PathBuf>,
    /// Those that a node has to be enrolled in.
    that_count: BTreeSet<PathBuf>,
    v2: Option<PathBuf>,
}

fn hierarchies() -> io::Result<Hierarchies> {
    Ok(mounted(&fs::read_to_string("/proc/self/mountinfo")?))
}

fn mounted(mountinfo: &str) -> Hierarchies {
    let mut roots = Hierarchies::default();
    for line in mountinfo.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let Some(target) = mount.split(' ').nth(4) else { continue };
        let mut filesystem = filesystem.split(' ');
        let counts = match filesystem.next() {
            Some("cgroup2") => {
                roots.v2.get_or_insert_with(|| PathBuf::from(target));
                true
            }
            Some("cgroup") => {
                filesystem.nth(1).is_some_and(|options| options.split(',').any(|option| CONTROLLERS.contains(&option)))
            }
            _ => continue,
        };
        if counts {
            roots.that_count.insert(PathBuf::from(target));
        }
        roots.all.insert(PathBuf::from(target));
    }
    roots
}

/// The root of the v2 hierarchy, where there is one.
pub(crate) fn v2_root() -> io::Result<Option<PathBuf>> {
    Ok(hierarchies()?.v2)
}

/// Puts a node's first process into the node's own cgroup of each hierarchy; its descendants follow.
pub(crate) fn enroll(node: &str, pid: libc::pid_t) -> io::Result<()> {
    for root in hierarchies()?.that_count {
        // A leaf of its own, because v2 allows processes only in leaves and pods come beside it.
        let leaf = root.join(CGROUP).join(node).join("init");
        fs::create_dir_all(&leaf)?;
        fs::write(leaf.join("cgroup.procs"), pid.to_string())?;
    }
    Ok(())
}

/// Kills what still runs in a cluster's cgroups and removes them. Returns how many processes and directories there
/// were.
pub(crate) fn sweep() -> io::Result<(usize, usize)> {
    let (mut processes, mut directories) = (0, 0);
    // Nodes are in some hierarchies; the runtime of the pods makes theirs in every one.
    for root in hierarchies()?.all {
        let top = root.join(CGROUP);
        if top.is_dir() {
            processes += kill_all(&top)?;
            directories += remove_tree(&top)?;
        }
    }
    Ok((processes, directories))
}

fn below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn kill_all(directory: &Path) -> io::Result<usize> {
    let mut killed = 0;
    for child in below(directory)? {
        killed += kill_all(&child)?;
    }
    let processes = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse().ok()) {
        if nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).is_ok() {
            killed += 1;
        }
    }
    Ok(killed)
}

/// A cgroup whose last process is just dying is busy for a moment longer, hence the bounded patience.
fn remove_tree(directory: &Path) -> io::Result<usize> {
    const PATIENCE: u32 = 200;
    let mut removed = 0;
    for child in below(directory)? {
        removed += remove_tree(&child)?;
    }
    for attempt in 0.. {
        match fs::remove_dir(directory) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && attempt < PATIENCE => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(removed + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_in_all_three_arrangements() {
        let hybrid = "\
30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
35 30 0:31 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
34 30 0:30 / /sys/fs/cgroup/unified rw shared:1 - cgroup2 cgroup2 rw
";
        let names = |roots: &BTreeSet<PathBuf>| roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>();
        let found = mounted(hybrid);
        assert_eq!(
            names(&found.that_count),
            ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"],
            "a node is not enrolled where no controller counts"
        );
        assert_eq!(
            names(&found.all),
            [
                "/sys/fs/cgroup/blkio",
                "/sys/fs/cgroup/cpu,cpuacct",
                "/sys/fs/cgroup/memory",
                "/sys/fs/cgroup/systemd",
                "/sys/fs/cgroup/unified"
            ],
            "what a runtime may have made is looked for everywhere"
        );
        assert_eq!(found.v2, Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let unified = "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let root = BTreeSet::from([PathBuf::from("/sys/fs/cgroup")]);
        let v2 = root.first().cloned();
        assert_eq!(mounted(unified), Hierarchies { all: root.clone(), that_count: root, v2 });
    }
}
