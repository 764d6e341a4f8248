//! What may go wrong between this process and the socket programs.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} is no directory of a cgroup v2 hierarchy; the socket programs are attached to one", path.display())]
    NoCgroup { path: PathBuf },
    #[error(
        "{} is not on a BPF file system, which keeps the socket programs over a restart; mount one: \
         mount -t bpf bpf /sys/fs/bpf", path.display()
    )]
    NoBpfFs { path: PathBuf },
    #[error("cannot use {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the kernel did not take the socket programs; they need Linux 5.18, CONFIG_CGROUP_BPF and CAP_BPF")]
    Load(#[source] Box<aya::EbpfError>),
    #[error("cannot attach {program} to {}", path.display())]
    Attach {
        program: String,
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot read {map} back")]
    Read {
        map: &'static str,
        #[source]
        source: Box<aya::maps::MapError>,
    },
    #[error("the kernel refused a write to {map}")]
    Write {
        map: &'static str,
        #[source]
        source: Box<aya::maps::MapError>,
    },
    #[error("{map} is full: the socket load balancer has room for {room}; nftables forwards the rest")]
    Full { map: &'static str, room: u32 },
    #[error("cannot learn which network namespace this is")]
    Namespace(#[source] std::io::Error),
    #[cfg(test)]
    #[error("injected")]
    Injected,
}
