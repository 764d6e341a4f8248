//! The upper half: a delta -> operations, committed Service by Service where they must be and together where they can.
//!
//! Invariants: what this believes to be in the kernel is what was read or committed, never what was merely sent; a refused
//! batch is undone and tried again in halves, down to the one Service that cannot be had; nothing found in the kernel is
//! deleted before `prune`, unless a Service needs its key.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portolan_model::forwarding::{Backend, Claims, Frontend, NodeContext, Place, ServiceForwarding, compile};
use portolan_model::{Delta, Diagnostic, Protocol, ServiceId, Snapshot};

use super::Report;
use super::entries::{Entry, Key, Reach, Value, entries};
use super::kernel::{Ruleset, Session};
use super::state::{Journal, State};
use crate::Error;
use crate::conntrack::{Stale, StaleFlow};

/// Services whose changes are committed together. A transaction of them stays within the socket's send buffer.
const BATCH: usize = 256;

/// A batch also ends once it has touched so many elements.
const BATCH_ELEMENTS: usize = 8_192;

pub(super) struct Reconciler<R> {
    ruleset: R,
    realized: State,
    claims: Claims,
    services: BTreeMap<ServiceId, Owned>,
    /// Keys of the node as a whole: its addresses, the pod networks, the service ranges.
    common: BTreeSet<Key>,
    /// Those were refused.
    common_due: bool,
    node: NodeContext,
    /// Refused the last time, or found changed by someone else.
    retry: BTreeSet<ServiceId>,
    /// A change was begun and its end not seen, because the caller stopped waiting: nothing of the above can be relied on.
    in_doubt: bool,
}

/// What a Service has in `realized` and in `claims`.
#[derive(Debug, Default, Clone)]
struct Owned {
    keys: Vec<Key>,
    frontends: Vec<Frontend>,
}

impl<R: Ruleset> Reconciler<R> {
    /// Starts from what the kernel has.
    pub(super) async fn restore(mut ruleset: R) -> Result<Self, Error> {
        let realized = ruleset.read().await?;
        Ok(Self {
            ruleset,
            realized,
            claims: Claims::default(),
            services: BTreeMap::new(),
            common: BTreeSet::new(),
            common_due: true,
            node: NodeContext::default(),
            retry: BTreeSet::new(),
            in_doubt: false,
        })
    }

    pub(super) fn realized(&self) -> &State {
        &self.realized
    }

    /// Brings the kernel in line with what the delta names, or with all of the snapshot. Gives the flows that the
    /// change makes stale.
    pub(super) async fn apply(
        &mut self,
        snapshot: &Snapshot,
        delta: Option<&Delta>,
        node: NodeContext,
    ) -> (Report, Vec<Stale>) {
        let mut report = Report::default();
        let mut stale = Vec::new();
        let interrupted = std::mem::replace(&mut self.in_doubt, true);
        if interrupted && let Err(error) = self.reread().await {
            tracing::warn!(%error, "cannot read the kernel back after an interrupted change; trying again with the next change");
            return (report, stale);
        }
        let all = interrupted || node != self.node;
        self.node = node;
        let mut todo = std::mem::take(&mut self.retry);
        match delta.filter(|_| !all) {
            Some(delta) => todo.extend(delta.services.iter().cloned()),
            // What is gone from the snapshot is still known here.
            None => todo.extend(snapshot.services().map(|s| &s.id).chain(self.services.keys()).cloned()),
        }
        if all || self.common_due || delta.is_none_or(|delta| delta.service_cidrs) {
            self.common_due = !self.common(snapshot, &mut report).await;
        }
        let todo = self.contest(snapshot, todo, &mut report);
        let mut batch = Vec::new();
        let mut elements = 0;
        for (id, forwarding) in todo {
            elements += forwarding.frontends.iter().map(|f| f.inside.backends().len() + 2).sum::<usize>();
            batch.push((id, forwarding));
            if batch.len() >= BATCH || elements >= BATCH_ELEMENTS {
                self.commit_all(std::mem::take(&mut batch), &mut report, &mut stale).await;
                elements = 0;
            }
        }
        self.commit_all(batch, &mut report, &mut stale).await;
        self.in_doubt = false;
        (report, stale)
    }

    /// Compiles the Services and settles who has which frontend, which may bring further Services in.
    fn contest(
        &mut self,
        snapshot: &Snapshot,
        mut todo: BTreeSet<ServiceId>,
        report: &mut Report,
    ) -> BTreeMap<ServiceId, ServiceForwarding> {
        let mut compiled = BTreeMap::new();
        while let Some(id) = todo.pop_first() {
            if compiled.contains_key(&id) {
                continue;
            }
            let (forwarding, diagnostics) = compile(snapshot, &id, &self.node);
            report.diagnostics.extend(diagnostics.into_iter().map(|diagnostic| (id.clone(), diagnostic)));
            let frontends: Vec<Frontend> = forwarding.frontends.iter().map(|f| f.frontend).collect();
            let owned = self.services.entry(id.clone()).or_default();
            let before = std::mem::replace(&mut owned.frontends, frontends.clone());
            for gone in before.iter().filter(|frontend| frontends.binary_search(frontend).is_err()) {
                todo.extend(self.claims.release(*gone, &id));
            }
            for frontend in &frontends {
                todo.extend(self.claims.claim(*frontend, &id));
            }
            compiled.insert(id, forwarding);
        }
        for (id, forwarding) in &compiled {
            for frontend in forwarding.frontends.iter().map(|f| f.frontend) {
                if let Some(holder) = self.claims.holder(&frontend).filter(|holder| *holder != id) {
                    let message = format!("{frontend} belongs to Service {holder} already; it is ignored here");
                    let diagnostic = Diagnostic { field: "spec".to_owned(), message };
                    report.diagnostics.push((id.clone(), diagnostic));
                }
            }
        }
        compiled
    }

    async fn commit_all(
        &mut self,
        batch: Vec<(ServiceId, ServiceForwarding)>,
        report: &mut Report,
        stale: &mut Vec<Stale>,
    ) {
        // A stack of batches still to commit; a refused one comes back as its two halves.
        let mut batches = vec![batch];
        let mut reread = false;
        while let Some(mut batch) = batches.pop() {
            if batch.is_empty() {
                continue;
            }
            let Err(error) = self.commit(&batch, report, stale).await else { continue };
            if error.is_drift() && !reread {
                // The kernel is not as it was left. Look again, once, and go on from there.
                reread = true;
                match self.reread().await {
                    Ok(_) => batches.push(batch),
                    Err(error) => self.refuse(batch, error, report),
                }
            } else if batch.len() > 1 {
                let half = batch.split_off(batch.len() / 2);
                batches.push(half);
                batches.push(batch);
            } else {
                self.refuse(batch, error, report);
            }
        }
    }

    fn refuse(&mut self, batch: Vec<(ServiceId, ServiceForwarding)>, error: Error, report: &mut Report) {
        let error = Arc::new(error);
        for (id, _) in batch {
            self.retry.insert(id.clone());
            report.refused.push((id, error.clone()));
        }
    }

    /// All of the batch or, on an error, nothing of it.
    async fn commit(
        &mut self,
        batch: &[(ServiceId, ServiceForwarding)],
        report: &mut Report,
        stale: &mut Vec<Stale>,
    ) -> Result<(), Error> {
        let mut journal = Journal::default();
        let mut before = Vec::with_capacity(batch.len());
        for (id, forwarding) in batch {
            before.push(self.plan(id, forwarding, &mut journal));
        }
        let committed = self.write(&mut journal, report).await;
        if let Err(error) = committed {
            for ((id, _), keys) in batch.iter().zip(before) {
                self.services.entry(id.clone()).or_default().keys = keys;
            }
            return Err(error);
        }
        for (id, forwarding) in batch {
            if forwarding.frontends.is_empty() && self.services.get(id).is_some_and(|owned| owned.keys.is_empty()) {
                self.services.remove(id);
            }
        }
        stale.extend(self.aftermath(&journal).await);
        Ok(())
    }

    /// Notes the Service's entries in `realized`; gives the keys it had.
    fn plan(&mut self, id: &ServiceId, forwarding: &ServiceForwarding, journal: &mut Journal) -> Vec<Key> {
        let realized = &self.realized;
        let holds = |frontend: &Frontend| self.claims.holder(frontend) == Some(id);
        let slots = |frontend: &Frontend, reach: Reach| {
            let backend = |index| match realized.get(&Key::Slot(*frontend, reach, index)) {
                Some(Value::Backend(backend)) => Some(*backend),
                _ => None,
            };
            (0..).map_while(backend).collect()
        };
        let desired: Vec<Entry> = entries(forwarding, holds, slots);
        let owned = self.services.entry(id.clone()).or_default();
        let keys = desired.iter().map(|(key, _)| *key).collect();
        let before = std::mem::replace(&mut owned.keys, keys);
        let mut old = before.iter().peekable();
        for entry in desired {
            while let Some(gone) = old.next_if(|key| **key < entry.0) {
                self.realized.release(*gone, journal);
            }
            match old.next_if(|key| **key == entry.0) {
                Some(_) => self.realized.update(entry, journal),
                None => self.realized.claim(entry, journal),
            }
        }
        for gone in old {
            self.realized.release(*gone, journal);
        }
        before
    }

    /// Commits the journal's changes, or undoes them.
    async fn write(&mut self, journal: &mut Journal, report: &mut Report) -> Result<(), Error> {
        let operations = self.realized.operations(journal);
        if operations.is_empty() {
            return Ok(());
        }
        match self.ruleset.commit(&operations).await {
            Ok(()) => {
                report.operations += operations.delete.len() + operations.insert.len();
                Ok(())
            }
            Err(error) => {
                self.realized.undo(std::mem::take(journal));
                Err(error)
            }
        }
    }

    /// Brings the keys that are the node's and no Service's in line; says whether it could.
    async fn common(&mut self, snapshot: &Snapshot, report: &mut Report) -> bool {
        let cidrs: Vec<IpNet> = snapshot.service_cidrs().copied().collect();
        let desired: BTreeSet<Key> = (self.node.node_port_addresses.iter().copied().map(Key::NodeAddress))
            .chain(IpNet::aggregate(&cidrs).into_iter().map(Key::ServiceCidr))
            .chain(IpNet::aggregate(&self.node.pod_networks).into_iter().map(Key::PodNetwork))
            .collect();
        for attempt in 0..2 {
            let mut journal = Journal::default();
            for key in self.common.difference(&desired) {
                self.realized.release(*key, &mut journal);
            }
            for key in desired.difference(&self.common) {
                self.realized.claim((*key, Value::Present), &mut journal);
            }
            match self.write(&mut journal, report).await {
                Ok(()) => {
                    self.common = desired;
                    return true;
                }
                Err(error) if attempt == 0 && error.is_drift() && self.reread().await.is_ok() => {}
                Err(error) => {
                    tracing::warn!(%error, "node addresses and service ranges are not in place; trying again with the next change");
                    return false;
                }
            }
        }
        false
    }

    /// Removes what nobody asked for.
    pub(super) async fn prune(&mut self, report: &mut Report) -> Vec<Stale> {
        let mut journal = Journal::default();
        self.realized.prune(&mut journal);
        self.in_doubt = true;
        let written = self.write(&mut journal, report).await;
        self.in_doubt = false;
        match written {
            Ok(()) => self.aftermath(&journal).await,
            Err(error) => {
                tracing::warn!(%error, "strays could not be removed; trying again at the next audit");
                Vec::new()
            }
        }
    }

    /// Has sessions with removed backends forgotten, and gives the UDP flows that became stale.
    async fn aftermath(&mut self, journal: &Journal) -> Vec<Stale> {
        let changes = changes(&self.realized, journal);
        let sessions: Vec<Session> = changes.iter().flat_map(Change::sessions).collect();
        if !sessions.is_empty()
            && let Err(error) = self.ruleset.forget(&sessions).await
        {
            tracing::warn!(%error, "clients may stay with a backend that is gone until their sessions run out");
        }
        changes.iter().flat_map(Change::stale).collect()
    }

    /// Reads the kernel back, so that the next `apply` mends the Services whose entries differ. Says how many entries do.
    pub(super) async fn reread(&mut self) -> Result<usize, Error> {
        let mut differences = usize::from(self.ruleset.repair().await?);
        let found = self.ruleset.read().await?;
        let believed: BTreeMap<Key, Value> = self.realized.iter().collect();
        differences += found.iter().filter(|(key, value)| believed.get(key) != Some(value)).count();
        differences += believed.keys().filter(|key| found.get(key).is_none()).count();
        differences +=
            found.chains().collect::<BTreeSet<_>>().symmetric_difference(&self.realized.chains().collect()).count();
        let mut realized = found;
        // What is owned stays owned where it is still there; what is missing is no longer owned, and asked for anew.
        for (id, owned) in &mut self.services {
            if owned.keys.iter().any(|key| realized.get(key) != self.realized.get(key)) {
                self.retry.insert(id.clone());
            }
            owned.keys.retain(|key| realized.own(key));
        }
        self.common.retain(|key| realized.own(key));
        self.realized = realized;
        Ok(differences)
    }
}

/// One frontend whose backends a batch changed.
struct Change {
    frontend: Frontend,
    removed: Vec<Backend>,
    /// It leads somewhere now and did not before.
    opened: bool,
    sticky: bool,
}

fn changes(realized: &State, journal: &Journal) -> Vec<Change> {
    let mut before: BTreeMap<Frontend, BTreeSet<Backend>> = BTreeMap::new();
    let mut after: BTreeMap<Frontend, BTreeSet<Backend>> = BTreeMap::new();
    let mut opened = BTreeSet::new();
    let mut was_sticky = BTreeSet::new();
    for (key, value) in journal.touched() {
        match key {
            Key::Slot(frontend, ..) => {
                if let Some(Value::Backend(backend)) = value {
                    before.entry(*frontend).or_default().insert(backend);
                }
                if let Some(Value::Backend(backend)) = realized.get(key) {
                    after.entry(*frontend).or_default().insert(*backend);
                }
            }
            Key::Service(frontend) if value.is_none() && realized.get(key).is_some() => {
                opened.insert(*frontend);
            }
            Key::Sticky(frontend) if value.is_some() => {
                was_sticky.insert(*frontend);
            }
            _ => {}
        }
    }
    let frontends: BTreeSet<Frontend> = before.keys().chain(&opened).copied().collect();
    let change = |frontend: Frontend| {
        let after = after.remove(&frontend).unwrap_or_default();
        let gone = before.remove(&frontend).unwrap_or_default().into_iter().filter(|backend| !after.contains(backend));
        Change {
            frontend,
            removed: gone.collect(),
            opened: opened.contains(&frontend),
            sticky: was_sticky.contains(&frontend) || realized.get(&Key::Sticky(frontend)).is_some(),
        }
    };
    frontends.into_iter().map(change).collect()
}

impl Change {
    fn destination(&self) -> Option<IpAddr> {
        match self.frontend.place {
            Place::Address(address) => Some(address),
            Place::Node(_) => None,
        }
    }

    fn stale(&self) -> Vec<Stale> {
        let Frontend { protocol, port, .. } = self.frontend;
        let stale = |flow| Stale { protocol, destination: self.destination(), port, flow };
        let removed = self.removed.iter().map(|backend| stale(StaleFlow::To(*backend)));
        let opened = self.opened && protocol == Protocol::Udp;
        removed.chain(opened.then(|| stale(StaleFlow::Untranslated(self.frontend.family())))).collect()
    }

    fn sessions(&self) -> Vec<Session> {
        let session = |backend: &Backend| Session {
            destination: self.destination(),
            protocol: self.frontend.protocol,
            port: self.frontend.port,
            backend: *backend,
        };
        if self.sticky { self.removed.iter().map(session).collect() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests;
