//! Ends flows that conntrack would keep sending where a Service no longer leads.
//!
//! A UDP flow has no end that the kernel could see: as long as a client keeps talking, its packets follow the entry
//! made by the first one, past every rule. Two cases need help: the flow goes to a backend that was removed, or it
//! began before its destination was a Service's and so was never translated.
//!
//! TCP connections end by themselves, once there is one. An attempt that the backend never answered, because its node
//! had lost its power, stays for two minutes, and the next connection from the same port would follow it to the dead.
//! An answered connection is left alone: its backend may be finishing what it began.
//!
//! Invariant: the work is done after the rules are in place, by a task of its own that no rule waits for; what fails is
//! tried again, since a client that goes on talking would else be lost for ever. The kernel has no index by backend:
//! each look walks its whole table, some milliseconds whatever is looked for. So what has come in meanwhile is looked
//! for together, and after each look comes a pause of some times its length: under a storm of changes this takes a
//! bounded share of one core, and a flow is ended at most [`LONGEST_PAUSE`] later than at once. After a look that failed
//! the pause is longer, a minute in the end, and new work waits for it too: the kernel would refuse that as well.
//!
//! Source: kernel `nf_conntrack_netlink.c` (dumps are filtered from 5.8 on, a flush from 6.12; `nlink` filters by
//! itself where the kernel cannot).

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use nlink::netlink::netfilter::{ConntrackEntry, ConntrackFilter, ConntrackStatus, IpProtocol};
use nlink::netlink::{Connection, Netfilter};
use portolan_model::Protocol;
use portolan_model::forwarding::{Backend, Family};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant};

use crate::Error;

/// So many attempts are looked at once more, each for itself, before they are ended. Of more at once, whoever answered
/// has gone with all the others: no answer comes that could cross the deletion.
const LOOK_AGAIN: usize = 16;

/// How often a look that failed is tried again, and how soon: after this pause, which doubles each time. That makes two
/// minutes, in which a kernel that is out of memory may come round; one without connection tracking never does.
const TRIES_AGAIN: u32 = 7;
const FIRST_TRY_AGAIN: Duration = Duration::from_secs(1);

/// The pause after a look, in lengths of that look.
const PAUSE_RATIO: u32 = 20;
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// What was ended since it was asked for before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowsEnded {
    /// Flows of IPv4, and of IPv6.
    pub flows: [u64; 2],
    /// How long each look took.
    pub looks: Vec<Duration>,
}

/// A kind of flow that has to end: of UDP any, of other protocols those that were never answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stale {
    pub protocol: Protocol,
    /// `None` for any of the node's addresses.
    pub destination: Option<IpAddr>,
    pub port: u16,
    pub flow: StaleFlow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum StaleFlow {
    To(Backend),
    /// Answered from the very address that was asked, in the given family.
    Untranslated(Family),
}

enum Work {
    End(Vec<Stale>),
    /// Asks to be told once everything before it is done.
    Settle(oneshot::Sender<()>),
}

/// Does the deletions in the background until dropped.
#[derive(Debug)]
pub(crate) struct Cleaner {
    work: mpsc::UnboundedSender<Work>,
    ended: Arc<Mutex<FlowsEnded>>,
    _task: JoinSet<()>,
}

impl Cleaner {
    pub(crate) fn start() -> Result<Self, Error> {
        let connection = Connection::<Netfilter>::new()
            .map_err(|source| Error::Socket { what: "connection tracking", source: Box::new(source) })?;
        let (work, queue) = mpsc::unbounded_channel();
        let ended = Arc::new(Mutex::new(FlowsEnded::default()));
        let mut task = JoinSet::new();
        task.spawn(run(
            queue,
            ended.clone(),
            FIRST_TRY_AGAIN,
            async move |stale: &HashSet<Stale>, flows: &mut [u64; 2]| end(&connection, stale, flows).await,
        ));
        Ok(Self { work, ended, _task: task })
    }

    pub(crate) fn end(&self, stale: Vec<Stale>) {
        if !stale.is_empty() {
            // The task ends only when this is dropped.
            let _ = self.work.send(Work::End(stale));
        }
    }

    /// What was ended since this was asked before.
    pub(crate) fn take_ended(&self) -> FlowsEnded {
        std::mem::take(&mut self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until all that was asked for is done.
    pub(crate) async fn settle(&self) {
        let (done, is_done) = oneshot::channel();
        if self.work.send(Work::Settle(done)).is_ok() {
            // An error means that the task has ended, and nothing is left to wait for.
            let _ = is_done.await;
        }
    }
}

async fn run(
    mut queue: mpsc::UnboundedReceiver<Work>,
    ended: Arc<Mutex<FlowsEnded>>,
    first_try_again: Duration,
    end: impl AsyncFn(&HashSet<Stale>, &mut [u64; 2]) -> nlink::Result<()>,
) {
    // What was asked for and is not done yet, and how often it failed.
    let (mut stale, mut waiting, mut failures) = (HashSet::new(), Vec::new(), 0);
    loop {
        let first = match stale.is_empty() {
            true => match queue.recv().await {
                Some(work) => Some(work),
                None => return,
            },
            false => None,
        };
        for work in first.into_iter().chain(std::iter::from_fn(|| queue.try_recv().ok())) {
            match work {
                Work::End(more) => stale.extend(more),
                Work::Settle(done) => waiting.push(done),
            }
        }
        let start = Instant::now();
        let mut flows = [0; 2];
        let mut pause = Duration::ZERO;
        if !stale.is_empty() {
            let outcome = end(&stale, &mut flows).await;
            let took = start.elapsed();
            let mut tally = ended.lock().unwrap_or_else(PoisonError::into_inner);
            tally.looks.push(took);
            tally.flows.iter_mut().zip(flows).for_each(|(sum, flows)| *sum += flows);
            match outcome {
                Err(error) if failures < TRIES_AGAIN => {
                    tracing::debug!(%error, "stale flows could not be ended; trying again");
                    pause = first_try_again * 2_u32.pow(failures);
                    failures += 1;
                }
                outcome => {
                    if let Err(error) = outcome {
                        tracing::warn!(%error, "stale flows could not be ended; they go on until their clients pause");
                    }
                    pause = (took * PAUSE_RATIO).min(LONGEST_PAUSE);
                    failures = 0;
                    stale.clear();
                }
            }
        }
        if stale.is_empty() {
            for done in waiting.drain(..) {
                // Whoever asked may have stopped waiting.
                let _ = oneshot::Sender::send(done, ());
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Counts what it ended by family.
async fn end(connection: &Connection<Netfilter>, wanted: &HashSet<Stale>, ended: &mut [u64; 2]) -> nlink::Result<()> {
    let protocols: BTreeSet<Protocol> = wanted.iter().map(|stale| stale.protocol).collect();
    let only_one = wanted.iter().next().filter(|_| wanted.len() == 1);
    for protocol in protocols {
        let filter = only_one.map_or_else(|| endable(protocol), only);
        let mut found = connection.get_conntrack_matching(&filter).await?;
        found.retain(|entry| kinds_of(protocol, entry).iter().any(|kind| wanted.contains(kind)));
        let look_again = protocol != Protocol::Udp && found.len() <= LOOK_AGAIN;
        for entry in &found {
            match look_again {
                true => connection.flush_conntrack_matching(&exactly(protocol, entry)).await?,
                false => delete(connection, entry).await?,
            }
            let is_v6 = entry.orig.dst_ip.is_some_and(|address| address.is_ipv6());
            ended[usize::from(is_v6)] += 1;
        }
    }
    Ok(())
}

/// The flows of the protocol that may be ended at all.
fn endable(protocol: Protocol) -> ConntrackFilter {
    let unanswered = |filter: ConntrackFilter| filter.status(ConntrackStatus::empty(), ConntrackStatus::SEEN_REPLY);
    match protocol {
        Protocol::Udp => ConntrackFilter::new().proto(IpProtocol::Udp),
        Protocol::Tcp => unanswered(ConntrackFilter::new().proto(IpProtocol::Tcp)),
        Protocol::Sctp => unanswered(ConntrackFilter::new().proto(IpProtocol::Other(132))),
    }
}

/// The one attempt, as long as it is not answered. The kernel compares no IPv6 addresses; the ports are enough then.
fn exactly(protocol: Protocol, entry: &ConntrackEntry) -> ConntrackFilter {
    let mut filter = endable(protocol).family(entry.family);
    if let (Some(source), Some(IpAddr::V4(destination))) = (entry.orig.src_ip, entry.orig.dst_ip) {
        filter = filter.orig_src(source).orig_dst(destination);
    }
    if let (Some(source), Some(destination)) = (entry.orig.src_port, entry.orig.dst_port) {
        filter = filter.orig_src_port(source).orig_dst_port(destination);
    }
    filter
}

/// Those that can be flows of this kind, as far as the kernel can tell.
fn only(stale: &Stale) -> ConntrackFilter {
    let mut filter = endable(stale.protocol).orig_dst_port(stale.port);
    if let Some(destination) = stale.destination {
        filter = filter.orig_dst(destination);
    }
    match stale.flow {
        StaleFlow::To(backend) => filter.reply_src(backend.address).reply_src_port(backend.port),
        // "The same address in both directions" is no filter the kernel has.
        StaleFlow::Untranslated(_) => filter,
    }
}

/// What would have to be stale for the flow to end, with and without the destination named.
fn kinds_of(protocol: Protocol, entry: &ConntrackEntry) -> Vec<Stale> {
    let (orig, reply) = (&entry.orig, &entry.reply);
    let (Some(destination), Some(port)) = (orig.dst_ip, orig.dst_port) else { return Vec::new() };
    let (Some(address), Some(reply_port)) = (reply.src_ip, reply.src_port) else { return Vec::new() };
    let flow = if (address, reply_port) == (destination, port) {
        StaleFlow::Untranslated(Family::of(destination))
    } else {
        StaleFlow::To(Backend { address, port: reply_port })
    };
    [Some(destination), None].map(|destination| Stale { protocol, destination, port, flow }).into()
}

async fn delete(connection: &Connection<Netfilter>, entry: &ConntrackEntry) -> nlink::Result<()> {
    match connection.del_conntrack_entry(entry).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn stale(port: u16) -> Stale {
        Stale { protocol: Protocol::Udp, destination: None, port, flow: StaleFlow::Untranslated(Family::V4) }
    }

    #[tokio::test]
    async fn what_fails_is_tried_again_with_what_comes_meanwhile() {
        let (work, queue) = mpsc::unbounded_channel();
        let looks = Arc::new(Mutex::new(Vec::new()));
        let seen = looks.clone();
        let later = work.clone();
        let mut task = JoinSet::new();
        task.spawn(run(
            queue,
            Arc::default(),
            Duration::from_millis(1),
            async move |stale: &HashSet<Stale>, _: &mut [u64; 2]| {
                let mut seen = seen.lock().unwrap();
                seen.push(stale.iter().map(|stale| stale.port).collect::<BTreeSet<_>>());
                match seen.len() {
                    1 => {
                        later.send(Work::End(vec![self::stale(2)])).unwrap();
                        Err(nlink::Error::from_errno(-nix::libc::ENOBUFS))
                    }
                    2 => Err(nlink::Error::from_errno(-nix::libc::ENOMEM)),
                    _ => Ok(()),
                }
            },
        ));
        work.send(Work::End(vec![stale(1)])).unwrap();
        let (done, is_done) = oneshot::channel();
        work.send(Work::Settle(done)).unwrap();
        is_done.await.unwrap();
        assert_eq!(*looks.lock().unwrap(), [[1].into(), [1, 2].into(), [1, 2].into()]);
    }

    #[tokio::test]
    async fn what_never_works_is_given_up_and_the_next_is_tried() {
        let (work, queue) = mpsc::unbounded_channel();
        let looks = Arc::new(AtomicUsize::new(0));
        let seen = looks.clone();
        let mut task = JoinSet::new();
        task.spawn(run(
            queue,
            Arc::default(),
            Duration::from_millis(1),
            async move |_: &HashSet<Stale>, _: &mut [u64; 2]| {
                seen.fetch_add(1, Ordering::Relaxed);
                Err(nlink::Error::from_errno(-nix::libc::EOPNOTSUPP))
            },
        ));
        for round in 1..=2 {
            work.send(Work::End(vec![stale(1)])).unwrap();
            let (done, is_done) = oneshot::channel();
            work.send(Work::Settle(done)).unwrap();
            is_done.await.unwrap();
            assert_eq!(looks.load(Ordering::Relaxed), round * 8);
        }
    }
}
