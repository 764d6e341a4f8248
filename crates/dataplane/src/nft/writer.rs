//! A connection to the kernel's nftables that keeps count of what this program itself has committed.
//!
//! Invariant: the number of the ruleset's generation, which grows by one with every commit of anybody, is known as it
//! is if nobody else has committed anything; all who write here keep one account together.

use std::sync::Arc;

use nlink::netlink::nftables::{SetElement, Transaction};
use nlink::netlink::{Connection, Nftables};
use portolan_model::forwarding::Family;
use tokio::sync::Mutex;

use super::maps::{Map, TABLE, nf_family};
use crate::Error;

pub(super) struct Writer {
    pub(super) connection: Connection<Nftables>,
    /// `None` before it was noted. Held over a commit, so that the count and the kernel agree whenever it is free.
    generation: Arc<Mutex<Option<u32>>>,
}

impl Writer {
    /// In the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, Error> {
        Ok(Self { connection: connect()?, generation: Arc::default() })
    }

    /// One more, for another task.
    pub(super) fn another(&self) -> Result<Self, Error> {
        Ok(Self { connection: connect()?, generation: self.generation.clone() })
    }

    pub(super) async fn send(&self, transaction: Transaction, what: impl FnOnce() -> String) -> Result<(), Error> {
        let mut generation = self.generation.lock().await;
        let committed = transaction.commit(&self.connection).await;
        committed.map_err(|source| Error::Refused { what: what(), source: Box::new(source) })?;
        *generation = generation.map(|generation| generation.wrapping_add(1));
        Ok(())
    }

    /// From now on is what [`is_touched`](Self::is_touched) tells.
    pub(super) async fn note_generation(&self) {
        let mut generation = self.generation.lock().await;
        let now = self.connection.generation().await;
        *generation = now.inspect_err(|error| tracing::debug!(%error, "no generation")).ok();
    }

    /// Whether anybody else has committed anything. May say so wrongly, but not the reverse.
    pub(super) async fn is_touched(&self) -> bool {
        let generation = self.generation.lock().await;
        generation.is_none() || self.connection.generation().await.ok() != *generation
    }

    pub(super) async fn elements(&self, family: Family, map: Map) -> Result<Vec<SetElement>, Error> {
        let elements = self.connection.list_set_elements(TABLE, map.name(), nf_family(family)).await;
        elements
            .map_err(|source| Error::Read { what: format!("{family:?} map {}", map.name()), source: Box::new(source) })
    }
}

pub(super) fn connect() -> Result<Connection<Nftables>, Error> {
    Connection::<Nftables>::new().map_err(|source| Error::Socket { what: "nftables", source: Box::new(source) })
}
