//! create, update, and what every change of an object goes through.
//!
//! Invariants: an object is written only if it is what the decision was made on (compare and set, tried again when
//! somebody else was faster); a write that changes nothing leaves the revision as it is; what belongs together, a
//! Service and the addresses it holds, is written together.

mod commit;
mod metadata;

use bytes::Bytes;
use jiff::Timestamp;
use portolan_kinds::apply::{self, Owners, Translations, Writer};
use portolan_kinds::{FieldError, Kind, Status, Subresource, names};
use portolan_store::{Expect, Op};
use serde_json::Value;

use crate::admission;
use crate::authz::Request;
use crate::convert;
use crate::custom;
use crate::object;
use crate::options::Options;
use crate::pairs;
use crate::ranges;
use crate::route::{Sub, Target};
use crate::server::Server;
use crate::services::{self, Allocation};
use crate::user::User;
use crate::warnings::Warnings;
pub(crate) use commit::{Unwritten, commit};
use commit::{commit_allocated, namespace_check};
pub(crate) use metadata::{check_named, check_uid, name_owners_once, own_status, set_managed_fields};
use metadata::{check_place, settle_new_metadata};

/// After this many lost races something is wrong, and the client should hear of it.
const TRIES: usize = 64;

/// Who asks for what, and how.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) user: &'a User,
    pub(crate) target: &'a Target,
    pub(crate) options: &'a Options,
    pub(crate) warnings: &'a Warnings,
}

impl<'a> Asked<'a> {
    pub(crate) fn kind(&self) -> &'a Kind {
        &self.target.kind
    }

    pub(crate) fn namespace(&self) -> &str {
        self.target.namespace.as_deref().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.target.name.as_deref().unwrap_or_default()
    }

    /// Who owns what this request writes at `now`.
    pub(crate) fn writer<'b>(&'b self, now: &'b str, translations: &'b Translations) -> Writer<'b> {
        let translations = Some(translations);
        Writer { manager: &self.options.manager, subresource: self.target.sub.as_str(), now, translations }
    }
}

/// What was written, as JSON with its type, in the version that was asked for or that it was stored as.
pub(crate) struct Written {
    pub(crate) seen: Bytes,
    pub(crate) created: bool,
}

/// An object that is to be changed.
#[derive(Clone, Copy)]
pub(crate) struct Live<'a> {
    /// Without its managed fields.
    pub(crate) object: &'a Value,
    pub(crate) held: &'a Value,
    /// What is known of it in other versions.
    pub(crate) translations: &'a Translations,
}

/// What a change makes of the old object.
pub(crate) struct Changed {
    pub(crate) object: Value,
    /// Of server-side apply, which says itself who owns what.
    pub(crate) owners: Option<Owners>,
}

impl From<Value> for Changed {
    fn from(object: Value) -> Self {
        Self { object, owners: None }
    }
}

fn refuse_invalid(kind: &Kind, object: &Value, errors: &[FieldError]) -> Result<(), Status> {
    // Events of both groups are told of as what is stored.
    let group = object::stored_kind(kind).group;
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(group, kind.kind, object::name(object), errors)) }
}

/// POST, and whatever else makes an object.
pub(crate) async fn create(server: &Server, asked: Asked<'_>, body: impl Into<Changed>) -> Result<Written, Status> {
    let kind = asked.kind();
    let now = Timestamp::now();
    let Changed { object: body, owners } = body.into();
    if kind.is_terminating() {
        let why = "create not allowed while custom resource definition is terminating";
        return Err(Status::method_not_supported(kind.group, kind.plural, why));
    }
    let (mut object, unknown) = kind.decode(body, asked.options.field_validation)?;
    asked.warnings.add(unknown);
    asked.warnings.add(name_owners_once(&mut object, ""));
    let sent = apply::take_managed_fields(&mut object);
    settle_new_metadata(&asked, &mut object, now)?;
    let base = match object::name(&object) {
        "" => object::text(&object, "/metadata/generateName").to_owned(),
        _ => String::new(),
    };
    if !base.is_empty() {
        object::metadata(&mut object).insert("name".into(), names::generate_name(&base, rand::random()).into());
    }
    kind.default(&mut object);
    let owners = owners.unwrap_or_else(|| {
        let none = Translations::default();
        apply::update(kind, (None, Value::Null), (&object, &sent), asked.writer(&object::time(now), &none))
    });
    kind.prepare_create(&mut object);
    admission::create(server, asked, &mut object).await?;
    let errors = kind.settle(&mut object, None, &services::families(&server.services));
    refuse_invalid(kind, &object, &errors)?;
    refuse_invalid(kind, &object, &kind.validate_create(&object))?;
    if custom::is_definition(kind) {
        custom::refuse_too_many(&server.store, object::name(&object), &object)?;
    }
    asked.warnings.add(kind.warnings(&object, None).into_iter().chain(pairs::warning(kind, &object)));
    set_managed_fields(&mut object, owners.managed_fields);
    object::refuse_too_deep(&object)?;

    for attempt in 0..TRIES {
        if attempt > 0 && !base.is_empty() {
            object::metadata(&mut object).insert("name".into(), names::generate_name(&base, rand::random()).into());
        }
        let name = object::name(&object).to_owned();
        let mut ops: Vec<Op> = Vec::new();
        ops.extend(namespace_check(&server.store, kind, asked.namespace(), &name)?);
        let key = object::key(kind, asked.namespace(), &name);
        if let Some(there) = server.store.get(&key).0 {
            if base.is_empty() {
                let refused = match object::is_deleting(&object::decode(&there.value)) {
                    true => Status::still_exists,
                    false => Status::already_exists,
                };
                return Err(refused(kind.group, kind.plural, &name));
            }
            continue;
        }
        let mut complete = object.clone();
        let allocation = allocation(server, kind, &mut complete, None, now)?;
        let outgoing = convert::outgoing(server, kind, object::to_stored(kind, complete)).await?;
        let document = object::encode(object::stored_kind(kind), &outgoing.stored);
        if asked.options.dry_run {
            return Ok(Written { seen: outgoing.told(None), created: true });
        }
        let own = ops.len();
        ops.push(Op::Put { key, expect: Expect::Absent, value: document });
        match commit_allocated(&server.store, ops, allocation).await {
            Ok(mut entries) => {
                let entry = entries.swap_remove(own);
                in_force(server, kind, entry.as_ref()).await;
                return Ok(Written { seen: outgoing.told(entry), created: true });
            }
            Err(Unwritten::Failed(status)) => return Err(status),
            // An address that the user asked for by number, and that somebody reserved by hand.
            Err(Unwritten::Race(op)) if op > own && !object::text(&object, "/spec/clusterIP").is_empty() => {
                return Err(reserved(&object));
            }
            Err(Unwritten::Race(_)) => {}
        }
    }
    Err(Status::already_exists(kind.group, kind.plural, object::name(&object)))
}

fn reserved(service: &Value) -> Status {
    let asked = service["spec"]["clusterIPs"].clone();
    let address = object::text(service, "/spec/clusterIP");
    let why = format!("failed to allocate IP {address}: provided IP is already allocated");
    Status::invalid("", "Service", object::name(service), &[FieldError::invalid("spec.clusterIPs", asked, why)])
}

fn allocation(
    server: &Server,
    kind: &Kind,
    new: &mut Value,
    old: Option<&Value>,
    now: Timestamp,
) -> Result<Option<Allocation>, Status> {
    if !services::is_service(kind) {
        return Ok(None);
    }
    let ranges = ranges::current(&server.store);
    services::allocate((&server.services, ranges), new, old, &object::time(now)).map(Some)
}

/// PUT: the whole object, or the part that a subresource is.
pub(crate) async fn update(server: &Server, asked: Asked<'_>, mut body: Value) -> Result<Written, Status> {
    let kind = asked.kind();
    apply::keep_reset(&mut body);
    let (mut object, unknown) = kind.decode(body, asked.options.field_validation)?;
    asked.warnings.add(unknown);
    asked.warnings.add(name_owners_once(&mut object, ""));
    check_named(&asked, &object)?;
    let unconditional = object::text(&object, "/metadata/resourceVersion").is_empty();
    let creates = asked.target.sub == Sub::None && kind.allows_create_on_update();
    let changed = change(server, asked, !unconditional, |live| {
        if unconditional && !kind.allows_unconditional_update() {
            let error = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
            return Err(Status::invalid(kind.group, kind.kind, asked.name(), &[error]));
        }
        check_uid(&asked, &object, object::text(live.object, "/metadata/uid"))?;
        Ok(object.clone().into())
    });
    match changed.await {
        Err(status) if status.code() == 404 && unconditional && creates => {
            check_uid(&asked, &object, "")?;
            may_create(server, asked)?;
            create(server, asked, object).await
        }
        other => other,
    }
}

/// Whether who updates or applies what is not there may make it, which is a right of its own.
///
/// # Errors
/// 403, in Kubernetes' words.
pub(crate) fn may_create(server: &Server, asked: Asked<'_>) -> Result<(), Status> {
    let kind = asked.kind();
    let (group, resource) = (kind.group, kind.plural);
    let (namespace, name) = (asked.namespace(), asked.name());
    let request = Request { verb: "create", group, resource, namespace, name, ..Request::default() };
    server.access.authorize(asked.user, &request)
}

/// Makes `change` of the stored object, trying again when it changed meanwhile, unless `strict`: then the client named the
/// revision it saw.
pub(crate) async fn change(
    server: &Server,
    asked: Asked<'_>,
    strict: bool,
    change: impl Fn(Live<'_>) -> Result<Changed, Status>,
) -> Result<Written, Status> {
    let kind = asked.kind();
    let (namespace, name) = (asked.namespace(), asked.name());
    let key = object::key(kind, namespace, name);
    for _ in 0..TRIES {
        let Some(entry) = server.store.get(&key).0 else {
            return Err(Status::not_found(kind.group, kind.plural, name));
        };
        let seen = convert::one(server, kind, entry.value.clone()).await?;
        let mut old = object::from_stored(kind, object::decode(&seen));
        let held = apply::take_managed_fields(&mut old);
        let now = Timestamp::now();
        let mut translations = Translations::default();
        let (mut new, owners) = loop {
            let settled = {
                let live = Live { object: &old, held: &held, translations: &translations };
                change(live).and_then(|changed| settle_update(server, &asked, changed, live, now))
            };
            match translations.take_wanted() {
                wanted if wanted.is_empty() => break settled?,
                wanted => convert::translate(server, kind, wanted, &mut translations).await?,
            }
        };
        admission::update(server, asked, &old, &new)?;
        let gone = is_finished(kind, &new, &old);
        let allocation = if gone && services::is_service(kind) {
            Some(services::release(&server.services, &old))
        } else {
            allocation(server, kind, &mut new, Some(&old), now)?
        };
        let definition = custom::is_definition(kind);
        let changed = new["spec"] != old["spec"];
        // Who changes nothing is warned, too.
        asked.warnings.add(match asked.target.sub {
            Sub::None if changed || !definition => kind.warnings(&new, Some(&old)),
            Sub::Status => kind.status_warnings(&new),
            _ => Vec::new(),
        });
        asked.warnings.add(pairs::warning(kind, &new));
        // What is stored as another version than it would be now is written anew, though nobody can see a change.
        let is_current = object::api_version(&entry.value) == object::stored_kind(kind).stored_api_version();
        if new == old && !gone && !owners.changed && is_current {
            return Ok(Written { seen, created: false });
        }
        if definition && changed {
            custom::refuse_too_many(&server.store, name, &new)?;
        }
        set_managed_fields(&mut new, owners.managed_fields);
        object::refuse_too_deep(&new)?;
        let outgoing = convert::outgoing(server, kind, object::to_stored(kind, new)).await?;
        if asked.options.dry_run {
            return Ok(Written { seen: outgoing.told(None), created: false });
        }
        let expect = Expect::At(entry.revision);
        let ops = vec![if gone {
            Op::Delete { key: key.clone(), expect }
        } else {
            Op::Put { key: key.clone(), expect, value: object::encode(object::stored_kind(kind), &outgoing.stored) }
        }];
        match commit_allocated(&server.store, ops, allocation).await {
            Ok(mut entries) => {
                let entry = entries.swap_remove(0);
                in_force(server, kind, entry.as_ref()).await;
                return Ok(Written { seen: outgoing.told(entry.filter(|_| !gone)), created: false });
            }
            Err(Unwritten::Failed(status)) => return Err(status),
            Err(Unwritten::Race(0)) if strict => break,
            Err(Unwritten::Race(_)) => {}
        }
    }
    Err(Status::stale(kind.group, kind.plural, name))
}

/// A definition is answered when what it says is served.
async fn in_force(server: &Server, kind: &Kind, entry: Option<&portolan_store::Entry>) {
    if let Some(entry) = entry.filter(|_| custom::is_definition(kind)) {
        server.kinds.reached(entry.revision).await;
    }
}

/// The object to store instead of `old`, and who owns what of it: `new`, with what only the server may say taken from
/// `old`. Owners are what a client asked for; what is kept or filled in after defaulting is nobody's.
fn settle_update(
    server: &Server,
    asked: &Asked<'_>,
    Changed { object: mut new, owners }: Changed,
    Live { object: old, held, translations }: Live<'_>,
    now: Timestamp,
) -> Result<(Value, Owners), Status> {
    let kind = asked.kind();
    let sent = apply::take_managed_fields(&mut new);
    check_place(asked, &new)?;
    let seen = object::text(&new, "/metadata/resourceVersion");
    if !seen.is_empty() && seen != "0" && seen != object::text(old, "/metadata/resourceVersion") {
        return Err(Status::stale(kind.group, kind.plural, asked.name()));
    }
    for (field, value) in [("apiVersion", kind.api_version()), ("kind", kind.kind.to_owned())] {
        object::map_of(&mut new).insert(field.into(), value.into());
    }
    let metadata = object::metadata(&mut new);
    metadata.remove("selfLink");
    for field in ["name", "namespace", "resourceVersion"] {
        match &old["metadata"][field] {
            Value::Null => metadata.remove(field),
            value => metadata.insert(field.into(), value.clone()),
        };
    }
    // Of a namespace: the one way to change these.
    let finalizers = (asked.target.sub == Sub::Finalize).then(|| new["spec"]["finalizers"].clone());
    let sub = match asked.target.sub {
        Sub::Status => Subresource::Status,
        Sub::EphemeralContainers => Subresource::EphemeralContainers,
        _ => Subresource::None,
    };
    kind.default(&mut new);
    let owners = owners.unwrap_or_else(|| {
        let now = object::time(now);
        apply::update(kind, (Some(old), held.clone()), (&new, &sent), asked.writer(&now, translations))
    });
    kind.prepare_update(&mut new, old, sub);
    match finalizers {
        Some(Value::Null) => _ = object::spec(&mut new).remove("finalizers"),
        Some(finalizers) => _ = object::spec(&mut new).insert("finalizers".into(), finalizers),
        None => {}
    }
    if sub == Subresource::None {
        let errors = kind.settle(&mut new, Some(old), &services::families(&server.services));
        refuse_invalid(kind, &new, &errors)?;
    }
    refuse_invalid(kind, &new, &kind.validate_update(&new, old, sub))?;
    Ok((new, owners))
}

/// Whether the update took away the last thing that kept a deleted object.
fn is_finished(kind: &Kind, new: &Value, old: &Value) -> bool {
    if !object::is_deleting(old) || object::has_items(new, "/metadata/finalizers") {
        return false;
    }
    if kind.plural == "namespaces" {
        return !object::has_items(new, "/spec/finalizers");
    }
    old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
}

/// Makes of a pod what its binding or its eviction says, such as its node, which no update may change otherwise; so this
/// goes past the rules for updates.
pub(crate) async fn rewrite(
    server: &Server,
    asked: Asked<'_>,
    change: impl Fn(&Value) -> Result<Value, Status>,
) -> Result<(), Status> {
    let kind = asked.kind();
    for _ in 0..TRIES {
        let (key, entry) = crate::read::stored(&server.store, asked.target)?;
        let pod = change(&object::decode(&entry.value))?;
        if asked.options.dry_run {
            return Ok(());
        }
        let put = Op::Put { key, expect: Expect::At(entry.revision), value: object::encode(kind, &pod) };
        match commit(&server.store, vec![put]).await {
            Ok(_) => return Ok(()),
            Err(Unwritten::Failed(status)) => return Err(status),
            Err(Unwritten::Race(_)) => {}
        }
    }
    Err(Status::stale(kind.group, kind.plural, asked.name()))
}
