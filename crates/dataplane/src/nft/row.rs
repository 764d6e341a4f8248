//! A frontend's forwarding -> its entries, held together and small: the node has one [`Row`] for each of thousands.
//!
//! Invariant: the entries are a function of the forwarding, except for the order of the slots, which keeps as much as
//! it can of the order before, so that one endpoint's change is one or two slots' change. A row can also hold whatever
//! was found in the kernel: gaps between slots, or a pick without any.

use std::collections::BTreeSet;

use ipnet::IpNet;
use portolan_model::forwarding::{Backend, Frontend, FrontendForwarding, Masquerade, Place, Target};

use super::entries::{Chain, ChainKind, Entry, Key, LONGEST_REMEMBERED, Pick, Reach, Remember, Value, part_of};
use super::networks::cut;
use super::seats::seat;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    service: Option<Pick>,
    outside: Option<Pick>,
    remember: Option<Remember>,
    session: Option<u32>,
    masqueraded: bool,
    local_only: bool,
    refused: bool,
    dropped: bool,
    restricted: bool,
    connections: bool,
    traffic: bool,
    inside_slots: Box<[Option<Backend>]>,
    outside_slots: Box<[Option<Backend>]>,
    /// Backends by their seats, sorted; empty without session affinity.
    seats: Box<[(Reach, u32, Backend)]>,
    /// Sorted.
    admitted: Box<[IpNet]>,
}

impl Row {
    /// What the frontend shall have, given what it has and the number under which it remembers clients.
    pub(super) fn desired(
        forwarding: &FrontendForwarding,
        session: Option<u32>,
        counted: bool,
        realized: &Self,
    ) -> Self {
        let mut row = Self {
            // Also without a backend, so that nothing is forgotten when one comes back.
            connections: counted,
            traffic: counted,
            restricted: !forwarding.sources.is_empty(),
            admitted: forwarding.sources.iter().flat_map(cut).collect::<BTreeSet<_>>().into_iter().collect(),
            ..Self::default()
        };
        let node_port = matches!(forwarding.frontend.place, Place::Node(_));
        let pick = |reach: Reach, backends: &[Backend]| Pick {
            node_port,
            part: part_of(&forwarding.frontend),
            reach,
            sticky: forwarding.affinity.is_some(),
            count: u32::try_from(backends.len()).unwrap_or(u32::MAX),
        };
        match &forwarding.inside {
            Target::Forward(backends) => {
                row.service = Some(pick(Reach::Inside, backends));
                row.inside_slots = reassign(&realized.inside_slots, backends);
            }
            Target::Reject => row.refused = true,
            Target::Drop => row.dropped = true,
        }
        if row.service.is_none() {
            return row;
        }
        match forwarding.masquerade {
            // Decided by the address being a ClusterIP, for all of them at once.
            Masquerade::Outsiders => {}
            Masquerade::Everybody => row.masqueraded = true,
            Masquerade::NodeItself => {
                row.local_only = true;
                if let Target::Forward(backends) = &forwarding.outside {
                    row.outside = Some(pick(Reach::Outside, backends));
                    row.outside_slots = reassign(&realized.outside_slots, backends);
                }
            }
        }
        row.session = session;
        if forwarding.affinity.is_some() {
            row.seats = row.seated();
        }
        row.remember = forwarding.affinity.map(|affinity| {
            let seconds = u32::try_from(affinity.timeout.as_secs()).unwrap_or(LONGEST_REMEMBERED);
            Remember { node_port, seconds: seconds.clamp(1, LONGEST_REMEMBERED) }
        });
        row
    }

    /// The backends in the slots by their seats, the first where two have the same.
    fn seated(&self) -> Box<[(Reach, u32, Backend)]> {
        let of = |slots: &[Option<Backend>], reach| {
            slots.iter().flatten().map(|backend| (reach, seat(backend), *backend)).collect::<Vec<_>>()
        };
        let mut seats = of(&self.inside_slots, Reach::Inside);
        seats.extend(of(&self.outside_slots, Reach::Outside));
        seats.sort_unstable();
        seats.dedup_by_key(|(reach, seat, _)| (*reach, *seat));
        seats.into()
    }

    /// In the order of their keys.
    pub(super) fn entries(&self, of: Frontend) -> impl Iterator<Item = Entry> {
        let set = move |present: bool, key: fn(Frontend) -> Key| present.then(|| (key(of), Value::Present));
        let slots = move |slots: &'_ [Option<Backend>], reach| {
            let slot = move |(index, backend): (u32, &Option<Backend>)| {
                backend.map(|backend| (Key::Slot(of, reach, index), Value::Backend(backend)))
            };
            (0..).zip(slots).filter_map(slot).collect::<Vec<_>>()
        };
        (self.service.map(|pick| (Key::Service(of), Value::Pick(pick))).into_iter())
            .chain(set(self.masqueraded, Key::Masqueraded))
            .chain(set(self.local_only, Key::LocalOnly))
            .chain(self.outside.map(|pick| (Key::Outside(of), Value::Pick(pick))))
            .chain(set(self.refused, Key::Refused))
            .chain(set(self.dropped, Key::Dropped))
            .chain(self.remember.map(|remember| (Key::Sticky(of), Value::Remember(remember))))
            .chain(self.session.map(|number| (Key::Session(of), Value::Session(number))))
            .chain(slots(&self.inside_slots, Reach::Inside))
            .chain(slots(&self.outside_slots, Reach::Outside))
            .chain(
                self.seats
                    .iter()
                    .map(move |(reach, seat, backend)| (Key::Seat(of, *reach, *seat), Value::Backend(*backend))),
            )
            .chain(set(self.restricted, Key::Restricted))
            .chain(self.admitted.iter().map(move |net| (Key::Admitted(of, *net), Value::Present)))
            .chain(set(self.connections, Key::Connections))
            .chain(set(self.traffic, Key::Traffic))
    }

    /// Takes in all the seats that were found, which can be many.
    pub(super) fn find_seats(&mut self, mut seats: Vec<(Reach, u32, Backend)>) {
        seats.sort_unstable();
        self.seats = seats.into();
    }

    /// Takes in an entry that was found, but for a seat.
    pub(super) fn find(&mut self, (key, value): Entry) {
        match (key, value) {
            (Key::Service(_), Value::Pick(pick)) => self.service = Some(pick),
            (Key::Outside(_), Value::Pick(pick)) => self.outside = Some(pick),
            (Key::Sticky(_), Value::Remember(remember)) => self.remember = Some(remember),
            (Key::Session(_), Value::Session(number)) => self.session = Some(number),
            (Key::Masqueraded(_), _) => self.masqueraded = true,
            (Key::LocalOnly(_), _) => self.local_only = true,
            (Key::Refused(_), _) => self.refused = true,
            (Key::Dropped(_), _) => self.dropped = true,
            (Key::Restricted(_), _) => self.restricted = true,
            (Key::Connections(_), _) => self.connections = true,
            (Key::Traffic(_), _) => self.traffic = true,
            (Key::Slot(_, reach, index), Value::Backend(backend)) => {
                let slots = if reach == Reach::Inside { &mut self.inside_slots } else { &mut self.outside_slots };
                let index = index as usize;
                if index >= slots.len() {
                    let mut longer = std::mem::take(slots).into_vec();
                    longer.resize(index + 1, None);
                    *slots = longer.into();
                }
                slots[index] = Some(backend);
            }
            (Key::Admitted(_, net), _) => {
                let mut all = std::mem::take(&mut self.admitted).into_vec();
                if let Err(at) = all.binary_search(&net) {
                    all.insert(at, net);
                }
                self.admitted = all.into();
            }
            _ => debug_assert!(false, "{key:?} is no frontend's, or does not lead to {value:?}"),
        }
    }

    /// Entries.
    pub(super) fn len(&self) -> usize {
        let flags = [self.masqueraded, self.local_only, self.refused, self.dropped, self.restricted];
        let counts = [self.connections, self.traffic];
        let leads = [self.service.is_some(), self.outside.is_some()];
        let sticky = [self.remember.is_some(), self.session.is_some()];
        flags.into_iter().chain(leads).chain(sticky).chain(counts).filter(|present| *present).count()
            + self.inside_slots.iter().chain(&*self.outside_slots).flatten().count()
            + self.seats.len()
            + self.admitted.len()
    }

    /// As [`len`](Self::len), for each kind of key by one of them.
    pub(super) fn count(&self, of: Frontend, mut count: impl FnMut(Key, usize)) {
        let mut one = |present: bool, key: fn(Frontend) -> Key| count(key(of), usize::from(present));
        one(self.service.is_some(), Key::Service);
        one(self.outside.is_some(), Key::Outside);
        one(self.remember.is_some(), Key::Sticky);
        one(self.session.is_some(), Key::Session);
        one(self.masqueraded, Key::Masqueraded);
        one(self.local_only, Key::LocalOnly);
        one(self.refused, Key::Refused);
        one(self.dropped, Key::Dropped);
        one(self.restricted, Key::Restricted);
        one(self.connections, Key::Connections);
        one(self.traffic, Key::Traffic);
        let slots = self.inside_slots.iter().chain(&*self.outside_slots).flatten().count();
        count(Key::Slot(of, Reach::Inside, 0), slots + self.seats.len());
        self.admitted.iter().for_each(|net| count(Key::Admitted(of, *net), 1));
    }

    /// The chains that entries lead to, each as often as one does.
    pub(super) fn chains(&self, of: Frontend) -> impl Iterator<Item = Chain> {
        let picks = self.service.into_iter().chain(self.outside).map(ChainKind::Pick);
        picks.chain(self.remember.map(ChainKind::Remember)).map(move |kind| Chain { family: of.family(), kind })
    }

    /// The backends in the slots of both sets.
    pub(super) fn backends(&self) -> BTreeSet<Backend> {
        self.inside_slots.iter().chain(&*self.outside_slots).flatten().copied().collect()
    }

    /// It leads somewhere.
    pub(super) fn forwards(&self) -> bool {
        self.service.is_some()
    }

    pub(super) fn session(&self) -> Option<u32> {
        self.session
    }
}

/// Puts `desired` into slots, leaving every backend where it is unless its slot goes away. The new ones, and those that
/// lose their slot, fill the holes.
fn reassign(realized: &[Option<Backend>], desired: &[Backend]) -> Box<[Option<Backend>]> {
    let mut homeless: BTreeSet<Backend> = desired.iter().copied().collect();
    let mut slots: Box<[Option<Backend>]> = (0..homeless.len())
        .map(|index| realized.get(index).copied().flatten().filter(|backend| homeless.remove(backend)))
        .collect();
    for (hole, backend) in slots.iter_mut().filter(|slot| slot.is_none()).zip(homeless) {
        *hole = Some(backend);
    }
    slots
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;
    use std::time::Duration;

    use portolan_model::Protocol;
    use portolan_model::forwarding::{Affinity, Family, FrontendKind};
    use proptest::prelude::*;

    use super::super::entries::chain_of;
    use super::super::state::State;
    use super::super::wire::map_of;
    use super::*;

    fn backends(numbers: &[u8]) -> Vec<Backend> {
        numbers.iter().map(|n| Backend { address: IpAddr::from([10, 0, 0, *n]), port: 80 }).collect()
    }

    fn slots(numbers: &[u8]) -> Box<[Option<Backend>]> {
        backends(numbers).into_iter().map(Some).collect()
    }

    #[test]
    fn slots_stay_where_they_are() {
        let realized = slots(&[3, 1, 2]);
        assert_eq!(reassign(&realized, &backends(&[1, 2, 3])), realized);
        assert_eq!(reassign(&realized, &backends(&[1, 2])), slots(&[2, 1]), "the last moves into the hole");
        assert_eq!(reassign(&realized, &backends(&[1, 2, 3, 4])), slots(&[3, 1, 2, 4]));
        assert_eq!(reassign(&realized, &backends(&[1, 2, 4])), slots(&[4, 1, 2]));
        assert_eq!(reassign(&realized, &[]), slots(&[]));
        let gap = [None, backends(&[1]).pop()];
        assert_eq!(reassign(&gap, &backends(&[1, 2])), slots(&[2, 1]), "what was lost is filled again");
    }

    proptest! {
        #[test]
        fn slots_hold_exactly_what_is_desired(a in prop::collection::btree_set(0u8..40, 0..20), b in prop::collection::btree_set(0u8..40, 0..20)) {
            let (a, b) = (a.into_iter().collect::<Vec<_>>(), b.into_iter().collect::<Vec<_>>());
            let reassigned = reassign(&slots(&a), &backends(&b));
            let changed = reassigned.iter().zip(&slots(&a)).filter(|(new, old)| new != old).count();
            prop_assert!(changed <= a.iter().filter(|backend| !b.contains(backend)).count());
            let mut held: Vec<Backend> = reassigned.iter().flatten().copied().collect();
            held.sort_unstable();
            prop_assert_eq!(held, backends(&b));
        }

        #[test]
        fn what_is_desired_is_found_again(
            inside in prop::collection::btree_set(0u8..40, 0..9), outside in prop::collection::btree_set(0u8..40, 0..9),
            kind in 0usize..3, sticky in any::<bool>(), open in any::<bool>(), seed in any::<u64>(),
        ) {
            let target = |numbers: std::collections::BTreeSet<u8>, none: Target| match numbers.is_empty() {
                true => none,
                false => Target::Forward(backends(&numbers.into_iter().collect::<Vec<_>>()).into()),
            };
            let frontend = Frontend { place: Place::Node(Family::V4), protocol: Protocol::Tcp, port: 30_000 };
            let forwarding = FrontendForwarding {
                frontend,
                kind: FrontendKind::NodePort,
                inside: target(inside, if open { Target::Reject } else { Target::Drop }),
                outside: target(outside, Target::Drop),
                masquerade: [Masquerade::Outsiders, Masquerade::Everybody, Masquerade::NodeItself][kind],
                affinity: sticky.then(|| Affinity { timeout: Duration::from_secs(10), together: frontend }),
                sources: if open { Vec::new() } else { vec!["10.2.0.0/16".parse().unwrap(), "10.1.0.0/16".parse().unwrap()] },
            };
            let row = Row::desired(&forwarding, sticky.then_some(7), seed % 2 == 0, &Row::default());
            let mut entries: Vec<Entry> = row.entries(frontend).collect();
            prop_assert!(entries.is_sorted_by(|a, b| a.0 < b.0));
            prop_assert_eq!(entries.len(), row.len());
            let (mut counted, mut listed) = (BTreeMap::new(), BTreeMap::new());
            row.count(frontend, |key, count| *counted.entry(map_of(&key)).or_default() += count);
            entries.iter().for_each(|(key, _)| *listed.entry(map_of(key)).or_default() += 1);
            counted.retain(|_, count: &mut usize| *count > 0);
            prop_assert_eq!(counted, listed);
            prop_assert_eq!(entries.iter().filter_map(chain_of).collect::<Vec<_>>(), row.chains(frontend).collect::<Vec<_>>());
            // The kernel has no order.
            entries.sort_by_key(|(key, _)| {
                use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
                BuildHasherDefault::<DefaultHasher>::new().hash_one((key, seed))
            });
            let found = State::found(entries, []);
            prop_assert_eq!(found.row(&frontend).cloned().unwrap_or_default(), row);
        }
    }
}
