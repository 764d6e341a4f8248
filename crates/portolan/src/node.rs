//! `portolan node`: the power switches of a running cluster's nodes, from another shell.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::up::control::{self, Request, Response};
use crate::up::data_dir;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// The nodes, their addresses, and whether they are on
    List(Cluster),
    /// Shut a node down in order, or cut its power
    Stop {
        #[command(flatten)]
        cluster: Cluster,
        /// As in a power cut: everything in it stops at once, with no goodbye
        #[arg(long)]
        power_off: bool,
        /// The node's name
        name: String,
    },
    /// Switch a node on
    Start {
        #[command(flatten)]
        cluster: Cluster,
        /// The node's name
        name: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Cluster {
    /// The data directory that the cluster was started with
    #[arg(long, default_value = data_dir::DEFAULT)]
    data_dir: PathBuf,
}

pub(crate) fn run(command: Command) -> Result<()> {
    let (cluster, request) = match command {
        Command::List(cluster) => (cluster, Request::List),
        Command::Stop { cluster, power_off, name } => (cluster, Request::Stop { node: name, power_off }),
        Command::Start { cluster, name } => (cluster, Request::Start { node: name }),
    };
    match control::ask(&cluster.data_dir, &request)? {
        Response::Nodes(nodes) => {
            println!("{:<10} {:<15} {:<5} {:<8} NAMESPACE", "NAME", "ADDRESS", "POWER", "PID");
            for node in nodes {
                let (power, pid) = node.pid.map_or(("off", "-".to_owned()), |pid| ("on", pid.to_string()));
                println!("{:<10} {:<15} {power:<5} {pid:<8} {}", node.name, node.address, node.namespace);
            }
        }
        Response::Done(done) => println!("{done}"),
        Response::Refused(reason) => bail!(reason),
    }
    Ok(())
}
