//! Renewals of this node's Lease -> until when this node may answer for external addresses.
//!
//! A node that cannot renew its Lease is given up by the others, and another one answers in its place. So the right to
//! answer comes with each renewal and runs out by itself, before anybody may give the node up. Once it has run out,
//! renewing is not enough: what this node knows may be from before it was given up.
//!
//! Invariant: after a lapse nothing is granted before the snapshot's Nodes are what the API answered after the renewal.

use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client};
use portolan_model::{Snapshot, translate};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub(crate) struct Fence {
    nodes: Api<Node>,
    renewals: watch::Receiver<Instant>,
    /// When the last renewal runs out.
    until: Instant,
    /// What was granted last.
    granted: Instant,
    looking: JoinSet<Result<Vec<Node>, kube::Error>>,
    /// The Nodes that the snapshot has to show.
    awaited: Option<Vec<Node>>,
}

impl Fence {
    /// `renewals` says when the last renewal of the Lease runs out.
    pub(crate) fn new(client: Client, renewals: watch::Receiver<Instant>) -> Self {
        let now = Instant::now();
        let nodes = Api::all(client);
        Self { nodes, renewals, until: now, granted: now, looking: JoinSet::new(), awaited: None }
    }

    /// Waits for something that may change what [`Fence::grant`] says.
    pub(crate) async fn hear(&mut self) {
        tokio::select! {
            Ok(()) = self.renewals.changed() => {
                self.until = *self.renewals.borrow_and_update();
                if self.granted <= Instant::now() {
                    self.look();
                }
            }
            Some(Ok(listed)) = self.looking.join_next() => match listed {
                Ok(nodes) => self.awaited = Some(nodes),
                // The next renewal brings the next try.
                Err(error) => tracing::debug!(%error, "cannot see whether this node was given up"),
            },
            else => std::future::pending().await,
        }
    }

    fn look(&mut self) {
        self.awaited = None;
        self.looking.abort_all();
        let nodes = self.nodes.clone();
        self.looking.spawn(async move { nodes.list(&ListParams::default()).await.map(|list| list.items) });
    }

    /// Until when this node may answer, if that is new.
    pub(crate) fn grant(&mut self, snapshot: &Snapshot) -> Option<Instant> {
        let now = Instant::now();
        let unbroken = now < self.granted;
        let fresh = self.awaited.as_ref().is_some_and(|nodes| shows(snapshot, nodes));
        if self.until <= now || self.until == self.granted || !(unbroken || fresh) {
            return None;
        }
        self.awaited = None;
        self.granted = self.until;
        Some(self.until)
    }
}

fn shows(snapshot: &Snapshot, nodes: &[Node]) -> bool {
    let mut listed: Vec<_> = nodes.iter().filter_map(translate::node).collect();
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    let mut known: Vec<_> = snapshot.nodes().collect();
    known.sort_by(|a, b| a.name.cmp(&b.name));
    known.into_iter().eq(&listed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use portolan_model::Event;
    use serde_json::json;

    use super::*;

    fn node(ready: &str) -> Node {
        let conditions = json!([{"type": "Ready", "status": ready}]);
        serde_json::from_value(json!({"metadata": {"name": "a"}, "status": {"conditions": conditions}})).unwrap()
    }

    /// A fence whose own listings come to nothing.
    fn fence() -> (Fence, watch::Sender<Instant>) {
        let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        let (sender, renewals) = watch::channel(Instant::now());
        (Fence::new(Client::try_from(config).unwrap(), renewals), sender)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lapse_ends_only_with_a_snapshot_that_shows_what_happened_meanwhile() {
        let (mut fence, renewals) = fence();
        let mut snapshot = Snapshot::default();
        let seen = |snapshot: &mut Snapshot, ready| snapshot.apply(Event::Node(translate::node(&node(ready)).unwrap()));
        let renew = async |fence: &mut Fence| {
            let until = Instant::now() + Duration::from_secs(2);
            renewals.send_replace(until);
            while fence.until != until {
                fence.hear().await;
            }
            until
        };
        seen(&mut snapshot, "True");
        let until = renew(&mut fence).await;
        assert_eq!(fence.grant(&snapshot), None, "nobody knows yet whether the snapshot is fresh");
        fence.awaited = Some(vec![node("True")]);
        assert_eq!(fence.grant(&snapshot), Some(until));
        assert_eq!(fence.grant(&snapshot), None, "that is nothing new");
        tokio::time::advance(Duration::from_secs(1)).await;
        let until = renew(&mut fence).await;
        assert_eq!(fence.grant(&snapshot), Some(until), "a renewal in time is enough");
        tokio::time::advance(Duration::from_secs(3)).await;
        let until = renew(&mut fence).await;
        fence.awaited = Some(vec![node("Unknown")]);
        assert_eq!(fence.grant(&snapshot), None, "it was given up, and does not know");
        seen(&mut snapshot, "Unknown");
        assert_eq!(fence.grant(&snapshot), Some(until));
        // Given up twice: what was seen after the first time proves nothing.
        tokio::time::advance(Duration::from_secs(3)).await;
        fence.awaited = Some(vec![node("Unknown")]);
        renew(&mut fence).await;
        assert_eq!(fence.grant(&snapshot), None);
    }
}
