//! A configuration file -> the moment it says something else.
//!
//! Invariant: what counts is the text and not the file: one that is written anew with the same text, or is gone for a
//! moment while another takes its place, has not changed. The directory is watched, because files of a ConfigMap change
//! by a link that is turned round.
//!
//! Source: inotify(7); Kubernetes `cmd/kube-proxy/app/options.go` for what is done about it.

use std::io;
use std::path::Path;

use nix::sys::inotify::AddWatchFlags;
use portolan_node::Changes;

/// Waits until the file's text is another than the one given.
///
/// # Errors
/// When the kernel does not let it be watched.
pub(super) async fn changed(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let writes = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE;
    let mut changes = Changes::of(directory, writes)?;
    loop {
        // Watched first and read then, so that no change falls in between.
        if std::fs::read_to_string(path).is_ok_and(|found| found != text) {
            return Ok(());
        }
        changes.next().await?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn another_text_is_a_change_and_the_same_text_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        std::fs::write(&path, "old").unwrap();
        let mut waiting = std::pin::pin!(changed(&path, "old"));
        let is_over =
            async |waiting: &mut std::pin::Pin<&mut _>, patience| tokio::time::timeout(patience, waiting).await.is_ok();
        let moment = Duration::from_millis(50);
        assert!(!is_over(&mut waiting, moment).await);
        std::fs::write(&path, "old").unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!is_over(&mut waiting, moment).await, "it will be back");
        // As the files of a ConfigMap come.
        std::fs::create_dir(directory.path().join("..2")).unwrap();
        std::fs::write(directory.path().join("..2/config.yaml"), "new").unwrap();
        std::os::unix::fs::symlink("..2/config.yaml", directory.path().join("next")).unwrap();
        std::fs::rename(directory.path().join("next"), &path).unwrap();
        assert!(is_over(&mut waiting, Duration::from_secs(10)).await);
    }
}
