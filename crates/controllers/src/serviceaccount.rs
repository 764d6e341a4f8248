//! Namespaces -> each its `default` ServiceAccount and its `kube-root-ca.crt` ConfigMap.
//!
//! Invariant: the ConfigMap is there before the account, so a pod, which needs the account to be made, finds both.
//! Deliberately not here: tokens, which the API server gives out.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Client, ResourceExt};
use portolan_client::{Cache, Change, Key};

use crate::drive::{Controller, Effects, drive, inputs};
use crate::queue::Queue;
use crate::{Shared, meta, refusal};

pub(crate) const ACCOUNT: &str = "default";
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints \
                           such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
                           distributions of Kubernetes clusters.";

pub(crate) enum Input {
    Namespace(Change<Namespace>),
    Account(Change<PartialObjectMeta<ServiceAccount>>),
    RootCa(Change<ConfigMap>),
}

pub(crate) async fn run(shared: Arc<Shared>) {
    let caches = &shared.caches;
    let inputs = vec![
        inputs(&caches.namespaces, Input::Namespace),
        inputs(&caches.service_accounts, Input::Account),
        inputs(&caches.root_cas, Input::RootCa),
    ];
    let controller = Furnishings {
        client: shared.client.clone(),
        root_ca: shared.config.root_ca_pem.clone(),
        namespaces: caches.namespaces.clone(),
        accounts: caches.service_accounts.clone(),
        root_cas: caches.root_cas.clone(),
    };
    drive(controller, inputs, 4).await;
}

struct Furnishings {
    client: Client,
    root_ca: String,
    namespaces: Cache<Namespace>,
    accounts: Cache<PartialObjectMeta<ServiceAccount>>,
    root_cas: Cache<ConfigMap>,
}

impl Controller for Furnishings {
    const NAME: &'static str = "serviceaccount";
    type Input = Input;
    /// The namespace's name.
    type Key = String;

    fn observe(&mut self, input: Input, queue: &mut Queue<String>) {
        match input {
            Input::Namespace(Change::Applied { new, .. }) => queue.add(new.name_any()),
            Input::Account(Change::Deleted(old)) if old.name_any() == ACCOUNT => {
                queue.add(old.namespace().unwrap_or_default());
            }
            Input::RootCa(Change::Applied { new, .. } | Change::Deleted(new)) => {
                queue.add(new.namespace().unwrap_or_default());
            }
            Input::Namespace(_) | Input::Account(_) | Input::RootCa(_) => {}
        }
    }

    fn reconcile(&mut self, name: &String, _queue: &mut Queue<String>) -> Option<Effects> {
        self.namespaces.get(&Key::new("", name)).filter(|namespace| !meta::is_terminating(&**namespace))?;
        let lacks_account = self.accounts.get(&Key::new(name, ACCOUNT)).is_none();
        let present = self.root_cas.get(&Key::new(name, ROOT_CA));
        let root_ca = root_ca(name, &self.root_ca);
        let lacks_ca = present.as_ref().is_none_or(|present| present.data != root_ca.data);
        if !lacks_account && !lacks_ca {
            return None;
        }
        let (client, name) = (self.client.clone(), name.clone());
        Some(Box::pin(async move {
            let ca = if lacks_ca { write_ca(client.clone(), present, root_ca).await } else { Ok(()) };
            let account = if lacks_account { create_account(client.clone(), &name).await } else { Ok(()) };
            ca.and(account).into()
        }))
    }
}

/// Somebody else having been quicker is as good; a namespace that is going needs nothing.
fn settled<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error)
            if !(refusal::is_already_exists(&error)
                || refusal::is_not_found(&error)
                || refusal::is_namespace_terminating(&error)) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

async fn create_account(client: Client, namespace: &str) -> Result<(), kube::Error> {
    let metadata =
        ObjectMeta { name: Some(ACCOUNT.into()), namespace: Some(namespace.into()), ..ObjectMeta::default() };
    let account = ServiceAccount { metadata, ..ServiceAccount::default() };
    settled(Api::<ServiceAccount>::namespaced(client, namespace).create(&PostParams::default(), &account).await)
}

fn root_ca(namespace: &str, pem: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(ROOT_CA.into()),
            namespace: Some(namespace.into()),
            annotations: Some([("kubernetes.io/description".to_owned(), DESCRIPTION.to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: Some([("ca.crt".to_owned(), pem.to_owned())].into()),
        ..ConfigMap::default()
    }
}

async fn write_ca(client: Client, present: Option<Arc<ConfigMap>>, root_ca: ConfigMap) -> Result<(), kube::Error> {
    let api: Api<ConfigMap> = Api::namespaced(client, &root_ca.namespace().unwrap_or_default());
    if let Some(present) = present {
        // Whatever else somebody put there goes.
        let repaired = ConfigMap { data: root_ca.data, ..(*present).clone() };
        return settled(api.replace(&present.name_any(), &PostParams::default(), &repaired).await);
    }
    settled(api.create(&PostParams::default(), &root_ca).await)
}
