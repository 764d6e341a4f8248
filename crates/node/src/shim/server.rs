//! The shim process: holds a pod's namespaces, is the parent of its containers, and answers the agent.
//!
//! One thread, one `poll` loop, no runtime: what it holds is the pod's life, so it is as small as it can be. It is
//! started by the agent but not its child for long (it forks once, so that init adopts it), and an agent that comes
//! back finds it by its socket.
//!
//! Invariant: nothing in the loop blocks. Creating containers is done in forked children; see `container`.

#![allow(unsafe_code, reason = "fork is unsafe; this process has one thread, so what follows it may do anything")]

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, pipe2, setsid};

use super::log::{Log, Stream};
use super::{
    CONFIG, Call, Instance, MAX_EXEC_OUTPUT, Message, Reply, Request, ShimConfig, Start, container, decode, encode,
    socket_path,
};
use crate::cgroup;
use crate::pod::Exit;

/// Agents connected at once: one, and those it replaced that have not noticed.
const MAX_CLIENTS: usize = 8;
/// Commands being run, and containers being started, at once.
const MAX_JOBS: usize = 32;
/// Answers a client has not read; one that lets more pile up is dropped.
const MAX_UNREAD: usize = 4 << 20;

/// Becomes the shim of the pod in `dir`.
pub(super) fn main(dir: &Path) -> ! {
    // SAFETY: this process has just been started and has one thread.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { .. }) => std::process::exit(0),
        Ok(ForkResult::Child) => {}
        Err(error) => fail(&error),
    }
    match Server::set_up(dir) {
        Ok(server) => server.run(),
        Err(error) => fail(&*error),
    }
}

/// The agent reads what went wrong from the pipe it waits on.
fn fail(error: &dyn Error) -> ! {
    println!("error {}", container::say(error));
    std::process::exit(1)
}

struct Server {
    dir: PathBuf,
    cgroup: String,
    signals: SignalFd,
    listener: UnixListener,
    clients: BTreeMap<u64, Client>,
    containers: BTreeMap<String, Container>,
    jobs: Vec<Job>,
    /// Children that ended while the process that made them had not yet said whose they are.
    unclaimed: HashMap<Pid, WaitStatus>,
    next: u64,
    stop: Option<Instant>,
}

struct Client {
    stream: UnixStream,
    read: Vec<u8>,
    unsent: Vec<u8>,
}

struct Container {
    instance: Instance,
    pid: Pid,
    output: Output,
    log: Log,
}

/// What a process writes; non-blocking.
struct Output {
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// Something a forked child is making.
struct Job {
    client: u64,
    seq: u64,
    maker: Pid,
    /// Where the maker says which process it made: a frame with `Result<pid, reason>`.
    said: File,
    buffer: Vec<u8>,
    output: Output,
    purpose: Purpose,
}

enum Purpose {
    Start(Box<Start>),
    Exec { pid: Option<Pid>, deadline: Instant, text: Vec<u8> },
}

impl Server {
    fn set_up(dir: &Path) -> Result<Self, Box<dyn Error>> {
        let config: ShimConfig = serde_json::from_slice(&fs::read(dir.join(CONFIG))?)?;
        setsid()?;
        nix::sys::prctl::set_child_subreaper(true)?;
        // Not the one to kill when memory is short; containers get their own score.
        let _ = fs::write("/proc/self/oom_score_adj", "-998");
        enter_namespaces(&config)?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let opened = File::open(dir)?;
        let listener = UnixListener::bind(socket_path(&opened))?;
        listener.set_nonblocking(true)?;
        println!("ready {}", getpid());
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let log = File::options().create(true).append(true).open(dir.join("shim.log"))?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        nix::unistd::dup2_stderr(&log)?;
        Ok(Self {
            dir: dir.to_owned(),
            cgroup: config.cgroup,
            signals,
            listener,
            clients: BTreeMap::new(),
            containers: BTreeMap::new(),
            jobs: Vec::new(),
            unclaimed: HashMap::new(),
            next: 0,
            stop: None,
        })
    }

    fn run(mut self) -> ! {
        loop {
            self.wait();
            self.accept();
            self.serve_clients();
            self.read_output();
            self.reap();
            self.hear_makers();
            self.expire();
            self.flush();
            if self.stop.is_some() && self.jobs.is_empty() && self.running().next().is_none() {
                std::process::exit(0);
            }
        }
    }

    fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers.values().filter(|container| container.instance.exit.is_none())
    }

    /// Sleeps until there is something to do.
    fn wait(&self) {
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        for client in self.clients.values() {
            let writing = if client.unsent.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            fds.push(PollFd::new(client.stream.as_fd(), PollFlags::POLLIN | writing));
        }
        let outputs = self.containers.values().map(|c| &c.output).chain(self.jobs.iter().map(|job| &job.output));
        fds.extend(outputs.flat_map(Output::fds).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // Once heard out, a maker's pipe would only say that it is closed, for ever.
        let unheard = self.jobs.iter().filter(|job| !matches!(job.purpose, Purpose::Exec { pid: Some(_), .. }));
        fds.extend(unheard.map(|job| PollFd::new(job.said.as_fd(), PollFlags::POLLIN)));
        let deadlines = self.jobs.iter().filter_map(Job::deadline).chain(self.stop);
        let timeout = deadlines.min().map_or(PollTimeout::NONE, |deadline| {
            // Rounded up, so that the deadline has passed when the poll returns.
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        // An interrupted poll is followed by a look at everything, as any other.
        let _ = poll(&mut fds, timeout);
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() < MAX_CLIENTS && stream.set_nonblocking(true).is_ok() {
                self.next += 1;
                self.clients.insert(self.next, Client { stream, read: Vec::new(), unsent: Vec::new() });
            }
        }
    }

    fn serve_clients(&mut self) {
        let ids: Vec<u64> = self.clients.keys().copied().collect();
        for id in ids {
            let Some(client) = self.clients.get_mut(&id) else { continue };
            let mut calls = Vec::new();
            let mut open = read_available(&mut client.stream, &mut client.read);
            loop {
                match decode::<Call>(&mut client.read) {
                    Ok(Some(call)) => calls.push(call),
                    Ok(None) => break,
                    Err(_) => {
                        open = false;
                        break;
                    }
                }
            }
            for call in calls {
                self.serve(id, call);
            }
            if !open {
                self.clients.remove(&id);
            }
        }
    }

    fn serve(&mut self, client: u64, Call { seq, request }: Call) {
        let reply = match request {
            Request::State => Reply::State(self.containers.values().map(|c| c.instance.clone()).collect()),
            Request::Start(start) => return self.start(client, seq, start),
            Request::Exec { id, args, timeout_ms } => {
                return self.exec(client, seq, &id, &args, Duration::from_millis(timeout_ms));
            }
            Request::Signal { id, signal } => self.signal(&id, signal),
            Request::Remove { id } => self.remove(&id),
            Request::Stop { grace_ms } => {
                let signal = if grace_ms == 0 { Signal::SIGKILL } else { Signal::SIGTERM };
                for container in self.running() {
                    let _ = kill(container.pid, signal);
                }
                self.stop = Some(Instant::now() + Duration::from_millis(grace_ms));
                Reply::Done
            }
        };
        self.reply(client, seq, reply);
    }

    fn start(&mut self, client: u64, seq: u64, start: Start) {
        if self.stop.is_some() || self.containers.contains_key(&start.id) {
            return self.reply(client, seq, Reply::Failed("the pod is stopping, or has this container".into()));
        }
        let dir = self.dir.clone();
        let wanted = start.clone();
        let purpose = Purpose::Start(Box::new(start));
        self.make(client, seq, purpose, move |out, err| container::start(&dir, &wanted, out, err));
    }

    fn exec(&mut self, client: u64, seq: u64, id: &str, args: &[String], timeout: Duration) {
        if !self.running().any(|container| container.instance.start.id == id) {
            return self.reply(client, seq, Reply::Failed("the container is not running".into()));
        }
        let (dir, id, args, nonce) = (self.dir.clone(), id.to_owned(), args.to_vec(), self.next);
        self.next += 1;
        let purpose = Purpose::Exec { pid: None, deadline: Instant::now() + timeout, text: Vec::new() };
        self.make(client, seq, purpose, move |out, err| container::exec(&dir, &id, &args, nonce, out, err));
    }

    /// Runs `work` in a forked child, which says by a pipe which process came of it.
    fn make(
        &mut self,
        client: u64,
        seq: u64,
        purpose: Purpose,
        work: impl FnOnce(OwnedFd, OwnedFd) -> Result<i32, Box<dyn Error>>,
    ) {
        if self.jobs.len() >= MAX_JOBS {
            return self.reply(client, seq, Reply::Failed("too many commands are running in this pod".into()));
        }
        match fork_maker(work) {
            Ok((maker, said, output)) => {
                self.jobs.push(Job { client, seq, maker, said, buffer: Vec::new(), output, purpose });
            }
            Err(error) => self.reply(client, seq, Reply::Failed(error.to_string())),
        }
    }

    fn signal(&self, id: &str, signal: i32) -> Reply {
        let Ok(signal) = Signal::try_from(signal) else { return Reply::Failed("no such signal".into()) };
        if let Some(container) = self.running().find(|container| container.instance.start.id == id) {
            // Not yet reaped, so the id is still this process's.
            let _ = kill(container.pid, signal);
        }
        Reply::Done
    }

    fn remove(&mut self, id: &str) -> Reply {
        match self.containers.get(id) {
            Some(container) if container.instance.exit.is_none() => Reply::Failed("the container is running".into()),
            _ => {
                self.containers.remove(id);
                let _ = umount2(&self.dir.join(container::bundle(id)).join("root"), MntFlags::MNT_DETACH);
                let _ = fs::remove_dir_all(self.dir.join("run").join(id));
                // SAFETY: this process has one thread. A large directory takes long to delete, so a child does it.
                if let Ok(ForkResult::Child) = unsafe { fork() } {
                    let _ = fs::remove_dir_all(self.dir.join(container::bundle(id)));
                    std::process::exit(0);
                }
                Reply::Done
            }
        }
    }

    fn read_output(&mut self) {
        let now = Timestamp::now();
        for container in self.containers.values_mut() {
            container.drain(now);
        }
        for job in &mut self.jobs {
            if let Purpose::Exec { text, .. } = &mut job.purpose {
                job.output.drain(|_, bytes| keep(text, bytes));
            }
        }
    }

    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(status) => {
                    let Some(pid) = status.pid() else { continue };
                    let id = self.running().find(|c| c.pid == pid).map(|c| c.instance.start.id.clone());
                    match id {
                        Some(id) => self.ended(&id, status),
                        None => drop(self.unclaimed.insert(pid, status)),
                    }
                }
            }
        }
    }

    /// A container's first process ended, and with it its whole PID namespace.
    fn ended(&mut self, id: &str, status: WaitStatus) {
        let oom = cgroup::had_oom_kill(&format!("{}/{id}", self.cgroup));
        let Some(container) = self.containers.get_mut(id) else { return };
        let now = Timestamp::now();
        container.drain(now);
        container.output = Output { stdout: None, stderr: None };
        if let Err(error) = container.log.finish(now) {
            eprintln!("cannot write the log of {id}: {error}");
        }
        let (code, signal) = outcome(status);
        container.instance.exit = Some(Exit { code, signal, oom_killed: oom && code == 137, at: now });
        let message = Message::Exited(container.instance.clone());
        let _ = umount2(&self.dir.join(container::bundle(id)).join("root"), MntFlags::MNT_DETACH);
        cgroup::remove(&format!("{}/{id}", self.cgroup));
        let ids: Vec<u64> = self.clients.keys().copied().collect();
        for client in ids {
            self.send(client, &message);
        }
    }

    /// Takes in what makers said, and what became of the processes they made.
    fn hear_makers(&mut self) {
        if self.jobs.is_empty() {
            self.unclaimed.clear();
            return;
        }
        let mut waiting = Vec::new();
        for mut job in std::mem::take(&mut self.jobs) {
            let mut ended = self.unclaimed.remove(&job.maker);
            if !matches!(job.purpose, Purpose::Exec { pid: Some(_), .. }) {
                // Read after the maker was reaped, so that its last word is not missed.
                read_available(&mut job.said, &mut job.buffer);
                match decode::<Result<i32, String>>(&mut job.buffer) {
                    Ok(Some(Ok(made))) => match &mut job.purpose {
                        Purpose::Start(_) => {
                            self.started(job, Pid::from_raw(made));
                            continue;
                        }
                        Purpose::Exec { pid, .. } => *pid = Some(Pid::from_raw(made)),
                    },
                    Ok(Some(Err(reason))) => {
                        self.reply(job.client, job.seq, Reply::Failed(reason));
                        continue;
                    }
                    Ok(None) if ended.is_none() => {}
                    Ok(None) | Err(_) => {
                        let reason = "what was to start the container died".to_owned();
                        self.reply(job.client, job.seq, Reply::Failed(reason));
                        continue;
                    }
                }
            }
            if let Purpose::Exec { pid: Some(pid), text, .. } = &mut job.purpose {
                ended = self.unclaimed.remove(pid);
                if let Some(status) = ended {
                    job.output.drain(|_, bytes| keep(text, bytes));
                    let output = String::from_utf8_lossy(text).into_owned();
                    self.reply(job.client, job.seq, Reply::Exec { code: Some(outcome(status).0), output });
                    continue;
                }
            }
            waiting.push(job);
        }
        self.jobs = waiting;
        if self.jobs.is_empty() {
            // No one is left to use them.
            remove_notify_sockets(&self.dir.join("run"));
        }
    }

    fn started(&mut self, job: Job, pid: Pid) {
        let Purpose::Start(start) = job.purpose else { return };
        let instance = Instance { start: *start, started_at: Timestamp::now(), exit: None };
        let log = match Log::open(&instance.start.log) {
            Ok(log) => log,
            Err(error) => {
                let _ = kill(pid, Signal::SIGKILL);
                return self.reply(job.client, job.seq, Reply::Failed(format!("cannot open the log: {error}")));
            }
        };
        let id = instance.start.id.clone();
        self.containers.insert(id.clone(), Container { instance: instance.clone(), pid, output: job.output, log });
        self.reply(job.client, job.seq, Reply::Started(Box::new(instance)));
        if let Some(status) = self.unclaimed.remove(&pid) {
            self.ended(&id, status);
        }
        if self.stop.is_some() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        for job in std::mem::take(&mut self.jobs) {
            match &job.purpose {
                Purpose::Exec { pid, deadline, text } if *deadline <= now => {
                    let _ = kill(pid.unwrap_or(job.maker), Signal::SIGKILL);
                    let output = String::from_utf8_lossy(text).into_owned();
                    self.reply(job.client, job.seq, Reply::Exec { code: None, output });
                }
                _ => self.jobs.push(job),
            }
        }
        if self.stop.is_some_and(|deadline| deadline <= now) {
            for container in self.running() {
                let _ = kill(container.pid, Signal::SIGKILL);
            }
            for job in &self.jobs {
                let _ = kill(job.maker, Signal::SIGKILL);
            }
            // The exits are what is waited for now.
            self.stop = Some(now + Duration::from_secs(3600));
        }
    }

    fn reply(&mut self, client: u64, seq: u64, reply: Reply) {
        self.send(client, &Message::Reply { seq, reply });
    }

    fn send(&mut self, client: u64, message: &Message) {
        // One that has gone meanwhile misses its answer.
        if let Some(to) = self.clients.get_mut(&client)
            && let Ok(frame) = encode(message)
        {
            to.unsent.extend_from_slice(&frame);
        }
    }

    fn flush(&mut self) {
        self.clients.retain(|_, client| {
            while !client.unsent.is_empty() {
                match client.stream.write(&client.unsent) {
                    Ok(0) => return false,
                    Ok(sent) => drop(client.unsent.drain(..sent)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return false,
                }
            }
            client.unsent.len() <= MAX_UNREAD
        });
    }
}

impl Container {
    fn drain(&mut self, now: Timestamp) {
        let Self { output, log, instance, .. } = self;
        output.drain(|stream, bytes| {
            if let Err(error) = log.write(stream, bytes, now) {
                eprintln!("cannot write the log of {}: {error}", instance.start.id);
            }
        });
    }
}

impl Job {
    fn deadline(&self) -> Option<Instant> {
        match self.purpose {
            Purpose::Exec { deadline, .. } => Some(deadline),
            Purpose::Start(_) => None,
        }
    }
}

impl Output {
    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.stdout, &self.stderr].into_iter().flatten().map(AsFd::as_fd)
    }

    /// Gives what there is to read to `take`, without waiting for more than a fair share.
    fn drain(&mut self, mut take: impl FnMut(Stream, &[u8])) {
        let mut buffer = [0; 16 << 10];
        for (stream, slot) in [(Stream::Stdout, &mut self.stdout), (Stream::Stderr, &mut self.stderr)] {
            // A pipe holds 64 KiB, so this empties one that nobody writes to meanwhile.
            for _ in 0..8 {
                let Some(fd) = slot else { break };
                match nix::unistd::read(fd, &mut buffer) {
                    Ok(0) => *slot = None,
                    Ok(length) => take(stream, &buffer[..length]),
                    Err(nix::errno::Errno::EINTR) => {}
                    Err(_) => break,
                }
            }
        }
    }
}

fn enter_namespaces(config: &ShimConfig) -> Result<(), Box<dyn Error>> {
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
    for (path, size) in &config.tmpfs {
        let options = size.map(|size| format!("size={size}"));
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, options.as_deref())?;
    }
    Ok(())
}

fn fork_maker(
    work: impl FnOnce(OwnedFd, OwnedFd) -> Result<i32, Box<dyn Error>>,
) -> Result<(Pid, File, Output), nix::Error> {
    let (stdout, out) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, err) = pipe2(OFlag::O_CLOEXEC)?;
    let (said, say) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let made = work(out, err).map_err(|error| container::say(&*error));
            let told = encode(&made).and_then(|frame| File::from(say).write_all(&frame));
            std::process::exit(i32::from(told.is_err()));
        }
        ForkResult::Parent { child } => {
            for fd in [&stdout, &stderr, &said] {
                nonblocking(fd)?;
            }
            Ok((child, said.into(), Output { stdout: Some(stdout), stderr: Some(stderr) }))
        }
    }
}

fn nonblocking(fd: &OwnedFd) -> Result<(), nix::Error> {
    use nix::fcntl::{FcntlArg, fcntl};
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

/// Reads what is there; `false` when the other end is closed or broken.
fn read_available(from: &mut impl Read, into: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return false,
            Ok(length) => into.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

fn keep(text: &mut Vec<u8>, bytes: &[u8]) {
    let room = MAX_EXEC_OUTPUT.saturating_sub(text.len());
    text.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

/// An exit code as shells and the kubelet count them: 128 and the signal's number for a death by signal.
fn outcome(status: WaitStatus) -> (i32, Option<i32>) {
    match status {
        WaitStatus::Exited(_, code) => (code, None),
        WaitStatus::Signaled(_, signal, _) => (128 + signal as i32, Some(signal as i32)),
        _ => (255, None),
    }
}

/// libcontainer leaves one behind for every command run in a container.
fn remove_notify_sockets(run: &Path) {
    for container in fs::read_dir(run).into_iter().flatten().flatten() {
        for entry in fs::read_dir(container.path()).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("tenant-notify-") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}
