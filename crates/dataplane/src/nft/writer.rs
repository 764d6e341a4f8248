//! A connection to the kernel's nftables that keeps count of what this program itself has committed.
//!
//! Invariant: the number of the ruleset's generation, which grows by one with every commit of anybody, is known as it
//! is if nobody else has committed anything, or not at all.

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBufForce;
use nlink::netlink::nftables::{SetElement, Transaction};
use nlink::netlink::{Connection, Nftables};
use portolan_model::forwarding::Family;

use super::maps::{Map, TABLE, nf_family};
use crate::Error;

/// The kernel takes a transaction whole or not at all, and by default none of more than 200 KiB, which is some thousand
/// endpoints. A Service may have [`MAX_BACKENDS`](portolan_model::forwarding::MAX_BACKENDS) at each of its addresses. It
/// is a bound only: memory is taken for what is sent.
const LONGEST_TRANSACTION: usize = 1 << 28;

pub(super) struct Writer {
    pub(super) connection: Connection<Nftables>,
    /// `None` before it was noted, and after a commit that nobody saw the end of.
    generation: Option<u32>,
}

impl Writer {
    /// In the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, Error> {
        Ok(Self { connection: connect()?, generation: None })
    }

    pub(super) async fn send(&mut self, transaction: Transaction, what: impl FnOnce() -> String) -> Result<(), Error> {
        let before = self.generation.take();
        let committed = transaction.commit(&self.connection).await;
        self.generation = before.map(|before| before.wrapping_add(u32::from(committed.is_ok())));
        committed.map_err(|source| Error::Refused { what: what(), source: Box::new(source) })
    }

    /// From now on is what [`is_touched`](Self::is_touched) tells.
    pub(super) async fn note_generation(&mut self) {
        let now = self.connection.generation().await;
        self.generation = now.inspect_err(|error| tracing::debug!(%error, "no generation")).ok();
    }

    /// Whether anybody else has committed anything. May say so wrongly, but not the reverse.
    pub(super) async fn is_touched(&self) -> bool {
        self.generation.is_none() || self.connection.generation().await.ok() != self.generation
    }

    pub(super) async fn elements(&self, family: Family, map: Map) -> Result<Vec<SetElement>, Error> {
        let elements = self.connection.list_set_elements(TABLE, map.name(), nf_family(family)).await;
        elements
            .map_err(|source| Error::Read { what: format!("{family:?} map {}", map.name()), source: Box::new(source) })
    }
}

pub(super) fn connect() -> Result<Connection<Nftables>, Error> {
    let connection = Connection::<Nftables>::new();
    let connection = connection.map_err(|source| Error::Socket { what: "nftables", source: Box::new(source) })?;
    // In a user namespace it stays as it is, and a transaction that is longer is refused.
    if let Err(error) = setsockopt(connection.socket(), SndBufForce, &LONGEST_TRANSACTION) {
        tracing::debug!(%error, "transactions are bounded by the send buffer that there is");
    }
    Ok(connection)
}
