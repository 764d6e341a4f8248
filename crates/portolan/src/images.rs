//! `portolan image`: archives of images -> the store that the nodes of a cluster on this machine take them from.

use std::path::PathBuf;

use anyhow::{Context, Result};
use portolan_node::image::Store;

use crate::up::data_dir;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Take in the images of an archive that `docker save`, `podman save` or `skopeo copy` wrote
    Import {
        #[command(flatten)]
        cluster: Cluster,
        /// A tar file in Docker's or the OCI's layout
        archive: PathBuf,
    },
    /// The images that pods can use
    List(Cluster),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Cluster {
    /// The cluster's data directory; it need not be running
    #[arg(long, default_value = data_dir::DEFAULT)]
    data_dir: PathBuf,
}

impl Cluster {
    fn store(&self) -> Result<Store> {
        let directory = data_dir::images(&self.data_dir);
        Store::open(&directory).with_context(|| format!("cannot open the image store {}", directory.display()))
    }
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Import { cluster, archive } => {
            let imported = cluster.store()?.import(&archive);
            for image in imported.with_context(|| format!("cannot import {}", archive.display()))? {
                println!("imported {} ({})", image.name, image.id);
            }
        }
        Command::List(cluster) => {
            for image in cluster.store()?.list()? {
                println!("{:<50} {:>8.1} MB  {}", image.name, image.size as f64 / 1e6, image.id);
            }
        }
    }
    Ok(())
}
