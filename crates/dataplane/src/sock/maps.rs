//! The lower half: elements -> the kernel's maps.

use std::path::Path;

use aya::maps::{Array, HashMap, MapData, MapError};
use aya::sys::SyscallError;
use nix::errno::Errno;
use portolan_model::forwarding::Frontend;

use super::element::{Element, Key};
use super::reconcile::Occupancy;
use super::{Capacity, Error, Led, wire};
use crate::Room;

/// What the upper half needs of the kernel. Deleting the absent succeeds.
pub(super) trait Maps {
    fn put(&mut self, element: &Element) -> Result<(), Error>;
    fn delete(&mut self, key: &Key) -> Result<(), Error>;
    /// All there is, in no order.
    fn read(&mut self) -> Result<Vec<Element>, Error>;
    /// Whether this very element is there; of a counter, whatever it has counted.
    fn holds(&self, element: &Element) -> Result<bool, Error>;
    /// All frontends there are, in no order.
    fn frontends(&self) -> Result<Vec<Frontend>, Error>;
}

/// One hash map, and what to say of it.
pub(super) struct Table<const K: usize, const V: usize> {
    map: HashMap<MapData, [u8; K], [u8; V]>,
    name: &'static str,
    room: u32,
}

impl<const K: usize, const V: usize> Table<K, V> {
    pub(super) fn open(directory: &Path, name: &'static str, room: u32) -> Result<Self, Error> {
        let read = |source| Error::Read { map: name, source: Box::new(source) };
        let map = MapData::from_pin(directory.join(name)).map_err(read)?;
        let map = HashMap::try_from(aya::maps::Map::from_map_data(map).map_err(read)?).map_err(read)?;
        Ok(Self { map, name, room })
    }

    pub(super) fn put(&mut self, key: [u8; K], value: [u8; V]) -> Result<(), Error> {
        match self.map.insert(key, value, 0) {
            Ok(()) => Ok(()),
            Err(source) if errno(&source) == Some(Errno::E2BIG) => Err(Error::Full { map: self.name, room: self.room }),
            Err(source) => Err(Error::Write { map: self.name, source: Box::new(source) }),
        }
    }

    pub(super) fn delete(&mut self, key: &[u8; K]) -> Result<(), Error> {
        match self.map.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(source) if errno(&source) == Some(Errno::ENOENT) => Ok(()),
            Err(source) => Err(Error::Write { map: self.name, source: Box::new(source) }),
        }
    }

    /// `None` also where it cannot be read.
    pub(super) fn get(&self, key: &[u8; K]) -> Option<[u8; V]> {
        self.find(key).ok().flatten()
    }

    fn find(&self, key: &[u8; K]) -> Result<Option<[u8; V]>, Error> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(Error::Read { map: self.name, source: Box::new(source) }),
        }
    }

    fn holds(&self, key: &[u8; K], value: &[u8; V]) -> Result<bool, Error> {
        Ok(self.find(key)?.as_ref() == Some(value))
    }

    fn count(&self) -> usize {
        self.map.keys().filter(Result::is_ok).count()
    }

    fn room(&self, used: usize) -> Room {
        Room { map: self.name, used, room: Some(self.room) }
    }

    fn read_keys(&self, mut each: impl FnMut([u8; K])) -> Result<(), Error> {
        for key in self.map.keys() {
            each(key.map_err(|source| Error::Read { map: self.name, source: Box::new(source) })?);
        }
        Ok(())
    }

    pub(super) fn read(&self, mut each: impl FnMut([u8; K], [u8; V])) -> Result<(), Error> {
        for entry in self.map.iter() {
            match entry {
                Ok((key, value)) => each(key, value),
                Err(source) => return Err(Error::Read { map: self.name, source: Box::new(source) }),
            }
        }
        Ok(())
    }
}

/// The maps that are about sockets and who has them, where elements come and go without the upper half.
pub(super) struct Clients {
    exempt: Table<8, 4>,
    exempt_cgroups: Table<8, 4>,
    connections: Table<8, 48>,
    sessions: Table<32, 32>,
    replies: Table<32, 20>,
}

impl Clients {
    pub(super) fn open(directory: &Path, capacity: &Capacity) -> Result<Self, Error> {
        Ok(Self {
            exempt: Table::open(directory, "exempt", Capacity::EXEMPT)?,
            exempt_cgroups: Table::open(directory, "exempt_cgroups", Capacity::EXEMPT)?,
            connections: Table::open(directory, "connections", capacity.connections)?,
            sessions: Table::open(directory, "sessions", capacity.sessions())?,
            replies: Table::open(directory, "replies", capacity.sessions())?,
        })
    }

    /// How full each of them is. It costs a look at every key.
    pub(super) fn rooms(&self) -> [Room; 5] {
        [
            self.exempt.room(self.exempt.count()),
            self.exempt_cgroups.room(self.exempt_cgroups.count()),
            self.connections.room(self.connections.count()),
            // These let go of what was not used for the longest time.
            Room { room: None, ..self.sessions.room(self.sessions.count()) },
            Room { room: None, ..self.replies.room(self.replies.count()) },
        ]
    }
}

fn errno(error: &MapError) -> Option<Errno> {
    match error {
        MapError::SyscallError(SyscallError { io_error, .. }) => io_error.raw_os_error().map(Errno::from_raw),
        _ => None,
    }
}

/// The maps pinned in one directory.
pub(super) struct KernelMaps {
    frontends: Table<20, 56>,
    slots: Table<8, 28>,
    members: Table<24, 4>,
    counters: Table<4, 32>,
    node_addresses: Table<16, 4>,
}

impl KernelMaps {
    pub(super) fn open(directory: &Path, capacity: &Capacity) -> Result<Self, Error> {
        Ok(Self {
            frontends: Table::open(directory, "frontends", capacity.frontends)?,
            slots: Table::open(directory, "slots", capacity.backends)?,
            members: Table::open(directory, "members", capacity.backends)?,
            counters: Table::open(directory, "counters", capacity.frontends)?,
            node_addresses: Table::open(directory, "node_addresses", Capacity::NODE_ADDRESSES)?,
        })
    }

    pub(super) fn count(&self, id: u32) -> Led {
        self.counters.get(&id.to_ne_bytes()).as_ref().map(wire::read_counter).unwrap_or_default()
    }
}

impl KernelMaps {
    /// How full each of them is, by what the upper half knows.
    pub(super) fn rooms(&self, used: &Occupancy) -> [Room; 5] {
        [
            self.frontends.room(used.frontends),
            self.slots.room(used.slots),
            self.members.room(used.members),
            self.counters.room(used.counters),
            self.node_addresses.room(used.node_addresses),
        ]
    }
}

impl Maps for KernelMaps {
    fn put(&mut self, element: &Element) -> Result<(), Error> {
        match *element {
            Element::Frontend(frontend, id, head) => match wire::frontend_key(frontend) {
                Some(key) => self.frontends.put(key, wire::frontend_value(&key, id, head)),
                None => Ok(()),
            },
            Element::Slot(id, index, backend) => {
                let key = wire::slot_key(id, index);
                self.slots.put(key, wire::slot_value(&key, backend))
            }
            Element::Member(id, backend) => self.members.put(wire::member_key(id, backend), [0; 4]),
            Element::Counter(id) => self.counters.put(id.to_ne_bytes(), [0; 32]),
            Element::NodeAddress(address) => self.node_addresses.put(wire::address(address), [0; 4]),
        }
    }

    fn delete(&mut self, key: &Key) -> Result<(), Error> {
        match *key {
            Key::Frontend(frontend) => match wire::frontend_key(frontend) {
                Some(key) => self.frontends.delete(&key),
                None => Ok(()),
            },
            Key::Slot(id, index) => self.slots.delete(&wire::slot_key(id, index)),
            Key::Member(id, backend) => self.members.delete(&wire::member_key(id, backend)),
            Key::Counter(id) => self.counters.delete(&id.to_ne_bytes()),
            Key::NodeAddress(address) => self.node_addresses.delete(&wire::address(address)),
        }
    }

    fn holds(&self, element: &Element) -> Result<bool, Error> {
        match *element {
            Element::Frontend(frontend, id, head) => match wire::frontend_key(frontend) {
                Some(key) => self.frontends.holds(&key, &wire::frontend_value(&key, id, head)),
                None => Ok(true),
            },
            Element::Slot(id, index, backend) => {
                let key = wire::slot_key(id, index);
                self.slots.holds(&key, &wire::slot_value(&key, backend))
            }
            Element::Member(id, backend) => Ok(self.members.find(&wire::member_key(id, backend))?.is_some()),
            Element::Counter(id) => Ok(self.counters.find(&id.to_ne_bytes())?.is_some()),
            Element::NodeAddress(address) => Ok(self.node_addresses.find(&wire::address(address))?.is_some()),
        }
    }

    fn frontends(&self) -> Result<Vec<Frontend>, Error> {
        let mut found = Vec::new();
        self.frontends.read_keys(|key| found.extend(wire::read_frontend_key(&key, 0)))?;
        Ok(found)
    }

    fn read(&mut self) -> Result<Vec<Element>, Error> {
        let mut elements = Vec::new();
        self.frontends.read(|key, value| {
            let frontend: Option<Frontend> = wire::read_frontend_key(&key, 0);
            if let Some((frontend, (id, head))) = frontend.zip(wire::read_frontend_value(&value)) {
                elements.push(Element::Frontend(frontend, id, head));
            }
        })?;
        self.slots.read(|key, value| {
            let (id, index) = wire::read_slot_key(&key);
            elements.push(Element::Slot(id, index, wire::read_slot_value(&value)));
        })?;
        self.members.read(|key, _| {
            let (id, backend) = wire::read_member_key(&key);
            elements.push(Element::Member(id, backend));
        })?;
        self.counters.read(|key, _| elements.push(Element::Counter(u32::from_ne_bytes(key))))?;
        self.node_addresses.read(|key, _| elements.push(Element::NodeAddress(wire::read_address(&key))))?;
        Ok(elements)
    }
}

/// Tells the programs which namespace is the node's own.
pub(super) fn set_node(directory: &Path, cookie: u64) -> Result<(), Error> {
    Single::open(directory, "settings")?.set(cookie.to_ne_bytes())
}

/// Bits that are raised and never lowered.
pub(super) struct Flags(Single<4>);

impl Flags {
    pub(super) fn open(directory: &Path, name: &'static str) -> Result<Self, Error> {
        Ok(Self(Single::open(directory, name)?))
    }

    pub(super) fn raise(&mut self, bit: u32) -> Result<(), Error> {
        let raised = u32::from_ne_bytes(self.0.get()?);
        self.0.set((raised | 1 << bit).to_ne_bytes())
    }
}

/// A map of one value.
struct Single<const V: usize> {
    map: Array<MapData, [u8; V]>,
    name: &'static str,
}

impl<const V: usize> Single<V> {
    fn open(directory: &Path, name: &'static str) -> Result<Self, Error> {
        let read = |source| Error::Read { map: name, source: Box::new(source) };
        let map = MapData::from_pin(directory.join(name)).and_then(aya::maps::Map::from_map_data).map_err(read)?;
        Ok(Self { map: Array::try_from(map).map_err(read)?, name })
    }

    fn get(&self) -> Result<[u8; V], Error> {
        self.map.get(&0, 0).map_err(|source| Error::Read { map: self.name, source: Box::new(source) })
    }

    fn set(&mut self, value: [u8; V]) -> Result<(), Error> {
        self.map.set(0, value, 0).map_err(|source| Error::Write { map: self.name, source: Box::new(source) })
    }
}
