//! Ends sockets whose backend is no longer the Service's they had asked for.
//!
//! A connected UDP socket sends to its peer for ever: nothing tells its owner that the peer is gone, and no rule is
//! asked again. Ended, it fails the owner's next call (`ECONNABORTED` to who receives, `EDESTADDRREQ` to who sends),
//! and the owner connects anew. TCP connections end by themselves, and a backend that was removed may be finishing what
//! it began; so they are ended only where that was asked for, and after a while.
//!
//! Invariants: the work is done by a task of its own that no change waits for; namespaces are looked through only when
//! some socket is known to be in need; only sockets that were led to the backend by this node are ended, never one that
//! has no peer.
//!
//! Source: sock_diag(7); kernel `net/ipv4/udp_diag.c`, `SOCK_DESTROY` (`CONFIG_INET_DIAG_DESTROY`).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File};
use std::os::linux::fs::MetadataExt;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nlink::netlink::{Connection, SockDiag};
use nlink::sockdiag::SocketFilter;
use portolan_model::Protocol;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::sock::{Connections, Gone};

/// A socket to be ended, as it can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub protocol: Protocol,
    /// Its peer's.
    pub port: u16,
}

enum Work {
    End(BTreeSet<Gone>),
    /// Asks to be told once everything before it is done, but for what is waiting for its time.
    Settle(oneshot::Sender<()>),
}

/// Does its work in the background until dropped.
#[derive(Debug)]
pub(crate) struct Ender {
    work: mpsc::UnboundedSender<Work>,
    is_tcp_ended: bool,
    _task: JoinSet<()>,
}

impl Ender {
    /// TCP connections get as long as given after their backend went, and with `None` for ever.
    pub(crate) fn start(connections: Connections, end_tcp_after: Option<Duration>) -> Self {
        let (work, queue) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(run(queue, connections, end_tcp_after));
        Self { work, is_tcp_ended: end_tcp_after.is_some(), _task: task }
    }

    pub(crate) fn end(&self, gone: Vec<Gone>) {
        let is_ended = |gone: &Gone| gone.frontend.protocol == Protocol::Udp || self.is_tcp_ended;
        let gone: BTreeSet<Gone> = gone.into_iter().filter(is_ended).collect();
        if !gone.is_empty() {
            // The task ends only when this is dropped.
            let _ = self.work.send(Work::End(gone));
        }
    }

    /// Waits until all that was asked for is done, but for TCP connections whose time has not come.
    pub(crate) async fn settle(&self) {
        let (done, is_done) = oneshot::channel();
        if self.work.send(Work::Settle(done)).is_ok() {
            // An error means that the task has ended, and nothing is left to wait for.
            let _ = is_done.await;
        }
    }
}

async fn run(mut queue: mpsc::UnboundedReceiver<Work>, connections: Connections, end_tcp_after: Option<Duration>) {
    let mut later: JoinSet<BTreeSet<Gone>> = JoinSet::new();
    loop {
        let gone = tokio::select! {
            work = queue.recv() => match work {
                None => return,
                Some(Work::Settle(done)) => {
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                    continue;
                }
                Some(Work::End(gone)) => {
                    let (udp, tcp): (BTreeSet<_>, BTreeSet<_>) =
                        gone.into_iter().partition(|gone| gone.frontend.protocol == Protocol::Udp);
                    if let Some(after) = end_tcp_after.filter(|_| !tcp.is_empty()) {
                        later.spawn(async move {
                            tokio::time::sleep(after).await;
                            tcp
                        });
                    }
                    udp
                }
            },
            Some(Ok(due)) = later.join_next() => due,
        };
        if gone.is_empty() {
            continue;
        }
        match connections.left_by(&gone) {
            Ok(left) if left.is_empty() => {}
            Ok(left) => end_everywhere(left).await,
            Err(error) => tracing::warn!(%error, "sockets of removed backends go on"),
        }
    }
}

/// A thread moves from namespace to namespace, and ends there: none other may inherit where it is.
async fn end_everywhere(sockets: BTreeMap<u64, Ended>) {
    let (done, is_done) = oneshot::channel();
    let work = move || {
        let _ = done.send(visit(sockets));
    };
    let outcome = match std::thread::Builder::new().name("ending-sockets".to_owned()).spawn(work) {
        Ok(_) => is_done.await.unwrap_or_else(|_| Ok(())),
        Err(error) => Err(nlink::Error::from(error)),
    };
    if let Err(error) = outcome {
        tracing::warn!(%error, "sockets of removed backends could not all be ended; they go on until their owners close them");
    }
}

fn visit(mut sockets: BTreeMap<u64, Ended>) -> nlink::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut outcome = Ok(());
    for namespace in namespaces()? {
        if sockets.is_empty() {
            break;
        }
        if setns(&namespace, CloneFlags::CLONE_NEWNET).is_ok()
            && let Err(error) = runtime.block_on(end_here(&mut sockets))
        {
            outcome = Err(error);
        }
    }
    // What is in none of them was closed meanwhile.
    outcome
}

/// Every network namespace that some process is in or that has a name, as far as this process can see.
fn namespaces() -> std::io::Result<Vec<File>> {
    let processes = fs::read_dir("/proc")?.flatten().map(|entry| entry.path().join("ns/net"));
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut seen = HashSet::new();
    let mut namespaces = Vec::new();
    for path in processes.chain(names) {
        // Not every entry is a process, and processes end at any time.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if seen.insert(metadata.st_ino())
            && let Ok(file) = File::open(&path)
        {
            namespaces.push(file);
        }
    }
    Ok(namespaces)
}

/// Ends those of the sockets that are in this thread's namespace, and takes them off the list.
async fn end_here(sockets: &mut BTreeMap<u64, Ended>) -> nlink::Result<()> {
    let diagnostics = Connection::<SockDiag>::new()?;
    let kinds: BTreeSet<(Protocol, u16)> = sockets.values().map(|socket| (socket.protocol, socket.port)).collect();
    for (protocol, port) in kinds {
        let filter = match protocol {
            Protocol::Tcp => SocketFilter::tcp(),
            Protocol::Udp => SocketFilter::udp(),
            Protocol::Sctp => continue,
        };
        let found = diagnostics.query(&filter.connected().remote_port(port).build()).await?;
        for socket in found.iter().filter_map(|socket| socket.as_inet()) {
            if sockets.remove(&socket.cookie).is_none() {
                continue;
            }
            // The name notwithstanding, the request carries the socket's own protocol.
            match diagnostics.destroy_tcp_socket(socket).await {
                // Closed by its owner in between.
                Err(error) if error.is_not_found() => {}
                ended => ended?,
            }
        }
    }
    Ok(())
}
