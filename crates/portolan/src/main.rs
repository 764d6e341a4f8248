//! The `portolan` binary: which command does what. Everything it can do stands in a module or crate of its own.

mod agent;
mod backup;
mod clean;
mod demo;
mod explain;
mod fence;
mod images;
mod leave;
mod memory;
mod node;
mod node_init;
mod plane;
mod proxy;
mod service_plane;
mod sockets;
mod trace;
mod up;
mod workload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// `nlink` warns of every refusal of the kernel's, also of those that are the answer to a question; `kube_client` of
/// every failed connection, which whoever asked for it says in its own words.
const DEFAULT_LOG: &str = "info,nlink=error,kube_client=off";

/// Kubernetes Services, whole, in one binary
#[derive(Debug, Parser)]
#[command(version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole cluster on this machine, in the foreground
    Up(up::Arguments),
    /// Show what Services do, with real pods, real traffic and a node that dies
    Demo(demo::Arguments),
    /// Say where a Service's addresses lead right now, and if it does not work, why
    Explain(explain::Arguments),
    /// Say what a node's kernel does with a connection, rule by rule, and where it may end
    Trace(trace::Arguments),
    /// Switch the nodes of a running cluster on and off
    #[command(subcommand)]
    Node(node::Command),
    /// Bring images to the nodes
    #[command(subcommand)]
    Image(images::Command),
    /// Write everything that a cluster is, running or not, into one file
    Backup(backup::Arguments),
    /// Make a cluster's data directory out of a backup
    Restore(backup::Arguments),
    /// Remove what a cluster that was killed left on this machine
    Clean,
    /// Be a node: run pods, and forward and discover Services
    Agent(agent::Arguments),
    /// Forward Services on a node of any Kubernetes cluster, in kube-proxy's place
    Proxy(proxy::Arguments),
    #[command(hide = true)]
    NodeInit(node_init::Arguments),
    #[command(hide = true)]
    Workload(workload::Arguments),
}

fn main() -> ExitCode {
    // A pod's shim and its containers' first steps are this binary under another name; they never come back from here.
    portolan_node::try_reexec();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(DEFAULT_LOG)),
        )
        .with_writer(std::io::stderr)
        .init();
    let command = Cli::parse().command;
    if matches!(command, Command::NodeInit(_) | Command::Agent(_) | Command::Proxy(_) | Command::Workload(_)) {
        memory::keep_little();
    }
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("portolan: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::NodeInit(arguments) => node_init::run(&arguments)?,
        Command::Node(command) => node::run(command)?,
        Command::Image(command) => images::run(command)?,
        Command::Restore(arguments) => backup::restore(&arguments)?,
        Command::Workload(arguments) => return workload::run(arguments),
        command => {
            // Fails only if a provider is installed already, which nothing before this line does.
            let _ = rustls::crypto::ring::default_provider().install_default();
            raise_file_limit();
            // Two threads: the control plane or an agent is mostly waiting, and memory counts.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            return runtime.block_on(async {
                match command {
                    Command::Up(arguments) => up::run(arguments).await?,
                    Command::Backup(arguments) => backup::back_up(arguments).await?,
                    Command::Clean => clean::run().await?,
                    Command::Agent(arguments) => agent::run(arguments).await?,
                    Command::Proxy(arguments) => proxy::run(arguments).await?,
                    Command::Demo(arguments) => return demo::run(arguments).await,
                    Command::Explain(arguments) => return explain::run(arguments).await,
                    Command::Trace(arguments) => return trace::run(arguments).await,
                    Command::NodeInit(_)
                    | Command::Node(_)
                    | Command::Image(_)
                    | Command::Restore(_)
                    | Command::Workload(_) => {
                        unreachable!("handled without a runtime above")
                    }
                }
                Ok(ExitCode::SUCCESS)
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// As many open files as the machine allows, up to a million: every connection, watch and container takes some, and the
/// 1024 that a shell gives are soon used up by the clients of an API server. Go's programs do the same.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const MOST: u64 = 1 << 20;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(MOST);
        if soft >= wanted { Ok(()) } else { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    #[test]
    fn the_limit_on_open_files_is_raised() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(512), hard).unwrap();
        super::raise_file_limit();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard.min(1 << 20), hard));
    }
}
