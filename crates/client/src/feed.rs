//! Services, EndpointSlices, Nodes and ServiceCIDRs, watched and told in the model's words.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use portolan_model::{Diagnostic, Event, ServiceId, SliceId, translate};
use tokio::sync::mpsc;

use crate::{Cache, Change};

/// What the feed tells, in order.
#[derive(Debug)]
pub enum FeedItem {
    Event(Event),
    /// One object's nonsense: for its Kubernetes Event and the log.
    Diagnostics {
        kind: &'static str,
        namespace: String,
        name: String,
        diagnostics: Vec<Diagnostic>,
    },
    /// All four watches have listed: from now on what is not in the snapshot does not exist, and pruning is safe.
    Synced,
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
///
/// Nothing is left out: what a proxy must not forward (headless, or another proxy's) the Service says of itself, because
/// DNS answers for it all the same, and needs the slices that carry the label `service.kubernetes.io/headless`.
pub fn service_feed(client: &Client) -> (Feed, impl Future<Output = ()> + Send + 'static) {
    let (services, drive_services) = Cache::<Service>::new(Api::all(client.clone()), watcher::Config::default());
    let (slices, drive_slices) = Cache::<EndpointSlice>::new(Api::all(client.clone()), watcher::Config::default());
    let (nodes, drive_nodes) = Cache::<Node>::new(Api::all(client.clone()), watcher::Config::default());
    let (cidrs, drive_cidrs) = Cache::<ServiceCIDR>::new(Api::all(client.clone()), watcher::Config::default());
    let (sender, items) = mpsc::unbounded_channel();
    let translate = Translator {
        services: services.subscribe(),
        slices: slices.subscribe(),
        nodes: nodes.subscribe(),
        cidrs: cidrs.subscribe(),
        unsynced: 4,
        told: BTreeMap::new(),
        sender,
    };
    let driver = async move {
        tokio::join!(drive_services, drive_slices, drive_nodes, drive_cidrs, translate.run());
    };
    (Feed { items }, driver)
}

struct Translator {
    services: mpsc::UnboundedReceiver<Change<Service>>,
    slices: mpsc::UnboundedReceiver<Change<EndpointSlice>>,
    nodes: mpsc::UnboundedReceiver<Change<Node>>,
    cidrs: mpsc::UnboundedReceiver<Change<ServiceCIDR>>,
    unsynced: u8,
    /// The last diagnostics told of each object, so that an unrelated update does not repeat them.
    told: BTreeMap<(&'static str, String, String), Vec<Diagnostic>>,
    sender: mpsc::UnboundedSender<FeedItem>,
}

impl Translator {
    async fn run(mut self) {
        let mut synced = [false; 4];
        loop {
            tokio::select! {
                Some(change) = self.services.recv() => self.service(change, &mut synced[0]),
                Some(change) = self.slices.recv() => self.slice(change, &mut synced[1]),
                Some(change) = self.nodes.recv() => self.node(change, &mut synced[2]),
                Some(change) = self.cidrs.recv() => self.cidr(change, &mut synced[3]),
                else => return,
            }
            if self.sender.is_closed() {
                return;
            }
        }
    }

    fn tell(&self, item: FeedItem) {
        // A closed feed ends `run` right after.
        let _ = self.sender.send(item);
    }

    fn diagnose(&mut self, kind: &'static str, namespace: Option<String>, name: String, diagnostics: Vec<Diagnostic>) {
        let namespace = namespace.unwrap_or_default();
        let key = (kind, namespace.clone(), name.clone());
        if diagnostics.is_empty() {
            self.told.remove(&key);
        } else if self.told.get(&key) != Some(&diagnostics) {
            self.told.insert(key, diagnostics.clone());
            self.tell(FeedItem::Diagnostics { kind, namespace, name, diagnostics });
        }
    }

    fn mark(&mut self, synced: &mut bool) {
        if !std::mem::replace(synced, true) {
            self.unsynced -= 1;
            if self.unsynced == 0 {
                self.tell(FeedItem::Synced);
            }
        }
    }

    fn service(&mut self, change: Change<Service>, synced: &mut bool) {
        match change {
            Change::Applied { new, .. } => {
                if let Some((service, diagnostics)) = translate::service(&new) {
                    self.diagnose("Service", new.namespace(), new.name_any(), diagnostics);
                    self.tell(FeedItem::Event(Event::Service(service)));
                }
            }
            Change::Deleted(old) => {
                self.diagnose("Service", old.namespace(), old.name_any(), Vec::new());
                let id = ServiceId::new(&old.namespace().unwrap_or_default(), &old.name_any());
                self.tell(FeedItem::Event(Event::ServiceGone(id)));
            }
            Change::Synced => self.mark(synced),
        }
    }

    fn slice(&mut self, change: Change<EndpointSlice>, synced: &mut bool) {
        let gone = |slice: &EndpointSlice| {
            Event::SliceGone(SliceId::new(&slice.namespace().unwrap_or_default(), &slice.name_any()))
        };
        match change {
            Change::Applied { new, .. } => match translate::endpoint_slice(&new) {
                Some((slice, diagnostics)) => {
                    self.diagnose("EndpointSlice", new.namespace(), new.name_any(), diagnostics);
                    self.tell(FeedItem::Event(Event::Slice(slice)));
                }
                // It may have belonged to a Service until its label was taken away.
                None => self.tell(FeedItem::Event(gone(&new))),
            },
            Change::Deleted(old) => {
                self.diagnose("EndpointSlice", old.namespace(), old.name_any(), Vec::new());
                self.tell(FeedItem::Event(gone(&old)));
            }
            Change::Synced => self.mark(synced),
        }
    }

    fn node(&mut self, change: Change<Node>, synced: &mut bool) {
        match change {
            Change::Applied { new, .. } => {
                if let Some(node) = translate::node(&new) {
                    self.tell(FeedItem::Event(Event::Node(node)));
                }
            }
            Change::Deleted(old) => self.tell(FeedItem::Event(Event::NodeGone(Arc::from(old.name_any())))),
            Change::Synced => self.mark(synced),
        }
    }

    fn cidr(&mut self, change: Change<ServiceCIDR>, synced: &mut bool) {
        match change {
            Change::Applied { new, .. } => {
                if let Some((name, cidrs)) = translate::service_cidrs(&new) {
                    self.tell(FeedItem::Event(Event::ServiceCidr(name, cidrs)));
                }
            }
            Change::Deleted(old) => self.tell(FeedItem::Event(Event::ServiceCidrGone(Arc::from(old.name_any())))),
            Change::Synced => self.mark(synced),
        }
    }
}
