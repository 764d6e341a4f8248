//! Query parameters -> what a request asks for.

use std::collections::BTreeSet;
use std::num::{IntErrorKind, ParseIntError};
use std::time::Duration;

use portolan_kinds::{FieldError, FieldValidation, Status};
use serde_json::Value;

use crate::accept::Include;

/// Bytes of a field manager's name, at most.
const LONGEST_MANAGER: usize = 128;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Options {
    pub(crate) watch: bool,
    pub(crate) label_selector: String,
    pub(crate) field_selector: String,
    pub(crate) resource_version: String,
    pub(crate) resource_version_match: String,
    pub(crate) limit: Option<usize>,
    pub(crate) continue_token: String,
    pub(crate) timeout_seconds: Option<u64>,
    pub(crate) allow_bookmarks: bool,
    pub(crate) send_initial_events: Option<bool>,
    pub(crate) dry_run: bool,
    pub(crate) field_validation: FieldValidation,
    /// Who owns what is written: as asked for, or else named after the client's program.
    pub(crate) manager: String,
    /// Whether the manager was asked for.
    pub(crate) names_manager: bool,
    /// Take what other managers own; only for server-side apply.
    pub(crate) force: Option<bool>,
    pub(crate) include_object: Include,
    pub(crate) delete: DeleteOptions,
    /// What is wrong with what only writes look at.
    pub(crate) mistakes: Vec<FieldError>,
    pub(crate) deletion: Deletion,
}

/// What the query says about a deletion, which counts if there is no body.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Deletion {
    grace_period_seconds: Option<String>,
    policy: Option<String>,
    orphan_dependents: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DeleteOptions {
    pub(crate) grace_period_seconds: Option<i64>,
    pub(crate) propagation: Propagation,
    /// `orphanDependents` is false: who says so in this old way is told with 202 that the object is there still.
    pub(crate) cascades: bool,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
}

/// What any request may say, and that is looked at before anything else is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manner {
    pub(crate) watches: bool,
    pub(crate) is_dry_run: bool,
    /// How long the client would wait; it may be wrong, or nothing.
    timeout: String,
}

/// Nobody waits longer for an answer that has an end.
const LONGEST_ANSWER: Duration = Duration::from_secs(60);

impl Manner {
    pub(crate) fn parse(query: &str) -> Self {
        let mut manner = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "watch" => manner.watches = flag(&value),
                "dryRun" => manner.is_dry_run = !value.is_empty(),
                "timeout" if manner.timeout.is_empty() => manner.timeout = value.into_owned(),
                _ => {}
            }
        }
        manner
    }

    /// How long an answer may take. Zero is what clients say who do not care.
    ///
    /// # Errors
    /// 400 for what is no duration of Go's.
    pub(crate) fn patience(&self) -> Result<Duration, Status> {
        if self.timeout.is_empty() {
            return Ok(LONGEST_ANSWER);
        }
        let asked = portolan_kinds::parse_duration(&self.timeout).ok_or_else(|| {
            let asked = &self.timeout;
            Status::bad_request(format!(
                "invalid timeout specified in the request URL - time: invalid duration {asked:?}"
            ))
        })?;
        let asked = Duration::try_from(asked).unwrap_or_default();
        Ok(if asked.is_zero() { LONGEST_ANSWER } else { asked.min(LONGEST_ANSWER) })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Propagation {
    /// Not said: what the finalizers on the object say, else background.
    #[default]
    Unsaid,
    Background,
    Foreground,
    Orphan,
}

impl Propagation {
    /// What is wrong goes to `errors`: a policy that there is not, and two ways of saying.
    fn of(policy: Option<&str>, orphan_dependents: Option<bool>, errors: &mut Vec<FieldError>) -> Self {
        if let (Some(policy), Some(_)) = (policy, orphan_dependents) {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid("propagationPolicy", policy, why));
        }
        match (policy, orphan_dependents) {
            (None, None) => Self::Unsaid,
            (Some("Background"), _) | (None, Some(false)) => Self::Background,
            (Some("Orphan"), _) | (None, Some(true)) => Self::Orphan,
            (Some("Foreground"), _) => Self::Foreground,
            (Some(other), _) => {
                let policies = ["Foreground", "Background", "Orphan", "nil"];
                errors.push(FieldError::not_supported("propagationPolicy", other, &policies));
                Self::Unsaid
            }
        }
    }
}

impl Options {
    /// # Errors
    /// 400 or 422 for values that mean nothing.
    pub(crate) fn parse(query: &str) -> Result<Self, Status> {
        let mut options = Self::default();
        let mut dry_run = Vec::new();
        let mut seen = BTreeSet::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            // As in Go: of what is said twice the first counts, but of what is a list.
            if name != "dryRun" && !seen.insert(name.clone()) {
                continue;
            }
            match name.as_ref() {
                "watch" => options.watch = flag(&value),
                "labelSelector" => options.label_selector = value.into_owned(),
                "fieldSelector" => options.field_selector = value.into_owned(),
                "resourceVersion" => options.resource_version = value.into_owned(),
                "resourceVersionMatch" => options.resource_version_match = value.into_owned(),
                "limit" => {
                    let limit: i64 = number(&value)?;
                    options.limit = usize::try_from(limit).ok().filter(|limit| *limit > 0);
                }
                "continue" => options.continue_token = value.into_owned(),
                "timeoutSeconds" => options.timeout_seconds = Some(number(&value)?),
                "allowWatchBookmarks" => options.allow_bookmarks = flag(&value),
                "sendInitialEvents" => options.send_initial_events = Some(flag(&value)),
                "dryRun" => dry_run.push(value.into_owned()),
                "fieldManager" => {
                    options.names_manager = !value.is_empty();
                    options.manager = value.into_owned();
                }
                "force" => options.force = Some(flag(&value)),
                "includeObject" => options.include_object = include_object(&value)?,
                "fieldValidation" => {
                    options.field_validation = field_validation(&value, &mut options.mistakes);
                }
                "gracePeriodSeconds" => options.deletion.grace_period_seconds = Some(value.into_owned()),
                "propagationPolicy" => options.deletion.policy = Some(value.into_owned()),
                "orphanDependents" => options.deletion.orphan_dependents = Some(flag(&value)),
                _ => {}
            }
        }
        options.dry_run = is_dry_run(&dry_run, &mut options.mistakes);
        Ok(options)
    }

    /// Who writes without a name is named after its program.
    pub(crate) fn take_user_agent(&mut self, user_agent: &str) {
        if !self.names_manager {
            self.manager = program(user_agent);
        }
    }

    /// Checks what only writes have; `kind` is such as `CreateOptions`.
    ///
    /// # Errors
    /// 422 for a manager's name that cannot be one.
    pub(crate) fn check_write(&self, kind: &str) -> Result<(), Status> {
        let mut errors = Vec::new();
        if self.manager.len() > LONGEST_MANAGER {
            errors.push(FieldError::too_long("fieldManager", LONGEST_MANAGER));
        }
        if let Some((at, letter)) = self.manager.char_indices().find(|(_, letter)| letter.is_control()) {
            let why = format!("invalid character U+{:04X} (at position {at})", u32::from(letter));
            errors.push(FieldError::invalid("fieldManager", self.manager.as_str(), why));
        }
        errors.extend(self.mistakes.iter().cloned());
        refuse(kind, &errors)
    }

    /// Checks what a patch may ask for.
    ///
    /// # Errors
    /// 422 for an apply without a manager, or for another patch that is forced.
    pub(crate) fn check_patch(&self, apply: bool) -> Result<(), Status> {
        let error = match (apply, self.force) {
            (true, _) if !self.names_manager => FieldError::required("fieldManager", "is required for apply patch"),
            (false, Some(_)) => FieldError::forbidden("force", "may not be specified for non-apply patch"),
            _ => return self.check_write("PatchOptions"),
        };
        Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]))
    }

    /// Takes in what the query of a DELETE says, which has no body.
    ///
    /// # Errors
    /// 400 or 422 for options that mean nothing.
    pub(crate) fn take_delete_query(&mut self) -> Result<(), Status> {
        let Deletion { grace_period_seconds, policy, orphan_dependents } = std::mem::take(&mut self.deletion);
        let mut errors = Vec::new();
        self.delete = DeleteOptions {
            grace_period_seconds: grace_period_seconds.map(|seconds| number(&seconds)).transpose()?,
            propagation: Propagation::of(policy.as_deref(), orphan_dependents, &mut errors),
            cascades: orphan_dependents == Some(false),
            ..DeleteOptions::default()
        };
        errors.extend(self.mistakes.iter().cloned());
        refuse("DeleteOptions", &errors)
    }

    /// Takes in the body of a DELETE, instead of what the query says.
    ///
    /// # Errors
    /// 400 for a body that is not DeleteOptions, 422 for options that mean nothing.
    pub(crate) fn take_delete_body(&mut self, body: &Value) -> Result<(), Status> {
        let kind = body["kind"].as_str().unwrap_or("DeleteOptions");
        if kind != "DeleteOptions" {
            return Err(Status::bad_request(format!(
                "no kind \"{kind}\" is registered for version \"{}\" in scheme \
                 \"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27\"",
                body["apiVersion"].as_str().unwrap_or("v1")
            )));
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let (policy, orphan_dependents) = (body["propagationPolicy"].as_str(), body["orphanDependents"].as_bool());
        let mut errors = Vec::new();
        self.delete = DeleteOptions {
            grace_period_seconds: body["gracePeriodSeconds"].as_i64(),
            propagation: Propagation::of(policy, orphan_dependents, &mut errors),
            cascades: orphan_dependents == Some(false),
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
        };
        let dry_run: Vec<String> = body["dryRun"].as_array().into_iter().flatten().filter_map(text).collect();
        self.dry_run = is_dry_run(&dry_run, &mut errors);
        refuse("DeleteOptions", &errors)
    }

    /// The revision asked for: `None` is the freshest, `Some(0)` any.
    ///
    /// # Errors
    /// 400 for what is no revision.
    pub(crate) fn revision(&self) -> Result<Option<u64>, Status> {
        if self.resource_version.is_empty() {
            return Ok(None);
        }
        self.resource_version.parse().map(Some).map_err(|error: ParseIntError| {
            let asked = &self.resource_version;
            let why = match error.kind() {
                IntErrorKind::PosOverflow => "value out of range",
                _ => "invalid syntax",
            };
            Status::bad_request(format!(
                "resourceVersion: Invalid value: \"{asked}\": strconv.ParseUint: parsing \
                 \"{asked}\": {why}"
            ))
        })
    }
}

/// The program's name in a User-Agent header: all before the first `/`.
fn program(user_agent: &str) -> String {
    let mut name = String::new();
    for letter in user_agent.split('/').next().unwrap_or_default().chars().filter(|letter| !letter.is_control()) {
        if name.len() + letter.len_utf8() > LONGEST_MANAGER {
            break;
        }
        name.push(letter);
    }
    name
}

/// As in Go's `queryparams`: present and not `false` or `0` is true.
fn flag(value: &str) -> bool {
    !matches!(value.to_ascii_lowercase().as_str(), "false" | "0")
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, Status> {
    value.parse().map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing \"{value}\": invalid syntax")))
}

fn refuse(kind: &str, errors: &[FieldError]) -> Result<(), Status> {
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", kind, "", errors)) }
}

fn is_dry_run(values: &[String], errors: &mut Vec<FieldError>) -> bool {
    if values.iter().any(|value| !matches!(value.as_str(), "" | "All")) {
        errors.push(FieldError::not_supported("dryRun", values.to_vec(), &["All"]));
    }
    values.iter().any(|value| value == "All")
}

fn field_validation(value: &str, errors: &mut Vec<FieldError>) -> FieldValidation {
    match value {
        "" | "Warn" => {}
        "Ignore" => return FieldValidation::Ignore,
        "Strict" => return FieldValidation::Strict,
        other => {
            let known = ["", "Ignore", "Strict", "Warn"];
            errors.push(FieldError::not_supported("fieldValidation", other, &known));
        }
    }
    FieldValidation::Warn
}

fn include_object(value: &str) -> Result<Include, Status> {
    match value {
        "None" => Ok(Include::None),
        "" | "Metadata" => Ok(Include::Metadata),
        "Object" => Ok(Include::Object),
        other => Err(Status::bad_request(format!(
            "Unable to convert to Table as requested: includeObject: Invalid value: \"{other}\": must be 'Metadata', \
             'Object', 'None', or empty"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn queries() {
        let options =
            Options::parse("watch&labelSelector=a%3D1%2Cb&limit=500&dryRun=All&sendInitialEvents=true").unwrap();
        assert!(options.watch && options.dry_run);
        assert_eq!(options.label_selector, "a=1,b");
        assert_eq!(options.limit, Some(500));
        assert_eq!(options.send_initial_events, Some(true));
        assert!(!Options::parse("watch=false").unwrap().watch);
        for (query, code) in [("limit=x", 400), ("timeoutSeconds=-1", 400), ("includeObject=x", 400)] {
            assert_eq!(Options::parse(query).map_err(|status| status.code()), Err(code), "{query}");
        }
        assert!(Options::parse("resourceVersion=abc").unwrap().revision().is_err());
        // What only writes look at keeps nobody from reading.
        for (query, words) in [
            ("dryRun=All&dryRun=Some", "dryRun: Unsupported value: [\"All\",\"Some\"]: supported values: \"All\""),
            (
                "fieldValidation=x",
                "fieldValidation: Unsupported value: \"x\": supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"",
            ),
        ] {
            let mut options = Options::parse(query).unwrap();
            let status = options.check_write("CreateOptions").unwrap_err();
            assert_eq!(status.message(), format!("CreateOptions.meta.k8s.io \"\" is invalid: {words}"));
            assert_eq!(options.take_delete_query().map_err(|status| status.code()), Err(422));
        }
    }

    #[test]
    fn nobody_waits_for_ever() {
        let patience = |query| Manner::parse(query).patience().map_err(|status| status.message().to_owned());
        for (query, seconds) in [("", 60), ("timeout=0s", 60), ("timeout=3m", 60), ("timeout=32s", 32)] {
            assert_eq!(patience(query), Ok(Duration::from_secs(seconds)), "{query}");
        }
        assert_eq!(
            patience("timeout=soon").unwrap_err(),
            "invalid timeout specified in the request URL - time: invalid duration \"soon\""
        );
    }

    #[test]
    fn managers() {
        let parsed = |query: &str, agent: &str| {
            let mut options = Options::parse(query).unwrap();
            options.take_user_agent(agent);
            options
        };
        assert_eq!(parsed("", "kubectl/v1.33.0 (linux/amd64)").manager, "kubectl");
        assert_eq!(parsed("fieldManager=me", "kubectl/v1.33.0").manager, "me");
        assert_eq!(parsed("fieldManager=", "\u{7}a b").manager, "a b");
        assert_eq!(parsed("", &"\u{e9}".repeat(100)).manager.len(), 128);
        assert!(parsed("force=true&fieldManager=me", "").check_patch(true).is_ok());
        let long = format!("fieldManager={}", "x".repeat(129));
        for (query, apply, words) in [
            ("", true, "fieldManager: Required value: is required for apply patch"),
            ("force=false", false, "force: Forbidden: may not be specified for non-apply patch"),
            (
                "fieldManager=a%0Ab",
                true,
                "fieldManager: Invalid value: \"a\\nb\": invalid character U+000A (at position 1)",
            ),
            (long.as_str(), false, "fieldManager: Too long: may not be more than 128 bytes"),
        ] {
            let status = parsed(query, "curl/8").check_patch(apply).unwrap_err();
            assert_eq!(status.code(), 422);
            assert_eq!(status.message(), format!("PatchOptions.meta.k8s.io \"\" is invalid: {words}"));
        }
    }

    #[test]
    fn delete_bodies() {
        let mut options = Options::parse("propagationPolicy=Foreground&gracePeriodSeconds=5").unwrap();
        let body =
            json!({"kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": "u"}, "dryRun": ["All"]});
        options.take_delete_body(&body).unwrap();
        assert_eq!(options.delete.grace_period_seconds, Some(0));
        assert_eq!(options.delete.propagation, Propagation::Unsaid, "the query's options are not the body's");
        assert_eq!(options.delete.uid.as_deref(), Some("u"));
        assert!(options.dry_run);
        assert!(options.take_delete_body(&json!({"kind": "Pod"})).is_err());
        let propagation = |body| options.clone().take_delete_body(&body).map_err(|status| status.message().to_owned());
        for (body, words) in [
            (
                json!({"propagationPolicy": ""}),
                "Unsupported value: \"\": supported values: \"Foreground\", \"Background\"",
            ),
            (json!({"propagationPolicy": "Orphan", "orphanDependents": true}), "cannot be both set"),
        ] {
            let message = propagation(body).unwrap_err();
            assert!(message.starts_with("DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: "), "{message}");
            assert!(message.contains(words), "{message}");
        }
        for (query, expected) in [
            ("propagationPolicy=Orphan&orphanDependents=false", Err(422)),
            ("propagationPolicy=x", Err(422)),
            ("gracePeriodSeconds=", Err(400)),
            ("gracePeriodSeconds=5", Ok(Some(5))),
        ] {
            let mut options = Options::parse(query).unwrap();
            assert!(options.clone().take_delete_body(&json!({})).is_ok(), "who sends a body says it there");
            let taken = options.take_delete_query().map_err(|status| status.code());
            assert_eq!(taken.map(|()| options.delete.grace_period_seconds), expected, "{query}");
        }
    }
}
