//! A webhook that converts objects between the versions of a definition: where it is, what it is asked, and what of its
//! answer is believed.
//!
//! Invariants: as many objects come back as went, each of the version that was asked for and otherwise the same one; of
//! their metadata a webhook changes labels and annotations, and nothing else.
//! Deliberately not here: the call (the API server).
//! Source: `pkg/apiserver/conversion/webhook_converter.go` of apiextensions-apiserver, whose words these are.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::look::{Look, Path, child, map_of, remove};
use crate::url::Url;
use crate::{openapi, validate};

/// The versions of ConversionReview that are spoken.
pub(super) const REVIEWS: [&str; 2] = ["v1", "v1beta1"];
const GROUP: &str = "apiextensions.k8s.io";

/// Where a webhook listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A name or an address.
    Host(String),
    Service {
        namespace: String,
        name: String,
    },
}

/// Who converts the objects of a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// The definition's name.
    pub definition: String,
    /// Another one when anything is that an answer may depend on.
    pub identity: u64,
    pub place: Place,
    pub port: u16,
    /// Begins with a slash.
    pub path: String,
    /// Whose certificates are good, in PEM; nothing for those whom the machine trusts.
    pub authorities: Vec<u8>,
    review: Option<&'static str>,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Conversion<'a> {
    /// Of this question, so that its answer can be told.
    pub uid: &'a str,
    /// The version that is asked for.
    pub api_version: &'a str,
    /// All of one kind and version.
    pub objects: &'a [Value],
}

impl Webhook {
    /// `None` for a definition that names none.
    pub(super) fn new(definition: &Value) -> Option<Self> {
        let spec = &definition["spec"];
        let conversion = &spec["conversion"];
        if conversion.text("strategy") != "Webhook" {
            return None;
        }
        let (hook, config) = (&conversion["webhook"], conversion.get_in(&["webhook", "clientConfig"]));
        let service = &config["service"];
        let (place, port, path) = if service.is_object() {
            let place =
                Place::Service { namespace: service.text("namespace").into(), name: service.text("name").into() };
            (place, service.int("port").and_then(|port| u16::try_from(port).ok()), service.text("path").to_owned())
        } else {
            let url = Url::parse(config.text("url")).ok()?;
            let (host, port) = url.host_and_port();
            (Place::Host(host.to_owned()), port.parse().ok(), url.escaped_path())
        };
        let review = hook.list("conversionReviewVersions").iter().filter_map(Value::as_str);
        Some(Self {
            definition: definition["metadata"].text("name").to_owned(),
            identity: openapi::hash(spec.to_string().as_bytes()),
            place,
            port: port.unwrap_or(443),
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            authorities: bundle(config.text("caBundle")),
            review: review.filter_map(|version| REVIEWS.into_iter().find(|known| *known == version)).next(),
        })
    }

    /// False for a definition whose webhook nobody could believe, since the certificates with it are none.
    pub(super) fn has_certificates(definition: &Value) -> bool {
        let config = definition.get_in(&["spec", "conversion", "webhook", "clientConfig"]);
        config.text("caBundle").is_empty() || certificates(config.text("caBundle")).is_ok()
    }

    /// The body to send.
    ///
    /// # Errors
    /// If the webhook speaks no version of it that is known.
    pub fn question(&self, asked: Conversion<'_>) -> Result<Value, String> {
        let version = self.review.ok_or("no supported conversion review versions")?;
        Ok(json!({
            "kind": "ConversionReview", "apiVersion": format!("{GROUP}/{version}"),
            "request": {"uid": asked.uid, "desiredAPIVersion": asked.api_version, "objects": asked.objects}
        }))
    }

    /// The objects of an answer, which is what it should be.
    ///
    /// # Errors
    /// With the reason why it is not, in the words that clients get.
    pub fn accept(&self, asked: Conversion<'_>, answer: Value) -> Result<Vec<Value>, String> {
        let hook = format!("conversion webhook for {}", subject(asked));
        let converted = self.converted(asked, answer).map_err(|why| format!("{hook} failed: {why}"))?;
        let (got, expected) = (converted.len(), asked.objects.len());
        if got != expected {
            return Err(format!("{hook} returned {got} objects, expected {expected}"));
        }
        let originals = asked.objects.iter().enumerate();
        originals
            .zip(converted)
            .map(|((index, original), converted)| {
                believe(asked.api_version, original, converted).map_err(|(what, why)| match asked.objects {
                    [_] if what == UNREADABLE => why,
                    [_] if what == NOT_ASKED_FOR => format!("{hook} returned invalid object at index 0: {why}"),
                    [_] => format!("{hook} returned invalid {what}: {why}"),
                    _ if what == METADATA => {
                        format!("{hook} returned invalid metadata in object at index {index}: {why}")
                    }
                    _ => format!("{hook} returned invalid converted object at index {index}: {why}"),
                })
            })
            .collect()
    }

    fn converted(&self, asked: Conversion<'_>, mut answer: Value) -> Result<Vec<Value>, String> {
        let got = group_version_kind(&answer);
        let other = REVIEWS.into_iter().find(|other| got == format!("{GROUP}/{other}, Kind=ConversionReview"));
        if let (Some(asked), Some(other)) = (self.review, other)
            && asked != other
        {
            let to = format!("({asked}.ConversionReview)");
            return Err(format!("converting ({other}.ConversionReview) to {to}: unknown conversion"));
        }
        if self.review == Some("v1") {
            let expected = format!("{GROUP}/v1, Kind=ConversionReview");
            if got != expected {
                return Err(format!("expected webhook response of {expected}, got {got}"));
            }
        }
        let response = &mut answer["response"];
        if !response.is_object() {
            return Err("no response provided".to_owned());
        }
        let uid = response.text("uid");
        if self.review == Some("v1") && uid != asked.uid {
            return Err(format!("expected response.uid={:?}, got {uid:?}", asked.uid));
        }
        let (status, message) = (response["result"].text("status"), response["result"].text("message"));
        if status != "Success" {
            return Err(match message {
                "" => format!("response.result.status was '{status}', not 'Success'"),
                message => message.to_owned(),
            });
        }
        Ok(match response["convertedObjects"].take() {
            Value::Array(objects) => objects,
            _ => Vec::new(),
        })
    }
}

/// What about an object is not as it should be: which one it is.
const OBJECT: &str = "object";
/// Its labels and annotations.
const METADATA: &str = "metadata";
/// What it is at all.
const UNREADABLE: &str = "kind";
/// Its version or kind.
const NOT_ASKED_FOR: &str = "type";

/// A converted object, with the metadata that it had but for its labels and annotations.
fn believe(api_version: &str, original: &Value, mut converted: Value) -> Result<Value, (&'static str, String)> {
    if converted.text("kind").is_empty() {
        let shown = converted.to_string();
        return Err((UNREADABLE, format!("Object 'Kind' is missing in '{shown:.1024}'")));
    }
    for (what, expected, got) in [
        ("groupVersion", api_version, converted.text("apiVersion")),
        ("kind", original.text("kind"), converted.text("kind")),
    ] {
        if expected != got {
            return Err((NOT_ASKED_FOR, format!("invalid {what} (expected {expected}, received {got})")));
        }
    }
    let (was, is) = (&original["metadata"], &converted["metadata"]);
    for (what, field) in [("name", "name"), ("namespace", "namespace"), ("UID", "uid")] {
        let (was, is) = (was.text(field), is.text(field));
        if was != is {
            return Err((OBJECT, format!("must have the same {what}: {was} != {is}")));
        }
    }
    let metadata = match remove(&mut converted, "metadata") {
        None => return Err((METADATA, "missing metadata in converted object".to_owned())),
        Some(Value::Object(metadata)) => metadata,
        Some(other) => {
            return Err((METADATA, format!("invalid metadata of type {} in converted object", go_type(&other))));
        }
    };
    map_of(&mut converted).insert("metadata".into(), was.clone());
    let own = child(&mut converted, "metadata");
    for field in ["labels", "annotations"] {
        match texts(field, metadata.get(field), own.get(field)).map_err(|why| (METADATA, why))? {
            Some(texts) => _ = map_of(own).insert(field.to_owned(), texts),
            None => _ = remove(own, field),
        }
    }
    Ok(converted)
}

/// Labels or annotations as an answer has them, which are checked if they are others than before.
fn texts(field: &str, new: Option<&Value>, old: Option<&Value>) -> Result<Option<Value>, String> {
    let map: &Map<String, Value> = match new {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(map)) => map,
        Some(other) => {
            return Err(format!("invalid metadata.{field} of type {} in converted object", go_type(other)));
        }
    };
    if let Some((key, value)) = map.iter().find(|(_, value)| !value.is_string()) {
        let found = go_type(value);
        return Err(format!("metadata.{field}[{key}] must be a string, but is {found} in converted object"));
    }
    let value = Value::Object(map.clone());
    if Some(&value) != old {
        let metadata = Path::Field(&Path::Root, "metadata");
        let mistakes: Vec<String> = match field {
            "labels" => validate::labels_of(&value, &metadata.field("labels")),
            // As upstream names it.
            _ => validate::annotations_of(&value, &metadata.field("annotation")),
        }
        .iter()
        .map(ToString::to_string)
        .collect();
        match mistakes.as_slice() {
            [] => {}
            [one] => return Err(one.clone()),
            many => return Err(format!("[{}]", many.join(", "))),
        }
    }
    Ok(Some(value))
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// What the objects are, such as `stable.example.com/v1, Kind=CronTab`.
pub fn subject(asked: Conversion<'_>) -> String {
    asked.objects.first().map(group_version_kind).unwrap_or_default()
}

fn group_version_kind(object: &Value) -> String {
    let version = object.text("apiVersion");
    let slash = if version.contains('/') { "" } else { "/" };
    format!("{slash}{version}, Kind={}", object.text("kind"))
}

/// What stands in a definition in base64. As upstream, blanks are nothing.
fn bundle(text: &str) -> Vec<u8> {
    STANDARD.decode(text).ok().filter(|bytes| !bytes.trim_ascii().is_empty()).unwrap_or_default()
}

/// Whether certificates can be read out of a bundle.
///
/// # Errors
/// Says why there are none.
pub(super) fn certificates(text: &str) -> Result<(), &'static str> {
    let bytes = STANDARD.decode(text).unwrap_or_default();
    let pem = String::from_utf8_lossy(&bytes);
    let mut blocks = pem.split("-----BEGIN ").skip(1).peekable();
    if blocks.peek().is_none() {
        return Err("unable to parse bytes as PEM block");
    }
    let is_certificate = |block: &str| {
        let inside =
            block.strip_prefix("CERTIFICATE-----").and_then(|rest| rest.split("-----END CERTIFICATE-----").next());
        let letters: String = inside.unwrap_or_default().split_ascii_whitespace().collect();
        // A SEQUENCE, as every certificate is.
        STANDARD.decode(letters).is_ok_and(|der| der.first() == Some(&0x30))
    };
    if blocks.any(is_certificate) { Ok(()) } else { Err("no valid certificate authority data seen") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(review: &'static str) -> Webhook {
        let definition = json!({
            "metadata": {"name": "crontabs.example.com"},
            "spec": {"conversion": {"strategy": "Webhook", "webhook": {
                "clientConfig": {"url": "https://[::1]:8443/convert"}, "conversionReviewVersions": ["v7", review]}}}
        });
        Webhook::new(&definition).unwrap()
    }

    fn original(name: &str) -> Value {
        json!({
            "apiVersion": "example.com/v1", "kind": "CronTab", "hostPort": "a:1",
            "metadata": {"name": name, "uid": "7", "labels": {"a": "b"}, "finalizers": ["f"]}
        })
    }

    fn converted(name: &str) -> Value {
        json!({
            "apiVersion": "example.com/v2", "kind": "CronTab", "host": "a", "port": "1",
            "metadata": {"name": name, "uid": "7", "labels": {"c": "d"}, "annotations": {}, "finalizers": []}
        })
    }

    fn answered(review: &'static str, objects: &[Value], answer: &Value) -> Result<Vec<Value>, String> {
        hook(review).accept(Conversion { uid: "u", api_version: "example.com/v2", objects }, answer.clone())
    }

    fn answer(objects: &[Value]) -> Value {
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
            "response": {"uid": "u", "result": {"status": "Success"}, "convertedObjects": objects}
        })
    }

    #[test]
    fn where_it_is_and_what_it_is_asked() {
        let hook = hook("v1");
        assert_eq!((&hook.place, hook.port, hook.path.as_str()), (&Place::Host("::1".into()), 8443, "/convert"));
        let objects = [original("a")];
        let question =
            hook.question(Conversion { uid: "u", api_version: "example.com/v2", objects: &objects }).unwrap();
        assert_eq!(
            question,
            json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
                "request": {"uid": "u", "desiredAPIVersion": "example.com/v2", "objects": [original("a")]}
            })
        );
    }

    #[test]
    fn labels_and_annotations_are_the_webhooks_and_no_other_metadata() {
        let objects = [original("a"), original("b")];
        let found = answered("v1", &objects, &answer(&[converted("a"), converted("b")])).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((&found[1]["host"], found[1].get("hostPort")), (&json!("a"), None));
        let metadata = json!({
            "name": "b", "uid": "7", "labels": {"c": "d"}, "annotations": {}, "finalizers": ["f"]
        });
        assert_eq!(found[1]["metadata"], metadata);
    }

    #[test]
    fn answers_that_are_none() {
        let objects = [original("a")];
        let refused = |change: fn(&mut Value)| {
            let mut answer = answer(&[converted("a")]);
            change(&mut answer);
            answered("v1", &objects, &answer)
                .unwrap_err()
                .replace("conversion webhook for example.com/v1, Kind=CronTab ", "")
        };
        type Change = fn(&mut Value);
        for (change, expected) in [
            (
                (|answer| answer["apiVersion"] = "apiextensions.k8s.io/v1beta1".into()) as Change,
                "failed: converting (v1beta1.ConversionReview) to (v1.ConversionReview): unknown conversion",
            ),
            (
                |answer| *answer = json!({}),
                "failed: expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got /, Kind=",
            ),
            (|answer| answer["response"] = Value::Null, "failed: no response provided"),
            (|answer| answer["response"]["uid"] = "v".into(), "failed: expected response.uid=\"u\", got \"v\""),
            (|answer| answer["response"]["result"] = json!({"status": "Failure", "message": "no"}), "failed: no"),
            (
                |answer| answer["response"]["result"] = json!({"status": "Failure"}),
                "failed: response.result.status was 'Failure', not 'Success'",
            ),
            (|answer| answer["response"]["convertedObjects"] = json!([]), "returned 0 objects, expected 1"),
            (
                |answer| answer["response"]["convertedObjects"][0]["apiVersion"] = "example.com/v3".into(),
                "returned invalid object at index 0: invalid groupVersion (expected example.com/v2, received example.com/v3)",
            ),
            (
                |answer| answer["response"]["convertedObjects"][0]["kind"] = "Other".into(),
                "returned invalid object at index 0: invalid kind (expected CronTab, received Other)",
            ),
            (
                |answer| answer["response"]["convertedObjects"][0]["metadata"]["uid"] = "8".into(),
                "returned invalid object: must have the same UID: 7 != 8",
            ),
            (
                |answer| answer["response"]["convertedObjects"][0]["metadata"]["labels"] = json!([1]),
                "returned invalid metadata: invalid metadata.labels of type []interface {} in converted object",
            ),
            (
                |answer| answer["response"]["convertedObjects"][0]["metadata"]["labels"]["x"] = 1.into(),
                "returned invalid metadata: metadata.labels[x] must be a string, but is int64 in converted object",
            ),
        ] {
            assert_eq!(refused(change), expected);
        }
        let invalid =
            refused(|answer| answer["response"]["convertedObjects"][0]["metadata"]["labels"]["x"] = "-".into());
        assert!(invalid.starts_with("returned invalid metadata: metadata.labels: Invalid value: \"-\": "), "{invalid}");
        // The older review is not looked at as closely.
        let mut old = answer(&[converted("a")]);
        (old["apiVersion"], old["response"]["uid"]) = ("apiextensions.k8s.io/v1beta1".into(), "".into());
        assert!(answered("v1beta1", &objects, &old).is_ok());
    }
}
