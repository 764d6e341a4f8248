//! Services, EndpointSlices, Nodes and ServiceCIDRs, watched and told in the model's words.
//!
//! Invariants: every object is translated and let go of, so that only its name is kept here, to notice at the next list
//! that it is gone; losing the API server tells nothing and takes nothing back; a kind that the server does not have,
//! or does not show to this client, counts as listed and empty, and is asked for again now and then.
//!
//! Deliberately not here: what did not change. A list made anew is told whole, and the snapshot knows what is new in
//! it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::SystemTime;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use portolan_model::{Diagnostic, Endpoint, Event, Names, ServiceId, SliceId, translate};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::backoff::{Backoff, REFUSED_AGAIN_AFTER, refused};

/// When an EndpointSlice's controller heard of what made it write the slice.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// A watch is begun anew after so many seconds, and given up a little later if the server does not answer any more.
const WATCH_SECONDS: u32 = 120;

/// What the feed tells, in order.
#[derive(Debug)]
pub enum FeedItem {
    Change {
        event: Event,
        /// When what this change shows happened, as far as its writer says. Only EndpointSlices do.
        happened: Option<SystemTime>,
    },
    /// One object's nonsense: for its Kubernetes Event and the log.
    Diagnostics { kind: &'static str, namespace: String, name: String, diagnostics: Vec<Diagnostic> },
    /// All four watches have listed: from now on what is not in the snapshot does not exist, and pruning is safe.
    Synced,
}

/// What the server is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything: DNS answers also for what no proxy forwards, and other Nodes matter to who answers for an address.
    Everything,
    /// What a proxy on the named node needs: Services that are not headless and not another proxy's, and its own Node.
    Proxy { node: String },
}

impl Scope {
    fn services(&self) -> watcher::Config {
        match self {
            Self::Everything => config(),
            Self::Proxy { .. } => {
                config().labels(&format!("!{},!{}", translate::HEADLESS_LABEL, translate::SERVICE_PROXY_NAME_LABEL))
            }
        }
    }

    fn nodes(&self) -> watcher::Config {
        match self {
            Self::Everything => config(),
            Self::Proxy { node } => config().fields(&format!("metadata.name={node}")),
        }
    }
}

pub(crate) fn config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS)
}

pub struct Feed {
    items: mpsc::UnboundedReceiver<FeedItem>,
}

impl Feed {
    /// The next item; `None` once the driver has been dropped and everything was read.
    pub async fn next(&mut self) -> Option<FeedItem> {
        self.items.recv().await
    }

    /// The next item if one is already there, so that what arrived together can be applied together.
    pub fn try_next(&mut self) -> Option<FeedItem> {
        self.items.try_recv().ok()
    }
}

/// The feed and the future that drives it until dropped.
pub fn service_feed(client: &Client, scope: &Scope) -> (Feed, impl Future<Output = ()> + Send + 'static) {
    let (sender, items) = mpsc::unbounded_channel();
    let unlisted = Arc::new(AtomicU8::new(4));
    let services = Watch::<Service>::new(&sender, &unlisted).drive(Api::all(client.clone()), scope.services());
    let slices = Watch::<EndpointSlice>::new(&sender, &unlisted).drive(Api::all(client.clone()), scope.services());
    let nodes = Watch::<Node>::new(&sender, &unlisted).drive(Api::all(client.clone()), scope.nodes());
    let cidrs = Watch::<ServiceCIDR>::new(&sender, &unlisted).drive(Api::all(client.clone()), config());
    let driver = async move {
        tokio::join!(services, slices, nodes, cidrs);
    };
    (Feed { items }, driver)
}

/// Namespace and name, in the very copies that events have.
type Name = (Arc<str>, Arc<str>);

fn name<K: Resource>(object: &K) -> Name {
    (object.namespace().unwrap_or_default().into(), object.name_any().into())
}

/// An API object that the model has words for.
trait Told: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static {
    const KIND: &'static str;
    /// Whether a server may do without this kind.
    const OPTIONAL: bool = false;

    /// `None` when nothing of it concerns us, any more or at all.
    fn translate(&self) -> Option<(Event, Vec<Diagnostic>)>;

    fn gone(name: &Name) -> Event;

    fn happened(&self) -> Option<SystemTime> {
        None
    }
}

impl Told for Service {
    const KIND: &'static str = "Service";

    fn translate(&self) -> Option<(Event, Vec<Diagnostic>)> {
        translate::service(self).map(|(service, diagnostics)| (Event::Service(service), diagnostics))
    }

    fn gone((namespace, name): &Name) -> Event {
        Event::ServiceGone(ServiceId { namespace: namespace.clone(), name: name.clone() })
    }
}

impl Told for EndpointSlice {
    const KIND: &'static str = "EndpointSlice";

    fn translate(&self) -> Option<(Event, Vec<Diagnostic>)> {
        let (mut slice, diagnostics) = translate::endpoint_slice(self)?;
        // Of all names the most, and nobody who follows the feed asks for them.
        slice.endpoints.iter_mut().for_each(Endpoint::forget_pod);
        Some((Event::Slice(slice), diagnostics))
    }

    fn gone((namespace, name): &Name) -> Event {
        Event::SliceGone(SliceId { namespace: namespace.clone(), name: name.clone() })
    }

    fn happened(&self) -> Option<SystemTime> {
        self.annotations().get(TRIGGER_TIME)?.parse::<Timestamp>().ok().map(SystemTime::from)
    }
}

impl Told for Node {
    const KIND: &'static str = "Node";

    fn translate(&self) -> Option<(Event, Vec<Diagnostic>)> {
        translate::node(self).map(|node| (Event::Node(node), Vec::new()))
    }

    fn gone((_, name): &Name) -> Event {
        Event::NodeGone(name.clone())
    }
}

impl Told for ServiceCIDR {
    const KIND: &'static str = "ServiceCIDR";
    /// Before Kubernetes 1.33 there were none, and roles written for kube-proxy do not mention them.
    const OPTIONAL: bool = true;

    fn translate(&self) -> Option<(Event, Vec<Diagnostic>)> {
        translate::service_cidrs(self).map(|(name, cidrs)| (Event::ServiceCidr(name, cidrs), Vec::new()))
    }

    fn gone((_, name): &Name) -> Event {
        Event::ServiceCidrGone(name.clone())
    }
}

/// One kind of object, watched.
struct Watch<K> {
    sender: mpsc::UnboundedSender<FeedItem>,
    /// Watches that have not listed yet.
    unlisted: Arc<AtomicU8>,
    listed: bool,
    known: BTreeSet<Name>,
    /// Those that a list under way has not named yet.
    missing: BTreeSet<Name>,
    names: Names,
    /// The last diagnostics told of each object, so that an unrelated update does not repeat them.
    told: BTreeMap<Name, Vec<Diagnostic>>,
    kind: PhantomData<K>,
}

impl<K: Told> Watch<K> {
    fn new(sender: &mpsc::UnboundedSender<FeedItem>, unlisted: &Arc<AtomicU8>) -> Self {
        Self {
            sender: sender.clone(),
            unlisted: unlisted.clone(),
            listed: false,
            known: BTreeSet::new(),
            missing: BTreeSet::new(),
            names: Names::default(),
            told: BTreeMap::new(),
            kind: PhantomData,
        }
    }

    async fn drive(mut self, api: Api<K>, config: watcher::Config) {
        let mut events = std::pin::pin!(watcher(api, config));
        let mut backoff = Backoff::default();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    backoff.heard(&event);
                    self.take(event);
                }
                // Once it has been shown, a refusal is a passing one: a server that has just started knows no roles
                // yet.
                Err(error) if K::OPTIONAL && !self.listed && refused(&error) => {
                    tracing::debug!(kind = K::KIND, %error, "the server does not show any");
                    self.listed();
                    tokio::time::sleep(REFUSED_AGAIN_AFTER).await;
                }
                Err(error) => backoff.pause(K::KIND, &error).await,
            }
            if self.sender.is_closed() {
                return;
            }
        }
    }

    fn take(&mut self, event: watcher::Event<K>) {
        match event {
            watcher::Event::Init => self.missing.clone_from(&self.known),
            watcher::Event::InitApply(object) => {
                self.missing.remove(&name(&object));
                self.applied(&object);
            }
            watcher::Event::InitDone => {
                for name in std::mem::take(&mut self.missing) {
                    self.gone(&name);
                }
                self.listed();
            }
            watcher::Event::Apply(object) => self.applied(&object),
            watcher::Event::Delete(object) => self.gone(&name(&object)),
        }
    }

    fn applied(&mut self, object: &K) {
        let Some((mut event, diagnostics)) = object.translate() else { return self.gone(&name(object)) };
        self.names.share(&mut event);
        let name = match &event {
            Event::Service(service) => (service.id.namespace.clone(), service.id.name.clone()),
            Event::Slice(slice) => (slice.id.namespace.clone(), slice.id.name.clone()),
            _ => name(object),
        };
        if diagnostics.is_empty() {
            self.told.remove(&name);
        } else if self.told.get(&name) != Some(&diagnostics) {
            self.told.insert(name.clone(), diagnostics.clone());
            let (namespace, name) = (name.0.to_string(), name.1.to_string());
            self.tell(FeedItem::Diagnostics { kind: K::KIND, namespace, name, diagnostics });
        }
        self.tell(FeedItem::Change { event, happened: object.happened() });
        self.known.insert(name);
    }

    fn gone(&mut self, name: &Name) {
        self.told.remove(name);
        if self.known.remove(name) {
            self.tell(FeedItem::Change { event: K::gone(name), happened: None });
        }
    }

    fn listed(&mut self) {
        // A tree that was filled in order is half empty.
        self.known = std::mem::take(&mut self.known).into_iter().collect();
        if !std::mem::replace(&mut self.listed, true) && self.unlisted.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.tell(FeedItem::Synced);
        }
    }

    fn tell(&self, item: FeedItem) {
        // A closed feed ends `drive` right after.
        let _ = self.sender.send(item);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    struct Lab {
        watch: Watch<Service>,
        items: mpsc::UnboundedReceiver<FeedItem>,
    }

    impl Lab {
        fn new() -> Self {
            let (sender, items) = mpsc::unbounded_channel();
            Self { watch: Watch::new(&sender, &Arc::new(AtomicU8::new(1))), items }
        }

        /// What the events come to, in words.
        fn tell(&mut self, events: impl IntoIterator<Item = watcher::Event<Service>>) -> Vec<String> {
            events.into_iter().for_each(|event| self.watch.take(event));
            let word = |item| match item {
                FeedItem::Change { event: Event::Service(service), .. } => format!("+{}", service.id.name),
                FeedItem::Change { event: Event::ServiceGone(id), .. } => format!("-{}", id.name),
                FeedItem::Diagnostics { name, .. } => format!("?{name}"),
                FeedItem::Synced => "synced".to_owned(),
                item @ FeedItem::Change { .. } => format!("{item:?}"),
            };
            std::iter::from_fn(|| self.items.try_recv().ok()).map(word).collect()
        }
    }

    fn service(name: &str, cluster_ip: &str) -> Service {
        let metadata = json!({"namespace": "shop", "name": name});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"clusterIP": cluster_ip}})).unwrap()
    }

    fn listed(services: &[Service]) -> Vec<watcher::Event<Service>> {
        let objects = services.iter().cloned().map(watcher::Event::InitApply);
        std::iter::once(watcher::Event::Init).chain(objects).chain([watcher::Event::InitDone]).collect()
    }

    /// Six attempts at a server that hangs up take a second and a half, and not a quarter.
    #[tokio::test]
    async fn a_server_that_fails_is_left_alone_for_longer_each_time() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = crate::connect_from(None, Some(&url)).await.unwrap();
        let (_feed, driver) = service_feed(&client, &Scope::Everything);
        let asked = async {
            let (mut lists, began) = (0, tokio::time::Instant::now());
            while lists < 6 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 64];
                let length = tokio::io::AsyncReadExt::read(&mut stream, &mut request).await.unwrap_or_default();
                lists += usize::from(request[..length].starts_with(b"GET /api/v1/services"));
            }
            began.elapsed()
        };
        let took = tokio::select! {
            () = driver => panic!("the watches ended"),
            took = tokio::time::timeout(Duration::from_secs(60), asked) => took.expect("six attempts"),
        };
        assert!(took >= Duration::from_secs(1), "{took:?}");
    }

    #[test]
    fn what_went_away_while_nobody_watched_is_told_once_the_list_is_whole() {
        let mut lab = Lab::new();
        let (a, b) = (service("a", "10.96.0.1"), service("b", "10.96.0.2"));
        assert_eq!(lab.tell(listed(&[a.clone(), b])), ["+a", "+b", "synced"]);
        assert_eq!(lab.tell([watcher::Event::Init, watcher::Event::InitApply(a.clone())]), ["+a"], "half a list");
        assert_eq!(lab.tell(listed(std::slice::from_ref(&a))), ["+a", "-b"]);
        assert_eq!(lab.tell([watcher::Event::Delete(a.clone()), watcher::Event::Delete(a)]), ["-a"]);
    }

    #[test]
    fn nonsense_is_told_again_only_when_it_is_new() {
        let mut lab = Lab::new();
        let (bad, good) = (service("a", "ten"), service("a", "10.96.0.1"));
        assert_eq!(lab.tell([watcher::Event::Apply(bad.clone())]), ["?a", "+a"]);
        assert_eq!(lab.tell([watcher::Event::Apply(bad.clone())]), ["+a"]);
        assert_eq!(lab.tell([watcher::Event::Apply(good), watcher::Event::Apply(bad)]), ["+a", "?a", "+a"]);
    }

    #[test]
    fn a_kind_that_the_server_does_not_have_is_no_failure() {
        let answered = |code, reason: &str| {
            let status = kube::core::Status::failure("no", reason).with_code(code);
            refused(&watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status))))
        };
        assert!(answered(404, "NotFound"), "before Kubernetes 1.33");
        assert!(answered(403, "Forbidden"), "a role written for kube-proxy");
        assert!(!answered(500, "InternalError") && !answered(401, "Unauthorized"), "that may pass");
    }

    #[test]
    fn a_proxy_asks_for_no_more_than_it_needs() {
        let scope = Scope::Proxy { node: "node1".to_owned() };
        let labels = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";
        assert_eq!(scope.services().label_selector.as_deref(), Some(labels));
        assert_eq!(scope.nodes().field_selector.as_deref(), Some("metadata.name=node1"));
        assert_eq!(Scope::Everything.services().label_selector, None);
    }
}
