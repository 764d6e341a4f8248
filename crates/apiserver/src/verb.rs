//! A request's method and place -> the verb by which it is authorized and carried out.
//!
//! Source: "Determine the request verb" in the Kubernetes documentation of authorization.

use http::Method;
use portolan_kinds::Status;
use portolan_kinds::select::FieldSelector;

use crate::options::Options;
use crate::route::{Sub, Target};

/// The one name, and the one node of pods, that a collection is narrowed to; as upstream, no name makes of deleting one
/// what a rule with names would allow. What is wrong with a selector is said later.
pub(crate) fn selected(verb: &str, target: &Target, options: &Options) -> (Option<String>, Option<String>) {
    if !matches!(verb, "list" | "watch" | "deletecollection") {
        return (None, None);
    }
    let fields = FieldSelector::parse(&options.field_selector, &target.kind).unwrap_or_default();
    let name = fields.name().filter(|_| verb != "deletecollection");
    (name.map(str::to_owned), fields.only("spec.nodeName").map(str::to_owned))
}

/// # Errors
/// 405 for a method that makes no sense there.
pub(crate) fn of(method: &Method, target: &Target, options: &Options) -> Result<&'static str, Status> {
    let collection = target.name.is_none();
    // Of all namespaces together there are only lists and watches.
    let one_place = target.namespace.is_some() || !target.kind.namespaced;
    let verb = match (method, target.sub) {
        (&Method::GET | &Method::HEAD, Sub::None) if collection && options.watch => "watch",
        (&Method::GET | &Method::HEAD, Sub::None) if collection => "list",
        (&Method::GET | &Method::HEAD, Sub::None | Sub::Status | Sub::Scale | Sub::EphemeralContainers | Sub::Log) => {
            "get"
        }
        (&Method::POST, Sub::None) if collection && one_place => "create",
        (&Method::POST, Sub::Binding | Sub::Eviction | Sub::Token) => "create",
        (&Method::PUT, Sub::None | Sub::Status | Sub::Scale | Sub::EphemeralContainers | Sub::Finalize)
            if !collection =>
        {
            "update"
        }
        (&Method::PATCH, Sub::None | Sub::Status | Sub::Scale | Sub::EphemeralContainers) if !collection => "patch",
        (&Method::DELETE, Sub::None) if !collection => "delete",
        (&Method::DELETE, Sub::None) if one_place && target.kind.deletes_collections() => "deletecollection",
        (&Method::GET | &Method::HEAD, Sub::Exec | Sub::Attach | Sub::PortForward | Sub::Proxy) => "get",
        (&Method::POST, Sub::Exec | Sub::Attach | Sub::PortForward | Sub::Proxy) => "create",
        (&Method::PUT, Sub::Proxy) => "update",
        (&Method::PATCH, Sub::Proxy) => "patch",
        (&Method::DELETE, Sub::Proxy) => "delete",
        // No verb is called so: only who may do everything there may ask.
        (&Method::OPTIONS, Sub::Proxy) => "",
        _ => return Err(Status::method_not_allowed()),
    };
    Ok(verb)
}

#[cfg(test)]
mod tests {
    use portolan_kinds::Catalog;

    use super::*;
    use crate::route::{self, Route};

    fn verb_of(method: Method, path: &str) -> Option<&'static str> {
        let Ok(Route::Object(target)) = route::parse(path, &Catalog::default()) else { return None };
        of(&method, &target, &Options::default()).ok()
    }

    #[test]
    fn collections_are_watched_and_single_objects_got() {
        let options = Options { watch: true, ..Options::default() };
        for (path, verb) in [("/api/v1/namespaces/a/pods", "watch"), ("/api/v1/namespaces/a/pods/b", "get")] {
            let Ok(Route::Object(target)) = route::parse(path, &Catalog::default()) else { panic!("{path}") };
            assert_eq!(of(&Method::GET, &target, &options).unwrap(), verb, "{path}");
        }
    }

    #[test]
    fn what_is_proxied_may_be_asked_by_any_method() {
        let path = "/api/v1/namespaces/a/services/b/proxy/c";
        let methods = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
        let verbs = methods.map(|method| verb_of(method, path).unwrap());
        assert_eq!(verbs, ["get", "get", "create", "update", "patch", "delete"]);
        assert_eq!(verb_of(Method::OPTIONS, path), Some(""));
        assert_eq!(verb_of(Method::OPTIONS, "/api/v1/namespaces/a/services/b"), None);
    }
}
