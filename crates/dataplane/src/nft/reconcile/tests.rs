//! The upper half against a kernel that is as strict as the real one, refuses a tenth of what it is asked, loses things
//! and now and then commits without an answer.
#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use portolan_model::forwarding::NodeContext;
use portolan_model::{Delta, Snapshot};
use rand::RngExt;

use super::*;
use crate::desired::Desired;
use crate::nft::entries::{Chain, Entry, Value, chain_of};
use crate::nft::state::Operations;

// The generator is shared with the tests against the real kernel.
#[path = "../../../tests/lab/random.rs"]
mod random;

use random::Random;

struct Fake {
    entries: HashMap<Key, Value>,
    chains: BTreeSet<Chain>,
    random: Random,
    failures: bool,
    commits: usize,
}

fn refused(errno: i32) -> Error {
    Error::Refused { what: "a test".to_owned(), source: Box::new(nlink::Error::from_errno(-errno)) }
}

impl Fake {
    fn new(seed: u64) -> Self {
        Self { entries: HashMap::new(), chains: BTreeSet::new(), random: Random::new(seed), failures: true, commits: 0 }
    }

    fn fails(&mut self) -> bool {
        self.failures && self.random.0.random_bool(0.1)
    }

    /// As the kernel does it: nothing that is not there can go, nothing that is there can come, nothing may dangle.
    fn execute(&mut self, operations: &Operations) -> Result<(), Error> {
        let (mut entries, mut chains) = (self.entries.clone(), self.chains.clone());
        for (key, _) in &operations.delete {
            entries.remove(key).ok_or_else(|| refused(nix::libc::ENOENT))?;
        }
        chains.extend(&operations.create);
        for (key, value) in &operations.insert {
            if chain_of(&(*key, *value)).is_some_and(|chain| !chains.contains(&chain)) {
                return Err(refused(nix::libc::ENOENT));
            }
            if entries.insert(*key, *value).is_some() {
                return Err(refused(nix::libc::EEXIST));
            }
        }
        for chain in &operations.remove {
            if entries.iter().any(|(key, value)| chain_of(&(*key, *value)) == Some(*chain)) {
                return Err(refused(nix::libc::EBUSY));
            }
            if !chains.remove(chain) {
                return Err(refused(nix::libc::ENOENT));
            }
        }
        (self.entries, self.chains) = (entries, chains);
        self.commits += 1;
        Ok(())
    }

    /// Someone else's doing.
    fn lose_something(&mut self) {
        let mut keys: Vec<Key> = self.entries.keys().copied().collect();
        keys.sort_unstable();
        if !keys.is_empty() {
            let index = self.random.0.random_range(0..keys.len());
            self.entries.remove(&keys[index]);
        }
    }
}

impl Ruleset for Fake {
    async fn read(&mut self) -> Result<(State, usize), Error> {
        if self.fails() {
            let source = Box::new(nlink::Error::from_errno(-nix::libc::EINTR));
            return Err(Error::Read { what: "a test".to_owned(), source });
        }
        Ok((State::found(self.entries.clone(), self.chains.clone()), 0))
    }

    async fn commit(&mut self, operations: &Operations) -> Result<(), Error> {
        if self.fails() {
            return Err(refused(nix::libc::ENOMEM));
        }
        if self.fails() {
            // Committed, but whoever waits for it is cancelled before the answer.
            self.execute(operations)?;
            std::future::pending::<()>().await;
        }
        self.execute(operations)
    }

    async fn clients(&mut self, _: Family) -> Result<Option<u32>, Error> {
        Ok(None)
    }

    async fn counted(&mut self) -> Result<BTreeMap<Frontend, Counts>, Error> {
        Ok(BTreeMap::new())
    }

    async fn is_touched(&mut self) -> bool {
        true
    }

    async fn repair(&mut self) -> Result<bool, Error> {
        Ok(false)
    }
}

/// The future's outcome, or `None` if it waits for what never comes and is dropped.
fn run<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}

fn node(snapshot: &Snapshot) -> NodeContext {
    let mut node = NodeContext::from_snapshot(snapshot, "node-1", &["10.244.0.0/16".parse().unwrap()]);
    node.node_port_addresses = vec![IpAddr::from([10, 203, 0, 11])];
    node
}

/// What is desired and what is realized, as the data plane has them together.
struct Plane<R> {
    desired: Desired,
    nft: Reconciler<R>,
}

impl<R: Ruleset> Plane<R> {
    fn restore(ruleset: R) -> Self {
        let nft = run(Reconciler::restore(ruleset, true)).unwrap().unwrap();
        Self { desired: Desired::default(), nft }
    }

    /// `None` if the caller stopped waiting.
    fn apply(&mut self, snapshot: &Snapshot, delta: Option<&Delta>) -> Option<Report> {
        let mut report = Report::default();
        let mut next = Some(self.desired.change(snapshot, delta, node(snapshot)));
        while let Some(change) = next {
            run(self.nft.apply(&change, &mut report))?;
            self.desired.settle(self.nft.take_due());
            next = self.desired.more(snapshot);
        }
        Some(report)
    }
}

/// The entries in the kernel, but for the order of slots, which depends on what happened before.
fn in_order(entries: impl IntoIterator<Item = Entry>) -> BTreeSet<(Key, Value)> {
    let unnumbered = |(key, value)| match key {
        Key::Slot(frontend, reach, _) => (Key::Slot(frontend, reach, 0), value),
        _ => (key, value),
    };
    entries.into_iter().map(unnumbered).collect()
}

/// What a kernel that never failed would have, given the snapshot from the start.
fn from_scratch(snapshot: &Snapshot) -> Fake {
    let mut fake = Fake::new(0);
    fake.failures = false;
    let mut plane = Plane::restore(fake);
    plane.apply(snapshot, None).unwrap();
    plane.nft.ruleset
}

#[test]
fn whatever_fails_the_kernel_ends_up_as_the_snapshot_says() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let mut snapshot = Snapshot::default();
        let mut fake = Fake::new(seed);
        fake.failures = false;
        let mut plane = Plane::restore(fake);
        plane.nft.ruleset.failures = true;
        for step in 0..60 {
            let mut delta = Delta::default();
            for _ in 0..=step % 3 {
                delta.merge(snapshot.apply(random.event()));
            }
            // An interrupted change is forgotten by its caller: only what comes next mends it.
            let _ = plane.apply(&snapshot, Some(&delta));
            if step % 20 == 19 {
                plane.nft.ruleset.lose_something();
            }
        }
        // The failures end: one audit puts everything right.
        plane.nft.ruleset.failures = false;
        run(plane.nft.reread()).unwrap().unwrap();
        let mut report = plane.apply(&snapshot, None).unwrap();
        run(plane.nft.prune(&mut report)).unwrap();
        assert!(report.refused.is_empty(), "seed {seed}: {:?}", report.refused);
        let ideal = from_scratch(&snapshot);
        let kernel = &plane.nft.ruleset;
        assert_eq!(in_order(kernel.entries.clone()), in_order(ideal.entries), "seed {seed}");
        assert_eq!(kernel.chains, ideal.chains, "seed {seed}");
        // And everybody's leaving leaves nothing of theirs.
        let nothing = Snapshot::default();
        plane.apply(&nothing, None).unwrap();
        let left: Vec<_> = plane.nft.ruleset.entries.keys().collect();
        assert!(
            left.iter().all(|key| matches!(key, Key::NodeAddress(_) | Key::PodNetwork(_) | Key::KeepsAddress(_))),
            "seed {seed}: {left:?}"
        );
        assert_eq!(plane.nft.ruleset.chains, BTreeSet::new(), "seed {seed}");
        assert!(plane.nft.services.is_empty() && plane.desired.is_empty(), "seed {seed}");
    }
}

/// Refuses whatever names one address, as a kernel without memory for it would.
struct Picky(Fake, IpAddr);

impl Ruleset for Picky {
    async fn read(&mut self) -> Result<(State, usize), Error> {
        self.0.read().await
    }

    async fn commit(&mut self, operations: &Operations) -> Result<(), Error> {
        if operations.insert.iter().any(|(key, _)| *key == Key::ClusterIp(self.1)) {
            return Err(refused(nix::libc::ENOMEM));
        }
        self.0.commit(operations).await
    }

    async fn clients(&mut self, family: Family) -> Result<Option<u32>, Error> {
        self.0.clients(family).await
    }

    async fn counted(&mut self) -> Result<BTreeMap<Frontend, Counts>, Error> {
        self.0.counted().await
    }

    async fn is_touched(&mut self) -> bool {
        self.0.is_touched().await
    }

    async fn repair(&mut self) -> Result<bool, Error> {
        self.0.repair().await
    }
}

#[test]
fn one_refused_service_is_named_and_harms_no_other() {
    let mut snapshot = Snapshot::default();
    let mut random = Random::new(7);
    for _ in 0..200 {
        snapshot.apply(random.event());
    }
    let services = || snapshot.services().filter(|service| !service.foreign_proxy);
    let victim = services().nth(2).unwrap();
    let mut fake = Fake::new(7);
    fake.failures = false;
    let mut plane = Plane::restore(Picky(fake, victim.cluster_ips[0]));
    let report = plane.apply(&snapshot, None).unwrap();
    let refused: Vec<_> = report.refused.iter().map(|(id, _)| id).collect();
    assert_eq!(refused, [&victim.id]);
    for service in services().filter(|service| service.id != victim.id) {
        assert!(plane.nft.realized.get(&Key::ClusterIp(service.cluster_ips[0])).is_some(), "{}", service.id);
    }
    // The next change of anything tries it again.
    plane.nft.ruleset.1 = IpAddr::from([0, 0, 0, 0]);
    let report = plane.apply(&snapshot, Some(&Delta::default())).unwrap();
    assert!(report.refused.is_empty());
    assert_eq!(in_order(plane.nft.ruleset.0.entries.clone()), in_order(from_scratch(&snapshot).entries));
}

#[test]
fn nothing_is_written_when_nothing_changed() {
    let mut snapshot = Snapshot::default();
    let mut random = Random::new(3);
    for _ in 0..300 {
        snapshot.apply(random.event());
    }
    let mut fake = Fake::new(3);
    fake.failures = false;
    let mut plane = Plane::restore(fake);
    plane.apply(&snapshot, None).unwrap();
    let commits = plane.nft.ruleset.commits;
    let report = plane.apply(&snapshot, None).unwrap();
    assert_eq!((report.operations, plane.nft.ruleset.commits), (0, commits));
}
