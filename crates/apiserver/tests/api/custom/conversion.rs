//! Definitions whose versions a webhook converts.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use portolan_apiserver::NodeDialer;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::DEFINITIONS;
use crate::harness::{Answer, Client, Cluster, pair};

const DEFINITION: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/backends.example.com";
const V1: &str = "/apis/example.com/v1/namespaces/default/backends";
const V2: &str = "/apis/example.com/v2/namespaces/default/backends";

/// What an answer is.
type Manner = fn(&Value) -> Option<Value>;

/// Converts between `hostPort` of v1, and `host` and `port` of v2, over TLS.
struct Hook {
    address: SocketAddr,
    authority: String,
    manner: Arc<Mutex<Manner>>,
    calls: Arc<AtomicUsize>,
}

fn converted(mut object: Value, version: &Value) -> Value {
    let map = object.as_object_mut().unwrap();
    if version == "example.com/v2" {
        let both = map.remove("hostPort").unwrap_or_default();
        let (host, port) = both.as_str().unwrap_or_default().split_once(':').unwrap_or_default();
        map.insert("host".into(), host.into());
        map.insert("port".into(), port.into());
    } else {
        let parts = ["host", "port"].map(|name| map.remove(name).unwrap_or_default());
        let parts = parts.map(|part| part.as_str().unwrap_or_default().to_owned());
        map.insert("hostPort".into(), parts.join(":").into());
    }
    map.insert("apiVersion".into(), version.clone());
    object
}

/// As it should be.
fn well(review: &Value) -> Option<Value> {
    let request = &review["request"];
    let objects: Vec<Value> = request["objects"].as_array().unwrap().clone();
    let version = &request["desiredAPIVersion"];
    let converted: Vec<Value> = objects.into_iter().map(|object| converted(object, version)).collect();
    Some(json!({
        "apiVersion": review["apiVersion"], "kind": review["kind"],
        "response": {"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": converted}
    }))
}

impl Hook {
    async fn start(names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(names).unwrap();
        // Its own authority, as `openssl req -x509` would make it.
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap();
        let chain = vec![certificate.der().clone()];
        let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hook = Self {
            address: listener.local_addr().unwrap(),
            authority: STANDARD.encode(certificate.pem()),
            manner: Arc::new(Mutex::new(well as Manner)),
            calls: Arc::default(),
        };
        let (manner, calls) = (hook.manner.clone(), hook.calls.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, manner, calls) = (acceptor.clone(), manner.clone(), calls.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answer = |request: Request<Incoming>| {
                        let (manner, calls) = (manner.clone(), calls.clone());
                        async move {
                            assert_eq!(request.uri(), "/convert?timeout=30s");
                            calls.fetch_add(1, Ordering::Relaxed);
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let manner = *manner.lock().unwrap();
                            match manner(&serde_json::from_slice(&body).unwrap()) {
                                Some(answer) => {
                                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(answer.to_string()))))
                                }
                                None => std::future::pending().await,
                            }
                        }
                    };
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service_fn(answer))
                        .await;
                });
            }
        });
        hook
    }

    fn answers(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    /// How often it was asked since this was asked last.
    fn calls(&self) -> usize {
        self.calls.swap(0, Ordering::Relaxed)
    }

    fn client(&self) -> Value {
        json!({"url": format!("https://{}/convert", self.address), "caBundle": self.authority})
    }
}

fn definition(client: Value) -> Value {
    let version = |name: &str, storage: bool, fields: &[&str]| {
        let mut properties = json!({});
        for field in fields {
            properties[field] = json!({"type": "string"});
        }
        let selectable: Vec<Value> = fields.iter().map(|field| json!({"jsonPath": format!(".{field}")})).collect();
        json!({
            "name": name, "served": true, "storage": storage, "selectableFields": selectable,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}},
            "additionalPrinterColumns": [{"name": fields[0], "type": "string", "jsonPath": format!(".{}", fields[0])}]
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "backends.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "backends", "kind": "Backend"},
            "versions": [version("v1", true, &["hostPort"]), version("v2", false, &["host", "port"])],
            "conversion": {"strategy": "Webhook", "webhook": {
                "clientConfig": client, "conversionReviewVersions": ["v1", "v1beta1"]}}
        }
    })
}

fn backend(name: &str, host_port: &str) -> Value {
    json!({
        "apiVersion": "example.com/v1", "kind": "Backend", "metadata": {"name": name}, "hostPort": host_port
    })
}

async fn served() -> (Hook, Cluster, Client) {
    let hook = Hook::start(&["127.0.0.1"]).await;
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.post(DEFINITIONS, &definition(hook.client())).await.ok();
    (hook, cluster, admin)
}

/// Version, host and port of an object of v2.
fn parts(object: &Value) -> [&str; 3] {
    ["apiVersion", "host", "port"].map(|field| object[field].as_str().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_read_and_written_as_any_version() {
    let (hook, _cluster, admin) = served().await;
    let mut watch = admin.watch(&format!("{V2}?watch=1")).await;
    admin.post(V1, &backend("a", "one:80")).await.ok();
    let a = format!("{V2}/a");
    let seen = admin.get(&a).await.ok();
    assert_eq!((parts(&seen), seen.get("hostPort")), (["example.com/v2", "one", "80"], None));
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], parts(&event["object"])), (&json!("ADDED"), ["example.com/v2", "one", "80"]));

    // As any other object: merged, replaced, applied, shown as a table, found by its fields.
    let merged = admin.merge(&a, &json!({"port": "81"})).await.ok();
    assert_eq!((parts(&merged), &merged["metadata"]["generation"]), (["example.com/v2", "one", "81"], &json!(2)));
    assert_eq!(admin.get(&format!("{V1}/a")).await.ok()["hostPort"], "one:81");
    let mut new = merged.clone();
    new["host"] = "two".into();
    let replaced = admin.put(&a, &new).await.ok();
    assert_ne!(replaced["metadata"]["resourceVersion"], merged["metadata"]["resourceVersion"]);
    assert_eq!(admin.put(&a, &new).await.code, 409, "it was seen before");
    assert_eq!(admin.put(&a, &replaced).await.ok(), replaced, "nothing changed");
    let dry = admin.merge(&format!("{a}?dryRun=All"), &json!({"host": "three"})).await.ok();
    assert_eq!(parts(&dry), ["example.com/v2", "three", "81"]);
    let mut made = backend("b", "");
    (made["apiVersion"], made["host"], made["port"]) = ("example.com/v2".into(), "four".into(), "82".into());
    made.as_object_mut().unwrap().remove("hostPort");
    assert_eq!(parts(&admin.post(V2, &made).await.ok()), ["example.com/v2", "four", "82"]);
    assert_eq!(admin.get(&format!("{V1}/b")).await.ok()["hostPort"], "four:82");
    let found = admin.get(&format!("{V2}?fieldSelector=host%3Dfour")).await.ok();
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
    let as_table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = admin.send(Method::GET, V2, &as_table, "").await.ok();
    let cells: Vec<&Value> = table["rows"].as_array().unwrap().iter().map(|row| &row["cells"][1]).collect();
    assert_eq!(cells, ["two", "four"]);
    let changes: [(&str, &str); 3] = [("MODIFIED", "81"), ("MODIFIED", "81"), ("ADDED", "82")];
    for (expected, port) in changes {
        let event = watch.next().await.unwrap();
        assert_eq!((event["type"].as_str(), event["object"]["port"].as_str()), (Some(expected), Some(port)));
    }
    admin.delete(&format!("{V1}/a")).await.ok();
    let gone = watch.next().await.unwrap();
    assert_eq!((&gone["type"], parts(&gone["object"])), (&json!("DELETED"), ["example.com/v2", "two", "81"]));

    // A whole list is one question, and none the second time, or in the version that it is stored as.
    for index in 0..20 {
        admin.post(V1, &backend(&format!("c{index}"), "x:1")).await.ok();
    }
    for _ in 0..20 {
        watch.next().await.unwrap();
    }
    hook.calls();
    let list = admin.get(V2).await.ok();
    assert_eq!(list["items"].as_array().unwrap().len(), 21);
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("BackendList"), &json!("example.com/v2")));
    assert!(list["items"].as_array().unwrap().iter().all(|item| item["apiVersion"] == "example.com/v2"), "{list}");
    admin.get(V1).await.ok();
    assert_eq!(hook.calls(), 0, "the watch had asked about all but one, and a list");
    admin.get(&format!("{V2}/c1")).await.ok();
    assert_eq!(hook.calls(), 1, "a get asks");
    let other_selector = admin.get(&format!("{V2}?labelSelector=a")).await.ok();
    assert_eq!((other_selector["items"].as_array().unwrap().len(), hook.calls()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_may_be_of_several_versions() {
    let (hook, cluster, admin) = served().await;
    admin.post(V1, &backend("a", "one:80")).await.ok();
    let mut switched = admin.get(DEFINITION).await.ok();
    for (index, storage) in [(0, false), (1, true)] {
        switched["spec"]["versions"][index]["storage"] = storage.into();
    }
    admin.put(DEFINITION, &switched).await.ok();
    admin.post(V1, &backend("b", "two:80")).await.ok();
    for (path, fields) in [(V1, ["hostPort"].as_slice()), (V2, &["host", "port"])] {
        let list = admin.get(path).await.ok();
        for item in list["items"].as_array().unwrap() {
            assert!(fields.iter().all(|field| item[field].is_string()), "{path}: {item}");
        }
    }
    // Writing what is there already moves it to the version that is stored now.
    let old = admin.get(&format!("{V2}/a")).await.ok();
    let moved = admin.put(&format!("{V2}/a"), &old).await.ok();
    assert_ne!(moved["metadata"]["resourceVersion"], old["metadata"]["resourceVersion"]);
    assert_eq!(admin.put(&format!("{V2}/a"), &moved).await.ok(), moved, "it is moved once");
    hook.calls();
    assert_eq!(parts(&admin.get(&format!("{V2}/a")).await.ok()), ["example.com/v2", "one", "80"]);
    assert_eq!(hook.calls(), 0);

    // Marked by who knows nothing of versions, and still the version that it was.
    admin.merge(&format!("{V1}/b"), &json!({"metadata": {"finalizers": ["example.com/f"]}})).await.ok();
    let marked = admin.delete(&format!("{V1}/b")).await.ok();
    assert_eq!((&marked["hostPort"], &marked["apiVersion"]), (&json!("two:80"), &json!("example.com/v1")));
    assert_eq!(parts(&admin.get(&format!("{V2}/b")).await.ok()), ["example.com/v2", "two", "80"]);

    let cluster = Cluster::start_in(cluster.stop().await, |_| {}).await;
    assert_eq!(cluster.admin().get(&format!("{V1}/a")).await.ok()["hostPort"], "one:80");
}

async fn apply(client: &Client, path: &str, manager: &str, config: &Value) -> Answer {
    let headers = [("content-type", "application/apply-patch+yaml")];
    client.send(Method::PATCH, &format!("{path}/a?fieldManager={manager}"), &headers, config.to_string()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_are_owned_as_each_version_has_them() {
    let (_hook, _cluster, admin) = served().await;
    let second = |host: &str| json!({"apiVersion": "example.com/v2", "kind": "Backend", "metadata": {"name": "a"}, "host": host, "port": "80"});
    apply(&admin, V1, "one", &backend("a", "x:80")).await.ok();
    // The same by other fields is no conflict, and another host is one with what holds both parts of it.
    apply(&admin, V2, "two", &second("x")).await.ok();
    assert_eq!(
        apply(&admin, V2, "two", &second("y")).await.failure(),
        (409, "Apply failed with 1 conflict: conflict with \"one\": .hostPort".to_owned())
    );
    let managers = |object: &Value| -> Vec<String> {
        let entries = object["metadata"]["managedFields"].as_array().unwrap().iter();
        entries.map(|entry| format!("{} {} {}", entry["manager"], entry["apiVersion"], entry["fieldsV1"])).collect()
    };
    let forced = apply(&admin, V2, "two&force=true", &second("y")).await.ok();
    assert_eq!(managers(&forced), [r#""two" "example.com/v2" {"f:host":{},"f:port":{}}"#]);
    assert_eq!(admin.get(&format!("{V1}/a")).await.ok()["hostPort"], "y:80");
    // Who writes one of them takes what it is in the other version, and leaves the rest.
    let written = admin.merge(&format!("{V1}/a?fieldManager=three"), &json!({"hostPort": "z:80"})).await.ok();
    assert_eq!(
        managers(&written),
        [r#""two" "example.com/v2" {"f:port":{}}"#, r#""three" "example.com/v1" {"f:hostPort":{}}"#]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_nonsense_is_told_of_and_nothing_is_written() {
    let (hook, _cluster, admin) = served().await;
    admin.post(V1, &backend("a", "one:80")).await.ok();
    let failed = "conversion webhook for example.com/v1, Kind=Backend";
    let refuses: Manner = |review| {
        let mut answer = well(review)?;
        answer["response"]["result"] = json!({"status": "Failure", "message": "not today"});
        Some(answer)
    };
    let renames: Manner = |review| {
        let mut answer = well(review)?;
        answer["response"]["convertedObjects"][0]["metadata"]["name"] = "z".into();
        Some(answer)
    };
    let labels: Manner = |review| {
        let mut answer = well(review)?;
        let metadata = &mut answer["response"]["convertedObjects"][0]["metadata"];
        (metadata["labels"], metadata["finalizers"]) = (json!({"by": "hook"}), json!(["example.com/f"]));
        Some(answer)
    };
    for (manner, expected) in [
        (refuses, format!("{failed} failed: not today")),
        (renames, format!("{failed} returned invalid object: must have the same name: a != z")),
    ] {
        hook.answers(manner);
        for path in [format!("{V2}/a"), V2.to_owned(), format!("{V2}?fieldSelector=host%3Done")] {
            assert_eq!(admin.get(&path).await.failure(), (500, expected.clone()), "{path}");
        }
        assert_eq!(admin.merge(&format!("{V2}/a"), &json!({"host": "x"})).await.failure(), (500, expected.clone()));
        let mut watch = admin.watch(&format!("{V2}?watch=1")).await;
        let event = watch.next().await.unwrap();
        assert_eq!((&event["type"], &event["object"]["message"]), (&json!("ERROR"), &json!(expected)));
        assert!(watch.next().await.is_none());
    }
    // On the way back, too: what cannot be shown to its writer is not written.
    let one_way: Manner = |review| {
        let mut answer = well(review)?;
        if review["request"]["desiredAPIVersion"] == "example.com/v2" {
            answer["response"]["convertedObjects"] = json!([]);
        }
        Some(answer)
    };
    hook.answers(one_way);
    let mut made = backend("b", "");
    made["apiVersion"] = "example.com/v2".into();
    let answer = admin.post(V2, &made).await.failure();
    assert_eq!(answer, (500, format!("{failed} returned 0 objects, expected 1")));
    assert_eq!(admin.get(&format!("{V1}/b")).await.code, 404);
    assert_eq!(admin.get(&format!("{V1}/a")).await.ok()["hostPort"], "one:80");

    // What a version has no field for is not kept.
    let adds: Manner = |review| {
        let mut answer = well(review)?;
        answer["response"]["convertedObjects"][0]["unknown"] = 1.into();
        Some(answer)
    };
    hook.answers(adds);
    assert_eq!(admin.get(&format!("{V2}/a")).await.ok().get("unknown"), None);

    hook.answers(labels);
    let seen = admin.get(&format!("{V2}/a")).await.ok();
    assert_eq!((&seen["metadata"]["labels"], seen["metadata"].get("finalizers")), (&json!({"by": "hook"}), None));
    assert_eq!(admin.get(&format!("{V2}?labelSelector=by%3Dhook")).await.ok()["items"].as_array().unwrap().len(), 1);

    // Somebody else's certificate, and nobody there.
    let stranger = Hook::start(&["127.0.0.1"]).await;
    let mut other = admin.get(DEFINITION).await.ok();
    other["spec"]["conversion"]["webhook"]["clientConfig"]["caBundle"] = stranger.authority.as_str().into();
    let mut other = admin.put(DEFINITION, &other).await.ok();
    let post = format!("{failed} failed: Post \"https://{}/convert?timeout=30s\": ", hook.address);
    let (code, why) = admin.get(&format!("{V2}/a")).await.failure();
    assert!(code == 500 && why.starts_with(&post), "{why}");
    other["spec"]["conversion"]["webhook"]["clientConfig"]["url"] = "https://127.0.0.1:1/convert".into();
    admin.put(DEFINITION, &other).await.ok();
    let (code, why) = admin.get(&format!("{V2}/a")).await.failure();
    assert!(code == 500 && why.ends_with("dial tcp 127.0.0.1:1: connect: connection refused"), "{why}");
    // What does not ask it goes on, and so does deletion.
    admin.delete(&format!("{V2}/a")).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_keeps_nobody_else_waiting() {
    let (hook, cluster, admin) = served().await;
    admin.post(V1, &backend("a", "one:80")).await.ok();
    hook.answers(|_| None);
    let waiting: Vec<_> = (0..200)
        .map(|index| {
            let admin = admin.clone();
            tokio::spawn(async move {
                let name = format!("b{index}");
                let mut made = backend(&name, "");
                made["apiVersion"] = "example.com/v2".into();
                match index % 2 {
                    0 => admin.post(V2, &made).await,
                    _ => admin.get(&format!("{V2}/a")).await,
                }
            })
        })
        .collect();
    while hook.calls.load(Ordering::Relaxed) < 16 {
        tokio::task::yield_now().await;
    }
    // Writes of everything else, and reads of this as it is stored.
    let map = crate::harness::config_map("x");
    admin.post(crate::harness::CONFIG_MAPS, &map).await.ok();
    assert_eq!(admin.get(V1).await.ok()["items"].as_array().unwrap().len(), 1);
    let mut watch = admin.watch(&format!("{}?watch=1", crate::harness::CONFIG_MAPS)).await;
    while watch.short().await != pair("ADDED", "x") {}
    hook.answers(well);
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    // Who is being asked and says nothing does not hold up the end.
    let mut hanging = admin.watch(&format!("{V2}?watch=1")).await;
    assert_eq!(hanging.short().await, pair("ADDED", "a"));
    drop((watch, hanging));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_found_by_its_endpoints() {
    let hook = Hook::start(&["convert.default.svc"]).await;
    let there = hook.address;
    let asked: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
    let seen = asked.clone();
    let dialer: NodeDialer = Arc::new(move |address| {
        seen.lock().unwrap().push(address);
        Box::pin(TcpStream::connect(there))
    });
    let cluster = Cluster::start_in(tempfile::tempdir().unwrap(), |config| config.node_dialer = Some(dialer)).await;
    let admin = cluster.admin();
    let client = json!({
        "service": {"namespace": "default", "name": "convert", "path": "/convert", "port": 9443},
        "caBundle": hook.authority
    });
    let made = admin.post(DEFINITIONS, &definition(client)).await.ok();
    assert_eq!(made["spec"]["conversion"]["webhook"]["clientConfig"]["service"]["port"], 9443);
    admin.post(V1, &backend("a", "one:80")).await.ok();
    let post = "conversion webhook for example.com/v1, Kind=Backend failed: Post \
                \"https://convert.default.svc:9443/convert?timeout=30s\": ";
    let failure = |why: &str| (500, format!("{post}{why}"));
    let one = format!("{V2}/a");
    assert_eq!(admin.get(&one).await.failure(), failure("service \"convert\" not found"));
    let services = "/api/v1/namespaces/default/services";
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "convert"},
        "spec": {"ports": [{"name": "https", "port": 9444, "targetPort": 9444}]}
    });
    admin.post(services, &service).await.ok();
    assert_eq!(admin.get(&one).await.failure(), failure("no service port 9443 found for service \"convert\""));
    admin
        .merge(&format!("{services}/convert"), &json!({"spec": {"ports": [{"name": "https", "port": 9443}]}}))
        .await
        .ok();
    assert_eq!(admin.get(&one).await.failure(), failure("no endpoints available for service \"convert\""));
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "convert"},
        "subsets": [{"addresses": [{"ip": "192.0.2.7"}], "ports": [{"name": "https", "port": 8443}]}]
    });
    admin.post("/api/v1/namespaces/default/endpoints", &endpoints).await.ok();
    assert_eq!(parts(&admin.get(&one).await.ok()), ["example.com/v2", "one", "80"]);
    assert_eq!(*asked.lock().unwrap(), ["192.0.2.7:8443".parse().unwrap()]);
    let nowhere = json!({"spec": {"conversion": {"webhook": {"clientConfig": {"service": {"namespace": "a/b"}}}}}});
    admin.merge(&format!("{DEFINITIONS}/backends.example.com"), &nowhere).await.ok();
    assert!(admin.get(&one).await.failure().1.ends_with("service \"convert\" not found"));
}
