//! `portolan backup` and `portolan restore`: a cluster -> one file -> a cluster.
//!
//! A running cluster is asked for it through its API, one that is stopped is read from its data directory. Invariant:
//! the file has its name only once it is whole and was read back.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt;
use portolan_apiserver::backup;

use crate::up::data_dir;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The cluster's data directory; of a running cluster, its `kubeconfig` is used
    #[arg(long, default_value = data_dir::DEFAULT)]
    data_dir: PathBuf,
    /// The backup. It holds the cluster's keys, so it is as secret as they are
    file: PathBuf,
}

pub(crate) async fn back_up(arguments: Arguments) -> Result<()> {
    let Arguments { data_dir, file } = arguments;
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = file.file_name().context("the backup needs a name")?;
    let draft = directory.join(format!(".{}.{}", name.display(), std::process::id()));
    let done = write(&data_dir, &draft, &file).await;
    if done.is_err() {
        // It may not even be there.
        let _ = fs::remove_file(&draft);
    }
    let summary = done?;
    println!("{} objects, as of revision {}, are in {}", summary.objects, summary.revision, file.display());
    Ok(())
}

async fn write(data_dir: &Path, draft: &Path, file: &Path) -> Result<backup::Summary> {
    let context = || format!("cannot write {}", draft.display());
    let mut options = File::options();
    let mut to = options.create(true).truncate(true).write(true).mode(0o600).open(draft).with_context(context)?;
    match backup::write(data_dir, &mut to) {
        Err(error) if error.is_in_use() => ask(&data_dir.join("kubeconfig"), &mut to).await?,
        done => done?,
    }
    to.sync_all().with_context(context)?;
    let summary = backup::check(draft)?;
    fs::rename(draft, file).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(summary)
}

async fn ask(kubeconfig: &Path, to: &mut File) -> Result<()> {
    let client = portolan_client::connect(kubeconfig).await?;
    let request = http::Request::get("/backup").body(kube::client::Body::empty())?;
    let response = client.send(request).await.context("cannot ask the cluster for a backup")?;
    ensure!(response.status().is_success(), "the cluster refuses a backup: {}", response.status());
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the cluster stopped in the middle of the backup")?;
        to.write_all(&frame.into_data().unwrap_or_default()).context("cannot write the backup")?;
    }
    Ok(())
}

pub(crate) fn restore(arguments: &Arguments) -> Result<()> {
    let Arguments { data_dir, file } = arguments;
    let summary = backup::restore(file, data_dir)?;
    println!(
        "{} objects, as of revision {}, are in {place}; start the cluster with --data-dir {place}",
        summary.objects,
        summary.revision,
        place = data_dir.display()
    );
    Ok(())
}
