//! The agent's end: starting a pod's shim, finding one that is already there, and talking to it.
//!
//! The caller drives the future that [`Shim::connect`] returns. When the shim's connection closes the shim is gone,
//! and with it every container of the pod: [`ShimEvent::Gone`] is the last event.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot};

use super::{CONFIG, Call, Instance, Message, Reply, Request, SUBCOMMAND, ShimConfig, decode, encode, socket_path};

/// Making namespaces and a socket takes milliseconds; a shim that takes this long is stuck.
const START_DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) enum ShimEvent {
    Exited(Box<Instance>),
    Gone,
}

/// A connection to a pod's shim; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Shim {
    calls: mpsc::Sender<(Request, oneshot::Sender<Reply>)>,
    /// Of the shim, which is in the pod's namespaces.
    pub(crate) process: Option<u32>,
}

/// Starts the shim of the pod in `dir` and gives its process id, once its namespaces exist and its socket listens.
pub(crate) async fn spawn(dir: &Path, config: &ShimConfig) -> io::Result<u32> {
    tokio::fs::write(dir.join(CONFIG), serde_json::to_vec(config)?).await?;
    let mut child = Command::new("/proc/self/exe")
        .arg(SUBCOMMAND)
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .env_clear()
        .kill_on_drop(true)
        .spawn()?;
    let mut said = String::new();
    let listen = async {
        if let Some(stdout) = child.stdout.as_mut() {
            // To the end: the shim closes it when it has said how it went.
            stdout.take(4096).read_to_string(&mut said).await?;
        }
        child.wait().await
    };
    tokio::time::timeout(START_DEADLINE, listen).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    match said.trim().split_once(' ') {
        Some(("ready", pid)) => pid.parse().map_err(io::Error::other),
        Some(("error", reason)) => Err(io::Error::other(reason.to_owned())),
        _ => Err(io::Error::other("the pod's shim died at its start")),
    }
}

/// Ends the shim of the pod in `dir` at once, if there is one, and waits until it is gone. Blocks.
pub(crate) fn kill(dir: &Path) {
    let killed = || -> io::Result<()> {
        let opened = File::open(dir)?;
        let mut stream = std::os::unix::net::UnixStream::connect(socket_path(&opened))?;
        stream.set_read_timeout(Some(START_DEADLINE))?;
        io::Write::write_all(&mut stream, &encode(&Call { seq: 0, request: Request::Stop { grace_ms: 0 } })?)?;
        io::copy(&mut stream, &mut io::sink()).map(drop)
    };
    if let Err(error) = killed() {
        tracing::trace!(%error, ?dir, "no shim to end");
    }
}

/// The process id of the shim of the pod in `dir`, which is in the pod's namespaces.
pub(crate) async fn process(dir: &Path) -> io::Result<u32> {
    let opened = File::open(dir)?;
    let pid = UnixStream::connect(socket_path(&opened)).await?.peer_cred()?.pid();
    pid.and_then(|pid| u32::try_from(pid).ok()).ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl Shim {
    /// Connects to the shim of the pod in `dir`. Refused or not found: there is none.
    pub(crate) async fn connect(
        dir: &Path,
    ) -> io::Result<(Self, mpsc::UnboundedReceiver<ShimEvent>, impl Future<Output = ()> + Send + 'static)> {
        let opened = File::open(dir)?;
        let stream = UnixStream::connect(socket_path(&opened)).await?;
        let process = stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok());
        let (calls, receiver) = mpsc::channel(64);
        // The shim sends one event per exit of a container that this agent started: the agent sets the pace.
        let (events, told) = mpsc::unbounded_channel();
        let driver = async move {
            if let Err(error) = converse(stream, receiver, &events).await {
                tracing::debug!(%error, "lost a pod's shim");
            }
            let _ = events.send(ShimEvent::Gone);
        };
        Ok((Self { calls, process }, told, driver))
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// When the shim is gone, or answers that it cannot: the error's text is its reason.
    pub(crate) async fn call(&self, request: Request) -> io::Result<Reply> {
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the pod's shim is gone");
        self.calls.send((request, reply)).await.map_err(|_| gone())?;
        match answer.await.map_err(|_| gone())? {
            Reply::Failed(reason) => Err(io::Error::other(reason)),
            reply => Ok(reply),
        }
    }

    pub(crate) async fn state(&self) -> io::Result<Vec<Instance>> {
        match self.call(Request::State).await? {
            Reply::State(instances) => Ok(instances),
            other => Err(io::Error::other(format!("an answer to another question: {other:?}"))),
        }
    }
}

async fn converse(
    mut stream: UnixStream,
    mut calls: mpsc::Receiver<(Request, oneshot::Sender<Reply>)>,
    events: &mpsc::UnboundedSender<ShimEvent>,
) -> io::Result<()> {
    let mut waiting: HashMap<u64, oneshot::Sender<Reply>> = HashMap::new();
    let mut seq = 0;
    let mut buffer = Vec::new();
    loop {
        tokio::select! {
            call = calls.recv() => {
                let Some((request, reply)) = call else { return Ok(()) };
                seq += 1;
                waiting.insert(seq, reply);
                stream.write_all(&encode(&Call { seq, request })?).await?;
            }
            read = stream.read_buf(&mut buffer) => {
                if read? == 0 {
                    return Ok(());
                }
                while let Some(message) = decode::<Message>(&mut buffer)? {
                    match message {
                        Message::Reply { seq, reply } => {
                            // Whoever asked may have given up.
                            if let Some(waiter) = waiting.remove(&seq) {
                                let _ = waiter.send(reply);
                            }
                        }
                        Message::Exited(instance) => drop(events.send(ShimEvent::Exited(instance))),
                    }
                }
            }
        }
    }
}
