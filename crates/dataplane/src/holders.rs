//! NodePorts -> the sockets on this node that hold the same ports, and whose they are.
//!
//! A NodePort has its port's traffic whoever listens there, so that the listener's clients reach the Service instead.
//! The socket programs refuse to bind such a port; a socket that was there first is found here and told of.
//!
//! Invariant: it looks and changes nothing. Deliberately not here: sockets of other network namespaces, which no
//! NodePort takes anything from.
//!
//! Source: sock_diag(7), proc(5).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use nlink::netlink::{Connection, SockDiag};
use nlink::sockdiag::{SocketFilter, TcpState};
use portolan_model::Protocol;

use crate::Error;

/// A socket that takes what is sent to a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub protocol: Protocol,
    pub at: SocketAddr,
    /// Its number and its name; `None` where it is out of sight.
    pub process: Option<(u32, String)>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((number, name)) => write!(f, "{name} (process {number}) at {}", self.at),
            None => write!(f, "a process out of sight at {}", self.at),
        }
    }
}

/// The sockets of the calling thread's network namespace that are bound to one of the ports, at all addresses or at one
/// of those given.
///
/// # Errors
/// When the kernel does not say which sockets there are.
pub async fn holders(ports: &BTreeSet<(Protocol, u16)>, addresses: &[IpAddr]) -> Result<Vec<Holder>, Error> {
    let failed = |source| Error::Read { what: "the node's sockets".to_owned(), source: Box::new(source) };
    let diagnostics = Connection::<SockDiag>::new().map_err(failed)?;
    let mut found = Vec::new();
    for (protocol, filter, state) in [
        (Protocol::Tcp, SocketFilter::tcp(), TcpState::Listen),
        // That is what one of UDP without a peer is in.
        (Protocol::Udp, SocketFilter::udp(), TcpState::Close),
    ] {
        if !ports.iter().any(|(of, _)| *of == protocol) {
            continue;
        }
        let sockets = diagnostics.query(&filter.states(&[state]).build()).await.map_err(failed)?;
        for socket in sockets.iter().filter_map(|socket| socket.as_inet()) {
            let address = socket.local.ip().to_canonical();
            let is_there = address.is_unspecified() || addresses.contains(&address);
            if is_there && ports.contains(&(protocol, socket.local.port())) {
                found.push((socket.inode, Holder { protocol, at: socket.local, process: None }));
            }
        }
    }
    if !found.is_empty() {
        let owners = owners(&found.iter().map(|(inode, _)| *inode).collect());
        for (inode, holder) in &mut found {
            holder.process = owners.get(inode).cloned();
        }
    }
    let mut holders: Vec<Holder> = found.into_iter().map(|(_, holder)| holder).collect();
    holders.sort_by_key(|holder| (holder.protocol, holder.at));
    Ok(holders)
}

/// Who has the sockets of these inodes open.
fn owners(inodes: &BTreeSet<u32>) -> BTreeMap<u32, (u32, String)> {
    let mut owners = BTreeMap::new();
    // Processes and their descriptors come and go meanwhile.
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(number) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode.filter(|inode| inodes.contains(inode)) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                owners.entry(inode).or_insert((number, name.trim_end().to_owned()));
            }
        }
    }
    owners
}
