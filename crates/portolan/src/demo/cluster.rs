//! The cluster under the demo: this same binary as `portolan up`, in a process of its own.
//!
//! Invariant: the demo asks it for nothing but what any user has: a ready line, a kubeconfig, signals, and the
//! `portolan node` command. It ends in order at [`Cluster::stop`]; if it will not, `portolan clean` follows.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::stage::Signals;

const START_PATIENCE: Duration = Duration::from_secs(120);
const STOP_PATIENCE: Duration = Duration::from_secs(40);
const NODE_PATIENCE: Duration = Duration::from_secs(30);
/// Of what it said last, kept to tell why it failed.
const LAST_WORDS: usize = 30;
const LAST_WORDS_PATIENCE: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Life {
    Starting,
    /// The line it said so with.
    Ready(String),
    /// How it ended.
    Over(String),
}

pub(super) struct Cluster {
    program: PathBuf,
    data_dir: PathBuf,
    api_port: u16,
    life: watch::Sender<Life>,
    pid: Option<Pid>,
    last_words: Arc<Mutex<VecDeque<String>>>,
    /// Reads what the process says and reaps it.
    minders: JoinSet<()>,
    signals: Signals,
}

impl Cluster {
    /// A cluster whose state is under `data_dir`; not started yet.
    pub(super) fn new(data_dir: PathBuf, signals: Signals) -> Result<Self> {
        // A port that is free now: another cluster on this machine may have the usual one.
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        Ok(Self {
            program: std::env::current_exe().context("cannot find this program's file")?,
            data_dir,
            api_port: free.context("cannot find a free port")?.port(),
            life: watch::Sender::new(Life::Starting),
            pid: None,
            last_words: Arc::default(),
            minders: JoinSet::new(),
            signals,
        })
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("kubeconfig")
    }

    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// Starts it and waits for its ready line, which is returned.
    pub(super) async fn start(&mut self) -> Result<String> {
        self.minders = JoinSet::new();
        self.life = watch::Sender::new(Life::Starting);
        let mut child = Command::new(&self.program)
            .args(["up", "--nodes", "3", "--no-host-link"])
            .arg("--data-dir")
            .arg(&self.data_dir)
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(["--api-port", &self.api_port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for the demo, which then stops the cluster in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        self.pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        let words = |stream, is_stdout| read(stream, is_stdout, self.life.clone(), self.last_words.clone());
        let stdout = child.stdout.take().map(|stream| words(Box::new(stream) as Stream, true));
        let stderr = child.stderr.take().map(|stream| words(Box::new(stream) as Stream, false));
        let (life, signals) = (self.life.clone(), self.signals.clone());
        self.minders.spawn(async move {
            let mut heard = std::pin::pin!(join_all(stdout.into_iter().chain(stderr)));
            let how = tokio::select! {
                how = child.wait() => {
                    // A process it left behind may hold the pipe open: its last words are read, no more awaited.
                    let _ = timeout(LAST_WORDS_PATIENCE, heard).await;
                    how
                }
                _ = &mut heard => child.wait().await,
            };
            life.send_replace(Life::Over(how.map_or_else(|error| error.to_string(), |status| status.to_string())));
            signals.changed();
        });
        let mut life = self.life.subscribe();
        let news = timeout(START_PATIENCE, life.wait_for(|life| *life != Life::Starting)).await;
        match news.ok().and_then(std::result::Result::ok).map(|life| life.clone()) {
            Some(Life::Ready(line)) => Ok(line),
            Some(Life::Over(how)) => bail!("the cluster did not start ({how}):\n{}", self.said()),
            _ => bail!("the cluster was not ready within {START_PATIENCE:?}; it said:\n{}", self.said()),
        }
    }

    /// Why the process is gone, if it is.
    pub(super) fn over(&self) -> Option<String> {
        match &*self.life.borrow() {
            Life::Over(how) => Some(format!("the cluster ended by itself ({how}):\n{}", self.said())),
            _ => None,
        }
    }

    fn said(&self) -> String {
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        words.iter().map(|line| format!("     | {line}\n")).collect()
    }

    /// Ends it as SIGTERM does; does nothing when it does not run.
    pub(super) async fn stop(&mut self) -> Result<()> {
        let Some(pid) = self.pid else { return Ok(()) };
        let mut life = self.life.subscribe();
        if matches!(&*self.life.borrow(), Life::Over(_)) {
            return Ok(());
        }
        // It may have ended just now.
        let _ = kill(pid, Signal::SIGTERM);
        if timeout(STOP_PATIENCE, life.wait_for(|life| matches!(life, Life::Over(_)))).await.is_ok() {
            return Ok(());
        }
        let _ = kill(pid, Signal::SIGKILL);
        let _ = timeout(STOP_PATIENCE, life.wait_for(|life| matches!(life, Life::Over(_)))).await;
        let cleaned = timeout(STOP_PATIENCE, Command::new(&self.program).arg("clean").status()).await;
        bail!(
            "the cluster did not stop within {STOP_PATIENCE:?} and was killed ({}); it said:\n{}",
            if matches!(cleaned, Ok(Ok(status)) if status.success()) {
                "its remains are removed"
            } else {
                "its remains are not: run `portolan clean`"
            },
            self.said()
        )
    }

    /// Cuts the node's power.
    pub(super) async fn power_off(&self, node: &str) -> Result<()> {
        self.node(&["stop", "--power-off", node]).await
    }

    pub(super) async fn power_on(&self, node: &str) -> Result<()> {
        self.node(&["start", node]).await
    }

    async fn node(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.arg("node").args(arguments).arg("--data-dir").arg(&self.data_dir).stdin(Stdio::null());
        let told = format!("portolan node {}", arguments.join(" "));
        let output = timeout(NODE_PATIENCE, command.kill_on_drop(true).output())
            .await
            .with_context(|| format!("`{told}` took longer than {NODE_PATIENCE:?}"))?
            .with_context(|| format!("cannot run `{told}`"))?;
        if !output.status.success() {
            bail!("`{told}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

type Stream = Box<dyn AsyncRead + Send + Unpin>;

/// Keeps the last lines, and notices the one that says the cluster is ready.
async fn read(stream: Stream, is_stdout: bool, life: watch::Sender<Life>, last_words: Arc<Mutex<VecDeque<String>>>) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if is_stdout && line.starts_with("ready") {
            life.send_if_modified(|life| {
                let starting = *life == Life::Starting;
                if starting {
                    *life = Life::Ready(line.clone());
                }
                starting
            });
        }
        let mut words = last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if words.len() >= LAST_WORDS {
            words.pop_front();
        }
        words.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn hear(said: &'static str, is_stdout: bool) -> (Life, Vec<String>) {
        let (life, words) = (watch::Sender::new(Life::Starting), Arc::default());
        read(Box::new(said.as_bytes()), is_stdout, life.clone(), Arc::clone(&words)).await;
        let words = words.lock().unwrap().iter().cloned().collect();
        let life = life.borrow().clone();
        (life, words)
    }

    #[tokio::test]
    async fn only_the_ready_line_on_stdout_counts() {
        let ready = Life::Ready("ready after 1.2 s".into());
        assert_eq!(hear("starting\nready after 1.2 s\nready again\n", true).await.0, ready);
        assert_eq!(hear("already\nnot ready\n", true).await.0, Life::Starting);
        assert_eq!(hear("ready after 1.2 s\n", false).await.0, Life::Starting);
    }

    #[tokio::test]
    async fn the_last_words_are_kept_and_no_more() {
        let many: String = (0..100).map(|number| format!("{number}\n")).collect();
        let (_, words) = hear(many.leak(), false).await;
        assert_eq!((words.len(), words.last().map(String::as_str)), (LAST_WORDS, Some("99")));
    }

    #[tokio::test]
    async fn a_program_that_cannot_start_a_cluster_is_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::new(directory.path().to_path_buf(), Signals::new()).unwrap();
        // Any program that knows nothing of `up` will do.
        cluster.program = PathBuf::from("/bin/ls");
        let error = cluster.start().await.unwrap_err().to_string();
        assert!(error.contains("did not start") && error.contains("exit status"), "{error}");
        assert!(cluster.over().is_some());
        cluster.stop().await.unwrap();
    }
}
