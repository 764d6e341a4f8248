//! What a cluster has from its first moment: namespaces, roles, and the Service by which it is reached from within.
//!
//! Everything goes through the ordinary write path; what exists already is left alone, except where the server itself
//! can be reached, which may differ from the last start.

mod policy;
mod standing;

use portolan_kinds::Status;
use portolan_store::{Page, Prefix};
use serde_json::{Value, json};

use crate::object;
use crate::options::Options;
use crate::ranges;
use crate::route::{Sub, Target};
use crate::server::Server;
use crate::services;
use crate::user::User;
use crate::warnings::Warnings;
use crate::write::{self, Asked, Unwritten};

pub(crate) use standing::Standing;

/// Takes what the stored Services hold, before anything can be given out.
pub(crate) fn restore_allocations(server: &Server) -> Result<(), Status> {
    for service in stored_services(server)? {
        server.services.restore(services::holdings(&service));
    }
    Ok(())
}

/// One after the other: what is decoded takes many times the room of what is stored.
fn stored_services(server: &Server) -> Result<impl Iterator<Item = Value>, Status> {
    let all = server.store.list(&Prefix::resource("", "services"), &Page::default());
    let all = all.map_err(|expired| Status::internal(expired.to_string()))?;
    Ok(all.entries.into_iter().map(|(_, entry)| object::decode(&entry.value)))
}

pub(crate) async fn run(server: &Server, standing: &Standing) -> Result<(), Status> {
    service_range(server).await?;
    standing.ensure(server).await?;
    policy::run(server).await?;
    repair_addresses(server).await
}

async fn service_range(server: &Server) -> Result<(), Status> {
    let cidrs: Vec<_> = server.services.cidrs().iter().map(ToString::to_string).collect();
    let body = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}});
    ensure(server, "networking.k8s.io", "servicecidrs", None, body).await?;
    ranges::settle(server).await;
    Ok(())
}

/// Every ClusterIP is visible as an object, even if somebody removed it.
async fn repair_addresses(server: &Server) -> Result<(), Status> {
    let kind = services::address_kind();
    let now = object::time(jiff::Timestamp::now());
    for service in stored_services(server)? {
        for address in services::addresses(&service) {
            if server.store.get(&object::key(kind, "", &address.to_string())).0.is_some() {
                continue;
            }
            let op = services::address_object(address, &service, &now);
            if let Err(Unwritten::Failed(status)) = write::commit(&server.store, vec![op]).await {
                return Err(status);
            }
        }
    }
    Ok(())
}

fn target(group: &str, plural: &str, namespace: Option<&str>, name: Option<&str>, sub: Sub) -> Target {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    Target { kind: crate::known_kind(group, plural).into(), namespace: owned(namespace), name: owned(name), sub }
}

/// What the server itself writes is its own.
fn options() -> Options {
    Options { manager: "kube-apiserver".to_owned(), ..Options::default() }
}

async fn ensure(
    server: &Server,
    group: &str,
    plural: &str,
    namespace: Option<&str>,
    body: Value,
) -> Result<(), Status> {
    let target = target(group, plural, namespace, None, Sub::None);
    let asked = Asked { user: &User::admin(), target: &target, options: &options(), warnings: &Warnings::default() };
    match write::create(server, asked, body).await {
        Err(status) if status.code() != 409 => Err(status),
        _ => Ok(()),
    }
}

async fn set(
    server: &Server,
    (group, plural, namespace, name, sub): (&str, &str, Option<&str>, &str, Sub),
    change: impl Fn(&Value) -> Value,
) -> Result<(), Status> {
    let target = target(group, plural, namespace, Some(name), sub);
    let asked = Asked { user: &User::admin(), target: &target, options: &options(), warnings: &Warnings::default() };
    write::change(server, asked, false, |live| Ok(change(live.object).into())).await?;
    Ok(())
}
