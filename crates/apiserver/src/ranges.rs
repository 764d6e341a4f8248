//! ServiceCIDRs, which say where ClusterIPs come from; and IPAddresses, by which ClusterIPs are seen: kept true.
//!
//! Invariants: an address is given only out of a range that is there and is not going; a range stays until every
//! address in it is covered by another or given back; every ClusterIP has an IPAddress that names its Service, and
//! every IPAddress of this server's a Service that has it.
//! Source: KEP-1880; `pkg/controller/servicecidrs` and `ipallocator/controller/repairip.go`.

use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use portolan_kinds::Kind;
use portolan_store::{Event, Expect, Key, Op, Page, Store};
use serde_json::{Value, json};

use crate::object;
use crate::options::Options;
use crate::route::{Sub, Target};
use crate::server::Server;
use crate::services;
use crate::user::User;
use crate::warnings::Warnings;
use crate::write::{self, Asked};

/// Every range has it from its first moment; see `portolan_kinds`.
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: &str = "/metadata/labels/ipaddress.kubernetes.io~1managed-by";
/// The pause before a store that could not be read is read again.
const PAUSE: Duration = Duration::from_secs(1);

fn kind() -> &'static Kind {
    crate::known_kind("networking.k8s.io", "servicecidrs")
}

fn stored(store: &Store, kind: &Kind) -> Vec<(Key, Value)> {
    let all = store.list(&object::prefix(kind, None), &Page::default());
    all.map(|all| all.entries.into_iter().map(|(key, entry)| (key, object::decode(&entry.value))).collect())
        .unwrap_or_default()
}

fn ranges_of(range: &Value) -> Vec<IpNet> {
    let texts = range["spec"]["cidrs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// The ranges that addresses may come from, the cluster's own first.
pub(crate) fn current(store: &Store) -> Vec<IpNet> {
    let mut all = stored(store, kind());
    all.retain(|(_, range)| !object::is_deleting(range));
    all.sort_by_key(|(key, _)| (key.name() != "kubernetes", key.name().to_owned()));
    all.iter().flat_map(|(_, range)| ranges_of(range)).collect()
}

/// Follows ranges and addresses for as long as the server serves.
pub(crate) async fn run(server: &Server) -> Infallible {
    loop {
        let now = server.store.revision();
        let watches = (
            server.store.watch(object::prefix(kind(), None), now),
            server.store.watch(object::prefix(services::address_kind(), None), now),
        );
        let (Ok(mut ranges), Ok(mut addresses)) = watches else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        settle(server).await;
        loop {
            let batch = tokio::select! {
                batch = ranges.next() => batch.map(|_| Vec::new()),
                batch = addresses.next() => batch.map(|batch| batch.events),
            };
            // Too slow to have seen everything: from the start.
            let Ok(events) = batch else { break };
            for event in &events {
                repair(server, event).await;
            }
            settle(server).await;
        }
    }
}

/// Gives every range what it should say, and lets those go that may.
pub(crate) async fn settle(server: &Server) {
    let all = stored(&server.store, kind());
    for (key, range) in &all {
        let others = all.iter().filter(|(other, range)| other != key && !object::is_deleting(range));
        let others: Vec<IpNet> = others.flat_map(|(_, range)| ranges_of(range)).collect();
        let going = object::is_deleting(range);
        let needed = going && is_needed(&server.store, &ranges_of(range), &others);
        change(server, key, |range, now| match (going, needed) {
            (false, _) => set_ready(range, true, ("", "Kubernetes Service CIDR is ready"), now),
            (true, true) => {
                let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
                set_ready(range, false, ("Terminating", message), now);
            }
            (true, false) => {
                if let Some(Value::Array(list)) = object::metadata(range).get_mut("finalizers") {
                    list.retain(|name| name != FINALIZER);
                }
            }
        })
        .await;
    }
}

/// Whether there is an address in these ranges that is in none of the others.
fn is_needed(store: &Store, ranges: &[IpNet], others: &[IpNet]) -> bool {
    let Ok(all) = store.list(&object::prefix(services::address_kind(), None), &Page::default()) else { return true };
    let holds = |ranges: &[IpNet], address: &IpAddr| ranges.iter().any(|range| range.contains(address));
    let mut addresses = all.entries.iter().filter_map(|(key, _)| key.name().parse().ok());
    addresses.any(|address| holds(ranges, &address) && !holds(others, &address))
}

fn set_ready(range: &mut Value, ready: bool, (reason, message): (&str, &str), now: &str) {
    let status = if ready { "True" } else { "False" };
    let old = &range["status"]["conditions"][0];
    if old["type"] == "Ready" && old["status"] == status {
        return;
    }
    let condition =
        json!({"type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": now});
    object::member(range, "status").insert("conditions".into(), json!([condition]));
}

/// Writes the changed object; one that was told to go and that nobody keeps is gone by it.
async fn change(server: &Server, key: &Key, change: impl Fn(&mut Value, &str)) {
    while let Some(entry) = server.store.get(key).0 {
        let old = object::decode(&entry.value);
        let mut new = old.clone();
        let now = object::time(Timestamp::now());
        change(&mut new, &now);
        if new == old {
            return;
        }
        write::own_status(kind(), "kube-controller-manager", (&old, &mut new), &now);
        let expect = Expect::At(entry.revision);
        let op = if object::is_deleting(&new) && !object::has_items(&new, "/metadata/finalizers") {
            Op::Delete { key: key.clone(), expect }
        } else {
            Op::Put { key: key.clone(), expect, value: object::encode(kind(), &new) }
        };
        match write::commit(&server.store, vec![op]).await {
            Err(write::Unwritten::Race(_)) => {}
            _ => return,
        }
    }
}

/// Puts right what somebody did to an address by hand.
async fn repair(server: &Server, event: &Event) {
    let address: IpAddr = match event.key.name().parse() {
        Ok(address) => address,
        Err(_) => return,
    };
    // Whatever the event says, what counts is how things are now.
    let found = server.store.get(&event.key).0.map(|entry| (entry.revision, object::decode(&entry.value)));
    let before = event.old.as_ref().map(|entry| object::decode(&entry.value));
    let names = |object: &Value| {
        let parent = &object["spec"]["parentRef"];
        (object::text(parent, "/namespace").to_owned(), object::text(parent, "/name").to_owned())
    };
    let Some((namespace, name)) = found.as_ref().map(|(_, now)| names(now)).or(before.as_ref().map(names)) else {
        return;
    };
    let service = server.store.get(&object::key(crate::known_kind("", "services"), &namespace, &name)).0;
    let service = service.map(|entry| object::decode(&entry.value));
    let holder = service.filter(|service| services::addresses(service).contains(&address));
    let now = object::time(Timestamp::now());
    match (found, holder) {
        (None, Some(service)) => {
            let put = services::address_object(address, &service, &now);
            if write::commit(&server.store, vec![put]).await.is_ok() {
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                let message = format!("Cluster IP [{family}]: {address} is not allocated; repairing");
                tell(server, &service, "ClusterIPNotAllocated", &message).await;
            }
        }
        (Some((revision, object)), None) if object::text(&object, MANAGED_BY) == "ipallocator.k8s.io" => {
            let delete = Op::Delete { key: event.key.clone(), expect: Expect::At(revision) };
            let _ = write::commit(&server.store, vec![delete]).await;
        }
        _ => {}
    }
}

/// An Event about a Service.
async fn tell(server: &Server, service: &Value, reason: &str, message: &str) {
    let (namespace, name) = (object::namespace(service), object::name(service));
    let target = Target {
        kind: crate::known_kind("", "events").into(),
        namespace: Some(namespace.to_owned()),
        name: None,
        sub: Sub::None,
    };
    let now = object::time(Timestamp::now());
    let event = json!({
        "metadata": {"generateName": format!("{name}."), "namespace": namespace},
        "involvedObject": {
            "apiVersion": "v1", "kind": "Service", "namespace": namespace, "name": name,
            "uid": service["metadata"]["uid"], "resourceVersion": service["metadata"]["resourceVersion"]
        },
        "type": "Warning", "reason": reason, "message": message, "count": 1,
        "firstTimestamp": now, "lastTimestamp": now, "source": {"component": "ipallocator-repair-controller"}
    });
    let options = Options { manager: "kube-apiserver".to_owned(), ..Options::default() };
    let asked = Asked { user: &User::admin(), target: &target, options: &options, warnings: &Warnings::default() };
    if let Err(status) = write::create(server, asked, event).await {
        tracing::warn!(error = status.message(), "cannot write an Event");
    }
}
