//! The forms of names in Kubernetes, and how to make one from a base.
//!
//! Each check returns what is wrong in Kubernetes' words (release 1.36), or nothing. No regular expressions run.
//! Source: apimachinery `pkg/util/validation`, apiserver `pkg/storage/names`.

/// Longest name made by [`generate_name`], before the suffix.
const MAX_GENERATED_BASE: usize = 63 - 5;

/// Letters and digits of generated suffixes: no vowels and no look-alikes, so that no words come out.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// `base` cut to leave room for five characters drawn from `random`.
pub fn generate_name(base: &str, random: u64) -> String {
    let mut end = base.len().min(MAX_GENERATED_BASE);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = base[..end].to_owned();
    let mut rest = random;
    for _ in 0..5 {
        let index = usize::try_from(rest % SUFFIX.len() as u64).unwrap_or(0);
        name.push(char::from(SUFFIX[index]));
        rest /= SUFFIX.len() as u64;
    }
    name
}

fn max_length(length: usize) -> String {
    format!("must be no more than {length} characters")
}

/// As [`max_length`], where upstream says what it really counts.
fn max_bytes(length: usize) -> String {
    format!("must be no more than {length} bytes")
}

fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// `[a-z0-9]([-a-z0-9]*[a-z0-9])?`
fn label_form(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            lower(*first) && lower(*last) && bytes.iter().all(|byte| lower(*byte) || *byte == b'-')
        }
        _ => false,
    }
}

fn subdomain_form(text: &str) -> bool {
    text.split('.').all(label_form)
}

/// Lower-case RFC 1123 label: pods' hostnames, namespaces, Services and their ports.
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 63 {
        wrong.push(max_length(63));
    }
    if !label_form(text) {
        wrong.push(if subdomain_form(text) {
            "must not contain dots".to_owned()
        } else {
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
             end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
                .to_owned()
        });
    }
    wrong
}

/// Lower-case RFC 1123 subdomain: most objects' names.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 253 {
        wrong.push(max_length(253));
    }
    if !subdomain_form(text) {
        wrong.push(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                .to_owned(),
        );
    }
    wrong
}

/// A subdomain whose labels may begin with an underscore and hold further ones: search paths of DNS.
pub fn subdomain_with_underscores(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 253 {
        wrong.push(max_length(253));
    }
    let label = |label: &str| label_form(&label.strip_prefix('_').unwrap_or(label).replace('_', "-"));
    if !text.split('.').all(label) {
        wrong.push(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must \
             start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')"
                .to_owned(),
        );
    }
    wrong
}

/// A subdomain with `*` for its first label: hosts of Ingresses.
pub fn wildcard_subdomain(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 253 {
        wrong.push(max_length(253));
    }
    if !text.strip_prefix("*.").is_some_and(subdomain_form) {
        wrong.push(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of \
             lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', \
             regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                .to_owned(),
        );
    }
    wrong
}

/// RFC 1035 label: names that programs of old must be able to look up.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 63 {
        wrong.push(max_length(63));
    }
    if !label_form(text) || !text.as_bytes()[0].is_ascii_lowercase() {
        wrong.push(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
             validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
                .to_owned(),
        );
    }
    wrong
}

/// The name part of a label key, and label values: `[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?`.
fn qualified_form(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        }
        _ => false,
    }
}

const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                         alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                         validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// Keys of labels and annotations, finalizers: an optional subdomain and `/`, then a name.
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut parts = text.split('/');
    let (first, second) = (parts.next().unwrap_or_default(), parts.next());
    if parts.next().is_some() {
        return vec![format!(
            "a qualified name {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        )];
    }
    let name = match second {
        None => first,
        Some(name) => {
            if first.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                wrong.extend(dns1123_subdomain(first).into_iter().map(|text| format!("prefix part {text}")));
            }
            name
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        wrong.push(format!("name part {}", max_bytes(63)));
    }
    if !qualified_form(name) {
        wrong.push(format!("name part {QUALIFIED}"));
    }
    wrong
}

pub fn label_value(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 63 {
        wrong.push(max_bytes(63));
    }
    if !text.is_empty() && !qualified_form(text) {
        wrong.push(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used \
             for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                .to_owned(),
        );
    }
    wrong
}

/// Names of ports in containers and of target ports.
pub fn port_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 15 {
        wrong.push(max_length(15));
    }
    if text.is_empty() || !text.bytes().all(|byte| lower(byte) || byte == b'-') {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

/// Numbers of ports.
pub fn port_number(port: i64) -> Option<&'static str> {
    (!(1..=65535).contains(&port)).then_some("must be between 1 and 65535, inclusive")
}

/// Keys in ConfigMaps and Secrets.
pub fn config_map_key(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 253 {
        wrong.push(max_length(253));
    }
    let form = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.is_empty() || !text.bytes().all(form) {
        wrong.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
             'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .to_owned(),
        );
    }
    match text {
        "." => wrong.push("must not be '.'".to_owned()),
        ".." => wrong.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => wrong.push("must not start with '..'".to_owned()),
        _ => {}
    }
    wrong
}

/// Names of environment variables.
pub fn env_var_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.is_empty() {
        wrong.push("environment variable name must be non-empty".to_owned());
    }
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=') {
        wrong.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    wrong
}

/// `80%`
pub fn percent(text: &str) -> Option<&'static str> {
    let good = text.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()));
    (!good).then_some(
        "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used \
         for validation is '[0-9]+%')",
    )
}

/// Names of HTTP headers.
pub fn http_header_name(text: &str) -> Option<&'static str> {
    let good = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (!good).then_some(
        "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for \
         validation is '[-A-Za-z0-9]+')",
    )
}

/// A segment of a URL path, which every name must be.
pub fn path_segment(text: &str) -> Vec<String> {
    match text {
        "." => return vec!["may not be '.'".to_owned()],
        ".." => return vec!["may not be '..'".to_owned()],
        _ => {}
    }
    ['/', '%'].iter().filter(|c| text.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names() {
        assert_eq!(generate_name("web-", 0), "web-bbbbb");
        let long = "x".repeat(100);
        assert_eq!(generate_name(&long, u64::MAX).len(), 63);
        assert!(dns1123_label(&generate_name("a-", 12_345)).is_empty());
        assert_ne!(generate_name("a-", 1), generate_name("a-", 2));
        assert!(generate_name(&"é".repeat(40), 1).len() <= 63);
    }

    #[test]
    fn forms() {
        let good = |wrong: Vec<String>| wrong.is_empty();
        for (text, label, subdomain) in [
            ("a", true, true),
            ("a-b", true, true),
            ("1a", true, true),
            ("a.b", false, true),
            ("", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("A", false, false),
            ("a..b", false, false),
            ("a_b", false, false),
            ("é", false, false),
        ] {
            assert_eq!(good(dns1123_label(text)), label, "{text}");
            assert_eq!(good(dns1123_subdomain(text)), subdomain, "{text}");
        }
        assert!(!good(dns1123_label(&"a".repeat(64))));
        for (text, search_path) in
            [("_sip._tcp.abc_d.example.com", true), ("a", true), ("__a", false), ("a_.b", false), ("_", false)]
        {
            assert_eq!(good(subdomain_with_underscores(text)), search_path, "{text}");
        }
        assert!(good(dns1123_subdomain(&"a".repeat(64))), "upstream checks only the whole length");
        assert!(!good(dns1123_subdomain(&"a".repeat(254))));
        for (text, qualified, value) in [
            ("a", true, true),
            ("App.name_x-1", true, true),
            ("example.com/app", true, false),
            ("/app", false, false),
            ("a/b/c", false, false),
            ("example.com/", false, false),
            ("", false, true),
            ("-a", false, false),
            ("A.b/c", false, false),
        ] {
            assert_eq!(good(qualified_name(text)), qualified, "{text}");
            assert_eq!(good(label_value(text)), value, "{text}");
        }
        for (text, fine) in [
            ("http", true),
            ("h2", true),
            ("80", false),
            ("a--b", false),
            ("-a", false),
            ("", false),
            ("a234567890123456", false),
        ] {
            assert_eq!(good(port_name(text)), fine, "{text}");
        }
        for (text, fine) in [("a.b", true), ("..a", false), (".", false), ("..", false), ("", false), ("a/b", false)] {
            assert_eq!(good(config_map_key(text)), fine, "{text}");
        }
        assert!(percent("25%").is_none() && percent("25").is_some() && percent("%").is_some());
        assert_eq!(path_segment("a/b%"), ["may not contain '/'", "may not contain '%'"]);
    }
}
