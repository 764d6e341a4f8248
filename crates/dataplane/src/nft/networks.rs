//! Networks of source addresses <-> single addresses that stand for them, so that one hash table holds networks of all
//! lengths.
//!
//! A packet's source is looked up once for each length that networks have. So they have few lengths, and a network of
//! another is cut into some of the next.
//!
//! Invariant: what stands for a network stands for no other, of whatever length.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::forwarding::Family;

/// Networks of addresses are looked up length by length, so they have one of few: a multiple of this.
const LENGTHS_APART: u8 = 4;

/// The lengths of networks that are looked up, the longest first.
pub(super) fn lengths(family: Family) -> impl Iterator<Item = u8> {
    let whole = if family == Family::V4 { 32 } else { 128 };
    (LENGTHS_APART..whole).step_by(LENGTHS_APART.into()).rev()
}

/// The network in as many of the next of these lengths as make it up, eight at most; of everything, sixteen.
pub(super) fn cut(network: &IpNet) -> impl Iterator<Item = IpNet> {
    let length = network.prefix_len().next_multiple_of(LENGTHS_APART).max(LENGTHS_APART);
    network.subnets(length).into_iter().flatten()
}

/// One address that stands for a network of any length: its first, with the bit after the prefix set. No other network
/// has the same.
pub(super) fn mark(network: &IpNet) -> IpAddr {
    // The networks that are looked up have at least one bit more.
    let after = u32::from(network.max_prefix_len() - network.prefix_len()).saturating_sub(1);
    match network {
        IpNet::V4(network) => IpAddr::V4((network.network().to_bits() | 1 << after).into()),
        IpNet::V6(network) => IpAddr::V6((network.network().to_bits() | 1 << after).into()),
    }
}

/// The network that the address stands for; `None` if for none that is looked up.
pub(super) fn unmark(address: IpAddr) -> Option<IpNet> {
    let (after, first) = match address {
        IpAddr::V4(address) => {
            let bits = address.to_bits();
            (bits.trailing_zeros() + 1, IpAddr::V4((bits & bits.wrapping_sub(1)).into()))
        }
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            (bits.trailing_zeros() + 1, IpAddr::V6((bits & bits.wrapping_sub(1)).into()))
        }
    };
    let length =
        lengths(Family::of(address)).find(|length| u32::from(IpNet::from(address).prefix_len() - length) == after)?;
    IpNet::new(first, length).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_network_is_the_sum_of_its_pieces_and_each_is_known_again(address in any::<IpAddr>(), bits in 1u8..=128) {
            let whole = IpNet::from(address).max_prefix_len();
            let network = IpNet::new(address, bits.min(whole)).unwrap().trunc();
            let pieces: Vec<IpNet> = cut(&network).collect();
            prop_assert!(pieces.len() <= 8);
            prop_assert_eq!(IpNet::aggregate(&pieces), vec![network]);
            for piece in pieces {
                prop_assert!(piece.prefix_len() == whole || lengths(Family::of(address)).any(|bits| bits == piece.prefix_len()));
                if piece.prefix_len() < whole {
                    prop_assert_eq!(unmark(mark(&piece)), Some(piece));
                }
            }
        }
    }
}
