//! Answering ARP for the addresses this node owns, on one interface.
//!
//! Invariants: answering happens under the lock that ownership and fencing change under, so when [`L2Announcer::apply`]
//! returns, no further frame leaves for an address it took away; the clock is asked before every frame, so none leaves
//! after [`L2Announcer::set_alive_until`], even from a process that was stopped meanwhile; only requests are answered,
//! and only to who asked. Nothing is polled: the thread sleeps until a frame, a change or the next announcement.
//!
//! Why not give the address to an interface: then the node would take it for its own even where the data plane should
//! forward it, and a node that died slowly would go on answering.
//!
//! Source: packet(7), RFC 826, RFC 5227.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{LinkAddr, MsgFlags, bind, recv, send};
use portolan_model::{Delta, Snapshot};
use socket2::{Domain, Protocol, Socket, Type};

use crate::arp::{self, Mac};
use crate::owner::Ownership;
use crate::schedule::Schedule;

/// `ETH_P_ARP` as the kernel wants it, in network order.
const ARP: i32 = 0x0806u16.to_be() as i32;
/// Requests answered before announcements and the stop signal are looked at again.
const AT_ONCE: usize = 64;
/// Ethernet and ARP headers with the padding of the least frame.
const FRAME: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot list this machine's interfaces")]
    Interfaces { source: Errno },
    #[error("there is no interface {interface:?} with an Ethernet address: name the one that faces the clients")]
    NoInterface { interface: String },
    #[error("cannot open a packet socket on {interface} (CAP_NET_RAW is needed)")]
    Socket { interface: String, source: std::io::Error },
    #[error("cannot start the announcer's thread")]
    Thread { source: std::io::Error },
}

/// Answers for the external addresses that this node owns.
pub struct L2Announcer {
    ownership: Ownership,
    state: Arc<Mutex<State>>,
    /// A byte wakes the thread, closing stops it.
    wake: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    /// From then on the node may have been given up, and is silent.
    alive_until: Instant,
    /// The addresses owned, and when each is announced next.
    schedule: Schedule,
}

impl L2Announcer {
    /// Listens on the interface in the calling thread's network namespace, for the node of that name. It owns nothing
    /// before the first [`L2Announcer::apply`], and is silent before the first [`L2Announcer::set_alive_until`].
    ///
    /// # Errors
    /// When there is no such interface or packet sockets are not allowed.
    pub fn open(interface: &str, node: &str) -> Result<Self, Error> {
        let interfaces = getifaddrs().map_err(|source| Error::Interfaces { source })?;
        let mut links = interfaces.filter(|found| found.interface_name == interface);
        let link = links.find_map(|found| found.address.as_ref().and_then(|address| address.as_link_addr().copied()));
        let missing = || Error::NoInterface { interface: interface.into() };
        let link = link.ok_or_else(missing)?;
        let mac = link.addr().filter(|mac| *mac != [0; 6]).ok_or_else(missing)?;
        let socket = packet_socket(&link).map_err(|source| Error::Socket { interface: interface.into(), source })?;
        let state = Arc::new(Mutex::new(State { alive_until: Instant::now(), schedule: Schedule::default() }));
        let answerer = Answerer { socket, mac, interface: interface.into(), state: state.clone() };
        let started = UnixStream::pair().and_then(|(wake, woken)| {
            woken.set_nonblocking(true)?;
            wake.set_nonblocking(true)?;
            let thread = std::thread::Builder::new().name("lb-l2".into()).spawn(move || answerer.run(&woken))?;
            Ok((wake, thread))
        });
        let (wake, thread) = started.map_err(|source| Error::Thread { source })?;
        Ok(Self { ownership: Ownership::new(node), state, wake: Some(wake), thread: Some(thread) })
    }

    /// Takes in what the delta names. What this node no longer owns it does not answer for once this returns; what came
    /// to it is announced.
    pub fn apply(&mut self, snapshot: &Snapshot, delta: &Delta) {
        let change = self.ownership.apply(snapshot, delta);
        if change.gained.is_empty() && change.lost.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut state = lock(&self.state);
        change.lost.iter().filter_map(v4).for_each(|address| state.schedule.end(address));
        change.gained.iter().filter_map(v4).for_each(|address| state.schedule.begin(address, now));
        drop(state);
        tracing::info!(gained = ?change.gained, lost = ?change.lost, "external addresses moved");
        self.wake();
    }

    /// Fencing: a node that cannot renew its Lease may have been given up by the others and must not answer. So it is
    /// given a time until which it surely has not been, and is silent from then on. Coming back, it announces what it
    /// owns.
    ///
    /// After a silence, say so only when the snapshot is fresh: while this node was given up, others took its
    /// addresses.
    pub fn set_alive_until(&self, until: Instant) {
        let mut state = lock(&self.state);
        let now = Instant::now();
        let revived = !state.is_alive(now);
        if revived {
            state.schedule.begin_all(now);
        }
        state.alive_until = until;
        drop(state);
        if revived {
            self.wake();
        }
    }

    /// What this node answers for while it is alive, in order.
    #[must_use]
    pub fn owned(&self) -> Vec<IpAddr> {
        self.ownership.owned().collect()
    }

    fn wake(&self) {
        // A full pipe wakes as well as one more byte would.
        let _ = self.wake.as_ref().map(|mut wake| wake.write(&[0]));
    }
}

impl Drop for L2Announcer {
    fn drop(&mut self) {
        lock(&self.state).alive_until = Instant::now();
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            // Its panic has been told already.
            let _ = thread.join();
        }
    }
}

impl State {
    fn is_alive(&self, now: Instant) -> bool {
        now < self.alive_until
    }
}

/// The state stays sound whatever panicked.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// IPv6 addresses are owned but not announced.
fn v4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    }
}

/// A socket for the ARP frames of one interface.
fn packet_socket(link: &LinkAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(Protocol::from(ARP)))?;
    // The link's address names no protocol, which keeps the socket's.
    bind(socket.as_raw_fd(), link)?;
    // Until it was bound it heard every interface.
    let mut frame = [0; FRAME];
    while recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()).is_ok() {}
    Ok(socket)
}

struct Answerer {
    socket: Socket,
    mac: Mac,
    interface: String,
    state: Arc<Mutex<State>>,
}

impl Answerer {
    /// Runs until the other end of `woken` is closed.
    fn run(&self, mut woken: &UnixStream) {
        loop {
            let mut watched =
                [PollFd::new(woken.as_fd(), PollFlags::POLLIN), PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut watched, self.patience()) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!(interface = self.interface, %error, "external addresses are no longer answered for");
                    return;
                }
            }
            // Woken or not, everything is looked at again.
            if let Ok(0) = woken.read(&mut [0; 64]) {
                return;
            }
            self.answer();
            self.announce();
        }
    }

    /// Until the next announcement.
    fn patience(&self) -> PollTimeout {
        let state = lock(&self.state);
        let Some(next) = state.schedule.next().filter(|_| state.is_alive(Instant::now())) else {
            return PollTimeout::NONE;
        };
        // Rounded up, or the last millisecond would be spent spinning.
        let millis = next.saturating_duration_since(Instant::now()).as_micros().div_ceil(1_000);
        PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
    }

    fn answer(&self) {
        let mut frame = [0; FRAME];
        for _ in 0..AT_ONCE {
            let length = match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return,
                // The link went down: it will be heard again when it is back.
                Err(Errno::EINTR | Errno::ENETDOWN) => continue,
                Err(error) => {
                    tracing::warn!(interface = self.interface, %error, "cannot receive ARP requests");
                    return;
                }
            };
            let Some(request) = arp::parse(&frame[..length]).filter(|request| request.sender_mac != self.mac) else {
                continue;
            };
            let state = lock(&self.state);
            if state.is_alive(Instant::now()) && state.schedule.contains(request.target) {
                self.send(&arp::reply(self.mac, &request));
            }
        }
    }

    fn announce(&self) {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if !state.is_alive(now) {
            return;
        }
        for address in state.schedule.due(now) {
            arp::announcements(self.mac, address).iter().for_each(|frame| self.send(frame));
        }
    }

    /// A frame that cannot be sent is lost, as frames are; who asked asks again.
    fn send(&self, frame: &arp::Frame) {
        if let Err(error) = send(self.socket.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT) {
            tracing::debug!(interface = self.interface, %error, "cannot send an ARP frame");
        }
    }
}
