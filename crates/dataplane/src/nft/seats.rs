//! Backends -> the numbers under which the kernel remembers that a client was sent to them.
//!
//! The kernel computes a backend's number from the address and the port that it gave a connection, and when the client
//! comes again, looks for it among the backends of the frontend that was asked. So a client of a backend that is gone, or
//! that this frontend may not use, is remembered in vain, and nobody has to make the kernel forget it.
//!
//! Invariant: no such number is a slot's index, nor one of [`Sessions`](super::sessions::Sessions).
//!
//! Two backends of a frontend can have the same number: of ten, once in ten million times. The clients of one of them
//! are then sent to the other when they come again, and stay there.
//!
//! Source: kernel `nft_hash.c` and `jhash.h`, which is Bob Jenkins' lookup3.

use std::net::IpAddr;

use nlink::netlink::nftables::{Expr, HashKind, Register};
use portolan_model::forwarding::Backend;

/// There are so many numbers, from [`BASE`] on.
const NUMBERS: u32 = 1 << 29;
const BASE: u32 = 1 << 30;
/// Set besides where a backend is looked for in the outside set.
pub(super) const OUTSIDE: u32 = 1 << 29;
const SEED: u32 = 0;

/// The backend's number, the same in every build and on every machine of the same byte order.
pub(super) fn seat(backend: &Backend) -> u32 {
    let mut bytes = match backend.address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    // A port fills a register.
    bytes.extend([&backend.port.to_be_bytes()[..], &[0; 2]].concat());
    below(jhash(&bytes, SEED), NUMBERS) + BASE
}

/// Has the kernel put the number in place of an address and a port, which take so many bytes from the register on.
pub(super) fn compute_seat(register: Register, len: u32) -> Expr {
    let (kind, sreg) = (HashKind::Jenkins, Some(register));
    Expr::Hash { dreg: register, kind, sreg, len, modulus: NUMBERS, seed: Some(SEED), offset: BASE }
}

/// What a hash comes to below the bound, as the kernel has it.
pub(crate) fn below(hash: u32, bound: u32) -> u32 {
    let product = u64::from(hash) * u64::from(bound);
    u32::try_from(product >> 32).unwrap_or(u32::MAX)
}

/// The kernel's hash of some bytes.
pub(crate) fn jhash(bytes: &[u8], seed: u32) -> u32 {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let [mut a, mut b, mut c] = [0xdead_beef_u32.wrapping_add(length).wrapping_add(seed); 3];
    // The last piece is only empty where all is.
    let (pieces, last) = bytes.split_at(bytes.len().saturating_sub(1) / 12 * 12);
    for piece in pieces.chunks(12) {
        let [x, y, z] = words(piece).map(u32::from_ne_bytes);
        (a, b, c) = (a.wrapping_add(x), b.wrapping_add(y), c.wrapping_add(z));
        // After six turns each is itself again.
        for bits in [4, 6, 8, 16, 19, 4] {
            let mixed = a.wrapping_sub(c) ^ c.rotate_left(bits);
            (a, b, c) = (b, c.wrapping_add(b), mixed);
        }
    }
    if last.is_empty() {
        return c;
    }
    let [x, y, z] = words(last).map(u32::from_le_bytes);
    (a, b, c) = (a.wrapping_add(x), b.wrapping_add(y), c.wrapping_add(z));
    for bits in [14, 11, 25, 16, 4, 14, 24] {
        let mixed = (c ^ b).wrapping_sub(b.rotate_left(bits));
        (a, b, c) = (b, mixed, a);
    }
    b
}

/// Twelve bytes, zeroes where there are fewer.
fn words(piece: &[u8]) -> [[u8; 4]; 3] {
    let byte = |at: usize| piece.get(at).copied().unwrap_or_default();
    [0, 4, 8].map(|word| std::array::from_fn(|at| byte(word + at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        let text = b"Four score and seven years ago";
        for (bytes, seed, hash) in [
            (&text[..], 0, 0x1777_0551),
            (text, 1, 0xcd62_8161),
            (b"", 0, 0xdead_beef),
            (b"", 0xdead_beef, 0xbd5b_7dde),
        ] {
            assert_eq!(jhash(bytes, seed), hash, "{bytes:?}");
        }
    }

    #[test]
    fn a_seat_is_in_its_range() {
        for last in 0..=255 {
            for address in [IpAddr::from([10, 244, 1, last]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last.into()])] {
                let seat = seat(&Backend { address, port: 8080 });
                assert!((BASE..BASE + NUMBERS).contains(&seat) && seat & OUTSIDE == 0, "{seat:#x}");
            }
        }
    }
}
