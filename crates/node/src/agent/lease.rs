//! This node's Lease: the word, every half second, that it lives; and until when that word is good.
//!
//! Invariant: whoever gives a node up does so no sooner than [`LEASE_EXPIRY`] after a renewal reached the API. A
//! renewal is reckoned from before it was sent, and for less than that, so that the node knows first. Source:
//! `component-helpers/apimachinery/lease`.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Resource};
use portolan_client::{Cache, Key};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::host::Host;

const NAMESPACE: &str = "kube-node-lease";
const RENEWAL: Duration = Duration::from_millis(500);
/// What a lifecycle controller goes by: a node is dead after three renewals that did not come.
pub const LEASE_EXPIRY: Duration = Duration::from_millis(1500);
/// How long a renewal is good for, with time left to act on its end.
const GOOD_FOR: Duration = Duration::from_millis(1200);
const RETRY: Duration = Duration::from_millis(100);

/// Renews the Lease for ever, and tells `renewed` until when each renewal is good.
pub(super) async fn renew(host: &Host, nodes: &Cache<Node>, renewed: &watch::Sender<Instant>) {
    let api: Api<Lease> = Api::namespaced(host.client.clone(), NAMESPACE);
    let (name, since) = (&host.config.node_name, Timestamp::now());
    keep_up(renewed, || write(&api, name, since, nodes)).await;
}

async fn write(api: &Api<Lease>, name: &str, since: Timestamp, nodes: &Cache<Node>) -> Result<(), kube::Error> {
    let node = nodes.get(&Key::new("", name));
    let lease = lease(name, node.as_deref(), since, Timestamp::now());
    match api.patch(name, &PatchParams::default(), &Patch::Merge(&lease)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let lease = serde_json::from_value(lease).map_err(kube::Error::SerdeError)?;
            api.create(&PostParams::default(), &lease).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// What the Lease should say. It goes when the Node does.
fn lease(name: &str, node: Option<&Node>, since: Timestamp, now: Timestamp) -> Value {
    let mut metadata = json!({"name": name});
    if let Some(owner) = node.and_then(|node| node.owner_ref(&())) {
        metadata["ownerReferences"] = json!([owner]);
    }
    let spec = json!({
        "holderIdentity": name,
        // The API knows whole seconds only.
        "leaseDurationSeconds": LEASE_EXPIRY.as_millis().div_ceil(1000),
        // Tells a node that starts anew from one that is late.
        "acquireTime": MicroTime(since),
        "renewTime": MicroTime(now),
    });
    json!({"metadata": metadata, "spec": spec})
}

async fn keep_up<R>(renewed: &watch::Sender<Instant>, mut renew: impl FnMut() -> R)
where
    R: Future<Output = Result<(), kube::Error>>,
{
    loop {
        let sent = Instant::now();
        // A renewal that hangs must not keep the next from being tried.
        let next = match timeout(RENEWAL, renew()).await {
            Ok(Ok(())) => {
                renewed.send_replace(sent + GOOD_FOR);
                sent + RENEWAL
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "cannot renew the node's lease");
                Instant::now() + RETRY
            }
            Err(_) => {
                tracing::debug!("renewing the node's lease takes too long");
                Instant::now()
            }
        };
        sleep_until(next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_renewal_is_good_from_when_it_was_sent_and_a_failed_one_is_soon_tried_again() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let (renewed, seen) = watch::channel(start);
        // How long each answer takes, and whether it is a good one.
        let mut answers = [(300, true), (5, false), (5, true), (9000, true), (100, true)].into_iter();
        let mut log = Vec::new();
        let renewing = keep_up(&renewed, || {
            log.push((Instant::now(), *seen.borrow()));
            let (millis, good) = answers.next().unwrap_or((9000, false));
            async move {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                good.then_some(()).ok_or(kube::Error::TlsRequired)
            }
        });
        let _ = timeout(Duration::from_secs(5), renewing).await;
        let expected = [(0, 0), (500, 1200), (605, 1200), (1105, 1805), (1605, 1805), (2105, 2805)];
        assert_eq!(log[..expected.len()], expected.map(|(at, until)| (after(at), after(until))));
    }

    #[test]
    fn the_lease_belongs_to_the_node() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "a", "uid": "u"}})).unwrap();
        let lease: Lease =
            serde_json::from_value(lease("a", Some(&node), Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH)).unwrap();
        let owner = &lease.metadata.owner_references.unwrap()[0];
        assert_eq!((&*owner.kind, &*owner.uid, owner.controller), ("Node", "u", None));
    }
}
