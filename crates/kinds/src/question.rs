//! What can only be asked: kinds of which a POST is answered and nothing is stored.
//!
//! Source: `authentication.k8s.io`, `authorization.k8s.io`.

/// A kind that is asked at its plural; all are of version `v1`.
#[derive(Debug, PartialEq, Eq)]
pub struct Question {
    pub group: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    /// Asked in a namespace, and nowhere else.
    pub namespaced: bool,
    /// The table's name of the type.
    pub(crate) type_name: &'static str,
}

const fn question(type_name: &'static str, names: [&'static str; 3], namespaced: bool) -> Question {
    let [group, kind, plural] = names;
    Question { group, kind, plural, namespaced, type_name }
}

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

/// In the order of groups and plurals.
pub static QUESTIONS: [Question; 6] = [
    question("authentication.v1.SelfSubjectReview", [AUTHENTICATION, "SelfSubjectReview", "selfsubjectreviews"], false),
    question("authentication.v1.TokenReview", [AUTHENTICATION, "TokenReview", "tokenreviews"], false),
    question(
        "authorization.v1.LocalSubjectAccessReview",
        [AUTHORIZATION, "LocalSubjectAccessReview", "localsubjectaccessreviews"],
        true,
    ),
    question(
        "authorization.v1.SelfSubjectAccessReview",
        [AUTHORIZATION, "SelfSubjectAccessReview", "selfsubjectaccessreviews"],
        false,
    ),
    question(
        "authorization.v1.SelfSubjectRulesReview",
        [AUTHORIZATION, "SelfSubjectRulesReview", "selfsubjectrulesreviews"],
        false,
    ),
    question(
        "authorization.v1.SubjectAccessReview",
        [AUTHORIZATION, "SubjectAccessReview", "subjectaccessreviews"],
        false,
    ),
];
