use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Leave the cluster up at the end.
    #[arg(long)]
    keep: bool,
    /// Write the scenes' reports here as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) async fn run(args: Arguments) -> anyhow::Result<ExitCode> {
    anyhow::bail!("the demo is not built yet: {args:?}")
}
