//! All that a node knows about Services at one moment, and what an event changes in it.
//!
//! A projection holds its own realized state; it is handed `(&Snapshot, &Delta)` and recomputes only what the delta
//! names. `apply` costs O(log n) in the number of objects plus the size of the object that changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use crate::{EndpointSlice, Node, Service, ServiceId, SliceId};

/// One object came, changed or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Service(Service),
    ServiceGone(ServiceId),
    Slice(EndpointSlice),
    SliceGone(SliceId),
    Node(Node),
    NodeGone(Arc<str>),
    ServiceCidr(Arc<str>, Vec<IpNet>),
    ServiceCidrGone(Arc<str>),
}

/// What one or more events changed: the smallest thing a projection has to look at again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Services that were added, changed, removed, or whose endpoints did.
    pub services: BTreeSet<ServiceId>,
    pub nodes: BTreeSet<Arc<str>>,
    pub service_cidrs: bool,
}

impl Delta {
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.nodes.is_empty() && !self.service_cidrs
    }

    pub fn merge(&mut self, other: Self) {
        self.services.extend(other.services);
        self.nodes.extend(other.nodes);
        self.service_cidrs |= other.service_cidrs;
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Apart from their ids: a node of a tree that was filled in order is half empty.
    services: BTreeMap<ServiceId, Box<Service>>,
    /// In the order of their ids. Nearly always one or two, for which a tree would take ten times the room.
    slices: BTreeMap<ServiceId, Vec<EndpointSlice>>,
    slice_owner: BTreeMap<SliceId, ServiceId>,
    nodes: BTreeMap<Arc<str>, Node>,
    service_cidrs: BTreeMap<Arc<str>, Vec<IpNet>>,
}

impl Snapshot {
    /// Takes the event in. An event that changes nothing gives an empty delta.
    pub fn apply(&mut self, event: Event) -> Delta {
        let mut delta = Delta::default();
        match event {
            Event::Service(service) => {
                let id = service.id.clone();
                if self.service(&id) != Some(&service) {
                    self.services.insert(id.clone(), Box::new(service));
                    delta.services.insert(id);
                }
            }
            Event::ServiceGone(id) => {
                if self.services.remove(&id).is_some() {
                    delta.services.insert(id);
                }
            }
            Event::Slice(slice) => self.put_slice(slice, &mut delta),
            Event::SliceGone(id) => {
                if let Some(owner) = self.remove_slice(&id) {
                    delta.services.insert(owner);
                }
            }
            Event::Node(node) => {
                let name = node.name.clone();
                if self.nodes.get(&name) != Some(&node) {
                    self.nodes.insert(name.clone(), node);
                    delta.nodes.insert(name);
                }
            }
            Event::NodeGone(name) => {
                if self.nodes.remove(&name).is_some() {
                    delta.nodes.insert(name);
                }
            }
            Event::ServiceCidr(name, cidrs) => {
                if self.service_cidrs.get(&name) != Some(&cidrs) {
                    self.service_cidrs.insert(name, cidrs);
                    delta.service_cidrs = true;
                }
            }
            Event::ServiceCidrGone(name) => delta.service_cidrs = self.service_cidrs.remove(&name).is_some(),
        }
        delta
    }

    fn put_slice(&mut self, slice: EndpointSlice, delta: &mut Delta) {
        let at = |slices: &Vec<EndpointSlice>| slices.binary_search_by(|other| other.id.cmp(&slice.id));
        let known = self.slices.get(&slice.service).and_then(|slices| slices.get(at(slices).ok()?));
        if known == Some(&slice) {
            return;
        }
        // The label that names the Service may have changed: both Services are affected then.
        if let Some(owner) = self.remove_slice(&slice.id) {
            delta.services.insert(owner);
        }
        delta.services.insert(slice.service.clone());
        self.slice_owner.insert(slice.id.clone(), slice.service.clone());
        let slices = self.slices.entry(slice.service.clone()).or_default();
        if let Err(place) = at(slices) {
            slices.reserve_exact(1);
            slices.insert(place, slice);
        }
    }

    fn remove_slice(&mut self, id: &SliceId) -> Option<ServiceId> {
        let owner = self.slice_owner.remove(id)?;
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.retain(|slice| slice.id != *id);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        Some(owner)
    }

    /// For when there is much in it and more is not about to come: gives back what growing left, since a tree that was
    /// filled in order is half empty.
    pub fn fit(&mut self) {
        self.services = std::mem::take(&mut self.services).into_iter().collect();
        self.slices = std::mem::take(&mut self.slices).into_iter().collect();
        self.slice_owner = std::mem::take(&mut self.slice_owner).into_iter().collect();
    }

    pub fn service(&self, id: &ServiceId) -> Option<&Service> {
        self.services.get(id).map(|service| &**service)
    }

    /// In the order of their ids.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().map(|service| &**service)
    }

    /// The Service's slices in the order of their names; empty when it has none.
    pub fn slices(&self, service: &ServiceId) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.get(service).into_iter().flatten()
    }

    /// Those of them that a proxy leads to.
    pub fn forwarded_slices(&self, service: &ServiceId) -> impl Iterator<Item = &EndpointSlice> {
        self.slices(service).filter(|slice| !slice.headless)
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// In the order of their names.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Every range of every ServiceCIDR object.
    pub fn service_cidrs(&self) -> impl Iterator<Item = &IpNet> {
        self.service_cidrs.values().flatten()
    }
}
