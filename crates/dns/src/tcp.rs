//! DNS over TCP: whole answers, many questions on one connection, replies in the order they are known.
//!
//! Invariants: connections, what one of them may have outstanding, the size of a query and the time without one are all
//! bounded, so that no client can hold what others need; near the limit, idle connections go sooner.
//!
//! Source: RFC 7766.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::forward::ReplyTo;
use crate::query::Transport;
use crate::responder::Responder;

const MAX_CONNECTIONS: usize = 128;
/// Forwarded questions of one connection.
const MAX_OUTSTANDING: usize = 32;
const MAX_QUERY: usize = 4096;
const IDLE: Duration = Duration::from_secs(10);
const IDLE_WHEN_CROWDED: Duration = Duration::from_secs(1);
/// How long a client may take to accept a reply.
const WRITE: Duration = Duration::from_secs(5);
/// Before accepting is tried again when the process has no descriptor left.
const BREATHER: Duration = Duration::from_millis(100);

/// Serves the listener until dropped.
pub(crate) async fn serve(listener: TcpListener, responder: Arc<Responder>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // The semaphore is never closed.
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (responder, permits) = (responder.clone(), permits.clone());
                connections.spawn(async move {
                    if let Err(error) = converse(stream, &responder, &permits).await {
                        tracing::debug!(%peer, %error, "a DNS connection ended early");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a DNS connection");
                sleep(BREATHER).await;
            }
        }
    }
}

async fn converse(mut stream: TcpStream, responder: &Responder, permits: &Semaphore) -> io::Result<()> {
    // Replies are written whole.
    stream.set_nodelay(true)?;
    let (sender, mut forwarded) = mpsc::channel(MAX_OUTSTANDING);
    let (mut input, mut output) = (Vec::new(), Vec::new());
    loop {
        while let Some(query) = take_query(&mut input)? {
            let way_back = || ReplyTo::Tcp(sender.clone());
            let replied = responder.with_sources(|sources| {
                responder.handle(sources, &query, (Transport::Tcp, usize::from(query[1])), way_back, &mut output)
            });
            if replied {
                write(&mut stream, &output).await?;
            }
        }
        // A sender for each outstanding question, and ours.
        let outstanding = sender.strong_count() - 1;
        let crowded = permits.available_permits() < MAX_CONNECTIONS / 4;
        let idle = if crowded { IDLE_WHEN_CROWDED } else { IDLE };
        tokio::select! {
            Some(reply) = forwarded.recv() => write(&mut stream, &reply).await?,
            read = timeout(idle, stream.read_buf(&mut input)), if outstanding < MAX_OUTSTANDING => match read {
                // The client has no more questions, or none for a while; it may still wait for replies.
                Ok(Ok(0)) | Err(_) => break,
                Ok(read) => { read?; }
            },
        }
    }
    drop(sender);
    while let Some(reply) = forwarded.recv().await {
        write(&mut stream, &reply).await?;
    }
    Ok(())
}

/// The next whole query, taken off the front.
fn take_query(input: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let Some(prefix) = input.first_chunk() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*prefix));
    // Two octets of id are looked at before the query is parsed.
    if !(2..=MAX_QUERY).contains(&length) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a query of {length} octets")));
    }
    if input.len() < 2 + length {
        return Ok(None);
    }
    let query = input[2..2 + length].to_vec();
    input.drain(..2 + length);
    Ok(Some(query))
}

async fn write(stream: &mut TcpStream, reply: &[u8]) -> io::Result<()> {
    let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes()[..], reply].concat();
    timeout(WRITE, stream.write_all(&framed)).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_taken_off_whole_and_in_order() {
        let mut input = vec![0, 3, 1, 2, 3, 0, 2, 4];
        assert_eq!(take_query(&mut input).unwrap(), Some(vec![1, 2, 3]));
        assert_eq!(take_query(&mut input).unwrap(), None);
        input.push(5);
        assert_eq!(take_query(&mut input).unwrap(), Some(vec![4, 5]));
        assert_eq!(take_query(&mut input).unwrap(), None);
        assert!(take_query(&mut vec![0xff, 0xff, 0]).is_err());
        assert!(take_query(&mut vec![0, 1, 0]).is_err());
    }
}
