//! A server that says who it is and whom it sees.
//!
//! Over TCP it sends one line, `<id> <port> <peer address>`, when a connection opens and then echoes what comes. Over
//! UDP it answers each datagram with that line, over SCTP each INIT.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::thread::JoinHandle;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::{Netns, sctp};

/// Listens on TCP, UDP and SCTP until dropped; open connections end then too.
#[derive(Debug)]
pub struct Echo {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Listens on each address, with TCP, UDP and SCTP, from the moment this returns.
    pub fn start(netns: &Netns, id: &str, addresses: &[SocketAddr]) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (netns, id, addresses) = (netns.clone(), id.to_owned(), addresses.to_vec());
        let thread = std::thread::spawn(move || {
            netns.block_on(|| async move {
                let mut servers = JoinSet::new();
                let mut ports = BTreeMap::<IpAddr, BTreeSet<u16>>::new();
                for address in &addresses {
                    ports.entry(address.ip()).or_default().insert(address.port());
                }
                for (address, ports) in ports {
                    let sctp = sctp::listen(address).unwrap_or_else(|e| panic!("hear SCTP at {address}: {e}"));
                    let sctp = UdpSocket::from_std(sctp).expect("a socket for the runtime");
                    servers.spawn(serve_sctp(sctp, address, ports, id.clone()));
                }
                for address in addresses {
                    let tcp = TcpListener::bind(address).await.unwrap_or_else(|e| panic!("listen on {address}: {e}"));
                    let udp = UdpSocket::bind(address).await.unwrap_or_else(|e| panic!("bind {address}: {e}"));
                    servers.spawn(serve_tcp(tcp, format!("{id} {}", address.port())));
                    servers.spawn(serve_udp(udp, format!("{id} {}", address.port())));
                }
                // The one who waits has gone only if the test is over.
                let _ = ready.send(());
                let _ = stopped.await;
            });
        });
        is_ready.recv().expect("an echo server that could bind its addresses");
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the server's thread has been printed already.
            let _ = thread.join();
        }
    }
}

async fn serve_tcp(listener: TcpListener, id: String) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, peer)) = accepted {
                    connections.spawn(talk(stream, format!("{id} {peer}\n")));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn talk(mut stream: TcpStream, greeting: String) {
    // The peer may leave at any moment; there is nobody to tell.
    let _ = stream.write_all(greeting.as_bytes()).await;
    let (mut reader, mut writer) = stream.split();
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
}

async fn serve_udp(socket: UdpSocket, id: String) {
    let mut datagram = [0; 2048];
    loop {
        // An error here is the answer to an earlier send (connection refused); the socket goes on.
        if let Ok((_, peer)) = socket.recv_from(&mut datagram).await {
            let _ = socket.send_to(format!("{id} {peer}\n").as_bytes(), peer).await;
        }
    }
}

async fn serve_sctp(socket: UdpSocket, address: IpAddr, ports: BTreeSet<u16>, id: String) {
    let mut packet = [0; 2048];
    loop {
        // As with UDP, an error is the answer to an earlier send.
        let Ok((length, peer)) = socket.recv_from(&mut packet).await else { continue };
        let packet = sctp::Packet::read(&packet[..length], address.is_ipv4());
        if let Some(answer) = packet.filter(|p| ports.contains(&p.destination)).and_then(|p| p.answer(&id, peer.ip())) {
            let _ = socket.send_to(&answer.write(), peer).await;
        }
    }
}
