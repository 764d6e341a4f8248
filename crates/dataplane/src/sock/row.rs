//! One frontend as it is and as it should be -> the writes that lead from one to the other.
//!
//! Invariant: after each single write the frontend leads only to backends that it had or shall have, each slot in use
//! is there, and a backend that somebody shall stay with is a member before it can be chosen. So there is no moment at
//! which a socket finds nothing, and stopping anywhere, by an error or by death, leaves something that works.
//!
//! Deliberately not here: swapping a whole array (map in map). Replacing an inner map makes the writer wait until no
//! program can still be running, which takes milliseconds; writing two elements takes two microseconds.

use std::collections::BTreeSet;

use portolan_model::forwarding::{Backend, Frontend};

use super::element::{Element, Head, Key, Operation, Verdict};

/// What the maps hold of one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Never used again for another frontend, so that who is just reading cannot end up with another's backends.
    pub id: u32,
    pub head: Option<Head>,
    pub counted: bool,
    /// From slot 0 on, without a gap; there may be more than the head says are in use.
    pub slots: Vec<Backend>,
    pub members: BTreeSet<Backend>,
}

/// What a frontend should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted<'a> {
    pub verdict: Verdict,
    /// Sorted; empty unless the verdict is to forward.
    pub backends: &'a [Backend],
    pub affinity_seconds: u32,
    /// The frontend by which clients are remembered, if they are.
    pub together: Frontend,
    /// Clients may stay with a backend.
    pub is_tracked: bool,
}

impl Row {
    pub(super) fn new(id: u32) -> Self {
        Self { id, head: None, counted: false, slots: Vec::new(), members: BTreeSet::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head.is_none() && !self.counted && self.slots.is_empty() && self.members.is_empty()
    }

    /// What the maps hold of it.
    pub(super) fn elements(&self, frontend: Frontend) -> impl Iterator<Item = Element> {
        let id = self.id;
        let slots = (0..).zip(&self.slots).map(move |(index, backend)| Element::Slot(id, index, *backend));
        (self.head.map(|head| Element::Frontend(frontend, id, head)).into_iter())
            .chain(slots)
            .chain(self.members.iter().map(move |backend| Element::Member(id, *backend)))
            .chain(self.counted.then_some(Element::Counter(id)))
    }

    /// The backends that sockets may be given.
    pub(super) fn in_use(&self) -> &[Backend] {
        let count = self.head.map_or(0, |head| head.count as usize);
        &self.slots[..count.min(self.slots.len())]
    }

    /// The writes, in the order they have to be made in. Nothing wanted takes the frontend away.
    pub(super) fn plan(&self, frontend: Frontend, wanted: Option<Wanted<'_>>) -> Vec<Operation> {
        let mut plan = Vec::new();
        let backends = wanted.map_or(&[][..], |wanted| wanted.backends);
        let tracked = wanted.is_some_and(|wanted| wanted.is_tracked);
        let is_wanted = |backend: &Backend| backends.binary_search(backend).is_ok();
        if tracked {
            let new = backends.iter().filter(|backend| !self.members.contains(backend));
            plan.extend(new.map(|backend| Operation::Put(Element::Member(self.id, *backend))));
        }
        if wanted.is_some() && !self.counted {
            plan.push(Operation::Put(Element::Counter(self.id)));
        }

        // Who stays, stays where it is; the others' places are filled with whom they lack, then the end grows.
        let kept = self.slots.len().min(backends.len());
        let mut placed = BTreeSet::new();
        let holes: Vec<usize> =
            (0..kept).filter(|index| !is_wanted(&self.slots[*index]) || !placed.insert(self.slots[*index])).collect();
        let missing = backends.iter().filter(|backend| !placed.contains(backend));
        for (index, backend) in holes.into_iter().chain(kept..).zip(missing) {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            plan.push(Operation::Put(Element::Slot(self.id, index, *backend)));
        }

        let head = wanted.map(|wanted| Head {
            verdict: wanted.verdict,
            count: u32::try_from(backends.len()).unwrap_or(u32::MAX),
            affinity_seconds: wanted.affinity_seconds,
            together: wanted.together,
        });
        if head != self.head {
            plan.push(match head {
                Some(head) => Operation::Put(Element::Frontend(frontend, self.id, head)),
                None => Operation::Delete(Key::Frontend(frontend)),
            });
        }

        for index in (backends.len()..self.slots.len()).rev() {
            plan.push(Operation::Delete(Key::Slot(self.id, u32::try_from(index).unwrap_or(u32::MAX))));
        }
        let gone = self.members.iter().filter(|backend| !tracked || !is_wanted(backend));
        plan.extend(gone.map(|backend| Operation::Delete(Key::Member(self.id, *backend))));
        if wanted.is_none() && self.counted {
            plan.push(Operation::Delete(Key::Counter(self.id)));
        }
        plan
    }

    /// The write was made.
    pub(super) fn note(&mut self, operation: &Operation) {
        match *operation {
            Operation::Put(Element::Frontend(_, _, head)) => self.head = Some(head),
            Operation::Put(Element::Slot(_, index, backend)) => match self.slots.get_mut(index as usize) {
                Some(slot) => *slot = backend,
                None => self.slots.push(backend),
            },
            Operation::Put(Element::Member(_, backend)) => drop(self.members.insert(backend)),
            Operation::Put(Element::Counter(_)) => self.counted = true,
            Operation::Delete(Key::Frontend(_)) => self.head = None,
            Operation::Delete(Key::Slot(_, index)) => self.slots.truncate(index as usize),
            Operation::Delete(Key::Member(_, backend)) => drop(self.members.remove(&backend)),
            Operation::Delete(Key::Counter(_)) => self.counted = false,
            Operation::Put(Element::NodeAddress(_)) | Operation::Delete(Key::NodeAddress(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use portolan_model::Protocol;
    use portolan_model::forwarding::Place;
    use proptest::prelude::*;

    use super::*;

    const FRONTEND: Frontend = Frontend {
        place: Place::Address(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1))),
        protocol: Protocol::Tcp,
        port: 80,
    };

    fn backends(numbers: &[u8]) -> Vec<Backend> {
        let sorted: BTreeSet<u8> = numbers.iter().copied().collect();
        sorted.into_iter().map(|n| Backend { address: [10, 244, 0, n].into(), port: 8080 }).collect()
    }

    fn wanted(backends: &[Backend], affinity_seconds: u32) -> Wanted<'_> {
        let verdict = if backends.is_empty() { Verdict::Reject } else { Verdict::Forward };
        Wanted { verdict, backends, affinity_seconds, together: FRONTEND, is_tracked: affinity_seconds > 0 }
    }

    fn carry_out(row: &mut Row, plan: &[Operation]) {
        for operation in plan {
            row.note(operation);
        }
    }

    #[test]
    fn one_backend_replaced_is_one_write() {
        let (before, after) = (backends(&[1, 2, 3]), backends(&[1, 3, 4]));
        let mut row = Row::new(5);
        let plan = row.plan(FRONTEND, Some(wanted(&before, 0)));
        carry_out(&mut row, &plan);
        let plan = row.plan(FRONTEND, Some(wanted(&after, 0)));
        assert_eq!(plan, [Operation::Put(Element::Slot(5, 1, backends(&[4])[0]))]);
    }

    #[test]
    fn the_last_moves_where_one_has_left() {
        let (before, after) = (backends(&[1, 2, 3]), backends(&[1, 3]));
        let mut row = Row::new(5);
        let plan = row.plan(FRONTEND, Some(wanted(&before, 0)));
        carry_out(&mut row, &plan);
        let plan = row.plan(FRONTEND, Some(wanted(&after, 0)));
        let head = Head { verdict: Verdict::Forward, count: 2, affinity_seconds: 0, together: FRONTEND };
        let expected = [
            Operation::Put(Element::Slot(5, 1, backends(&[3])[0])),
            Operation::Put(Element::Frontend(FRONTEND, 5, head)),
            Operation::Delete(Key::Slot(5, 2)),
        ];
        assert_eq!(plan, expected);
    }

    proptest! {
        /// From any state that an interrupted change can leave, to any other.
        #[test]
        fn every_step_leads_where_it_may_and_the_last_where_it_shall(
            steps in prop::collection::vec((prop::collection::vec(0u8..12, 0..10), 0u32..3, 0usize..40), 1..8)
        ) {
            let mut row = Row::new(1);
            for (numbers, affinity, stop) in steps {
                let wanted_backends = backends(&numbers);
                let wanted = wanted(&wanted_backends, affinity);
                let had: BTreeSet<Backend> = row.in_use().iter().copied().collect();
                let plan = row.plan(FRONTEND, Some(wanted));
                for operation in plan.iter().take(stop) {
                    row.note(operation);
                    let Some(head) = row.head else { continue };
                    prop_assert!(head.count as usize <= row.slots.len(), "a slot in use is not there");
                    prop_assert!(row.in_use().iter().all(|b| had.contains(b) || wanted_backends.contains(b)));
                    let is_sticky = head.affinity_seconds > 0 && affinity > 0;
                    prop_assert!(!is_sticky || row.in_use().iter().all(|b| row.members.contains(b)));
                }
                let rest = row.plan(FRONTEND, Some(wanted));
                carry_out(&mut row, &rest);
                let mut slots = row.slots.clone();
                slots.sort_unstable();
                prop_assert_eq!(&slots, &wanted_backends);
                prop_assert_eq!(row.in_use().len(), wanted_backends.len());
                prop_assert_eq!(row.plan(FRONTEND, Some(wanted)), []);
            }
            let plan = row.plan(FRONTEND, None);
            carry_out(&mut row, &plan);
            prop_assert!(row.is_empty());
        }
    }
}
