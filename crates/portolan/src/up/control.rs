//! The machine room's switchboard: `portolan node list|stop|start` asks, the running `portolan up` answers.
//!
//! One JSON object a line over a socket in the data directory that only its owner may open. What goes over it is about
//! machines (is the power on?), which the Kubernetes API has no words for; everything else uses the API.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// No request is longer.
const LONGEST_REQUEST: u64 = 4096;
/// Further ones wait.
const MOST_CONNECTIONS: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub(crate) enum Request {
    List,
    Stop { node: String, power_off: bool },
    Start { node: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Response {
    Nodes(Vec<NodeLine>),
    Done(String),
    Refused(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeLine {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) namespace: String,
    /// The first process's id; absent when the power is off.
    pub(crate) pid: Option<i32>,
}

/// A request and where its answer goes.
pub(crate) type Call = (Request, oneshot::Sender<Response>);

const SOCKET: &str = "control.sock";

/// A name for the socket that fits the 108 bytes a socket's address has, however long the data directory's own name
/// is. Valid while `data_dir` is open.
fn socket_path(data_dir: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", data_dir.as_raw_fd()))
}

/// Binds the socket. The caller holds the data directory's lock, so a socket that is there is a dead cluster's.
pub(crate) fn bind(data_dir: &Path) -> Result<UnixListener> {
    let listen = || {
        let directory = File::open(data_dir)?;
        let path = socket_path(&directory);
        if path.exists() {
            std::fs::remove_file(&path)?;
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        std::io::Result::Ok(listener)
    };
    listen().with_context(|| format!("cannot listen on {}", data_dir.join(SOCKET).display()))
}

/// Takes requests until dropped and hands them to the supervisor.
pub(crate) async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MOST_CONNECTIONS => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(answer(stream, calls.clone()));
                }
            }
            Some(ended) = connections.join_next() => {
                if let Ok(Err(error)) = ended {
                    tracing::debug!(%error, "a control connection ended early");
                }
            }
        }
    }
}

async fn answer(stream: UnixStream, calls: mpsc::Sender<Call>) -> Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    tokio::io::BufReader::new(reader.take(LONGEST_REQUEST)).read_line(&mut line).await?;
    let response = match serde_json::from_str(&line) {
        Ok(request) => {
            let (sender, receiver) = oneshot::channel();
            calls.send((request, sender)).await?;
            receiver.await?
        }
        Err(error) => Response::Refused(format!("not a request: {error}")),
    };
    let mut text = serde_json::to_string(&response)?;
    text.push('\n');
    writer.write_all(text.as_bytes()).await?;
    Ok(())
}

/// The asking side.
pub(crate) fn ask(data_dir: &Path, request: &Request) -> Result<Response> {
    let connect = || std::os::unix::net::UnixStream::connect(socket_path(&File::open(data_dir)?));
    let mut stream = connect().with_context(|| {
        format!("no cluster runs on {}; start one with `portolan up`, or name its --data-dir", data_dir.display())
    })?;
    let mut text = serde_json::to_string(request)?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.is_empty() {
        bail!("the cluster on {} ended before it answered", data_dir.display());
    }
    Ok(serde_json::from_str(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_answered_however_long_the_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("x".repeat(120));
        std::fs::create_dir(&long).unwrap();
        let (calls, mut receiver) = mpsc::channel(1);
        let listener = bind(&long).unwrap();
        let asking = tokio::task::spawn_blocking(move || ask(&long, &Request::List).unwrap());
        let supervising = async {
            let (request, answer): Call = receiver.recv().await.unwrap();
            assert_eq!(request, Request::List);
            answer.send(Response::Nodes(Vec::new())).unwrap();
        };
        tokio::select! {
            () = serve(listener, calls) => unreachable!("it serves until dropped"),
            ((), answer) = async { tokio::join!(supervising, asking) } => {
                assert_eq!(answer.unwrap(), Response::Nodes(Vec::new()));
            }
        }
    }
}
