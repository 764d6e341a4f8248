//! Snapshots and deltas -> the kernel of one network namespace, by all the means this crate has.
//!
//! Invariant: one order for every change: what is desired is settled once, nftables has it first, then the socket
//! programs, which leave to nftables what they cannot have, and flows and sockets are ended only when new ones can no
//! longer go their way.
//!
//! Deliberately not here: any of the means.

use std::io::Read;
use std::net::IpAddr;
use std::sync::Arc;

use portolan_model::forwarding::Frontend;
use portolan_model::{Delta, Diagnostic, ServiceId, Snapshot};

use crate::addresses::Addresses;
use crate::conntrack::Cleaner;
use crate::desired::Desired;
use crate::lock::Lock;
use crate::nft::{KernelRuleset, Reconciler, remove_everything};
use crate::sock::{self, Led, SockConfig, SockLb};
use crate::traffic::Counted;
use crate::{Error, FlowsEnded, ProxyConfig, Room, SetSize};

/// What a change came to.
#[derive(Debug, Default)]
pub struct Report {
    /// Elements deleted and inserted.
    pub operations: usize,
    /// Services whose change the kernel refused, with why. They are tried again with every later change and audit.
    pub refused: Vec<(ServiceId, Arc<Error>)>,
    /// What in the Services was left out, and why.
    pub diagnostics: Vec<(ServiceId, Diagnostic)>,
    /// Elements and chains found missing, changed or stray. Only an audit looks.
    pub repaired: usize,
}

/// Keeps the kernel's forwarding in one network namespace as the snapshot says. Only one can be open in a namespace.
pub struct DataPlane {
    config: ProxyConfig,
    desired: Desired,
    nft: Reconciler<KernelRuleset>,
    sockets: Option<SockLb>,
    addresses: Addresses,
    cleaner: Cleaner,
    _lock: Lock,
}

impl DataPlane {
    /// Takes charge of the calling thread's network namespace: makes the table, or adopts it as it was left, and lets
    /// the namespace forward. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Taken`] when another one is open in the namespace, by whatever process; otherwise what the kernel
    /// refused.
    pub async fn open(config: ProxyConfig) -> Result<Self, Error> {
        let lock = crate::lock::take()?;
        let_forward()?;
        let addresses = Addresses::open().await?;
        let nft = Reconciler::restore(KernelRuleset::open(&config).await?, config.counters).await?;
        let cleaner = Cleaner::start()?;
        let sockets = config.sockets.as_ref().and_then(open_sockets);
        let desired = Desired::default();
        Ok(Self { config, desired, nft, sockets, addresses, cleaner, _lock: lock })
    }

    /// Brings the kernel in line with what the delta names. When this returns, new connections go by the snapshot.
    ///
    /// After a start, call [`synced`](Self::synced) with the first complete snapshot before anything else: half a
    /// snapshot may have a Service without its endpoints. Until then what was adopted goes on forwarding.
    pub async fn apply(&mut self, snapshot: &Snapshot, delta: &Delta) -> Report {
        self.realize(snapshot, Some(delta)).await
    }

    async fn realize(&mut self, snapshot: &Snapshot, delta: Option<&Delta>) -> Report {
        let node = self.config.node_context(snapshot, self.addresses.known());
        let mut report = Report::default();
        let mut next = Some(self.desired.change(snapshot, delta, node));
        while let Some(mut change) = next {
            report.diagnostics.append(&mut change.diagnostics);
            let stale = self.nft.apply(&change, &mut report).await;
            let mut again = self.nft.take_due();
            if let Some(sockets) = &mut self.sockets {
                for (service, error) in sockets.apply(&change.services, &change.node) {
                    again.insert(service.clone());
                    report.refused.push((service, Arc::new(error.into())));
                }
            }
            self.desired.settle(again);
            self.cleaner.end(stale);
            next = self.desired.more(snapshot);
        }
        if delta.is_none() {
            let stale = self.nft.prune(&mut report).await;
            self.cleaner.end(stale);
            // Everything that there is has just come.
            self.desired.fit();
            self.nft.fit();
            if let Some(sockets) = &mut self.sockets {
                sockets.synced();
            }
        }
        report
    }

    /// Waits until the node itself has changed in a way that matters here: its addresses. Then [`apply`](Self::apply)
    /// has something to do, even with an empty delta. A caller may stop waiting at any point.
    pub async fn changed(&mut self) {
        self.addresses.changed().await;
    }

    /// The snapshot is complete: what an earlier life left and nobody asked for since is removed.
    pub async fn synced(&mut self, snapshot: &Snapshot) -> Report {
        self.realize(snapshot, None).await
    }

    /// Reads the kernel back and repairs what differs from what was last realized, and what was refused; lets the
    /// namespace forward again where somebody has stopped it. For a slow background tick and after suspicion. The table
    /// is read only if anybody else has changed any nftables since the latest time, which the number of the ruleset's
    /// generation tells; nothing tells that of the socket programs' maps, so a bounded part of them is looked at, and
    /// the next part at the next call. Services are compiled anew only if something was amiss.
    ///
    /// # Errors
    /// When the kernel cannot be read; nothing was changed then.
    pub async fn audit(&mut self, snapshot: &Snapshot) -> Result<Report, Error> {
        self.addresses.read().await?;
        let mut amiss = self.nft.look().await?;
        if let Some(sockets) = &mut self.sockets {
            amiss += sockets.audit()?;
        }
        let nothing = Delta::default();
        let mut report = self.realize(snapshot, (amiss == 0).then_some(&nothing)).await;
        report.repaired += amiss;
        match let_forward() {
            Ok(changed) => report.repaired += changed,
            Err(error) => tracing::warn!(%error, "what is not for this node itself goes no further"),
        }
        Ok(report)
    }

    /// Waits until the flows and sockets that earlier changes made stale are ended, which `apply` leaves to tasks of
    /// their own.
    pub async fn settled(&self) {
        self.cleaner.settle().await;
        if let Some(sockets) = &self.sockets {
            sockets.settled().await;
        }
    }

    /// What went through each frontend since it is there, restarts of this program included; empty unless
    /// `ProxyConfig::counters`. What the socket programs led past nftables is in [`led`](Self::led).
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub async fn traffic(&mut self, snapshot: &Snapshot) -> Result<Vec<Counted>, Error> {
        let counted = self.nft.counted().await?.into_iter();
        Ok(counted.filter_map(|(frontend, counts)| self.desired.counted(snapshot, frontend, counts)).collect())
    }

    /// Elements that are in place, for tables and metrics.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.nft.realized().len()
    }

    /// How often sockets were led through each frontend; empty where none are.
    #[must_use]
    pub fn led(&self) -> Vec<(ServiceId, Frontend, Led)> {
        self.sockets.as_ref().map(SockLb::led).unwrap_or_default()
    }

    /// How large each map and set of nftables is; the one of clients with session affinity only where the kernel says so,
    /// which newer ones do.
    pub async fn sizes(&mut self) -> Vec<SetSize> {
        self.nft.sizes().await
    }

    /// Of each map of the socket programs how full it is; empty where there are none. It costs a walk over the
    /// connections there are.
    #[must_use]
    pub fn rooms(&self) -> Vec<Room> {
        self.sockets.as_ref().map(SockLb::rooms).unwrap_or_default()
    }

    /// The flows that were ended since this was asked before, because they went where no Service leads any more.
    #[must_use]
    pub fn take_ended(&self) -> FlowsEnded {
        self.cleaner.take_ended()
    }

    /// The addresses that take NodePort traffic.
    #[must_use]
    pub fn node_port_addresses(&self, snapshot: &Snapshot) -> Vec<IpAddr> {
        self.config.node_context(snapshot, self.addresses.known()).node_port_addresses
    }
}

/// Where sockets cannot be led, nftables is complete without; what an earlier life attached must not go on with what it
/// knew then.
fn open_sockets(config: &SockConfig) -> Option<SockLb> {
    match SockLb::open(config) {
        Ok(sockets) => Some(sockets),
        Err(error) => {
            let causes: Vec<String> =
                std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
                    .map(ToString::to_string)
                    .collect();
            tracing::warn!("socket load balancing is off, and nftables forwards everything: {}", causes.join(": "));
            if let Err(error) = sock::cleanup(&config.pin_dir) {
                tracing::warn!(%error, "the socket programs of an earlier run could not be removed");
            }
            None
        }
    }
}

/// Removes everything that a [`DataPlane`] ever made in the calling thread's network namespace, and the sessions
/// with it. Established connections go on. The sysctls stay: others may have come to rely on them. Socket programs are
/// not of the namespace: [`sock::cleanup`] removes them.
///
/// # Errors
/// [`Error::Taken`] while one is open there.
pub async fn cleanup() -> Result<(), Error> {
    let _lock = crate::lock::take()?;
    remove_everything().await
}

/// A packet for a backend elsewhere, and the answer to it, cross this node. Says how much had to be changed for that.
fn let_forward() -> Result<usize, Error> {
    let v4 = ensure_sysctl("net.ipv4.ip_forward", "1", true)?;
    // Absent where the kernel has no IPv6, and then there is nothing to forward.
    let v6 = ensure_sysctl("net.ipv6.conf.all.forwarding", "1", false)?;
    Ok(usize::from(v4) + usize::from(v6))
}

/// Sets the sysctl unless it is set already, so that a read-only `/proc/sys` does no harm where nothing has to change.
/// Says whether it had to.
fn ensure_sysctl(key: &'static str, value: &'static str, required: bool) -> Result<bool, Error> {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    let mut found = String::new();
    let read = std::fs::File::open(&path).and_then(|mut file| file.read_to_string(&mut found));
    if read.is_ok() && found.trim() == value {
        return Ok(false);
    }
    match std::fs::write(&path, value) {
        Err(error) if !required && error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true).map_err(|source| Error::Sysctl { key, value, source }),
    }
}
