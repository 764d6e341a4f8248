//! The upper half against maps that fail one time in ten.

use std::cell::Cell;
use std::time::Duration;

use portolan_model::forwarding::{Affinity, Family, Masquerade, Place};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::sock::element::Head;

/// Maps in memory that check, after every write, what a socket could meet at that moment.
#[derive(Default)]
struct Memory {
    elements: BTreeMap<Key, Element>,
    room: Option<usize>,
    /// Fails one write in so many.
    failing: Option<(StdRng, u32)>,
    writes: usize,
    looks: Cell<usize>,
    /// Somebody else wrote to them.
    is_damaged: bool,
}

impl Memory {
    fn fails(&mut self) -> bool {
        self.failing.as_mut().is_some_and(|(rng, one_in)| rng.random_range(0..*one_in) == 0)
    }

    fn check(&self) {
        if self.is_damaged {
            return;
        }
        for element in self.elements.values() {
            let Element::Frontend(frontend, id, head) = *element else { continue };
            for index in 0..head.count {
                let slot = self.elements.get(&Key::Slot(id, index));
                assert!(slot.is_some(), "{frontend} leads to slot {index}, which is not there");
            }
        }
    }
}

impl Maps for Memory {
    fn put(&mut self, element: &Element) -> Result<(), Error> {
        if self.fails() {
            return Err(Error::Injected);
        }
        if !self.elements.contains_key(&element.key()) && self.room.is_some_and(|room| self.elements.len() >= room) {
            return Err(Error::Full { map: "slots", room: 0 });
        }
        self.writes += 1;
        self.elements.insert(element.key(), *element);
        self.check();
        Ok(())
    }

    fn delete(&mut self, key: &Key) -> Result<(), Error> {
        if self.fails() {
            return Err(Error::Injected);
        }
        self.writes += 1;
        self.elements.remove(key);
        self.check();
        Ok(())
    }

    fn read(&mut self) -> Result<Vec<Element>, Error> {
        Ok(self.elements.values().copied().collect())
    }

    fn holds(&self, element: &Element) -> Result<bool, Error> {
        self.looks.set(self.looks.get() + 1);
        Ok(self.elements.get(&element.key()) == Some(element))
    }

    fn frontends(&self) -> Result<Vec<Frontend>, Error> {
        let frontend = |key: &Key| match key {
            Key::Frontend(frontend) => Some(*frontend),
            _ => None,
        };
        Ok(self.elements.keys().filter_map(frontend).collect())
    }
}

fn id(number: u8) -> ServiceId {
    ServiceId::new("shop", &format!("s{number}"))
}

fn backends(numbers: &[u8]) -> Target {
    let numbers: BTreeSet<u8> = numbers.iter().copied().collect();
    let backend = |n| Backend { address: [10, 244, 0, n].into(), port: 8080 };
    if numbers.is_empty() { Target::Reject } else { Target::Forward(numbers.into_iter().map(backend).collect()) }
}

fn forwarding(number: u8, protocol: Protocol, target: &Target, affinity: Option<Duration>) -> ServiceForwarding {
    let place = Place::Address([10, 96, 0, number].into());
    let frontend = |place, port| FrontendForwarding {
        frontend: Frontend { place, protocol, port },
        kind: FrontendKind::ClusterIp,
        inside: target.clone(),
        outside: target.clone(),
        masquerade: Masquerade::Outsiders,
        affinity: affinity.map(|timeout| Affinity { timeout, together: Frontend { place, protocol, port } }),
        sources: Vec::new(),
    };
    let frontends = vec![frontend(place, 80), frontend(Place::Node(Family::V4), 30_000 + u16::from(number))];
    ServiceForwarding { frontends, ..ServiceForwarding::default() }
}

fn random(rng: &mut StdRng, number: u8) -> ServiceForwarding {
    if rng.random_range(0..8) == 0 {
        return ServiceForwarding::default();
    }
    let count = rng.random_range(0..7);
    let numbers: Vec<u8> = (0..count).map(|_| rng.random_range(1..20)).collect();
    let protocol = if number.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp };
    let affinity = (rng.random_range(0..3) == 0).then_some(Duration::from_secs(60));
    forwarding(number, protocol, &backends(&numbers), affinity)
}

/// What the maps hold, without the numbers that depend on what happened before.
fn shape(memory: &Memory) -> BTreeMap<Frontend, (Head, BTreeSet<Backend>, BTreeSet<Backend>)> {
    let mut shape = BTreeMap::new();
    for element in memory.elements.values() {
        if let Element::Frontend(frontend, id, head) = *element {
            let slots = memory.elements.values().filter_map(|element| match element {
                Element::Slot(of, _, backend) if *of == id => Some(*backend),
                _ => None,
            });
            let members = memory.elements.values().filter_map(|element| match element {
                Element::Member(of, backend) if *of == id => Some(*backend),
                _ => None,
            });
            shape.insert(frontend, (head, slots.collect(), members.collect()));
        }
    }
    shape
}

fn fresh(services: &BTreeMap<ServiceId, ServiceForwarding>) -> Reconciler<Memory> {
    let mut reconciler = Reconciler::restore(Memory::default()).unwrap();
    assert!(reconciler.apply(services, &NodeContext::default()).0.is_empty());
    reconciler
}

#[test]
fn a_thousand_changes_with_errors_and_restarts_leave_what_a_fresh_start_makes() {
    let seed = rand::rng().random();
    eprintln!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let memory = Memory { failing: Some((StdRng::seed_from_u64(seed), 10)), ..Memory::default() };
    let mut reconciler = Reconciler::restore(memory).unwrap();
    let mut all: BTreeMap<ServiceId, ServiceForwarding> = BTreeMap::new();
    let mut due: BTreeSet<ServiceId> = BTreeSet::new();
    for _ in 0..1_000 {
        let number = rng.random_range(1..12);
        all.insert(id(number), random(&mut rng, number));
        due.insert(id(number));
        if rng.random_range(0..50) == 0 {
            // Killed: the next one knows what it reads and hears of every Service.
            reconciler = Reconciler::restore(reconciler.maps).unwrap();
            due = all.keys().cloned().collect();
        }
        let change = due.iter().map(|id| (id.clone(), all[id].clone())).collect();
        let (refused, _) = reconciler.apply(&change, &NodeContext::default());
        due = refused.into_iter().map(|(id, _)| id).collect();
    }
    reconciler.maps.failing = None;
    assert!(reconciler.apply(&all, &NodeContext::default()).0.is_empty());
    reconciler.prune();
    let wanted = fresh(&all);
    assert_eq!(shape(&reconciler.maps), shape(&wanted.maps), "seed {seed}");
    assert_eq!(reconciler.maps.elements.len(), wanted.maps.elements.len(), "seed {seed}: something was left over");
    let nothing = all.keys().map(|id| (id.clone(), ServiceForwarding::default())).collect();
    reconciler.apply(&nothing, &NodeContext::default());
    assert!(reconciler.maps.elements.is_empty(), "seed {seed}: {:?}", reconciler.maps.elements);
}

#[test]
fn a_restart_writes_nothing_and_forgets_nobody() {
    let all = BTreeMap::from([
        (id(1), forwarding(1, Protocol::Udp, &backends(&[1, 2, 3]), None)),
        (id(2), forwarding(2, Protocol::Tcp, &backends(&[1]), Some(Duration::from_secs(60)))),
        (id(3), forwarding(3, Protocol::Tcp, &backends(&[]), None)),
    ]);
    let mut memory = fresh(&all).maps;
    memory.writes = 0;
    let mut second = Reconciler::restore(memory).unwrap();
    assert!(second.apply(&all, &NodeContext::default()).0.is_empty());
    assert_eq!((second.prune(), second.maps.writes), (Vec::new(), 0));
    // One went while nobody looked: its frontends go at the end, and with them the sockets.
    let mut third = Reconciler::restore(second.maps).unwrap();
    let left = all.iter().skip(1).map(|(id, forwarding)| (id.clone(), forwarding.clone())).collect();
    third.apply(&left, &NodeContext::default());
    assert_eq!(third.prune().len(), 6, "three backends of two frontends");
    assert_eq!(shape(&third.maps), shape(&fresh(&left).maps));
}

#[test]
fn what_has_no_room_is_named_and_the_rest_is_there() {
    let large = forwarding(1, Protocol::Tcp, &backends(&(1..60).collect::<Vec<_>>()), None);
    let small = forwarding(2, Protocol::Tcp, &backends(&[1, 2]), None);
    let mut reconciler = Reconciler::restore(Memory { room: Some(40), ..Memory::default() }).unwrap();
    let all = BTreeMap::from([(id(1), large), (id(2), small.clone())]);
    let (refused, _) = reconciler.apply(&all, &NodeContext::default());
    assert_eq!(
        refused.iter().map(|(id, error)| (id.clone(), error.to_string())).collect::<Vec<_>>(),
        [(id(1), "slots is full: the socket load balancer has room for 0; nftables forwards the rest".to_owned())]
    );
    assert_eq!(shape(&reconciler.maps), shape(&fresh(&BTreeMap::from([(id(2), small)])).maps));
}

#[test]
fn a_frontend_passes_from_one_service_to_another() {
    let service = forwarding(1, Protocol::Udp, &backends(&[1, 2]), None);
    for (first, second) in [(1, 2), (2, 1)] {
        let mut reconciler = fresh(&BTreeMap::from([(id(first), service.clone())]));
        let change = BTreeMap::from([(id(first), ServiceForwarding::default()), (id(second), service.clone())]);
        reconciler.maps.writes = 0;
        let (refused, gone) = reconciler.apply(&change, &NodeContext::default());
        assert!(refused.is_empty() && gone.is_empty());
        assert_eq!(reconciler.maps.writes, 0, "it is the same frontend");
        let owners: Vec<ServiceId> = reconciler.in_place().map(|(owner, ..)| owner.clone()).collect();
        assert_eq!(owners, [id(second), id(second)]);
        // Who gets it is heard of first, and who loses it in a change of its own.
        let got = BTreeMap::from([(id(first), service.clone())]);
        let lost = BTreeMap::from([(id(second), ServiceForwarding::default())]);
        reconciler.apply(&got, &NodeContext::default());
        reconciler.apply(&lost, &NodeContext::default());
        assert_eq!(reconciler.maps.writes, 0, "it is the same frontend still");
        assert_eq!(reconciler.in_place().count(), 2);
    }
}

#[test]
fn what_somebody_changed_by_hand_is_repaired() {
    let all = BTreeMap::from([(id(1), forwarding(1, Protocol::Udp, &backends(&[1, 2, 3]), None))]);
    let mut reconciler = fresh(&all);
    let whole = reconciler.maps.elements.clone();
    reconciler.maps.is_damaged = true;
    let damage: [fn(&mut BTreeMap<Key, Element>); 4] = [
        |elements| elements.clear(),
        |elements| elements.retain(|key, _| !matches!(key, Key::Slot(_, 1))),
        |elements| elements.extend([(Key::Counter(99), Element::Counter(99))]),
        |elements| elements.retain(|key, _| !matches!(key, Key::Frontend(_) | Key::Counter(_))),
    ];
    for damage in damage {
        damage(&mut reconciler.maps.elements);
        assert!(reconciler.reread().unwrap() > 0);
        reconciler.apply(&all, &NodeContext::default());
        reconciler.prune();
        assert_eq!(shape(&reconciler.maps), {
            let healthy = Memory { elements: whole.clone(), ..Memory::default() };
            shape(&healthy)
        });
        assert_eq!(reconciler.maps.elements.len(), whole.len());
        assert_eq!(reconciler.reread().unwrap(), 0);
    }
}

#[test]
fn a_look_is_bounded_and_the_next_goes_on_after_it() {
    let all: BTreeMap<_, _> =
        (1..=20).map(|n| (id(n), forwarding(n, Protocol::Udp, &backends(&[1, 2, 3]), None))).collect();
    let mut reconciler = fresh(&all);
    // Two frontends of eight elements each, a Service; a look ends with the Service that it began.
    let look = |reconciler: &mut Reconciler<Memory>| {
        reconciler.maps.looks.set(0);
        let as_left = reconciler.look(40).unwrap();
        assert!(reconciler.maps.looks.get() <= 40 + 16, "{}", reconciler.maps.looks.get());
        as_left
    };
    let pass = 20 * 16 / 40 + 1;
    assert!((0..2 * pass).all(|_| look(&mut reconciler)));
    reconciler.maps.is_damaged = true;
    let whole = reconciler.maps.elements.clone();
    let a_frontend = reconciler.rows.keys().next().copied().unwrap();
    let stranger = Frontend { port: 9, ..a_frontend };
    let some_head = |elements: &BTreeMap<Key, Element>| match elements[&Key::Frontend(a_frontend)] {
        Element::Frontend(_, id, head) => (id, head),
        _ => unreachable!(),
    };
    let (number, head) = some_head(&whole);
    let damages = [
        (Key::Frontend(a_frontend), None),
        (Key::Slot(number, 1), None),
        (Key::Slot(number, 1), Some(Element::Slot(number, 1, Backend { address: [9, 9, 9, 9].into(), port: 9 }))),
        (Key::Counter(number), None),
        (Key::Member(number, Backend { address: [10, 244, 0, 2].into(), port: 8080 }), None),
        (Key::Frontend(stranger), Some(Element::Frontend(stranger, 99, head))),
    ];
    for (key, element) in damages {
        match element {
            Some(element) => drop(reconciler.maps.elements.insert(key, element)),
            None => assert!(reconciler.maps.elements.remove(&key).is_some(), "{key:?}"),
        }
        let found = (0..2 * pass).position(|_| !look(&mut reconciler));
        assert!(found.is_some(), "{key:?} was not found");
        reconciler.maps.elements.clone_from(&whole);
        reconciler.looked_at = None;
    }
}
