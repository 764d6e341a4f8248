//! The shim process: holds a pod's namespaces, is the parent of its containers, and answers the agent.
//!
//! One thread, one `poll` loop, no runtime: what it holds is the pod's life, so it is as small as it can be. It is
//! started by the agent but not its child for long (it forks once, so that init adopts it), and an agent that comes
//! back finds it by its socket.
//!
//! Invariant: nothing in the loop blocks. Creating containers is done in forked children; see `jobs`.

#![allow(unsafe_code, reason = "fork is unsafe; this process has one thread, so what follows it may do anything")]

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, setsid};

use super::jobs::{Job, Purpose, keep};
use super::log::Log;
use super::output::Output;
use super::pause::Shared;
use super::session::receive;
use super::sessions::{MAX_SESSIONS, Session};
use super::{
    CONFIG, Call, Instance, Message, Reply, Request, ShimConfig, container, decode, encode, namespaces, part,
    socket_path,
};
use crate::cgroup;
use crate::pod::Exit;

/// Connections at once: an agent's, those that it replaced have not closed, and one for each session.
const MAX_CLIENTS: usize = 8 + MAX_SESSIONS;
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

pub(super) struct Server {
    pub(super) dir: PathBuf,
    cgroup: String,
    signals: SignalFd,
    listener: UnixListener,
    /// Where its containers' processes are, if they share that.
    pub(super) shared: Option<Shared>,
    clients: BTreeMap<u64, Client>,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) jobs: Vec<Job>,
    pub(super) sessions: Vec<Session>,
    /// Children that ended while the process that made them had not yet said whose they are.
    pub(super) unclaimed: HashMap<Pid, WaitStatus>,
    pub(super) next: u64,
    pub(super) stop: Option<Instant>,
}

struct Client {
    stream: UnixStream,
    read: Vec<u8>,
    /// What came with calls that are not whole yet.
    fds: Vec<OwnedFd>,
    unsent: Vec<u8>,
}

pub(super) struct Container {
    pub(super) instance: Instance,
    pub(super) pid: Pid,
    pub(super) output: Output,
    /// Where its first process's input is written; of a terminal, the same as its output.
    pub(super) input: Option<OwnedFd>,
    pub(super) log: Log,
}

impl Server {
    fn set_up(dir: &Path) -> Result<Self, Box<dyn Error>> {
        let config: ShimConfig = serde_json::from_slice(&fs::read(dir.join(CONFIG))?)?;
        setsid()?;
        nix::sys::prctl::set_child_subreaper(true)?;
        // Not the one to kill when memory is short; containers get their own score.
        let _ = fs::write("/proc/self/oom_score_adj", "-998");
        namespaces::enter(&config)?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let shared = config.share_processes.then(|| Shared::start(dir)).transpose()?;
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
            shared,
            clients: BTreeMap::new(),
            containers: BTreeMap::new(),
            jobs: Vec::new(),
            sessions: Vec::new(),
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
            self.relay();
            self.expire();
            self.flush();
            if self.stop.is_some() && self.jobs.is_empty() && self.running().next().is_none() {
                std::process::exit(0);
            }
        }
    }

    pub(super) fn running(&self) -> impl Iterator<Item = &Container> {
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
        let heard = self.containers.iter().filter(|(id, _)| !self.is_held(id)).map(|(_, container)| &container.output);
        let outputs = heard.chain(self.jobs.iter().map(|job| &job.output));
        fds.extend(outputs.flat_map(Output::fds).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // Once heard out, a maker's pipe would only say that it is closed, for ever.
        let unheard = self.jobs.iter().filter(|job| !matches!(job.purpose, Purpose::Exec { pid: Some(_), .. }));
        fds.extend(unheard.map(|job| PollFd::new(job.said.as_fd(), PollFlags::POLLIN)));
        self.poll_sessions(&mut fds);
        let deadlines = self.jobs.iter().filter_map(Job::deadline).chain(self.session_deadlines()).chain(self.stop);
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
                self.clients
                    .insert(self.next, Client { stream, read: Vec::new(), fds: Vec::new(), unsent: Vec::new() });
            }
        }
    }

    fn serve_clients(&mut self) {
        let ids: Vec<u64> = self.clients.keys().copied().collect();
        for id in ids {
            let Some(client) = self.clients.get_mut(&id) else { continue };
            let mut calls = Vec::new();
            let mut open = receive(&client.stream, &mut client.read, &mut client.fds);
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
            // Whatever came with a call is whole when the call is.
            let mut fds = if calls.is_empty() { Vec::new() } else { std::mem::take(&mut client.fds) };
            for call in calls {
                self.serve(id, call, &mut fds);
            }
            if !open {
                self.clients.remove(&id);
            }
        }
    }

    fn serve(&mut self, client: u64, Call { seq, request }: Call, fds: &mut Vec<OwnedFd>) {
        let reply = match request {
            Request::State => Reply::State(self.containers.values().map(|c| c.instance.clone()).collect()),
            Request::Start(start) => return self.start(client, seq, start),
            Request::Exec { id, args, timeout_ms } => {
                return self.exec(client, seq, &id, &args, Duration::from_millis(timeout_ms));
            }
            Request::Open(open) => return self.open(client, seq, open, std::mem::take(fds)),
            Request::Resize { columns, rows } => self.resize(client, columns, rows),
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
                part::unmount_all(&self.dir, id);
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
        let held: Vec<bool> = self.containers.keys().map(|id| self.is_held(id)).collect();
        for (container, _) in self.containers.values_mut().zip(held).filter(|(_, held)| !held) {
            container.drain(&mut self.sessions, now);
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
                    if self.shared.as_ref().is_some_and(|shared| shared.first == pid) {
                        // All processes of the pod have ended with it, and there is no place for others.
                        eprintln!("the first process of the pod's namespace has ended");
                        std::process::exit(1);
                    }
                    let id = self.running().find(|c| c.pid == pid).map(|c| c.instance.start.id.clone());
                    match id {
                        Some(id) => self.ended(&id, status),
                        None if self.session_ended(pid, status) => {}
                        None => drop(self.unclaimed.insert(pid, status)),
                    }
                }
            }
        }
    }

    /// A container's first process ended, and with it its whole PID namespace.
    pub(super) fn ended(&mut self, id: &str, status: WaitStatus) {
        let oom = cgroup::had_oom_kill(&format!("{}/{id}", self.cgroup));
        let Some(container) = self.containers.get_mut(id) else { return };
        let now = Timestamp::now();
        container.await_last_words();
        container.drain(&mut self.sessions, now);
        (container.output, container.input) = (Output::default(), None);
        if let Err(error) = container.log.finish(now) {
            eprintln!("cannot write the log of {id}: {error}");
        }
        let (code, signal) = outcome(status);
        container.instance.exit = Some(Exit { code, signal, oom_killed: oom && code == 137, at: now });
        let message = Message::Exited(Box::new(container.instance.clone()));
        part::unmount_all(&self.dir, id);
        let _ = umount2(&self.dir.join(container::bundle(id)).join("root"), MntFlags::MNT_DETACH);
        cgroup::remove(&format!("{}/{id}", self.cgroup));
        let ids: Vec<u64> = self.clients.keys().copied().collect();
        for client in ids {
            self.send(client, &message);
        }
    }

    pub(super) fn reply(&mut self, client: u64, seq: u64, reply: Reply) {
        self.send(client, &Message::Reply { seq, reply });
    }

    pub(super) fn has_client(&self, client: u64) -> bool {
        self.clients.contains_key(&client)
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
    fn drain(&mut self, sessions: &mut [Session], now: Timestamp) {
        let Self { output, log, instance, .. } = self;
        output.drain(|stream, bytes| {
            Server::tell_attached(sessions, &instance.start.id, stream, bytes);
            if let Err(error) = log.write(stream, bytes, now) {
                eprintln!("cannot write the log of {}: {error}", instance.start.id);
            }
        });
    }
}

/// An exit code as shells and the kubelet count them: 128 and the signal's number for a death by signal.
pub(super) fn outcome(status: WaitStatus) -> (i32, Option<i32>) {
    match status {
        WaitStatus::Exited(_, code) => (code, None),
        WaitStatus::Signaled(_, signal, _) => (128 + signal as i32, Some(signal as i32)),
        _ => (255, None),
    }
}
