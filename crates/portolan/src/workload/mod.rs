//! What the built-in image `portolan/workload` runs: arguments -> a small server or client that says which pod it is.
//!
//! Invariants: every process here lives on one thread and within fixed bounds (connections, bodies, pixels, lists);
//! SIGTERM ends each of them with exit code 0, servers only after what they had accepted is answered; what a client
//! prints is one JSON object a line, so that `kubectl logs` can be read by a program.
//!
//! Deliberately not here: TLS, HTTP/2, and any knowledge of Kubernetes, but for `api`, which asks it as any client in a
//! pod would. A workload finds its peers by DNS, as anybody's would.

mod api;
mod echo;
mod fetch;
pub(crate) mod figures;
mod load;
pub(crate) mod lookup;
mod resize;
mod serve;
mod server;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Answer HTTP with this pod's name (also /healthz, /readyz, /fail, /recover, /echo, /slow?ms=).
    Serve(ServeArgs),
    /// Resize PNG pictures: POST one to /resize?width=&height=, or GET it for a built-in picture.
    Image(ServeArgs),
    /// Answer every line with this pod's name and the line.
    TcpEcho(EchoArgs),
    /// Answer every datagram with this pod's name and the datagram.
    UdpEcho(EchoArgs),
    /// Exit with a failure.
    Fail {
        /// Run this long first.
        #[arg(long, default_value = "0s", value_parser = duration)]
        after: Duration,
        #[arg(long, default_value_t = 1)]
        code: u8,
    },
    /// Do nothing until SIGTERM.
    Sleep {
        /// Exit by itself after this long.
        #[arg(long = "for", value_parser = duration)]
        at_most: Option<Duration>,
    },
    /// Send a steady load, a new connection for each request, and count who answered.
    Load(load::LoadArgs),
    /// Make one request and print the answer.
    Get {
        url: String,
        #[arg(long, default_value = "5s", value_parser = duration)]
        timeout: Duration,
    },
    /// Ask the cluster's API one question as this pod's ServiceAccount, and print the answer as JSON.
    Api {
        /// Such as /api/v1/namespaces/default/pods.
        path: String,
        /// Ask again this long after each answer, until SIGTERM.
        #[arg(long, value_parser = duration)]
        every: Option<Duration>,
    },
    /// Ask DNS one question and print the answer as JSON.
    Lookup(lookup::LookupArgs),
}

#[derive(Debug, clap::Args)]
struct ServeArgs {
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// After SIGTERM, go on accepting this long, so that every client has time to learn of it.
    #[arg(long, default_value = "2s", value_parser = duration)]
    drain: Duration,
}

#[derive(Debug, clap::Args)]
struct EchoArgs {
    #[arg(long, default_value_t = 7)]
    port: u16,
}

/// Runs one workload to its end on a runtime of its own.
pub(crate) fn run(args: Arguments) -> anyhow::Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let command = args.command.unwrap_or(Command::Serve(ServeArgs { port: 8080, drain: Duration::from_secs(2) }));
    runtime.block_on(async {
        match command {
            Command::Serve(args) => serve::run(any_address(args.port), args.drain).await?,
            Command::Image(args) => resize::run(any_address(args.port), args.drain).await?,
            Command::TcpEcho(args) => echo::tcp(any_address(args.port)).await?,
            Command::UdpEcho(args) => echo::udp(any_address(args.port)).await?,
            Command::Fail { after, code } => {
                if !ended_within(after).await? {
                    eprintln!("failing with exit code {code}, as asked");
                    return Ok(ExitCode::from(code));
                }
            }
            Command::Sleep { at_most } => {
                ended_within(at_most.unwrap_or(Duration::MAX)).await?;
            }
            Command::Load(args) => return load::run(args).await,
            Command::Get { url, timeout } => return fetch::get(&url, timeout).await,
            Command::Api { path, every } => return api::run(&path, every).await,
            Command::Lookup(args) => return lookup::run(args).await,
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// `::` accepts IPv4 too; a machine without IPv6 has no such address, so callers fall back to `0.0.0.0`.
fn any_address(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::from(([0u16; 8], port)), SocketAddr::from(([0u8; 4], port))]
}

/// Whether SIGTERM or SIGINT came before the time was over.
async fn ended_within(time: Duration) -> anyhow::Result<bool> {
    let mut stop = Stop::new()?;
    Ok(tokio::time::timeout(time, stop.wait()).await.is_ok())
}

/// SIGTERM and SIGINT. Listening matters: the first process of a container gets no default action for them.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}

/// The name peers are told: a pod's hostname is its name.
fn pod_name() -> String {
    nix::unistd::gethostname().map_or_else(|_| "unknown".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Reads `2s`, `500ms`, `1m30s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let signed: jiff::SignedDuration =
        text.parse().map_err(|_| format!("`{text}` is not a duration; write it like 500ms, 2s or 1m30s"))?;
    Duration::try_from(signed).map_err(|_| format!("`{text}` is negative"))
}
