//! The kinds that are served.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use crate::{Kind, KindRef};

/// How a kind behaves in the write path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    ClusterRole,
    ClusterRoleBinding,
    ConfigMap,
    /// Of kinds that a definition makes; what they do is in `custom`.
    Custom,
    CustomResourceDefinition,
    Deployment,
    EndpointSlice,
    Endpoints,
    Event,
    EventsEvent,
    Ingress,
    IngressClass,
    IpAddress,
    Lease,
    Namespace,
    Node,
    Pod,
    ReplicaSet,
    Role,
    RoleBinding,
    Secret,
    Service,
    ServiceAccount,
    ServiceCidr,
}

/// The group of roles and their bindings.
pub(crate) const RBAC: &str = "rbac.authorization.k8s.io";

const BASE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    namespaced: true,
    categories: &[],
    has_status: false,
    has_scale: false,
    strategy: Strategy::ConfigMap,
    custom: None,
};

static KINDS: LazyLock<[Kind; 23]> = LazyLock::new(|| {
    [
        Kind {
            kind: "ConfigMap",
            plural: "configmaps",
            singular: "configmap",
            short_names: &["cm"],
            strategy: Strategy::ConfigMap,
            ..BASE
        },
        Kind {
            kind: "Endpoints",
            plural: "endpoints",
            singular: "endpoints",
            short_names: &["ep"],
            strategy: Strategy::Endpoints,
            ..BASE
        },
        Kind {
            kind: "Event",
            plural: "events",
            singular: "event",
            short_names: &["ev"],
            strategy: Strategy::Event,
            ..BASE
        },
        Kind {
            kind: "Namespace",
            plural: "namespaces",
            singular: "namespace",
            short_names: &["ns"],
            namespaced: false,
            has_status: true,
            strategy: Strategy::Namespace,
            ..BASE
        },
        Kind {
            kind: "Node",
            plural: "nodes",
            singular: "node",
            short_names: &["no"],
            namespaced: false,
            has_status: true,
            strategy: Strategy::Node,
            ..BASE
        },
        Kind {
            kind: "Pod",
            plural: "pods",
            singular: "pod",
            short_names: &["po"],
            categories: &["all"],
            has_status: true,
            strategy: Strategy::Pod,
            ..BASE
        },
        Kind { kind: "Secret", plural: "secrets", singular: "secret", strategy: Strategy::Secret, ..BASE },
        Kind {
            kind: "ServiceAccount",
            plural: "serviceaccounts",
            singular: "serviceaccount",
            short_names: &["sa"],
            strategy: Strategy::ServiceAccount,
            ..BASE
        },
        Kind {
            kind: "Service",
            plural: "services",
            singular: "service",
            short_names: &["svc"],
            categories: &["all"],
            has_status: true,
            strategy: Strategy::Service,
            ..BASE
        },
        Kind {
            group: "apiextensions.k8s.io",
            kind: "CustomResourceDefinition",
            plural: "customresourcedefinitions",
            singular: "customresourcedefinition",
            short_names: &["crd", "crds"],
            namespaced: false,
            categories: &["api-extensions"],
            has_status: true,
            strategy: Strategy::CustomResourceDefinition,
            ..BASE
        },
        Kind {
            group: "apps",
            kind: "Deployment",
            plural: "deployments",
            singular: "deployment",
            short_names: &["deploy"],
            categories: &["all"],
            has_status: true,
            has_scale: true,
            strategy: Strategy::Deployment,
            ..BASE
        },
        Kind {
            group: "apps",
            kind: "ReplicaSet",
            plural: "replicasets",
            singular: "replicaset",
            short_names: &["rs"],
            categories: &["all"],
            has_status: true,
            has_scale: true,
            strategy: Strategy::ReplicaSet,
            ..BASE
        },
        Kind {
            group: "coordination.k8s.io",
            kind: "Lease",
            plural: "leases",
            singular: "lease",
            strategy: Strategy::Lease,
            ..BASE
        },
        Kind {
            group: "discovery.k8s.io",
            kind: "EndpointSlice",
            plural: "endpointslices",
            singular: "endpointslice",
            strategy: Strategy::EndpointSlice,
            ..BASE
        },
        Kind {
            group: "events.k8s.io",
            kind: "Event",
            plural: "events",
            singular: "event",
            short_names: &["ev"],
            strategy: Strategy::EventsEvent,
            ..BASE
        },
        Kind {
            group: "networking.k8s.io",
            kind: "IngressClass",
            plural: "ingressclasses",
            singular: "ingressclass",
            namespaced: false,
            strategy: Strategy::IngressClass,
            ..BASE
        },
        Kind {
            group: "networking.k8s.io",
            kind: "Ingress",
            plural: "ingresses",
            singular: "ingress",
            short_names: &["ing"],
            has_status: true,
            strategy: Strategy::Ingress,
            ..BASE
        },
        Kind {
            group: "networking.k8s.io",
            kind: "IPAddress",
            plural: "ipaddresses",
            singular: "ipaddress",
            short_names: &["ip"],
            namespaced: false,
            strategy: Strategy::IpAddress,
            ..BASE
        },
        Kind {
            group: "networking.k8s.io",
            kind: "ServiceCIDR",
            plural: "servicecidrs",
            singular: "servicecidr",
            namespaced: false,
            has_status: true,
            strategy: Strategy::ServiceCidr,
            ..BASE
        },
        Kind {
            group: RBAC,
            kind: "ClusterRoleBinding",
            plural: "clusterrolebindings",
            singular: "clusterrolebinding",
            namespaced: false,
            strategy: Strategy::ClusterRoleBinding,
            ..BASE
        },
        Kind {
            group: RBAC,
            kind: "ClusterRole",
            plural: "clusterroles",
            singular: "clusterrole",
            namespaced: false,
            strategy: Strategy::ClusterRole,
            ..BASE
        },
        Kind {
            group: RBAC,
            kind: "RoleBinding",
            plural: "rolebindings",
            singular: "rolebinding",
            strategy: Strategy::RoleBinding,
            ..BASE
        },
        Kind { group: RBAC, kind: "Role", plural: "roles", singular: "role", strategy: Strategy::Role, ..BASE },
    ]
});

/// Every kind of the program's own, sorted by group and plural.
pub fn all() -> &'static [Kind] {
    &*KINDS
}

/// Every kind that is served at one time: the program's own, and those that somebody defined.
#[derive(Debug, Default)]
pub struct Catalog {
    /// By group, version and plural.
    defined: BTreeMap<(&'static str, &'static str, &'static str), Arc<Kind>>,
}

impl Catalog {
    /// A kind of the program's own is not replaced by a defined one of the same place.
    pub fn new(defined: impl IntoIterator<Item = Arc<Kind>>) -> Self {
        let own = |kind: &Arc<Kind>| find(kind.group, kind.version, kind.plural).is_some();
        let defined = defined.into_iter().filter(|kind| !own(kind));
        Self { defined: defined.map(|kind| ((kind.group, kind.version, kind.plural), kind)).collect() }
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<KindRef> {
        let defined = || self.defined.get(&(group, version, plural)).cloned().map(KindRef::Defined);
        find(group, version, plural).map(KindRef::Own).or_else(defined)
    }

    /// The program's own kinds first.
    pub fn iter(&self) -> impl Iterator<Item = &Kind> {
        all().iter().chain(self.defined.values().map(|kind| &**kind))
    }
}

pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.plural == plural && kind.group == group && kind.version == version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_and_found() {
        assert!(all().is_sorted_by_key(|kind| (kind.group, kind.plural)));
        for kind in all() {
            assert!(std::ptr::eq(find(kind.group, kind.version, kind.plural).unwrap(), kind));
        }
    }
}
