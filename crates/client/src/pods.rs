//! The Pods of one node -> what somebody wants to know of them, by their metadata alone.
//!
//! Invariants: of a Pod that nobody wants to know anything of, nothing is kept; nothing is told before the first list
//! is whole, nor of a later one before that is; losing the API server takes nothing back. A server that does not show
//! Pods to this client is asked again now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;

use crate::backoff::{Backoff, REFUSED_AGAIN_AFTER, refused};
use crate::cache::Key;
use crate::feed::config;

/// What is known by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodsSeen<T> {
    NotYet,
    /// The server does not show Pods to this client.
    Refused,
    /// What was picked, of all the node's Pods together.
    Picked(BTreeSet<T>),
}

/// What `pick` takes from the Pods that are bound to the node, and the future that keeps it fresh until dropped.
pub fn pods_on<T>(
    client: &Client,
    node: &str,
    pick: impl Fn(&ObjectMeta) -> Option<T> + Send + 'static,
) -> (watch::Receiver<PodsSeen<T>>, impl Future<Output = ()> + Send + 'static)
where
    T: Ord + Clone + Send + Sync + 'static,
{
    let (sender, receiver) = watch::channel(PodsSeen::NotYet);
    let pods = Api::<PartialObjectMeta<Pod>>::all(client.clone());
    let config = config().fields(&format!("spec.nodeName={node}"));
    let driver = async move {
        let mut events = std::pin::pin!(watcher(pods, config));
        let mut picked = Picked { pick, known: BTreeMap::new(), listing: BTreeMap::new() };
        let mut backoff = Backoff::default();
        while let Some(event) = events.next().await {
            let is_listed = matches!(*sender.borrow(), PodsSeen::Picked(_));
            match event {
                Ok(event) => {
                    backoff.heard(&event);
                    if picked.take(event) {
                        let now = PodsSeen::Picked(picked.known.values().cloned().collect());
                        sender.send_if_modified(|seen| std::mem::replace(seen, now.clone()) != now);
                    }
                }
                // Once they have been shown, a refusal is a passing one: a server that has just started knows no roles
                // yet.
                Err(error) if !is_listed && refused(&error) => {
                    tracing::debug!(%error, "the server does not show Pods");
                    sender.send_replace(PodsSeen::Refused);
                    tokio::time::sleep(REFUSED_AGAIN_AFTER).await;
                }
                Err(error) => backoff.pause("Pod", &error).await,
            }
            if sender.is_closed() {
                return;
            }
        }
    };
    (receiver, driver)
}

struct Picked<T, F> {
    pick: F,
    known: BTreeMap<Key, T>,
    /// By a list under way.
    listing: BTreeMap<Key, T>,
}

impl<T, F: Fn(&ObjectMeta) -> Option<T>> Picked<T, F> {
    /// Says whether something else may be known now.
    fn take(&mut self, event: Event<PartialObjectMeta<Pod>>) -> bool {
        match event {
            Event::Init => {
                self.listing.clear();
                return false;
            }
            Event::InitApply(pod) => {
                self.listing.extend((self.pick)(&pod.metadata).map(|picked| (Key::of(&pod), picked)));
                return false;
            }
            Event::InitDone => self.known = std::mem::take(&mut self.listing),
            Event::Apply(pod) => match (self.pick)(&pod.metadata) {
                Some(picked) => drop(self.known.insert(Key::of(&pod), picked)),
                None => drop(self.known.remove(&Key::of(&pod))),
            },
            Event::Delete(pod) => drop(self.known.remove(&Key::of(&pod))),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;

    /// A server that refuses for so many times, then has two Pods, and says nothing more.
    fn server(refusals: usize) -> (Client, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let number = count.fetch_add(1, Ordering::Relaxed);
            let query = request.uri().query().unwrap_or_default().to_owned();
            async move {
                assert!(query.contains("fieldSelector=spec.nodeName%3Dnode1"), "{query}");
                let pod = |name: &str, uid: &str| json!({"metadata": {"namespace": "shop", "name": name, "uid": uid}});
                let (status, body) = match number {
                    number if number < refusals => {
                        (403, json!({"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403}))
                    }
                    _ if query.contains("watch=true") => std::future::pending().await,
                    _ => (200, json!({"metadata": {"resourceVersion": "7"}, "items": [pod("a", "1"), pod("b", "2")]})),
                };
                let response = Response::builder().status(status).body(Body::from(body.to_string().into_bytes()));
                Ok::<_, std::convert::Infallible>(response.unwrap())
            }
        });
        (Client::new(service, "default"), asked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_refuses_is_asked_again_and_then_followed() {
        let (client, asked) = server(2);
        let of_a = |metadata: &ObjectMeta| metadata.uid.clone().filter(|uid| uid == "1");
        let (mut seen, driver) = pods_on(&client, "node1", of_a);
        let began = Instant::now();
        let follow = async {
            assert_eq!(*seen.borrow(), PodsSeen::NotYet);
            seen.wait_for(|seen| *seen == PodsSeen::Refused).await.unwrap();
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
            let picked = PodsSeen::Picked(BTreeSet::from(["1".to_owned()]));
            seen.wait_for(|seen| *seen == picked).await.unwrap();
        };
        tokio::select! {
            () = driver => panic!("the watch ended"),
            () = follow => {}
        }
        assert!(began.elapsed() >= 2 * REFUSED_AGAIN_AFTER, "{:?}", began.elapsed());
        assert!(asked.load(Ordering::Relaxed) >= 3);
    }

    #[test]
    fn what_is_no_longer_wanted_is_let_go_of() {
        let pod = |name: &str, uid: Option<&str>| {
            let metadata = json!({"namespace": "shop", "name": name, "uid": uid});
            serde_json::from_value::<PartialObjectMeta<Pod>>(json!({"metadata": metadata})).unwrap()
        };
        let pick = |metadata: &ObjectMeta| metadata.uid.clone();
        let mut picked = Picked { pick, known: BTreeMap::new(), listing: BTreeMap::new() };
        let mut after = |event| picked.take(event).then(|| picked.known.values().cloned().collect::<Vec<_>>().concat());
        assert_eq!(after(Event::Init), None);
        assert_eq!(after(Event::InitApply(pod("a", Some("1")))), None);
        assert_eq!(after(Event::InitApply(pod("b", None))), None, "half a list");
        assert_eq!(after(Event::InitDone).as_deref(), Some("1"));
        assert_eq!(after(Event::Apply(pod("b", Some("2")))).as_deref(), Some("12"));
        assert_eq!(after(Event::Apply(pod("a", None))).as_deref(), Some("2"));
        assert_eq!(after(Event::Delete(pod("b", Some("2")))).as_deref(), Some(""));
    }
}
