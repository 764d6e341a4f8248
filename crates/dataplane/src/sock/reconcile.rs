//! The upper half: Services' forwarding -> the writes for each of their frontends.
//!
//! Invariants: what this believes to be in the maps is what was read or written, write by write; a frontend that cannot
//! be had whole is taken out of the maps, so that nftables underneath forwards it, and its Service is named; nothing
//! found in the maps is removed before [`Reconciler::prune`], unless a Service has something else to say about it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::forwarding::{
    Backend, Family, Frontend, FrontendForwarding, FrontendKind, NodeContext, ServiceForwarding, Target,
};
use portolan_model::{Protocol, ServiceId};

use super::Error;
use super::element::{Element, Key, Operation, Verdict};
use super::maps::Maps;
use super::row::{Row, Wanted};

/// Sockets connected to this backend through this frontend lead where the Service no longer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Gone {
    pub frontend: Frontend,
    pub backend: Backend,
}

/// How many elements there are in each map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Occupancy {
    pub(super) frontends: usize,
    pub(super) slots: usize,
    pub(super) members: usize,
    pub(super) counters: usize,
    pub(super) node_addresses: usize,
}

pub(super) struct Reconciler<M> {
    pub(super) maps: M,
    rows: HashMap<Frontend, Row>,
    owned: BTreeMap<ServiceId, Box<[Frontend]>>,
    /// Whose each frontend is: who loses one may hear of it later than who gets it.
    owners: HashMap<Frontend, ServiceId>,
    /// Found in the maps and asked for by nobody since.
    orphans: HashSet<Frontend>,
    /// Found in the maps and part of no frontend.
    strays: BTreeSet<Key>,
    node_addresses: BTreeSet<IpAddr>,
    next_id: u32,
    /// In all rows.
    slots: usize,
    /// The last Service that was looked at, if there are more after it.
    looked_at: Option<ServiceId>,
}

impl<M: Maps> Reconciler<M> {
    /// Starts from what the maps hold.
    pub(super) fn restore(maps: M) -> Result<Self, Error> {
        let mut reconciler = Self {
            maps,
            rows: HashMap::new(),
            owned: BTreeMap::new(),
            owners: HashMap::new(),
            orphans: HashSet::new(),
            strays: BTreeSet::new(),
            node_addresses: BTreeSet::new(),
            next_id: 1,
            slots: 0,
            looked_at: None,
        };
        reconciler.reread()?;
        reconciler.orphans = reconciler.rows.keys().copied().collect();
        Ok(reconciler)
    }

    /// Reads the maps back, so that the next `apply` mends what differs. Says how many frontends do, and strays.
    pub(super) fn reread(&mut self) -> Result<usize, Error> {
        let found = Found::sort(self.maps.read()?);
        let missing = self.rows.keys().filter(|frontend| !found.rows.contains_key(frontend)).count();
        let differing = found.rows.iter().filter(|(frontend, row)| self.rows.get(frontend) != Some(row)).count();
        let addresses = found.node_addresses.symmetric_difference(&self.node_addresses).count();
        let strays = found.strays.len();
        let owned: HashSet<Frontend> = self.owned.values().flat_map(|frontends| frontends.iter().copied()).collect();
        self.orphans = found.rows.keys().filter(|frontend| !owned.contains(frontend)).copied().collect();
        self.next_id = self.next_id.max(found.highest_id.saturating_add(1));
        self.slots = found.rows.values().map(|row| row.slots.len()).sum();
        self.rows = found.rows;
        self.strays = found.strays;
        self.node_addresses = found.node_addresses;
        Ok(missing + differing + addresses + strays)
    }

    /// Brings the maps in line with the Services given, which have the frontends they hold and no other. Gives whom it
    /// could not be done for, and the backends that went.
    pub(super) fn apply(
        &mut self,
        services: &BTreeMap<ServiceId, ServiceForwarding>,
        node: &NodeContext,
    ) -> (Vec<(ServiceId, Error)>, Vec<Gone>) {
        let (mut refused, mut gone) = (Vec::new(), Vec::new());
        self.apply_node_addresses(node);
        // A frontend may pass from one of them to another.
        let wanted: HashSet<Frontend> =
            services.values().flat_map(frontends).map(|forwarding| forwarding.frontend).collect();
        for (id, forwarding) in services {
            let frontends: Box<[Frontend]> = frontends(forwarding).map(|forwarding| forwarding.frontend).collect();
            let before = match frontends.is_empty() {
                true => self.owned.remove(id),
                false => self.owned.insert(id.clone(), frontends),
            };
            for frontend in before.iter().flatten().filter(|frontend| !wanted.contains(frontend)) {
                if self.owners.get(frontend) != Some(id) {
                    continue;
                }
                self.owners.remove(frontend);
                let outcome = self.realize(*frontend, None, &mut gone);
                if let Err(error) = outcome {
                    self.orphans.insert(*frontend);
                    refused.push((id.clone(), error));
                }
            }
        }
        for (id, forwarding) in services {
            for forwarding in frontends(forwarding) {
                self.orphans.remove(&forwarding.frontend);
                self.owners.insert(forwarding.frontend, id.clone());
                let outcome = self.realize(forwarding.frontend, Some(wanted_of(forwarding, node)), &mut gone);
                if let Err(error) = outcome {
                    refused.push((id.clone(), error));
                }
            }
        }
        // One complaint a Service is enough.
        refused.sort_by(|(a, _), (b, _)| a.cmp(b));
        refused.dedup_by(|(a, _), (b, _)| a == b);
        (refused, gone)
    }

    fn apply_node_addresses(&mut self, node: &NodeContext) {
        let desired: BTreeSet<IpAddr> = node.node_port_addresses.iter().copied().collect();
        let gone: Vec<IpAddr> = self.node_addresses.difference(&desired).copied().collect();
        for address in gone {
            match self.maps.delete(&Key::NodeAddress(address)) {
                Ok(()) => drop(self.node_addresses.remove(&address)),
                Err(error) => tracing::warn!(%error, "NodePorts go on at {address} for sockets of this node"),
            }
        }
        for address in desired {
            if !self.node_addresses.contains(&address) {
                match self.maps.put(&Element::NodeAddress(address)) {
                    Ok(()) => drop(self.node_addresses.insert(address)),
                    Err(error) => tracing::warn!(%error, "NodePorts at {address} are left to nftables"),
                }
            }
        }
    }

    fn realize(&mut self, frontend: Frontend, wanted: Option<Wanted<'_>>, gone: &mut Vec<Gone>) -> Result<(), Error> {
        let mut row = match (self.rows.remove(&frontend), wanted) {
            (Some(row), _) => row,
            (None, None) => return Ok(()),
            (None, Some(_)) => {
                let id = self.next_id;
                self.next_id = id.wrapping_add(1).max(1);
                Row::new(id)
            }
        };
        let backends = wanted.map_or(&[][..], |wanted| wanted.backends);
        let is_gone = |backend: &&Backend| backends.binary_search(backend).is_err();
        gone.extend(row.in_use().iter().filter(is_gone).map(|backend| Gone { frontend, backend: *backend }));
        self.slots -= row.slots.len();
        row.slots.reserve_exact(backends.len().saturating_sub(row.slots.len()));
        let mut outcome = self.carry_out(frontend, &mut row, wanted);
        if outcome.is_err() && wanted.is_some() {
            // Half of it would be worse than what nftables has, which is whole.
            let withdrawn = self.carry_out(frontend, &mut row, None);
            outcome = outcome.and(withdrawn);
        }
        self.slots += row.slots.len();
        if !row.is_empty() {
            self.rows.insert(frontend, row);
        }
        outcome
    }

    fn carry_out(&mut self, frontend: Frontend, row: &mut Row, wanted: Option<Wanted<'_>>) -> Result<(), Error> {
        for operation in row.plan(frontend, wanted) {
            match &operation {
                Operation::Put(element) => {
                    self.maps.put(element)?;
                    self.strays.remove(&element.key());
                }
                Operation::Delete(key) => self.maps.delete(key)?,
            }
            row.note(&operation);
        }
        Ok(())
    }

    /// Gives back what growing left: a tree that was filled in order is half empty.
    pub(super) fn fit(&mut self) {
        self.owned = std::mem::take(&mut self.owned).into_iter().collect();
    }

    /// Removes what was found and nobody asked for.
    pub(super) fn prune(&mut self) -> Vec<Gone> {
        let mut gone = Vec::new();
        let mut left = 0;
        for frontend in std::mem::take(&mut self.orphans) {
            if self.realize(frontend, None, &mut gone).is_err() {
                self.orphans.insert(frontend);
                left += 1;
            }
        }
        self.strays.retain(|key| self.maps.delete(key).is_err());
        left += self.strays.len();
        if left > 0 {
            tracing::warn!(
                "{left} elements of the socket load balancer could not be removed; trying again at the next audit"
            );
        }
        gone
    }

    /// Every frontend that is in place, with its Service and the number its counters go by.
    pub(super) fn in_place(&self) -> impl Iterator<Item = (&ServiceId, Frontend, u32)> {
        self.owned.iter().flat_map(move |(service, frontends)| {
            frontends.iter().filter_map(move |frontend| Some((service, *frontend, self.rows.get(frontend)?.id)))
        })
    }

    pub(super) fn occupancy(&self) -> Occupancy {
        Occupancy {
            frontends: self.rows.len(),
            slots: self.slots,
            members: self.rows.values().map(|row| row.members.len()).sum(),
            counters: self.rows.values().filter(|row| row.counted).count(),
            node_addresses: self.node_addresses.len(),
        }
    }

    /// As in [`Occupancy`], of the two that grow with the cluster.
    pub(super) fn frontends_and_slots(&self) -> (usize, usize) {
        (self.rows.len(), self.slots)
    }
}

/// The frontends that sockets' hooks can see.
fn frontends(forwarding: &ServiceForwarding) -> impl Iterator<Item = &FrontendForwarding> {
    forwarding.frontends.iter().filter(|forwarding| forwarding.frontend.protocol != Protocol::Sctp)
}

fn wanted_of<'a>(forwarding: &'a FrontendForwarding, node: &NodeContext) -> Wanted<'a> {
    // Whom a source range admits, and under which address a packet travels on, only nftables can tell.
    let masqueraded = node.masquerade_all && forwarding.kind == FrontendKind::ClusterIp;
    // Where it matters whether the client is a pod, it has to be known which addresses are pods'.
    let of_family = |network: &IpNet| Family::of(network.addr()) == forwarding.frontend.family();
    let tells_pods = node.pod_link.is_none() && node.pod_networks.iter().any(of_family);
    let left =
        !forwarding.sources.is_empty() || masqueraded || (forwarding.inside != forwarding.outside && !tells_pods);
    let (verdict, backends) = match &forwarding.inside {
        _ if left => (Verdict::Leave, &[][..]),
        Target::Forward(backends) => (Verdict::Forward, &**backends),
        Target::Reject => (Verdict::Reject, &[][..]),
        Target::Drop => (Verdict::Leave, &[][..]),
    };
    let affinity = forwarding.affinity.filter(|_| verdict == Verdict::Forward);
    let seconds = affinity.map_or(0, |affinity| u32::try_from(affinity.timeout.as_secs()).unwrap_or(u32::MAX).max(1));
    let is_tracked = seconds > 0 || (forwarding.frontend.protocol == Protocol::Udp && !backends.is_empty());
    let together = affinity.map_or(forwarding.frontend, |affinity| affinity.together);
    Wanted { verdict, backends, affinity_seconds: seconds, together, is_tracked }
}

/// What was read, put in order.
#[derive(Default)]
struct Found {
    rows: HashMap<Frontend, Row>,
    strays: BTreeSet<Key>,
    node_addresses: BTreeSet<IpAddr>,
    highest_id: u32,
}

impl Found {
    fn sort(elements: Vec<Element>) -> Self {
        let mut found = Self::default();
        let mut frontend_of: HashMap<u32, Frontend> = HashMap::new();
        for element in &elements {
            if let Element::Frontend(frontend, id, head) = *element {
                let mut row = Row::new(id);
                row.head = Some(head);
                found.rows.insert(frontend, row);
                frontend_of.insert(id, frontend);
            }
        }
        let mut slots: HashMap<u32, BTreeMap<u32, Backend>> = HashMap::new();
        for element in elements {
            let id = match element {
                Element::Frontend(_, id, _) | Element::Slot(id, ..) | Element::Member(id, _) | Element::Counter(id) => {
                    id
                }
                Element::NodeAddress(address) => {
                    found.node_addresses.insert(address);
                    continue;
                }
            };
            found.highest_id = found.highest_id.max(id);
            let row = frontend_of.get(&id).and_then(|frontend| found.rows.get_mut(frontend));
            match (element, row) {
                (Element::Slot(_, index, backend), Some(_)) => {
                    slots.entry(id).or_default().insert(index, backend);
                }
                (Element::Member(_, backend), Some(row)) => drop(row.members.insert(backend)),
                (Element::Counter(_), Some(row)) => row.counted = true,
                (Element::Frontend(..), _) => {}
                (element, _) => drop(found.strays.insert(element.key())),
            }
        }
        for (id, slots) in slots {
            let row = frontend_of.get(&id).and_then(|frontend| found.rows.get_mut(frontend));
            let Some(row) = row else { continue };
            for (index, backend) in slots {
                // Beyond a gap nobody looks.
                match index as usize == row.slots.len() {
                    true => row.slots.push(backend),
                    false => drop(found.strays.insert(Key::Slot(id, index))),
                }
            }
        }
        found
    }
}

mod look;
#[cfg(test)]
mod tests;
