//! `portolan proxy`: the data plane alone, on a node of any Kubernetes cluster, in kube-proxy's place.
//!
//! Invariants: it reads what kube-proxy reads, its configuration included, and needs no more rights than kube-proxy's
//! role has, but for pods that want to be left out of socket load balancing; it forwards for the network namespace it
//! runs in, and leaves what it made there when it ends, so that connections and rules outlive an upgrade. `--cleanup`
//! removes it.
//!
//! Deliberately not here: what kube-proxy made. Whoever changes over runs `kube-proxy --cleanup` first.

mod changed;
mod config;
mod conntrack;
mod left_out;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use portolan_client::{Scope, connect_from};
use portolan_dataplane::sock::{Capacity, SockConfig};
use portolan_dataplane::{DataPlane, ProxyConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{plane, sockets};
use config::{Configuration, Flags};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A KubeProxyConfiguration file; most flags have no effect beside it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write the configuration that the flags or the file come to as a KubeProxyConfiguration, and end
    #[arg(long, value_name = "FILE")]
    write_config_to: Option<PathBuf>,
    /// The name of the Node that this runs on [default: this machine's]
    #[arg(long, value_name = "NODE")]
    hostname_override: Option<String>,
    /// Where the API server is, whatever the kubeconfig says
    #[arg(long, value_name = "URL")]
    master: Option<String>,
    /// Remove everything that this ever made in this network namespace, and end
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set, value_name = "true|false")]
    cleanup: bool,
    /// Do what takes all of root's rights, and end; after that, CAP_NET_ADMIN is enough
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set, value_name = "true|false")]
    init_only: bool,
    /// Lead the sockets of processes here to backends when they connect, so that their packets need no translation
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "true|false")]
    socket_lb: bool,
    /// Whose sockets: a cgroup v2, by its path below the hierarchy's root [default: /, everybody's, if this is the
    /// machine's own network namespace, and otherwise nobody's]
    #[arg(long, value_name = "PATH")]
    socket_lb_cgroup: Option<String>,
    /// Where the kubelet makes its pods' cgroups, by a path below the v2 hierarchy's root; it matters where the kubelet
    /// has a cgroupRoot, and for pods that ask not to be led
    #[arg(long, default_value = "/", value_name = "PATH")]
    socket_lb_pods_cgroup: String,
    /// End TCP connections of led sockets so long after their backend left the Service; it breaks clients that wait for
    /// what the backend is still finishing [default: never]
    #[arg(long, value_name = "SECONDS")]
    socket_lb_end_tcp_after: Option<u64>,
    /// Count each Service's connections, packets and bytes, for /metrics; it costs every packet a little
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set, value_name = "true|false")]
    service_counters: bool,
    #[command(flatten)]
    flags: Flags,
}

impl Arguments {
    /// Whose sockets are this proxy's business.
    fn cgroup(&self) -> Option<&str> {
        self.socket_lb_cgroup.as_deref().or_else(|| is_machines_own_network().then_some("/"))
    }
}

/// Whether this is the network namespace of the first process. If it is not, the sockets of others are not this one's
/// business, whichever cgroup they are in.
fn is_machines_own_network() -> bool {
    let namespace = |process: &str| std::fs::metadata(format!("/proc/{process}/ns/net")).map(|found| found.ino());
    namespace("self").is_ok_and(|own| namespace("1").is_ok_and(|first| own == first))
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    if arguments.cleanup {
        portolan_dataplane::cleanup().await.context("cannot remove what a proxy left here")?;
        if arguments.cgroup().is_some() {
            sockets::cleanup().context("cannot take off the programs that lead sockets")?;
        }
        return Ok(());
    }
    let text = match &arguments.config {
        Some(path) => Some(std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?),
        None => None,
    };
    let configuration = read(&arguments, text.as_deref())?;
    for warning in &configuration.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(path) = &arguments.write_config_to {
        let text = config::write(&configuration).context("cannot say the configuration in YAML")?;
        return std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()));
    }
    let node_name = match arguments.hostname_override.as_deref().map(str::trim) {
        Some("") => anyhow::bail!("--hostname-override is empty; name the Node that this runs on, or leave it out"),
        Some(name) => name.to_lowercase(),
        None => match &configuration.node_name {
            Some(name) => name.clone(),
            None => {
                nix::unistd::gethostname().context("cannot read this machine's name")?.to_string_lossy().to_lowercase()
            }
        },
    };
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", configuration.oom_score_adj.to_string()) {
        tracing::warn!("cannot set how much to be spared when memory runs out: {error}");
    }
    let client = match arguments.init_only {
        true => None,
        false => Some(connect_from(configuration.kubeconfig.as_deref(), arguments.master.as_deref()).await?),
    };
    let cgroup = arguments.cgroup();
    let end_tcp_after = arguments.socket_lb_end_tcp_after.map(Duration::from_secs);
    let sockets = cgroup
        .filter(|_| arguments.socket_lb)
        .and_then(|cgroup| sockets::config(Some(cgroup), Capacity::default()))
        .map(|sockets| SockConfig { end_tcp_after, ..sockets });
    let exempt = sockets.as_ref().map(|sockets| sockets.exempt.clone());
    let kernel = DataPlane::open(ProxyConfig {
        masquerade_all: configuration.masquerade_all,
        masquerade_bit: configuration.masquerade_bit,
        node_port_addresses: configuration.node_port_addresses.clone(),
        counters: arguments.service_counters,
        sockets,
        ..ProxyConfig::new(&node_name, configuration.local.clone())
    })
    .await
    .context("cannot take over this node's Service forwarding")?;
    // What an earlier run attached, and only now that it is certain to have ended.
    if !arguments.socket_lb && cgroup.is_some() {
        sockets::cleanup().context("cannot take off the programs that lead sockets")?;
    }
    // Only now: the kernel knows of connection tracking since somebody asked for it.
    conntrack::raise(&configuration.conntrack);
    let Some(client) = client else { return Ok(()) };
    let leaving_out = {
        let (client, node_name, parent) = (client.clone(), node_name.clone(), arguments.socket_lb_pods_cgroup.clone());
        async move {
            if let Some(exempt) = exempt {
                left_out::run(&client, &node_name, &parent, exempt).await;
            }
            std::future::pending::<()>().await;
        }
    };
    let settings = plane::Settings {
        scope: Scope::Proxy { node: node_name.clone() },
        node_name,
        audit_period: configuration.sync_period,
        healthz: configuration.healthz,
        metrics: configuration.metrics,
        must_bind: configuration.must_bind,
    };
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = CancellationToken::new();
    let mut running = std::pin::pin!(plane::run(client, settings, kernel, (), shutdown.clone()));
    tokio::select! {
        ended = &mut running => return ended,
        () = leaving_out => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        path = other_configuration(arguments.config.as_deref(), text.as_deref()) => {
            shutdown.cancel();
            running.await?;
            anyhow::bail!("{} has changed; ending, to be started again and go by it", path.display());
        }
    }
    shutdown.cancel();
    running.await
}

/// Waits until the file says something else than it did.
async fn other_configuration<'a>(path: Option<&'a Path>, text: Option<&str>) -> &'a Path {
    if let Some((path, text)) = path.zip(text) {
        match changed::changed(path, text).await {
            Ok(()) => return path,
            Err(error) => tracing::warn!("changes of {} will not be noticed: {error}", path.display()),
        }
    }
    std::future::pending().await
}

fn read(arguments: &Arguments, text: Option<&str>) -> Result<Configuration> {
    let Some((path, text)) = arguments.config.as_deref().zip(text) else {
        return Ok(config::from_flags(&arguments.flags)?);
    };
    config::from_file(text, &arguments.flags)
        .with_context(|| format!("the configuration in {} cannot be used", path.display()))
}
