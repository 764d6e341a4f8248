//! A container's probes: what to ask when, and what a run of answers means.
//!
//! Source: `pkg/kubelet/prober/worker.go`; thresholds count answers in a row, and an answer short of its threshold
//! changes nothing.

use std::time::Duration;

use http::uri::Authority;
use k8s_openapi::api::core::v1::{Container, Probe as ProbeSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    /// As Events write it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    Http { tls: bool, host: Option<String>, port: u16, path: String, headers: Vec<(String, String)> },
    Tcp { host: Option<String>, port: u16 },
    Grpc { port: u16, service: String },
    Exec { command: Vec<String> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) kind: Kind,
    pub(crate) check: Check,
    pub(crate) initial_delay: Duration,
    pub(crate) period: Duration,
    pub(crate) timeout: Duration,
    pub(crate) grace: Option<i64>,
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<bool>,
    run: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Succeeded,
    Failed,
}

impl Probe {
    fn new(kind: Kind, spec: &ProbeSpec, container: &Container) -> Option<Self> {
        let seconds = |value: Option<i32>, default: u32| {
            Duration::from_secs(u64::from(value.and_then(|n| u32::try_from(n).ok()).unwrap_or(default)))
        };
        let positive = |value: Option<i32>, default: u32| {
            value.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default)
        };
        Some(Self {
            kind,
            check: Check::of(spec, container)?,
            initial_delay: seconds(spec.initial_delay_seconds, 0),
            period: Duration::from_secs(u64::from(positive(spec.period_seconds, 10))),
            timeout: Duration::from_secs(u64::from(positive(spec.timeout_seconds, 1))),
            grace: spec.termination_grace_period_seconds,
            success_threshold: positive(spec.success_threshold, 1),
            failure_threshold: positive(spec.failure_threshold, 3),
            last: None,
            run: 0,
        })
    }

    /// Takes in one answer; says what is now certain. Counting starts again after a failure that kills a container.
    pub(crate) fn observe(&mut self, success: bool) -> Option<Verdict> {
        self.run = if self.last == Some(success) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        if self.run < threshold {
            return None;
        }
        Some(if success { Verdict::Succeeded } else { Verdict::Failed })
    }
}

impl Check {
    fn of(spec: &ProbeSpec, container: &Container) -> Option<Self> {
        if let Some(exec) = &spec.exec {
            return Some(Self::Exec { command: exec.command.clone().unwrap_or_default() });
        }
        if let Some(http) = &spec.http_get {
            return Self::http(http, container);
        }
        if let Some(tcp) = &spec.tcp_socket {
            return Some(Self::Tcp { host: tcp.host.clone(), port: port(&tcp.port, container)? });
        }
        let grpc = spec.grpc.as_ref()?;
        Some(Self::Grpc { port: u16::try_from(grpc.port).ok()?, service: grpc.service.clone().unwrap_or_default() })
    }

    pub(crate) fn http(get: &k8s_openapi::api::core::v1::HTTPGetAction, container: &Container) -> Option<Self> {
        let path = get.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
        Some(Self::Http {
            tls: get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("HTTPS")),
            host: get.host.clone().filter(|host| !host.is_empty()),
            port: port(&get.port, container)?,
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            headers: get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
        })
    }

    /// The question that `location` leads to, in an answer of `host`, if that is the same host.
    pub(crate) fn redirected(&self, host: &str, location: &str) -> Option<Self> {
        let Self::Http { tls, port, path, .. } = self else { return None };
        let location = location.split('#').next().unwrap_or_default();
        let absolute = [("https://", true), ("http://", false), ("//", *tls)]
            .into_iter()
            .find_map(|(scheme, tls)| Some((tls, location.strip_prefix(scheme)?)));
        let (to_tls, to_port, to_path) = match absolute {
            Some((tls, rest)) => {
                let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
                let authority: Authority = authority.parse().ok()?;
                if !authority.host().trim_matches(['[', ']']).eq_ignore_ascii_case(host) {
                    return None;
                }
                let slash = if path.starts_with('/') { "" } else { "/" };
                (tls, authority.port_u16().unwrap_or(if tls { 443 } else { 80 }), format!("{slash}{path}"))
            }
            None if location.starts_with('/') => (*tls, *port, location.to_owned()),
            None => {
                let path = path.split('?').next().unwrap_or_default();
                let end = if location.starts_with('?') { path.len() } else { path.rfind('/').map_or(0, |at| at + 1) };
                (*tls, *port, format!("{}{location}", &path[..end]))
            }
        };
        let mut next = self.clone();
        if let Self::Http { tls, port, path, .. } = &mut next {
            (*tls, *port, *path) = (to_tls, to_port, to_path);
        }
        Some(next)
    }
}

fn port(port: &IntOrString, container: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match container.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name)) {
            Some(port) => port.container_port,
            None => name.parse().ok()?,
        },
    };
    u16::try_from(number).ok().filter(|number| *number > 0)
}

/// The container's probes. One whose port has a name that the container does not know is left out, and never
/// succeeds: the second value names those.
pub(crate) fn probes(container: &Container) -> (Vec<Probe>, Vec<Kind>) {
    let all = [
        (Kind::Startup, &container.startup_probe),
        (Kind::Liveness, &container.liveness_probe),
        (Kind::Readiness, &container.readiness_probe),
    ];
    let (mut probes, mut broken) = (Vec::new(), Vec::new());
    for (kind, spec) in all {
        let Some(spec) = spec else { continue };
        match Probe::new(kind, spec, container) {
            Some(probe) => probes.push(probe),
            None => broken.push(kind),
        }
    }
    (probes, broken)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ContainerPort, HTTPGetAction, TCPSocketAction};

    use super::*;

    fn container(probe: ProbeSpec) -> Container {
        Container {
            ports: Some(vec![ContainerPort { name: Some("web".into()), container_port: 8080, ..Default::default() }]),
            readiness_probe: Some(probe),
            ..Default::default()
        }
    }

    fn tcp(port: IntOrString) -> ProbeSpec {
        ProbeSpec { tcp_socket: Some(TCPSocketAction { port, host: None }), ..Default::default() }
    }

    /// `.` and `x` are answers; the verdict of each is `S`, `F`, or `-` for none yet.
    fn check(success: i32, failure: i32, answers: &str, verdicts: &str) {
        let spec = ProbeSpec {
            success_threshold: Some(success),
            failure_threshold: Some(failure),
            ..tcp(IntOrString::Int(1))
        };
        let mut probe = probes(&container(spec)).0.remove(0);
        let got: String = answers
            .chars()
            .map(|answer| match probe.observe(answer == '.') {
                Some(Verdict::Succeeded) => 'S',
                Some(Verdict::Failed) => 'F',
                None => '-',
            })
            .collect();
        assert_eq!(got, verdicts, "success {success}, failure {failure}, {answers}");
    }

    #[test]
    fn thresholds_count_answers_in_a_row() {
        check(1, 3, "..x.", "SS-S");
        check(1, 3, "xxxx.", "--FFS");
        check(1, 3, "xx.xx", "--S--");
        check(2, 1, ".x..", "-F-S");
        check(1, 1, "x.x", "FSF");
    }

    #[test]
    fn ports_by_name_number_and_nonsense() {
        let probe = |port| probes(&container(tcp(port)));
        let ports = |port| probe(port).0.into_iter().map(|probe| probe.check).collect::<Vec<_>>();
        assert_eq!(ports(IntOrString::String("web".into())), [Check::Tcp { host: None, port: 8080 }]);
        assert_eq!(ports(IntOrString::String("81".into())), [Check::Tcp { host: None, port: 81 }]);
        assert_eq!(ports(IntOrString::Int(82)), [Check::Tcp { host: None, port: 82 }]);
        assert_eq!(probe(IntOrString::String("admin".into())).1, [Kind::Readiness]);
        assert_eq!(probe(IntOrString::Int(0)).1, [Kind::Readiness]);
    }

    #[test]
    fn defaults_are_the_kubelets() {
        let get = HTTPGetAction { port: IntOrString::Int(80), path: Some("healthz".into()), ..Default::default() };
        let probe = probes(&container(ProbeSpec { http_get: Some(get), ..Default::default() })).0.remove(0);
        let seconds = [probe.initial_delay, probe.period, probe.timeout].map(|duration| duration.as_secs());
        assert_eq!((seconds, probe.success_threshold, probe.failure_threshold), ([0, 10, 1], 1, 3));
        assert!(matches!(probe.check, Check::Http { tls: false, path, .. } if path == "/healthz"));
    }

    #[test]
    fn redirections_are_followed_on_the_same_host() {
        let check = Check::Http { tls: false, host: None, port: 80, path: "/a/b?c".into(), headers: Vec::new() };
        for (location, expected) in [
            ("/x?y#z", Some("http 80 /x?y")),
            ("x", Some("http 80 /a/x")),
            ("?x", Some("http 80 /a/b?x")),
            ("http://10.0.0.1/x", Some("http 80 /x")),
            ("https://10.0.0.1", Some("https 443 /")),
            ("//10.0.0.1:8080?x", Some("http 8080 /?x")),
            ("http://example.com/x", None),
        ] {
            let next = check.redirected("10.0.0.1", location).map(|next| match next {
                Check::Http { tls, port, path, .. } => format!("{} {port} {path}", if tls { "https" } else { "http" }),
                other => format!("{other:?}"),
            });
            assert_eq!(next.as_deref(), expected, "{location}");
        }
    }
}
