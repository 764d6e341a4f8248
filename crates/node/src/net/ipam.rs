//! Which addresses of the node's pod network are taken.
//!
//! Invariant: no address is given out twice while it is held; the network's first two addresses, its last, and the
//! node's own are never given. The next free one after the last given is taken, so that an address rests before it is
//! used again.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

#[derive(Debug)]
pub(crate) struct Ipam {
    net: Ipv4Net,
    taken: BTreeSet<Ipv4Addr>,
    last: Ipv4Addr,
}

impl Ipam {
    pub(crate) fn new(net: Ipv4Net) -> Self {
        Self { net, taken: BTreeSet::new(), last: net.network() }
    }

    pub(crate) fn net(&self) -> Ipv4Net {
        self.net
    }

    /// Marks an address that a running pod has. `false` if another has it already, or it is not of this network.
    pub(crate) fn take(&mut self, address: Ipv4Addr) -> bool {
        self.net.contains(&address) && self.taken.insert(address)
    }

    /// A free address, or `None` when the network is full.
    pub(crate) fn give(&mut self) -> Option<Ipv4Addr> {
        let first = u32::from(self.net.network()).checked_add(2)?;
        let last = u32::from(self.net.broadcast()).checked_sub(1)?;
        let from = u32::from(self.last).saturating_add(1).max(first);
        let free = (from..=last).chain(first..from.min(last.saturating_add(1)));
        let address = free.map(Ipv4Addr::from).find(|address| !self.taken.contains(address))?;
        self.taken.insert(address);
        self.last = address;
        Some(address)
    }

    /// Giving back what was not taken succeeds.
    pub(crate) fn release(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ipam(net: &str) -> Ipam {
        Ipam::new(net.parse().unwrap())
    }

    #[test]
    fn all_but_the_special_addresses_are_given_once() {
        let mut ipam = ipam("10.244.1.0/29");
        let given: Vec<_> = std::iter::from_fn(|| ipam.give()).map(|address| address.octets()[3]).collect();
        assert_eq!(given, [2, 3, 4, 5, 6]);
        ipam.release("10.244.1.3".parse().unwrap());
        assert_eq!(ipam.give(), Some("10.244.1.3".parse().unwrap()));
    }

    #[test]
    fn a_released_address_rests() {
        let mut ipam = ipam("10.244.1.0/24");
        let first = ipam.give().unwrap();
        ipam.release(first);
        assert_ne!(ipam.give(), Some(first));
    }

    #[test]
    fn what_runs_already_is_respected() {
        let mut ipam = ipam("10.244.1.0/24");
        assert!(ipam.take("10.244.1.2".parse().unwrap()));
        assert!(!ipam.take("10.244.1.2".parse().unwrap()));
        assert!(!ipam.take("10.244.2.2".parse().unwrap()));
        assert_eq!(ipam.give(), Some("10.244.1.3".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn never_twice(steps in prop::collection::vec(any::<Option<u8>>(), 0..200)) {
            let mut ipam = ipam("10.244.1.0/27");
            let mut held: Vec<Ipv4Addr> = Vec::new();
            for step in steps {
                match step {
                    Some(which) if !held.is_empty() => {
                        let address = held.swap_remove(usize::from(which) % held.len());
                        ipam.release(address);
                    }
                    _ => if let Some(address) = ipam.give() {
                        prop_assert!(!held.contains(&address));
                        prop_assert!(ipam.net().contains(&address));
                        held.push(address);
                    } else {
                        prop_assert_eq!(held.len(), 29);
                    },
                }
            }
        }
    }
}
