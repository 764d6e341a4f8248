//! The upper half: a change of what is desired -> operations, committed Service by Service where they must be and
//! together where they can.
//!
//! Invariants: what this believes to be in the kernel is what was read or committed, never what was merely sent; a
//! refused batch is undone and tried again in halves, down to the one Service that cannot be had; nothing found in the
//! kernel is deleted before `prune`, unless a Service needs its key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use portolan_model::forwarding::{Backend, Family, Frontend, NodeContext, Place, ServiceForwarding};
use portolan_model::{Protocol, ServiceId};

use super::entries::Key;
use super::kernel::Ruleset;
use super::maps::{AFFINITY_SIZE, Map};
use super::row::Row;
use super::sessions::Sessions;
use super::state::{Journal, State};
use crate::conntrack::{Stale, StaleFlow};
use crate::desired::Change;
use crate::traffic::Counts;
use crate::{Error, Report, SetSize};

/// Services whose changes are committed together.
const BATCH: usize = 256;

/// A batch also ends once it has touched so many elements.
const BATCH_ELEMENTS: usize = 8_192;

/// What a Service has in `realized`.
#[derive(Debug, Default)]
struct Owned {
    /// Sorted.
    frontends: Box<[Frontend]>,
    shared: Box<[Key]>,
}

/// A Service with what it shall have.
type Planned<'a> = (&'a ServiceId, &'a ServiceForwarding);

pub(crate) struct Reconciler<R> {
    ruleset: R,
    /// Whether frontends are counted.
    counters: bool,
    realized: State,
    services: BTreeMap<ServiceId, Owned>,
    sessions: Sessions,
    /// Keys of the node as a whole: its addresses, the pod networks, the service ranges.
    common: BTreeSet<Key>,
    /// Refused the last time, or found changed by someone else.
    due: BTreeSet<ServiceId>,
    /// A change was begun and its end not seen, because the caller stopped waiting: `realized` cannot be relied on.
    in_doubt: bool,
}

impl<R: Ruleset> Reconciler<R> {
    /// Starts from what the kernel has.
    pub(crate) async fn restore(mut ruleset: R, counters: bool) -> Result<Self, Error> {
        let (realized, _) = ruleset.read().await?;
        Ok(Self {
            ruleset,
            counters,
            realized,
            services: BTreeMap::new(),
            sessions: Sessions::default(),
            common: BTreeSet::new(),
            due: BTreeSet::new(),
            in_doubt: false,
        })
    }

    pub(crate) fn realized(&self) -> &State {
        &self.realized
    }

    pub(crate) async fn counted(&mut self) -> Result<BTreeMap<Frontend, Counts>, Error> {
        self.ruleset.counted().await
    }

    /// How many entries there are in each map, and how many clients are remembered.
    pub(crate) async fn sizes(&mut self) -> Vec<SetSize> {
        let mut sizes = self.realized.sizes();
        for family in Family::BOTH {
            match self.ruleset.clients(family).await {
                Ok(Some(clients)) => {
                    let (set, elements) = (Map::Affinity.name(), clients as usize);
                    sizes.push(SetSize { set, family, elements, room: Some(AFFINITY_SIZE) });
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "nobody can say how full the map of clients is"),
            }
        }
        sizes
    }

    /// The Services that are not in the kernel as they should be, and have to be in the next change.
    pub(crate) fn take_due(&mut self) -> BTreeSet<ServiceId> {
        std::mem::take(&mut self.due)
    }

    /// Brings the kernel in line with the change. Gives the flows that it makes stale.
    pub(crate) async fn apply(&mut self, change: &Change, report: &mut Report) -> Vec<Stale> {
        let mut stale = Vec::new();
        if std::mem::replace(&mut self.in_doubt, true)
            && let Err(error) = self.reread().await
        {
            tracing::warn!(%error, "cannot read the kernel back after an interrupted change; trying again with the next change");
            self.due.extend(change.services.keys().cloned());
            return stale;
        }
        self.common(change, report).await;
        let mut batch = Vec::new();
        let mut elements = 0;
        for (id, forwarding) in &change.services {
            elements += forwarding.frontends.iter().map(|f| f.inside.backends().len() + 2).sum::<usize>();
            batch.push((id, forwarding));
            if batch.len() >= BATCH || elements >= BATCH_ELEMENTS {
                self.commit_all(&batch, report, &mut stale).await;
                batch.clear();
                elements = 0;
            }
        }
        self.commit_all(&batch, report, &mut stale).await;
        self.in_doubt = false;
        stale
    }

    async fn commit_all(&mut self, batch: &[Planned<'_>], report: &mut Report, stale: &mut Vec<Stale>) {
        // A stack of batches still to commit; a refused one comes back as its two halves.
        let mut batches = vec![batch];
        let mut reread = false;
        while let Some(batch) = batches.pop() {
            let Err(error) = self.commit(batch, report, stale).await else { continue };
            if error.is_drift() && !reread {
                // The kernel is not as it was left. Look again, once, and go on from there.
                reread = true;
                match self.reread().await {
                    Ok(_) => batches.push(batch),
                    Err(error) => self.refuse(batch, error, report),
                }
            } else if batch.len() > 1 {
                let (first, second) = batch.split_at(batch.len() / 2);
                batches.extend([second, first]);
            } else {
                self.refuse(batch, error, report);
            }
        }
    }

    fn refuse(&mut self, batch: &[Planned<'_>], error: Error, report: &mut Report) {
        let error = Arc::new(error);
        for (id, _) in batch {
            self.due.insert((*id).clone());
            report.refused.push(((*id).clone(), error.clone()));
        }
    }

    /// All of the batch or, on an error, nothing of it.
    async fn commit(
        &mut self,
        batch: &[Planned<'_>],
        report: &mut Report,
        stale: &mut Vec<Stale>,
    ) -> Result<(), Error> {
        let mut journal = Journal::default();
        let planned: Vec<Owned> =
            batch.iter().map(|(id, forwarding)| self.plan(id, forwarding, &mut journal)).collect();
        if let Err(error) = self.write(&mut journal, report).await {
            let frontends = batch.iter().flat_map(|(_, forwarding)| &forwarding.frontends);
            self.release_sessions(frontends.map(|forwarding| forwarding.frontend));
            return Err(error);
        }
        for ((id, _), owned) in batch.iter().zip(planned) {
            match owned.frontends.is_empty() && owned.shared.is_empty() {
                true => self.services.remove(*id),
                false => self.services.insert((*id).clone(), owned),
            };
        }
        stale.extend(self.aftermath(&journal));
        Ok(())
    }

    /// Notes in `realized` what the Service shall have; gives what it owns by that.
    fn plan(&mut self, id: &ServiceId, forwarding: &ServiceForwarding, journal: &mut Journal) -> Owned {
        let (nothing, counters) = (Owned::default(), self.counters);
        let before = self.services.get(id).unwrap_or(&nothing);
        let after = Owned {
            frontends: forwarding.frontends.iter().map(|forwarding| forwarding.frontend).collect(),
            shared: (forwarding.cluster_ips.iter().copied().map(Key::ClusterIp))
                .chain(forwarding.hairpins.iter().copied().map(Key::Hairpin))
                .collect(),
        };
        for gone in before.frontends.iter().filter(|frontend| after.frontends.binary_search(frontend).is_err()) {
            self.realized.remove(*gone, journal);
        }
        for wanted in &forwarding.frontends {
            let new = before.frontends.binary_search(&wanted.frontend).is_err();
            let session = wanted.affinity.map(|affinity| self.sessions.number(affinity.together));
            self.realized.put(wanted.frontend, |row| Row::desired(wanted, session, counters, row), new, journal);
        }
        for gone in before.shared.iter().filter(|key| after.shared.binary_search(key).is_err()) {
            self.realized.release(*gone, journal);
        }
        for new in after.shared.iter().filter(|key| before.shared.binary_search(key).is_err()) {
            self.realized.claim(*new, journal);
        }
        after
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

    /// Brings the keys that are the node's and no Service's in line.
    async fn common(&mut self, change: &Change, report: &mut Report) {
        let desired: BTreeSet<Key> = (change.node.node_port_addresses.iter().copied().map(Key::NodeAddress))
            .chain(change.service_cidrs.iter().copied().map(Key::ServiceCidr))
            .chain(IpNet::aggregate(&change.node.pod_networks).into_iter().map(Key::PodNetwork))
            .chain(Family::BOTH.into_iter().flat_map(|family| keeping_address(&change.node, family)))
            .chain(Family::BOTH.into_iter().filter_map(|family| change.node.answering(family)).map(Key::Echo))
            .collect();
        // Nearly always. Looking for what is in the way takes as long as there are Services.
        if desired == self.common {
            return;
        }
        for attempt in 0..2 {
            let mut journal = Journal::default();
            let in_the_way = self.realized.unowned().filter(|stray| desired.iter().any(|key| key.excludes(stray)));
            for key in in_the_way.copied().collect::<Vec<_>>() {
                self.realized.release(key, &mut journal);
            }
            for key in self.common.difference(&desired) {
                self.realized.release(*key, &mut journal);
            }
            for key in desired.difference(&self.common) {
                self.realized.claim(*key, &mut journal);
            }
            match self.write(&mut journal, report).await {
                Ok(()) => {
                    self.common = desired;
                    return;
                }
                Err(error) if attempt == 0 && error.is_drift() && self.reread().await.is_ok() => {}
                Err(error) => {
                    tracing::warn!(%error, "node addresses and service ranges are not in place; trying again with the next change");
                    return;
                }
            }
        }
    }

    /// Gives back what growing left: a tree that was filled in order is half empty.
    pub(crate) fn fit(&mut self) {
        self.services = std::mem::take(&mut self.services).into_iter().collect();
    }

    /// Removes what nobody asked for.
    pub(crate) async fn prune(&mut self, report: &mut Report) -> Vec<Stale> {
        let mut journal = Journal::default();
        self.realized.prune(&mut journal);
        self.in_doubt = true;
        let written = self.write(&mut journal, report).await;
        self.in_doubt = false;
        match written {
            Ok(()) => self.aftermath(&journal),
            Err(error) => {
                tracing::warn!(%error, "strays could not be removed; trying again at the next audit");
                Vec::new()
            }
        }
    }

    /// Lets go of numbers that nobody remembers under any more, and gives the flows that became stale.
    fn aftermath(&mut self, journal: &Journal) -> Vec<Stale> {
        let effects = effects(&self.realized, journal);
        self.release_sessions(journal.touched().map(|(frontend, _)| *frontend));
        effects.iter().flat_map(Effect::stale).collect()
    }

    /// Numbers that are not in use with any of the frontends can be had by others.
    fn release_sessions(&mut self, frontends: impl Iterator<Item = Frontend>) {
        for frontend in frontends {
            if self.realized.row(&frontend).and_then(Row::session).is_none() {
                self.sessions.release(&frontend);
            }
        }
    }

    /// As `reread`, unless the kernel can tell that nobody else has changed anything.
    pub(crate) async fn look(&mut self) -> Result<usize, Error> {
        match self.in_doubt || self.ruleset.is_touched().await {
            true => self.reread().await,
            false => Ok(0),
        }
    }

    /// Reads the kernel back, so that the next `apply` mends the Services whose entries differ. Says how many entries
    /// do.
    pub(crate) async fn reread(&mut self) -> Result<usize, Error> {
        let mut differences = usize::from(self.ruleset.repair().await?);
        let (found, mended) = self.ruleset.read().await?;
        differences += mended + self.realized.differences(&found);
        let mut realized = found;
        // What is owned stays owned where it is still there; what is missing is no longer owned, and asked for anew.
        for (id, owned) in &mut self.services {
            let as_left = owned.frontends.iter().all(|frontend| realized.agrees(&self.realized, frontend))
                && owned.shared.iter().all(|key| realized.get(key).is_some());
            if !as_left {
                self.due.insert(id.clone());
            }
            let frontends = owned.frontends.iter().copied();
            owned.frontends = frontends.filter(|frontend| realized.own_row(frontend)).collect();
            owned.shared = owned.shared.iter().copied().filter(|key| realized.own(key)).collect();
        }
        self.common.retain(|key| realized.own(key));
        self.realized = realized;
        Ok(differences)
    }
}

/// The sources that keep their address towards ClusterIPs: pods, or all where nobody can tell.
fn keeping_address(node: &NodeContext, family: Family) -> Vec<Key> {
    let of_family = |net: &&IpNet| Family::of(net.addr()) == family;
    let mut keeping: Vec<IpNet> = node.pod_networks.iter().filter(of_family).copied().collect();
    if keeping.is_empty() && node.pod_link.is_none() {
        keeping.push(IpNet::new_assert(family.unspecified(), 0));
    }
    IpNet::aggregate(&keeping).into_iter().map(Key::KeepsAddress).collect()
}

/// One frontend whose backends a batch changed.
struct Effect {
    frontend: Frontend,
    removed: Vec<Backend>,
    /// It leads somewhere now and did not before.
    opened: bool,
}

fn effects(realized: &State, journal: &Journal) -> Vec<Effect> {
    let nothing = Row::default();
    let effect = |(frontend, before): (&Frontend, Option<&Row>)| {
        let (before, after) = (before.unwrap_or(&nothing), realized.row(frontend).unwrap_or(&nothing));
        Effect {
            frontend: *frontend,
            removed: before.backends().difference(&after.backends()).copied().collect(),
            opened: after.forwards() && !before.forwards(),
        }
    };
    journal.touched().map(effect).collect()
}

impl Effect {
    fn stale(&self) -> Vec<Stale> {
        let Frontend { place, protocol, port } = self.frontend;
        let destination = match place {
            Place::Address(address) => Some(address),
            Place::Node(_) => None,
        };
        let stale = |flow| Stale { protocol, destination, port, flow };
        let removed = self.removed.iter().map(|backend| stale(StaleFlow::To(*backend)));
        let opened = self.opened && protocol == Protocol::Udp;
        removed.chain(opened.then(|| stale(StaleFlow::Untranslated(self.frontend.family())))).collect()
    }
}

#[cfg(test)]
mod tests;
