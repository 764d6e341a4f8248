//! Who asks: a name and groups, as a client certificate, a token or an impersonation says.
//!
//! Invariant: everybody but the anonymous user is in `system:authenticated`. Source:
//! `apiserver/pkg/authentication/user` and `serviceaccount`, whose names these are.

use std::collections::BTreeMap;

use serde_json::{Value, json};

pub(crate) const MASTERS: &str = "system:masters";
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";
const CONTROLLERS: &str = "system:kube-controller-manager";
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// Somebody who talks to the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    /// Empty for all but ServiceAccounts.
    pub uid: String,
    pub groups: Vec<String>,
    /// What else is known, such as the pod that a token was given to.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Somebody whose name has been proved.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let mut user = Self {
            name: name.into(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..Self::default()
        };
        if !user.is_in(AUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        user
    }

    /// May do everything.
    pub fn admin() -> Self {
        Self::new("kubernetes-admin", &[MASTERS])
    }

    /// The controllers.
    pub fn controllers() -> Self {
        Self::new(CONTROLLERS, &[])
    }

    /// The agent of the node `name`.
    pub fn node(name: &str) -> Self {
        Self::new(format!("{NODE_PREFIX}{name}"), &[NODES])
    }

    /// The ServiceAccount `namespace/name`.
    pub(crate) fn account(namespace: &str, name: &str) -> Self {
        let groups = account_groups(namespace);
        Self::new(account_name(namespace, name), &groups.each_ref().map(String::as_str))
    }

    pub(crate) fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), groups: vec![UNAUTHENTICATED.into()], ..Self::default() }
    }

    pub(crate) fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The node that this user is, if it is one.
    pub(crate) fn as_node(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|_| self.is_in(NODES))
    }

    /// As `authentication.k8s.io` UserInfo.
    pub(crate) fn info(&self) -> Value {
        let mut info = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            info["uid"] = self.uid.as_str().into();
        }
        if !self.extra.is_empty() {
            info["extra"] = json!(self.extra);
        }
        info
    }
}

/// The user name of a ServiceAccount.
pub(crate) fn account_name(namespace: &str, name: &str) -> String {
    format!("{ACCOUNT_PREFIX}{namespace}:{name}")
}

/// The groups that every ServiceAccount of a namespace is in.
pub(crate) fn account_groups(namespace: &str) -> [String; 2] {
    ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
}

/// The namespace and name of the ServiceAccount with this user name.
pub(crate) fn as_account(user_name: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user_name.strip_prefix(ACCOUNT_PREFIX)?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(as_account(&User::account("a", "b").name), Some(("a", "b")));
        for other in ["jane", "system:serviceaccount:a", "system:serviceaccount::b", "system:serviceaccount:a:b:c"] {
            assert_eq!(as_account(other), None, "{other}");
        }
        assert_eq!(User::node("n1").as_node(), Some("n1"));
        // Neither the name nor the group alone makes a node.
        assert_eq!(User::new("system:node:n1", &[]).as_node(), None);
        assert_eq!(User::new("jane", &[NODES]).as_node(), None);
        assert!(!User::anonymous().is_in(AUTHENTICATED));
    }
}
