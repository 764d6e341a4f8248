//! The ServiceAccount tokens that a pod's volumes are to hold: asked for when a volume is filled, and again long before
//! they end.
//!
//! Invariants: a token is bound to the pod, so it is of no use to anybody once the pod is gone; it is for those alone
//! whom the kubelet would give it to. Source: `pkg/kubelet/token`, `pkg/volume/projected`.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection, Volume};
use kube::api::PostParams;
use kube::{Api, Client};

/// Seconds that a token is asked for when the volume does not say.
const DEFAULT_SECONDS: i64 = 3600;
/// A token is renewed after this part of its life …
const RENEW_AFTER_PERCENT: i64 = 80;
/// … or this long, whichever is sooner.
const OLDEST: SignedDuration = SignedDuration::from_hours(24);

/// Where a token belongs: the volume, and the path in it.
type Place = (String, String);

#[derive(Debug, Default)]
pub(super) struct Tokens {
    tokens: BTreeMap<Place, String>,
    /// When the first of them is to be renewed.
    pub(super) renew_at: Option<Timestamp>,
}

fn wanted(pod: &Pod) -> impl Iterator<Item = (&Volume, &ServiceAccountTokenProjection)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.flat_map(|volume| {
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        sources.filter_map(move |source| Some((volume, source.service_account_token.as_ref()?)))
    })
}

/// Whether the pod has tokens at all.
pub(super) fn has(pod: &Pod) -> bool {
    wanted(pod).next().is_some()
}

impl Tokens {
    /// New ones for all of the pod's volumes.
    pub(super) async fn fetch(client: &Client, pod: &Pod, now: Timestamp) -> Result<Self, kube::Error> {
        let mut all = Self::default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
        let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        for (volume, source) in wanted(pod) {
            let spec = TokenRequestSpec {
                audiences: source.audience.iter().filter(|audience| !audience.is_empty()).cloned().collect(),
                expiration_seconds: Some(source.expiration_seconds.unwrap_or(DEFAULT_SECONDS)),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
            };
            let asked = TokenRequest { spec, ..TokenRequest::default() };
            let answer = api.create_token_request(account, &PostParams::default(), &asked).await?;
            let Some(status) = answer.status else { continue };
            let renew_at = renew_at(now, status.expiration_timestamp.0);
            all.renew_at = Some(all.renew_at.map_or(renew_at, |at| at.min(renew_at)));
            all.tokens.insert((volume.name.clone(), source.path.clone()), status.token);
        }
        Ok(all)
    }

    pub(super) fn get(&self, volume: &str, path: &str) -> Option<&str> {
        self.tokens.get(&(volume.to_owned(), path.to_owned())).map(String::as_str)
    }
}

fn renew_at(now: Timestamp, ends: Timestamp) -> Timestamp {
    let life = ends.duration_since(now);
    let part = SignedDuration::from_secs(life.as_secs() * RENEW_AFTER_PERCENT / 100);
    now.checked_add(part.min(OLDEST)).unwrap_or(now)
}

/// Mode and owner of a token's file. Without a mode, it is what the volume says.
pub(super) fn access(pod: &Pod) -> (Option<i32>, Option<u32>) {
    let Some(spec) = &pod.spec else { return (None, None) };
    let id = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok());
    let of_pod = spec.security_context.as_ref();
    let group = id(of_pod.and_then(|security| security.fs_group));
    let mut users = spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|container| {
        let own = container.security_context.as_ref().and_then(|security| security.run_as_user);
        id(own.or(of_pod.and_then(|security| security.run_as_user)))
    });
    // Only if all containers run as the same.
    let owner = users.next().flatten().filter(|first| users.all(|user| user == Some(*first)));
    let mode = match (owner, group) {
        (_, Some(_)) => Some(0o640),
        (Some(_), None) => Some(0o600),
        (None, None) => None,
    };
    (mode, owner)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn renewed_long_before_the_end() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (seconds, expected) in
            [(3600, "2026-01-01T00:48:00Z"), (600, "2026-01-01T00:08:00Z"), (864_000, "2026-01-02T00:00:00Z")]
        {
            let ends = now + SignedDuration::from_secs(seconds);
            assert_eq!(renew_at(now, ends).to_string(), expected);
        }
    }

    #[test]
    fn who_may_read_a_token() {
        let access = |spec: Value| access(&serde_json::from_value(json!({"spec": spec})).unwrap());
        let containers = |users: [Value; 2]| -> Value {
            users.into_iter().map(|user| json!({"name": "c", "securityContext": {"runAsUser": user}})).collect()
        };
        let none = || json!(null);
        for (spec, expected) in [
            (json!({"containers": [{"name": "c"}]}), (None, None)),
            (json!({"containers": containers([json!(7), json!(7)])}), (Some(0o600), Some(7))),
            (json!({"containers": containers([json!(7), json!(8)])}), (None, None)),
            (json!({"containers": containers([json!(7), none()])}), (None, None)),
            (
                json!({"securityContext": {"runAsUser": 7}, "containers": containers([json!(7), none()])}),
                (Some(0o600), Some(7)),
            ),
            (json!({"securityContext": {"fsGroup": 9}, "containers": [{"name": "c"}]}), (Some(0o640), None)),
        ] {
            assert_eq!(access(spec.clone()), expected, "{spec}");
        }
    }
}
