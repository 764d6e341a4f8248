//! A container to start, or a command to run in one -> a process, made by a forked child.
//!
//! The child does what takes long, and says by a pipe which process came of it. That process is the shim's all the
//! same, because the shim adopts what its children leave behind; it may end before its maker has spoken.

#![allow(unsafe_code, reason = "fork is unsafe; this process has one thread, so what follows it may do anything")]

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid, fork, pipe2};

use super::container::Stdio;
use super::log::Log;
use super::output::{Output, nonblocking, read_available};
use super::server::{Container, Server, outcome};
use super::sessions::{Console, Making};
use super::{Instance, MAX_EXEC_OUTPUT, Reply, Start, container, decode, encode};

/// Commands being run, and containers being started, at once.
const MAX_JOBS: usize = 32;

/// Something a forked child is making.
pub(super) struct Job {
    pub(super) client: u64,
    seq: u64,
    pub(super) maker: Pid,
    /// Where the maker says which process it made: a frame with `Result<pid, reason>`.
    pub(super) said: File,
    buffer: Vec<u8>,
    pub(super) output: Output,
    pub(super) purpose: Purpose,
}

pub(super) enum Purpose {
    Start(Box<Starting>),
    Session(Box<Making>),
    Exec { pid: Option<Pid>, deadline: Instant, text: Vec<u8> },
}

/// A container that is being made, and the shim's ends of what its first process reads from.
pub(super) struct Starting {
    start: Start,
    console: Option<Console>,
    input: Option<OwnedFd>,
}

impl Server {
    pub(super) fn start(&mut self, client: u64, seq: u64, start: Start) {
        if self.stop.is_some() || self.containers.contains_key(&start.id) {
            return self.reply(client, seq, Reply::Failed("the pod is stopping, or has this container".into()));
        }
        let (dir, wanted, nonce) = (self.dir.clone(), start.clone(), self.next);
        self.next += 1;
        let processes = match &start.target {
            Some(target) => self.processes_of(target).map(Some),
            None => {
                self.shared.as_ref().map(|shared| shared.namespace.try_clone()).transpose().map_err(|e| e.to_string())
            }
        };
        let processes = match processes {
            Ok(processes) => processes,
            Err(why) => return self.reply(client, seq, Reply::Failed(why)),
        };
        match stdio(&dir, &start, nonce) {
            Ok((stdio, output, input, console)) => {
                let purpose = Purpose::Start(Box::new(Starting { start, console, input }));
                let work = move || container::start(&dir, &wanted, processes.as_ref(), stdio);
                self.make(client, seq, purpose, output, work);
            }
            Err(error) => self.reply(client, seq, Reply::Failed(error.to_string())),
        }
    }

    /// The PID namespace of a running container. Its first process is this one's child, so its number is nobody else's
    /// before it is reaped.
    fn processes_of(&self, container: &str) -> Result<File, String> {
        let target = self.running().find(|other| other.instance.start.container == container);
        let target = target.ok_or_else(|| format!("the target container {container} is not running"))?;
        File::open(format!("/proc/{}/ns/pid", target.pid))
            .map_err(|error| format!("cannot find the processes of the target container {container}: {error}"))
    }

    pub(super) fn exec(&mut self, client: u64, seq: u64, id: &str, args: &[String], timeout: Duration) {
        if !self.running().any(|container| container.instance.start.id == id) {
            return self.reply(client, seq, Reply::Failed("the container is not running".into()));
        }
        let (dir, id, args, nonce) = (self.dir.clone(), id.to_owned(), args.to_vec(), self.next);
        self.next += 1;
        let (output, stdio) = match Output::pipes().and_then(|(output, ends)| Ok((output, without_input(ends)?))) {
            Ok(made) => made,
            Err(error) => return self.reply(client, seq, Reply::Failed(error.to_string())),
        };
        let purpose = Purpose::Exec { pid: None, deadline: Instant::now() + timeout, text: Vec::new() };
        self.make(client, seq, purpose, output, move || container::exec(&dir, &id, &args, nonce, stdio));
    }

    /// Runs `work` in a forked child, which says by a pipe which process came of it.
    pub(super) fn make(
        &mut self,
        client: u64,
        seq: u64,
        purpose: Purpose,
        output: Output,
        work: impl FnOnce() -> Result<i32, Box<dyn Error>>,
    ) {
        if self.jobs.len() >= MAX_JOBS {
            return self.reply(client, seq, Reply::Failed("too many commands are running in this pod".into()));
        }
        match fork_maker(work) {
            Ok((maker, said)) => {
                self.jobs.push(Job { client, seq, maker, said, buffer: Vec::new(), output, purpose });
            }
            Err(error) => self.reply(client, seq, Reply::Failed(error.to_string())),
        }
    }

    /// Takes in what makers said, and what became of the processes they made.
    pub(super) fn hear_makers(&mut self) {
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
                        Purpose::Session(_) => {
                            let Job { client, seq, purpose: Purpose::Session(making), .. } = job else { continue };
                            self.begun(client, seq, *making, Pid::from_raw(made));
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
        let Purpose::Start(starting) = job.purpose else { return };
        let Starting { start, console, input } = *starting;
        let (output, input) = match terminal(console, job.output, input) {
            Ok(ends) => ends,
            Err(error) => {
                let _ = kill(pid, Signal::SIGKILL);
                return self.reply(job.client, job.seq, Reply::Failed(format!("no terminal came of it: {error}")));
            }
        };
        let instance = Instance { start, started_at: Timestamp::now(), exit: None };
        let log = match Log::open(&instance.start.log) {
            Ok(log) => log,
            Err(error) => {
                let _ = kill(pid, Signal::SIGKILL);
                return self.reply(job.client, job.seq, Reply::Failed(format!("cannot open the log: {error}")));
            }
        };
        let id = instance.start.id.clone();
        self.containers.insert(id.clone(), Container { instance: instance.clone(), pid, output, input, log });
        self.reply(job.client, job.seq, Reply::Started(Box::new(instance)));
        if let Some(status) = self.unclaimed.remove(&pid) {
            self.ended(&id, status);
        }
        if self.stop.is_some() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    pub(super) fn expire(&mut self) {
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
}

impl Job {
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.purpose {
            Purpose::Exec { deadline, .. } => Some(deadline),
            Purpose::Start(_) | Purpose::Session(_) => None,
        }
    }
}

fn fork_maker(work: impl FnOnce() -> Result<i32, Box<dyn Error>>) -> Result<(Pid, File), nix::Error> {
    let (said, say) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let made = work().map_err(|error| container::say(&*error));
            let told = encode(&made).and_then(|frame| File::from(say).write_all(&frame));
            std::process::exit(i32::from(told.is_err()));
        }
        ForkResult::Parent { child } => {
            nonblocking(&said)?;
            Ok((child, said.into()))
        }
    }
}

/// The ends of a process that reads nothing.
fn without_input([stdout, stderr]: [OwnedFd; 2]) -> Result<Stdio, nix::Error> {
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok(Stdio::Pipes { stdin: null, stdout, stderr })
}

type Ends = (Stdio, Output, Option<OwnedFd>, Option<Console>);

/// What a container's first process has, and what the shim has of it.
fn stdio(dir: &Path, start: &Start, nonce: u64) -> io::Result<Ends> {
    if start.input.tty {
        let console = Console::new(dir, nonce)?;
        return Ok((Stdio::Terminal(console.path().to_owned()), Output::default(), None, Some(console)));
    }
    let (output, [stdout, stderr]) = Output::pipes()?;
    if !start.input.stdin {
        return Ok((without_input([stdout, stderr])?, output, None, None));
    }
    let (stdin, input) = pipe2(OFlag::O_CLOEXEC)?;
    nonblocking(&input)?;
    Ok((Stdio::Pipes { stdin, stdout, stderr }, output, Some(input), None))
}

/// A terminal, if there is one, in the place of the pipes.
fn terminal(console: Option<Console>, output: Output, input: Option<OwnedFd>) -> io::Result<(Output, Option<OwnedFd>)> {
    let Some(console) = console else { return Ok((output, input)) };
    let terminal = console.terminal()?;
    let input = terminal.try_clone()?;
    Ok((Output { stdout: Some(terminal), stderr: None }, Some(input)))
}

/// Of a command's output, as much as is kept.
pub(super) fn keep(text: &mut Vec<u8>, bytes: &[u8]) {
    let room = MAX_EXEC_OUTPUT.saturating_sub(text.len());
    text.extend_from_slice(&bytes[..bytes.len().min(room)]);
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
