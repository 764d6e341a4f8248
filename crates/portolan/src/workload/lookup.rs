//! A name and a type -> what DNS says, record by record.
//!
//! Deliberately not here: a cache, and a fallback to TCP (a truncated answer is reported as such).
//! Source: RFC 1035; resolv.conf(5).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio::time::timeout;

const TRIES: u32 = 3;
const TRY_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct LookupArgs {
    /// The whole name; the search list is not used.
    name: String,
    #[arg(long = "type", default_value = "A")]
    record_type: String,
    /// Ask this server rather than the first in /etc/resolv.conf.
    #[arg(long)]
    server: Option<IpAddr>,
}

/// One answer, as printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) rcode: String,
    pub(crate) truncated: bool,
    /// In the order of the message.
    pub(crate) answers: Vec<FoundRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FoundRecord {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) record_type: String,
    pub(crate) ttl: u32,
    pub(crate) data: String,
}

impl Found {
    /// The IPv4 addresses among the answers.
    pub(crate) fn addresses(&self) -> BTreeSet<String> {
        self.answers.iter().filter(|record| record.record_type == "A").map(|record| record.data.clone()).collect()
    }
}

pub(super) async fn run(args: LookupArgs) -> anyhow::Result<ExitCode> {
    let name = Name::from_str(&args.name).with_context(|| format!("{} is not a name", args.name))?;
    let record_type = RecordType::from_str(&args.record_type.to_uppercase())
        .with_context(|| format!("{} is not a record type", args.record_type))?;
    let server = match args.server {
        Some(server) => SocketAddr::new(server, 53),
        None => *Resolver::read(Path::new("/etc/resolv.conf"))?.servers.first().context("/etc/resolv.conf is empty")?,
    };
    let message = ask(server, &name, record_type).await?;
    let answers = message.answers.iter().map(|record| FoundRecord {
        name: record.name.to_string(),
        record_type: record.record_type().to_string(),
        ttl: record.ttl,
        data: record.data.to_string(),
    });
    let found = Found {
        name: args.name,
        rcode: message.metadata.response_code.to_string(),
        truncated: message.metadata.truncation,
        answers: answers.collect(),
    };
    println!("{}", serde_json::to_string(&found)?);
    Ok(if message.metadata.response_code == ResponseCode::NoError { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What resolv.conf says.
struct Resolver {
    servers: Vec<SocketAddr>,
    search: Vec<Name>,
    dots: usize,
}

impl Resolver {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut resolver = Self { servers: Vec::new(), search: Vec::new(), dots: 1 };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    resolver
                        .servers
                        .extend(words.filter_map(|word| word.parse().ok()).map(|ip| SocketAddr::new(ip, 53)));
                }
                Some("search" | "domain") => {
                    resolver.search = words.filter_map(|word| Name::from_str(word).ok()).collect();
                }
                Some("options") => {
                    let dots = words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok()).next_back();
                    resolver.dots = dots.unwrap_or(resolver.dots);
                }
                _ => (),
            }
        }
        resolver
    }

    /// The names to try for `host`, in order.
    fn candidates(&self, host: &str) -> anyhow::Result<Vec<Name>> {
        let mut absolute = Name::from_str(host).with_context(|| format!("{host} is not a name"))?;
        absolute.set_fqdn(true);
        if host.ends_with('.') {
            return Ok(vec![absolute]);
        }
        let relative = Name::from_str(host)?;
        let mut names: Vec<_> = self.search.iter().filter_map(|d| relative.clone().append_domain(d).ok()).collect();
        let first = if host.matches('.').count() >= self.dots { 0 } else { names.len() };
        names.insert(first, absolute);
        Ok(names)
    }
}

/// The IPv4 addresses of a host, by the search list.
pub(super) async fn resolve(resolv_conf: &Path, host: &str) -> anyhow::Result<Vec<IpAddr>> {
    let resolver = Resolver::read(resolv_conf)?;
    let server = *resolver.servers.first().with_context(|| format!("{} names no server", resolv_conf.display()))?;
    let mut last = ResponseCode::NXDomain;
    for name in resolver.candidates(host)? {
        let message = ask(server, &name, RecordType::A).await?;
        let addresses: Vec<_> = message
            .answers
            .iter()
            .filter_map(|record| match record.data {
                RData::A(address) => Some(IpAddr::V4(address.0)),
                _ => None,
            })
            .collect();
        if !addresses.is_empty() {
            return Ok(addresses);
        }
        last = message.metadata.response_code;
    }
    anyhow::bail!("{server} says: {last}")
}

/// Asks over UDP until an answer to this very question comes.
async fn ask(server: SocketAddr, name: &Name, record_type: RecordType) -> anyhow::Result<Message> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), record_type));
    let packet = question.to_vec().context("cannot write the question")?;
    let local: SocketAddr = if server.is_ipv6() { ([0u16; 8], 0).into() } else { ([0u8; 4], 0).into() };
    let socket = UdpSocket::bind(local).await.context("cannot open a socket")?;
    socket.connect(server).await.with_context(|| format!("cannot reach {server}"))?;
    let mut buffer = vec![0; 4096];
    for _ in 0..TRIES {
        socket.send(&packet).await.with_context(|| format!("cannot reach {server}"))?;
        let answer = async {
            loop {
                let length = socket.recv(&mut buffer).await?;
                if let Ok(answer) = Message::from_vec(&buffer[..length])
                    && answer.metadata.id == question.metadata.id
                {
                    return Ok::<_, std::io::Error>(answer);
                }
            }
        };
        match timeout(TRY_TIMEOUT, answer).await {
            Ok(answer) => return answer.with_context(|| format!("{server} does not answer DNS")),
            Err(_) => continue,
        }
    }
    anyhow::bail!("{server} did not answer {TRIES} times")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tried_in_the_order_of_resolv_conf() {
        let resolver = Resolver::parse(
            "nameserver 10.96.0.10\nsearch default.svc.cluster.local svc.cluster.local\noptions ndots:2\n",
        );
        let tried = |host| {
            let names = resolver.candidates(host).unwrap();
            names.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(resolver.servers, ["10.96.0.10:53".parse().unwrap()]);
        assert_eq!(tried("web"), ["web.default.svc.cluster.local.", "web.svc.cluster.local.", "web."]);
        assert_eq!(tried("a.b.c"), ["a.b.c.", "a.b.c.default.svc.cluster.local.", "a.b.c.svc.cluster.local."]);
        assert_eq!(tried("web.local."), ["web.local."]);
    }
}
