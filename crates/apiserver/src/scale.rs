//! `/scale`: a Deployment, a ReplicaSet or what somebody defined, seen as `autoscaling/v1` Scale.

use portolan_kinds::{FieldError, FieldValidation, Kind, Scale, Status};
use serde_json::{Value, json};

use crate::apply;
use crate::convert;
use crate::object;
use crate::patch::Patch;
use crate::read;
use crate::server::Server;
use crate::write::{self, Asked, Changed};

fn scale_of(kind: &Kind, object: &Value) -> Value {
    let metadata = &object["metadata"];
    let paths = paths(kind);
    let number = |path: &[String]| at(object, path).and_then(Value::as_i64).unwrap_or(0);
    let selector = match &paths.selector {
        Some(path) => at(object, path).and_then(Value::as_str).unwrap_or_default().to_owned(),
        None if kind.is_custom() => String::new(),
        None => selector_text(&object["spec"]["selector"]),
    };
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {}, "spec": {},
        "status": {"replicas": number(&paths.status_replicas)}
    });
    // As Go writes them: what is empty is left out.
    if number(&paths.replicas) != 0 {
        scale["spec"]["replicas"] = number(&paths.replicas).into();
    }
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        scale["metadata"][field] = metadata[field].clone();
    }
    scale
}

/// A kind without a scale has none of its paths; nobody comes here for it.
fn paths(kind: &Kind) -> Scale {
    kind.scale().unwrap_or(Scale { replicas: Vec::new(), status_replicas: Vec::new(), selector: None })
}

fn at<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, name| value.get(name))
}

fn put(object: &mut Value, path: &[String], value: Value) {
    let Some((last, parents)) = path.split_last() else { return };
    let parent =
        parents.iter().fold(object, |value, name| object::map_of(value).entry(name.as_str()).or_insert(Value::Null));
    object::map_of(parent).insert(last.clone(), value);
}

/// A label selector in the form of a query, its keys and values sorted as Kubernetes has them.
fn selector_text(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let labels = labels.map(|(key, value)| (key.as_str(), format!("{key}={}", value.as_str().unwrap_or_default())));
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten().filter_map(|expression| {
        let key = expression["key"].as_str().unwrap_or_default();
        let mut values: Vec<_> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match expression["operator"].as_str()? {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return None,
        };
        Some((key, text))
    });
    let mut parts: Vec<_> = labels.chain(expressions).collect();
    parts.sort_by_key(|(key, _)| *key);
    parts.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

/// A Scale of this object that a client sent, or that its patch made.
fn checked(asked: &Asked<'_>, mut scale: Value) -> Result<Value, Status> {
    let unknown = portolan_kinds::check("autoscaling", "v1", "Scale", &mut scale, asked.options.field_validation)?;
    asked.warnings.add(unknown);
    write::check_named(asked, &scale)?;
    Ok(scale)
}

/// The object with the replicas that a Scale asks for.
fn scaled(kind: &Kind, old: &Value, scale: &Value) -> Result<Value, Status> {
    let name = object::name(old);
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(Status::invalid("autoscaling", "Scale", name, &[error]));
    }
    let mut new = old.clone();
    put(&mut new, &paths(kind).replicas, replicas.into());
    // The revision that the client saw, if it named one, is checked like any update's.
    let seen = object::text(scale, "/metadata/resourceVersion");
    object::metadata(&mut new).insert("resourceVersion".into(), seen.into());
    Ok(new)
}

/// The Scale of an object in the form of this version.
fn seen(kind: &Kind, stored: &[u8]) -> Value {
    scale_of(kind, &object::from_stored(kind, object::decode(stored)))
}

pub(crate) async fn get(server: &Server, asked: Asked<'_>) -> Result<Value, Status> {
    let (_, entry) = read::stored(&server.store, asked.target)?;
    Ok(seen(asked.kind(), &convert::one(server, asked.kind(), entry.value).await?))
}

pub(crate) async fn update(server: &Server, asked: Asked<'_>, scale: &Value) -> Result<Value, Status> {
    let scale = checked(&asked, scale.clone())?;
    let strict = !object::text(&scale, "/metadata/resourceVersion").is_empty();
    let written = write::change(server, asked, strict, |live| {
        write::check_uid(&asked, &scale, object::text(live.object, "/metadata/uid"))?;
        Ok(scaled(asked.kind(), live.object, &scale)?.into())
    })
    .await?;
    Ok(seen(asked.kind(), &written.seen))
}

pub(crate) async fn patch(server: &Server, asked: Asked<'_>, media: &str, body: &[u8]) -> Result<Value, Status> {
    let (patch, repeated) = Patch::parse(asked.kind(), media, body)?;
    match asked.options.field_validation {
        FieldValidation::Strict if !repeated.is_empty() => {
            let why = repeated.join(", ");
            let why = format!("Scale in version \"v1\" cannot be handled as a Scale: strict decoding error: {why}");
            return Err(Status::bad_request(why));
        }
        FieldValidation::Warn => asked.warnings.add(repeated),
        _ => {}
    }
    let written = write::change(server, asked, false, |live| {
        let old = live.object;
        let scale = match &patch {
            // A Scale has no lists, so that both ways of merging are one.
            Patch::Merge(patch) | Patch::Strategic(patch) => {
                portolan_kinds::patch::json_merge(&scale_of(asked.kind(), old), patch)
            }
            Patch::Json(_) => patch.to(asked.kind(), &scale_of(asked.kind(), old))?,
        };
        let scale = checked(&asked, scale)?;
        write::check_uid(&asked, &scale, object::text(old, "/metadata/uid"))?;
        Ok(scaled(asked.kind(), old, &scale)?.into())
    })
    .await?;
    Ok(seen(asked.kind(), &written.seen))
}

/// Server-side apply of a Scale: the replicas are a field of the object, so who applies them owns that field.
pub(crate) async fn apply(server: &Server, asked: Asked<'_>, body: &[u8]) -> Result<Value, Status> {
    let config = apply::configuration(asked, body)?;
    let (version, sent) = (object::text(&config, "/apiVersion"), object::text(&config, "/kind"));
    if (version, sent) != ("autoscaling/v1", "Scale") {
        return Err(Status::bad_request(format!("invalid object type: {version}, Kind={sent}")));
    }
    let kind = asked.kind();
    let replicas = config["spec"]["replicas"].clone();
    let mut config = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": config["metadata"]});
    put(&mut config, &paths(kind).replicas, replicas);
    let written = write::change(server, asked, false, |live| {
        let changed = apply::applied(asked, Some(live), &config)?;
        let replicas = at(&changed.object, &paths(kind).replicas).cloned().unwrap_or_default();
        let scale = json!({"spec": {"replicas": replicas}});
        Ok(Changed { object: scaled(kind, &changed.object, &scale)?, ..changed })
    })
    .await?;
    Ok(seen(asked.kind(), &written.seen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        let selector = json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["y", "x"]}, {"key": "a", "operator": "DoesNotExist"}
            ]
        });
        assert_eq!(selector_text(&selector), "!a,app=web,tier in (x,y)");
    }

    #[test]
    fn replicas() {
        let old = json!({"metadata": {"name": "x"}, "spec": {"replicas": 1}});
        assert_eq!(
            scaled(crate::known_kind("apps", "deployments"), &old, &json!({"spec": {"replicas": 3}})).unwrap()["spec"]
                ["replicas"],
            3
        );
        assert_eq!(
            scaled(crate::known_kind("apps", "deployments"), &old, &json!({"spec": {"replicas": -1}}))
                .unwrap_err()
                .code(),
            422
        );
    }
}
