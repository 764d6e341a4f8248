//! Ranges of external addresses, and who has which.
//!
//! Invariant: an address has one holder. Deliberately not here: announcing the addresses.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use portolan_client::Key;

/// Addresses from the first to the last, both included, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no range of addresses; write it as 192.0.2.10-192.0.2.20, as 192.0.2.0/28, or as one address")]
pub struct BadRange {
    pub text: String,
}

impl FromStr for AddressRange {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let bad = || BadRange { text: text.to_owned() };
        let ip = |part: &str| part.trim().parse::<IpAddr>().map_err(|_| bad());
        if let Some((first, last)) = text.split_once('-') {
            let (first, last) = (ip(first)?, ip(last)?);
            if first > last || first.is_ipv4() != last.is_ipv4() {
                return Err(bad());
            }
            return Ok(Self { first, last });
        }
        if text.contains('/') {
            let net: IpNet = text.trim().parse().map_err(|_| bad())?;
            return Ok(Self { first: net.network(), last: net.broadcast() });
        }
        let only = ip(text)?;
        Ok(Self { first: only, last: only })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl AddressRange {
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.first.is_ipv4() == ip.is_ipv4() && self.first <= ip && ip <= self.last
    }

    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// The lowest address that is not among `taken`.
    fn first_free(&self, taken: &BTreeMap<IpAddr, Key>) -> Option<IpAddr> {
        let mut candidate = self.first;
        for used in taken.range(self.first..=self.last).map(|(ip, _)| *ip) {
            if used != candidate {
                break;
            }
            candidate = next(candidate).filter(|next| self.contains(*next))?;
        }
        Some(candidate)
    }
}

fn next(ip: IpAddr) -> Option<IpAddr> {
    Some(match ip {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip).checked_add(1)?).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip).checked_add(1)?).into(),
    })
}

/// Who has which address. Pools are tried in the order given.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    pub(crate) ranges: Vec<AddressRange>,
    pub(crate) taken: BTreeMap<IpAddr, Key>,
}

impl Pools {
    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(ip))
    }

    pub(crate) fn holder(&self, ip: IpAddr) -> Option<&Key> {
        self.taken.get(&ip)
    }

    pub(crate) fn held_by(&self, service: &Key) -> Vec<IpAddr> {
        self.taken.iter().filter(|(_, holder)| *holder == service).map(|(ip, _)| *ip).collect()
    }

    pub(crate) fn free(&self, ipv4: bool) -> Option<IpAddr> {
        self.ranges.iter().filter(|range| range.is_ipv4() == ipv4).find_map(|range| range.first_free(&self.taken))
    }

    pub(crate) fn serves(&self, ipv4: bool) -> bool {
        self.ranges.iter().any(|range| range.is_ipv4() == ipv4)
    }

    /// Whoever came first keeps an address that two claim.
    pub(crate) fn hold(&mut self, ip: IpAddr, service: &Key) {
        self.taken.entry(ip).or_insert_with(|| service.clone());
    }

    /// Lets go of everything the service holds but `kept`. True if anything became free.
    pub(crate) fn release(&mut self, service: &Key, kept: &[IpAddr]) -> bool {
        let before = self.taken.len();
        self.taken.retain(|ip, holder| holder != service || kept.contains(ip));
        self.taken.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_people_write_them() {
        for (text, expected) in [
            ("192.0.2.1-192.0.2.9", Some("192.0.2.1-192.0.2.9")),
            ("192.0.2.1 - 192.0.2.9", Some("192.0.2.1-192.0.2.9")),
            ("192.0.2.5/30", Some("192.0.2.4-192.0.2.7")),
            ("192.0.2.5", Some("192.0.2.5-192.0.2.5")),
            ("2001:db8::/127", Some("2001:db8::-2001:db8::1")),
            ("192.0.2.9-192.0.2.1", None),
            ("192.0.2.9-2001:db8::1", None),
            ("192.0.2.0/33", None),
            ("a-b", None),
            ("", None),
        ] {
            let parsed = text.parse::<AddressRange>().ok().map(|range| range.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn the_lowest_free_address_of_the_first_pool() {
        let key = |name: &str| Key::new("default", name);
        let mut pools = Pools {
            ranges: vec!["192.0.2.1-192.0.2.2".parse().unwrap(), "192.0.2.9".parse().unwrap()],
            ..Pools::default()
        };
        let mut given = Vec::new();
        while let Some(ip) = pools.free(true) {
            pools.hold(ip, &key(&given.len().to_string()));
            given.push(ip.to_string());
        }
        assert_eq!(given, ["192.0.2.1", "192.0.2.2", "192.0.2.9"]);
        assert!(pools.release(&key("0"), &[]) && !pools.release(&key("0"), &[]));
        assert_eq!(pools.free(true), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(pools.free(false), None);
        let whole = Pools {
            ranges: vec!["255.255.255.255".parse().unwrap()],
            taken: [("255.255.255.255".parse().unwrap(), key("x"))].into(),
        };
        assert_eq!(whole.free(true), None);
    }
}
