//! A machine of its own for one test: the thread's own network and mount namespaces, with an empty `/run`.
//!
//! The machine's real lock is held meanwhile, so that tests do not meet each other, or a cluster somebody runs here:
//! cgroups are the one thing that cannot be had twice.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nlink::netlink::{Connection, Route};

pub(crate) struct Machine {
    directory: tempfile::TempDir,
    _lock: Flock<File>,
}

/// Runs a test on a fresh machine, or says why it cannot and, in CI, fails.
pub(crate) fn on_a_machine(test: impl FnOnce(&Machine) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        return skip("needs root, to make namespaces and containers");
    }
    let thread = std::thread::spawn(move || test(&Machine::enter()));
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "skipped in CI: {reason}");
    eprintln!("skipped: {reason}");
}

impl Machine {
    fn enter() -> Self {
        let lock = File::options().create(true).truncate(false).write(true).open("/run/portolan.lock").unwrap();
        let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap();
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(none, "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        block_on(async { Connection::<Route>::new().unwrap().set_link_up("lo").await.unwrap() });
        let machine = Self { directory: tempfile::tempdir().unwrap(), _lock: lock };
        // Cgroups are the machine's own still: what an earlier test that failed left there would pass for this one's.
        let cleaned = machine.portolan(&["clean"]);
        assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
        assert_eq!(machine.remains(), BTreeSet::new(), "a fresh machine");
        machine
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn portolan(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_portolan")).args(arguments).output().unwrap()
    }

    /// Everything a cluster could have left behind, in words.
    pub(crate) fn remains(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for name in nlink::netlink::namespace::list().unwrap() {
            found.insert(format!("namespace {name}"));
        }
        for link in block_on(async { Connection::<Route>::new().unwrap().get_links().await.unwrap() }) {
            let name = link.name_or("?").to_owned();
            if name != "lo" {
                found.insert(format!("link {name}"));
            }
        }
        for mount in fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
            if mount.contains("portolan") || mount.contains(&*self.directory.path().to_string_lossy()) {
                found.insert(format!("mount {mount}"));
            }
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            if hierarchy.path().join("portolan").exists() {
                found.insert(format!("cgroup {}", hierarchy.path().join("portolan").display()));
            }
        }
        if Path::new("/sys/fs/cgroup/portolan").exists() {
            found.insert("cgroup /sys/fs/cgroup/portolan".to_owned());
        }
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&*self.directory.path().to_string_lossy()) {
                found.insert(format!("process {line}"));
            }
        }
        found
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Waits until `condition` holds; fails with what it last said instead.
pub(crate) fn eventually<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + within;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(seen) if Instant::now() > deadline => panic!("{what}: not within {within:?}; last seen: {seen}"),
            Err(_) => std::thread::park_timeout(Duration::from_millis(20)),
        }
    }
}
