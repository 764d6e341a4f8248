//! What may go wrong between this process and the kernel.

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot open a netlink socket for {what}; are nf_tables and nf_conntrack available, and CAP_NET_ADMIN held?"
    )]
    Socket {
        what: &'static str,
        #[source]
        source: Box<nlink::Error>,
    },
    #[error("cannot read {what} back from the kernel")]
    Read {
        what: String,
        #[source]
        source: Box<nlink::Error>,
    },
    #[error("the kernel refused {what}")]
    Refused {
        what: String,
        #[source]
        source: Box<nlink::Error>,
    },
    #[error(transparent)]
    Sockets(#[from] crate::sock::Error),
    #[error("another proxy{} forwards Services in this network namespace already; stop it first", by(*.pid, .command))]
    Taken {
        pid: Option<i32>,
        /// Its command line; empty where it cannot be read.
        command: String,
    },
    #[error("cannot tell whether another proxy runs in this network namespace")]
    Lock(#[source] std::io::Error),
    #[error("cannot set {key} to {value}")]
    Sysctl {
        key: &'static str,
        value: &'static str,
        #[source]
        source: std::io::Error,
    },
}

fn by(pid: Option<i32>, command: &str) -> String {
    match pid {
        Some(pid) if command.is_empty() => format!(" (process {pid})"),
        Some(pid) => format!(" (process {pid}: {command})"),
        None => String::new(),
    }
}

impl Error {
    /// The kernel holds something else than was thought: an element that should be there is not, or the reverse.
    pub(crate) fn is_drift(&self) -> bool {
        match self {
            Self::Refused { source, .. } => source.is_not_found() || source.is_already_exists() || source.is_busy(),
            _ => false,
        }
    }
}
