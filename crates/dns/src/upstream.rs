//! One question -> the answer of one of several other servers.
//!
//! Invariants: every attempt has a port and an id of its own, both random, and takes only a reply to exactly its
//! question from exactly its server (RFC 5452); every question ends within [`PATIENCE`] times [`ATTEMPTS`].
//!
//! Deliberately not here: caching, and recursion from the root.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use crate::query::MAX_UDP;
use crate::wire::{Counts, HEADER, IN, Name, RecordAt, flag, kind, put_u16, rcode, u16_at};

/// How long one server may take. Three of it stay below the five seconds that clients wait.
const PATIENCE: Duration = Duration::from_millis(1_500);
const ATTEMPTS: usize = 3;
/// How long a server that did not answer is asked only after the others.
const DISTRUST: Duration = Duration::from_secs(10);
/// More than we say we take; what is larger comes by TCP.
const UDP_BUFFER: usize = 4096;

/// A question as other servers are asked it: also what tells two questions apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ask {
    /// On the wire, in lower case.
    pub(crate) name: Box<[u8]>,
    pub(crate) kind: u16,
    pub(crate) dnssec_ok: bool,
    pub(crate) checking_disabled: bool,
}

impl Ask {
    fn message(&self, id: u16) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.name.len() + 4 + 11);
        let flags = flag::RECURSION_DESIRED | if self.checking_disabled { flag::CHECKING_DISABLED } else { 0 };
        for value in [id, flags, 1, 0, 0, 1] {
            out.extend_from_slice(&value.to_be_bytes());
        }
        out.extend_from_slice(&self.name);
        for value in [self.kind, IN] {
            out.extend_from_slice(&value.to_be_bytes());
        }
        out.push(0);
        for value in [kind::OPT, MAX_UDP, 0, if self.dnssec_ok { 0x8000 } else { 0 }, 0] {
            out.extend_from_slice(&value.to_be_bytes());
        }
        out
    }

    /// Whether the message is a reply to this question asked under `id`.
    fn is_answered_by(&self, message: &[u8], id: u16) -> bool {
        let is_response =
            u16_at(message, 2).is_some_and(|flags| flags & (flag::RESPONSE | flag::OPCODE) == flag::RESPONSE);
        let same_question = || {
            let (name, end) = Name::read(message, HEADER)?;
            let kind_and_class = (u16_at(message, end)?, u16_at(message, end + 2)?);
            Some(name.wire() == &*self.name && kind_and_class == (self.kind, IN))
        };
        u16_at(message, 0) == Some(id)
            && is_response
            && Counts::read(message).is_some_and(|counts| counts.questions == 1)
            && same_question() == Some(true)
    }
}

/// The other servers, and which of them to trust last.
pub(crate) struct Upstreams {
    servers: Vec<(SocketAddr, Mutex<Option<Instant>>)>,
}

impl Upstreams {
    pub(crate) fn new(servers: &[SocketAddr]) -> Self {
        Self { servers: servers.iter().map(|server| (*server, Mutex::new(None))).collect() }
    }

    /// A whole reply without OPT record that says yes or no; `None` if no server gives one.
    pub(crate) async fn ask(&self, ask: &Ask) -> Option<Vec<u8>> {
        let now = Instant::now();
        let doubtful = |until: &Mutex<Option<Instant>>| {
            until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| until > now)
        };
        let mut order: Vec<_> = self.servers.iter().collect();
        order.sort_by_key(|(_, until)| doubtful(until));
        for (server, until) in order.into_iter().cycle().take(ATTEMPTS.min(self.servers.len() * 2)) {
            match timeout(PATIENCE, exchange(*server, ask)).await {
                Ok(Ok(response)) => {
                    *until.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    match u16_at(&response, 2)? & flag::RCODE {
                        rcode::NO_ERROR | rcode::NX_DOMAIN => return Some(response),
                        // It is alive, but another may know more.
                        code => tracing::debug!(%server, code, "an upstream server could not answer"),
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(%server, %error, "cannot ask an upstream server");
                    *until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + DISTRUST);
                }
                Err(_) => {
                    tracing::debug!(%server, "an upstream server did not answer in time");
                    *until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + DISTRUST);
                }
            }
        }
        None
    }
}

/// Asks one server, by UDP and, if the answer does not fit, by TCP. Waits for as long as the caller does.
pub(crate) async fn exchange(server: SocketAddr, ask: &Ask) -> io::Result<Vec<u8>> {
    let id = rand::random();
    let query = ask.message(id);
    let any: IpAddr = if server.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&query).await?;
    let mut buffer = vec![0; UDP_BUFFER];
    let response = loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else may be forged, or late: the true reply may still come.
        if ask.is_answered_by(&buffer[..length], id) {
            buffer.truncate(length);
            break buffer;
        }
    };
    if u16_at(&response, 2).is_some_and(|flags| flags & flag::TRUNCATED != 0) {
        return exchange_whole(server, ask).await;
    }
    without_opt(response)
}

async fn exchange_whole(server: SocketAddr, ask: &Ask) -> io::Result<Vec<u8>> {
    let id = rand::random();
    let query = ask.message(id);
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &query].concat()).await?;
    let mut response = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut response).await?;
    if !ask.is_answered_by(&response, id) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the reply is to another question"));
    }
    without_opt(response)
}

/// Takes the OPT record out, which is between us and the server. It is the last record nearly always; what comes after
/// it is only additional, and goes with it.
fn without_opt(mut message: Vec<u8>) -> io::Result<Vec<u8>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the reply is malformed");
    let mut counts = Counts::read(&message).ok_or_else(malformed)?;
    let (_, end) = Name::read(&message, HEADER).ok_or_else(malformed)?;
    let mut at = end + 4;
    let main = usize::from(counts.answers) + usize::from(counts.authorities);
    for index in 0..counts.records() {
        let record = RecordAt::read(&message, at).ok_or_else(malformed)?;
        if record.kind == kind::OPT && index >= main {
            if record.ttl(&message) >> 24 != 0 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the server does not take our EDNS"));
            }
            counts.additionals = u16::try_from(index - main).map_err(io::Error::other)?;
            break;
        }
        at = record.end;
    }
    message.truncate(at);
    counts.write(&mut message);
    let flags = u16_at(&message, 2).ok_or_else(malformed)? & !flag::TRUNCATED;
    put_u16(&mut message, 2, flags);
    Ok(message)
}
