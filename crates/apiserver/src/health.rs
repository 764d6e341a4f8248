//! `/healthz`, `/livez` and `/readyz`, and one check of theirs -> whether the server is well.
//!
//! Source: Kubernetes' documentation, "Kubernetes API health endpoints". Deliberately not here: checks named after parts
//! that this server does not have. A store that cannot be written fails every write with the disk's own error, and
//! restarting the server, which is what a failing check leads to, would not mend the disk.

use portolan_kinds::Status;

/// Whether the path is asked by whoever wants to know, and so is answered without rights.
pub(crate) fn is_public(path: &str) -> bool {
    matches!(path, "/healthz" | "/livez" | "/readyz")
}

/// The code and the text for `path`, while the server `is_ending` or not.
///
/// # Errors
/// 404 for a check that there is not.
pub(crate) fn answer(path: &str, query: &str, is_ending: bool) -> Result<(u16, String), Status> {
    let (endpoint, check) = path.trim_matches('/').split_once('/').unwrap_or((path.trim_matches('/'), ""));
    let all = [("ping", true), ("shutdown", !is_ending)];
    // Who ends is alive until it has ended, but should not be asked anything new.
    let checks = if endpoint == "readyz" { &all[..] } else { &all[..1] };
    if !check.is_empty() {
        let (name, passes) = checks.iter().find(|(name, _)| *name == check).ok_or_else(Status::unknown_resource)?;
        let refused = || (500, format!("internal server error: {name} failed\n"));
        return Ok(if *passes { (200, "ok".into()) } else { refused() });
    }
    let asked = |wanted: &str| -> Vec<String> {
        let pairs = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == wanted);
        pairs.map(|(_, value)| value.into_owned()).collect()
    };
    let (excluded, mut text, mut well) = (asked("exclude"), String::new(), true);
    for (name, passes) in checks {
        let is_excluded = excluded.iter().any(|excluded| excluded == name);
        well &= is_excluded || *passes;
        text.push_str(&match (is_excluded, passes) {
            (true, _) => format!("[+]{name} excluded: ok\n"),
            (false, true) => format!("[+]{name} ok\n"),
            (false, false) => format!("[-]{name} failed: reason withheld\n"),
        });
    }
    let unknown: Vec<String> = excluded
        .iter()
        .filter(|excluded| checks.iter().all(|(name, _)| name != excluded))
        .map(|excluded| format!("{excluded:?}"))
        .collect();
    if !unknown.is_empty() {
        let unknown = unknown.join(",");
        text.push_str(&format!("warn: some health checks cannot be excluded: no matches for {unknown}\n"));
    }
    Ok(match (well, asked("verbose").is_empty()) {
        (true, true) => (200, "ok".into()),
        (true, false) => (200, format!("{text}{endpoint} check passed\n")),
        (false, _) => (500, format!("{text}{endpoint} check failed\n")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks() {
        for (path, query, is_ending, expected) in [
            ("/healthz", "", false, (200, "ok")),
            ("/livez", "verbose", true, (200, "[+]ping ok\nlivez check passed\n")),
            ("/readyz", "verbose", false, (200, "[+]ping ok\n[+]shutdown ok\nreadyz check passed\n")),
            ("/readyz", "", true, (500, "[+]ping ok\n[-]shutdown failed: reason withheld\nreadyz check failed\n")),
            ("/readyz", "exclude=shutdown", true, (200, "ok")),
            (
                "/livez",
                "verbose&exclude=etcd",
                false,
                (
                    200,
                    "[+]ping ok\nwarn: some health checks cannot be excluded: no matches for \"etcd\"\nlivez check passed\n",
                ),
            ),
            ("/readyz/ping", "", true, (200, "ok")),
            ("/readyz/shutdown", "", true, (500, "internal server error: shutdown failed\n")),
        ] {
            let (code, text) = answer(path, query, is_ending).unwrap();
            assert_eq!((code, text.as_str()), expected, "{path}?{query}");
        }
        assert_eq!(answer("/livez/etcd", "", false).unwrap_err().code(), 404);
    }
}
