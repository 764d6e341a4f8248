//! The DNS server of a node: threads for UDP, one for TCP and forwarding, and the zone they share.
//!
//! Invariants: the sockets and threads belong to the network namespace of the thread that called [`DnsServer::bind`];
//! until [`DnsServer::synced`] the zone's names are answered with SERVFAIL, never with NXDOMAIN; dropping the server
//! stops its threads.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use portolan_model::{Delta, ServiceId, Snapshot};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinSet;

use crate::forward::{Forwarder, queue};
use crate::responder::{Published, Responder};
use crate::zone::Zone;
use crate::{tcp, udp};

/// Room for bursts, in octets; the kernel takes less if it must.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Another process may have the UDP port that the kernel chose for TCP.
const PORT_ATTEMPTS: usize = 16;

#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// UDP and TCP; port 0 is chosen by the kernel. Addresses of this machine, one by one: a reply from a wildcard
    /// address might come from another than was asked.
    pub listen: Vec<SocketAddr>,
    /// As in `cluster.local`.
    pub domain: String,
    /// Seconds; 5 is usual.
    pub ttl: u32,
    /// Who is asked for all other names, in order. Without any such questions are refused.
    pub upstreams: Vec<SocketAddr>,
    /// For UDP; at least 1, and more than there are cores is no use.
    pub threads: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{domain:?} cannot be the cluster's domain: give a name such as cluster.local, of at most 56 characters")]
    Domain { domain: String },
    #[error("no address to listen on: name at least one")]
    NoAddress,
    #[error("{address} is both a listening address and an upstream server, which would loop: remove one")]
    Loop { address: SocketAddr },
    #[error("cannot listen on {address} ({transport})")]
    Listen { address: SocketAddr, transport: &'static str, source: io::Error },
    #[error("cannot start the DNS server's threads")]
    Thread { source: io::Error },
}

pub struct DnsServer {
    zone: Zone,
    synced: bool,
    /// Services with more records than a reply holds, each told of in the log once.
    outgrown: BTreeSet<ServiceId>,
    responder: Arc<Responder>,
    addresses: Vec<SocketAddr>,
    threads: Vec<JoinHandle<()>>,
    /// Closing it stops the threads.
    stop: Option<UnixStream>,
}

impl DnsServer {
    /// Listens, and answers SERVFAIL for the cluster's names until [`DnsServer::synced`]. The sockets are made in the
    /// calling thread's network namespace.
    ///
    /// # Errors
    /// When the configuration makes no sense or an address cannot be listened on.
    pub fn bind(config: ServerConfig) -> Result<Self, Error> {
        let ServerConfig { listen, domain, ttl, upstreams, threads } = config;
        let zone = Zone::new(&domain, ttl).ok_or(Error::Domain { domain })?;
        if listen.is_empty() {
            return Err(Error::NoAddress);
        }
        if let Some(address) = upstreams.iter().find(|upstream| listen.contains(upstream)) {
            return Err(Error::Loop { address: *address });
        }
        let threads = threads.max(1);
        let mut addresses = Vec::new();
        let mut tcp_listeners = Vec::new();
        let mut udp_sockets: Vec<Vec<UdpSocket>> = (0..threads).map(|_| Vec::new()).collect();
        for address in listen {
            let (listener, sockets) = listen_on(address, threads)?;
            addresses.push(listener.local_addr().map_err(listen_error(address, "TCP"))?);
            tcp_listeners.push(listener);
            udp_sockets.iter_mut().zip(sockets).for_each(|(thread, socket)| thread.push(socket));
        }
        let (jobs, forwarder) = if upstreams.is_empty() {
            (None, None)
        } else {
            let (sender, receiver) = queue();
            (Some(sender), Some(Forwarder::new(&upstreams, receiver)))
        };
        let published = Published { zone: zone.clone(), synced: false };
        let responder = Arc::new(Responder::new(Some(published), jobs));
        let mut server = Self {
            zone,
            synced: false,
            outgrown: BTreeSet::new(),
            responder,
            addresses,
            threads: Vec::new(),
            stop: None,
        };
        server.start(udp_sockets, tcp_listeners, forwarder).map_err(|source| Error::Thread { source })?;
        Ok(server)
    }

    fn start(
        &mut self,
        udp_sockets: Vec<Vec<UdpSocket>>,
        tcp_listeners: Vec<TcpListener>,
        forwarder: Option<Forwarder>,
    ) -> io::Result<()> {
        let (stop, stopped) = UnixStream::pair()?;
        self.stop = Some(stop);
        for (index, sockets) in udp_sockets.into_iter().enumerate() {
            let (responder, stopped) = (self.responder.clone(), stopped.try_clone()?);
            self.spawn(format!("dns-udp-{index}"), move || {
                if let Err(error) = udp::serve(sockets, &responder, &stopped) {
                    tracing::error!(%error, "a DNS thread cannot go on");
                }
            })?;
        }
        stopped.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let responder = self.responder.clone();
        self.spawn("dns-tcp".into(), move || {
            if let Err(error) = runtime.block_on(serve_slowly(tcp_listeners, forwarder, responder, stopped)) {
                tracing::error!(%error, "DNS over TCP and forwarding cannot go on");
            }
        })
    }

    fn spawn(&mut self, name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name).spawn(work)?);
        Ok(())
    }

    /// The addresses listened on, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Takes in what the delta names, and publishes it.
    pub fn apply(&mut self, snapshot: &Snapshot, delta: &Delta) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // The serial wraps in 2106, as serials may.
        let serial = u32::try_from(now.as_secs() & u64::from(u32::MAX)).unwrap_or_default();
        // Before it is synced nobody is answered from it, and a zone that is not shared changes in place.
        if self.zone.apply(snapshot, delta, serial) {
            self.tell_of_outgrown(delta);
            if self.synced {
                self.publish();
            }
        }
    }

    fn tell_of_outgrown(&mut self, delta: &Delta) {
        for id in &delta.services {
            if !self.zone.outgrows_every_reply(id) {
                self.outgrown.remove(id);
            } else if self.outgrown.insert(id.clone()) {
                let (namespace, service) = (&id.namespace, &id.name);
                tracing::warn!(
                    %namespace,
                    %service,
                    "a DNS message cannot hold all records of this Service: replies have as many as fit, and are truncated"
                );
            }
        }
    }

    /// The snapshot is whole: what is not in it does not exist.
    pub fn synced(&mut self) {
        self.synced = true;
        self.publish();
    }

    fn publish(&self) {
        self.responder.publish(self.zone.clone(), self.synced);
    }

    /// Whether every name is being answered for.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.synced && self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// Stops listening and waits for the threads.
    pub fn shutdown(self) {}
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.stop = None;
        for thread in self.threads.drain(..) {
            // Its panic has been told already.
            let _ = thread.join();
        }
    }
}

/// Everything but UDP, until the other end of `stopped` is closed.
async fn serve_slowly(
    listeners: Vec<TcpListener>,
    forwarder: Option<Forwarder>,
    responder: Arc<Responder>,
    stopped: UnixStream,
) -> io::Result<()> {
    let stopped = tokio::net::UnixStream::from_std(stopped)?;
    let mut parts = JoinSet::new();
    for listener in listeners {
        parts.spawn(tcp::serve(tokio::net::TcpListener::from_std(listener)?, responder.clone()));
    }
    if let Some(forwarder) = forwarder {
        parts.spawn(forwarder.run());
    }
    tokio::select! {
        outcome = stopped.readable() => outcome,
        // None of them ends by itself.
        Some(Err(error)) = parts.join_next() => Err(io::Error::other(error)),
    }
}

fn listen_error(address: SocketAddr, transport: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Listen { address, transport, source }
}

/// A TCP listener, and a UDP socket for each thread: the kernel spreads clients over them.
fn listen_on(address: SocketAddr, threads: usize) -> Result<(TcpListener, Vec<UdpSocket>), Error> {
    let mut attempt = 1;
    loop {
        // Only one process can have the TCP port, so that two servers never share the UDP port by accident.
        let tcp = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        };
        let (chosen, listener) = tcp().map_err(listen_error(address, "TCP"))?;
        match (0..threads).map(|_| udp_socket(chosen)).collect() {
            Ok(sockets) => return Ok((listener, sockets)),
            Err(_) if address.port() == 0 && attempt < PORT_ATTEMPTS => attempt += 1,
            Err(source) => return Err(listen_error(chosen, "UDP")(source)),
        }
    }
}

fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    // Best effort: a small buffer loses bursts and nothing else.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.bind(&address.into())?;
    Ok(socket.into())
}
