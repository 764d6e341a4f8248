//! `spec.conversion`, and what is wrong with it.
//!
//! Fields are named as Kubernetes names them inside, where what tells of the webhook stands beside the strategy.
//! Source: `validateCustomResourceConversion`, and `pkg/util/webhook/validation.go` of apiserver.

use serde_json::Value;

use crate::FieldError;
use crate::custom::webhook::{REVIEWS, certificates};
use crate::look::{Look, Path};
use crate::names;
use crate::url::Url;

/// `old` is the definition before, if there was one.
pub(super) fn validate(conversion: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let (hook, at) = (&conversion["webhook"], path.field("strategy"));
    match conversion.text("strategy") {
        "" => errors.push(FieldError::required(at, "")),
        "Webhook" => {
            client(&hook["clientConfig"], takes_any_bundle(old), &path.field("webhookClientConfig"), errors);
            let old = old.map(|old| review_versions(old.get_in(&["spec", "conversion", "webhook"])));
            let recognized = old.is_none_or(|old| old.is_empty() || old.iter().any(is_known));
            reviews(review_versions(hook), recognized, &path.field("conversionReviewVersions"), errors);
        }
        other => {
            if other != "None" {
                errors.push(FieldError::not_supported(at, other, &["None", "Webhook"]));
            }
            let mut forbid = |field| {
                let words = "should not be set when strategy is not set to Webhook";
                errors.push(FieldError::forbidden(path.field(field), words));
            };
            if hook.has("clientConfig") {
                forbid("webhookClientConfig");
            }
            if !review_versions(hook).is_empty() {
                forbid("conversionReviewVersions");
            }
        }
    }
}

/// A definition that is not served yet may say anything, and is not served for it; one that said it may say it again.
fn takes_any_bundle(old: Option<&Value>) -> bool {
    let Some(old) = old.filter(|old| crate::custom::is_established(old)) else { return true };
    let bundle = old.get_in(&["spec", "conversion", "webhook", "clientConfig"]).text("caBundle");
    !bundle.is_empty() && certificates(bundle).is_err()
}

fn client(config: &Value, any_bundle: bool, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if config.is_null() {
        return errors.push(FieldError::required(path, "required when strategy is set to Webhook"));
    }
    match (config.has("url"), config.has("service")) {
        (true, false) => url(config.text("url"), &path.field("url"), errors),
        (false, true) => service(&config["service"], &path.field("service"), errors),
        _ => errors.push(FieldError::required(path, "exactly one of url or service is required")),
    }
    let bundle = config.text("caBundle");
    if !bundle.is_empty()
        && !any_bundle
        && let Err(why) = certificates(bundle)
    {
        let why = format!("unable to load root certificates: {why}");
        errors.push(FieldError::invalid(path.field("caBundle"), bundle, why));
    }
}

fn url(text: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    const FORM: &str = "; desired format: https://host[/path]";
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(why) => {
            let words = format!("url must be a valid URL: parse {text:?}: {why}{FORM}");
            return errors.push(FieldError::required(path, words));
        }
    };
    let mut wrong = |value: &str, words: String| errors.push(FieldError::invalid(path, value, words));
    if url.scheme != "https" {
        wrong(&url.scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if url.host.is_empty() {
        wrong("", format!("host must be specified{FORM}"));
    }
    if let Some(user) = &url.user {
        wrong(user, "user information is not permitted in the URL".to_owned());
    }
    if !url.fragment.is_empty() {
        wrong(&url.fragment, "fragments are not permitted in the URL".to_owned());
    }
    if !url.query.is_empty() {
        wrong(&url.query, "query parameters are not permitted in the URL".to_owned());
    }
}

fn service(service: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for field in ["name", "namespace"] {
        if service.text(field).is_empty() {
            errors.push(FieldError::required(path.field(field), ""));
        }
    }
    let port = service.int("port").unwrap_or_default();
    if let Some(wrong) = names::port_number(port) {
        errors.push(FieldError::invalid(path.field("port"), port, format!("port is not valid: {wrong}")));
    }
    let (text, at) = (service.text("path"), path.field("path"));
    let mut wrong = |words: String| errors.push(FieldError::invalid(at, text, words));
    let Some(first) = text.chars().next().filter(|_| text != "/") else { return };
    if text == "//" {
        return wrong("segment[0] may not be empty".to_owned());
    }
    if first != '/' {
        wrong("must start with a '/'".to_owned());
    }
    let steps = &text[first.len_utf8()..];
    for (index, step) in steps.strip_suffix('/').unwrap_or(steps).split('/').enumerate() {
        if step.is_empty() {
            wrong(format!("segment[{index}] may not be empty"));
            continue;
        }
        names::dns1123_subdomain(step).iter().for_each(|why| wrong(format!("segment[{index}]: {why}")));
    }
}

fn review_versions(hook: &Value) -> &[Value] {
    hook.list("conversionReviewVersions")
}

fn is_known(version: &Value) -> bool {
    version.as_str().is_some_and(|version| REVIEWS.contains(&version))
}

fn reviews(versions: &[Value], recognized: bool, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if versions.is_empty() {
        return errors.push(FieldError::required(path, ""));
    }
    let texts: Vec<&str> = versions.iter().filter_map(Value::as_str).collect();
    let repeated = crate::look::repeats(&texts);
    for (index, (text, repeated)) in texts.iter().zip(repeated).enumerate() {
        let at = path.index(index);
        if repeated {
            errors.push(FieldError::invalid(at, *text, "duplicate version"));
            continue;
        }
        names::dns1035_label(text).into_iter().for_each(|why| errors.push(FieldError::invalid(at, *text, why)));
    }
    if recognized && !versions.iter().any(is_known) {
        let words = format!("must include at least one of {}", REVIEWS.join(", "));
        errors.push(FieldError::invalid(path, versions.to_vec(), words));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(conversion: &Value, old: Option<&Value>) -> Vec<String> {
        let mut errors = Vec::new();
        validate(conversion, old, &Path::Field(&Path::Root, "conversion"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    fn hook(client: Value, versions: &[&str]) -> Value {
        json!({"strategy": "Webhook", "webhook": {"clientConfig": client, "conversionReviewVersions": versions}})
    }

    #[test]
    fn mistakes_are_told_in_kubernetes_words() {
        let url = |url: &str| hook(json!({"url": url}), &["v1"]);
        let service =
            |path: &str| hook(json!({"service": {"name": "a", "namespace": "b", "port": 443, "path": path}}), &["v1"]);
        let form = "; desired format: https://host[/path]";
        let at = "conversion.webhookClientConfig";
        for (conversion, expected) in [
            (json!({"strategy": "None"}), vec![]),
            (url("https://a.example:8443/convert"), vec![]),
            (service("/convert"), vec![]),
            (service("/"), vec![]),
            (service("/a/b/"), vec![]),
            (json!({"strategy": ""}), vec!["conversion.strategy: Required value".to_owned()]),
            (json!({"strategy": "Magic"}), vec!["conversion.strategy: Unsupported value: \"Magic\": supported values: \"None\", \"Webhook\"".to_owned()]),
            (
                json!({"strategy": "None", "webhook": {"clientConfig": {}, "conversionReviewVersions": ["v1"]}}),
                ["webhookClientConfig", "conversionReviewVersions"]
                    .map(|field| format!("conversion.{field}: Forbidden: should not be set when strategy is not set to Webhook"))
                    .to_vec(),
            ),
            (
                json!({"strategy": "Webhook"}),
                vec![
                    format!("{at}: Required value: required when strategy is set to Webhook"),
                    "conversion.conversionReviewVersions: Required value".to_owned(),
                ],
            ),
            (hook(json!({}), &["v1"]), vec![format!("{at}: Required value: exactly one of url or service is required")]),
            (url("http://a"), vec![format!("{at}.url: Invalid value: \"http\": 'https' is the only allowed URL scheme{form}")]),
            (
                url("a"),
                vec![
                    format!("{at}.url: Invalid value: \"\": 'https' is the only allowed URL scheme{form}"),
                    format!("{at}.url: Invalid value: \"\": host must be specified{form}"),
                ],
            ),
            (
                url("https://me@a/b?c#d"),
                vec![
                    format!("{at}.url: Invalid value: \"me\": user information is not permitted in the URL"),
                    format!("{at}.url: Invalid value: \"d\": fragments are not permitted in the URL"),
                    format!("{at}.url: Invalid value: \"c\": query parameters are not permitted in the URL"),
                ],
            ),
            (
                url("https://a:b/"),
                vec![format!("{at}.url: Required value: url must be a valid URL: parse \"https://a:b/\": invalid port \":b\" after host{form}")],
            ),
            (service("//"), vec![format!("{at}.service.path: Invalid value: \"//\": segment[0] may not be empty")]),
            (service("a"), vec![format!("{at}.service.path: Invalid value: \"a\": must start with a '/'"), format!("{at}.service.path: Invalid value: \"a\": segment[0] may not be empty")]),
            (service("/a//b"), vec![format!("{at}.service.path: Invalid value: \"/a//b\": segment[1] may not be empty")]),
            (
                hook(json!({"service": {"port": 0}}), &["v1"]),
                vec![
                    format!("{at}.service.name: Required value"),
                    format!("{at}.service.namespace: Required value"),
                    format!("{at}.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive"),
                ],
            ),
            (
                hook(json!({"url": "https://a"}), &["v2", "v2"]),
                vec![
                    "conversion.conversionReviewVersions[1]: Invalid value: \"v2\": duplicate version".to_owned(),
                    "conversion.conversionReviewVersions: Invalid value: [\"v2\",\"v2\"]: must include at least one of v1, v1beta1".to_owned(),
                ],
            ),
        ] {
            assert_eq!(found(&conversion, None), expected, "{conversion}");
        }
    }

    #[test]
    fn who_is_served_keeps_certificates_that_are_some() {
        let with = |bundle: &str| hook(json!({"url": "https://a", "caBundle": bundle}), &["v1"]);
        let served = |bundle: &str| {
            json!({
                "spec": {"conversion": with(bundle)},
                "status": {"conditions": [{"type": "Established", "status": "True"}]}
            })
        };
        let nonsense = "Cg==";
        let refused = "conversion.webhookClientConfig.caBundle: Invalid value: \"Cg==\": unable to load root certificates: \
                       unable to parse bytes as PEM block";
        assert_eq!(found(&with(nonsense), None), [""; 0], "it is not served for it");
        assert_eq!(found(&with(nonsense), Some(&served(""))), [refused]);
        assert_eq!(found(&with(nonsense), Some(&served(nonsense))), [""; 0]);
    }
}
