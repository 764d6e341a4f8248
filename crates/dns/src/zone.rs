//! The Snapshot -> the records of the cluster's zone, looked up by name and type.
//!
//! Invariants: `apply` costs what the touched Services hold, not what the zone holds, and a clone of the zone costs
//! nothing: the maps are persistent and share all that did not change. Nothing here can fail: a Service with nonsense
//! in it lacks a record, and no other does.
//!
//! What exists and what does not (§ is of the DNS-Based Service Discovery specification 1.1.0): the apex, `svc`, `pod`
//! and a namespace exist without data; an unknown namespace, Service or endpoint, or one label too many, does not
//! exist; a name asked for the wrong type has no data. The Snapshot knows a namespace only by its Services, so one
//! without any counts as unknown.
//!
//! Deliberately not here: pods by address (`10-1-2-3.ns.pod`), wildcards, and negative answers for addresses that
//! belong to no Service, which are other servers' to give.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use portolan_model::{Delta, ServiceId, Snapshot};
use rpds::HashTrieMapSync;

use crate::answer::{Answer, Builder};
use crate::records::{Records, Shape};
use crate::wire::{Name, encode, kind, push_label};

/// A Service's labels on the wire, `\x03web\x07default`.
type Key = Arc<[u8]>;

/// The version of the specification the zone says it keeps to (§2.2).
const DNS_VERSION: &[u8] = b"\x051.1.0";

/// The Service the cluster's DNS is known by, where `ns.dns.<zone>` leads.
const DNS_SERVICE: &[u8] = b"\x08kube-dns\x0bkube-system";

/// The records of one cluster.
#[derive(Clone)]
pub struct Zone {
    apex: Arc<Apex>,
    serial: u32,
    services: HashTrieMapSync<Key, Arc<Records>>,
    /// Namespace labels on the wire, and how many Services each has.
    namespaces: HashTrieMapSync<Key, usize>,
    /// Who has an address as ClusterIP, and who has it as endpoint.
    cluster_ips: HashTrieMapSync<IpAddr, Holders>,
    endpoints: HashTrieMapSync<IpAddr, Holders>,
}

struct Apex {
    name: Name,
    ttl: u32,
    /// `svc.<zone>` on the wire.
    svc: Vec<u8>,
    ns: Vec<u8>,
    /// The SOA's two names.
    soa: Vec<u8>,
}

/// Nearly every address has one holder.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Holders {
    One(Key),
    /// In order.
    Many(Arc<[Key]>),
}

impl Holders {
    fn keys(&self) -> &[Key] {
        match self {
            Self::One(key) => std::slice::from_ref(key),
            Self::Many(keys) => keys,
        }
    }

    fn from_keys(keys: Vec<Key>) -> Option<Self> {
        match <[Key; 1]>::try_from(keys) {
            Ok([key]) => Some(Self::One(key)),
            Err(keys) if keys.is_empty() => None,
            Err(keys) => Some(Self::Many(keys.into())),
        }
    }
}

/// What the zone says to a question.
pub(crate) enum Found<'z> {
    /// Neither below the zone nor an address of a Service: ask elsewhere.
    Elsewhere,
    NoName,
    NoData,
    Answer(Cow<'z, Answer>),
    /// The question's name is another name for this one, on the wire.
    Alias(&'z [u8]),
}

impl<'z> Found<'z> {
    fn prebuilt(answer: Option<&'z Answer>) -> Self {
        answer.map_or(Self::NoData, |answer| Self::Answer(Cow::Borrowed(answer)))
    }

    fn built(builder: Builder) -> Self {
        builder.build().map_or(Self::NoData, |answer| Self::Answer(Cow::Owned(answer)))
    }
}

impl Zone {
    /// `None` if `domain` cannot be a zone's name. `ttl` is in seconds, for positive and negative answers.
    #[must_use]
    pub fn new(domain: &str, ttl: u32) -> Option<Self> {
        let wire = encode(domain).filter(|wire| wire.len() > 1)?;
        let below = |labels: &[u8]| [labels, &wire].concat();
        let ns = below(b"\x02ns\x03dns");
        let apex = Apex {
            // The longest names put a hostname, a Service and a namespace in front of it.
            name: Name::from_wire(&wire).filter(|name| name.wire().len() <= 58)?,
            ttl,
            svc: below(b"\x03svc"),
            soa: [&ns[..], &below(b"\x0ahostmaster")].concat(),
            ns,
        };
        Some(Self {
            apex: Arc::new(apex),
            serial: 1,
            services: HashTrieMapSync::new_sync(),
            namespaces: HashTrieMapSync::new_sync(),
            cluster_ips: HashTrieMapSync::new_sync(),
            endpoints: HashTrieMapSync::new_sync(),
        })
    }

    /// Takes in what the delta names. `serial` is for the SOA if anything changes, usually the time in seconds; it
    /// never goes backwards. Returns whether a record changed.
    pub fn apply(&mut self, snapshot: &Snapshot, delta: &Delta, serial: u32) -> bool {
        let mut changed = false;
        for id in &delta.services {
            let Some(key) = key(id) else { continue };
            let records = snapshot.service(id).and_then(|service| {
                let name = Name::from_wire(&[&key[..], &self.apex.svc].concat())?;
                let slices: Vec<_> = snapshot.slices(id).collect();
                Some(Arc::new(Records::new(service, &slices, &name, self.apex.ttl)))
            });
            changed |= self.replace(key, records);
        }
        if changed {
            self.serial = serial.max(self.serial.wrapping_add(1));
        }
        changed
    }

    /// Whether a reply about the Service cannot hold all that there is to say.
    pub(crate) fn outgrows_every_reply(&self, id: &ServiceId) -> bool {
        let records = key(id).and_then(|key| self.services.get(&key));
        records.is_some_and(|records| records.outgrow_every_reply())
    }

    fn replace(&mut self, key: Key, new: Option<Arc<Records>>) -> bool {
        let old = self.services.get(&key).cloned();
        if old == new {
            return false;
        }
        let namespace = &key[usize::from(key[0]) + 1..];
        match (&old, &new) {
            (None, Some(_)) => {
                let services = self.namespaces.get(namespace).copied().unwrap_or_default();
                self.namespaces.insert_mut(namespace.into(), services + 1);
            }
            (Some(_), None) => match self.namespaces.get(namespace) {
                Some(services) if *services > 1 => {
                    let services = services - 1;
                    self.namespaces.insert_mut(namespace.into(), services);
                }
                _ => {
                    self.namespaces.remove_mut(namespace);
                }
            },
            _ => {}
        }
        let addresses = |records: &Option<Arc<Records>>| {
            let records = records.as_deref();
            let mut endpoints: Vec<IpAddr> =
                records.into_iter().flat_map(|records| records.endpoints.iter().map(|host| host.address)).collect();
            endpoints.sort_unstable();
            endpoints.dedup();
            (records.map(|records| records.cluster_ips.to_vec()).unwrap_or_default(), endpoints)
        };
        let ((old_ips, old_endpoints), (new_ips, new_endpoints)) = (addresses(&old), addresses(&new));
        hold(&mut self.cluster_ips, &key, &old_ips, &new_ips);
        hold(&mut self.endpoints, &key, &old_endpoints, &new_endpoints);
        match new {
            Some(records) => self.services.insert_mut(key, records),
            None => {
                self.services.remove_mut(&key);
            }
        }
        true
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let addresses = self.cluster_ips.size() + self.endpoints.size();
        self.services.size() + self.namespaces.size() + addresses == 0
    }

    #[cfg(test)]
    pub(crate) fn holds_the_same_as(&self, other: &Self) -> bool {
        (&self.services, &self.namespaces, &self.cluster_ips, &self.endpoints)
            == (&other.services, &other.namespaces, &other.cluster_ips, &other.endpoints)
    }

    pub(crate) fn ttl(&self) -> u32 {
        self.apex.ttl
    }

    /// The zone's name, to tell where in a question it begins.
    pub(crate) fn name(&self) -> &Name {
        &self.apex.name
    }

    /// The data of the zone's SOA record.
    pub(crate) fn push_soa(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.apex.soa);
        for value in [self.serial, 7200, 1800, 86_400, self.apex.ttl] {
            out.extend_from_slice(&value.to_be_bytes());
        }
    }

    /// Whether the zone alone can say what there is of this name.
    pub(crate) fn owns(&self, name: &Name) -> bool {
        name.labels_before(&self.apex.name).is_some()
    }

    pub(crate) fn find(&self, name: &Name, kind: u16) -> Found<'_> {
        let Some(labels) = name.labels_before(&self.apex.name) else { return self.reverse(name, kind) };
        let found = match (labels, name.label(labels.saturating_sub(1))) {
            (0, _) => self.at_apex(kind),
            (1, b"svc" | b"pod" | b"dns") => Found::NoData,
            (1, b"dns-version") => {
                let mut builder = self.builder();
                if matches!(kind, kind::TXT | kind::ANY) {
                    builder.record(kind::TXT, DNS_VERSION);
                }
                Found::built(builder)
            }
            (2, b"dns") if name.label(0) == b"ns" => self.name_server(kind),
            (2, b"svc" | b"pod") if self.namespaces.contains_key(name.slice(0, 1)) => Found::NoData,
            (3.., b"svc") => self.service(name, labels - 3, kind),
            _ => Found::NoName,
        };
        match found {
            // RFC 8482: a question for everything is answered with something small.
            Found::NoData | Found::Answer(_) if kind == kind::ANY => {
                let mut builder = self.builder();
                builder.record(kind::HINFO, b"\x07RFC8482\x00");
                Found::built(builder)
            }
            found => found,
        }
    }

    fn builder(&self) -> Builder {
        Builder::new(self.apex.ttl)
    }

    fn at_apex(&self, kind: u16) -> Found<'_> {
        let mut builder = self.builder();
        match kind {
            kind::SOA => {
                let mut data = Vec::new();
                self.push_soa(&mut data);
                builder.record(kind, &data);
            }
            kind::NS => {
                builder.record(kind, &self.apex.ns);
                for address in self.name_server_addresses() {
                    builder.glue(b"\x02ns\x03dns", 0, address);
                }
            }
            _ => {}
        }
        Found::built(builder)
    }

    /// `ns.dns.<zone>`, which NS and SOA name: the addresses of the cluster's DNS Service.
    fn name_server(&self, kind: u16) -> Found<'_> {
        let mut builder = self.builder();
        let addresses = self.name_server_addresses().filter(|address| is_of_family(*address, kind));
        addresses.for_each(|address| builder.address(address));
        Found::built(builder)
    }

    fn name_server_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let records = self.services.get(DNS_SERVICE);
        records.into_iter().flat_map(|records| records.cluster_ips.iter().copied())
    }

    /// A name of `extra` labels in front of a Service's.
    fn service(&self, name: &Name, extra: usize, kind: u16) -> Found<'_> {
        let Some(records) = self.services.get(name.slice(extra, extra + 2)) else { return Found::NoName };
        let addresses = match (&records.shape, extra) {
            (Shape::Absent, _) | (Shape::Alias(_), 1..) => return Found::NoName,
            (Shape::Alias(target), 0) => {
                // §2.5 gives an ExternalName no SRV records, and the target's are not the Service's.
                return match target {
                    Some(target) if !matches!(kind, kind::SRV | kind::ANY) => Found::Alias(target),
                    _ => Found::NoData,
                };
            }
            (Shape::Addresses(addresses), _) => addresses,
        };
        match (extra, kind) {
            (0, kind::A) => Found::prebuilt(addresses.a.as_ref()),
            (0, kind::AAAA) => Found::prebuilt(addresses.aaaa.as_ref()),
            (0, kind::SRV) => Found::prebuilt(addresses.srv.as_ref()),
            (0, _) => Found::NoData,
            (1, _) if name.label(0).starts_with(b"_") && addresses.has_protocol(name.slice(0, 1)) => Found::NoData,
            (1, _) => self.endpoint(records, name.label(0), kind),
            (2, _) => match addresses.port(name.slice(0, 2)) {
                Some(answer) if kind == kind::SRV => Found::prebuilt(Some(answer)),
                Some(_) => Found::NoData,
                None => Found::NoName,
            },
            _ => Found::NoName,
        }
    }

    fn endpoint(&self, records: &Records, label: &[u8], kind: u16) -> Found<'_> {
        let (mut builder, mut exists) = (self.builder(), false);
        for address in records.endpoint(label) {
            exists = true;
            if is_of_family(address, kind) {
                builder.address(address);
            }
        }
        if exists { Found::built(builder) } else { Found::NoName }
    }

    /// §2.3.3 and §2.4.3: a ClusterIP leads to its Service; otherwise an endpoint leads to its name in each Service.
    fn reverse(&self, name: &Name, kind: u16) -> Found<'_> {
        let Some(address) = reverse_address(name) else { return Found::Elsewhere };
        let mut builder = self.builder();
        if let Some(holder) = self.cluster_ips.get(&address).and_then(|holders| holders.keys().first()) {
            builder.record(kind::PTR, &[&holder[..], &self.apex.svc].concat());
        } else if let Some(holders) = self.endpoints.get(&address) {
            for key in holders.keys() {
                let Some(records) = self.services.get(key) else { continue };
                for label in records.labels_of(address) {
                    let mut target = Vec::new();
                    if push_label(&mut target, &label).is_some() {
                        builder.record(kind::PTR, &[&target[..], key, &self.apex.svc].concat());
                    }
                }
            }
        }
        match (builder.build(), kind) {
            (None, _) => Found::Elsewhere,
            (Some(answer), kind::PTR | kind::ANY) => Found::Answer(Cow::Owned(answer)),
            (Some(_), _) => Found::NoData,
        }
    }
}

fn is_of_family(address: IpAddr, kind: u16) -> bool {
    kind == if address.is_ipv6() { kind::AAAA } else { kind::A }
}

/// `None` if the Service's names cannot be labels.
fn key(id: &ServiceId) -> Option<Key> {
    let mut wire = Vec::with_capacity(id.name.len() + id.namespace.len() + 2);
    push_label(&mut wire, &id.name)?;
    push_label(&mut wire, &id.namespace)?;
    Some(wire.into())
}

/// Moves `key` from the holders of the old addresses to those of the new; both are in order.
fn hold(map: &mut HashTrieMapSync<IpAddr, Holders>, key: &Key, old: &[IpAddr], new: &[IpAddr]) {
    for address in old.iter().filter(|address| new.binary_search(address).is_err()) {
        let held = map.get(address).map(Holders::keys).unwrap_or_default();
        match Holders::from_keys(held.iter().filter(|held| *held != key).cloned().collect()) {
            Some(holders) => map.insert_mut(*address, holders),
            None => {
                map.remove_mut(address);
            }
        }
    }
    for address in new.iter().filter(|address| old.binary_search(address).is_err()) {
        let mut held = map.get(address).map(Holders::keys).unwrap_or_default().to_vec();
        if let Err(index) = held.binary_search(key) {
            held.insert(index, key.clone());
        }
        if let Some(holders) = Holders::from_keys(held) {
            map.insert_mut(*address, holders);
        }
    }
}

/// Whether the name is in the part of the tree that addresses have.
pub(crate) fn is_reverse(name: &Name) -> bool {
    let labels = name.labels();
    labels >= 2 && name.label(labels - 1) == b"arpa" && matches!(name.label(labels - 2), b"in-addr" | b"ip6")
}

/// The address that a whole name below `in-addr.arpa` or `ip6.arpa` stands for (RFC 1035 §3.5, RFC 3596 §2.5).
fn reverse_address(name: &Name) -> Option<IpAddr> {
    if !is_reverse(name) {
        return None;
    }
    let text = |index: usize| std::str::from_utf8(name.label(index)).ok();
    match (name.labels(), name.label(name.labels() - 2)) {
        (6, b"in-addr") => {
            let mut octets = [0; 4];
            for (index, octet) in octets.iter_mut().rev().enumerate() {
                let text = text(index).filter(|text| text.len() == 1 || !text.starts_with(['0', '+']))?;
                *octet = text.parse().ok()?;
            }
            Some(Ipv4Addr::from(octets).into())
        }
        (34, b"ip6") => {
            let mut bits = 0u128;
            for index in (0..32).rev() {
                let digit = text(index).filter(|text| text.len() == 1)?.chars().next()?.to_digit(16)?;
                bits = bits << 4 | u128::from(digit);
            }
            Some(Ipv6Addr::from(bits).into())
        }
        _ => None,
    }
}
