//! The first process of the PID namespace that a pod's containers share: it holds the namespace, and takes in the
//! processes that others leave behind.
//!
//! Invariant: nothing is to be had through it. What its number leads to in `/proc` is an empty root that nobody can write
//! to, a user who owns nothing, and no environment. It ends with the shim, and with it every process of the pod.
//! Source: pid_namespaces(7), pivot_root(2); the `pause` of Kubernetes.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, PipeWriter};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::{set_dumpable, set_name, set_no_new_privs};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, chdir, pivot_root, setgroups, setresgid, setresuid};

/// argv[1] of the process.
pub(super) const SUBCOMMAND: &str = "pod-pause";
/// Its root is mounted there, in the pod's directory.
const ROOT: &str = "pause";
/// A user that no image has, as in Kubernetes.
const NOBODY: u32 = 65535;

/// A namespace with its first process, in the shim.
pub(super) struct Shared {
    pub(super) namespace: File,
    pub(super) first: Pid,
    /// Its end tells the process to end.
    _held: PipeWriter,
}

impl Shared {
    /// Returns once the process can be looked at.
    ///
    /// # Errors
    /// When the kernel refuses a namespace, or the process did not begin.
    pub(super) fn start(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir.join(ROOT))?;
        let own = File::open("/proc/self/ns/pid")?;
        let (input, held) = io::pipe()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("/pause").arg(SUBCOMMAND).current_dir(dir).env_clear();
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::null());
        unshare(CloneFlags::CLONE_NEWPID)?;
        let child = command.spawn();
        // Whoever is born next is born where the shim is.
        setns(&own, CloneFlags::CLONE_NEWPID)?;
        let mut child = child?;
        let mut said = String::new();
        BufReader::new(child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?).read_line(&mut said)?;
        if said.trim() != "ready" {
            return Err(io::Error::other(format!("the pod's first process: {}", said.trim())));
        }
        let namespace = File::open(format!("/proc/{}/ns/pid", child.id()))?;
        Ok(Self { namespace, first: Pid::from_raw(child.id().cast_signed()), _held: held })
    }
}

/// Becomes that process.
pub(super) fn main() -> ! {
    match hide().and_then(|()| hold()) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            println!("{error}");
            std::process::exit(1)
        }
    }
}

/// Gives up all that could be reached through this process.
fn hide() -> Result<(), Box<dyn Error>> {
    let none = None::<&str>;
    set_name(c"pause")?;
    set_dumpable(false)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("pause"), ROOT, Some("tmpfs"), flags, Some("mode=555,size=4k"))?;
    chdir(ROOT)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    setgroups(&[])?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    set_no_new_privs()?;
    Ok(())
}

/// Reaps until its input ends.
fn hold() -> Result<(), Box<dyn Error>> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    println!("ready");
    let input = io::stdin();
    loop {
        let mut ready = [input.as_fd(), signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        poll(&mut ready, PollTimeout::NONE)?;
        if ready[0].any() != Some(false) {
            return Ok(());
        }
        while let Ok(Some(_)) = signals.read_signal() {}
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {}
    }
}
