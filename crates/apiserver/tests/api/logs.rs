//! Logs by way of the pod's node.

use std::net::SocketAddr;
use std::sync::Arc;

use portolan_apiserver::User;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::harness::Cluster;

/// A node's endpoint that says what it was asked, and who by.
async fn endpoint(cluster: &Cluster, certificate_of: &str) -> SocketAddr {
    let own = cluster.api.certificate(&User::node(certificate_of)).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(cluster.api.ca().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(own.certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = vec![0; 2048];
            let read = stream.read(&mut request).await.unwrap();
            let line = String::from_utf8_lossy(&request[..read]).lines().next().unwrap_or_default().to_owned();
            let code = if line.contains("previous=true") { "400 Bad Request" } else { "200 OK" };
            let answer =
                format!("HTTP/1.1 {code}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{line}", line.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    address
}

async fn pod_on(cluster: &Cluster, node: &str, address: SocketAddr) {
    let client = cluster.admin();
    client.post("/api/v1/nodes", &json!({"metadata": {"name": node}})).await.ok();
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": address.ip().to_string()}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}}
    }});
    client.merge(&format!("/api/v1/nodes/{node}/status"), &status).await.ok();
    let body =
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}});
    client.post("/api/v1/namespaces/default/pods", &body).await.ok();
}

const LOG: &str = "/api/v1/namespaces/default/pods/p/log";

#[tokio::test]
async fn the_node_is_asked() {
    let cluster = Cluster::start().await;
    let address = endpoint(&cluster, "n1").await;
    pod_on(&cluster, "n1", address).await;
    let answer = cluster.admin().get(&format!("{LOG}?tailLines=5&follow=true&pretty=true")).await;
    assert_eq!(answer.code, 200);
    assert_eq!(answer.headers["content-type"], "text/plain");
    let line = String::from_utf8(answer.bytes.to_vec()).unwrap();
    assert_eq!(line, "GET /containerLogs/default/p/c?tailLines=5&follow=true HTTP/1.1");
    assert_eq!(cluster.admin().get(&format!("{LOG}?container=x")).await.code, 400);
    assert_eq!(cluster.admin().get("/api/v1/namespaces/default/pods/absent/log").await.code, 404);
}

#[tokio::test]
async fn a_refusal_is_in_a_form_that_clients_understand() {
    let cluster = Cluster::start().await;
    let address = endpoint(&cluster, "n1").await;
    pod_on(&cluster, "n1", address).await;
    let answer = cluster.admin().get(&format!("{LOG}?previous=true")).await;
    assert_eq!(answer.json()["kind"], "Status");
    assert_eq!(answer.failure(), (400, "GET /containerLogs/default/p/c?previous=true HTTP/1.1".to_owned()));
}

#[tokio::test]
async fn a_machine_that_is_not_the_node_is_not_believed() {
    let cluster = Cluster::start().await;
    let address = endpoint(&cluster, "another").await;
    pod_on(&cluster, "n1", address).await;
    assert_eq!(cluster.admin().get(LOG).await.code, 500);
}

#[tokio::test]
async fn a_node_that_is_down_is_told() {
    let cluster = Cluster::start().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    pod_on(&cluster, "n1", closed).await;
    let failure = cluster.admin().get(LOG).await.failure();
    assert!(failure.0 == 500 && failure.1.contains("Connection refused"), "{failure:?}");
}
