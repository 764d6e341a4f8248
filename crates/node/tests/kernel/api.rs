//! A Kubernetes API in memory: what an agent needs of one, and nothing else.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

type Answer = UnsyncBoxBody<Bytes, Infallible>;
/// `pods`, `shop`, `web`; the namespace is empty for Nodes.
type Key = (String, String, String);

/// What somebody does to the object of a name just before it is next patched.
type Rival = (String, fn(&mut Value));

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Key, Value>,
    /// Revision, collection, event.
    history: Vec<(u64, String, Value)>,
    rivals: Vec<Rival>,
}

#[derive(Clone)]
pub(crate) struct Api {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

impl Api {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), changed: watch::Sender::new(0) }
    }

    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    fn state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut state);
        let revision = state.revision;
        drop(state);
        self.changed.send_if_modified(|known| std::mem::replace(known, revision) != revision);
        result
    }

    pub(crate) fn put(&self, plural: &str, object: Value) {
        self.state(|state| state.put(plural, object));
    }

    pub(crate) fn remove(&self, plural: &str, namespace: &str, name: &str) {
        self.state(|state| state.remove(&(plural.into(), namespace.into(), name.into())));
    }

    pub(crate) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state(|state| state.objects.get(&(plural.into(), namespace.into(), name.into())).cloned())
    }

    /// Changes an object that is there.
    pub(crate) fn edit(&self, plural: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.get(plural, namespace, name).unwrap();
        change(&mut object);
        self.put(plural, object);
    }

    /// Has somebody else change an object just before the agent's next patch of it.
    pub(crate) fn rival(&self, name: &str, change: fn(&mut Value)) {
        self.state(|state| state.rivals.push((name.to_owned(), change)));
    }

    pub(crate) fn pod(&self, name: &str) -> Value {
        self.get("pods", "shop", name).unwrap_or_default()
    }

    /// All Events of a pod, as `reason: message`.
    pub(crate) fn events(&self, pod: &str) -> Vec<String> {
        self.state(|state| {
            let all = state
                .objects
                .iter()
                .filter(|((plural, ..), event)| plural == "events" && event["involvedObject"]["name"] == pod);
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            all.map(|(_, event)| format!("{}: {}", text(&event["reason"]), text(&event["message"]))).collect()
        })
    }

    /// Waits until `check` is true of the API.
    pub(crate) async fn until(&self, what: &str, check: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !check(self) {
                changed.borrow_and_update();
                if check(self) {
                    return;
                }
                changed.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(Duration::from_secs(30), wait).await.is_err() {
            let pods = self.state(|state| {
                let pods = state.objects.iter().filter(|((plural, ..), _)| plural == "pods" || plural == "events");
                pods.map(|(key, object)| format!("{key:?}: {} {}", object["status"], object["message"]))
                    .collect::<Vec<_>>()
            });
            panic!("waited in vain until {what}\n{}", pods.join("\n"));
        }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        let path = if path[0] == "api" { &path[2..] } else { &path[3..] };
        let (namespace, rest) = match path {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let plural = rest[0];
        let name = rest.get(1).copied();
        let query = parts.uri.query().unwrap_or_default();
        let key = |name: &str| (plural.to_owned(), namespace.to_owned(), name.to_owned());
        match (&parts.method, name) {
            (&Method::GET, None) if query.contains("watch=true") => self.watch(plural, query),
            (&Method::GET, None) => self.state(|state| {
                let found = state
                    .objects
                    .iter()
                    .filter(|((p, ns, _), _)| p == plural && (namespace.is_empty() || ns == namespace));
                let items: Vec<&Value> = found.map(|(_, object)| object).collect();
                reply(
                    200,
                    &json!({"kind": "List", "apiVersion": "v1", "items": items,
                    "metadata": {"resourceVersion": state.revision.to_string()}}),
                )
            }),
            (&Method::GET, Some(name)) => self.state(|state| found(state.objects.get(&key(name)))),
            (&Method::POST, _) => self.state(|state| {
                let mut object = body;
                object["metadata"]["namespace"] = json!(namespace);
                let name = object["metadata"]["name"].as_str().unwrap().to_owned();
                if state.objects.contains_key(&key(&name)) {
                    return failure(409, "AlreadyExists");
                }
                state.put(plural, object);
                found(state.objects.get(&key(&name)))
            }),
            (&Method::PATCH, Some(name)) => self.state(|state| {
                let Some(mut object) = state.objects.get(&key(name)).cloned() else { return failure(404, "NotFound") };
                if let Some((_, rival)) =
                    state.rivals.iter().position(|(of, _)| of == name).map(|at| state.rivals.remove(at))
                {
                    rival(&mut object);
                    state.put(plural, object);
                    object = state.objects[&key(name)].clone();
                }
                let stale = |field: &str| {
                    !body["metadata"][field].is_null() && body["metadata"][field] != object["metadata"][field]
                };
                if stale("uid") || stale("resourceVersion") {
                    return failure(409, "Conflict");
                }
                merge(&mut object, &body);
                if state.objects[&key(name)] != object {
                    state.put(plural, object);
                }
                found(state.objects.get(&key(name)))
            }),
            (&Method::DELETE, Some(name)) => self.state(|state| match state.objects.get(&key(name)) {
                Some(object) if body["preconditions"]["uid"] != object["metadata"]["uid"] => failure(409, "Conflict"),
                Some(_) => {
                    state.remove(&key(name));
                    reply(200, &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
                }
                None => failure(404, "NotFound"),
            }),
            other => panic!("no agent asks this: {other:?} {}", parts.uri),
        }
    }

    fn watch(&self, plural: &str, query: &str) -> Response<Answer> {
        let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        let from: u64 = from.unwrap_or("0").parse().unwrap();
        let (api, plural) = (self.clone(), plural.to_owned());
        let changed = self.changed.subscribe();
        let events = futures::stream::unfold((from, changed), move |(mut from, mut changed)| {
            let (api, plural) = (api.clone(), plural.clone());
            async move {
                loop {
                    changed.borrow_and_update();
                    let lines = api.state(|state| {
                        let new = state.history.iter().filter(|(revision, p, _)| *revision > from && *p == plural);
                        new.map(|(_, _, event)| format!("{event}\n")).collect::<String>()
                    });
                    from = api.state(|state| state.revision);
                    if !lines.is_empty() {
                        return Some((Ok::<_, Infallible>(Frame::data(Bytes::from(lines))), (from, changed)));
                    }
                    changed.changed().await.ok()?;
                }
            }
        });
        Response::new(StreamBody::new(events.boxed()).boxed_unsync())
    }
}

impl State {
    fn put(&mut self, plural: &str, mut object: Value) {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        let key = (plural.to_owned(), text("namespace"), text("name"));
        let kind = if self.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        self.history.push((self.revision, plural.to_owned(), json!({"type": kind, "object": object})));
        self.objects.insert(key, object);
    }

    fn remove(&mut self, key: &Key) {
        if let Some(mut object) = self.objects.remove(key) {
            self.revision += 1;
            object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
            self.history.push((self.revision, key.0.clone(), json!({"type": "DELETED", "object": object})));
        }
    }
}

fn merge(target: &mut Value, patch: &Value) {
    match patch {
        Value::Object(fields) => {
            if !target.is_object() {
                *target = json!({});
            }
            for (key, value) in fields {
                if value.is_null() {
                    target.as_object_mut().unwrap().remove(key);
                } else {
                    merge(&mut target[key], value);
                }
            }
        }
        other => *target = other.clone(),
    }
}

fn reply(status: u16, body: &Value) -> Response<Answer> {
    Response::builder().status(status).body(Full::from(serde_json::to_vec(body).unwrap()).boxed_unsync()).unwrap()
}

fn failure(code: u16, reason: &str) -> Response<Answer> {
    reply(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "reason": reason, "message": reason}),
    )
}

fn found(object: Option<&Value>) -> Response<Answer> {
    object.map_or_else(|| failure(404, "NotFound"), |object| reply(200, object))
}
