//! A forwarder without a zone: lets nodes reach resolvers that only another namespace can.
//!
//! Invariant: as in `forward`, everything is bounded.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, UdpSocket};

use crate::forward::{Forwarder, ReplyTo, queue};
use crate::query::Transport;
use crate::responder::Responder;
use crate::tcp;

const QUERY: usize = 1232;

/// Forwards what comes to the sockets to `upstreams` until `shutdown` is done. The questions go out through the
/// network namespace of the threads that drive the future. Without upstreams every question is refused.
///
/// # Errors
/// When the socket cannot be shared between receiving and sending, or fails.
pub async fn relay(
    udp: UdpSocket,
    tcp: TcpListener,
    upstreams: Vec<SocketAddr>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let (sender, jobs) = queue();
    let forwarder = Forwarder::new(&upstreams, jobs);
    let responder = Arc::new(Responder::new(None, (!upstreams.is_empty()).then_some(sender)));
    let sending = Arc::new(udp.into_std()?);
    let udp = UdpSocket::from_std(sending.try_clone()?)?;
    let forward = async { if upstreams.is_empty() { std::future::pending().await } else { forwarder.run().await } };
    tokio::select! {
        () = shutdown => Ok(()),
        outcome = receive(udp, sending, &responder) => outcome,
        () = tcp::serve(tcp, responder.clone()) => Ok(()),
        () = forward => Ok(()),
    }
}

async fn receive(udp: UdpSocket, sending: Arc<std::net::UdpSocket>, responder: &Responder) -> io::Result<()> {
    let (mut query, mut reply) = ([0; QUERY], Vec::new());
    loop {
        let (length, peer) = udp.recv_from(&mut query).await?;
        let way_back = || ReplyTo::Udp(sending.clone(), peer);
        let replied = responder.with_sources(|sources| {
            responder.handle(sources, &query[..length], (Transport::Udp, 0), way_back, &mut reply)
        });
        if replied {
            // Lost as UDP's may be anyhow.
            let _ = udp.send_to(&reply, peer).await;
        }
    }
}
