//! The kernel's notifications -> the node's own addresses.
//!
//! Invariant: what is known was read after the latest notification that was heard, so that no change between two reads
//! is missed; it was listened before it was read for the first time.
//!
//! Deliberately not here: addresses that others cannot know, of loopback and of one link only. Links of pods come and
//! go with those all the time, and nothing about Services hangs on them.

use std::net::IpAddr;

use futures::{FutureExt, StreamExt};
use nlink::netlink::{Connection, OwnedEventStream, Route, RtnetlinkGroup};

use crate::Error;

pub(crate) struct Addresses {
    route: Connection<Route>,
    notifications: OwnedEventStream<Route>,
    /// Sorted.
    known: Vec<IpAddr>,
    /// A notification was heard and `known` not read since.
    due: bool,
}

impl Addresses {
    /// Those of the calling thread's network namespace.
    pub(crate) async fn open() -> Result<Self, Error> {
        let socket = |source| Error::Socket { what: "addresses", source: Box::new(source) };
        let listener = Connection::<Route>::new().map_err(socket)?;
        listener.subscribe(&[RtnetlinkGroup::Ipv4Addr, RtnetlinkGroup::Ipv6Addr]).map_err(socket)?;
        let notifications = listener.into_events().await;
        let route = Connection::<Route>::new().map_err(socket)?;
        let mut addresses = Self { route, notifications, known: Vec::new(), due: true };
        addresses.read().await?;
        Ok(addresses)
    }

    pub(crate) fn known(&self) -> &[IpAddr] {
        &self.known
    }

    /// Says whether they differ from those known before.
    pub(crate) async fn read(&mut self) -> Result<bool, Error> {
        let found = self.route.get_addresses().await;
        let found = found
            .map_err(|source| Error::Read { what: "the node's addresses".to_owned(), source: Box::new(source) })?;
        let mut found: Vec<IpAddr> = found.iter().filter_map(|address| address.address().copied()).collect();
        found.retain(|address| is_reachable(*address));
        found.sort_unstable();
        found.dedup();
        self.due = false;
        let changed = found != self.known;
        self.known = found;
        Ok(changed)
    }

    /// Waits until they are others than known. A caller may stop waiting at any point.
    pub(crate) async fn changed(&mut self) {
        loop {
            if !self.due {
                match self.notifications.next().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => tracing::debug!(%error, "notifications of addresses were lost"),
                    None => {
                        tracing::warn!("the kernel no longer tells of addresses; changes wait for the next audit");
                        std::future::pending::<()>().await;
                    }
                }
                self.due = true;
            }
            // One read is enough for all that have come by now.
            while let Some(Some(_)) = self.notifications.next().now_or_never() {}
            match self.read().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "a change of addresses waits for the next one or the next audit");
                    self.due = false;
                }
            }
        }
    }
}

/// Whether others than the node itself and its neighbours on a link can know the address.
fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}
