//! What the API server's refusals mean to a controller.

use kube::core::Status;

fn status(error: &kube::Error) -> Option<&Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    status(error).is_some_and(Status::is_not_found)
}

pub(crate) fn is_already_exists(error: &kube::Error) -> bool {
    status(error).is_some_and(Status::is_already_exists)
}

pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    status(error).is_some_and(Status::is_conflict)
}

/// The object is gone, exists already or has changed: the cache will show it in a moment.
pub(crate) fn is_stale(error: &kube::Error) -> bool {
    is_not_found(error) || is_already_exists(error) || is_conflict(error)
}

/// Nothing can be created in a namespace that is being deleted.
pub(crate) fn is_namespace_terminating(error: &kube::Error) -> bool {
    status(error).is_some_and(|status| {
        status.is_forbidden()
            && status
                .details
                .as_ref()
                .is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
    })
}

/// Deleting what is absent succeeds, and so does changing it.
pub(crate) fn ignore_not_found<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the API server said, in its own words.
pub(crate) fn message(error: &kube::Error) -> String {
    status(error).map_or_else(|| error.to_string(), |status| status.message.clone())
}
