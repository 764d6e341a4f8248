//! Who may do what: a pure decision over the user, the request, and what is stored about roles, bindings and pods.
//!
//! `system:masters` may do everything; a node what `node` says; everybody what roles give them (`rbac`). What depends
//! on the object that is written is checked where it is known: `node::restrict`, `escalation`.
//! Invariant: a decision is made on every change that was acknowledged before it.

pub(crate) mod escalation;
mod impersonation;
pub(crate) mod node;
mod pods;
pub(crate) mod rbac;
pub(crate) mod rule;

use std::sync::{Mutex, MutexGuard, PoisonError};

use portolan_kinds::Status;
use portolan_store::{Expired, Store};

use crate::user::{MASTERS, User};
use pods::Following;
use rbac::{RoleRef, Roles};
use rule::Rule;

/// What is asked for. Empty parts do not apply; with a path, nothing else but the verb does.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Request<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, and what else roles may say.
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    /// Of a list or watch of pods: the node whose pods alone are wanted.
    pub(crate) node_name: &'a str,
    /// What is no resource, such as `/version`.
    pub(crate) path: &'a str,
}

impl<'a> Request<'a> {
    pub(crate) fn path(verb: &'a str, path: &'a str) -> Self {
        Self { verb, path, ..Self::default() }
    }

    /// `pods/log`, or `pods`.
    fn full_resource(&self) -> String {
        let Self { resource, subresource, .. } = self;
        if subresource.is_empty() { (*resource).to_owned() } else { format!("{resource}/{subresource}") }
    }
}

/// What was decided, and why, as far as there is something to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) allowed: bool,
    pub(crate) reason: String,
}

/// Decides, with indices that follow the store.
pub(crate) struct Authorizer {
    roles: Mutex<Roles>,
    pods: Mutex<Following>,
}

/// Nothing that is done under these locks leaves an index half changed and panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unreadable(expired: Expired) -> Status {
    Status::internal(format!("cannot tell who may do what: {expired}"))
}

impl Authorizer {
    pub(crate) fn new(store: &Store) -> Self {
        Self { roles: Mutex::new(Roles::new(store.clone())), pods: Mutex::new(Following::new(store.clone())) }
    }

    /// # Errors
    /// 500 when what is stored cannot be followed.
    pub(crate) fn decide(&self, user: &User, request: &Request<'_>) -> Result<Decision, Status> {
        if user.is_in(MASTERS) {
            return Ok(Decision { allowed: true, reason: String::new() });
        }
        let mut reasons = Vec::new();
        if let Some(name) = user.as_node().filter(|_| request.path.is_empty()) {
            match node::authorize(name, request, lock(&self.pods).fresh().map_err(unreadable)?) {
                Ok(()) => return Ok(Decision { allowed: true, reason: String::new() }),
                Err(reason) => reasons.push(reason),
            }
        }
        match lock(&self.roles).fresh().map_err(unreadable)?.decide(user, request) {
            Ok(reason) => Ok(Decision { allowed: true, reason }),
            Err(reason) => {
                reasons.push(reason);
                reasons.retain(|reason| !reason.is_empty());
                Ok(Decision { allowed: false, reason: reasons.join("\n") })
            }
        }
    }

    /// # Errors
    /// 403, in Kubernetes' words.
    pub(crate) fn authorize(&self, user: &User, request: &Request<'_>) -> Result<(), Status> {
        let Decision { allowed, reason } = self.decide(user, request)?;
        if allowed { Ok(()) } else { Err(refusal(user, request, &reason)) }
    }

    /// All rules that roles give the user in `namespace`, and what is wrong with the bindings that should give more.
    ///
    /// # Errors
    /// As [`Authorizer::decide`].
    pub(crate) fn rules(&self, user: &User, namespace: &str) -> Result<(Vec<Rule>, Option<String>), Status> {
        Ok(lock(&self.roles).fresh().map_err(unreadable)?.rules(user, namespace))
    }

    /// The rules of a role, if it exists.
    fn role(&self, role: &RoleRef, namespace: &str) -> Result<Option<Vec<Rule>>, Status> {
        Ok(lock(&self.roles).fresh().map_err(unreadable)?.role(role, namespace).map(<[Rule]>::to_vec))
    }
}

fn refusal(user: &User, request: &Request<'_>, reason: &str) -> Status {
    let Request { verb, group, resource, namespace, name, path, .. } = request;
    let mut why = if path.is_empty() {
        let place = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{namespace}\"")
        };
        let resource = request.full_resource();
        format!("User \"{}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {place}", user.name)
    } else {
        format!("User \"{}\" cannot {verb} path \"{path}\"", user.name)
    };
    // As upstream, for browsers that take the answer for a page.
    why = why.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    if !reason.is_empty() {
        why = format!("{why}: {reason}");
    }
    Status::forbidden(group, resource, name, &why)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// `verb group/resource/subresource namespace name`, with `-` for nothing.
    pub(crate) fn request(text: &str) -> Request<'_> {
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
            ..Request::default()
        }
    }

    #[test]
    fn kubernetes_words() {
        let words = |user: &User, request: &Request<'_>, reason: &str| {
            let status = refusal(user, request, reason);
            assert_eq!(status.code(), 403);
            status.message().to_owned()
        };
        assert_eq!(
            words(&User::node("n1"), &request("create -/pods/binding default p"), "because"),
            "pods \"p\" is forbidden: User \"system:node:n1\" cannot create resource \"pods/binding\" in API group \"\" \
             in the namespace \"default\": because"
        );
        assert_eq!(
            words(&User::anonymous(), &request("list apps/deployments"), ""),
            "deployments.apps is forbidden: User \"system:anonymous\" cannot list resource \"deployments\" in API group \
             \"apps\" at the cluster scope"
        );
        assert_eq!(
            words(&User::new("<b>", &[]), &Request::path("get", "/metrics"), ""),
            "forbidden: User \"&lt;b&gt;\" cannot get path \"/metrics\""
        );
    }
}
