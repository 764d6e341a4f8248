//! The Service feed -> the kernel, and then whoever else on this node follows the same snapshot.
//!
//! | module | |
//! |---|---|
//! | `health` | what is said to probes, pure |
//! | `metrics`, `local`, `traffic` | what is counted |
//! | `ports` | who else has a NodePort's port |
//! | `serve`, `servers`, `checks` | who is answered, where |
//! | `voice` | what is wrong, in the log and in Events |
//!
//! Invariants: events that arrived together are applied together; the kernel comes first, so that a name never leads to
//! an address that does not forward yet; before all watches have listed nothing is told at all, so that what a
//! predecessor left in the kernel goes on as it was. An API server that is away changes nothing, and one that comes
//! back changes what differs.
//!
//! Deliberately not here: who else follows ([`Follower`]), and where the settings come from.

mod checks;
mod health;
mod local;
mod metrics;
mod ports;
mod serve;
mod servers;
mod traffic;
mod voice;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use jiff::Timestamp;
use kube::Client;
use portolan_client::{Feed, FeedItem, Recorder, Scope, service_feed};
use portolan_dataplane::{DataPlane, Report};
use portolan_model::forwarding::Family;
use portolan_model::{Delta, Event, Service, ServiceId, Snapshot};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::memory;

use checks::Checks;
use local::Locals;
use metrics::Round;
use ports::Ports;
use serve::serve_at;
use servers::{HealthServer, MetricsServer, Shared, TrafficRequest};
use traffic::Traffic;
use voice::{Reason, Voice};

/// How soon what could not be had is tried again: at first, and at most, doubling in between.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(30);
/// Events applied in one go at most, so that a flood cannot postpone the first of it for ever.
const LARGEST_BATCH: usize = 10_000;
/// Scrapes that may wait for the plane at once.
const TRAFFIC_REQUESTS: usize = 4;
/// As `kubectl describe` shows under "From".
const COMPONENT: &str = "portolan-proxy";

pub(crate) const HEALTHZ_PORT: u16 = 10256;
pub(crate) const METRICS_PORT: u16 = 10249;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) node_name: String,
    pub(crate) scope: Scope,
    /// How often the kernel is read back to find what somebody changed by hand. An update may wait twice as long before
    /// the node counts as unhealthy.
    pub(crate) audit_period: Duration,
    /// Where `/healthz` and `/livez` answer.
    pub(crate) healthz: Option<SocketAddr>,
    /// Where `/metrics` and `/proxyMode` answer.
    pub(crate) metrics: Option<SocketAddr>,
    /// Whether one of these addresses that cannot be had is a reason to end.
    pub(crate) must_bind: bool,
}

/// What else follows the snapshot on this node, after the kernel.
pub(crate) trait Follower: Send {
    /// Takes in what the delta names; `first` when everything is in it for the first time.
    fn apply(&mut self, snapshot: &Snapshot, delta: &Delta, first: bool);

    /// Looks at the snapshot after every turn of the loop, whether or not anything changed.
    fn look(&mut self, snapshot: &Snapshot);

    /// Waits for something besides the snapshot to follow. Dropped and called anew at any time.
    fn hear(&mut self) -> impl Future<Output = ()> + Send;
}

/// Nobody.
impl Follower for () {
    fn apply(&mut self, _: &Snapshot, _: &Delta, _: bool) {}

    fn look(&mut self, _: &Snapshot) {}

    async fn hear(&mut self) {
        std::future::pending().await
    }
}

/// Runs until told to stop. What is in the kernel stays: connections outlive this process.
pub(crate) async fn run<F: Follower>(
    client: Client,
    settings: Settings,
    kernel: DataPlane,
    follower: F,
    shutdown: CancellationToken,
) -> Result<()> {
    let shared = Shared::new(settings.audit_period * 2);
    let mut parts = JoinSet::new();
    let must = settings.must_bind;
    let (ask, mut asked) = mpsc::channel(TRAFFIC_REQUESTS);
    if let Some(address) = settings.healthz {
        let server = Arc::new(HealthServer(shared.clone()));
        parts.spawn(async move { serve_at(address, "health", must, server).await });
    }
    if let Some(address) = settings.metrics {
        let server = Arc::new(MetricsServer { shared: shared.clone(), traffic: ask });
        parts.spawn(async move { serve_at(address, "metrics", must, server).await });
    }
    let (recorder, recording) = Recorder::new(client.clone(), &settings.node_name);
    let (voice, carrying) = Voice::new(client.clone(), recorder.component(COMPONENT));
    let (mut feed, driver) = service_feed(&client, &settings.scope);
    parts.spawn(async move {
        tokio::join!(recording, carrying, driver);
        Ok(())
    });
    let mut audit = tokio::time::interval_at(Instant::now() + settings.audit_period, settings.audit_period);
    audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut plane = Plane::new(settings.node_name, kernel, follower, voice, shared);
    loop {
        plane.follower.look(&plane.snapshot);
        let retry_at = plane.retry_at;
        let retry = async {
            match retry_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(ended) = parts.join_next() => {
                ended??;
                anyhow::bail!("the watches on Services ended by themselves");
            }
            Some(item) = feed.next() => plane.take(item, &mut feed).await,
            () = retry => plane.retry().await,
            _ = audit.tick(), if plane.synced => plane.audit().await,
            () = plane.kernel.changed(), if plane.synced => plane.moved().await,
            Some(reply) = asked.recv(), if plane.synced => plane.count(reply).await,
            () = plane.follower.hear(), if plane.synced => {}
        }
    }
}

struct Plane<F> {
    node_name: String,
    snapshot: Snapshot,
    kernel: DataPlane,
    follower: F,
    checks: Checks,
    ports: Ports,
    locals: Locals,
    voice: Voice,
    shared: Arc<Shared>,
    /// What has not been told yet. Until every watch has listed, a Service may be known without its endpoints, and
    /// telling that would break what a predecessor left working.
    pending: Delta,
    /// What the kernel refused, to be tried again.
    failed: Delta,
    retry_at: Option<Instant>,
    retry_pause: Duration,
    synced: bool,
    started: SystemTime,
}

/// What arrived together.
#[derive(Default)]
struct Batch {
    services: u64,
    endpoints: u64,
    /// When the changes of endpoints happened.
    happened: Vec<SystemTime>,
    synced: bool,
}

impl<F: Follower> Plane<F> {
    fn new(node_name: String, kernel: DataPlane, follower: F, voice: Voice, shared: Arc<Shared>) -> Self {
        Self {
            node_name,
            snapshot: Snapshot::default(),
            kernel,
            follower,
            checks: Checks::new(shared.clone()),
            ports: Ports::default(),
            locals: Locals::default(),
            voice,
            shared,
            pending: Delta::default(),
            failed: Delta::default(),
            retry_at: None,
            retry_pause: RETRY_FIRST,
            synced: false,
            started: SystemTime::now(),
        }
    }

    async fn take(&mut self, first: FeedItem, feed: &mut Feed) {
        let mut batch = Batch::default();
        let mut next = Some(first);
        for room in (0..LARGEST_BATCH).rev() {
            let Some(item) = next else { break };
            self.hear(item, &mut batch);
            // What is taken out of the feed has to be heard.
            next = if room > 0 { feed.try_next() } else { None };
        }
        if batch.services + batch.endpoints > 0 {
            self.shared.metrics().queued(batch.services, batch.endpoints, Timestamp::now());
        }
        if !batch.synced && (!self.synced || self.pending.is_empty()) {
            return;
        }
        // An API server that takes long for its first lists is no fault of this node's.
        self.shared.health().queued(Instant::now());
        let delta = std::mem::take(&mut self.pending);
        let began = Instant::now();
        let report = match batch.synced {
            true => {
                // Before the kernel's share of it takes the room that this leaves.
                self.snapshot.fit();
                self.kernel.synced(&self.snapshot).await
            }
            false => self.kernel.apply(&self.snapshot, &delta).await,
        };
        self.synced = true;
        self.note(report, batch.synced, began);
        let now = SystemTime::now();
        for happened in batch.happened {
            self.shared.metrics().programmed(now.duration_since(happened).unwrap_or_default());
        }
        self.follow(&delta, batch.synced).await;
    }

    /// Tells those who come after the kernel.
    async fn follow(&mut self, delta: &Delta, first: bool) {
        if first || !delta.nodes.is_empty() {
            let node = self.snapshot.node(&self.node_name);
            self.shared.health().node(node.is_some_and(|node| !node.going_away));
        }
        self.locals.apply(&self.snapshot, delta, &self.node_name);
        self.shared.metrics().holds(self.kernel.elements(), self.locals.total());
        let addresses = self.kernel.node_port_addresses(&self.snapshot);
        self.look_for_holders(delta, &addresses).await;
        let failed = self.checks.apply(&self.snapshot, delta, &self.locals, addresses).await;
        self.note_checks(failed);
        self.follower.apply(&self.snapshot, delta, first);
        if first {
            memory::give_back();
        }
    }

    /// Names those who listen where a new NodePort is: nobody reaches them any more.
    async fn look_for_holders(&mut self, delta: &Delta, addresses: &[IpAddr]) {
        match self.ports.apply(&self.snapshot, delta, addresses).await {
            Ok(held) => {
                for (service, holder) in held {
                    let message = format!(
                        "{} port {} of node {}, a NodePort of this Service, is held by {holder}: the Service has its \
                         traffic now; choose another port for one of the two",
                        holder.protocol,
                        holder.at.port(),
                        self.node_name
                    );
                    self.voice.say(&service, Reason::NodePortHeld, &message);
                }
            }
            Err(error) => tracing::warn!("cannot see whether somebody listens where NodePorts are: {}", chain(&error)),
        }
    }

    /// The node has other addresses than before.
    async fn moved(&mut self) {
        let began = Instant::now();
        let nothing = Delta::default();
        let report = self.kernel.apply(&self.snapshot, &nothing).await;
        self.note(report, false, began);
        self.follow(&nothing, false).await;
    }

    /// Answers a scrape, if the kernel can be read.
    async fn count(&mut self, reply: TrafficRequest) {
        self.shared.metrics().ended(&self.kernel.take_ended());
        let sizes = self.kernel.sizes().await;
        self.shared.metrics().rooms(self.kernel.rooms(), sizes);
        match self.kernel.traffic(&self.snapshot).await {
            // Whoever asked may have stopped waiting.
            Ok(counted) => drop(reply.send(Traffic::new(&self.snapshot, counted, self.kernel.led()))),
            Err(error) => tracing::warn!("cannot read what went through Services: {error}"),
        }
    }

    fn hear(&mut self, item: FeedItem, batch: &mut Batch) {
        match item {
            FeedItem::Synced => batch.synced = true,
            FeedItem::Change { event, happened } => {
                let count = match event {
                    Event::Service(_) | Event::ServiceGone(_) => Some(&mut batch.services),
                    Event::Slice(_) | Event::SliceGone(_) => Some(&mut batch.endpoints),
                    Event::Node(_) | Event::NodeGone(_) | Event::ServiceCidr(..) | Event::ServiceCidrGone(_) => None,
                };
                let delta = self.snapshot.apply(event);
                if delta.is_empty() {
                    return;
                }
                if let Some(count) = count {
                    *count += 1;
                }
                // What happened before this process began says nothing about how fast it is.
                batch.happened.extend(happened.filter(|happened| *happened >= self.started));
                self.pending.merge(delta);
            }
            FeedItem::Diagnostics { kind: "Service", namespace, name, diagnostics } => {
                let id = ServiceId::new(&namespace, &name);
                for diagnostic in diagnostics {
                    let message = format!("{}: {}", diagnostic.field, diagnostic.message);
                    self.voice.say(&id, Reason::Ignored, &message);
                }
            }
            FeedItem::Diagnostics { kind, namespace, name, diagnostics } => {
                for diagnostic in diagnostics {
                    tracing::warn!("{kind} {namespace}/{name}: {}: {}", diagnostic.field, diagnostic.message);
                }
            }
        }
    }

    /// Tries again what could not be had.
    async fn retry(&mut self) {
        self.retry_at = None;
        if !self.failed.is_empty() {
            let failed = std::mem::take(&mut self.failed);
            let began = Instant::now();
            let report = self.kernel.apply(&self.snapshot, &failed).await;
            self.note(report, false, began);
        }
        let failed = self.checks.retry().await;
        self.note_checks(failed);
    }

    async fn audit(&mut self) {
        let began = Instant::now();
        match self.kernel.audit(&self.snapshot).await {
            Ok(report) => {
                if report.repaired > 0 {
                    tracing::warn!("repaired {} elements and chains that somebody changed", report.repaired);
                }
                self.shared.metrics().audited(Some(report.repaired));
                self.note(report, true, began);
            }
            Err(error) => {
                self.shared.metrics().audited(None);
                tracing::warn!("cannot read the kernel back: {error}");
            }
        }
    }

    fn note(&mut self, report: Report, full: bool, began: Instant) {
        let now = Instant::now();
        let refused = !report.refused.is_empty();
        for (service, diagnostic) in report.diagnostics {
            let message = format!("{}: {}", diagnostic.field, diagnostic.message);
            self.voice.say(&service, Reason::Ignored, &message);
        }
        for (service, error) in report.refused {
            let message = format!("node {} does not forward it as it should: {}", self.node_name, chain(&*error));
            self.voice.say(&service, Reason::NotForwarded, &message);
            self.failed.services.insert(service);
        }
        let round = Round { full, took: now - began, operations: report.operations, refused, ended: Timestamp::now() };
        let mut metrics = self.shared.metrics();
        metrics.round(round);
        metrics.ended(&self.kernel.take_ended());
        metrics.refused(self.failed.services.len());
        drop(metrics);
        for family in Family::BOTH {
            if self.is_followed(family) {
                self.shared.health().updated(family, now);
            }
        }
        self.schedule_retry();
    }

    /// Whether the kernel has what the Services of the family ask for. One Service that it refuses is that Service's
    /// trouble, and not a reason to send nobody to this node any more: it would be the same on every node.
    fn is_followed(&self, family: Family) -> bool {
        let of_family = |service: &Service| service.cluster_ips.iter().any(|address| Family::of(*address) == family);
        let failed = self.failed.services.iter().filter_map(|id| self.snapshot.service(id));
        let failed = failed.filter(|service| of_family(service)).count();
        failed == 0 || failed < self.snapshot.services().filter(|service| of_family(service)).count()
    }

    fn note_checks(&mut self, failed: Vec<checks::Failed>) {
        for checks::Failed { id, address, error } in failed {
            let message = format!("node {} failed to start healthcheck on {address}: {error}", self.node_name);
            self.voice.say(&id, Reason::FailedToStartServiceHealthcheck, &message);
        }
        self.schedule_retry();
    }

    fn schedule_retry(&mut self) {
        if self.failed.is_empty() && !self.checks.is_incomplete() {
            self.retry_at = None;
            self.retry_pause = RETRY_FIRST;
        } else if self.retry_at.is_none() {
            self.retry_at = Some(Instant::now() + self.retry_pause);
            self.retry_pause = (self.retry_pause * 2).min(RETRY_LAST);
        }
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
