//! The ConfigMaps, Secrets and Services that a pod names, fetched when something is made from them.
//!
//! A node holds nothing of them in memory; [`Follow`](super::follow::Follow) says when to fetch one again.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};
use kube::api::ListParams;
use kube::{Api, Client};

use crate::pod::Lookup;

type Data = BTreeMap<String, Vec<u8>>;

#[derive(Debug, Default)]
pub(super) struct Objects(BTreeMap<(&'static str, String), Data>);

impl Lookup for Objects {
    fn data(&self, kind: &'static str, name: &str) -> Option<&Data> {
        self.0.get(&(kind, name.to_owned()))
    }
}

pub(super) const CONFIG_MAP: &str = "configmap";
pub(super) const SECRET: &str = "secret";

impl Objects {
    async fn fetch(client: &Client, pod: &Pod, names: BTreeSet<(&'static str, String)>) -> Result<Self, kube::Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut objects = Self::default();
        for (kind, name) in names {
            let data = if kind == CONFIG_MAP {
                let map = Api::<ConfigMap>::namespaced(client.clone(), namespace).get_opt(&name).await?;
                map.map(|map| {
                    let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
                    text.chain(map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0))).collect()
                })
            } else {
                let secret = Api::<Secret>::namespaced(client.clone(), namespace).get_opt(&name).await?;
                secret.map(|secret| secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect())
            };
            if let Some(data) = data {
                objects.0.insert((kind, name), data);
            }
        }
        Ok(objects)
    }

    /// What a container's environment refers to.
    pub(super) async fn of_container(client: &Client, pod: &Pod, container: &Container) -> Result<Self, kube::Error> {
        let mut names = BTreeSet::new();
        for source in container.env_from.iter().flatten() {
            names.extend(source.config_map_ref.iter().map(|map| (CONFIG_MAP, map.name.clone())));
            names.extend(source.secret_ref.iter().map(|secret| (SECRET, secret.name.clone())));
        }
        for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            names.extend(source.config_map_key_ref.iter().map(|map| (CONFIG_MAP, map.name.clone())));
            names.extend(source.secret_key_ref.iter().map(|secret| (SECRET, secret.name.clone())));
        }
        Self::fetch(client, pod, names).await
    }

    /// What volumes are filled from.
    pub(super) async fn of_volumes(client: &Client, pod: &Pod) -> Result<Self, kube::Error> {
        Self::fetch(client, pod, in_volumes(pod)).await
    }
}

/// Kind and name of what the pod's volumes are filled from.
pub(super) fn in_volumes(pod: &Pod) -> BTreeSet<(&'static str, String)> {
    let mut names = BTreeSet::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        names.extend(volume.config_map.iter().map(|map| (CONFIG_MAP, map.name.clone())));
        names.extend(volume.secret.iter().filter_map(|secret| Some((SECRET, secret.secret_name.clone()?))));
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            names.extend(source.config_map.iter().map(|map| (CONFIG_MAP, map.name.clone())));
            names.extend(source.secret.iter().map(|secret| (SECRET, secret.name.clone())));
        }
    }
    names
}

/// The Services that a pod's environment names: those of its namespace, unless it asks for none, and the API.
pub(super) async fn services(client: &Client, pod: &Pod) -> Result<Vec<Service>, kube::Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links) != Some(false);
    let mut services = Vec::new();
    if links {
        services = Api::namespaced(client.clone(), namespace).list(&ListParams::default()).await?.items;
    }
    if !links || namespace != "default" {
        services.extend(Api::<Service>::namespaced(client.clone(), "default").get_opt("kubernetes").await?);
    }
    Ok(services)
}

#[cfg(test)]
impl Objects {
    pub(super) fn of(kind: &'static str, name: &str, data: &[(&str, &str)]) -> Self {
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
        Self(BTreeMap::from([((kind, name.to_owned()), data)]))
    }
}
