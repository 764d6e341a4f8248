//! A name -> its addresses, the way a pod's C library would find them, for programs without one.
//!
//! Invariant: ends within [`PATIENCE`] for every server and every name tried.
//!
//! Deliberately not here: caching, `/etc/hosts`, and sorting of addresses (RFC 6724). Source: resolv.conf(5).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::timeout;

use crate::resolv::{self, ResolvConf};
use crate::upstream::{Ask, exchange};
use crate::wire::{Counts, HEADER, Name, RecordAt, encode, flag, kind, rcode, u16_at};

/// For one server to answer one question; the usual five seconds would hide a lost packet for too long.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often each server is asked.
const ROUNDS: usize = 2;
/// As the C library does.
const MAX_SERVERS: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("{host:?} cannot be a host name")]
    Name { host: String },
    #[error("resolv.conf names no server: add a nameserver line")]
    NoServer,
    #[error("no server knows an address of {host}")]
    NotFound { host: String },
    #[error("no server of {servers:?} answered for {name} (the last one: {reason})")]
    Unanswered { name: String, servers: Vec<SocketAddr>, reason: String },
}

/// The addresses of `host`, IPv4 first, with the servers, search list and `ndots` of the text of a `resolv.conf`.
///
/// # Errors
/// When the name does not exist, has no address, or no server answers.
pub async fn resolve(resolv_conf: &str, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
    Resolver::new(resolv_conf).resolve(host).await
}

/// A `resolv.conf`, read once.
#[derive(Clone, Debug)]
pub struct Resolver {
    conf: ResolvConf,
}

impl Resolver {
    /// `resolv_conf` is the text of one.
    #[must_use]
    pub fn new(resolv_conf: &str) -> Self {
        Self { conf: resolv::parse(resolv_conf) }
    }

    /// With other servers, which may have other ports.
    #[must_use]
    pub fn with_servers(mut self, servers: Vec<SocketAddr>) -> Self {
        self.conf.servers = servers;
        self
    }

    /// The addresses of `host`, IPv4 first.
    ///
    /// # Errors
    /// When the name does not exist, has no address, or no server answers.
    pub async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let conf = &self.conf;
        if conf.servers.is_empty() {
            return Err(ResolveError::NoServer);
        }
        for candidate in candidates(conf, host) {
            let Some(wire) = encode(&candidate).filter(|wire| wire.len() > 1) else {
                return Err(ResolveError::Name { host: host.into() });
            };
            let (v4, v6) = tokio::join!(
                addresses(conf, &candidate, wire.clone(), kind::A),
                addresses(conf, &candidate, wire.clone(), kind::AAAA)
            );
            // One family is enough; but without an address a failure must not pass for "no such name".
            let found = match (v4, v6) {
                (Ok(v4), Ok(v6)) => [v4, v6].concat(),
                (Ok(some), Err(_)) | (Err(_), Ok(some)) if !some.is_empty() => some,
                (Err(error), _) | (_, Err(error)) => return Err(error),
            };
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Err(ResolveError::NotFound { host: host.into() })
    }
}

/// The names to try, in order.
fn candidates(conf: &ResolvConf, host: &str) -> Vec<String> {
    if host.ends_with('.') {
        return vec![host.into()];
    }
    let mut names: Vec<String> = conf.search.iter().map(|domain| format!("{host}.{domain}")).collect();
    let as_it_is = if host.matches('.').count() >= conf.ndots { 0 } else { names.len() };
    names.insert(as_it_is, host.into());
    names
}

/// Empty if the name does not exist or has no such address.
async fn addresses(conf: &ResolvConf, name: &str, wire: Vec<u8>, kind: u16) -> Result<Vec<IpAddr>, ResolveError> {
    let ask = Ask { name: wire.into(), kind, dnssec_ok: false, checking_disabled: false };
    let servers = &conf.servers[..conf.servers.len().min(MAX_SERVERS)];
    let mut reason = String::new();
    for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
        match timeout(PATIENCE, exchange(*server, &ask)).await {
            Ok(Ok(message)) => match u16_at(&message, 2).map(|flags| flags & flag::RCODE) {
                Some(rcode::NO_ERROR | rcode::NX_DOMAIN) => return Ok(answers(&message, kind)),
                code => reason = format!("response code {}", code.unwrap_or_default()),
            },
            Ok(Err(error)) => reason = error.to_string(),
            Err(_) => reason = format!("nothing within {PATIENCE:?}"),
        }
    }
    Err(ResolveError::Unanswered { name: name.into(), servers: servers.to_vec(), reason })
}

fn answers(message: &[u8], kind: u16) -> Vec<IpAddr> {
    let mut at = Name::read(message, HEADER).map_or(message.len(), |(_, end)| end + 4);
    let mut found = Vec::new();
    for _ in 0..Counts::read(message).map_or(0, |counts| counts.answers) {
        let Some(record) = RecordAt::read(message, at) else { break };
        at = record.end;
        let data = record.data(message);
        if record.kind == kind {
            let v4 = <[u8; 4]>::try_from(data).map(IpAddr::from);
            found.extend(v4.or_else(|_| <[u8; 16]>::try_from(data).map(IpAddr::from)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_go_through_the_search_list_first() {
        let conf = resolv::parse("search a.b c\noptions ndots:2");
        assert_eq!(candidates(&conf, "x"), ["x.a.b", "x.c", "x"]);
        assert_eq!(candidates(&conf, "x.y.z"), ["x.y.z", "x.y.z.a.b", "x.y.z.c"]);
        assert_eq!(candidates(&conf, "x.y."), ["x.y."]);
    }
}
