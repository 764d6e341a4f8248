//! A bundle -> a running container, and a command -> a process in one, by libcontainer.
//!
//! Both run in a process forked off the shim for just that, which exits when done: the shim's event loop never waits
//! for them and never pays for the memory they touch. The container's first process becomes the shim's own child
//! (`as_sibling`), so that the shim learns how it ends and takes it along when it dies itself.

use std::error::Error;
use std::ffi::c_int;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::default::DefaultExecutor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::{Start, part};

/// Where the container's files are, below the pod's directory.
pub(super) fn bundle(id: &str) -> String {
    format!("c/{id}")
}

/// Runs the command in `config.json` and puts back first what the shim changed for itself.
#[derive(Clone)]
struct Exec(DefaultExecutor);

impl Executor for Exec {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let undone = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
        // Rust's runtime ignores SIGPIPE, and ignoring is inherited.
        // SAFETY: SIG_DFL runs no code of ours.
        #[allow(unsafe_code, reason = "resetting a signal's disposition is unsafe because handlers may be unsound")]
        let default = unsafe { nix::sys::signal::signal(Signal::SIGPIPE, nix::sys::signal::SigHandler::SigDfl) };
        // The pod does not outlive its shim.
        let tied = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
        undone.and(default.map(drop)).and(tied).map_err(|error| ExecutorError::Execution(Box::new(error)))?;
        self.0.exec(spec)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.0.validate(spec)
    }
}

/// What programs on a terminal are told of it, as everywhere in Kubernetes.
const TERM: &str = "TERM=xterm";

/// What a process reads from and writes to.
pub(super) enum Stdio {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// A new terminal, whose other end goes to who listens at this path.
    Terminal(PathBuf),
}

fn builder(dir: &Path, id: &str, stdio: Stdio) -> Result<ContainerBuilder, Box<dyn Error>> {
    let root = dir.join("run");
    fs::create_dir_all(&root)?;
    let builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(root)?
        .with_executor(Exec(DefaultExecutor {}));
    Ok(match stdio {
        Stdio::Pipes { stdin, stdout, stderr } => builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr),
        Stdio::Terminal(console) => builder.with_console_socket(Some(console)),
    })
}

/// Starts a container and gives its first process's id.
pub(super) fn start(
    dir: &Path,
    start: &Start,
    processes: Option<&File>,
    stdio: Stdio,
) -> Result<c_int, Box<dyn Error>> {
    let bundle = dir.join(bundle(&start.id));
    if let Some(processes) = processes {
        join(&bundle, processes)?;
    }
    part::mount_all(dir, start)?;
    mount_root(&bundle, &start.lower).map_err(|error| format!("cannot mount the container's root: {error}"))?;
    let mut container = builder(dir, &start.id, stdio)?
        .validate_id()?
        .as_init(&bundle)
        .with_systemd(false)
        .as_sibling(true)
        .with_detach(true)
        .build()?;
    container.start()?;
    Ok(container.pid().ok_or("the container has no process")?.as_raw())
}

/// Has the container born in this PID namespace, unless it is to be in the node's.
fn join(bundle: &Path, processes: &File) -> Result<(), Box<dyn Error>> {
    let path = bundle.join("config.json");
    let mut spec = Spec::load(&path)?;
    let linux = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in linux.into_iter().flatten().filter(|one| one.typ() == LinuxNamespaceType::Pid) {
        namespace.set_path(Some(format!("/proc/self/fd/{}", processes.as_raw_fd()).into()));
    }
    Ok(spec.save(path)?)
}

/// Runs a command in a running container, as its user and with its environment, and gives the process's id.
pub(super) fn exec(dir: &Path, id: &str, args: &[String], nonce: u64, stdio: Stdio) -> Result<c_int, Box<dyn Error>> {
    let bundle = dir.join(bundle(id));
    let spec = Spec::load(bundle.join("config.json"))?;
    let mut process = spec.process().clone().ok_or("the container has no process")?;
    process.set_args(Some(args.to_vec()));
    let terminal = matches!(stdio, Stdio::Terminal(_));
    process.set_terminal(Some(terminal));
    let mut env = process.env().clone().unwrap_or_default();
    env.extend((terminal && !env.iter().any(|line| line.starts_with("TERM="))).then(|| TERM.to_owned()));
    process.set_env(Some(env));
    let path = bundle.join(format!("exec-{nonce}.json"));
    serde_json::to_writer(File::create(&path)?, &process)?;
    let pid = builder(dir, id, stdio)?
        .validate_id()?
        .as_tenant()
        .with_process(Some(&path))
        .as_sibling(true)
        .with_detach(true)
        .build();
    let _ = fs::remove_file(&path);
    Ok(pid?.as_raw())
}

/// An overlay of what the container writes over the image's files, at the bundle's `root`.
fn mount_root(bundle: &Path, lower: &Path) -> Result<(), Box<dyn Error>> {
    let root = bundle.join("root");
    fs::create_dir_all(&root)?;
    match mount_overlay(&root, lower, bundle)? {
        // Not every filesystem can be written to by an overlay: another overlay cannot, which is what containers have
        // for their files, and CI machines are containers often. What is written is kept in memory then.
        Err(Errno::EINVAL) => {
            let memory = bundle.join("memory");
            fs::create_dir_all(&memory)?;
            mount(Some("tmpfs"), &memory, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
            let mounted = mount_overlay(&root, lower, &memory);
            // The overlay holds on to it; the name is not needed any more, and would be one more to take away.
            umount2(&memory, MntFlags::MNT_DETACH)?;
            Ok(mounted??)
        }
        mounted => Ok(mounted?),
    }
}

fn mount_overlay(root: &Path, lower: &Path, written: &Path) -> Result<nix::Result<()>, Box<dyn Error>> {
    let (upper, work) = (written.join("upper"), written.join("work"));
    for part in [&upper, &work] {
        fs::create_dir_all(part)?;
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", escaped(lower)?, escaped(&upper)?, escaped(&work)?);
    Ok(mount(Some("overlay"), root, Some("overlay"), MsFlags::empty(), Some(options.as_str())))
}

/// The characters that separate mount options and layers, made part of a name.
fn escaped(path: &Path) -> Result<String, Box<dyn Error>> {
    let path = path.to_str().ok_or("a path that is not UTF-8")?;
    Ok(path.replace('\\', "\\\\").replace(',', "\\,").replace(':', "\\:"))
}

/// An error and its causes in one line, each said once.
pub(super) fn say(error: &dyn Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !said.contains(&more) {
            said = format!("{said}: {more}");
        }
        cause = error.source();
    }
    said
}
