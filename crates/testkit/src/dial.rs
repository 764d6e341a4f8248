//! One attempt to reach an [`Echo`](crate::Echo) server from the namespace of the calling thread.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::sctp;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Tcp,
    Udp,
    /// INIT and INIT ACK, by raw sockets: the kernel need not know SCTP.
    Sctp,
    /// An ICMP or ICMPv6 echo request; the port means nothing. [`Netns`](crate::Netns) allows the sockets it takes.
    Ping,
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The server's id and port, and the client's address, as the server saw them.
    Answered { by: String, at: u16, seen_as: IpAddr },
    /// An echo reply, which does not say whose it is.
    Echoed,
    /// A TCP reset or an ICMP port unreachable.
    Refused,
    /// Another ICMP error: no route, or administratively prohibited.
    Unreachable,
    /// Nothing came back in time.
    Silent,
}

impl Outcome {
    /// The id of the server that answered.
    #[must_use]
    pub fn by(&self) -> Option<&str> {
        if let Self::Answered { by, .. } = self { Some(by) } else { None }
    }
}

#[derive(Clone, Debug)]
pub struct Dial {
    pub transport: Transport,
    pub to: SocketAddr,
    /// The address and port to speak from; the kernel chooses without, and the port if it is 0.
    pub from: Option<SocketAddr>,
    /// How long an attempt may stay unanswered before it counts as [`Outcome::Silent`].
    pub patience: Duration,
}

impl Dial {
    #[must_use]
    pub fn new(transport: Transport, to: SocketAddr) -> Self {
        Self { transport, to, from: None, patience: Duration::from_secs(2) }
    }

    #[must_use]
    pub fn tcp(to: SocketAddr) -> Self {
        Self::new(Transport::Tcp, to)
    }

    #[must_use]
    pub fn udp(to: SocketAddr) -> Self {
        Self::new(Transport::Udp, to)
    }

    #[must_use]
    pub fn from(mut self, from: SocketAddr) -> Self {
        self.from = Some(from);
        self
    }

    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Makes the attempt and closes whatever came of it (TCP with a reset, so that no TIME_WAIT holds the port).
    #[must_use]
    pub fn once(&self) -> Outcome {
        let attempt = match self.transport {
            Transport::Tcp => self.open().and_then(|stream| greeting(&stream)),
            Transport::Udp => self.datagram(),
            Transport::Sctp => self.init(),
            Transport::Ping => self.ping(),
        };
        attempt.unwrap_or_else(|error| outcome_of(&error))
    }

    /// A TCP connection that stays open, for talking to the echo server by [`say`].
    ///
    /// # Errors
    /// As connect(2) gives them.
    pub fn open(&self) -> std::io::Result<TcpStream> {
        let socket = self.socket(Type::STREAM)?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.connect_timeout(&SockAddr::from(self.to), self.patience)?;
        socket.set_read_timeout(Some(self.patience))?;
        Ok(socket.into())
    }

    fn datagram(&self) -> std::io::Result<Outcome> {
        let socket = self.socket(Type::DGRAM)?;
        socket.connect(&SockAddr::from(self.to))?;
        socket.set_read_timeout(Some(self.patience))?;
        send(&socket, b"who is there?")?;
        let mut answer = [0; 256];
        let length = UdpSocket::from(socket).recv(&mut answer)?;
        read_greeting(&String::from_utf8_lossy(&answer[..length]))
    }

    fn init(&self) -> std::io::Result<Outcome> {
        /// Nobody else speaks from these ports in a namespace made for a test.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = self.from.map(|from| from.port()).filter(|port| *port > 0).unwrap_or(40_000 + number % 20_000);
        let init = sctp::Packet::init(port, self.to.port(), 1 + u32::from(number));
        let mut socket = sctp::socket(self.to.ip())?;
        if let Some(from) = self.from {
            socket.bind(&SockAddr::from(SocketAddr::new(from.ip(), 0)))?;
        }
        socket.connect(&SockAddr::from(SocketAddr::new(self.to.ip(), 0)))?;
        send(&socket, &init.write())?;
        let deadline = Instant::now() + self.patience;
        loop {
            let mut packet = [0; 512];
            socket.set_read_timeout(Some(left_until(deadline)?))?;
            let length = socket.read(&mut packet)?;
            match sctp::Packet::read(&packet[..length], self.to.is_ipv4()) {
                Some(answer) if answer.answers(&init) => return read_greeting(&answer.greeting),
                // Another client's of this machine.
                _ => {}
            }
        }
    }

    fn ping(&self) -> std::io::Result<Outcome> {
        let protocol = if self.to.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
        let mut socket = Socket::new(Domain::for_address(self.to), Type::DGRAM, Some(protocol))?;
        socket.connect(&SockAddr::from(SocketAddr::new(self.to.ip(), 0)))?;
        socket.set_read_timeout(Some(self.patience))?;
        // Type 8 or 128, code 0; the kernel fills in the checksum and who asks.
        send(&socket, &[if self.to.is_ipv4() { 8 } else { 128 }, 0, 0, 0, 0, 0, 0, 1])?;
        let mut answer = [0; 64];
        socket.read(&mut answer).map(|_| Outcome::Echoed)
    }

    fn socket(&self, kind: Type) -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.to), kind, None)?;
        if let Some(from) = self.from {
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(from))?;
        }
        Ok(socket)
    }
}

/// Sends, also where the machine's own filter takes it on its way out: whether that refused or dropped it shows in what
/// is received.
fn send(socket: &Socket, bytes: &[u8]) -> std::io::Result<()> {
    match socket.send(bytes) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        sent => sent.map(|_| ()),
    }
}

fn left_until(deadline: Instant) -> std::io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(std::io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// The line a TCP echo server opens with.
///
/// # Errors
/// When the connection ends or stays silent first.
pub(crate) fn greeting(stream: &TcpStream) -> std::io::Result<Outcome> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    read_greeting(&line)
}

fn read_greeting(line: &str) -> std::io::Result<Outcome> {
    let parsed = (|| {
        let mut words = line.split_whitespace();
        let (by, at, peer) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse::<SocketAddr>().ok()?);
        Some(Outcome::Answered { by: by.to_owned(), at, seen_as: peer.ip() })
    })();
    parsed.ok_or_else(|| std::io::Error::other(format!("not an echo server's line: {line:?}")))
}

impl Outcome {
    /// Reads the line a TCP echo server opens a connection with.
    #[must_use]
    pub fn greeting(stream: &TcpStream) -> Self {
        greeting(stream).unwrap_or_else(|error| outcome_of(&error))
    }
}

/// Sends a line over an open connection and tells whether it came back.
#[must_use]
pub fn say(mut stream: &TcpStream, line: &str) -> bool {
    let sent = stream.write_all(format!("{line}\n").as_bytes());
    let mut back = String::new();
    sent.is_ok() && BufReader::new(stream).read_line(&mut back).is_ok() && back.trim_end() == line
}

fn outcome_of(error: &std::io::Error) -> Outcome {
    use std::io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused | Kind::ConnectionReset => Outcome::Refused,
        Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::PermissionDenied => Outcome::Unreachable,
        Kind::TimedOut | Kind::WouldBlock => Outcome::Silent,
        _ => panic!("dial: {error}"),
    }
}
