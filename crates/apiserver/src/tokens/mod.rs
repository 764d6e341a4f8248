//! Tokens of ServiceAccounts: given out, and believed as long as the account and what they are bound to exist.
//!
//! Invariants: a token is nowhere stored; it ends when it says, and no later than the object with the uid that it
//! names. Deliberately not here: tokens that never end, in Secrets; tokens of other issuers; the year by which upstream
//! silently prolongs those of pods. Source: `pkg/serviceaccount/claims.go`, RFC 7519.

mod key;
mod request;

use portolan_store::Store;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::object;
use crate::user::{User, account_name};

pub(crate) use key::Key;
pub(crate) use request::request;

/// Clocks of different machines may differ by this many seconds.
const LEEWAY: i64 = 60;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    nbf: i64,
    iss: String,
    jti: String,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Object,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Object>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<Object>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Object>,
}

/// An object that has to be the same for the token to be good.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Object {
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    uid: String,
}

impl Object {
    fn of(object: &Value) -> Self {
        Self { name: object::name(object).to_owned(), uid: object::text(object, "/metadata/uid").to_owned() }
    }
}

/// Somebody whom a token names, and those of the audiences asked for that the token is meant for.
pub(crate) struct Authenticated {
    pub(crate) user: User,
    pub(crate) audiences: Vec<String>,
}

pub(crate) struct Tokens {
    key: Key,
    /// Also the audience that the API server is.
    issuer: String,
}

/// What a token may be bound to, beside the account.
enum Bound {
    Pod { pod: Value, node: Option<Object> },
    Secret(Value),
    Node(Value),
}

impl Tokens {
    pub(crate) fn new(key: Key, cluster_domain: &str) -> Self {
        Self { key, issuer: format!("https://kubernetes.default.svc.{cluster_domain}") }
    }

    pub(crate) fn audiences(&self) -> Vec<String> {
        vec![self.issuer.clone()]
    }

    fn issue(
        &self,
        account: &Value,
        bound: Option<&Bound>,
        audiences: Vec<String>,
        (now, seconds): (i64, i64),
    ) -> Result<String, &'static str> {
        let namespace = object::namespace(account).to_owned();
        let (pod, secret, node) = match bound {
            None => (None, None, None),
            Some(Bound::Pod { pod, node }) => (Some(Object::of(pod)), None, node.clone()),
            Some(Bound::Secret(secret)) => (None, Some(Object::of(secret)), None),
            Some(Bound::Node(node)) => (None, None, Some(Object::of(node))),
        };
        self.key.sign(&Claims {
            aud: audiences,
            exp: now.saturating_add(seconds),
            iat: now,
            nbf: now,
            iss: self.issuer.clone(),
            jti: object::new_uid(),
            sub: account_name(&namespace, object::name(account)),
            kubernetes: Kubernetes { namespace, serviceaccount: Object::of(account), pod, secret, node },
        })
    }

    /// Whom the token names.
    ///
    /// # Errors
    /// With the reason, for those who may ask about others' tokens; its bearer learns only that it is no good.
    pub(crate) fn authenticate(
        &self,
        store: &Store,
        token: &str,
        audiences: &[String],
        now: i64,
    ) -> Result<Authenticated, String> {
        let no = |why: &str| Err(why.to_owned());
        let Some(claims) = self.key.open_token::<Claims>(token).filter(|claims| claims.iss == self.issuer) else {
            return no("invalid bearer token");
        };
        let common: Vec<String> = claims.aud.iter().filter(|audience| audiences.contains(audience)).cloned().collect();
        if common.is_empty() {
            return Err(format!("token audiences {:?} is invalid for the target audiences {audiences:?}", claims.aud));
        }
        if now > claims.exp.saturating_add(LEEWAY) {
            return no("service account token has expired");
        }
        if now < claims.nbf.saturating_sub(LEEWAY) {
            return no("service account token is not valid yet");
        }
        let Kubernetes { namespace, serviceaccount, pod, secret, node } = claims.kubernetes;
        if claims.sub != account_name(&namespace, &serviceaccount.name) {
            return no("service account token claims could not be validated");
        }
        stands(store, ("serviceaccounts", "service account"), &namespace, &serviceaccount, now)?;
        let mut user = User::account(&namespace, &serviceaccount.name);
        user.uid = serviceaccount.uid;
        let mut tell = |key: &str, value: String| {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        tell("credential-id", format!("JTI={}", claims.jti));
        if let Some(secret) = &secret {
            stands(store, ("secrets", "secret"), &namespace, secret, now)?;
        }
        if let Some(pod) = &pod {
            stands(store, ("pods", "pod"), &namespace, pod, now)?;
            tell("pod-name", pod.name.clone());
            tell("pod-uid", pod.uid.clone());
        }
        if let Some(node) = node {
            // Of a pod's token it is said only for information.
            if pod.is_none() {
                stands(store, ("nodes", "node"), "", &node, now)?;
            }
            tell("node-name", node.name);
            if !node.uid.is_empty() {
                tell("node-uid", node.uid);
            }
        }
        Ok(Authenticated { user, audiences: common })
    }

    /// `/.well-known/openid-configuration`, for those who check tokens without asking.
    pub(crate) fn configuration(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", self.issuer),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"]
        })
    }

    /// `/openid/v1/jwks`.
    pub(crate) fn keys(&self) -> Value {
        json!({"keys": [self.key.public()]})
    }
}

/// Whether an object that a token names is there, the very same, and not long since told to go.
fn stands(
    store: &Store,
    (plural, word): (&str, &str),
    namespace: &str,
    named: &Object,
    now: i64,
) -> Result<(), String> {
    let Some(entry) = store.get(&object::key(crate::known_kind("", plural), namespace, &named.name)).0 else {
        return Err(format!("the {word} of this token, {}, does not exist", named.name));
    };
    let found = object::decode(&entry.value);
    let uid = object::text(&found, "/metadata/uid");
    if uid != named.uid {
        return Err(format!("{word} UID ({uid}) does not match claim ({})", named.uid));
    }
    let deleted = object::text(&found, "/metadata/deletionTimestamp").parse::<jiff::Timestamp>().ok();
    if deleted.is_some_and(|at| at.as_second() < now - LEEWAY) {
        return Err(format!("{word} {} has been deleted", named.name));
    }
    Ok(())
}
