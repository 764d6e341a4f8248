//! Server-side apply: a live object, a configuration and who owns what -> the object with the configuration in it, and
//! who owns what then; and, for every other way of writing, who owns what after it.
//!
//! Invariants: pure; a field's value changes only for who owns it, was told to take it, or updates; applying the same
//! again changes nothing; a field goes when the last applier of it no longer names it; what one does not own, another's
//! apply does not touch.
//!
//! Deliberately not here: whether the result is valid, and conversion between versions of a defined kind that differ in
//! more than their schema, which is asked for (`translate`).
//!
//! Source: "Server-Side Apply" in Kubernetes' documentation (KEP-555), `sigs.k8s.io/structured-merge-diff` and
//! apimachinery `pkg/util/managedfields`.

mod check;
mod compare;
mod element;
mod extract;
mod form;
mod managers;
mod merge;
mod remove;
mod set;
mod translate;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::look::{Look, child, map_of, remove as remove_field};
use crate::schema::{Type, table};
use crate::{Kind, Status, convert_event};
use compare::{Changes, compare};
use extract::{extract, with_named_fields};
use form::Form;
use managers::{Entry, Operation};
use set::Set;
pub use translate::{Translations, Wanted};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager whose client-side apply came before its server-side one.
const KUBECTL: &str = "kubectl";
/// Who owns what is in an object of unknown owners when it is first applied to.
const BEFORE: &str = "before-first-apply";

/// Who writes, where, and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// `unknown`, if it is empty.
    pub manager: &'a str,
    /// `status`, `scale` …, or nothing for the object itself.
    pub subresource: &'a str,
    /// In Kubernetes' form, to the second.
    pub now: &'a str,
    /// What is known of the objects in other versions of their kind, if those differ in more than their schema.
    pub translations: Option<&'a Translations>,
}

impl Writer<'_> {
    fn entry(&self, kind: &Kind, operation: Operation, fields: Set) -> Entry {
        Entry {
            manager: if self.manager.is_empty() { "unknown" } else { self.manager }.to_owned(),
            operation,
            api_version: kind.api_version(),
            subresource: self.subresource.to_owned(),
            time: self.now.to_owned(),
            fields,
        }
    }
}

/// Takes `metadata.managedFields` out of an object; null if it has none.
pub fn take_managed_fields(object: &mut Value) -> Value {
    object.get_mut("metadata").and_then(|metadata| remove_field(metadata, "managedFields")).unwrap_or_default()
}

/// Makes a list of managed fields that was emptied on purpose outlast decoding, which drops empty lists.
pub fn keep_reset(body: &mut Value) {
    if let Some(Value::Array(entries)) = body.pointer_mut("/metadata/managedFields")
        && entries.is_empty()
    {
        entries.push(json!({}));
    }
}

/// Who owns what after a write.
#[derive(Debug)]
pub struct Owners {
    /// Null if nobody owns anything.
    pub managed_fields: Value,
    /// Whether it is not who owned what before. Times alone do not count.
    pub changed: bool,
}

/// Who owns what after an update of `old`, or a creation if there is none. `held` are the managed fields of `old`,
/// `sent` those that came with `new`, or null, and both objects are without. Objects whose owners nobody tracked stay
/// untracked.
pub fn update(
    kind: &Kind,
    (old, held): (Option<&Value>, Value),
    (new, sent): (&Value, &Value),
    writer: Writer<'_>,
) -> Owners {
    if writer.subresource.is_empty() && !sent.is_null() && *sent != held {
        return update_as_sent(kind, (old, held), (new, sent), writer);
    }
    let mut entries = managers::decode(held);
    if entries.is_empty() && old.is_some() {
        return Owners { managed_fields: Value::Null, changed: false };
    }
    let changed = record(kind, old.unwrap_or(&json!({})), new, &mut entries, writer);
    managers::cap(&mut entries);
    Owners { managed_fields: managers::encode(entries), changed }
}

/// The same for who says, by sending managed fields, who owned what until now.
fn update_as_sent(
    kind: &Kind,
    (old, held): (Option<&Value>, Value),
    (new, sent): (&Value, &Value),
    writer: Writer<'_>,
) -> Owners {
    let entries = if managers::is_reset(sent) { Some(Vec::new()) } else { managers::decode_sent(sent) };
    let Some(mut entries) = entries else { return update(kind, (old, held), (new, &Value::Null), writer) };
    if !entries.is_empty() || old.is_none() {
        record(kind, old.unwrap_or(&json!({})), new, &mut entries, writer);
        managers::cap(&mut entries);
    }
    let managed_fields = managers::encode(entries);
    let changed = !managers::are_same(&managed_fields, &held);
    Owners { managed_fields, changed }
}

/// Gives what changed to who changed it, and takes it from all others. Tells whether anybody's fields are others now.
fn record(kind: &Kind, old: &Value, new: &Value, entries: &mut Vec<Entry>, writer: Writer<'_>) -> bool {
    let mut views = Views::new(kind, (old, new), writer);
    let taken = views.changes(&kind.api_version()).map(Changes::taken).unwrap_or_default();
    let mut own = writer.entry(kind, Operation::Update, set::difference(&taken, &NOBODYS));
    let mut changed = false;
    // Most writes change the values of what their writer has already.
    let mut is_new = !own.fields.is_empty();
    entries.retain_mut(|entry| {
        let Some(changes) = views.changes(&entry.api_version) else {
            changed = true;
            return false;
        };
        let is_own = entry.is_same(&own);
        let lost = if is_own { &changes.removed } else { &set::union(changes.taken(), &changes.removed) };
        if set::meet(&entry.fields, lost) {
            entry.fields = set::difference(&entry.fields, lost);
            changed = true;
        }
        if is_own && is_new {
            is_new = false;
            if !set::covers(&entry.fields, &own.fields) {
                entry.fields = set::union(std::mem::take(&mut entry.fields), &own.fields);
                changed = true;
            }
            entry.time = std::mem::take(&mut own.time);
        }
        !entry.fields.is_empty()
    });
    if is_new {
        entries.push(own);
    }
    changed || is_new
}

/// What changed, as each version of the kind has it.
struct Views<'a> {
    kind: &'a Kind,
    old: &'a Value,
    new: &'a Value,
    ignored: &'static [&'static [&'static str]],
    translations: Option<&'a Translations>,
    found: BTreeMap<String, Option<Changes>>,
}

impl<'a> Views<'a> {
    fn new(kind: &'a Kind, (old, new): (&'a Value, &'a Value), writer: Writer<'a>) -> Self {
        let ignored = ignored(kind, writer.subresource);
        Self { kind, old, new, ignored, translations: writer.translations, found: BTreeMap::new() }
    }

    /// `None` for a version that the kind does not have.
    fn changes(&mut self, api_version: &str) -> Option<&Changes> {
        if !self.found.contains_key(api_version) {
            let mut changes = if let Some(custom) = &self.kind.custom {
                let translations = self.translations.filter(|_| custom.webhook().is_some());
                let translated = |object: &'a Value| match translations {
                    Some(translations) => translations.find(api_version, object),
                    None => Some(Cow::Borrowed(object)),
                };
                custom.schema_of(api_version).map(|schema| {
                    // Until both are known, nothing is said of what changed.
                    let both = translated(self.old).zip(translated(self.new));
                    both.map(|(old, new)| compare(Form::of_object(schema), &old, &new)).unwrap_or_default()
                })
            } else if api_version == self.kind.api_version() {
                schema(self.kind.type_name()).map(|schema| compare(Form::of_type(schema), self.old, self.new))
            } else {
                match (self.kind.kind, api_version) {
                    ("Event", "v1") => schema("core.v1.Event"),
                    ("Event", "events.k8s.io/v1") => schema("events.v1.Event"),
                    _ => None,
                }
                .map(|schema| {
                    let (old, new) = (convert_event(self.old, api_version), convert_event(self.new, api_version));
                    compare(Form::of_type(schema), &old, &new)
                })
            };
            if let Some(changes) = &mut changes {
                self.ignored.iter().for_each(|path| changes.cut(path));
            }
            self.found.insert(api_version.to_owned(), changes);
        }
        self.found.get(api_version).and_then(Option::as_ref)
    }
}

fn schema(type_name: &str) -> Option<&'static Type> {
    table().find(type_name)
}

static NOBODYS: LazyLock<Set> = LazyLock::new(managers::nobodys);

/// What writing there leaves as it was, and so gives to nobody.
fn ignored(kind: &Kind, subresource: &str) -> &'static [&'static [&'static str]] {
    match (subresource, kind.kind) {
        ("status", _) if kind.is_custom() => &[&["f:metadata"], &["f:spec"]],
        ("status", "Deployment") => &[&["f:spec"], &["f:metadata", "f:labels"]],
        ("status", "Pod") => {
            &[&["f:spec"], &["f:metadata", "f:deletionTimestamp"], &["f:metadata", "f:ownerReferences"]]
        }
        ("status", _) => &[&["f:spec"]],
        ("scale", _) => &[],
        _ if kind.has_status => &[&["f:status"]],
        _ => &[],
    }
}

/// Applies a configuration to a live object, or makes one of it if there is none. `held` are the managed fields of the
/// live object, which itself is without. What comes out is neither decoded nor defaulted: of what the configuration
/// says, word for word.
///
/// # Errors
/// 400 for a configuration of another kind, with managed fields, or with fields that the kind has not; 409 when another
/// manager owns a field that would change, unless it is `force`d.
pub fn apply(
    kind: &Kind,
    (live, held): (Option<&Value>, &Value),
    config: &Value,
    force: bool,
    writer: Writer<'_>,
) -> Result<(Value, Owners), Status> {
    let form = check_kind(kind, config)?;
    if config.pointer("/metadata/managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    if let Some(mistakes) = check::mistakes(form, config) {
        let (namespace, name) = (config["metadata"].text("namespace"), config["metadata"].text("name"));
        return Err(Status::bad_request(format!(
            "failed to create typed patch object ({namespace}/{name}; {}/{}, Kind={}): {mistakes}",
            kind.group, kind.version, kind.kind
        )));
    }
    let nothing = json!({"apiVersion": kind.api_version(), "kind": kind.kind});
    let mut entries = managers::decode(held.clone());
    if let Some(live) = live
        && entries.is_empty()
    {
        record(kind, &nothing, live, &mut entries, Writer { manager: BEFORE, ..writer });
    }
    let live = live.unwrap_or(&nothing);
    let mut apply = Apply { kind, form, live, config, writer, force };
    let mut outcome = apply.run(entries.clone());
    // Whoever comes from kubectl's client-side apply owns what that said it applied last.
    if let Err(conflicts) = &outcome
        && writer.manager == KUBECTL
        && let Some(last) = last_applied(live)
        && last.text("apiVersion") == kind.api_version()
    {
        // But for what is no longer as it was: somebody has set that since.
        let since = compare(apply.form, &last, live);
        let allowed = set::difference(&set::difference(&extract(apply.form, &last), &since.taken()), &since.removed);
        let left: Vec<Conflict> = conflicts
            .iter()
            .map(|conflict| Conflict { fields: set::difference(&conflict.fields, &allowed), ..conflict.clone() })
            .filter(|conflict| !conflict.fields.is_empty())
            .collect();
        outcome = if left.is_empty() {
            apply.force = true;
            apply.run(entries)
        } else {
            Err(left)
        };
    }
    let (mut new, mut entries) = outcome.map_err(|conflicts| refuse(&conflicts))?;
    if writer.manager == KUBECTL && last_applied(live).is_some() {
        remember(&mut new, config);
    }
    managers::cap(&mut entries);
    let managed_fields = managers::encode(entries);
    let changed = !managers::are_same(&managed_fields, held);
    Ok((new, Owners { managed_fields, changed }))
}

fn check_kind<'a>(kind: &'a Kind, config: &Value) -> Result<Form<'a>, Status> {
    let (version, sent) = (config.text("apiVersion"), config.text("kind"));
    let form = match &kind.custom {
        Some(custom) => Some(Form::of_object(custom.schema())),
        None => schema(kind.type_name()).map(Form::of_type),
    };
    form.filter(|_| version == kind.api_version() && sent == kind.kind).ok_or_else(|| {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        Status::bad_request(format!("invalid object type: {group}/{version}, Kind={sent}"))
    })
}

/// The configuration that kubectl's client-side apply left with the object.
fn last_applied(object: &Value) -> Option<Value> {
    let text = object.get_in(&["metadata", "annotations", LAST_APPLIED]).as_str()?;
    serde_json::from_str(text).ok().filter(Value::is_object)
}

/// Leaves the configuration with the object for client-side apply, which may come again.
fn remember(object: &mut Value, config: &Value) {
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations") {
        remove_field(annotations, LAST_APPLIED);
    }
    let annotations = child(child(object, "metadata"), "annotations");
    map_of(annotations).insert(LAST_APPLIED.to_owned(), format!("{config}\n").into());
}

#[derive(Clone)]
struct Conflict {
    /// As messages name it.
    owner: String,
    fields: Set,
}

/// 409, in the words that kubectl prints.
fn refuse(conflicts: &[Conflict]) -> Status {
    let mut causes = Vec::new();
    let mut lines = Vec::new();
    let mut sorted: Vec<&Conflict> = conflicts.iter().collect();
    sorted.sort_by_key(|conflict| &conflict.owner);
    for Conflict { owner, fields } in sorted {
        lines.push(format!("conflicts with {owner}:"));
        for path in set::paths(fields) {
            let path: String = path.into_iter().map(element::shown).collect();
            lines.push(format!("- {path}"));
            causes.push((format!("conflict with {owner}"), path));
        }
    }
    let summary = match causes.as_slice() {
        [(conflict, path)] => format!("Apply failed with 1 conflict: {conflict}: {path}"),
        many => format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n")),
    };
    Status::apply_conflict(summary, &causes)
}

struct Apply<'a> {
    kind: &'a Kind,
    form: Form<'a>,
    live: &'a Value,
    config: &'a Value,
    writer: Writer<'a>,
    force: bool,
}

impl Apply<'_> {
    fn run(&self, mut entries: Vec<Entry>) -> Result<(Value, Vec<Entry>), Vec<Conflict>> {
        let ignored = ignored(self.kind, self.writer.subresource);
        let mut fields = extract(self.form, self.config);
        ignored.iter().for_each(|path| set::cut(&mut fields, path));
        let mut own = self.writer.entry(self.kind, Operation::Apply, fields);
        let place = entries.iter().position(|entry| entry.is_same(&own));
        let last = place.map(|index| entries.remove(index));
        let merged = merge::merge(self.form, self.live, self.config);
        let new = match &last {
            Some(last) => self.prune(merged, &last.fields, &own, &entries),
            None => merged,
        };
        let mut views = Views::new(self.kind, (self.live, &new), self.writer);
        let mut conflicts = Vec::new();
        entries.retain_mut(|entry| {
            let Some(changes) = views.changes(&entry.api_version) else { return false };
            let lost = set::intersection(&entry.fields, &changes.taken());
            entry.fields = set::difference(&set::difference(&entry.fields, &lost), &changes.removed);
            if !lost.is_empty() {
                conflicts.push(Conflict { owner: entry.shown(), fields: lost });
            }
            !entry.fields.is_empty()
        });
        if !self.force && !conflicts.is_empty() {
            return Err(conflicts);
        }
        own.fields = set::difference(&own.fields, &NOBODYS);
        // As upstream: who changes nothing of the object has not written now, and may never have.
        if new == *self.live {
            own.time = last.map(|last| last.time).unwrap_or_default();
        }
        if !own.fields.is_empty() {
            entries.push(own);
        }
        Ok((new, entries))
    }

    /// Takes out what this manager applied last, does not apply now, and nobody else owns.
    fn prune(&self, merged: Value, last: &Set, own: &Entry, others: &[Entry]) -> Value {
        let form = self.form;
        let named = |fields: &Set| with_named_fields(form, fields);
        let without = |gone: &Set| match remove::remove(form, &merged, gone) {
            Value::Null => Value::Object(Map::new()),
            kept => kept,
        };
        let last = named(last);
        let all = named(&extract(form, &merged));
        let pruned = named(&extract(form, &without(&last)));
        // What others own stays, or comes back.
        let owned = others.iter().filter(|entry| entry.api_version == own.api_version);
        let owned = owned.fold(own.fields.clone(), |owned, entry| set::union(owned, &entry.fields));
        let gone = set::difference(&all, &set::union(pruned, &named(&owned)));
        // So does what is nobody's, and went only with what it was in.
        let pruned = named(&extract(form, &without(&gone)));
        let gone = set::intersection(&set::difference(&all, &pruned), &last);
        if gone.is_empty() { merged } else { without(&gone) }
    }
}

#[cfg(test)]
mod tests;
