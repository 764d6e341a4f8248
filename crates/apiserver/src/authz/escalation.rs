//! Nobody gives away, by writing roles and bindings, what they do not have themselves.
//!
//! Exempt are `system:masters`, and who holds the verb `escalate` on the role, or `bind` on the role that is bound.
//! Source: `pkg/registry/rbac/*/policybased`.

use portolan_kinds::{Kind, Status};
use serde::Deserialize;
use serde_json::Value;

use super::rbac::{GROUP, RoleRef};
use super::rule::{Rule, describe, open_parts, uncovered};
use super::{Authorizer, Request};
use crate::object;
use crate::user::{MASTERS, User};

/// Rules of a few kilobytes can be broken down into more parts than any memory holds: verbs times groups times resources
/// times names. So many are looked at; upstream knows no limit.
const MOST_PARTS: usize = 1 << 14;

impl Authorizer {
    /// Checks a role or binding that `user` would store in `namespace` under `name`, instead of `old` if there is one.
    ///
    /// # Errors
    /// 403 for what the user does not have; 404 for a binding to a role that is not there to compare with.
    pub(crate) fn check_escalation(
        &self,
        user: &User,
        kind: &Kind,
        namespace: &str,
        old: Option<&Value>,
        new: &Value,
    ) -> Result<(), Status> {
        if user.is_in(MASTERS) || old.is_some_and(|old| for_the_collector(old) == for_the_collector(new)) {
            return Ok(());
        }
        let name = object::name(new);
        let forbid = |why: &str| Err(Status::forbidden(kind.group, kind.plural, name, why));
        let (rules, verb, resource, role) = if kind.plural.ends_with("bindings") {
            let role = RoleRef::deserialize(&new["roleRef"]).unwrap_or_default();
            (None, "bind", role.plural(), role.name.clone())
        } else {
            (Some(rules(&new["rules"])), "escalate", kind.plural, name.to_owned())
        };
        let request = Request { verb, group: GROUP, resource, namespace, name: &role, ..Request::default() };
        if self.decide(user, &request)?.allowed {
            return Ok(());
        }
        let wanted = match rules {
            Some(rules) => rules,
            None => {
                let role = RoleRef::deserialize(&new["roleRef"]).unwrap_or_default();
                let rules = self.role(&role, namespace)?;
                rules.ok_or_else(|| Status::not_found(GROUP, role.plural(), &role.name))?
            }
        };
        let (held, wrong) = self.rules(user, namespace)?;
        let parts = open_parts(&held, &wanted);
        if parts > MOST_PARTS {
            let why =
                "is attempting to grant RBAC permissions that are too many to be compared with those currently held";
            return forbid(&format!("user {:?} {why}: {parts}, where {MOST_PARTS} are possible", user.name));
        }
        let missing = uncovered(&held, &wanted);
        if !missing.is_empty() {
            let groups: Vec<String> = user.groups.iter().map(|group| format!("{group:?}")).collect();
            let mut why = format!(
                "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
                user.name,
                groups.join(" "),
                describe(&missing)
            );
            if let Some(wrong) = wrong {
                why.push_str(&format!("; resolution errors: [{}]", wrong.trim_matches(['[', ']'])));
            }
            return forbid(&why);
        }
        let gathers = |role: &Value| object::has_items(role, "/aggregationRule/clusterRoleSelectors");
        if (gathers(new) || old.is_some_and(gathers)) && !uncovered(&held, &Rule::everything()).is_empty() {
            return forbid("must have cluster-admin privileges to use the aggregationRule");
        }
        Ok(())
    }
}

pub(crate) fn rules(rules: &Value) -> Vec<Rule> {
    Option::deserialize(rules).ok().flatten().unwrap_or_default()
}

/// The object without what the garbage collector changes, so that it may always do its work.
fn for_the_collector(object: &Value) -> Value {
    let mut rest = object.clone();
    let metadata = object::metadata(&mut rest);
    for field in ["finalizers", "ownerReferences", "managedFields", "resourceVersion"] {
        metadata.remove(field);
    }
    rest
}
