//! Who may do what: a pure function of the user and the request.
//!
//! Three kinds of user may do something: `system:masters` and the controllers may do everything; a node may read what
//! serving pods and Services takes, and write about itself and its pods (as Kubernetes' node authorizer and
//! NodeRestriction); everybody may ask for health and version. What depends on the object itself, such as whether a
//! pod is the node's own, is [`node_may_touch`].

use http::HeaderMap;
use portolan_kinds::Status;
use serde_json::Value;

use crate::object;

/// The groups and names are Kubernetes' own.
pub(crate) const MASTERS: &str = "system:masters";
pub(crate) const CONTROLLERS: &str = "system:kube-controller-manager";
pub(crate) const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";

/// Somebody who talks to the API server, as in a client certificate: the common name and the organizations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

impl User {
    /// May do everything.
    pub fn admin() -> Self {
        Self { name: "kubernetes-admin".into(), groups: vec![MASTERS.into()] }
    }

    /// The controllers; they may do everything.
    pub fn controllers() -> Self {
        Self { name: CONTROLLERS.into(), groups: vec![] }
    }

    /// The agent of the node `name`.
    pub fn node(name: &str) -> Self {
        Self { name: format!("{NODE_PREFIX}{name}"), groups: vec![NODES.into()] }
    }

    pub(crate) fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()] }
    }

    fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    pub(crate) fn may_everything(&self) -> bool {
        self.is_in(MASTERS) || self.name == CONTROLLERS
    }

    /// The user that this one asks to be taken for, as `kubectl --as` does.
    ///
    /// # Errors
    /// 403 for all who may not do everything themselves.
    pub(crate) fn impersonating(self, headers: &HeaderMap) -> Result<Self, Status> {
        let texts = |name: &str| -> Vec<String> {
            let values = headers.get_all(name).into_iter();
            values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
        };
        let (names, mut groups) = (texts("impersonate-user"), texts("impersonate-group"));
        let Some(name) = names.into_iter().next() else {
            if groups.is_empty() {
                return Ok(self);
            }
            return Err(Status::bad_request("impersonating groups without impersonating a user is not possible"));
        };
        if !self.may_everything() {
            let asked = Request { verb: "impersonate", resource: "users", name: &name, ..Request::default() };
            return Err(refusal(&self, &asked));
        }
        if name == Self::anonymous().name {
            return Ok(Self::anonymous());
        }
        groups.push("system:authenticated".into());
        Ok(Self { name, groups })
    }

    /// The node that this user is, if it is one.
    pub(crate) fn as_node(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|_| self.is_in(NODES))
    }
}

/// What is asked for. Empty parts do not apply.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Request<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

/// # Errors
/// 403, in Kubernetes' words.
pub(crate) fn authorize(user: &User, request: &Request<'_>) -> Result<(), Status> {
    let allowed = user.may_everything() || user.as_node().is_some_and(|node| node_may(node, request));
    if allowed { Ok(()) } else { Err(refusal(user, request)) }
}

/// For paths that name no resource, such as discovery: any user who is known.
///
/// # Errors
/// 403, in Kubernetes' words.
pub(crate) fn authorize_path(user: &User, verb: &str, path: &str) -> Result<(), Status> {
    if *user != User::anonymous() {
        return Ok(());
    }
    Err(Status::forbidden("", "", "", &format!("User \"{}\" cannot {verb} path \"{path}\"", user.name)))
}

fn refusal(user: &User, request: &Request<'_>) -> Status {
    let Request { verb, group, resource, subresource, namespace, name } = request;
    let slash = if subresource.is_empty() { "" } else { "/" };
    let place = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{namespace}\"")
    };
    let why = format!(
        "User \"{}\" cannot {verb} resource \"{resource}{slash}{subresource}\" in API group \"{group}\" {place}",
        user.name
    );
    Status::forbidden(group, resource, name, &why)
}

fn node_may(node: &str, request: &Request<'_>) -> bool {
    let Request { verb, group, resource, subresource, namespace, name } = *request;
    let reads = matches!(verb, "get" | "list" | "watch");
    let updates = matches!(verb, "update" | "patch");
    match (group, resource, subresource) {
        ("", "nodes", "") => reads || verb == "create" && matches!(name, "") || updates && name == node,
        ("", "nodes", "status") => reads || updates && name == node,
        // Whether the pod is its own is checked when the pod is known.
        ("", "pods", "") => reads || verb == "delete",
        ("", "pods", "status") => reads || updates,
        ("coordination.k8s.io", "leases", "") if namespace == "kube-node-lease" => {
            reads || verb == "create" && matches!(name, "") || (updates || verb == "delete") && name == node
        }
        ("" | "events.k8s.io", "events", "") => verb == "create" || updates,
        // Its own share of the cluster's DNS.
        ("discovery.k8s.io", "endpointslices", "") => {
            let own = namespace == "kube-system" && (name.strip_prefix("kube-dns-") == Some(node));
            reads || namespace == "kube-system" && verb == "create" || own && (updates || verb == "delete")
        }
        ("", "services" | "endpoints" | "namespaces" | "configmaps" | "secrets" | "serviceaccounts", "")
        | ("networking.k8s.io", "servicecidrs" | "ipaddresses", "") => reads,
        _ => false,
    }
}

/// What a node may do to an object that it may change in principle.
///
/// # Errors
/// 403 when the object is another node's.
pub(crate) fn node_may_touch(user: &User, group: &str, resource: &str, object: &Value) -> Result<(), Status> {
    let Some(node) = user.as_node() else { return Ok(()) };
    let name = object::name(object);
    let refuse = |why: &str| Err(Status::forbidden(group, resource, name, &format!("node \"{node}\" {why}")));
    match (group, resource) {
        ("", "pods") if object::text(object, "/spec/nodeName") != node => {
            refuse("can only change pods with spec.nodeName set to itself")
        }
        ("", "nodes") | ("coordination.k8s.io", "leases") if name != node => refuse("can only change its own"),
        ("discovery.k8s.io", "endpointslices") if name.strip_prefix("kube-dns-") != Some(node) => {
            refuse("can only change its own share of the cluster's DNS")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(text: &str) -> Request<'_> {
        // verb group/resource/subresource namespace name, with `-` for nothing
        let part = |text| if text == "-" { "" } else { text };
        let mut words = text.split(' ');
        let verb = words.next().unwrap();
        let mut path = words.next().unwrap().split('/');
        Request {
            verb,
            group: part(path.next().unwrap()),
            resource: path.next().unwrap(),
            subresource: path.next().unwrap_or_default(),
            namespace: part(words.next().unwrap_or("-")),
            name: part(words.next().unwrap_or("-")),
        }
    }

    #[test]
    fn a_node_may() {
        let node = User::node("n1");
        for (text, expected) in [
            ("list -/services", true),
            ("watch discovery.k8s.io/endpointslices", true),
            ("get -/secrets default x", true),
            ("create -/secrets default", false),
            ("create -/nodes", true),
            ("patch -/nodes/status - n1", true),
            ("patch -/nodes/status - n2", false),
            ("update -/nodes - n2", false),
            ("delete -/nodes - n1", false),
            ("patch -/pods/status default p", true),
            ("delete -/pods default p", true),
            ("create -/pods default", false),
            ("patch -/pods default p", false),
            ("create -/pods/binding default p", false),
            ("deletecollection -/pods default", false),
            ("update coordination.k8s.io/leases kube-node-lease n1", true),
            ("update coordination.k8s.io/leases kube-node-lease n2", false),
            ("update coordination.k8s.io/leases default n1", false),
            ("create -/events default", true),
            ("patch events.k8s.io/events default e", true),
            ("create discovery.k8s.io/endpointslices kube-system", true),
            ("create discovery.k8s.io/endpointslices default", false),
            ("patch discovery.k8s.io/endpointslices kube-system kube-dns-n1", true),
            ("patch discovery.k8s.io/endpointslices kube-system kube-dns-n2", false),
            ("update -/services default s", false),
            ("create apps/deployments default", false),
        ] {
            assert_eq!(authorize(&node, &request(text)).is_ok(), expected, "{text}");
        }
    }

    #[test]
    fn others() {
        let anything = request("delete apps/deployments default x");
        assert!(authorize(&User::admin(), &anything).is_ok());
        assert!(authorize(&User::controllers(), &anything).is_ok());
        assert!(authorize(&User::anonymous(), &anything).is_err());
        // Neither the name nor the group alone makes a node.
        let named = User { name: "system:node:n1".into(), groups: vec![] };
        assert!(authorize(&named, &request("list -/services")).is_err());
        assert!(authorize_path(&User::anonymous(), "get", "/apis").is_err());
        assert!(authorize_path(&User::node("n1"), "get", "/apis").is_ok());
    }

    #[test]
    fn impersonation() {
        let headers = |list: &[(&'static str, &str)]| -> HeaderMap {
            list.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
        };
        let admin = User::admin();
        assert_eq!(admin.clone().impersonating(&HeaderMap::new()).unwrap(), admin);
        let jane = headers(&[("impersonate-user", "jane"), ("impersonate-group", "a"), ("impersonate-group", "b")]);
        let user = admin.clone().impersonating(&jane).unwrap();
        assert_eq!(
            (user.name.as_str(), user.groups),
            ("jane", ["a", "b", "system:authenticated"].map(String::from).into())
        );
        assert_eq!(
            User::node("n1").impersonating(&jane).unwrap_err().message(),
            "users \"jane\" is forbidden: User \"system:node:n1\" cannot impersonate resource \"users\" in API group \"\" \
             at the cluster scope"
        );
        let anonymous = headers(&[("impersonate-user", "system:anonymous"), ("impersonate-group", MASTERS)]);
        assert!(!admin.clone().impersonating(&anonymous).unwrap().may_everything());
        assert_eq!(admin.impersonating(&headers(&[("impersonate-group", "a")])).unwrap_err().code(), 400);
    }

    #[test]
    fn kubernetes_words() {
        let status = authorize(&User::node("n1"), &request("create -/pods/binding default p")).unwrap_err();
        assert_eq!(status.code(), 403);
        assert_eq!(
            status.message(),
            "pods \"p\" is forbidden: User \"system:node:n1\" cannot create resource \"pods/binding\" in API group \"\" \
             in the namespace \"default\""
        );
        let status = authorize(&User::anonymous(), &request("list apps/deployments")).unwrap_err();
        assert_eq!(
            status.message(),
            "deployments.apps is forbidden: User \"system:anonymous\" cannot list resource \"deployments\" in API group \
             \"apps\" at the cluster scope"
        );
    }

    #[test]
    fn a_node_touches_only_its_own() {
        let node = User::node("n1");
        for (resource, object, expected) in [
            ("pods", json!({"spec": {"nodeName": "n1"}}), true),
            ("pods", json!({"spec": {"nodeName": "n2"}}), false),
            ("pods", json!({}), false),
            ("nodes", json!({"metadata": {"name": "n1"}}), true),
            ("nodes", json!({"metadata": {"name": "n2"}}), false),
            ("events", json!({}), true),
        ] {
            assert_eq!(node_may_touch(&node, "", resource, &object).is_ok(), expected, "{resource} {object}");
        }
        assert!(node_may_touch(&User::admin(), "", "pods", &json!({})).is_ok());
    }
}
