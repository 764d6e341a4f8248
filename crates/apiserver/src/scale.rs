//! `/scale`: a Deployment or ReplicaSet seen as `autoscaling/v1` Scale.

use portolan_kinds::{FieldError, Status};
use serde_json::{Value, json};

use crate::apply;
use crate::object;
use crate::patch::Patch;
use crate::read;
use crate::respond::{self, Reply};
use crate::server::Server;
use crate::write::{self, Asked, Changed};

fn scale_of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {},
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": {
            "replicas": object["status"]["replicas"].as_i64().unwrap_or(0),
            "selector": selector_text(&object["spec"]["selector"])
        }
    });
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        scale["metadata"][field] = metadata[field].clone();
    }
    scale
}

/// A label selector in the form of a query.
fn selector_text(selector: &Value) -> String {
    let mut parts = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        parts.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<_> = expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let values = values.join(",");
        match expression["operator"].as_str() {
            Some("In") => parts.push(format!("{key} in ({values})")),
            Some("NotIn") => parts.push(format!("{key} notin ({values})")),
            Some("Exists") => parts.push(key.to_owned()),
            Some("DoesNotExist") => parts.push(format!("!{key}")),
            _ => {}
        }
    }
    parts.join(",")
}

/// The object with the replicas that a Scale asks for.
fn scaled(old: &Value, scale: &Value) -> Result<Value, Status> {
    let name = object::name(old);
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => 0,
        value => value.as_i64().ok_or_else(|| Status::bad_request("Scale.spec.replicas must be an integer"))?,
    };
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(Status::invalid("autoscaling", "Scale", name, &[error]));
    }
    let mut new = old.clone();
    object::spec(&mut new).insert("replicas".into(), replicas.into());
    // The revision that the client saw, if it named one, is checked like any update's.
    let seen = object::text(scale, "/metadata/resourceVersion");
    object::metadata(&mut new).insert("resourceVersion".into(), seen.into());
    Ok(new)
}

pub(crate) fn get(server: &Server, asked: Asked<'_>) -> Result<Reply, Status> {
    let (_, entry) = read::stored(&server.store, asked.target)?;
    Ok(respond::value(200, &scale_of(&object::decode(&entry.value))))
}

pub(crate) async fn update(server: &Server, asked: Asked<'_>, scale: &Value) -> Result<Reply, Status> {
    let strict = !object::text(scale, "/metadata/resourceVersion").is_empty();
    let written = write::change(server, asked, strict, |old, _| Ok(scaled(old, scale)?.into())).await?;
    Ok(respond::value(200, &scale_of(&object::decode(&written.stored))))
}

pub(crate) async fn patch(server: &Server, asked: Asked<'_>, media: &str, body: &[u8]) -> Result<Reply, Status> {
    let patch = Patch::parse(media, body)?;
    let written = write::change(server, asked, false, |old, _| {
        let scale = match &patch {
            // A Scale has no lists, so that both ways of merging are one.
            Patch::Merge(patch) | Patch::Strategic(patch) => portolan_kinds::patch::json_merge(&scale_of(old), patch),
            Patch::Json(_) => patch.to(asked.kind(), &scale_of(old))?,
        };
        Ok(scaled(old, &scale)?.into())
    })
    .await?;
    Ok(respond::value(200, &scale_of(&object::decode(&written.stored))))
}

/// Server-side apply of a Scale: the replicas are a field of the object, so who applies them owns that field.
pub(crate) async fn apply(server: &Server, asked: Asked<'_>, body: &[u8]) -> Result<Reply, Status> {
    let (config, _) = apply::configuration(asked, body)?;
    let (version, sent) = (object::text(&config, "/apiVersion"), object::text(&config, "/kind"));
    if (version, sent) != ("autoscaling/v1", "Scale") {
        return Err(Status::bad_request(format!("invalid object type: {version}, Kind={sent}")));
    }
    let kind = asked.kind();
    let config = json!({
        "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": config["metadata"],
        "spec": {"replicas": config["spec"]["replicas"]}
    });
    let written = write::change(server, asked, false, |old, held| {
        let changed = apply::applied(asked, (Some(old), held), &config)?;
        let replicas = json!({"spec": {"replicas": changed.object["spec"]["replicas"]}});
        Ok(Changed { object: scaled(&changed.object, &replicas)?, ..changed })
    })
    .await?;
    Ok(respond::value(200, &scale_of(&object::decode(&written.stored))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        let selector = json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "a", "operator": "In", "values": ["x", "y"]}, {"key": "b", "operator": "DoesNotExist"}
            ]
        });
        assert_eq!(selector_text(&selector), "app=web,a in (x,y),!b");
    }

    #[test]
    fn replicas() {
        let old = json!({"metadata": {"name": "x"}, "spec": {"replicas": 1}});
        assert_eq!(scaled(&old, &json!({"spec": {"replicas": 3}})).unwrap()["spec"]["replicas"], 3);
        assert_eq!(scaled(&old, &json!({"spec": {"replicas": -1}})).unwrap_err().code(), 422);
        assert_eq!(scaled(&old, &json!({"spec": {"replicas": "x"}})).unwrap_err().code(), 400);
    }
}
