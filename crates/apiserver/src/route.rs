//! A URL path -> what it names.
//!
//! Invariant: only kinds that the catalog has become a [`Target`]; all else is Kubernetes' 404.

use http::{Method, Uri};
use percent_encoding::percent_decode_str;
use portolan_kinds::{Catalog, Kind, KindRef, Status};

use crate::authz::Request;
use crate::discovery;
use crate::review::Review;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Health,
    Metrics,
    Version,
    /// `/`: the paths there are.
    Index,
    CoreVersions,
    Groups,
    Group(String),
    Resources {
        group: String,
        version: String,
    },
    OpenApiV2,
    OpenApiV3Index,
    OpenApiV3(String),
    /// How to check tokens without asking.
    Issuer,
    Keys,
    /// A question, and the namespace that it is asked in, if any.
    Review(Review, Option<String>),
    Object(Target),
}

impl Route {
    /// The path of what is no object, without what differs from one document to another.
    pub(crate) fn place(&self) -> &'static str {
        match self {
            Self::Health => "/healthz",
            Self::Metrics => "/metrics",
            Self::Version => "/version",
            Self::Index => "/",
            Self::CoreVersions => "/api",
            Self::Resources { group, .. } if group.is_empty() => "/api",
            Self::Groups | Self::Group(_) | Self::Resources { .. } => "/apis",
            Self::OpenApiV2 => "/openapi/v2",
            Self::OpenApiV3Index | Self::OpenApiV3(_) => "/openapi/v3",
            Self::Issuer => "/.well-known/openid-configuration",
            Self::Keys => "/openid/v1/jwks",
            Self::Review(..) | Self::Object(_) => "",
        }
    }
}

/// An object, a collection, or a part of an object.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) kind: KindRef,
    /// `None` for cluster-scoped kinds, and for a collection over all namespaces.
    pub(crate) namespace: Option<String>,
    /// `None` for a collection.
    pub(crate) name: Option<String>,
    pub(crate) sub: Sub,
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(&raw const *self.kind, &raw const *other.kind)
            && (&self.namespace, &self.name, self.sub) == (&other.namespace, &other.name, other.sub)
    }
}

impl Eq for Target {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sub {
    None,
    Status,
    Scale,
    Binding,
    Eviction,
    Log,
    Finalize,
    EphemeralContainers,
    Token,
    Exec,
    Attach,
    PortForward,
    Proxy,
}

impl Sub {
    /// Whether what is asked for is a session with a pod.
    pub(crate) fn is_session(self) -> bool {
        matches!(self, Self::Exec | Self::Attach | Self::PortForward)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::Log => "log",
            Self::Finalize => "finalize",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Token => "token",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
        }
    }

    fn of(kind: &Kind, name: &str) -> Option<Self> {
        Self::all(kind).into_iter().find(|sub| sub.as_str() == name)
    }

    /// The subresources that a kind has.
    pub(crate) fn all(kind: &Kind) -> Vec<Self> {
        let mut all = Vec::new();
        if kind.has_status {
            all.push(Self::Status);
        }
        if kind.has_scale {
            all.push(Self::Scale);
        }
        match (kind.group, kind.plural) {
            ("", "pods") => all.extend([
                Self::Binding,
                Self::EphemeralContainers,
                Self::Eviction,
                Self::Log,
                Self::Exec,
                Self::Attach,
                Self::PortForward,
                Self::Proxy,
            ]),
            ("", "services" | "nodes") => all.push(Self::Proxy),
            ("", "namespaces") => all.push(Self::Finalize),
            ("", "serviceaccounts") => all.push(Self::Token),
            _ => {}
        }
        all
    }
}

/// A path that leads through `/proxy` to somewhere else: up to there, and what follows as it came.
pub(crate) fn split_proxied(path: &str) -> Option<(&str, &str)> {
    let segments: Vec<&str> = path.splitn(10, '/').collect();
    let before = match segments.as_slice() {
        ["", "api", "v1", "nodes", _, "proxy", ..] => 6,
        ["", "api", "v1", "namespaces", _, "pods" | "services", _, "proxy", ..] => 8,
        _ => return None,
    };
    let length = segments[..before].iter().map(|segment| segment.len() + 1).sum::<usize>() - 1;
    path.split_at_checked(length)
}

/// What a path of old stands for, that names a watch: `/api/v1/watch/pods` is `/api/v1/pods?watch=1`. Of a single object,
/// it is its collection's, narrowed to its name.
pub(crate) fn unwatched(method: &Method, uri: &Uri) -> Option<Uri> {
    let segments: Vec<&str> = uri.path().split('/').collect();
    let before = match segments.as_slice() {
        ["", "api", _, "watch", _, ..] => 3,
        ["", "apis", _, _, "watch", _, ..] => 4,
        _ => return None,
    };
    if !matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let mut place = segments[before + 1..].to_vec();
    let name = place.len().is_multiple_of(2).then(|| place.pop()).flatten();
    let path = [&segments[..before], &place].concat().join("/");
    let mut query: Vec<String> =
        uri.query().into_iter().flat_map(|query| query.split('&')).map(str::to_owned).collect();
    query.retain(|part| part.split('=').next() != Some("watch"));
    query.push("watch=1".into());
    if let Some(name) = name {
        let selector = format!("metadata.name%3D{name}");
        match query.iter_mut().find(|part| part.starts_with("fieldSelector=")) {
            Some(said) => *said = format!("{said},{selector}"),
            None => query.push(format!("fieldSelector={selector}")),
        }
    }
    format!("{path}?{}", query.join("&")).parse().ok()
}

/// # Errors
/// 404, in Kubernetes' words.
pub(crate) fn parse(path: &str, catalog: &Catalog) -> Result<Route, Status> {
    let path = split_proxied(path).map_or(path, |(here, _)| here);
    let mut segments = Vec::new();
    for segment in path.trim_matches('/').split('/') {
        let decoded = percent_decode_str(segment).decode_utf8().map_err(|_| Status::unknown_resource())?;
        // A slash that came in as %2F is part of no name.
        if decoded.contains('/') {
            return Err(Status::unknown_resource());
        }
        segments.push(decoded.into_owned());
    }
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        [""] => Ok(Route::Index),
        ["healthz" | "livez" | "readyz", ..] => Ok(Route::Health),
        ["metrics"] => Ok(Route::Metrics),
        ["version"] => Ok(Route::Version),
        [".well-known", "openid-configuration"] => Ok(Route::Issuer),
        ["openid", "v1", "jwks"] => Ok(Route::Keys),
        ["openapi", "v2"] => Ok(Route::OpenApiV2),
        ["openapi", "v3"] => Ok(Route::OpenApiV3Index),
        ["openapi", "v3", rest @ ..] => Ok(Route::OpenApiV3(rest.join("/"))),
        ["api"] => Ok(Route::CoreVersions),
        ["api", version] => resources(catalog, "", version),
        ["api", version, rest @ ..] => target(catalog, "", version, rest),
        ["apis"] => Ok(Route::Groups),
        ["apis", group] => Ok(Route::Group((*group).to_owned())),
        ["apis", group, version] => resources(catalog, group, version),
        ["apis", group, version, rest @ ..] => target(catalog, group, version, rest),
        _ => Err(Status::unknown_resource()),
    }
}

/// What a path would name if there were such a kind, for those who may not know that there is none.
pub(crate) struct Unknown {
    group: String,
    namespace: String,
    resource: String,
    name: String,
    subresource: String,
}

pub(crate) fn unknown(path: &str) -> Option<Unknown> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, rest) = match segments.as_slice() {
        ["api", _, rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        _ => ("", rest),
    };
    let part = |index: usize| rest.get(index).copied().unwrap_or_default().to_owned();
    (!rest.is_empty()).then(|| Unknown {
        group: group.to_owned(),
        namespace: namespace.to_owned(),
        resource: part(0),
        name: part(1),
        subresource: part(2),
    })
}

impl Unknown {
    pub(crate) fn request(&self, method: &Method) -> Request<'_> {
        let verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if self.name.is_empty() => "deletecollection",
            Method::DELETE => "delete",
            _ if self.name.is_empty() => "list",
            _ => "get",
        };
        Request {
            verb,
            group: &self.group,
            resource: &self.resource,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
            ..Request::default()
        }
    }
}

fn resources(catalog: &Catalog, group: &str, version: &str) -> Result<Route, Status> {
    if discovery::serves(catalog, group, version) {
        Ok(Route::Resources { group: group.to_owned(), version: version.to_owned() })
    } else {
        Err(Status::unknown_resource())
    }
}

fn target(catalog: &Catalog, group: &str, version: &str, rest: &[&str]) -> Result<Route, Status> {
    let review = match rest {
        [plural] => Review::of(group, version, plural, false).map(|review| (review, None)),
        ["namespaces", namespace, plural] => {
            Review::of(group, version, plural, true).map(|review| (review, Some((*namespace).to_owned())))
        }
        _ => None,
    };
    if let Some((review, namespace)) = review {
        return Ok(Route::Review(review, namespace));
    }
    let (namespace, rest) = match rest {
        // `/namespaces/x/status` is a part of the namespace; `/namespaces/x/pods` is a collection in it.
        ["namespaces", _, "status" | "finalize"] if group.is_empty() => (None, rest),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
        _ => (None, rest),
    };
    let (plural, name, sub) = match rest {
        [plural] => (*plural, None, None),
        [plural, name] => (*plural, Some(*name), None),
        [plural, name, sub] => (*plural, Some(*name), Some(*sub)),
        _ => return Err(Status::unknown_resource()),
    };
    let kind = catalog.find(group, version, plural).ok_or_else(Status::unknown_resource)?;
    let sub = match sub {
        None => Sub::None,
        Some(sub) => Sub::of(&kind, sub).ok_or_else(Status::unknown_resource)?,
    };
    let fits = match namespace {
        Some(namespace) => kind.namespaced && !namespace.is_empty(),
        None => !kind.namespaced || name.is_none(),
    };
    if !fits || name.is_some_and(str::is_empty) {
        return Err(Status::unknown_resource());
    }
    let owned = |part: Option<&str>| part.map(str::to_owned);
    Ok(Route::Object(Target { kind, namespace: owned(namespace), name: owned(name), sub }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(path: &str) -> String {
        match parse(path, &Catalog::default()) {
            Ok(Route::Object(t)) => format!(
                "{} ns={} name={} sub={}",
                t.kind.plural,
                t.namespace.unwrap_or("-".into()),
                t.name.unwrap_or("-".into()),
                t.sub.as_str()
            ),
            Ok(other) => format!("{other:?}"),
            Err(status) => status.code().to_string(),
        }
    }

    #[test]
    fn what_is_behind_a_proxy_stays_as_it_is() {
        let service = "/api/v1/namespaces/a/services/b:80/proxy";
        for rest in ["", "/", "/c//d%2Fe/", "/proxy/x"] {
            assert_eq!(split_proxied(&format!("{service}{rest}")), Some((service, rest)));
        }
        assert_eq!(split_proxied("/api/v1/nodes/n/proxy/x"), Some(("/api/v1/nodes/n/proxy", "/x")));
        assert_eq!(split_proxied("/api/v1/nodes/n/proxyx"), None);
    }

    #[test]
    fn watches_of_old() {
        let asked = |method: Method, uri: &str| unwatched(&method, &uri.parse().unwrap()).map(|uri| uri.to_string());
        for (uri, expected) in [
            ("/api/v1/watch/pods", Some("/api/v1/pods?watch=1")),
            (
                "/api/v1/watch/namespaces/a/pods/b?x=y&watch=0",
                Some("/api/v1/namespaces/a/pods?x=y&watch=1&fieldSelector=metadata.name%3Db"),
            ),
            (
                "/api/v1/watch/nodes/n?fieldSelector=spec.unschedulable%3Dtrue",
                Some("/api/v1/nodes?fieldSelector=spec.unschedulable%3Dtrue,metadata.name%3Dn&watch=1"),
            ),
            ("/apis/apps/v1/watch/deployments", Some("/apis/apps/v1/deployments?watch=1")),
            ("/apis/example.com/v1/watch", None),
            ("/api/v1/namespaces/watch/pods", None),
        ] {
            assert_eq!(asked(Method::GET, uri).as_deref(), expected, "{uri}");
            assert_eq!(asked(Method::POST, uri), None, "{uri}");
        }
    }

    #[test]
    fn paths() {
        for (path, expected) in [
            ("/", "Index"),
            ("/livez", "Health"),
            ("/metrics", "Metrics"),
            ("/readyz/ping", "Health"),
            ("/version", "Version"),
            ("/version/", "Version"),
            ("/api", "CoreVersions"),
            ("/apis", "Groups"),
            ("/apis/apps", "Group(\"apps\")"),
            ("/api/v1", "Resources { group: \"\", version: \"v1\" }"),
            ("/apis/apps/v1", "Resources { group: \"apps\", version: \"v1\" }"),
            ("/apis/apps/v2", "404"),
            ("/openapi/v3/apis/apps/v1", "OpenApiV3(\"apis/apps/v1\")"),
            ("/api/v1/pods", "pods ns=- name=- sub="),
            ("/api/v1/pods/x", "404"),
            ("/api/v1/namespaces", "namespaces ns=- name=- sub="),
            ("/api/v1/namespaces/a", "namespaces ns=- name=a sub="),
            ("/api/v1/namespaces/a/status", "namespaces ns=- name=a sub=status"),
            ("/api/v1/namespaces/a/finalize", "namespaces ns=- name=a sub=finalize"),
            ("/api/v1/namespaces/a/pods", "pods ns=a name=- sub="),
            ("/api/v1/namespaces/a/pods/b", "pods ns=a name=b sub="),
            ("/api/v1/namespaces/a/pods/b/log", "pods ns=a name=b sub=log"),
            ("/api/v1/namespaces/a/pods/b/scale", "404"),
            ("/api/v1/namespaces/a/pods/b/log/c", "404"),
            ("/api/v1/namespaces/a/pods/b/exec", "pods ns=a name=b sub=exec"),
            ("/api/v1/namespaces/a/pods/b/proxy", "pods ns=a name=b sub=proxy"),
            ("/api/v1/namespaces/a/services/https:b:x/proxy/c//d%2Fe/", "services ns=a name=https:b:x sub=proxy"),
            ("/api/v1/nodes/n:10250/proxy/healthz", "nodes ns=- name=n:10250 sub=proxy"),
            ("/api/v1/namespaces/a/configmaps/b/proxy/c", "404"),
            ("/api/v1/namespaces/a/pods/", "pods ns=a name=- sub="),
            ("/api/v1/namespaces//pods", "404"),
            ("/api/v1/namespaces/a/pods/..%2Fb", "404"),
            ("/api/v1/namespaces/a/events/b%3Ac", "events ns=a name=b:c sub="),
            ("/api/v1/nodes/n", "nodes ns=- name=n sub="),
            ("/api/v1/namespaces/a/nodes/n", "404"),
            ("/apis/apps/v1/namespaces/a/deployments/d/scale", "deployments ns=a name=d sub=scale"),
            ("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "Review(MyAccess, None)"),
            (
                "/apis/authorization.k8s.io/v1/namespaces/a/localsubjectaccessreviews",
                "Review(LocalAccess, Some(\"a\"))",
            ),
            ("/apis/authorization.k8s.io/v1/localsubjectaccessreviews", "404"),
            ("/api/v1/namespaces/a/serviceaccounts/b/token", "serviceaccounts ns=a name=b sub=token"),
            ("/.well-known/openid-configuration", "Issuer"),
            ("/openid/v1/jwks", "Keys"),
            ("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews/x", "404"),
            ("/apis/apps/v1/namespaces/a/widgets", "404"),
            ("/api/v1/widgets", "404"),
            ("/nonsense", "404"),
        ] {
            assert_eq!(short(path), expected, "{path}");
        }
    }
}
