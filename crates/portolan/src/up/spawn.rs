//! A command line -> a node: PID 1 of its own PID, mount, UTS and IPC namespaces, inside a given network namespace.
//!
//! Invariant: the node dies with the thread that made it (`PR_SET_PDEATHSIG`), so the caller spawns from a thread that
//! lives as long as the cluster. Killing PID 1 kills everything in the namespace at once: that is the power cut.
//!
//! Source: clone(2), pid_namespaces(7), prctl(2).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sys::signal::Signal;
use nlink::netlink::namespace::Netns;
use tokio::io::unix::AsyncFd;

/// A running node's first process.
pub(crate) struct NodeProcess {
    pub(crate) pid: libc::pid_t,
    pidfd: AsyncFd<OwnedFd>,
}

impl NodeProcess {
    /// Starts `/proc/self/exe` with `arguments` (the first being its own name), its output going to `log`.
    /// `enroll` is given the process id before the process runs its first instruction, to put it into cgroups.
    ///
    /// # Errors
    /// When the kernel refuses a namespace, or `enroll` fails; then no process is left.
    pub(crate) fn spawn(
        arguments: &[String],
        network: &Netns,
        log: &File,
        enroll: impl FnOnce(libc::pid_t) -> io::Result<()>,
    ) -> io::Result<Self> {
        let arguments: Vec<CString> =
            arguments.iter().map(|argument| CString::new(argument.as_str())).collect::<Result<_, _>>()?;
        let mut argv: Vec<*const libc::c_char> = arguments.iter().map(|argument| argument.as_ptr()).collect();
        argv.push(std::ptr::null());
        let environment: Vec<CString> = ["RUST_LOG", "RUST_BACKTRACE", "PATH"]
            .iter()
            .filter_map(|name| std::env::var(name).ok().and_then(|value| CString::new(format!("{name}={value}")).ok()))
            .collect();
        let mut envp: Vec<*const libc::c_char> = environment.iter().map(|variable| variable.as_ptr()).collect();
        envp.push(std::ptr::null());
        let null = File::open("/dev/null")?;
        let network = network.try_clone().map_err(io::Error::other)?;
        let (gate, opener) = io::pipe()?;

        let mut pidfd: libc::c_int = -1;
        let namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        // SAFETY: all-zero is a valid `clone_args`: every field is an integer, and zero means absent.
        let mut clone: libc::clone_args = unsafe { std::mem::zeroed() };
        clone.flags = (namespaces | libc::CLONE_PIDFD).cast_unsigned().into();
        clone.pidfd = (&raw mut pidfd).expose_provenance() as u64;
        clone.exit_signal = libc::SIGCHLD.cast_unsigned().into();
        // SAFETY: without CLONE_VM the child gets a copy of this address space, as after fork(2). It runs `become_node`
        // alone, which makes only async-signal-safe calls and never returns.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut clone, size_of::<libc::clone_args>()) };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid == 0 {
            let files = [null.as_raw_fd(), log.as_raw_fd(), log.as_raw_fd()];
            // SAFETY: this is the child, and the vectors behind `argv` and `envp` live in its copy of the memory.
            unsafe {
                become_node(
                    network.as_fd().as_raw_fd(),
                    gate.as_raw_fd(),
                    opener.as_raw_fd(),
                    files,
                    argv.as_ptr(),
                    envp.as_ptr(),
                )
            }
        }
        // SAFETY: the kernel stored a descriptor of ours there, which nothing else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        // SAFETY: the descriptor is owned, so it stays open for as long as it is registered.
        let pidfd = unsafe { AsyncFd::register(pidfd) }?;
        let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
        drop(gate);
        let process = Self { pid, pidfd };
        if let Err(error) = enroll(pid).and_then(|()| io::Write::write_all(&mut { opener }, b"!")) {
            process.signal(Signal::SIGKILL)?;
            process.reap()?;
            return Err(error);
        }
        Ok(process)
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        // Through the pidfd a signal never reaches another process that got the same number.
        // SAFETY: the descriptor is a pidfd that `self` owns; no memory is passed.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Returns once the node's first process, and with it everything in the node, is gone. Safe to cancel.
    pub(crate) async fn exited(&self) -> io::Result<()> {
        // A pidfd becomes readable when its process exits, and stays so.
        let _readable = self.pidfd.readable().await?;
        self.reap()
    }

    fn reap(&self) -> io::Result<()> {
        use nix::sys::wait::{Id, WaitPidFlag, waitid};
        match waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED) {
            // Already reaped: it is just as gone.
            Ok(_) | Err(nix::errno::Errno::ECHILD) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The child's side of [`NodeProcess::spawn`].
///
/// # Safety
/// Only in a child of clone(2) without CLONE_VM. `argv` and `envp` are null-terminated arrays of C strings.
unsafe fn become_node(
    network: libc::c_int,
    gate: libc::c_int,
    opener: libc::c_int,
    files: [libc::c_int; 3],
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
) -> ! {
    const FAILED: libc::c_int = 126;
    // SAFETY: only async-signal-safe system calls, on descriptors that this process holds and on memory it has a copy
    // of.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Closing our copy of the writing end turns the parent's death into end-of-file below: should it have died
        // before the line above, nobody would send the signal.
        libc::close(opener);
        let mut byte = 0u8;
        if libc::read(gate, (&raw mut byte).cast(), 1) != 1 || libc::setns(network, libc::CLONE_NEWNET) != 0 {
            libc::_exit(FAILED);
        }
        libc::setsid();
        // What `node_init` waits for is held back from the first moment: the kernel drops a signal that a PID 1 neither
        // handles nor blocks, and with it the order to shut down that comes while the node still boots.
        let mut held: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut held);
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGPWR] {
            libc::sigaddset(&raw mut held, signal);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const held, std::ptr::null_mut());
        for (target, file) in (0..).zip(files) {
            if libc::dup2(file, target) < 0 {
                libc::_exit(FAILED);
            }
        }
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        libc::execve(c"/proc/self/exe".as_ptr(), argv, envp);
        libc::_exit(FAILED)
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::SigSet;

    use super::*;

    const HELD: &str = "SIGTERM and SIGPWR are held back";

    /// Run by the test below, as a node's first process.
    #[test]
    #[ignore = "is a part of another test"]
    fn says_what_is_held_back() {
        let mask = SigSet::thread_get_mask().unwrap();
        if mask.contains(Signal::SIGTERM) && mask.contains(Signal::SIGPWR) {
            println!("{HELD}");
        }
    }

    #[tokio::test]
    async fn a_node_holds_back_the_order_to_stop_until_it_can_obey() {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "needs root, to make namespaces");
            eprintln!("skipped: needs root, to make namespaces");
            return;
        }
        let log = tempfile::NamedTempFile::new().unwrap();
        let child = concat!(module_path!(), "::says_what_is_held_back").split_once("::").unwrap().1;
        let arguments = ["test", "--exact", child, "--ignored", "--nocapture"].map(str::to_owned);
        let network = Netns::current().unwrap();
        let node = NodeProcess::spawn(&arguments, &network, log.as_file(), |_| Ok(())).unwrap();
        node.exited().await.unwrap();
        let said = std::fs::read_to_string(log.path()).unwrap();
        assert!(said.contains(HELD), "{said}");
    }
}
