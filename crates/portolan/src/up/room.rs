//! The power switches: which node runs, and what follows from one stopping.
//!
//! Invariant: a node whose power is off has its cable pulled, so that its kernel cannot answer for it; one that is
//! switched on again finds its disk as it was and its network as after a boot.

use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::stream::{FuturesUnordered, StreamExt};
use nix::sys::signal::Signal;
use nlink::netlink::namespace::Netns;
use portolan_apiserver::{ApiServer, User};

use super::control::{NodeLine, Request, Response};
use super::fabric::{Fabric, HostLink};
use super::plan::{CGROUP, NodePlan, Plan, UPLINK};
use super::spawn::NodeProcess;
use super::{Arguments, cgroup, data_dir};
use crate::{agent, images, node_init};

/// How long an ordered shutdown may take: the agent leaves every Service (1 s at most), and pods get 3 s and 2 s more
/// for a hook that used them up. Then the power goes.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(8);
/// A node's log that grew beyond this is moved to `log.old`, and begins anew.
const LARGEST_LOG: u64 = 4 << 20;
const KUBELET_PORT: u16 = 10250;

/// What is on a node's disk before it is switched on.
pub(crate) struct NodeSettings {
    node: NodePlan,
    config: PathBuf,
    log: PathBuf,
}

impl NodeSettings {
    /// Writes the node's identity and its agent's configuration.
    pub(crate) fn write(
        arguments: &Arguments,
        plan: &Plan,
        node: &NodePlan,
        server: &ApiServer,
        server_url: &str,
    ) -> Result<Self> {
        let directory = data_dir::node(&arguments.data_dir, &node.name);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let kubeconfig = directory.join("kubeconfig");
        let user = User::node(&node.name);
        data_dir::write_private(&kubeconfig, server.kubeconfig(server_url, &user)?.as_bytes())?;
        let identity = server.certificate(&user)?;
        let config = agent::Config {
            node_name: node.name.clone(),
            node_address: node.address.into(),
            uplink: UPLINK.to_owned(),
            kubeconfig,
            state_dir: directory.join("state"),
            image_dir: data_dir::images(&arguments.data_dir),
            import_command: images::import_command(&arguments.data_dir),
            cgroup_parent: format!("/{CGROUP}/{}/pods", node.name),
            socket_lb: arguments.socket_lb.then(|| format!("/{CGROUP}/{}", node.name)),
            socket_lb_end_tcp_after_seconds: arguments.socket_lb_end_tcp_after,
            metrics_bind_address: arguments.metrics_bind_address,
            cluster_dns: vec![plan.cluster_dns.into()],
            cluster_domain: arguments.cluster_domain.clone(),
            pod_cidrs: vec![plan.pod_cidr.into()],
            dns_upstreams: vec![(plan.control(), 53).into()],
            kubelet_port: KUBELET_PORT,
            serving_certificate_pem: identity.certificate,
            serving_key_pem: identity.key,
            ca_pem: server.ca().to_owned(),
        };
        let path = directory.join("agent.json");
        data_dir::write_private(&path, &serde_json::to_vec_pretty(&config)?)?;
        Ok(Self { node: node.clone(), config: path, log: directory.join("log") })
    }
}

struct Slot {
    settings: NodeSettings,
    process: Option<NodeProcess>,
}

pub(crate) struct MachineRoom {
    fabric: Fabric,
    prefix: u8,
    slots: Vec<Slot>,
    host_link: Option<HostLink>,
}

impl MachineRoom {
    pub(crate) fn new(fabric: Fabric, prefix: u8, nodes: Vec<NodeSettings>, host_link: Option<HostLink>) -> Self {
        let slots = nodes.into_iter().map(|settings| Slot { settings, process: None }).collect();
        Self { fabric, prefix, slots, host_link }
    }

    pub(crate) async fn start_all(&mut self) -> Result<()> {
        for slot in &mut self.slots {
            slot.switch_on()?;
        }
        self.reroute_host(None).await
    }

    /// Shuts all nodes down in order, and switches off those that do not end in time.
    pub(crate) async fn stop_all(&mut self) {
        for slot in &self.slots {
            if let Some(process) = &slot.process {
                // One that is gone already is what was wanted.
                let _ = process.signal(Signal::SIGPWR);
            }
        }
        let deadline = tokio::time::Instant::now() + SHUTDOWN_GRACE;
        for slot in &mut self.slots {
            slot.end_by(deadline).await;
        }
    }

    /// Waits for a node to lose its power by other means than [`Self::handle`]. Returns its index.
    pub(crate) async fn node_exited(&self) -> usize {
        let mut running: FuturesUnordered<_> = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| {
                let process = slot.process.as_ref()?;
                Some(async move {
                    // Failing to wait means there is nothing to wait for.
                    let _ = process.exited().await;
                    index
                })
            })
            .collect();
        match running.next().await {
            Some(index) => index,
            None => std::future::pending().await,
        }
    }

    pub(crate) async fn lost_power(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.process = None;
            let name = slot.settings.node.name.clone();
            tracing::warn!("{name} lost its power; switch it on with `portolan node start {name}`");
            if let Err(error) = self.isolate(index).await {
                tracing::warn!("cannot pull the cable of {name}: {error:#}");
            }
        }
    }

    /// Keeps a node that complains for days from filling the disk.
    pub(crate) fn bound_logs(&self) {
        for slot in &self.slots {
            if let Err(error) = bound_log(&slot.settings.log, LARGEST_LOG) {
                tracing::warn!(%error, "cannot shorten {}", slot.settings.log.display());
            }
        }
    }

    pub(crate) async fn handle(&mut self, request: Request) -> Response {
        let outcome = match request {
            Request::List => return Response::Nodes(self.list()),
            Request::Stop { node, power_off } => self.stop(&node, power_off).await,
            Request::Start { node } => self.start(&node).await,
        };
        match outcome {
            Ok(done) => Response::Done(done),
            Err(error) => Response::Refused(format!("{error:#}")),
        }
    }

    fn list(&self) -> Vec<NodeLine> {
        let line = |slot: &Slot| NodeLine {
            name: slot.settings.node.name.clone(),
            address: slot.settings.node.address.to_string(),
            namespace: slot.settings.node.namespace(),
            pid: slot.process.as_ref().map(|process| process.pid),
        };
        self.slots.iter().map(line).collect()
    }

    fn find(&self, name: &str) -> Result<usize> {
        self.slots.iter().position(|slot| slot.settings.node.name == name).with_context(|| {
            let names: Vec<_> = self.slots.iter().map(|slot| slot.settings.node.name.as_str()).collect();
            format!("there is no node {name:?}; there are {}", names.join(", "))
        })
    }

    async fn stop(&mut self, name: &str, power_off: bool) -> Result<String> {
        let index = self.find(name)?;
        if self.slots[index].process.is_none() {
            return Ok(format!("{name} is off already"));
        }
        if power_off {
            // The cable first: in a power cut nothing gets out any more, not even a reset from the dying kernel.
            self.fabric.set_port(&self.slots[index].settings.node, false).await?;
        } else if let Some(process) = &self.slots[index].process {
            // The host goes another way from now on, as Services do once the node says that it leaves.
            self.reroute_host(Some(index)).await?;
            process.signal(Signal::SIGPWR)?;
        }
        let grace = if power_off { Duration::ZERO } else { SHUTDOWN_GRACE };
        self.slots[index].end_by(tokio::time::Instant::now() + grace).await;
        self.isolate(index).await?;
        Ok(format!("{name} is off"))
    }

    async fn isolate(&mut self, index: usize) -> Result<()> {
        self.fabric.set_port(&self.slots[index].settings.node, false).await?;
        self.reroute_host(None).await
    }

    async fn start(&mut self, name: &str) -> Result<String> {
        let index = self.find(name)?;
        if self.slots[index].process.is_some() {
            return Ok(format!("{name} runs already"));
        }
        self.fabric.renew_node(&self.slots[index].settings.node, self.prefix).await?;
        self.slots[index].switch_on()?;
        self.reroute_host(None).await?;
        Ok(format!("{name} is on"))
    }

    /// The host's route to the Services leads through the first node that runs, but for one that is about to stop.
    async fn reroute_host(&self, leaving: Option<usize>) -> Result<()> {
        let mut running = self.slots.iter().enumerate().filter(|(_, slot)| slot.process.is_some());
        match (&self.host_link, running.find(|(index, _)| Some(*index) != leaving)) {
            (Some(link), Some((_, slot))) => link.route_through(slot.settings.node.address).await,
            _ => Ok(()),
        }
    }
}

impl Slot {
    fn switch_on(&mut self) -> Result<()> {
        let NodeSettings { node, config, log } = &self.settings;
        let network = Netns::open(&node.namespace())?;
        let log = File::options().create(true).append(true).open(log)?;
        let arguments = node_init::command_line(&node.name, config);
        let process = NodeProcess::spawn(&arguments, &network, &log, |pid| cgroup::enroll(&node.name, pid))
            .with_context(|| format!("cannot start {}", node.name))?;
        self.process = Some(process);
        Ok(())
    }

    async fn end_by(&mut self, deadline: tokio::time::Instant) {
        let Some(process) = self.process.take() else { return };
        if tokio::time::timeout_at(deadline, process.exited()).await.is_err() {
            let _ = process.signal(Signal::SIGKILL);
            let _ = process.exited().await;
        }
    }
}

/// The writers append, so they go on at the new end.
fn bound_log(path: &Path, largest: u64) -> io::Result<()> {
    let log = File::options().write(true).open(path)?;
    if log.metadata()?.len() > largest {
        std::fs::copy(path, path.with_extension("old"))?;
        log.set_len(0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_log_that_grew_begins_anew_under_its_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut writer = File::options().create(true).append(true).open(&path).unwrap();
        writer.write_all(b"0123456789").unwrap();
        bound_log(&path, 10).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"0123456789", "not larger than allowed");
        writer.write_all(b"a").unwrap();
        bound_log(&path, 10).unwrap();
        writer.write_all(b"next").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"next");
        assert_eq!(std::fs::read(directory.path().join("log.old")).unwrap(), b"0123456789a");
    }
}
