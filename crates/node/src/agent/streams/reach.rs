//! A pod and a port -> a connection to it, as from within the pod or as from its node.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use nix::libc;
use nlink::netlink::namespace::Netns;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a port of the pod in `dir` as a neighbour on its loopback would, by IPv4 first.
pub(super) async fn inside(dir: &Path, port: u16) -> io::Result<TcpStream> {
    let netns = Netns::from_pid(crate::shim::process(dir).await?).map_err(io::Error::other)?;
    let dial = |ip: IpAddr| {
        let family = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = netns.socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0);
        async move {
            let socket = socket.map_err(io::Error::other)?;
            connect(TcpSocket::from_std_stream(socket.into()), SocketAddr::new(ip, port)).await
        }
    };
    let first = match dial(Ipv4Addr::LOCALHOST.into()).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    dial(Ipv6Addr::LOCALHOST.into()).await.map_err(|second| {
        let reason = format!(
            "failed to connect to localhost:{port} inside the pod, IPv4: dial tcp4 127.0.0.1:{port}: {first} IPv6: dial \
             tcp6 [::1]:{port}: {second}"
        );
        io::Error::new(second.kind(), reason)
    })
}

/// Connects to an address of a pod from its node, as its probes do.
pub(super) async fn from_node(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    connect(socket, address).await
}

async fn connect(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpStream> {
    let connected = timeout(PATIENCE, socket.connect(address)).await;
    connected.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "i/o timeout"))).map_err(in_gos_words)
}

/// What clients are used to read.
fn in_gos_words(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => io::Error::new(error.kind(), "connect: connection refused"),
        io::ErrorKind::HostUnreachable => io::Error::new(error.kind(), "connect: no route to host"),
        io::ErrorKind::NetworkUnreachable => io::Error::new(error.kind(), "connect: network is unreachable"),
        _ => error,
    }
}
