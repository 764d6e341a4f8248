//! What stands for as long as the server serves: the system's namespaces, the Service `kubernetes` with its endpoints,
//! and by whom client certificates are signed.
//!
//! Invariant: whoever deletes one of these, or says that the server is elsewhere, sees it back at once. Otherwise they
//! are left as they are. Source: the controllers `kubernetesservice`, `systemnamespaces` and
//! `clusterauthenticationtrust` of `pkg/controlplane/controller`, which look every ten seconds or every minute.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::select_all;
use portolan_kinds::Status;
use portolan_store::{Expired, Key, Prefix, Watch};
use serde_json::json;

use super::{ensure, set};
use crate::object;
use crate::route::Sub;
use crate::server::Server;
use crate::services;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Who extends the API learns there whom to trust.
const TRUST: &str = "extension-apiserver-authentication";
const AUTHORITY: &str = "client-ca-file";
/// The pause before what could not be written is written again.
const PAUSE: Duration = Duration::from_secs(1);

/// What of it is different for each server.
pub(crate) struct Standing {
    pub(crate) advertise: Option<SocketAddr>,
    /// Who signs the certificates of clients, in PEM form.
    pub(crate) authority: String,
}

impl Standing {
    pub(super) async fn ensure(&self, server: &Server) -> Result<(), Status> {
        let key = |name| object::key(crate::known_kind("", "namespaces"), "", name);
        let is_going =
            |name| server.store.get(&key(name)).0.is_some_and(|old| object::is_deleting(&object::decode(&old.value)));
        for name in NAMESPACES {
            if is_going(name) {
                continue;
            }
            ensure(server, "", "namespaces", None, json!({"metadata": {"name": name}})).await?;
            // Pods need it, and may come before the controllers, who make it everywhere else.
            ensure(server, "", "serviceaccounts", Some(name), json!({"metadata": {"name": "default"}})).await?;
        }
        let labels = json!({"component": "apiserver", "provider": "kubernetes"});
        let first = server.services.cidrs().first().map(services::first_address);
        let port = self.advertise.map_or(6443, |address| address.port());
        ensure(
            server,
            "",
            "services",
            Some("default"),
            json!({
                "metadata": {"name": "kubernetes", "labels": labels},
                "spec": {
                    "clusterIP": first, "type": "ClusterIP",
                    "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]
                }
            }),
        )
        .await?;
        if let Some(advertise) = self.advertise.filter(|address| !address.ip().is_loopback()) {
            endpoints(server, advertise).await?;
        }
        self.trust(server).await
    }

    /// Whom somebody added is left there.
    async fn trust(&self, server: &Server) -> Result<(), Status> {
        let (namespace, authority) = (Some("kube-system"), &self.authority);
        let body = json!({"metadata": {"name": TRUST}, "data": {AUTHORITY: authority}});
        ensure(server, "", "configmaps", namespace, body).await?;
        set(server, ("", "configmaps", namespace, TRUST, Sub::None), |old| {
            let mut new = old.clone();
            let known = object::text(old, &format!("/data/{AUTHORITY}"));
            if !known.contains(authority.trim()) {
                object::member(&mut new, "data").insert(AUTHORITY.into(), format!("{known}{authority}").into());
            }
            new
        })
        .await
    }

    /// Brings back what goes, for as long as the server serves.
    pub(crate) async fn keep(&self, server: &Server) -> Infallible {
        loop {
            let mut watches = watches(server).unwrap_or_default();
            if let Err(error) = self.ensure(server).await {
                tracing::warn!(%error, "cannot write what every cluster has; trying again");
                watches.clear();
            }
            if watches.is_empty() {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            // Until something of it changed, or nobody can say.
            loop {
                let next = select_all(watches.iter_mut().map(|watch| Box::pin(watch.next())));
                match next.await.0 {
                    Ok(batch) if !batch.events.iter().any(|event| is_standing(&event.key)) => {}
                    _ => break,
                }
            }
        }
    }
}

fn watches(server: &Server) -> Result<Vec<Watch>, Expired> {
    let now = server.store.revision();
    let prefixes = [
        Prefix::resource("", "namespaces"),
        Prefix::namespace("", "services", "default"),
        Prefix::namespace("", "endpoints", "default"),
        Prefix::namespace("discovery.k8s.io", "endpointslices", "default"),
        Prefix::namespace("", "configmaps", "kube-system"),
    ];
    prefixes.into_iter().map(|prefix| server.store.watch(prefix, now)).collect()
}

fn is_standing(key: &Key) -> bool {
    NAMESPACES.contains(&key.name()) || matches!(key.name(), "kubernetes" | TRUST)
}

/// Where the API server is, for those within the cluster.
async fn endpoints(server: &Server, advertise: SocketAddr) -> Result<(), Status> {
    let (address, port) = (advertise.ip().to_string(), advertise.port());
    let family = if advertise.is_ipv4() { "IPv4" } else { "IPv6" };
    let slice = json!({
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family,
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}]
    });
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": address}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]
    });
    for (group, plural, body, fields) in [
        ("discovery.k8s.io", "endpointslices", slice, &["endpoints", "ports"][..]),
        ("", "endpoints", endpoints, &["subsets"][..]),
    ] {
        ensure(server, group, plural, Some("default"), body.clone()).await?;
        set(server, (group, plural, Some("default"), "kubernetes", Sub::None), |old| {
            let mut new = old.clone();
            for field in fields {
                new[*field] = body[*field].clone();
            }
            new
        })
        .await?;
    }
    Ok(())
}
