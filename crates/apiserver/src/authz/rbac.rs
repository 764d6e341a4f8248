//! Roles and bindings, as they are stored -> who may do what.
//!
//! Invariants: the index holds every acknowledged change of them, because it takes in what the store's history has
//! before it answers; a request costs the bindings of those who ask, not all there are. Deciding is pure.
//! Source: `pkg/registry/rbac/validation/rule.go`, `plugin/pkg/auth/authorizer/rbac`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use portolan_kinds::Kind;
use portolan_store::{Event, Expired, Key, Page, Prefix, Store, Watch};
use serde::Deserialize;

use super::Request;
use super::rule::Rule;
use crate::user::{User, account_name};

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
const ROLES: [&str; 2] = ["roles", "clusterroles"];
const BINDINGS: [&str; 2] = ["rolebindings", "clusterrolebindings"];

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Role {
    rules: Option<Vec<Rule>>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct RoleRef {
    pub(crate) kind: String,
    pub(crate) name: String,
}

impl RoleRef {
    pub(crate) fn plural(&self) -> &'static str {
        if self.kind == "Role" { "roles" } else { "clusterroles" }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Binding {
    role_ref: RoleRef,
    subjects: Vec<Subject>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

/// Whom a binding is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    /// ServiceAccounts among them.
    User(String),
    Group(String),
}

impl Subject {
    fn who(&self, binding_namespace: &str) -> Option<Who> {
        match self.kind.as_str() {
            "User" => Some(Who::User(self.name.clone())),
            "Group" => Some(Who::Group(self.name.clone())),
            "ServiceAccount" => {
                let own = if self.namespace.is_empty() { binding_namespace } else { &self.namespace };
                (!own.is_empty()).then(|| Who::User(account_name(own, &self.name)))
            }
            _ => None,
        }
    }
}

/// A binding that applies to somebody, and the rules it gives.
pub(super) struct Grant<'a> {
    namespace: &'a str,
    name: &'a str,
    binding: &'a Binding,
    who: &'a Subject,
    /// `None` if there is no such role.
    rules: Option<&'a [Rule]>,
}

impl Grant<'_> {
    fn missing(&self) -> String {
        let RoleRef { kind, name } = &self.binding.role_ref;
        format!("{}.{GROUP} \"{name}\" not found", kind.to_lowercase())
    }

    fn describe(&self) -> String {
        let RoleRef { kind, name } = &self.binding.role_ref;
        let who = match self.who.kind.as_str() {
            "ServiceAccount" => {
                let own = if self.who.namespace.is_empty() { self.namespace } else { &self.who.namespace };
                format!("ServiceAccount \"{}/{own}\"", self.who.name)
            }
            kind => format!("{kind} \"{}\"", self.who.name),
        };
        let binding = if self.namespace.is_empty() {
            format!("ClusterRoleBinding \"{}\"", self.name)
        } else {
            format!("RoleBinding \"{}/{}\"", self.name, self.namespace)
        };
        format!("{binding} of {kind} \"{name}\" to {who}")
    }
}

/// By namespace, which is empty for what holds everywhere, and by name.
#[derive(Default)]
pub(super) struct Index {
    roles: HashMap<(String, String), Vec<Rule>>,
    bindings: BTreeMap<(String, String), Binding>,
    /// The names of the bindings of each.
    by_subject: HashMap<(String, Who), BTreeSet<String>>,
}

impl Index {
    fn put_role(&mut self, key: &Key, stored: Option<&[u8]>) {
        let place = (key.namespace().to_owned(), key.name().to_owned());
        match stored {
            Some(bytes) => {
                let role: Role = serde_json::from_slice(bytes).unwrap_or_default();
                self.roles.insert(place, role.rules.unwrap_or_default());
            }
            None => _ = self.roles.remove(&place),
        }
    }

    fn put_binding(&mut self, key: &Key, stored: Option<&[u8]>) {
        let place = (key.namespace().to_owned(), key.name().to_owned());
        if let Some(old) = self.bindings.remove(&place) {
            for who in old.subjects.iter().filter_map(|subject| subject.who(&place.0)) {
                let at = (place.0.clone(), who);
                if let Some(names) = self.by_subject.get_mut(&at) {
                    names.remove(&place.1);
                    if names.is_empty() {
                        self.by_subject.remove(&at);
                    }
                }
            }
        }
        if let Some(bytes) = stored {
            let binding: Binding = serde_json::from_slice(bytes).unwrap_or_default();
            for who in binding.subjects.iter().filter_map(|subject| subject.who(&place.0)) {
                self.by_subject.entry((place.0.clone(), who)).or_default().insert(place.1.clone());
            }
            self.bindings.insert(place, binding);
        }
    }

    /// The rules of a role; of a Role in `namespace`.
    pub(super) fn role(&self, role: &RoleRef, namespace: &str) -> Option<&[Rule]> {
        let namespace = if role.kind == "Role" { namespace } else { "" };
        self.roles.get(&(namespace.to_owned(), role.name.clone())).map(Vec::as_slice)
    }

    /// What applies to the user, everywhere and in `namespace`, in the order of names.
    pub(super) fn grants(&self, user: &User, namespace: &str) -> Vec<Grant<'_>> {
        let mut found = BTreeSet::new();
        let scopes = if namespace.is_empty() { &[""][..] } else { &["", namespace][..] };
        for scope in scopes {
            let own = std::iter::once(Who::User(user.name.clone()));
            for who in own.chain(user.groups.iter().cloned().map(Who::Group)) {
                let names = self.by_subject.get(&((*scope).to_owned(), who)).into_iter().flatten();
                found.extend(names.map(|name| ((*scope).to_owned(), name.clone())));
            }
        }
        let grants = found.iter().filter_map(|place| {
            let ((namespace, name), binding) = self.bindings.get_key_value(place)?;
            let who = binding.subjects.iter().find(|subject| match subject.who(namespace) {
                Some(Who::User(name)) => name == user.name,
                Some(Who::Group(group)) => user.is_in(&group),
                None => false,
            })?;
            Some(Grant { namespace, name, binding, who, rules: self.role(&binding.role_ref, namespace) })
        });
        grants.collect()
    }

    /// All rules that the user has in `namespace`, and what is wrong with the bindings that should give more.
    pub(super) fn rules(&self, user: &User, namespace: &str) -> (Vec<Rule>, Option<String>) {
        let grants = self.grants(user, namespace);
        let rules = grants.iter().flat_map(|grant| grant.rules.unwrap_or_default()).cloned().collect();
        (rules, missing(&grants))
    }

    /// Why the user may, or why not, as far as there is something to say.
    pub(super) fn decide(&self, user: &User, request: &Request<'_>) -> Result<String, String> {
        let grants = self.grants(user, request.namespace);
        let allows =
            |grant: &&Grant<'_>| grant.rules.is_some_and(|rules| rules.iter().any(|rule| rule.allows(request)));
        match grants.iter().find(allows) {
            Some(grant) => Ok(format!("RBAC: allowed by {}", grant.describe())),
            None => Err(missing(&grants).map(|errors| format!("RBAC: {errors}")).unwrap_or_default()),
        }
    }
}

/// Bindings to roles that do not exist.
fn missing(grants: &[Grant<'_>]) -> Option<String> {
    let mut errors: Vec<String> = Vec::new();
    for error in grants.iter().filter(|grant| grant.rules.is_none()).map(Grant::missing) {
        if !errors.contains(&error) {
            errors.push(error);
        }
    }
    match errors.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        several => Some(format!("[{}]", several.join(", "))),
    }
}

/// The index, and how far it has read.
pub(super) struct Roles {
    store: Store,
    index: Index,
    /// Of roles and bindings in turn; none before the first use, and after falling behind.
    watches: Vec<(bool, Watch)>,
}

impl Roles {
    pub(super) fn new(store: Store) -> Self {
        Self { store, index: Index::default(), watches: Vec::new() }
    }

    /// As the store is now.
    ///
    /// # Errors
    /// When the history does not reach from one look to the next, which but means to try again.
    pub(super) fn fresh(&mut self) -> Result<&Index, Expired> {
        if self.watches.is_empty() {
            self.load()?;
        }
        let Self { index, watches, .. } = self;
        let caught_up = watches.iter_mut().try_for_each(|(is_role, watch)| take_in(index, *is_role, watch));
        if caught_up.is_err() {
            // It was not asked for longer than the history reaches back.
            self.load()?;
        }
        Ok(&self.index)
    }

    fn load(&mut self) -> Result<(), Expired> {
        self.watches.clear();
        let (mut index, mut watches) = (Index::default(), Vec::new());
        for (is_role, plural) in
            ROLES.map(|plural| (true, plural)).into_iter().chain(BINDINGS.map(|plural| (false, plural)))
        {
            let prefix = Prefix::resource(GROUP, plural);
            let list = self.store.list(&prefix, &Page::default())?;
            for (key, entry) in &list.entries {
                put(&mut index, is_role, key, Some(&entry.value));
            }
            watches.push((is_role, self.store.watch(prefix, list.revision)?));
        }
        (self.index, self.watches) = (index, watches);
        Ok(())
    }
}

fn put(index: &mut Index, is_role: bool, key: &Key, stored: Option<&[u8]>) {
    if is_role { index.put_role(key, stored) } else { index.put_binding(key, stored) }
}

fn take_in(index: &mut Index, is_role: bool, watch: &mut Watch) -> Result<(), Expired> {
    loop {
        let batch = watch.poll()?;
        if batch.events.is_empty() {
            return Ok(());
        }
        for event in &batch.events {
            let Event { key, new, .. } = &**event;
            put(index, is_role, key, new.as_ref().map(|entry| entry.value.as_ref()));
        }
    }
}

/// Whether objects of this kind say who may do what.
pub(crate) fn is_policy(kind: &Kind) -> bool {
    kind.group == GROUP
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn index(objects: &[(&str, &str, &str, Value)]) -> Index {
        let mut index = Index::default();
        for (plural, namespace, name, object) in objects {
            let key = Key::new(GROUP, plural, namespace, name);
            put(&mut index, ROLES.contains(plural), &key, Some(object.to_string().as_bytes()));
        }
        index
    }

    fn role(resource: &str) -> Value {
        json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": [resource]}]})
    }

    fn binding(role: (&str, &str), subjects: Value) -> Value {
        json!({"roleRef": {"kind": role.0, "name": role.1}, "subjects": subjects})
    }

    fn get<'a>(resource: &'a str, namespace: &'a str) -> Request<'a> {
        Request { verb: "get", resource, namespace, ..Request::default() }
    }

    #[test]
    fn bindings_reach_as_far_as_their_namespace() {
        let account = json!([{"kind": "ServiceAccount", "name": "robot"}]);
        let index = index(&[
            ("roles", "a", "pods", role("pods")),
            ("clusterroles", "", "services", role("services")),
            ("rolebindings", "a", "one", binding(("Role", "pods"), json!([{"kind": "User", "name": "jane"}]))),
            ("rolebindings", "a", "two", binding(("ClusterRole", "services"), account)),
            (
                "clusterrolebindings",
                "",
                "three",
                binding(("ClusterRole", "services"), json!([{"kind": "Group", "name": "g"}])),
            ),
        ]);
        let (jane, robot, member) = (User::new("jane", &[]), User::account("a", "robot"), User::new("joe", &["g"]));
        for (user, request, expected) in [
            (&jane, get("pods", "a"), Some("RoleBinding \"one/a\" of Role \"pods\" to User \"jane\"")),
            (&jane, get("pods", "b"), None),
            (&jane, get("pods", ""), None),
            (&jane, get("services", "a"), None),
            (
                &robot,
                get("services", "a"),
                Some("RoleBinding \"two/a\" of ClusterRole \"services\" to ServiceAccount \"robot/a\""),
            ),
            (&robot, get("services", "b"), None),
            (&User::account("b", "robot"), get("services", "a"), None),
            (
                &member,
                get("services", "b"),
                Some("ClusterRoleBinding \"three\" of ClusterRole \"services\" to Group \"g\""),
            ),
            (
                &member,
                get("services", ""),
                Some("ClusterRoleBinding \"three\" of ClusterRole \"services\" to Group \"g\""),
            ),
        ] {
            let decided = index.decide(user, &request);
            let expected = expected.map(|why| format!("RBAC: allowed by {why}")).ok_or_else(String::new);
            assert_eq!(decided, expected, "{} {request:?}", user.name);
        }
    }

    #[test]
    fn changes_of_roles_and_bindings_count() {
        let jane = User::new("jane", &[]);
        let mut index = index(&[
            ("roles", "a", "r", role("pods")),
            ("rolebindings", "a", "b", binding(("Role", "r"), json!([{"kind": "User", "name": "jane"}]))),
        ]);
        let key = |plural| Key::new(GROUP, plural, "a", if plural == "roles" { "r" } else { "b" });
        index.put_role(&key("roles"), Some(role("secrets").to_string().as_bytes()));
        assert!(index.decide(&jane, &get("pods", "a")).is_err());
        assert!(index.decide(&jane, &get("secrets", "a")).is_ok());
        index.put_role(&key("roles"), None);
        let why = "RBAC: role.rbac.authorization.k8s.io \"r\" not found";
        assert_eq!(index.decide(&jane, &get("secrets", "a")), Err(why.to_owned()));
        index.put_binding(&key("rolebindings"), None);
        assert_eq!(index.decide(&jane, &get("secrets", "a")), Err(String::new()));
        assert!(index.by_subject.is_empty());
    }
}
