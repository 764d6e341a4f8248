//! What a Service is given by the cluster: ClusterIPs, node ports, IP families.
//!
//! The Service comes in as a JSON value that passed validation; what it holds is filled in, and a [`Claim`] and the
//! `IPAddress` objects come out, to be written together with it. Source: KEP-1880 and KEP-563. What an
//! update carries over from the old Service is a rule of the kind, and was applied before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portolan_kinds::{FieldError, Kind, Status};
use portolan_store::{Expect, Op};
use serde_json::{Value, json};

use crate::allocate::{Allocator, Claim, Holding, Refusal};
use crate::object;

pub(crate) fn is_service(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.plural == "services"
}

fn service_type(service: &Value) -> &str {
    match object::text(service, "/spec/type") {
        "" => "ClusterIP",
        other => other,
    }
}

fn needs_addresses(service: &Value) -> bool {
    matches!(service_type(service), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_node_ports(service: &Value) -> bool {
    match service_type(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

fn may_have_node_ports(service: &Value) -> bool {
    matches!(service_type(service), "NodePort" | "LoadBalancer")
}

fn needs_health_check_port(service: &Value) -> bool {
    service_type(service) == "LoadBalancer" && object::text(service, "/spec/externalTrafficPolicy") == "Local"
}

fn texts<'a>(service: &'a Value, field: &str) -> Vec<&'a str> {
    service["spec"][field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn port_number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}

/// The addresses a Service has, as numbers.
pub(crate) fn addresses(service: &Value) -> BTreeSet<IpAddr> {
    let mut texts = texts(service, "clusterIPs");
    texts.push(object::text(service, "/spec/clusterIP"));
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

fn node_ports(service: &Value) -> BTreeSet<u16> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    ports
        .map(|port| &port["nodePort"])
        .chain([&service["spec"]["healthCheckNodePort"]])
        .filter_map(port_number)
        .collect()
}

/// Everything that a stored Service holds.
pub(crate) fn holdings(service: &Value) -> BTreeSet<Holding> {
    let addresses = addresses(service).into_iter().map(Holding::Address);
    addresses.chain(node_ports(service).into_iter().map(Holding::Port)).collect()
}

fn family(ipv4: bool) -> &'static str {
    if ipv4 { "IPv4" } else { "IPv6" }
}

/// The families of the cluster, its first one first.
pub(crate) fn families(allocator: &Allocator) -> Vec<&'static str> {
    let mut families: Vec<&str> = Vec::new();
    for cidr in allocator.cidrs() {
        let family = family(cidr.addr().is_ipv4());
        if !families.contains(&family) {
            families.push(family);
        }
    }
    families
}

/// What the write of a Service takes and gives up, and the operations that belong to it.
pub(crate) struct Allocation {
    pub(crate) claim: Claim,
    pub(crate) ops: Vec<Op>,
}

/// Fills in what `new` is to hold. Nothing is taken if this fails.
///
/// # Errors
/// 422, with every field that cannot have what it asks for.
pub(crate) fn allocate(
    (allocator, ranges): (&Arc<Allocator>, Vec<IpNet>),
    new: &mut Value,
    old: Option<&Value>,
    now: &str,
) -> Result<Allocation, Status> {
    let mut claim = allocator.claim(ranges);
    let held = old.map(holdings).unwrap_or_default();
    let mut errors = Vec::new();
    if needs_addresses(new) {
        errors.extend(allocate_addresses(&mut claim, new, &held));
    }
    if errors.is_empty() {
        errors.extend(allocate_ports(&mut claim, new, &held));
    }
    if !errors.is_empty() {
        return Err(Status::invalid("", "Service", object::name(new), &errors));
    }
    let holds = holdings(new);
    let mut ops = Vec::new();
    for gained in holds.difference(&held) {
        if let Holding::Address(address) = gained {
            ops.push(address_object(*address, new, now));
        }
    }
    for lost in held.difference(&holds) {
        claim.release(*lost);
        ops.extend(address_removal(lost));
    }
    Ok(Allocation { claim, ops })
}

/// For a Service that is to be deleted.
pub(crate) fn release(allocator: &Arc<Allocator>, old: &Value) -> Allocation {
    let mut claim = allocator.claim(Vec::new());
    let mut ops = Vec::new();
    for holding in holdings(old) {
        claim.release(holding);
        ops.extend(address_removal(&holding));
    }
    Allocation { claim, ops }
}

fn allocate_addresses(claim: &mut Claim, service: &mut Value, held: &BTreeSet<Holding>) -> Vec<FieldError> {
    let mut wanted: Vec<String> = texts(service, "clusterIPs").into_iter().map(str::to_owned).collect();
    if wanted.first().is_some_and(|address| address == "None") {
        return Vec::new();
    }
    let asked = wanted.clone();
    let failed = |address: &str, why: &Refusal| {
        let why = match why {
            Refusal::Taken => "provided IP is already allocated".to_owned(),
            Refusal::OutOfRange(range) => {
                format!("the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}")
            }
            Refusal::Full => "range is full".to_owned(),
        };
        let subject = if address.is_empty() {
            "failed to allocate a serviceIP".to_owned()
        } else {
            format!("failed to allocate IP {address}")
        };
        FieldError::invalid("spec.clusterIPs", json!(asked), format!("{subject}: {why}"))
    };
    for text in &wanted {
        let Ok(address) = text.parse::<IpAddr>() else { continue };
        if held.contains(&Holding::Address(address)) {
            continue;
        }
        if let Err(refusal) = claim.address(address) {
            return vec![failed(text, &refusal)];
        }
    }
    let families: Vec<String> = texts(service, "ipFamilies").into_iter().map(str::to_owned).collect();
    for family in families.iter().skip(wanted.len()) {
        match claim.any_address(family == "IPv4") {
            Ok(address) => wanted.push(address.to_string()),
            Err(refusal) => return vec![failed("", &refusal)],
        }
    }
    // A Service that became single-stack gives up its second address.
    wanted.truncate(families.len());
    let spec = object::spec(service);
    spec.insert("clusterIP".into(), json!(wanted.first()));
    spec.insert("clusterIPs".into(), json!(wanted));
    Vec::new()
}

fn allocate_ports(claim: &mut Claim, service: &mut Value, held: &BTreeSet<Holding>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let automatic = needs_node_ports(service);
    let health_check = needs_health_check_port(service);
    // A Service that had none shares a number among the protocols of one port, and among nothing else.
    let first = !held.iter().any(|holding| matches!(holding, Holding::Port(_)));
    let mut own: BTreeMap<u16, u64> = BTreeMap::new();
    let mut asked: BTreeMap<u64, u16> = BTreeMap::new();
    if may_have_node_ports(service) {
        // First what is asked for by number, so that no automatic choice takes it away.
        let ports = service["spec"]["ports"].as_array().into_iter().flatten().enumerate();
        for (index, port) in ports {
            let field = || format!("spec.ports[{index}].nodePort");
            let Some(chosen) = port_number(&port["nodePort"]) else {
                // No range has zero, and none has what is no port at all.
                if let Some(wrong) = port["nodePort"].as_i64().filter(|wrong| *wrong != 0) {
                    errors.extend(claim.port(0).err().map(|refusal| port_error(field(), wrong, &refusal)));
                }
                continue;
            };
            let number = port["port"].as_u64().unwrap_or_default();
            let refused = match own.insert(chosen, number) {
                None if held.contains(&Holding::Port(chosen)) => None,
                None => claim.port(chosen).err(),
                Some(other) => (first && other != number).then_some(Refusal::Taken),
            };
            errors.extend(refused.map(|refusal| port_error(field(), chosen.into(), &refusal)));
            asked.entry(number).or_insert(chosen);
        }
    }
    if health_check
        && let Some(port) = port_number(&service["spec"]["healthCheckNodePort"])
        && !held.contains(&Holding::Port(port))
        && let Err(refusal) = claim.port(port)
    {
        errors.push(port_error("spec.healthCheckNodePort".into(), port.into(), &refusal));
    }
    if automatic {
        for (index, port) in service["spec"]["ports"].as_array_mut().into_iter().flatten().enumerate() {
            if port_number(&port["nodePort"]).is_some() {
                continue;
            }
            let number = port["port"].as_u64().unwrap_or_default();
            let chosen = match asked.get(&number).filter(|_| first) {
                Some(same) => Ok(*same),
                None => claim.any_port(),
            };
            match chosen {
                Ok(chosen) => {
                    asked.entry(number).or_insert(chosen);
                    port["nodePort"] = chosen.into();
                }
                Err(refusal) => {
                    errors.push(port_error(format!("spec.ports[{index}].nodePort"), 0, &refusal));
                }
            }
        }
    }
    if health_check && port_number(&service["spec"]["healthCheckNodePort"]).is_none() {
        match claim.any_port() {
            Ok(port) => {
                object::spec(service).insert("healthCheckNodePort".into(), port.into());
            }
            Err(refusal) => errors.push(port_error("spec.healthCheckNodePort".into(), 0, &refusal)),
        }
    }
    errors
}

fn port_error(field: String, port: i64, refusal: &Refusal) -> FieldError {
    let detail = match refusal {
        Refusal::Taken => "provided port is already allocated".to_owned(),
        Refusal::OutOfRange(range) => {
            format!("provided port is not in the valid range. The range of valid ports is {range}")
        }
        Refusal::Full => "failed to allocate a nodePort: range is full".to_owned(),
    };
    FieldError::invalid(field, port, detail)
}

/// The object by which a ClusterIP is visible in the API, and at the store a second guard against giving it twice.
pub(crate) fn address_object(address: IpAddr, service: &Value, now: &str) -> Op {
    let name = address.to_string();
    let value = json!({
        "metadata": {
            "name": name, "uid": object::new_uid(), "creationTimestamp": now,
            "labels": {
                "ipaddress.kubernetes.io/ip-family": family(address.is_ipv4()),
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"
            }
        },
        "spec": {"parentRef": {
            "group": "", "resource": "services",
            "namespace": object::namespace(service), "name": object::name(service)
        }}
    });
    let kind = address_kind();
    Op::Put { key: object::key(kind, "", &name), expect: Expect::Absent, value: object::encode(kind, &value) }
}

fn address_removal(holding: &Holding) -> Option<Op> {
    let Holding::Address(address) = holding else { return None };
    Some(Op::Delete { key: object::key(address_kind(), "", &address.to_string()), expect: Expect::Anything })
}

pub(crate) fn address_kind() -> &'static Kind {
    crate::known_kind("networking.k8s.io", "ipaddresses")
}

/// The first usable address of a range; the API's own Service has it.
pub(crate) fn first_address(cidr: &ipnet::IpNet) -> IpAddr {
    cidr.hosts().next().unwrap_or(cidr.addr())
}
