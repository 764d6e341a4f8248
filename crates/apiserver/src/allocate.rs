//! Who holds which ClusterIP and which NodePort.
//!
//! Invariant: whatever a stored Service holds is taken here; what is taken here is stored, or belongs to a [`Claim`]
//! whose write is under way. Derived from the stored Services at the start; never a second truth. Which ranges there
//! are is what the stored ServiceCIDRs say when a claim is made.
//!
//! Automatic choices come from the upper part of each range first, so that the lower part stays free for people who
//! ask for a certain one. Source: KEP-3070 (addresses) and KEP-3668 (ports).

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;

/// Something of which there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Holding {
    Address(IpAddr),
    Port(u16),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Taken,
    /// With the range that there is.
    OutOfRange(String),
    /// Nothing is left to choose from.
    Full,
}

pub(crate) struct Allocator {
    cidrs: Vec<IpNet>,
    ports: RangeInclusive<u16>,
    taken: Mutex<HashSet<Holding>>,
}

impl Allocator {
    pub(crate) fn new(cidrs: Vec<IpNet>, ports: RangeInclusive<u16>) -> Arc<Self> {
        Arc::new(Self { cidrs, ports, taken: Mutex::default() })
    }

    /// The cluster's own ranges, which say what families there are.
    pub(crate) fn cidrs(&self) -> &[IpNet] {
        &self.cidrs
    }

    /// For a Service that is stored already, whether or not its holdings are what would be given out today.
    pub(crate) fn restore(&self, holdings: impl IntoIterator<Item = Holding>) {
        self.taken().extend(holdings);
    }

    /// Addresses are to come from these ranges.
    pub(crate) fn claim(self: &Arc<Self>, ranges: Vec<IpNet>) -> Claim {
        Claim { allocator: self.clone(), ranges, taken: Vec::new(), released: Vec::new() }
    }

    fn taken(&self) -> MutexGuard<'_, HashSet<Holding>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn snapshot(&self) -> Vec<Holding> {
        let mut all: Vec<_> = self.taken().iter().copied().collect();
        all.sort();
        all
    }
}

/// What a write takes and gives up. Dropped without [`Claim::commit`], it leaves everything as it was.
pub(crate) struct Claim {
    allocator: Arc<Allocator>,
    ranges: Vec<IpNet>,
    taken: Vec<Holding>,
    released: Vec<Holding>,
}

impl Claim {
    fn take(&mut self, holding: Holding) -> Result<(), Refusal> {
        if !self.allocator.taken().insert(holding) {
            return Err(Refusal::Taken);
        }
        self.taken.push(holding);
        Ok(())
    }

    pub(crate) fn address(&mut self, address: IpAddr) -> Result<(), Refusal> {
        let of_family = |cidr: &&IpNet| cidr.addr().is_ipv4() == address.is_ipv4();
        let ranges: Vec<_> = self.ranges.iter().filter(of_family).collect();
        if !ranges.iter().any(|cidr| hosts(cidr).contains(&number(address))) {
            let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
            return Err(Refusal::OutOfRange(ranges.join(",")));
        }
        self.take(Holding::Address(address))
    }

    pub(crate) fn port(&mut self, port: u16) -> Result<(), Refusal> {
        let ports = &self.allocator.ports;
        if !ports.contains(&port) {
            return Err(Refusal::OutOfRange(format!("{}-{}", ports.start(), ports.end())));
        }
        self.take(Holding::Port(port))
    }

    /// Any free address of the ranges of this family, of the first that has one.
    pub(crate) fn any_address(&mut self, ipv4: bool) -> Result<IpAddr, Refusal> {
        let cidrs = self.ranges.clone();
        for cidr in cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() == ipv4) {
            let range = hosts(cidr);
            let band = static_band(range.end() - range.start() + 2, 16, 256);
            let chosen = self.any(range, band, |number| Holding::Address(address(number, ipv4)));
            if let Some(Holding::Address(address)) = chosen {
                return Ok(address);
            }
        }
        Err(Refusal::Full)
    }

    pub(crate) fn any_port(&mut self) -> Result<u16, Refusal> {
        let (first, last) = (u128::from(*self.allocator.ports.start()), u128::from(*self.allocator.ports.end()));
        let band = static_band(last - first + 1, 32, 128);
        let port = |number| Holding::Port(u16::try_from(number).unwrap_or(u16::MAX));
        match self.any(first..=last, band, port) {
            Some(Holding::Port(port)) => Ok(port),
            _ => Err(Refusal::Full),
        }
    }

    /// A random free one above the first `band`; else the lowest free one of all.
    fn any(&mut self, range: RangeInclusive<u128>, band: u128, holding: impl Fn(u128) -> Holding) -> Option<Holding> {
        const TRIES: usize = 32;
        let upper = (range.start() + band).min(*range.end())..=*range.end();
        let allocator = self.allocator.clone();
        let mut taken = allocator.taken();
        let free = |number: &u128| !taken.contains(&holding(*number));
        let guessed = (0..TRIES).map(|_| rand::random_range(upper.clone())).find(free);
        // When so few are left that guessing fails, looking through all is quick enough.
        let chosen = holding(guessed.or_else(|| upper.chain(range).find(free))?);
        taken.insert(chosen);
        self.taken.push(chosen);
        Some(chosen)
    }

    /// To be free once the write is done.
    pub(crate) fn release(&mut self, holding: Holding) {
        self.released.push(holding);
    }

    /// The write is done.
    pub(crate) fn commit(mut self) {
        self.taken.clear();
        let released = std::mem::take(&mut self.released);
        let mut taken = self.allocator.taken();
        for holding in released {
            taken.remove(&holding);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut taken = self.allocator.taken();
        for holding in &self.taken {
            taken.remove(holding);
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => address.into(),
    }
}

fn address(number: u128, ipv4: bool) -> IpAddr {
    if ipv4 { IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into()) } else { IpAddr::V6(number.into()) }
}

/// Without the network's own address, and for IPv4 without the broadcast address.
fn hosts(cidr: &IpNet) -> RangeInclusive<u128> {
    let (first, last) = (number(cidr.network()), number(cidr.broadcast()));
    let last = if cidr.addr().is_ipv4() { last.saturating_sub(1) } else { last };
    (first + 1).min(last)..=last
}

/// How many at the beginning of a range are kept for those who ask for a certain one.
fn static_band(size: u128, share: u128, most: u128) -> u128 {
    if size <= 16 { 0 } else { (size / share).clamp(16, most) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocator(cidr: &str, ports: RangeInclusive<u16>) -> Arc<Allocator> {
        Allocator::new(vec![cidr.parse().unwrap()], ports)
    }

    #[test]
    fn bands_are_as_upstream() {
        // KEP-3070: /28 none … /24 16, /22 64, /20 256, /16 256.
        for (size, expected) in [(14, 0), (256, 16), (1024, 64), (4096, 256), (65536, 256), (1 << 20, 256)] {
            assert_eq!(static_band(size, 16, 256), expected, "{size}");
        }
        // KEP-3668: the default range of ports.
        assert_eq!(static_band(2768, 32, 128), 86);
    }

    #[test]
    fn automatic_ones_come_from_the_upper_band_until_it_is_full() {
        let allocator = allocator("10.0.0.0/24", 30000..=30100);
        let mut claim = allocator.claim(allocator.cidrs().to_vec());
        let mut seen = HashSet::new();
        for round in 0..254 {
            let IpAddr::V4(address) = claim.any_address(true).unwrap() else { panic!("an IPv4 address") };
            let last = address.octets()[3];
            assert!(last != 0 && last != 255);
            assert_eq!(last > 16, round < 238, "{address} in round {round}");
            assert!(seen.insert(address));
        }
        assert_eq!(claim.any_address(true), Err(Refusal::Full));
        assert_eq!(claim.any_address(false), Err(Refusal::Full));
        for _ in 0..101 {
            claim.any_port().unwrap();
        }
        assert_eq!(claim.any_port(), Err(Refusal::Full));
    }

    #[test]
    fn a_claim_given_up_leaves_no_trace() {
        let allocator = allocator("10.0.0.0/24", 30000..=30100);
        allocator.restore([Holding::Port(30001)]);
        let before = allocator.snapshot();
        let mut claim = allocator.claim(allocator.cidrs().to_vec());
        claim.address("10.0.0.5".parse().unwrap()).unwrap();
        claim.any_port().unwrap();
        claim.release(Holding::Port(30001));
        drop(claim);
        assert_eq!(allocator.snapshot(), before);

        let mut claim = allocator.claim(allocator.cidrs().to_vec());
        claim.address("10.0.0.5".parse().unwrap()).unwrap();
        claim.release(Holding::Port(30001));
        claim.commit();
        assert_eq!(allocator.snapshot(), [Holding::Address("10.0.0.5".parse().unwrap())]);
    }

    #[test]
    fn refusals() {
        let allocator = allocator("10.0.0.0/24", 30000..=30100);
        let mut claim = allocator.claim(allocator.cidrs().to_vec());
        claim.port(30000).unwrap();
        assert_eq!(claim.port(30000), Err(Refusal::Taken));
        assert_eq!(claim.port(80), Err(Refusal::OutOfRange("30000-30100".into())));
        for outside in ["10.0.1.1", "10.0.0.0", "10.0.0.255"] {
            assert_eq!(claim.address(outside.parse().unwrap()), Err(Refusal::OutOfRange("10.0.0.0/24".into())));
        }
    }

    #[test]
    fn small_ranges_work() {
        for cidr in ["10.0.0.0/30", "10.0.0.0/29", "fd00::/112", "fd00::/126"] {
            let allocator = allocator(cidr, 30000..=30000);
            let mut claim = allocator.claim(allocator.cidrs().to_vec());
            claim.any_address(!cidr.contains(':')).unwrap();
            assert_eq!(claim.any_port(), Ok(30000));
            assert_eq!(claim.any_port(), Err(Refusal::Full));
        }
    }
}
