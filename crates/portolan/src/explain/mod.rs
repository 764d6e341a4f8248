use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The Service to explain.
    service: String,
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
}

pub(crate) async fn run(args: Arguments) -> anyhow::Result<ExitCode> {
    anyhow::bail!("explaining {}/{} ({:?}) is not built yet", args.namespace, args.service, args.kubeconfig)
}
