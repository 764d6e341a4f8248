//! PID 1 of a node under `portolan up`: makes the node's mounts, keeps one `portolan agent` running, reaps the rest.
//!
//! Invariants: it does nothing that can fail once it runs, because its death is the node's; the agent may die and be
//! replaced while pods go on, because pods' shims become children of this process. SIGTERM or SIGPWR shuts the node
//! down in order: the agent is told by SIGPWR and ends its pods, then everything goes. SIGKILL is the power cut.
//!
//! Deliberately not here: tokio, threads, and anything the agent can do.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How soon after its start an agent's death counts as a failure to start.
const YOUNG: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The node's name; becomes its host name
    #[arg(long)]
    node: String,
    /// The agent's configuration file
    #[arg(long)]
    config: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // Blocked, by whoever started this too, and taken with sigwait: a PID 1 without handlers would never see them.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGPWR] {
        signals.add(signal);
    }
    signals.thread_block()?;
    mount_filesystems().context("cannot set up the node's mounts")?;
    nix::unistd::sethostname(&arguments.node).context("cannot set the node's host name")?;

    let mut pause = Duration::ZERO;
    loop {
        let started = Instant::now();
        let agent = start_agent(arguments)?;
        if watch(agent, &signals)? == Ending::NodeShutDown {
            return Ok(());
        }
        let failing = started.elapsed() < YOUNG;
        pause = if failing { (pause * 2).clamp(Duration::from_millis(100), LONGEST_PAUSE) } else { Duration::ZERO };
        eprintln!("the agent of {} ended; starting it again in {pause:?}", arguments.node);
        std::thread::sleep(pause);
    }
}

#[derive(PartialEq, Eq)]
enum Ending {
    AgentDied,
    NodeShutDown,
}

/// Waits until the agent is gone, reaping whatever else dies meanwhile.
fn watch(agent: Pid, signals: &SigSet) -> Result<Ending> {
    let mut shutting_down = false;
    loop {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) if pid == agent => {
                    return Ok(if shutting_down { Ending::NodeShutDown } else { Ending::AgentDied });
                }
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(_) => {}
            }
        }
        if signals.wait()? != Signal::SIGCHLD {
            shutting_down = true;
            // Gone already: then the next turn of the loop sees it.
            let _ = kill(agent, Signal::SIGPWR);
        }
    }
}

fn start_agent(arguments: &Arguments) -> Result<Pid> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("portolan").arg("agent").arg("--config").arg(&arguments.config);
    // SAFETY: sigprocmask is async-signal-safe; the child gets an empty mask instead of the one blocked above.
    unsafe {
        command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?));
    }
    let child = command.spawn().context("cannot start the agent")?;
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

/// The node sees the machine's files, but processes, devices of the kernel and `/run` of its own.
fn mount_filesystems() -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let restricted = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), restricted, none)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755,size=64m"))?;
    remount_sysfs()
}

/// sysfs shows the network devices of the namespace it was mounted in, so the node needs its own. The cgroup
/// hierarchies mounted below are carried over. The BPF file system is empty.
fn remount_sysfs() -> Result<()> {
    const PARKED: &str = "/run/cgroup";
    const BPF: &str = "/sys/fs/bpf";
    let none = None::<&str>;
    std::fs::create_dir(PARKED)?;
    mount(Some("/sys/fs/cgroup"), PARKED, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    let restricted = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("sysfs"), "/sys", Some("sysfs"), restricted, none)?;
    mount(Some(PARKED), "/sys/fs/cgroup", none, MsFlags::MS_MOVE, none)?;
    std::fs::remove_dir(PARKED)?;
    // Keeps the node's socket programs while its agent is away, and goes with the node. Without BPF there is no such
    // place.
    if std::path::Path::new(BPF).is_dir()
        && let Err(error) = mount(Some("bpf"), BPF, Some("bpf"), restricted, Some("mode=700"))
    {
        eprintln!("no BPF file system in this node: {error}");
    }
    Ok(())
}

/// The command line that starts a node's first process.
pub(crate) fn command_line(node: &str, config: &std::path::Path) -> Vec<String> {
    let config = config.display().to_string();
    ["portolan", "node-init", "--node", node, "--config", &config].map(str::to_owned).to_vec()
}
