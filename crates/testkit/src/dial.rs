//! One attempt to reach an [`Echo`](crate::Echo) server from the namespace of the calling thread.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Tcp,
    Udp,
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The server's id and port, and the client's address, as the server saw them.
    Answered { by: String, at: u16, seen_as: IpAddr },
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
    /// The address and port to speak from; the kernel chooses without.
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
        let socket = UdpSocket::from(socket);
        match socket.send(b"who is there?") {
            // The machine's own filter took it on its way out; whether it was refused or dropped shows in what follows.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
            sent => drop(sent?),
        }
        let mut answer = [0; 256];
        let length = socket.recv(&mut answer)?;
        read_greeting(&String::from_utf8_lossy(&answer[..length]))
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
