//! What a configuration asks of the kernel's connection tracking -> sysctls.
//!
//! Invariants: nothing is ever lowered, because somebody raised it for a reason; what cannot be set is told and no
//! reason to forward nothing. In a network namespace other than the first, the kernel keeps the table's size to itself.
//!
//! Source: Kubernetes `cmd/kube-proxy/app/{conntrack,server_linux}.go`; kernel `nf_conntrack-sysctl.rst`.

use std::path::Path;

use super::config::Conntrack;

/// The table's buckets, which the kernel keeps outside of the sysctls.
const BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";
/// Entries a bucket, as kube-proxy reckons.
const ENTRIES_A_BUCKET: u64 = 4;

/// A file and the least that should be in it.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    file: String,
    least: u64,
}

fn settings(asked: &Conntrack, cpus: u32) -> Vec<Setting> {
    let sysctl = |name: &str, least| Setting { file: format!("/proc/sys/net/netfilter/nf_conntrack_{name}"), least };
    let mut settings = Vec::new();
    if let Some(per_core) = asked.max_per_core {
        let max = (u64::from(per_core) * u64::from(cpus)).max(asked.min.into());
        settings.push(sysctl("max", max));
        settings.push(Setting { file: BUCKETS.to_owned(), least: max / ENTRIES_A_BUCKET });
    }
    let times = [
        ("tcp_timeout_established", asked.tcp_established),
        ("tcp_timeout_close_wait", asked.tcp_close_wait),
        ("udp_timeout", asked.udp),
        ("udp_timeout_stream", asked.udp_stream),
    ];
    settings.extend(times.iter().filter_map(|(name, time)| time.map(|time| sysctl(name, time.as_secs()))));
    if asked.tcp_be_liberal {
        settings.push(sysctl("tcp_be_liberal", 1));
    }
    settings
}

/// Raises what is lower than asked for.
pub(super) fn raise(asked: &Conntrack) {
    use nix::unistd::{SysconfVar, sysconf};
    let cpus = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().and_then(|cpus| u32::try_from(cpus).ok());
    for Setting { file, least } in settings(asked, cpus.unwrap_or(1)) {
        if let Err(error) = raise_one(Path::new(&file), least) {
            tracing::warn!("cannot raise {file} to {least}: {error}");
        }
    }
}

fn raise_one(file: &Path, least: u64) -> std::io::Result<()> {
    let found = std::fs::read_to_string(file)?.trim().parse::<u64>().map_err(std::io::Error::other)?;
    if found < least {
        tracing::info!("raising {} from {found} to {least}", file.display());
        std::fs::write(file, least.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn asked() -> Conntrack {
        Conntrack {
            max_per_core: Some(32_768),
            min: 131_072,
            tcp_established: Some(Duration::from_secs(86_400)),
            tcp_close_wait: None,
            tcp_be_liberal: false,
            udp: None,
            udp_stream: None,
        }
    }

    fn rows(asked: &Conntrack, cpus: u32) -> Vec<String> {
        let name = |file: &str| file.rsplit('/').next().unwrap_or_default().to_owned();
        settings(asked, cpus).iter().map(|setting| format!("{}={}", name(&setting.file), setting.least)).collect()
    }

    #[test]
    fn the_table_grows_with_the_machine() {
        let established = "nf_conntrack_tcp_timeout_established=86400";
        assert_eq!(rows(&asked(), 2), ["nf_conntrack_max=131072", "hashsize=32768", established]);
        assert_eq!(rows(&asked(), 64), ["nf_conntrack_max=2097152", "hashsize=524288", established]);
        let left_alone = Conntrack { max_per_core: None, tcp_established: None, tcp_be_liberal: true, ..asked() };
        assert_eq!(rows(&left_alone, 64), ["nf_conntrack_tcp_be_liberal=1"]);
    }

    #[test]
    fn nothing_is_lowered() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let shows = |least| {
            raise_one(file.path(), least).unwrap();
            std::fs::read_to_string(file.path()).unwrap()
        };
        std::fs::write(file.path(), "100\n").unwrap();
        assert_eq!(shows(99), "100\n");
        assert_eq!(shows(101), "101");
    }
}
