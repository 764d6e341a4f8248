//! Everything about a Service -> what keeps it from working, or from working as meant.
//!
//! Each check is a function of its own that adds reasons; they are ordered so that the first one told is the first one
//! to mend.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerPort, Pod, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use portolan_model::{Diagnostic, Service, ServiceId, ServiceType, Snapshot, TrafficPolicy, translate};

use super::pods::{why_node_down, why_not_ready};
use super::{Objects, addresses, labels, own_slices};

/// How many objects of one kind of trouble are named before the rest is only counted.
const NAMED: usize = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reason {
    /// Whether clients go unanswered because of it.
    pub(super) breaks: bool,
    pub(super) what: String,
    /// What to do about it.
    pub(super) remedy: Option<String>,
}

struct Reasons<'a> {
    objects: &'a Objects,
    snapshot: &'a Snapshot,
    id: &'a ServiceId,
    spec: ServiceSpec,
    found: Vec<Reason>,
}

pub(super) fn reasons(
    objects: &Objects,
    snapshot: &Snapshot,
    id: &ServiceId,
    diagnostics: Vec<(String, Diagnostic)>,
) -> Vec<Reason> {
    let spec = objects.service.spec.clone().unwrap_or_default();
    let mut reasons = Reasons { objects, snapshot, id, spec, found: Vec::new() };
    let Some(service) = snapshot.service(id) else {
        reasons.breaks("the Service cannot be understood at all", None);
        return reasons.found;
    };
    if let ServiceType::ExternalName(target) = &service.service_type {
        reasons.external_name(target);
    } else {
        reasons.cluster_ip(service);
        reasons.backends(service);
        reasons.load_balancer(service);
        reasons.local_policy(service);
    }
    if service.foreign_proxy {
        let label = translate::SERVICE_PROXY_NAME_LABEL;
        reasons.breaks(
            format!("the label {label} leaves the Service to another proxy"),
            Some(format!("remove the label {label} if no such proxy runs")),
        );
    }
    for (whose, Diagnostic { field, message }) in diagnostics {
        reasons.remarks(format!("{whose}, {field}: {message}"), None);
    }
    reasons.found
}

impl Reasons<'_> {
    fn breaks(&mut self, what: impl Into<String>, remedy: Option<String>) {
        self.found.push(Reason { breaks: true, what: what.into(), remedy });
    }

    fn remarks(&mut self, what: impl Into<String>, remedy: Option<String>) {
        self.found.push(Reason { breaks: false, what: what.into(), remedy });
    }

    fn external_name(&mut self, target: &str) {
        if target.is_empty() {
            self.breaks("the Service names nothing: spec.externalName is empty", Some("set spec.externalName".into()));
        } else if target.parse::<std::net::IpAddr>().is_ok() {
            self.breaks(
                format!(
                    "spec.externalName is the address {target}, but an alias leads to a name: no resolver follows it"
                ),
                Some("make it a Service without a selector, with an EndpointSlice that holds the address".into()),
            );
        } else if target.trim_end_matches('.').starts_with(&format!("{}.{}.svc.", self.id.name, self.id.namespace)) {
            self.breaks("the Service is an alias of itself", Some("name something else in spec.externalName".into()));
        }
        if self.spec.selector.as_ref().is_some_and(|selector| !selector.is_empty()) {
            self.remarks("spec.selector has no effect: the type is ExternalName", None);
        }
    }

    fn cluster_ip(&mut self, service: &Service) {
        if !service.headless && service.cluster_ips.is_empty() {
            self.breaks(
                "the Service has no ClusterIP yet: the API server gives one when it stores the Service",
                Some("delete the Service and create it again".into()),
            );
        }
        if service.ports.is_empty() && !service.headless {
            self.breaks("the Service has no port that could be understood", Some("give spec.ports".into()));
        }
    }

    /// Why there is nobody to answer, or fewer than meant.
    fn backends(&mut self, service: &Service) {
        let selector = self.spec.selector.clone().unwrap_or_default();
        if selector.is_empty() {
            self.hand_written(service);
            return;
        }
        let matching: Vec<&Pod> =
            self.objects.pods.iter().filter(|pod| labels::matches(&selector, pod.labels())).collect();
        if matching.is_empty() {
            self.nothing_selected(&selector);
            return;
        }
        let unready: Vec<(String, String)> = matching
            .iter()
            .filter_map(|pod| {
                let why = why_not_ready(pod, &self.objects.nodes, &self.objects.events)?;
                Some((pod.name_any(), why))
            })
            .collect();
        let none_ready = unready.len() == matching.len();
        // Not ready but published, or leaving but still serving, is better than nobody.
        let usable = addresses::endpoints(self.snapshot, self.id).any(|e| e.ready || (e.serving && e.terminating));
        if none_ready {
            let what = format!(
                "{} match{} the selector {}, but none is ready",
                pods(matching.len()),
                if matching.len() == 1 { "es" } else { "" },
                labels::join(&selector)
            );
            self.found.push(Reason { breaks: !usable, what, remedy: None });
        }
        for (pod, why) in unready.iter().take(NAMED) {
            self.found.push(Reason { breaks: false, what: format!("pod {pod} is not ready: {why}"), remedy: None });
        }
        if unready.len() > NAMED {
            self.remarks(format!("and so are {} more", unready.len() - NAMED), None);
        }
        let unanswered = self.target_ports(&matching);
        let endpoints = addresses::endpoints(self.snapshot, self.id).filter(|endpoint| endpoint.ready).count();
        if !none_ready && endpoints == 0 && !unanswered {
            self.breaks(
                "pods are ready, but no EndpointSlice lists them",
                Some("see whether the EndpointSlice controller runs; it writes within a second".into()),
            );
        }
        self.dead_nodes();
    }

    fn nothing_selected(&mut self, wanted: &BTreeMap<String, String>) {
        let selector = labels::join(wanted);
        let namespace = &self.id.namespace;
        let candidates: Vec<(String, &BTreeMap<String, String>)> =
            self.objects.pods.iter().map(|pod| (pod.name_any(), pod.labels())).collect();
        let nearest = labels::nearest(wanted, candidates.iter().map(|(name, labels)| (name.as_str(), *labels)));
        match nearest {
            None => self.breaks(
                format!("no pod matches the selector {selector}: there is no pod in namespace {namespace}"),
                Some(format!("create pods with the labels {selector}")),
            ),
            Some((pod, differs)) => self.breaks(
                format!("no pod matches the selector {selector}; the nearest is pod {pod}: {}", differs.join(" and ")),
                Some("change spec.selector, or the labels in the pods' template".into()),
            ),
        }
    }

    /// Named target ports that pods do not have, and protocols that differ. Says whether a port has nobody behind it.
    fn target_ports(&mut self, matching: &[&Pod]) -> bool {
        let mut unanswered = false;
        for port in self.spec.ports.clone().unwrap_or_default() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let title = title(&port);
            match port.target_port.clone().unwrap_or(IntOrString::Int(port.port)) {
                IntOrString::String(name) => {
                    let lacking: Vec<_> = matching
                        .iter()
                        .filter(|pod| {
                            !ports(pod).any(|p| p.name.as_deref() == Some(&name) && protocol_of(p) == protocol)
                        })
                        .collect();
                    let Some(first) = lacking.first() else { continue };
                    let there: Vec<_> = ports(first).map(describe_port).collect();
                    let there = if there.is_empty() {
                        "it names none".to_owned()
                    } else {
                        format!("it has {}", there.join(", "))
                    };
                    let all = lacking.len() == matching.len();
                    let who = if all {
                        "none of the pods has".to_owned()
                    } else {
                        format!("{} of {} lack", lacking.len(), pods(matching.len()))
                    };
                    let what = format!(
                        "port {title} leads to the pods' port named {name:?} ({protocol}), which {who}; as to pod {}: {there}",
                        first.name_any()
                    );
                    unanswered |= all;
                    let remedy = Some("change targetPort, or name the port in the pods' template".to_owned());
                    self.found.push(Reason { breaks: all, what, remedy });
                }
                IntOrString::Int(number) => {
                    let declared: Vec<_> = matching.iter().flat_map(|pod| ports(pod)).collect();
                    let same_number: Vec<_> = declared.iter().filter(|p| p.container_port == number).collect();
                    let other_protocol =
                        !same_number.is_empty() && same_number.iter().all(|p| protocol_of(p) != protocol);
                    if other_protocol {
                        self.remarks(
                            format!(
                                "port {title} sends {protocol} to port {number}, which the pods declare for {}",
                                protocol_of(same_number[0])
                            ),
                            Some("set the port's protocol in the Service, or the other in the pods' template".into()),
                        );
                    } else if same_number.is_empty() && !declared.is_empty() {
                        let there: Vec<_> = declared
                            .iter()
                            .map(|p| describe_port(p))
                            .collect::<std::collections::BTreeSet<_>>()
                            .into_iter()
                            .collect();
                        self.remarks(
                            format!("port {title} leads to port {number}, which no pod declares (that alone does no harm); they declare {}", there.join(", ")),
                            Some("see whether the program listens there; otherwise change targetPort".into()),
                        );
                    }
                }
            }
        }
        unanswered
    }

    /// A Service whose endpoints somebody else writes.
    fn hand_written(&mut self, service: &Service) {
        let slices: Vec<_> = own_slices(self.objects).collect();
        let label = format!("{}={}", translate::SERVICE_NAME_LABEL, self.id.name);
        if slices.is_empty() {
            self.breaks(
                "the Service has no selector, and nobody has written an EndpointSlice for it",
                Some(format!("give it a selector, or create an EndpointSlice with the label {label}")),
            );
            return;
        }
        let endpoints = addresses::endpoints(self.snapshot, self.id).count();
        let ready = addresses::endpoints(self.snapshot, self.id).filter(|endpoint| endpoint.ready).count();
        let names: Vec<_> = slices.iter().map(|slice| slice.name_any()).collect();
        let names = names.join(", ");
        if endpoints == 0 {
            self.breaks(
                format!("the Service has no selector, and its hand-written EndpointSlices hold no address: {names}"),
                Some("add endpoints to one of them".into()),
            );
        } else if ready == 0 {
            self.breaks(
                format!("none of the {endpoints} endpoints in the hand-written EndpointSlices is ready: {names}"),
                Some("set conditions.ready of those that can answer".into()),
            );
        }
        for port in &service.ports {
            let mut of_slices = self.snapshot.slices(self.id).flat_map(|slice| &slice.ports);
            if of_slices.any(|other| other.name == port.name && other.protocol == port.protocol) || endpoints == 0 {
                continue;
            }
            let there = self.snapshot.slices(self.id).flat_map(|slice| &slice.ports);
            let there: Vec<_> = there.map(|port| format!("{:?} ({})", &*port.name, port.protocol)).collect();
            self.breaks(
                format!(
                    "port {} of the Service is named {:?} ({}), but the EndpointSlices name {}",
                    port.port,
                    &*port.name,
                    port.protocol,
                    if there.is_empty() { "no port".to_owned() } else { there.join(", ") }
                ),
                Some("give the port the same name and protocol in both".into()),
            );
        }
        self.dead_nodes();
    }

    fn dead_nodes(&mut self) {
        let mut by_node: BTreeMap<&str, usize> = BTreeMap::new();
        for endpoint in addresses::endpoints(self.snapshot, self.id).filter(|endpoint| endpoint.ready) {
            if let Some(node) = endpoint.node.as_deref() {
                *by_node.entry(node).or_default() += 1;
            }
        }
        for (node, count) in by_node {
            if let Some(why) = why_node_down(node, &self.objects.nodes) {
                self.remarks(
                    format!(
                        "{} said to be ready, though {why}",
                        if count == 1 { "1 endpoint is".to_owned() } else { format!("{count} endpoints are") }
                    ),
                    None,
                );
            }
        }
    }

    fn load_balancer(&mut self, service: &Service) {
        if service.service_type != portolan_model::ServiceType::LoadBalancer || !service.load_balancer_ips.is_empty() {
            return;
        }
        let about = |event: &&k8s_openapi::api::core::v1::Event| {
            let object = &event.involved_object;
            object.kind.as_deref() == Some("Service") && object.name.as_deref() == Some(&*self.id.name)
        };
        let latest = self.objects.events.iter().filter(about).max_by_key(|e| e.last_timestamp.as_ref().map(|t| t.0));
        let said = latest.and_then(|event| event.message.clone());
        let class = self.spec.load_balancer_class.clone();
        let asked = self.spec.load_balancer_ip.clone().filter(|address| !address.is_empty());
        match (said, class, asked) {
            (Some(said), _, _) => self.breaks(format!("the LoadBalancer has no external address: {}", said.trim()), None),
            (None, Some(class), _) => self.breaks(
                format!("the LoadBalancer has no external address: its class {class} is left to whoever serves it"),
                Some("remove spec.loadBalancerClass (create the Service anew), or run what serves that class".into()),
            ),
            (None, None, Some(asked)) => self.breaks(
                format!("the LoadBalancer has no external address yet; it asks for {asked}, which must be free and in a pool"),
                None,
            ),
            (None, None, None) => self.breaks(
                "the LoadBalancer has no external address yet: the pool is empty or used up, or nobody hands addresses out",
                Some("see the Events of the Service; widen the pool with `portolan up --lb-pool`".into()),
            ),
        }
    }

    fn local_policy(&mut self, service: &Service) {
        let external = !service.load_balancer_ips.is_empty()
            || !service.external_ips.is_empty()
            || service.ports.iter().any(|port| port.node_port.is_some());
        let policies = [
            ("externalTrafficPolicy", service.external_policy, external, "from beyond the cluster"),
            ("internalTrafficPolicy", service.internal_policy, !service.headless, "of its own pods"),
        ];
        let serving: Vec<_> = addresses::endpoints(self.snapshot, self.id)
            .filter(|endpoint| endpoint.serving)
            .filter_map(|endpoint| endpoint.node.as_deref())
            .collect();
        if serving.is_empty() {
            return;
        }
        let without: Vec<_> = self
            .snapshot
            .nodes()
            .filter(|node| node.ready && !serving.contains(&&*node.name))
            .map(|node| node.name.to_string())
            .collect();
        for (field, policy, applies, whose) in policies {
            if policy == TrafficPolicy::Local && applies && !without.is_empty() {
                self.remarks(
                    format!(
                        "{field} is Local: on {} connections {whose} go unanswered, no endpoint is there",
                        without.join(", ")
                    ),
                    Some(format!("that is as asked; set {field}: Cluster, or run a pod on each node")),
                );
            }
        }
    }
}

fn ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers.flat_map(|container| container.ports.iter().flatten())
}

fn pods(count: usize) -> String {
    if count == 1 { "1 pod".to_owned() } else { format!("{count} pods") }
}

fn protocol_of(port: &ContainerPort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn describe_port(port: &ContainerPort) -> String {
    let number = format!("{}/{}", port.container_port, protocol_of(port));
    match port.name.as_deref() {
        Some(name) => format!("{name:?} ({number})"),
        None => format!("{number} without a name"),
    }
}

fn title(port: &ServicePort) -> String {
    match port.name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => format!("{} ({name})", port.port),
        None => port.port.to_string(),
    }
}
