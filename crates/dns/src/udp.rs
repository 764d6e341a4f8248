//! The hot path: a thread that receives queries in batches and sends the replies in batches.
//!
//! Invariants: no lock or waiting between a batch's receipt and its replies, and no allocation for a usual query; a
//! reply that cannot be sent is dropped, never waited for. The thread sleeps only while every socket is empty.
//!
//! Source: recvmmsg(2), sendmmsg(2).

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};

use crate::forward::ReplyTo;
use crate::query::{MAX_UDP, Transport};
use crate::responder::Responder;

/// Queries taken at once.
const BATCH: usize = 64;
/// A longer query is cut off and then malformed; nobody has a use for one.
const QUERY: usize = 1232;

/// One listening socket with the memory for its batches.
struct Port {
    socket: Arc<UdpSocket>,
    received: MultiHeaders<SockaddrStorage>,
    sent: MultiHeaders<SockaddrStorage>,
    queries: Vec<[u8; QUERY]>,
    replies: Vec<Vec<u8>>,
    peers: Vec<Option<SockaddrStorage>>,
}

/// Answers what comes to the sockets, which must not block, until the other end of `stop` is closed.
pub(crate) fn serve(sockets: Vec<UdpSocket>, responder: &Responder, stop: &UnixStream) -> nix::Result<()> {
    let mut ports: Vec<Port> = sockets.into_iter().map(Port::new).collect();
    let mut turn = 0;
    loop {
        let ready: Vec<bool> = {
            let watched = std::iter::once(stop.as_fd()).chain(ports.iter().map(|port| port.socket.as_fd()));
            let mut watched: Vec<_> = watched.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            match poll(&mut watched, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                outcome => outcome?,
            };
            watched.iter().map(|watched| watched.any().unwrap_or(true)).collect()
        };
        if ready[0] {
            return Ok(());
        }
        for (port, _) in ports.iter_mut().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            // The memory for a whole batch keeps one busy port from starving the others: one batch each.
            port.batch(responder, &mut turn);
        }
    }
}

impl Port {
    fn new(socket: UdpSocket) -> Self {
        Self {
            socket: Arc::new(socket),
            received: MultiHeaders::preallocate(BATCH, None),
            sent: MultiHeaders::preallocate(BATCH, None),
            queries: vec![[0; QUERY]; BATCH],
            replies: (0..BATCH).map(|_| Vec::with_capacity(usize::from(MAX_UDP))).collect(),
            peers: Vec::with_capacity(BATCH),
        }
    }

    fn batch(&mut self, responder: &Responder, turn: &mut usize) {
        self.peers.clear();
        let mut lengths = [0; BATCH];
        {
            let mut slices: Vec<_> = self.queries.iter_mut().map(|query| [IoSliceMut::new(query)]).collect();
            let flags = MsgFlags::MSG_DONTWAIT;
            match recvmmsg(self.socket.as_raw_fd(), &mut self.received, &mut slices, flags, None) {
                Ok(messages) => {
                    for (length, message) in lengths.iter_mut().zip(messages) {
                        *length = message.bytes;
                        self.peers.push(message.address);
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot receive DNS queries");
                    return;
                }
            }
        }
        let received = self.peers.len();
        let mut replies = 0;
        responder.with_sources(|sources| {
            for (index, length) in lengths.into_iter().enumerate().take(received) {
                *turn = turn.wrapping_add(1);
                let Some(peer) = self.peers[index].as_ref().and_then(address) else { continue };
                let (message, way_back) = (&self.queries[index][..length], || ReplyTo::Udp(self.socket.clone(), peer));
                if responder.handle(sources, message, (Transport::Udp, *turn), way_back, &mut self.replies[replies]) {
                    self.peers[replies] = self.peers[index];
                    replies += 1;
                }
            }
        });
        self.send(replies);
    }

    fn send(&mut self, replies: usize) {
        let mut sent = 0;
        while sent < replies {
            let slices: Vec<_> = self.replies[sent..replies].iter().map(|reply| [IoSlice::new(reply)]).collect();
            let none: [ControlMessage<'_>; 0] = [];
            let peers = &self.peers[sent..replies];
            match sendmmsg(self.socket.as_raw_fd(), &mut self.sent, &slices, peers, none, MsgFlags::MSG_DONTWAIT) {
                Ok(done) => sent += done.count(),
                Err(Errno::EINTR) => {}
                // The buffer is full: waiting would only make everyone late.
                Err(Errno::EAGAIN) => return,
                // This one peer cannot be reached.
                Err(_) => sent += 1,
            }
        }
    }
}

fn address(peer: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || peer.as_sockaddr_in().map(|peer| SocketAddr::V4(SocketAddrV4::from(*peer)));
    v4().or_else(|| peer.as_sockaddr_in6().map(|peer| SocketAddr::V6(SocketAddrV6::from(*peer))))
}
