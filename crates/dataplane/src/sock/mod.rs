//! Services' forwarding -> sockets on this node that are led to a backend when they connect.
//!
//! | module | |
//! |---|---|
//! | `row` | one frontend -> the writes that change it, pure |
//! | `reconcile` | the upper half: which frontends a change touches, refusals, what was found |
//! | `element`, `wire` | what the maps hold, as values and as bytes |
//! | `maps` | the lower half: single writes |
//! | `programs`, `link` | loading, attaching, replacing and removing the programs of `bpf/sock.c` |
//! | `exempt` | who is left out |
//! | `lookup` | one destination, for `portolan trace` |
//! | `binds` | reports of binds that were refused |
//! | `connections` | which sockets a removed backend leaves |
//!
//! Invariants: nftables has everything that is here and more, so whatever is missing, refused or switched off is still
//! forwarded. Programs and maps are pinned: they work on while this process is away, and the next one adopts them.
//!
//! Deliberately not here: what should be forwarded where; source ranges, masquerading and drops, which stay with
//! nftables.
//!
//! Source: kernel `Documentation/bpf/prog_cgroup_sockopt.rst` for order and effect of several programs in a cgroup,
//! `map_hash.rst` for what an update is to a reader.

mod binds;
mod connections;
mod element;
mod error;
mod exempt;
mod link;
mod lookup;
mod maps;
mod namespace;
mod programs;
mod reconcile;
mod row;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portolan_model::ServiceId;
use portolan_model::forwarding::{Family, Frontend, NodeContext, ServiceForwarding};

pub(crate) use connections::Connections;
pub use error::Error;
pub use exempt::{Exempt, Exemptions};
pub use lookup::{Leads, Lookup, look_up};
pub use namespace::{cookie, cookie_of};
pub(crate) use reconcile::Gone;

use crate::Room;
use crate::ending::Ender;
use binds::BindLog;
use maps::{Clients, KernelMaps};
use reconcile::Reconciler;

/// Elements that an audit looks at: some milliseconds, in which no change is made. Of a thousand Services with ten
/// endpoints all are looked at each time.
const LOOK: usize = 16_384;

/// How much the maps have room for. Room costs 16 bytes an element, what is in it a hundred more; for a connection both
/// at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Addresses and ports of Services.
    pub frontends: u32,
    /// Backends, each counted once for every frontend that leads to it.
    pub backends: u32,
    /// Sockets connected at one time. Beyond it they work, but do not learn the Service's address as their peer's, and
    /// what goes over them is not counted.
    pub connections: u32,
}

impl Capacity {
    const NODE_ADDRESSES: u32 = 4_096;
    const EXEMPT: u32 = 16_384;
    const SESSIONS: u32 = 65_536;

    /// For the maps that forget what was not used for the longest time.
    fn sessions(self) -> u32 {
        self.connections.min(Self::SESSIONS)
    }

    /// Every map, and how many elements it has room for where that is not fixed.
    fn rooms(self) -> [(&'static str, Option<u32>); 13] {
        [
            ("frontends", Some(self.frontends)),
            ("slots", Some(self.backends)),
            ("members", Some(self.backends)),
            ("counters", Some(self.frontends)),
            ("node_addresses", Some(Self::NODE_ADDRESSES)),
            ("exempt", Some(Self::EXEMPT)),
            ("exempt_cgroups", Some(Self::EXEMPT)),
            ("connections", Some(self.connections)),
            ("sessions", Some(self.sessions())),
            ("replies", Some(self.sessions())),
            ("exempting", None),
            ("settings", None),
            ("refused_binds", None),
        ]
    }
}

impl Default for Capacity {
    /// Enough for 50,000 Services with two addresses and ten endpoints each.
    fn default() -> Self {
        Self { frontends: 1 << 17, backends: 1 << 20, connections: 1 << 16 }
    }
}

/// Where the socket programs work, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SockConfig {
    /// A directory of a cgroup v2 hierarchy: sockets of processes in it and below are led to backends.
    pub cgroup: PathBuf,
    /// A directory on a BPF file system, which is made when missing; all that is kept over a restart is in it.
    pub pin_dir: PathBuf,
    pub capacity: Capacity,
    /// How long a TCP connection to a backend that was removed may go on before it is ended; `None` for ever. Ending
    /// it breaks clients that wait for what the backend is still finishing.
    pub end_tcp_after: Option<Duration>,
    pub exempt: Exemptions,
}

impl SockConfig {
    #[must_use]
    pub fn new(cgroup: PathBuf, pin_dir: PathBuf) -> Self {
        Self { cgroup, pin_dir, capacity: Capacity::default(), end_tcp_after: None, exempt: Exemptions::default() }
    }
}

/// How often sockets were led through a frontend since it is there, and what went over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Led {
    /// TCP connections, and UDP sockets that connected.
    pub connections: u64,
    /// Datagrams that UDP sockets sent which did not.
    pub datagrams: u64,
    /// TCP segments in both directions, of connections that have ended.
    pub segments: u64,
    /// The data in these segments, each byte once however often it was sent.
    pub bytes: u64,
}

impl Led {
    /// What nftables would have counted for the same segments: with the headers of IP and TCP, as Linux writes them
    /// where both sides have timestamps, which is the rule.
    #[must_use]
    pub fn bytes_with_headers(&self, frontend: Frontend) -> u64 {
        let (ip, tcp) = (if frontend.family() == Family::V4 { 20 } else { 40 }, 32);
        self.bytes + self.segments * (ip + tcp)
    }
}

/// Keeps the maps of one set of socket programs as the Services say.
pub struct SockLb {
    config: SockConfig,
    links: Vec<PathBuf>,
    /// It was said that a map is getting full.
    was_warned: bool,
    reconciler: Reconciler<KernelMaps>,
    clients: Clients,
    ender: Ender,
    _binds: BindLog,
}

impl SockLb {
    /// Attaches the programs for the calling thread's network namespace, as the node's own, and adopts what an earlier
    /// life of this program left in the maps. Needs a tokio runtime.
    ///
    /// # Errors
    /// What the kernel lacks or refused; nothing is attached then that was not before.
    pub fn open(config: &SockConfig) -> Result<Self, Error> {
        let directory = programs::directory(config);
        let node = cookie().map_err(Error::Namespace)?;
        let links = programs::attach(config)?;
        config.exempt.attach(&directory)?;
        maps::set_node(&directory, node)?;
        let reconciler = Reconciler::restore(KernelMaps::open(&directory, &config.capacity)?)?;
        let clients = Clients::open(&directory, &config.capacity)?;
        let ender = Ender::start(Connections::open(&directory, &config.capacity)?, config.end_tcp_after);
        Ok(Self {
            config: config.clone(),
            links,
            was_warned: false,
            reconciler,
            clients,
            ender,
            _binds: BindLog::start(&directory)?,
        })
    }

    /// Brings the maps in line with these Services, which have the frontends that they hold and no other. When this
    /// returns, new sockets go by them. Gives the Services that nftables has to forward alone, with why.
    pub fn apply(
        &mut self,
        services: &BTreeMap<ServiceId, ServiceForwarding>,
        node: &NodeContext,
    ) -> Vec<(ServiceId, Error)> {
        let (refused, gone) = self.reconciler.apply(services, node);
        self.ender.end(gone);
        self.warn_before_full();
        refused
    }

    /// Once each time that a map comes to have little room left.
    fn warn_before_full(&mut self) {
        let Capacity { frontends, backends, .. } = self.config.capacity;
        let (frontends_used, backends_used) = self.reconciler.frontends_and_slots();
        let is_short = |(_, used, room): &(&str, usize, u32)| *used as u64 * 10 > u64::from(*room) * 9;
        let short = [("addresses", frontends_used, frontends), ("backends", backends_used, backends)];
        let short = short.into_iter().find(is_short);
        if let Some((what, used, room)) = short.filter(|_| !self.was_warned) {
            tracing::warn!(
                "{used} {what} of Services are in the socket load balancer, which has room for {room}; what has none will \
                 be left to nftables"
            );
        }
        self.was_warned = short.is_some();
    }

    /// Every Service has been applied: what an earlier life left and nobody asked for since is removed, other builds'
    /// programs included.
    pub fn synced(&mut self) {
        let gone = self.reconciler.prune();
        self.reconciler.fit();
        self.ender.end(gone);
        let own = programs::directory(&self.config);
        if let Err(error) = programs::remove(&self.config.pin_dir, Some(&own)) {
            tracing::warn!(%error, "another build's socket programs could not be removed");
        }
    }

    /// Looks at a part of the maps, each time at the next, and reads them back if something is amiss there, so that the
    /// next `apply` of all Services repairs what somebody changed; attaches the programs anew where somebody took one
    /// off. Says how much is to be repaired.
    ///
    /// # Errors
    /// When the maps cannot be read or the programs not attached.
    pub fn audit(&mut self) -> Result<usize, Error> {
        let taken_off = self.links.iter().filter(|link| !link.exists()).count();
        if taken_off > 0 {
            self.links = programs::attach(&self.config)?;
        }
        let amiss = if self.reconciler.look(LOOK)? { 0 } else { self.reconciler.reread()? };
        Ok(taken_off + amiss)
    }

    /// How often each frontend was used, in the order of Services.
    #[must_use]
    pub fn led(&self) -> Vec<(ServiceId, Frontend, Led)> {
        let led =
            |(service, frontend, id): (&ServiceId, _, _)| (service.clone(), frontend, self.reconciler.maps.count(id));
        self.reconciler.in_place().map(led).collect()
    }

    /// How full each map is. It costs a look at every socket that is led.
    #[must_use]
    pub fn rooms(&self) -> Vec<Room> {
        let of_services = self.reconciler.maps.rooms(&self.reconciler.occupancy());
        of_services.into_iter().chain(self.clients.rooms()).collect()
    }

    /// Waits until the sockets that earlier changes left without their backend are ended.
    pub async fn settled(&self) {
        self.ender.settle().await;
    }
}

/// Removes everything that a [`SockLb`] ever made with this pin directory. Connections go on.
///
/// # Errors
/// What could not be removed.
pub fn cleanup(pin_dir: &Path) -> Result<(), Error> {
    programs::remove(pin_dir, None)
}
