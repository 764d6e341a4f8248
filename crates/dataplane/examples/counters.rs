//! What counting costs: `iperf3` from one namespace through a node to another by a ClusterIP, with and without counters
//! in turns. Needs root and `iperf3`.
//!
//!     cargo run --release -p portolan-dataplane --example counters -- 7
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a measurement that cannot be set up has nothing to say, and iperf3 is a program"
)]

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use portolan_dataplane::{DataPlane, LocalTraffic, ProxyConfig};
use portolan_model::{Event, Snapshot, translate};
use portolan_testkit::{Netns, cable};
use serde_json::{Value, json};

const CLUSTER_IP: &str = "10.96.0.1";
const SERVER: &str = "10.244.1.2";

fn main() -> anyhow::Result<()> {
    let rounds = std::env::args().nth(1).map_or(Ok(7), |argument| argument.parse::<usize>())?;
    let (node, client, server) = (Netns::new(), Netns::new(), Netns::new());
    for (machine, link, subnet) in [(&client, "client", 0), (&server, "server", 1)] {
        cable((&node, link), (machine, "eth0"));
        node.address(link, format!("10.244.{subnet}.1/24").parse()?);
        machine.address("eth0", format!("10.244.{subnet}.2/24").parse()?);
        machine.route("0.0.0.0/0".parse()?, format!("10.244.{subnet}.1").parse()?, "eth0");
    }
    let snapshot = snapshot()?;
    for (what, arguments) in [
        ("TCP, bits/s", &["-c", CLUSTER_IP, "-t", "2", "-J"][..]),
        ("UDP of 64 bytes, packets/s", &["-c", CLUSTER_IP, "-t", "2", "-J", "-u", "-b", "0", "-l", "64"]),
    ] {
        let mut measured = [Vec::new(), Vec::new()];
        for round in 0..rounds * 2 {
            let counters = round % 2 == 1;
            let local = LocalTraffic::ClusterCidr(vec!["10.244.0.0/16".parse()?]);
            let config = ProxyConfig { counters, ..ProxyConfig::new("node", local) };
            // What it leaves in the kernel is what is measured.
            let refused = node.block_on(|| async {
                Ok::<_, anyhow::Error>(DataPlane::open(config).await?.synced(&snapshot).await.refused)
            })?;
            anyhow::ensure!(refused.is_empty(), "refused: {refused:?}");
            let _server = Server::start(&server, &client)?;
            measured[usize::from(counters)].push(run(&client, arguments)?);
        }
        let [without, with] = measured.map(|mut figures| {
            figures.sort_by(f64::total_cmp);
            (figures[figures.len() / 2], figures[figures.len() - 1])
        });
        println!(
            "{what}: without {:.3e} (at best {:.3e}), with {:.3e} ({:.3e}): {:.3} ({:.3}); medians of {rounds}",
            without.0,
            without.1,
            with.0,
            with.1,
            with.0 / without.0,
            with.1 / without.1
        );
    }
    Ok(())
}

fn run(client: &Netns, arguments: &[&str]) -> anyhow::Result<f64> {
    let output = client.command("iperf3", arguments).context("iperf3 is not installed")?;
    anyhow::ensure!(output.status.success(), "iperf3: {}", String::from_utf8_lossy(&output.stdout));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let figure = |sum: &str, field: &str| report["end"][sum][field].as_f64().unwrap_or_default();
    Ok(match arguments.contains(&"-u") {
        true => (figure("sum", "packets") - figure("sum", "lost_packets")) / figure("sum", "seconds"),
        false => figure("sum_received", "bits_per_second"),
    })
}

/// An `iperf3` that serves until dropped.
struct Server(Child);

impl Server {
    fn start(netns: &Netns, client: &Netns) -> anyhow::Result<Self> {
        let server = netns.run(|| Command::new("iperf3").arg("-s").stdout(Stdio::null()).stderr(Stdio::null()).spawn());
        let server = Self(server.context("iperf3 is not installed")?);
        let deadline = Instant::now() + Duration::from_secs(5);
        while !client.run(|| TcpStream::connect((SERVER, 5201)).is_ok()) {
            anyhow::ensure!(Instant::now() < deadline, "iperf3 does not listen");
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn snapshot() -> anyhow::Result<Snapshot> {
    let ports = |port: &str| json!([{"name": "tcp", "port": 5201}, {"name": "udp", "port": 5201, "protocol": port}]);
    let service = json!({"metadata": {"namespace": "bench", "name": "iperf"},
        "spec": {"clusterIPs": [CLUSTER_IP], "ports": ports("UDP")}});
    let slice = json!({"metadata": {"namespace": "bench", "name": "iperf-1", "labels": {"kubernetes.io/service-name": "iperf"}},
        "addressType": "IPv4", "ports": ports("UDP"), "endpoints": [{"addresses": [SERVER]}]});
    let mut snapshot = Snapshot::default();
    snapshot.apply(Event::Service(translate::service(&serde_json::from_value(service)?).unwrap().0));
    snapshot.apply(Event::Slice(translate::endpoint_slice(&serde_json::from_value(slice)?).unwrap().0));
    Ok(snapshot)
}
