//! Lines or datagrams -> the same, with this pod's name in front.
//!
//! Invariant: a client can hold one connection and [`MAX_LINE`] bytes of memory, no more.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use super::{Stop, pod_name, server};

const MAX_LINE: u64 = 64 << 10;
const MAX_CONNECTIONS: usize = 1024;
const IDLE: Duration = Duration::from_secs(300);

pub(super) async fn tcp(addresses: [SocketAddr; 2]) -> anyhow::Result<()> {
    let mut stop = Stop::new()?;
    let listener = server::listen(&addresses).await?;
    let name = pod_name();
    tokio::select! {
        () = stop.wait() => (),
        () = accept(&listener, &name) => (),
    }
    Ok(())
}

async fn accept(listener: &TcpListener, name: &str) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(echo_lines(stream, name.to_owned()))),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => (),
        }
    }
}

async fn echo_lines(stream: TcpStream, name: String) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut answer = format!("{name} ").into_bytes();
        let asked = answer.len();
        let mut line = (&mut reader).take(MAX_LINE);
        let read = tokio::time::timeout(IDLE, line.read_until(b'\n', &mut answer)).await;
        if !matches!(read, Ok(Ok(_))) || answer.len() == asked || writer.write_all(&answer).await.is_err() {
            return;
        }
    }
}

pub(super) async fn udp(addresses: [SocketAddr; 2]) -> anyhow::Result<()> {
    let mut stop = Stop::new()?;
    let socket = UdpSocket::bind(&addresses[..]).await.context("cannot listen on the UDP port")?;
    let name = pod_name();
    tokio::select! {
        () = stop.wait() => (),
        () = echo_datagrams(&socket, &name) => (),
    }
    Ok(())
}

async fn echo_datagrams(socket: &UdpSocket, name: &str) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        // An ICMP error for an earlier answer is reported here too; it concerns nobody else.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let mut answer = format!("{name} ").into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        let _ = socket.send_to(&answer, peer).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn puts_the_name_before_what_was_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (tcp, udp) = (listener.local_addr().unwrap(), socket.local_addr().unwrap());
        let ask = async {
            let mut stream = TcpStream::connect(tcp).await.unwrap();
            stream.write_all(b"one\ntwo\n").await.unwrap();
            let mut lines = vec![0; 16];
            stream.read_exact(&mut lines).await.unwrap();
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client.send_to(b"three", udp).await.unwrap();
            let mut datagram = [0; 64];
            let length = client.recv(&mut datagram).await.unwrap();
            (String::from_utf8(lines).unwrap(), String::from_utf8_lossy(&datagram[..length]).into_owned())
        };
        tokio::select! {
            () = accept(&listener, "pod") => (),
            () = echo_datagrams(&socket, "pod") => (),
            answers = ask => assert_eq!(answers, ("pod one\npod two\n".into(), "pod three".into())),
        }
    }
}
