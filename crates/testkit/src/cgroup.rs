//! A cgroup of one's own, entered thread by thread, and a BPF file system that only a test sees.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// A cgroup v2 directory below this process's own, removed when dropped.
#[derive(Debug)]
pub struct Cgroup {
    root: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    /// `None` where no cgroup v2 hierarchy is mounted.
    ///
    /// # Panics
    /// When the kernel refuses, as it does to anyone but root.
    #[must_use]
    pub fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read the mounts");
        let root = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?.to_owned();
        let memberships = fs::read_to_string("/proc/self/cgroup").expect("read the cgroups");
        let own = memberships.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(&root).join(own).join(format!("portolan-test-{}-{number}", std::process::id()));
        Some(Self::make(root.into(), path))
    }

    fn make(root: PathBuf, path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap_or_else(|error| panic!("make the cgroup {}: {error}", path.display()));
        // So that single threads may enter.
        fs::write(path.join("cgroup.type"), "threaded")
            .unwrap_or_else(|error| panic!("make the cgroup {} threaded: {error}", path.display()));
        Self { root, path }
    }

    /// A cgroup in this one, to be dropped before it.
    ///
    /// # Panics
    /// When there is one of the name.
    #[must_use]
    pub fn below(&self, name: &str) -> Self {
        Self::make(self.root.clone(), self.path.join(name))
    }

    /// Where its hierarchy is mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on a thread of its own inside the cgroup; threads that it starts are inside too. Panics pass
    /// through.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let outcome = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    fs::write(self.path.join("cgroup.threads"), "0").expect("enter the cgroup");
                    work()
                })
                .join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A thread that was joined may still be leaving; the kernel says busy for a moment longer.
        for _ in 0..1_000 {
            match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => std::thread::yield_now(),
                _ => break,
            }
        }
    }
}

/// Runs `work` on a thread in a mount namespace of its own, with an empty BPF file system whose path it is given;
/// threads that it starts see it too. Panics pass through.
///
/// # Panics
/// When the kernel refuses, as it does to anyone but root.
pub fn with_bpffs<T: Send>(work: impl FnOnce(&Path) -> T + Send) -> T {
    const PLACE: &str = "/sys/fs/bpf";
    let outcome = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS).expect("make a mount namespace");
                let none = None::<&str>;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("make mounts private");
                mount(Some("bpf"), PLACE, Some("bpf"), MsFlags::empty(), none).expect("mount a BPF file system");
                work(Path::new(PLACE))
            })
            .join()
    });
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
