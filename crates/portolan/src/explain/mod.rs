//! `portolan explain SERVICE`: objects of the API -> in plain words, where a Service's addresses lead right now and,
//! if it does not work, why.
//!
//! Invariants: [`explain`] is pure; where a connection goes is not guessed here but asked of the same
//! `portolan_model::forwarding` that the kernel is programmed from; a reason names the object and the field to change.
//!
//! Deliberately not here: sending packets, or anything that only a node can know.

mod addresses;
mod labels;
mod pods;
mod reasons;
mod render;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Event, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use portolan_model::{ServiceId, Snapshot, translate};
use serde::de::DeserializeOwned;

use self::addresses::Address;
use self::reasons::Reason;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The Service
    service: String,
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// [default: the kubeconfig of `portolan up`, or ~/.kube/config]
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// The domain that Services have their names in
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
}

/// Everything that bears on one Service.
#[derive(Clone, Debug, Default)]
struct Objects {
    service: Service,
    /// Of the namespace: also those that are another Service's, or nobody's.
    slices: Vec<EndpointSlice>,
    pods: Vec<Pod>,
    nodes: Vec<Node>,
    /// Warnings about objects of the namespace.
    events: Vec<Event>,
}

/// What there is to say about one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Explanation {
    /// `default/web: ClusterIP, for pods with app=web`
    heading: String,
    /// What DNS answers, a line each.
    names: Vec<String>,
    addresses: Vec<Address>,
    /// Why it does not work, or not as meant; most important first.
    reasons: Vec<Reason>,
}

impl Explanation {
    /// Whether anything keeps clients from being answered.
    fn broken(&self) -> bool {
        self.reasons.iter().any(|reason| reason.breaks)
    }
}

fn explain(objects: &Objects, domain: &str) -> Explanation {
    let service = &objects.service;
    let mut snapshot = Snapshot::default();
    let mut diagnostics = Vec::new();
    if let Some((service, complaints)) = translate::service(service) {
        snapshot.apply(portolan_model::Event::Service(service));
        diagnostics.extend(complaints.into_iter().map(|complaint| ("the Service".to_owned(), complaint)));
    }
    for object in own_slices(objects) {
        if let Some((slice, complaints)) = translate::endpoint_slice(object) {
            let name = format!("EndpointSlice {}", slice.id.name);
            snapshot.apply(portolan_model::Event::Slice(slice));
            diagnostics.extend(complaints.into_iter().map(|complaint| (name.clone(), complaint)));
        }
    }
    for node in objects.nodes.iter().filter_map(translate::node) {
        snapshot.apply(portolan_model::Event::Node(node));
    }
    let id = ServiceId::new(&service.namespace().unwrap_or_default(), &service.name_any());
    let (addresses, complaints) = addresses::addresses(&snapshot, &id);
    diagnostics.extend(complaints.into_iter().map(|complaint| ("the Service".to_owned(), complaint)));
    Explanation {
        heading: heading(service),
        names: addresses::names(&snapshot, &id, domain),
        reasons: reasons::reasons(objects, &snapshot, &id, diagnostics),
        addresses,
    }
}

fn own_slices(objects: &Objects) -> impl Iterator<Item = &EndpointSlice> {
    let name = objects.service.name_any();
    objects.slices.iter().filter(move |slice| slice.labels().get(translate::SERVICE_NAME_LABEL) == Some(&name))
}

fn heading(service: &Service) -> String {
    let spec = service.spec.as_ref();
    let headless = spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None");
    let of_type = spec.and_then(|spec| spec.type_.as_deref()).unwrap_or("ClusterIP");
    let selector = spec.and_then(|spec| spec.selector.as_ref()).filter(|selector| !selector.is_empty());
    let whom = match selector {
        _ if of_type == "ExternalName" => String::new(),
        Some(selector) => format!(", for pods with {}", labels::join(selector)),
        None => ", for the addresses of hand-written EndpointSlices".to_owned(),
    };
    let of_type = if headless { "headless" } else { of_type };
    format!("{}/{}: {of_type}{whom}", service.namespace().unwrap_or_default(), service.name_any())
}

/// Explains one Service on stdout; the exit code says whether it works.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let kubeconfig = arguments.kubeconfig.clone().unwrap_or_else(usual_kubeconfig);
    let client = portolan_client::connect(&kubeconfig).await?;
    let objects = fetch(&client, &arguments.namespace, &arguments.service).await?;
    let explanation = explain(&objects, &arguments.cluster_domain);
    print!("{}", render::render(&explanation));
    Ok(if explanation.broken() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

pub(crate) fn usual_kubeconfig() -> PathBuf {
    let ours = Path::new(crate::up::data_dir::DEFAULT).join("kubeconfig");
    if ours.exists() {
        return ours;
    }
    std::env::home_dir().unwrap_or_default().join(".kube/config")
}

async fn fetch(client: &Client, namespace: &str, name: &str) -> Result<Objects> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let found = services.get_opt(name).await.with_context(|| format!("cannot read Service {namespace}/{name}"))?;
    let Some(service) = found else {
        let there = services.list(&ListParams::default()).await.context("cannot list Services")?;
        let names: BTreeSet<_> = there.items.iter().map(ResourceExt::name_any).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        bail!(
            "there is no Service {name} in namespace {namespace}{}",
            if names.is_empty() { ", nor any other".to_owned() } else { format!("; there are: {names}") }
        );
    };
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes.list(&ListParams::default()).await.context("cannot list Nodes")?.items;
    // Warnings only sharpen a reason; a server that does not know the field, or a user who may not, does without.
    let warnings = ListParams::default().fields("type=Warning");
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let events = events.list(&warnings).await.map(|events| events.items).unwrap_or_default();
    Ok(Objects { service, slices: all(client, namespace).await?, pods: all(client, namespace).await?, nodes, events })
}

async fn all<K>(client: &Client, namespace: &str) -> Result<Vec<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let list = api.list(&ListParams::default()).await;
    Ok(list.with_context(|| format!("cannot list {} in namespace {namespace}", K::plural(&())))?.items)
}
