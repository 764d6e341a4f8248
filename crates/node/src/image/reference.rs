//! The name of an image as people write it -> the one form it is stored under.
//!
//! `nginx` is `docker.io/library/nginx:latest`. Source: `distribution/reference`.

/// The full form, or `None` for what cannot name an image.
pub(crate) fn normalize(name: &str) -> Option<String> {
    let (rest, digest) = name.split_once('@').map_or((name, None), |(rest, digest)| (rest, Some(digest)));
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match rest[slash..].find(':') {
        Some(at) => (&rest[..slash + at], Some(&rest[slash + at + 1..])),
        None => (rest, None),
    };
    let (host, path) = match path.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
        Some(_) => ("docker.io", path.to_owned()),
        None => ("docker.io", format!("library/{path}")),
    };
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let part = |part: &str| {
        let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        !part.is_empty() && part.bytes().all(fine) && part != "." && part != ".."
    };
    let tag_ok = |tag: &str| {
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !tag.is_empty() && tag.len() <= 128 && tag.bytes().all(fine)
    };
    let digest_ok = |digest: &str| {
        digest.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let host_ok = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:-[]".contains(&byte));
    if !host_ok || !path.split('/').all(part) || !tag.is_none_or(tag_ok) || !digest.is_none_or(digest_ok) {
        return None;
    }
    Some(match (tag, digest) {
        (_, Some(digest)) => format!("{host}/{path}@{digest}"),
        (tag, None) => format!("{host}/{path}:{}", tag.unwrap_or("latest")),
    })
}

#[cfg(test)]
mod tests {
    use super::normalize;

    #[test]
    fn names() {
        for (name, full) in [
            ("nginx", Some("docker.io/library/nginx:latest")),
            ("nginx:1.27", Some("docker.io/library/nginx:1.27")),
            ("portolan/workload", Some("docker.io/portolan/workload:latest")),
            ("docker.io/portolan/workload", Some("docker.io/portolan/workload:latest")),
            ("localhost/x:y", Some("localhost/x:y")),
            ("registry.example:5000/a/b", Some("registry.example:5000/a/b:latest")),
            ("registry.k8s.io/pause:3.9", Some("registry.k8s.io/pause:3.9")),
            ("", None),
            ("UPPER", None),
            ("a/../b", None),
            ("a b", None),
            ("a:", None),
            ("a@sha256:12", None),
        ] {
            assert_eq!(normalize(name).as_deref(), full, "{name}");
        }
    }
}
