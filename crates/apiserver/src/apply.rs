//! Server-side apply: a configuration, merged into what there is, or made an object if there is nothing.
//!
//! What merges and who owns what is `kinds::apply`; this is the request around it. Source: the apply patcher in
//! kube-apiserver's `endpoints/handlers/patch.go`.

use portolan_kinds::apply::{self, Translations};
use portolan_kinds::{FieldValidation, Status};
use serde_json::Value;

use crate::body;
use crate::object;
use crate::route::Sub;
use crate::server::Server;
use crate::write::{self, Asked, Changed, Live, Written};

pub(crate) const MEDIA_TYPE: &str = "application/apply-patch+yaml";

/// An object that comes and goes while it is applied to this often is somebody's fight with somebody.
const TRIES: usize = 8;

/// The configuration. What its text has twice is warned of.
///
/// # Errors
/// 400 for what is no YAML, and for fields that stand there twice, if the client is strict.
pub(crate) fn configuration(asked: Asked<'_>, bytes: &[u8]) -> Result<Value, Status> {
    let decoding = |why: &str| Status::bad_request(format!("error decoding YAML: {why}"));
    let (config, repeated) = body::yaml(bytes).map_err(|status| decoding(status.message()))?;
    if !config.is_object() && !config.is_null() {
        let got = match config {
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Bool(_) => "bool",
            _ => "number",
        };
        return Err(decoding(&format!(
            "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {got} into Go value of type \
             map[string]interface {{}}"
        )));
    }
    match asked.options.field_validation {
        FieldValidation::Strict => {
            if let Some(mistake) = repeated.mistakes().first() {
                let why = format!("error strict decoding YAML: error converting YAML to JSON: {mistake}");
                return Err(Status::bad_request(why));
            }
        }
        FieldValidation::Warn => asked.warnings.add(repeated.lines),
        FieldValidation::Ignore => {}
    }
    Ok(config)
}

/// What becomes of the live object, if there is one, and of its managed fields.
pub(crate) fn applied(asked: Asked<'_>, live: Option<Live<'_>>, config: &Value) -> Result<Changed, Status> {
    // As upstream, who applies a Scale does so at no known time.
    let now = if asked.target.sub == Sub::Scale { String::new() } else { object::time(jiff::Timestamp::now()) };
    let force = asked.options.force.unwrap_or_default();
    let none = Translations::default();
    let (of, translations) = match live {
        Some(live) => ((Some(live.object), live.held), live.translations),
        None => ((None, &Value::Null), &none),
    };
    let (object, owners) = apply::apply(asked.kind(), of, config, force, asked.writer(&now, translations))?;
    Ok(Changed { object, owners: Some(owners) })
}

pub(crate) async fn apply(server: &Server, asked: Asked<'_>, bytes: &[u8]) -> Result<Written, Status> {
    let kind = asked.kind();
    let config = configuration(asked, bytes)?;
    for _ in 0..TRIES {
        let changed = write::change(server, asked, false, |live| {
            let mut changed = applied(asked, Some(live), &config)?;
            let (object, unknown) = kind.decode(changed.object, asked.options.field_validation)?;
            asked.warnings.add(unknown);
            changed.object = object;
            Ok(changed)
        });
        match changed.await {
            Err(status) if status.code() == 404 && asked.target.sub == Sub::None => {}
            done => return done,
        }
        match create(server, asked, &config).await {
            Err(status) if status.reason() == "AlreadyExists" => {}
            done => return done,
        }
    }
    Err(Status::stale(kind.group, kind.plural, asked.name()))
}

async fn create(server: &Server, asked: Asked<'_>, config: &Value) -> Result<Written, Status> {
    let kind = asked.kind();
    write::may_create(server, asked)?;
    let mut changed = applied(asked, None, config)?;
    // As upstream: what there is none of yet has no revision to differ from.
    object::metadata(&mut changed.object).remove("resourceVersion");
    let uid = object::text(config, "/metadata/uid");
    if !uid.is_empty() {
        let why = format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
        return Err(Status::conflict(kind.group, kind.plural, asked.name(), &why));
    }
    write::check_named(&asked, config)?;
    write::create(server, asked, changed).await
}
