//! `portolan image`: archives of images -> the store that the nodes of a cluster on this machine take them from.

use std::path::{Path, PathBuf};

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

/// What a person types to import an archive into the store of this cluster, but for the archive.
pub(crate) fn import_command(data_dir: &Path) -> String {
    let mut command = "portolan image import".to_owned();
    if data_dir != Path::new(data_dir::DEFAULT) {
        let directory = data_dir.display().to_string();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@".contains(&byte);
        let quoted = match directory.bytes().all(plain) {
            true => directory,
            // As a shell takes it literally.
            false => format!("'{}'", directory.replace('\'', r"'\''")),
        };
        command.push_str(" --data-dir ");
        command.push_str(&quoted);
    }
    command
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_can_be_pasted_into_a_shell() {
        for (directory, command) in [
            (data_dir::DEFAULT, "portolan image import"),
            ("/srv/shop", "portolan image import --data-dir /srv/shop"),
            ("/srv/Ann's shop", r"portolan image import --data-dir '/srv/Ann'\''s shop'"),
        ] {
            assert_eq!(import_command(Path::new(directory)), command);
        }
    }
}
