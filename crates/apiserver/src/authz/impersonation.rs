//! Being taken for somebody else, as `kubectl --as` asks.
//!
//! Invariant: each part of the other is a right of its own, the verb `impersonate`.
//! Source: `apiserver/pkg/endpoints/filters/impersonation`.

use http::HeaderMap;
use percent_encoding::percent_decode_str;
use portolan_kinds::Status;

use super::{Authorizer, Request};
use crate::user::{AUTHENTICATED, UNAUTHENTICATED, User, account_groups, as_account};

const EXTRA: &str = "impersonate-extra-";

impl Authorizer {
    /// The user that this one asks to be taken for.
    ///
    /// # Errors
    /// 403 without the right to, 400 for parts of nobody.
    pub(crate) fn impersonated(&self, user: User, headers: &HeaderMap) -> Result<User, Status> {
        let texts = |name: &str| -> Vec<String> {
            let values = headers.get_all(name).into_iter();
            values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
        };
        let first = |name: &str| texts(name).into_iter().next().unwrap_or_default();
        let (name, uid, groups) = (first("impersonate-user"), first("impersonate-uid"), texts("impersonate-group"));
        let extra = headers.keys().filter_map(|name| Some((name.as_str(), name.as_str().strip_prefix(EXTRA)?)));
        let extra: Vec<(String, Vec<String>)> = extra
            .map(|(header, key)| (percent_decode_str(key).decode_utf8_lossy().into_owned(), texts(header)))
            .collect();
        if name.is_empty() {
            if groups.is_empty() && extra.is_empty() && uid.is_empty() {
                return Ok(user);
            }
            return Err(Status::bad_request("impersonating groups, a uid or extra without a user is not possible"));
        }
        let may = |request: Request<'_>| self.authorize(&user, &Request { verb: "impersonate", ..request });
        let account = as_account(&name);
        match account {
            Some((namespace, name)) => {
                may(Request { resource: "serviceaccounts", namespace, name, ..Request::default() })?;
            }
            None => may(Request { resource: "users", name: &name, ..Request::default() })?,
        }
        for group in &groups {
            may(Request { resource: "groups", name: group, ..Request::default() })?;
        }
        let authentication = Request { group: "authentication.k8s.io", ..Request::default() };
        for (key, values) in &extra {
            for value in values {
                may(Request { resource: "userextras", subresource: key, name: value, ..authentication })?;
            }
        }
        if !uid.is_empty() {
            may(Request { resource: "uids", name: &uid, ..authentication })?;
        }
        let mut other = User { groups, uid, extra: extra.into_iter().collect(), ..User::default() };
        if let Some((namespace, _)) = account.filter(|_| other.groups.is_empty()) {
            other.groups = account_groups(namespace).into();
        }
        other.name = name;
        let anonymous = other.name == User::anonymous().name;
        if anonymous && !other.is_in(UNAUTHENTICATED) {
            other.groups.push(UNAUTHENTICATED.into());
        } else if !anonymous && !other.is_in(AUTHENTICATED) && !other.is_in(UNAUTHENTICATED) {
            other.groups.push(AUTHENTICATED.into());
        }
        Ok(other)
    }
}
