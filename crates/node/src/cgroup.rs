//! A cgroup path -> its directories in whatever hierarchies this machine has: one of v2, or several of v1.
//!
//! libcontainer makes a container's cgroups and sets their limits; this module only reads what happened in them and
//! takes them away, tolerating those that are not there. Source: kernel `admin-guide/cgroup-v1`, `cgroup-v2.rst`.

use std::fs;
use std::path::{Component, Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// The path of a pod's cgroup in each hierarchy; its containers' are below it.
#[must_use]
pub fn of_pod(parent: &str, uid: &str) -> String {
    format!("{}/pod{uid}", parent.trim_end_matches('/'))
}

/// The directories that stand for `path` (as `/parent/pod`) in each hierarchy mounted under `/sys/fs/cgroup`.
fn directories(path: &str) -> Vec<PathBuf> {
    let relative = path.trim_start_matches('/');
    // Never a hierarchy's root, nor a way out of it: what is found here may be killed.
    if relative.is_empty() || Path::new(relative).components().any(|part| !matches!(part, Component::Normal(_))) {
        return Vec::new();
    }
    let root = Path::new(ROOT);
    let mut found = vec![root.join(relative)];
    if !root.join("cgroup.procs").exists() {
        // v1, or v1 and v2 side by side: every entry is a hierarchy, and `unified` is the v2 one.
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
        found = hierarchies.map(|entry| entry.path().join(relative)).collect();
    }
    found.retain(|directory| directory.is_dir());
    found.sort();
    found
}

/// What this machine can limit. A cgroup v2 tree that was handed down may lack any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) cpu: bool,
    pub(crate) memory: bool,
    pub(crate) pids: bool,
}

impl Limits {
    pub(crate) fn of_machine() -> Self {
        let root = Path::new(ROOT);
        let has = |controller: &str| match fs::read_to_string(root.join("cgroup.controllers")) {
            Ok(controllers) => controllers.split_whitespace().any(|known| known == controller),
            Err(_) => root.join(controller).is_dir(),
        };
        Self { cpu: has("cpu"), memory: has("memory"), pids: has("pids") }
    }
}

/// Whether the kernel killed something in this cgroup because it was out of its memory.
pub(crate) fn had_oom_kill(path: &str) -> bool {
    directories(path).iter().any(|directory| {
        ["memory.events", "memory.oom_control"].iter().any(|file| {
            fs::read_to_string(directory.join(file)).is_ok_and(|text| count(&text, "oom_kill").is_some_and(|n| n > 0))
        })
    })
}

fn count(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Kills whatever still runs in the cgroup or below, and removes it. Removing the absent succeeds; what is still
/// being torn down by the kernel stays, and `false` says so.
pub(crate) fn remove(path: &str) -> bool {
    let mut all = true;
    for directory in directories(path) {
        // v2 alone has this file; v1 needs the signals below.
        let _ = fs::write(directory.join("cgroup.kill"), "1");
        all &= remove_directory(&directory);
    }
    all
}

fn remove_directory(directory: &Path) -> bool {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_directory(&entry.path());
        }
    }
    let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    match fs::remove_dir(directory) {
        Ok(()) => true,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::{count, directories};

    #[test]
    fn no_hierarchy_root_is_ever_named() {
        for path in ["", "/", "//", "/..", "/a/../..", "."] {
            assert!(directories(path).is_empty(), "{path}");
        }
    }

    #[test]
    fn oom_kills_are_counted_in_both_formats() {
        let v2 = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n";
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n";
        assert_eq!((count(v2, "oom_kill"), count(v1, "oom_kill")), (Some(2), Some(1)));
        assert_eq!(count("oom 3\n", "oom_kill"), None);
    }
}
