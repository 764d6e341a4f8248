//! Services of type LoadBalancer -> external addresses from the pools, in `status.loadBalancer`.
//!
//! Invariants: what Services hold is taken in before anything is given out; an address once given stays, whatever
//! restarts; a wish that cannot be met changes nothing that is met. Deliberately not here: announcing the addresses,
//! and sharing one between Services.

mod pool;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Service};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use portolan_client::{Cache, Change, Key, Recorder};
use serde_json::json;

use crate::drive::{Controller, Effects, Outcome, drive, inputs};
use crate::endpointslice::endpoint::{Family, families};
use crate::queue::Queue;
use crate::{Shared, meta, refusal};
use pool::Pools;
pub use pool::{AddressRange, BadRange};

/// The `loadBalancerClass` that names this controller; a Service without a class is served too.
pub const CLASS: &str = "portolan.dev/l2";
/// Annotations that ask for addresses, the first that is there counts; then `spec.loadBalancerIP`.
const WISHES: [&str; 3] = ["metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs", "lbipam.cilium.io/ips"];

pub(crate) async fn run(shared: Arc<Shared>) {
    let inputs = vec![inputs(&shared.caches.services, |change| change)];
    let mut pools = Pools { ranges: shared.config.lb_pools.clone(), ..Pools::default() };
    // Two Services may claim one address after a mishap; the older keeps it.
    let mut services = shared.caches.services.list();
    services.sort_by_cached_key(|service| service.creation_timestamp().map(|time| time.0));
    for service in services.iter().filter(|service| is_ours(service) && !meta::is_terminating(&***service)) {
        held(service).into_iter().for_each(|ip| pools.hold(ip, &Key::of(&**service)));
    }
    let controller = LoadBalancers {
        client: shared.client.clone(),
        events: shared.events.component("portolan-loadbalancer"),
        services: shared.caches.services.clone(),
        pools,
        waiting: BTreeMap::new(),
    };
    drive(controller, inputs, 8).await;
}

struct LoadBalancers {
    client: Client,
    events: Recorder,
    services: Cache<Service>,
    pools: Pools,
    /// Services whose wish could not be met, and why; they try again when an address becomes free.
    waiting: BTreeMap<Key, String>,
}

fn is_load_balancer(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer")
}

/// Whether its addresses are this controller's to give, or to take.
fn is_ours(service: &Service) -> bool {
    let class = service.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_deref());
    is_load_balancer(service) && class.is_none_or(|class| class == CLASS)
}

fn held(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    ingress.iter().filter_map(|ingress| ingress.ip.as_deref()?.parse().ok()).collect()
}

/// The addresses the Service asks for by name.
fn wishes(service: &Service) -> Result<Vec<IpAddr>, String> {
    let annotation = WISHES.iter().find_map(|name| meta::annotation(&service.metadata, name));
    let field = service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.as_deref());
    let text = annotation.or(field).unwrap_or("");
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().map_err(|_| format!("{part:?} is not an IP address"))).collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Keep,
    Assign(Vec<IpAddr>),
    Refuse(String),
}

/// What addresses the Service should have, one for each of its families.
fn decide(service: &Service, pools: &Pools) -> Decision {
    let key = Key::of(service);
    let wishes = match wishes(service) {
        Ok(wishes) => wishes,
        Err(reason) => return Decision::Refuse(reason),
    };
    let usable = |ip: IpAddr| pools.has(ip) && pools.holder(ip).is_none_or(|holder| *holder == key);
    for wish in &wishes {
        if !pools.has(*wish) {
            return Decision::Refuse(format!("{wish} is not in any address pool"));
        }
        if let Some(holder) = pools.holder(*wish).filter(|holder| **holder != key) {
            return Decision::Refuse(format!("{wish} is already in use by service {holder}"));
        }
    }
    let held = held(service);
    // Given, but the Service as the watch last told it does not show it yet.
    let promised = pools.held_by(&key);
    let both = service.spec.as_ref().and_then(|spec| spec.ip_family_policy.as_deref()) == Some("PreferDualStack");
    let mut assigned = Vec::new();
    let families = families(service);
    for family in &families {
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == (*family == Family::V4);
        // Whoever asks by name gets what it names, and nothing of a family it does not name.
        let ip = if wishes.is_empty() {
            let kept = held.iter().chain(&promised).filter(of_family).copied().find(|ip| usable(*ip));
            kept.or_else(|| pools.free(*family == Family::V4))
        } else {
            wishes.iter().find(of_family).copied()
        };
        match ip {
            Some(ip) => assigned.push(ip),
            None if both && families.len() > 1 => {}
            None if !wishes.is_empty() => {}
            None if !pools.serves(*family == Family::V4) => {
                return Decision::Refuse(format!("no address pool has {} addresses", family.address_type()));
            }
            None => return Decision::Refuse("no addresses left in the address pools".into()),
        }
    }
    if assigned.is_empty() {
        return Decision::Refuse("no address pool has an address that fits the families asked for".into());
    }
    if assigned == held && has_modes(service) { Decision::Keep } else { Decision::Assign(assigned) }
}

/// Whether each address says how it is to be treated by proxies.
fn has_modes(service: &Service) -> bool {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status.iter().flat_map(|status| status.ingress.iter().flatten()).all(|ingress| ingress.ip_mode.is_some())
}

impl Controller for LoadBalancers {
    const NAME: &'static str = "loadbalancer";
    type Input = Change<Service>;
    type Key = Key;

    fn observe(&mut self, change: Change<Service>, queue: &mut Queue<Key>) {
        match change {
            Change::Applied { new, .. } => {
                let key = Key::of(&*new);
                if is_ours(&new) && !meta::is_terminating(&*new) {
                    held(&new).into_iter().for_each(|ip| self.pools.hold(ip, &key));
                }
                queue.add(key);
            }
            // If there is one of its name again already, that may be at getting what the old one had.
            Change::Deleted(old) => queue.add(Key::of(&*old)),
            Change::Synced { .. } => {}
        }
    }

    fn reconcile(&mut self, key: &Key, queue: &mut Queue<Key>) -> Option<Effects> {
        let Some(service) = self.services.get(key) else {
            self.release(key, &[], queue);
            return None;
        };
        if !is_ours(&service) || meta::is_terminating(&*service) {
            // The address of a Service that is going, or no load balancer any more, goes; another controller's stays.
            if (!is_load_balancer(&service) || is_ours(&service)) && !held(&service).is_empty() {
                // It is free when the Service no longer shows it.
                return Some(self.write(service, &[]));
            }
            self.release(key, &[], queue);
            return None;
        }
        match decide(&service, &self.pools) {
            Decision::Keep => {
                self.waiting.remove(key);
                self.release(key, &held(&service), queue);
                None
            }
            Decision::Refuse(reason) => {
                if self.waiting.get(key) != Some(&reason) {
                    let message = format!("Failed to allocate IP for {key}: {reason}");
                    self.events.warning(&*service, "AllocationFailed", message);
                    self.waiting.insert(key.clone(), reason);
                }
                None
            }
            Decision::Assign(ips) => {
                self.waiting.remove(key);
                ips.iter().for_each(|ip| self.pools.hold(*ip, key));
                Some(self.write(service, &ips))
            }
        }
    }

    fn finish(&mut self, key: &Key, outcome: &Outcome, queue: &mut Queue<Key>) {
        // What was given stays held until the Service says otherwise, also if the write may or may not have happened;
        // a retry gives the same.
        if outcome.error.is_some() && self.services.get(key).is_none() {
            self.release(key, &[], queue);
        }
    }
}

impl LoadBalancers {
    fn release(&mut self, key: &Key, kept: &[IpAddr], queue: &mut Queue<Key>) {
        if kept.is_empty() {
            self.waiting.remove(key);
        }
        if self.pools.release(key, kept) {
            self.waiting.keys().for_each(|key| queue.add(key.clone()));
        }
    }

    fn write(&self, service: Arc<Service>, ips: &[IpAddr]) -> Effects {
        let api: Api<Service> = Api::namespaced(self.client.clone(), &service.namespace().unwrap_or_default());
        let ingress = ips.iter().map(|ip| LoadBalancerIngress {
            ip: Some(ip.to_string()),
            ip_mode: Some("VIP".into()),
            ..LoadBalancerIngress::default()
        });
        let ingress: Vec<_> = ingress.collect();
        let events = self.events.clone();
        let message = format!("Assigned IP {:?}", ips.iter().map(ToString::to_string).collect::<Vec<_>>());
        let status = LoadBalancerStatus { ingress: (!ingress.is_empty()).then_some(ingress) };
        Box::pin(async move {
            let patch = if status.ingress.is_some() { json!(status) } else { json!(null) };
            let patch = json!({
                "metadata": {"uid": service.uid(), "resourceVersion": service.resource_version()},
                "status": {"loadBalancer": patch},
            });
            let patched = api.patch_status(&service.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
            if patched.is_ok() && status.ingress.is_some() {
                events.normal(&*service, "IPAllocated", message);
            }
            refusal::ignore_not_found(patched).map(drop).into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn service(name: &str, spec: Value, annotations: Value, held: &[&str]) -> Service {
        let ingress: Vec<_> = held.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let mut service: Service = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "annotations": annotations},
            "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}}))
        .unwrap();
        service.spec.as_mut().unwrap().type_ = Some("LoadBalancer".into());
        service
    }

    #[tokio::test]
    async fn an_address_is_free_when_no_service_shows_it() {
        let (services, client) = (Cache::detached(), crate::nowhere());
        let (events, _) = Recorder::new(client.clone(), "");
        let (pools, waiting) = (pools(&[("192.0.2.1", "web")]), BTreeMap::new());
        let mut controller = LoadBalancers { client, events, services, pools, waiting };
        let mut queue = Queue::default();
        let mut show = |controller: &mut LoadBalancers, held: &[&str]| {
            let mut service = service("web", json!({}), json!({}), held);
            service.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
            controller.services.put(service.clone());
            let key = Key::of(&service);
            controller.observe(Change::Applied { new: Arc::new(service), old: None }, &mut queue);
            (controller.reconcile(&key, &mut queue).is_some(), controller.pools.held_by(&key).len())
        };
        // Something else keeps the Service from going.
        assert_eq!(show(&mut controller, &["192.0.2.1"]), (true, 1));
        assert_eq!(show(&mut controller, &[]), (false, 0));
    }

    /// The watch has shown the new one when the old one's deletion is told.
    #[tokio::test]
    async fn one_made_anew_keeps_what_it_was_given() {
        let (services, client) = (Cache::detached(), crate::nowhere());
        let (events, _) = Recorder::new(client.clone(), "");
        let mut controller = LoadBalancers { client, events, services, pools: pools(&[]), waiting: BTreeMap::new() };
        let mut queue = Queue::default();
        let anew = service("web", json!({}), json!({}), &[]);
        let key = Key::of(&anew);
        controller.services.put(anew.clone());
        assert!(controller.reconcile(&key, &mut queue).is_some());
        controller.observe(Change::Deleted(Arc::new(anew)), &mut queue);
        assert_eq!(controller.pools.held_by(&key).len(), 1);
        assert_eq!(queue.take(tokio::time::Instant::now()), Some(key));
    }

    fn pools(taken: &[(&str, &str)]) -> Pools {
        Pools {
            ranges: vec!["192.0.2.1-192.0.2.3".parse().unwrap(), "2001:db8::1-2001:db8::2".parse().unwrap()],
            taken: taken.iter().map(|(ip, name)| (ip.parse().unwrap(), Key::new("default", name))).collect(),
        }
    }

    fn check(spec: Value, annotations: Value, held: &[&str], taken: &[(&str, &str)], expected: &str) {
        let decision = decide(&service("web", spec.clone(), annotations.clone(), held), &pools(taken));
        let told = match decision {
            Decision::Keep => "keep".to_owned(),
            Decision::Assign(ips) => ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Decision::Refuse(reason) => reason,
        };
        assert_eq!(told, expected, "{spec} {annotations} {held:?} {taken:?}");
    }

    #[test]
    fn automatic_addresses() {
        check(json!({}), json!({}), &[], &[], "192.0.2.1");
        check(json!({}), json!({}), &[], &[("192.0.2.1", "other")], "192.0.2.2");
        check(json!({}), json!({}), &["192.0.2.3"], &[("192.0.2.3", "web")], "keep");
        check(json!({}), json!({}), &[], &[("192.0.2.1", "a"), ("192.0.2.3", "web")], "192.0.2.3");
        check(json!({"ipFamilies": ["IPv6"]}), json!({}), &[], &[], "2001:db8::1");
        check(json!({"ipFamilies": ["IPv6", "IPv4"]}), json!({}), &[], &[], "2001:db8::1 192.0.2.1");
        let full = [("192.0.2.1", "a"), ("192.0.2.2", "b"), ("192.0.2.3", "c")];
        check(json!({}), json!({}), &[], &full, "no addresses left in the address pools");
        let dual = json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack"});
        check(dual, json!({}), &[], &full, "2001:db8::1");
    }

    #[test]
    fn an_address_of_another_or_of_no_pool_is_exchanged() {
        check(json!({}), json!({}), &["192.0.2.1"], &[("192.0.2.1", "older")], "192.0.2.2");
        check(json!({}), json!({}), &["198.51.100.1"], &[], "192.0.2.1");
    }

    #[test]
    fn addresses_asked_for() {
        let field = json!({"loadBalancerIP": "192.0.2.2"});
        check(field.clone(), json!({}), &[], &[], "192.0.2.2");
        check(field.clone(), json!({}), &["192.0.2.1"], &[("192.0.2.1", "web")], "192.0.2.2");
        check(field.clone(), json!({}), &["192.0.2.2"], &[("192.0.2.2", "web")], "keep");
        check(
            field.clone(),
            json!({}),
            &[],
            &[("192.0.2.2", "other")],
            "192.0.2.2 is already in use by service default/other",
        );
        check(field, json!({WISHES[0]: "192.0.2.3"}), &[], &[], "192.0.2.3");
        check(json!({}), json!({WISHES[2]: "198.51.100.1"}), &[], &[], "198.51.100.1 is not in any address pool");
        check(json!({}), json!({WISHES[0]: "nonsense"}), &[], &[], "\"nonsense\" is not an IP address");
        let dual = json!({"ipFamilies": ["IPv4", "IPv6"]});
        check(dual, json!({WISHES[0]: "192.0.2.3, 2001:db8::2"}), &[], &[], "192.0.2.3 2001:db8::2");
        check(
            json!({"ipFamilies": ["IPv4"]}),
            json!({WISHES[0]: "2001:db8::2"}),
            &[],
            &[],
            "no address pool has an address that fits the families asked for",
        );
    }

    #[test]
    fn whose_services() {
        let mut ours = service("web", json!({}), json!({}), &[]);
        assert!(is_ours(&ours));
        ours.spec.as_mut().unwrap().load_balancer_class = Some(CLASS.into());
        assert!(is_ours(&ours));
        ours.spec.as_mut().unwrap().load_balancer_class = Some("other/one".into());
        assert!(!is_ours(&ours));
        ours.spec.as_mut().unwrap().load_balancer_class = None;
        ours.spec.as_mut().unwrap().type_ = Some("ClusterIP".into());
        assert!(!is_ours(&ours));
    }
}
