//! What happened to a pod or the node -> Events in the API, repeats counted in one object.
//!
//! Invariant: telling never waits and never grows without bound; what does not fit is dropped and said in the log.
//! Source: `client-go/tools/record`.

use std::collections::{HashMap, VecDeque};
use std::future::Future;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;

use crate::pod::ephemeral;

const WAITING: usize = 1024;
/// Events whose repeats are counted; older ones start anew.
const REMEMBERED: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Told {
    namespace: String,
    kind: &'static str,
    name: String,
    uid: String,
    container: Option<String>,
    warning: bool,
    reason: &'static str,
    message: String,
}

#[derive(Clone)]
pub(super) struct Events(mpsc::Sender<Told>);

impl Events {
    /// Where to tell, and the future that writes it to the API.
    pub(super) fn new(client: Client, node: &str) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), write(client, node.to_owned(), receiver))
    }

    pub(super) fn normal(&self, pod: &Pod, container: Option<&str>, reason: &'static str, message: String) {
        self.tell(pod, container, false, reason, message);
    }

    pub(super) fn warning(&self, pod: &Pod, container: Option<&str>, reason: &'static str, message: String) {
        self.tell(pod, container, true, reason, message);
    }

    fn tell(&self, pod: &Pod, container: Option<&str>, warning: bool, reason: &'static str, message: String) {
        let mut init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        let path = container.map(|name| {
            let list = if init.any(|init| init.name == name) {
                "initContainers"
            } else if ephemeral(pod).iter().any(|one| one.name == name) {
                "ephemeralContainers"
            } else {
                "containers"
            };
            format!("spec.{list}{{{name}}}")
        });
        let told = Told {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            kind: "Pod",
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            container: path,
            warning,
            reason,
            message,
        };
        tracing::debug!(pod = %format_args!("{}/{}", told.namespace, told.name), %reason, message = %told.message, "event");
        if self.0.try_send(told).is_err() {
            tracing::debug!(%reason, "an event was dropped: the API is slower than what happens");
        }
    }
}

async fn write(client: Client, node: String, mut events: mpsc::Receiver<Told>) {
    let mut known: HashMap<Told, (String, i32)> = HashMap::new();
    let mut order: VecDeque<Told> = VecDeque::new();
    let mut number = 0u64;
    while let Some(told) = events.recv().await {
        let api: Api<Event> = Api::namespaced(client.clone(), &told.namespace);
        let now = Timestamp::now();
        if let Some((name, count)) = known.get_mut(&told) {
            *count += 1;
            let patch = json!({"count": count, "lastTimestamp": Time(now)});
            if api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok() {
                continue;
            }
        }
        number += 1;
        // Unique over restarts of the agent, and in the order of time.
        let name = format!("{}.{:x}{number:x}", told.name, now.as_nanosecond());
        match api.create(&PostParams::default(), &event(&told, &name, &node, now)).await {
            Ok(_) => {
                if known.insert(told.clone(), (name, 1)).is_none() {
                    order.push_back(told);
                }
                if order.len() > REMEMBERED
                    && let Some(oldest) = order.pop_front()
                {
                    known.remove(&oldest);
                }
            }
            Err(error) => tracing::debug!(%error, reason = told.reason, "cannot write an event"),
        }
    }
}

fn event(told: &Told, name: &str, node: &str, now: Timestamp) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(told.namespace.clone()),
            ..Default::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(told.kind.to_owned()),
            namespace: Some(told.namespace.clone()),
            name: Some(told.name.clone()),
            uid: Some(told.uid.clone()),
            field_path: told.container.clone(),
            ..Default::default()
        },
        type_: Some(if told.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(told.reason.to_owned()),
        message: Some(told.message.chars().take(1024).collect()),
        source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(node.to_owned()) }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Default::default()
    }
}
