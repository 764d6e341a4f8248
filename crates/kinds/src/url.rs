//! URLs as Go's `net/url` reads them, with its words for what is none.

/// The parts of a URL.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Url {
    text: String,
    /// In lower case; empty without one.
    pub(crate) scheme: String,
    pub(crate) user: Option<String>,
    /// With a port, if there is one; addresses of the sixth version stand in brackets.
    pub(crate) host: String,
    path: String,
    pub(crate) query: String,
    pub(crate) fragment: String,
}

impl Url {
    /// A reference of any kind.
    ///
    /// # Errors
    /// Says why it is none, after the words `parse "…": `.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (whole, fragment) = text.split_once('#').unwrap_or((text, ""));
        read(whole, false).map(|url| Self { text: text.to_owned(), fragment: fragment.to_owned(), ..url })
    }

    /// What a request may name: a whole URL, or a path. It has no fragment: `#` is a letter like others.
    ///
    /// # Errors
    /// As [`Url::parse`].
    pub(crate) fn parse_request(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("empty url".to_owned()) } else { read(text, true) }
    }

    /// Bytes of its text.
    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    /// The host without its port, and without brackets; and the port, or nothing.
    pub(crate) fn host_and_port(&self) -> (&str, &str) {
        let (host, port) = split_port(&self.host);
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        (bare, port.strip_prefix(':').unwrap_or(port))
    }

    /// With everything escaped that must be.
    pub(crate) fn escaped_path(&self) -> String {
        let mut out = String::with_capacity(self.path.len());
        for byte in self.path.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@%!'()*[]".contains(&byte) {
                out.push(char::from(byte));
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
        out
    }
}

fn read(text: &str, is_request: bool) -> Result<Url, String> {
    if text.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        return Err("net/url: invalid control character in URL".to_owned());
    }
    let (scheme, rest) = match text.split_once(':') {
        Some(("", _)) => return Err("missing protocol scheme".to_owned()),
        Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
        _ => (String::new(), text),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if scheme.is_empty() && !rest.starts_with('/') {
        if is_request && text != "*" {
            return Err("invalid URI for request".to_owned());
        }
        if rest.split('/').next().is_some_and(|segment| segment.contains(':')) {
            return Err("first path segment in URL cannot contain colon".to_owned());
        }
    }
    let has_authority = !scheme.is_empty() || !is_request && !rest.starts_with("///");
    let (authority, path) = match rest.strip_prefix("//").filter(|_| has_authority) {
        Some(after) => after.split_at(after.find('/').unwrap_or(after.len())),
        // What has a scheme and no slash is opaque.
        None if !scheme.is_empty() && !rest.starts_with('/') => ("", ""),
        None => ("", rest),
    };
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    check_host(host)?;
    let in_user = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
    if !user.unwrap_or_default().bytes().all(in_user) {
        return Err("net/url: invalid userinfo".to_owned());
    }
    check_escapes(user.unwrap_or_default())?;
    check_escapes(path)?;
    Ok(Url {
        text: text.to_owned(),
        scheme,
        user: user.map(str::to_owned),
        host: host.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        fragment: String::new(),
    })
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// The port comes with its colon.
fn split_port(host: &str) -> (&str, &str) {
    let end = if host.starts_with('[') { host.rfind(']').map(|bracket| bracket + 1) } else { host.rfind(':') };
    host.split_at(end.unwrap_or(host.len()))
}

fn check_host(host: &str) -> Result<(), String> {
    if host.starts_with('[') && !host.contains(']') {
        return Err("missing ']' in host".to_owned());
    }
    let (_, port) = split_port(host);
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return Err(format!("invalid port {port:?} after host"));
    }
    check_escapes(host)?;
    match host.chars().find(|letter| matches!(letter, ' ' | '#' | '\\' | '^' | '`' | '{' | '|' | '}')) {
        Some(wrong) => Err(format!("invalid character {:?} in host name", wrong.to_string())),
        None => Ok(()),
    }
}

pub(crate) fn check_escapes(text: &str) -> Result<(), String> {
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let after = &rest.as_bytes()[at + 1..];
        if after.len() < 2 || !after[..2].iter().all(u8::is_ascii_hexdigit) {
            let shown: String = rest[at..].chars().take(3).collect();
            return Err(format!("invalid URL escape {shown:?}"));
        }
        rest = &rest[at + 3..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Go 1.27 makes of the same: host and path as a reference, and as a request.
    #[test]
    fn references_and_requests() {
        let shown = |url: Result<Url, String>| match url {
            Ok(url) => format!("{} {}", url.host, url.escaped_path()),
            Err(why) => why,
        };
        for (text, reference, request) in [
            ("http://a:80/b c?d#e", "a:80 /b%20c", "a:80 /b%20c"),
            ("//a/b", "a /b", " //a/b"),
            ("///a", " ///a", " ///a"),
            ("http:///x", " /x", " /x"),
            ("a:b", " ", " "),
            ("/a#b", " /a", " /a%23b"),
            ("http://a]b/", "a]b /", "a]b /"),
            ("http://<a>/", "<a> /", "<a> /"),
            ("", " ", "empty url"),
            ("a", " a", "invalid URI for request"),
            (":a", "missing protocol scheme", "missing protocol scheme"),
            ("1:a", "first path segment in URL cannot contain colon", "invalid URI for request"),
            ("http://a#b", "a ", "invalid character \"#\" in host name"),
        ] {
            assert_eq!(shown(Url::parse(text)), reference, "{text}");
            assert_eq!(shown(Url::parse_request(text)), request, "{text}");
        }
        for (text, why) in [
            ("http://[::1]:x/", "invalid port \":x\" after host"),
            ("http://a:b:c/", "invalid port \":c\" after host"),
            ("http://[::1/", "missing ']' in host"),
            ("http://u:p@h:80/%zz", "invalid URL escape \"%zz\""),
            ("http://u{@h/", "net/url: invalid userinfo"),
        ] {
            assert_eq!(Url::parse(text).unwrap_err(), why, "{text}");
            assert_eq!(Url::parse_request(text).unwrap_err(), why, "{text}");
        }
    }
}
