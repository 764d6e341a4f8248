//! Who is connected to which process, and what passes between them.
//!
//! A command without a terminal has its client's pipes themselves, and only its end is told. All else goes through
//! here: what containers' first processes write goes to their logs too, and a terminal has one end for all.
//!
//! Invariant: a session ends with its client's connection. What a client leaves behind is told by its terminal's hangup
//! or by pipes that are closed, and is otherwise left to run, as the kubelet leaves it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::WaitStatus;
use nix::unistd::{Pid, read};

use super::container::{self, Stdio};
use super::jobs::Purpose;
use super::log::Stream;
use super::output::{Output, nonblocking};
use super::relay::{Inlet, Outlet, resize};
use super::server::{Container, Server, outcome};
use super::{Command, Open, Reply, session};

/// Sessions at once.
pub(super) const MAX_SESSIONS: usize = 32;
/// What a process has written on a terminal may arrive this much later than its end.
const LAST_WORDS: Duration = Duration::from_millis(100);

pub(super) struct Session {
    client: u64,
    seq: u64,
    with: With,
    wires: Wires,
}

enum With {
    /// The first process of the container of this id.
    Container(String),
    Command(Running),
}

/// A command that runs for a client.
struct Running {
    pid: Pid,
    /// Without one, the client's pipes are the command's.
    terminal: Option<OwnedFd>,
    /// Nobody has the other end of the terminal open any more.
    hung_up: bool,
    ended: Option<(i32, Instant)>,
}

/// The shim's ends of what leads to the client.
#[derive(Default)]
pub(super) struct Wires {
    stdin: Option<Inlet>,
    stdout: Option<Outlet>,
    stderr: Option<Outlet>,
}

impl Wires {
    /// # Errors
    /// When there are fewer descriptors than are spoken of.
    fn new(open: &Open, ends: Vec<OwnedFd>) -> Result<Self, String> {
        let mut ends = ends.into_iter();
        let mut next = |wanted: bool| match wanted {
            true => ends.next().map(Some).ok_or_else(|| "a session came without its pipes".to_owned()),
            false => Ok(None),
        };
        let text = |error: Errno| error.to_string();
        Ok(Self {
            stdin: next(open.stdin)?.map(Inlet::new).transpose().map_err(text)?,
            stdout: next(open.stdout)?.map(Outlet::new).transpose().map_err(text)?,
            stderr: next(open.stderr)?.map(Outlet::new).transpose().map_err(text)?,
        })
    }

    fn outlets(&self) -> impl Iterator<Item = &Outlet> {
        [&self.stdout, &self.stderr].into_iter().flatten()
    }

    fn lag(&self) -> bool {
        self.outlets().any(Outlet::lags)
    }

    fn flush(&mut self, now: Instant) {
        for outlet in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            outlet.flush(now);
        }
    }
}

/// A command's own ends of the client's pipes; what the client did not ask for leads nowhere.
fn pipes(open: &Open, ends: Vec<OwnedFd>) -> Result<Stdio, String> {
    let mut ends = ends.into_iter();
    let mut next = |wanted: bool| -> Result<OwnedFd, String> {
        if wanted {
            return ends.next().ok_or_else(|| "a session came without its pipes".to_owned());
        }
        let null = File::options().read(true).write(true).open("/dev/null");
        null.map(OwnedFd::from).map_err(|error| error.to_string())
    };
    Ok(Stdio::Pipes { stdin: next(open.stdin)?, stdout: next(open.stdout)?, stderr: next(open.stderr)? })
}

/// Where the other end of a new terminal arrives.
pub(super) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    pub(super) fn new(dir: &Path, nonce: u64) -> io::Result<Self> {
        let name = format!("console-{nonce}.sock");
        let opened = File::open(dir)?;
        let listener = UnixListener::bind(super::named(&opened, &name))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: dir.join(name) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal, once its process has been made.
    pub(super) fn terminal(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        let (mut bytes, mut fds) = (Vec::new(), Vec::new());
        session::receive(&stream, &mut bytes, &mut fds);
        let terminal: OwnedFd = fds.pop().ok_or(io::ErrorKind::UnexpectedEof)?;
        nonblocking(&terminal)?;
        Ok(terminal)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A session whose command is being made.
pub(super) struct Making {
    wires: Wires,
    console: Option<Console>,
    /// Columns and rows.
    size: Option<(u16, u16)>,
}

impl Server {
    pub(super) fn open(&mut self, client: u64, seq: u64, open: Open, ends: Vec<OwnedFd>) {
        if !self.running().any(|container| container.instance.start.id == open.id) {
            return self.reply(client, seq, Reply::Failed("the container is not running".into()));
        }
        if self.sessions.len() >= MAX_SESSIONS {
            return self.reply(client, seq, Reply::Failed("too many sessions are open in this pod".into()));
        }
        let opened = match open.command.clone() {
            Some(command) => self.begin(client, seq, &open, command, ends),
            None => Wires::new(&open, ends).map(|wires| {
                self.sessions.push(Session { client, seq, with: With::Container(open.id), wires });
            }),
        };
        if let Err(reason) = opened {
            self.reply(client, seq, Reply::Failed(reason));
        }
    }

    fn begin(
        &mut self,
        client: u64,
        seq: u64,
        open: &Open,
        command: Command,
        ends: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let (dir, id, nonce) = (self.dir.clone(), open.id.clone(), self.next);
        self.next += 1;
        let (wires, console, stdio) = if command.tty {
            let console = Console::new(&dir, nonce).map_err(|error| error.to_string())?;
            let stdio = Stdio::Terminal(console.path().to_owned());
            (Wires::new(open, ends)?, Some(console), stdio)
        } else {
            (Wires::default(), None, pipes(open, ends)?)
        };
        let making = Making { wires, console, size: None };
        self.make(client, seq, Purpose::Session(Box::new(making)), Output::default(), move || {
            container::exec(&dir, &id, &command.args, nonce, stdio)
        });
        Ok(())
    }

    /// The session's command runs.
    pub(super) fn begun(&mut self, client: u64, seq: u64, making: Making, pid: Pid) {
        let Making { wires, console, size } = making;
        let terminal = match console.map(|console| console.terminal()).transpose() {
            Ok(terminal) => terminal,
            Err(error) => {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                return self.reply(client, seq, Reply::Failed(format!("no terminal came of it: {error}")));
            }
        };
        if let (Some(terminal), Some((columns, rows))) = (&terminal, size) {
            resize(terminal, columns, rows);
        }
        let mut running = Running { pid, terminal, hung_up: false, ended: None };
        if let Some(status) = self.unclaimed.remove(&pid) {
            running.end(status);
        }
        self.sessions.push(Session { client, seq, with: With::Command(running), wires });
    }

    pub(super) fn resize(&mut self, client: u64, columns: u16, rows: u16) -> Reply {
        for job in self.jobs.iter_mut().filter(|job| job.client == client) {
            if let Purpose::Session(making) = &mut job.purpose {
                making.size = Some((columns, rows));
            }
        }
        for session in self.sessions.iter().filter(|session| session.client == client) {
            let terminal = match &session.with {
                With::Command(running) => running.terminal.as_ref(),
                With::Container(id) => self.containers.get(id).and_then(Container::terminal),
            };
            if let Some(terminal) = terminal {
                resize(terminal, columns, rows);
            }
        }
        Reply::Done
    }

    /// Takes in that a process ended, if it is a session's.
    pub(super) fn session_ended(&mut self, pid: Pid, status: WaitStatus) -> bool {
        let running = self.sessions.iter_mut().find_map(|session| match &mut session.with {
            With::Command(running) if running.pid == pid => Some(running),
            _ => None,
        });
        running.map(|running| running.end(status)).is_some()
    }

    /// Whether somebody has yet to take what the container wrote.
    pub(super) fn is_held(&self, id: &str) -> bool {
        let attached = |session: &&Session| matches!(&session.with, With::Container(own) if own == id);
        self.sessions.iter().filter(attached).any(|session| session.wires.lag())
    }

    /// Passes on what a container wrote to those who are attached to it.
    pub(super) fn tell_attached(sessions: &mut [Session], id: &str, stream: Stream, bytes: &[u8]) {
        for session in sessions {
            let With::Container(own) = &session.with else { continue };
            let outlet = match stream {
                Stream::Stdout => &mut session.wires.stdout,
                Stream::Stderr => &mut session.wires.stderr,
            };
            if let Some(outlet) = outlet.as_mut().filter(|_| own == id) {
                outlet.give(bytes);
            }
        }
    }

    /// Moves what can be moved, and ends the sessions that are over.
    pub(super) fn relay(&mut self) {
        let now = Instant::now();
        for mut session in std::mem::take(&mut self.sessions) {
            // Its client has gone, and with it the input of the process.
            if !self.has_client(session.client) {
                if let With::Container(id) = &session.with
                    && let Some(container) = self.containers.get_mut(id)
                {
                    container.hear_last(session.wires.stdin);
                }
                continue;
            }
            session.wires.flush(now);
            let ended = match &mut session.with {
                With::Container(id) => self.containers.get_mut(id).map_or(Some(137), |container| {
                    container.hear(&mut session.wires.stdin);
                    container.instance.exit.as_ref().map(|exit| exit.code)
                }),
                With::Command(running) => running.relay(&mut session.wires, now),
            };
            match ended {
                Some(code) if !session.wires.lag() => self.reply(session.client, session.seq, Reply::Ended { code }),
                _ => self.sessions.push(session),
            }
        }
    }

    pub(super) fn poll_sessions<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        for Session { with, wires, .. } in &self.sessions {
            fds.extend(wires.outlets().filter_map(Outlet::poll));
            let input = match with {
                With::Container(id) => self.containers.get(id).and_then(Container::input),
                With::Command(Running { terminal: Some(terminal), hung_up: false, .. }) => {
                    if !wires.lag() {
                        fds.push(PollFd::new(terminal.as_fd(), PollFlags::POLLIN));
                    }
                    Some(terminal.as_fd())
                }
                With::Command(_) => None,
            };
            if let (Some(inlet), Some(input)) = (&wires.stdin, input) {
                fds.extend(inlet.poll(input));
            }
        }
    }

    pub(super) fn session_deadlines(&self) -> impl Iterator<Item = Instant> {
        self.sessions.iter().flat_map(|session| {
            let last_words = match &session.with {
                With::Command(Running { ended: Some((_, at)), .. }) => Some(*at + LAST_WORDS),
                _ => None,
            };
            session.wires.outlets().filter_map(Outlet::deadline).chain(last_words)
        })
    }
}

impl Running {
    fn end(&mut self, status: WaitStatus) {
        self.ended = Some((outcome(status).0, Instant::now()));
    }

    /// Moves what can be moved over the terminal; the command's exit code, once it has said all.
    fn relay(&mut self, wires: &mut Wires, now: Instant) -> Option<i32> {
        let Some(terminal) = &self.terminal else { return self.ended.map(|(code, _)| code) };
        if let Some(inlet) = &mut wires.stdin
            && !inlet.pump(terminal.as_fd())
        {
            wires.stdin = None;
        }
        for _ in 0..8 {
            if self.hung_up || wires.lag() {
                break;
            }
            let mut buffer = [0; 16 << 10];
            match read(terminal, &mut buffer) {
                Ok(length) if length > 0 => {
                    if let Some(outlet) = &mut wires.stdout {
                        outlet.give(&buffer[..length]);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                _ => self.hung_up = true,
            }
        }
        let (code, at) = self.ended?;
        // Others may have the terminal still; they are not waited for.
        (self.hung_up || at + LAST_WORDS <= now).then_some(code)
    }
}

impl Container {
    fn terminal(&self) -> Option<&OwnedFd> {
        self.input.as_ref().filter(|_| self.instance.start.input.tty)
    }

    fn input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(AsFd::as_fd)
    }

    /// Passes on what a client sends. The end of the first input is the end of all if the container wants it so.
    fn hear(&mut self, stdin: &mut Option<Inlet>) {
        let (Some(inlet), Some(to)) = (stdin.as_mut(), &self.input) else { return };
        if !inlet.pump(to.as_fd()) {
            *stdin = None;
            self.input_over();
        }
    }

    /// Passes on what a client that has gone left behind, as far as it is taken at once.
    fn hear_last(&mut self, mut stdin: Option<Inlet>) {
        self.hear(&mut stdin);
        if stdin.is_some() {
            self.input_over();
        }
    }

    fn input_over(&mut self) {
        if self.instance.start.input.once && !self.instance.start.input.tty {
            self.input = None;
        }
    }

    /// Waits, for a moment, for what is still under way on a terminal that was just left.
    pub(super) fn await_last_words(&self) {
        if let (true, Some(terminal)) = (self.instance.start.input.tty, &self.output.stdout) {
            let mut fds = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::from(50u8));
        }
    }
}
