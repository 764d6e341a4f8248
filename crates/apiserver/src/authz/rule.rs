//! One rule of a role: what it allows, and what it covers of another.
//!
//! Pure. Source: `pkg/apis/rbac/v1/evaluation_helpers.go` and `component-helpers/auth/rbac/validation`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Request;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Rule {
    pub(crate) verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub(crate) non_resource_urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

/// `/a/*` covers all that begins with `/a/`.
fn url_covers(rule: &str, path: &str) -> bool {
    rule == path || rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*'))
}

/// `resource` may be such as `pods/log`, which `*/log` covers.
fn resource_covers(rules: &[String], resource: &str) -> bool {
    let sub = resource.split_once('/').map(|(_, sub)| sub);
    has(rules, resource)
        || sub.is_some_and(|sub| rules.iter().any(|rule| rule.strip_prefix("*/").is_some_and(|rule| rule == sub)))
}

impl Rule {
    /// May do everything; what somebody must hold who lets roles be gathered by labels.
    pub(super) fn everything() -> [Self; 2] {
        let star = || vec!["*".to_owned()];
        [
            Self { verbs: star(), api_groups: star(), resources: star(), ..Self::default() },
            Self { verbs: star(), non_resource_urls: star(), ..Self::default() },
        ]
    }

    pub(super) fn allows(&self, request: &Request<'_>) -> bool {
        if !has(&self.verbs, request.verb) {
            return false;
        }
        if !request.path.is_empty() {
            return self.non_resource_urls.iter().any(|rule| url_covers(rule, request.path));
        }
        has(&self.api_groups, request.group)
            && resource_covers(&self.resources, &request.full_resource())
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == request.name))
    }

    /// Whether this covers all of `part`; several rules together may where none does, unless it has but one of everything.
    fn covers(&self, part: &Self) -> bool {
        let all = |own: &[String], wanted: &[String]| wanted.iter().all(|item| has(own, item));
        let names = match part.resource_names.as_slice() {
            [] => self.resource_names.is_empty(),
            names => self.resource_names.is_empty() || names.iter().all(|name| self.resource_names.contains(name)),
        };
        all(&self.verbs, &part.verbs)
            && all(&self.api_groups, &part.api_groups)
            && part.resources.iter().all(|resource| resource_covers(&self.resources, resource))
            && part
                .non_resource_urls
                .iter()
                .all(|path| self.non_resource_urls.iter().any(|rule| url_covers(rule, path)))
            && names
    }

    /// How many parts it has.
    fn size(&self) -> usize {
        let of_resources = [self.api_groups.len(), self.resources.len(), self.resource_names.len().max(1)];
        let things =
            of_resources.into_iter().fold(1, usize::saturating_mul).saturating_add(self.non_resource_urls.len());
        things.saturating_mul(self.verbs.len())
    }

    /// The same as rules that have but one of everything.
    fn parts(&self) -> Vec<Self> {
        let one = |text: &String| vec![text.clone()];
        let mut parts = Vec::new();
        for (group, resource) in self.api_groups.iter().flat_map(|g| self.resources.iter().map(move |r| (g, r))) {
            for verb in &self.verbs {
                let part =
                    Self { verbs: one(verb), api_groups: one(group), resources: one(resource), ..Self::default() };
                if self.resource_names.is_empty() {
                    parts.push(part);
                } else {
                    parts.extend(
                        self.resource_names.iter().map(|name| Self { resource_names: one(name), ..part.clone() }),
                    );
                }
            }
        }
        for url in &self.non_resource_urls {
            let part = |verb| Self { verbs: one(verb), non_resource_urls: one(url), ..Self::default() };
            parts.extend(self.verbs.iter().map(part));
        }
        parts
    }
}

/// What of `wanted` the rules in `held` do not cover, in the smallest parts. Work and memory are the number of parts that
/// [`open_parts`] tells.
pub(crate) fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let parts = open(held, wanted).flat_map(Rule::parts);
    parts.filter(|part| !held.iter().any(|rule| rule.covers(part))).collect()
}

/// How many parts there are to look at one by one.
pub(super) fn open_parts(held: &[Rule], wanted: &[Rule]) -> usize {
    open(held, wanted).map(Rule::size).fold(0, usize::saturating_add)
}

/// Those that no single held rule covers as they are.
fn open<'a>(held: &'a [Rule], wanted: &'a [Rule]) -> impl Iterator<Item = &'a Rule> {
    wanted.iter().filter(|whole| !held.iter().any(|rule| rule.covers(whole)))
}

/// Rules in the words of kube-apiserver, those about the same thing taken together, a line each.
pub(super) fn describe(rules: &[Rule]) -> String {
    let mut compact: BTreeMap<[&[String]; 4], Vec<&str>> = BTreeMap::new();
    let mut apart = Vec::new();
    for rule in rules {
        if rule.non_resource_urls.is_empty() {
            let thing = [&rule.api_groups, &rule.resources, &rule.non_resource_urls, &rule.resource_names];
            compact.entry(thing.map(Vec::as_slice)).or_default().extend(rule.verbs.iter().map(String::as_str));
        } else {
            apart.push(rule);
        }
    }
    let quoted = |name: &str, list: &[&str]| {
        let list: Vec<String> = list.iter().map(|item| format!("{item:?}")).collect();
        (!list.is_empty()).then(|| format!("{name}:[{}]", list.join(" ")))
    };
    let texts = |list: &[String]| -> Vec<String> { list.to_vec() };
    let line = |[groups, resources, urls, names]: [&[String]; 4], verbs: &[&str]| {
        let parts =
            [("APIGroups", groups), ("Resources", resources), ("NonResourceURLs", urls), ("ResourceNames", names)];
        let mut parts: Vec<String> = parts
            .into_iter()
            .filter_map(|(name, list)| {
                let list = texts(list);
                quoted(name, &list.iter().map(String::as_str).collect::<Vec<_>>())
            })
            .collect();
        parts.extend(quoted("Verbs", verbs));
        format!("{{{}}}", parts.join(", "))
    };
    let mut lines: BTreeSet<String> = compact.into_iter().map(|(thing, verbs)| line(thing, &verbs)).collect();
    for rule in apart {
        let verbs: Vec<&str> = rule.verbs.iter().map(String::as_str).collect();
        lines.insert(line([&[], &[], &rule.non_resource_urls, &[]], &verbs));
    }
    lines.into_iter().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `verbs groups resources names`, or `verbs urls`; `core` is the group without a name.
    fn rule(text: &str) -> Rule {
        let list = |word: &str| -> Vec<String> {
            word.split(',').map(|item| if item == "core" { String::new() } else { item.to_owned() }).collect()
        };
        let words: Vec<&str> = text.split(' ').collect();
        match words.as_slice() {
            [verbs, urls] => Rule { verbs: list(verbs), non_resource_urls: list(urls), ..Rule::default() },
            [verbs, groups, resources, names @ ..] => Rule {
                verbs: list(verbs),
                api_groups: list(groups),
                resources: list(resources),
                resource_names: names.first().map(|names| list(names)).unwrap_or_default(),
                non_resource_urls: Vec::new(),
            },
            _ => panic!("{text}"),
        }
    }

    #[test]
    fn what_a_rule_allows() {
        let request = |text: &'static str| -> Request<'static> {
            let part = |text: &'static str| if text == "core" { "" } else { text };
            let words: Vec<&str> = text.split(' ').collect();
            match words.as_slice() {
                [verb, path] => Request { verb, path, ..Request::default() },
                [verb, group, resource, name @ ..] => {
                    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
                    let name = name.first().copied().unwrap_or_default();
                    Request { verb, group: part(group), resource, subresource, name, ..Request::default() }
                }
                _ => panic!("{text}"),
            }
        };
        for (given, asked, expected) in [
            ("get core pods", "get core pods", true),
            ("get core pods", "list core pods", false),
            ("get core pods", "get apps pods", false),
            ("get core pods", "get core pods/log", false),
            ("get core pods/log", "get core pods/log x", true),
            ("get core */log", "get core pods/log x", true),
            ("get core */log", "get core pods x", false),
            ("get core *", "get core pods/log x", true),
            ("* * *", "anything whatever things/sub x", true),
            ("* * *", "get /healthz", false),
            ("get core pods a,b", "get core pods b", true),
            ("get core pods a,b", "get core pods c", false),
            ("list core pods a", "list core pods", false),
            ("get /healthz,/api/*", "get /healthz", true),
            ("get /healthz,/api/*", "get /api/v1", true),
            ("get /healthz,/api/*", "get /api", false),
            ("get *", "get /anything", true),
            ("get *", "post /anything", false),
            ("get *", "get core pods", false),
        ] {
            assert_eq!(rule(given).allows(&request(asked)), expected, "{given} / {asked}");
        }
    }

    #[test]
    fn what_is_not_covered_is_told() {
        let told = |held: &[&str], wanted: &[&str]| {
            let rules = |texts: &[&str]| -> Vec<Rule> { texts.iter().map(|text| rule(text)).collect() };
            describe(&uncovered(&rules(held), &rules(wanted)))
        };
        assert_eq!(told(&["* * *", "* *"], &["get,list apps,core pods,*/log x", "get /a/*"]), "");
        assert_eq!(told(&["get core pods", "list core pods"], &["get,list core pods a"]), "");
        assert_eq!(told(&["get core */log"], &["get core pods/log"]), "");
        assert_eq!(
            told(&["get core pods"], &["get,list,watch core pods,services", "get /a"]),
            "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\" \"watch\"]}\n\
             {APIGroups:[\"\"], Resources:[\"services\"], Verbs:[\"get\" \"list\" \"watch\"]}\n\
             {NonResourceURLs:[\"/a\"], Verbs:[\"get\"]}"
        );
        assert_eq!(
            told(&["get core pods a"], &["get core pods", "get core pods a,b"]),
            "{APIGroups:[\"\"], Resources:[\"pods\"], ResourceNames:[\"b\"], Verbs:[\"get\"]}\n\
             {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\"]}"
        );
        assert_eq!(told(&["* core *"], &["* * *"]), "{APIGroups:[\"*\"], Resources:[\"*\"], Verbs:[\"*\"]}");
    }
}
