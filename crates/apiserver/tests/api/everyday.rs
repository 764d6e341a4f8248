//! The everyday verbs of kubectl, word for word: `everyday/session.txt` is what every kubectl here prints.
//!
//! The file was written by this server, and is what the oldest and the newest of them printed against kube-apiserver
//! 1.36.2 for the same commands. What changes from run to run is blotted out: ages and addresses that the server chose.

use std::path::{Path, PathBuf};

use futures::StreamExt;

use crate::harness::Cluster;
use crate::kubectl::{Kubectl, has_kubectl, versions};

/// The words of a command, of which some are quoted, and `@name` is a manifest.
fn words(command: &str, folder: &Path) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = command;
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('\'') {
            Some(quoted) => quoted.split_once('\'').unwrap(),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(match word.strip_prefix('@') {
            Some(name) => folder.join(name).display().to_string(),
            None => word.to_owned(),
        });
        rest = after.trim_start();
    }
    words
}

/// What kubectl said, without what differs from run to run, and between versions of kubectl.
fn plain(text: &str, folder: &Path) -> String {
    let text = text.replace(&folder.display().to_string(), "FOLDER");
    let mut lines = Vec::new();
    // Old kubectls look at Endpoints where newer ones look at EndpointSlices, and so are warned.
    let counts = |line: &&str| !line.trim().is_empty() && !line.starts_with("Warning: v1 Endpoints is deprecated");
    for line in text.lines().filter(counts) {
        let line: Vec<&str> = line.split_whitespace().map(blot).collect();
        let line = line.join(" ");
        // kubectl before 1.30.
        lines.push(if line.ends_with(" annotate") { format!("{line}d") } else { line });
    }
    lines.join("\n")
}

fn blot(word: &str) -> &str {
    let is_age = word.starts_with(|c: char| c.is_ascii_digit())
        && word.ends_with(['s', 'm', 'h'])
        && word.chars().all(|c| c.is_ascii_digit() || "smh".contains(c));
    if is_age {
        "AGE"
    } else if word.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.octets()[..2] == [10, 96]) {
        "ADDRESS"
    } else {
        word
    }
}

/// All that a kubectl says to the commands of a session.
async fn speak(program: PathBuf, session: &str, folder: &Path) -> String {
    let cluster = Cluster::start_in(tempfile::tempdir().unwrap(), |config| {
        config.service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    })
    .await;
    let kubectl = Kubectl { program, ..Kubectl::new(&cluster) };
    let mut said = String::new();
    for command in session.lines().filter_map(|line| line.strip_prefix("$ ")) {
        let output = kubectl.call(words(command, folder).iter()).await;
        said.push_str(&format!("$ {command}\n"));
        for stream in [&output.stdout, &output.stderr] {
            let text = plain(&String::from_utf8_lossy(stream), folder);
            said.extend([text.as_str(), "\n"].into_iter().filter(|_| !text.is_empty()));
        }
        if !output.status.success() {
            said.push_str(&format!("[{}]\n", output.status.code().unwrap_or(-1)));
        }
    }
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_everyday_verbs_print_what_they_print_with_kubernetes() {
    if !has_kubectl() {
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/everyday");
    let file = folder.join("session.txt");
    let session = std::fs::read_to_string(&file).unwrap();
    let mut programs = versions();
    programs.retain(|program| program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kubectl.1.")));
    if programs.is_empty() {
        eprintln!("only one version of kubectl is here");
        programs = versions();
    }
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let newest = programs.last().unwrap().clone();
        std::fs::write(&file, speak(newest, &session, &folder).await).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap();
    let speaking = programs.into_iter().map(async |program| (speak(program.clone(), &session, &folder).await, program));
    let mut speaking = futures::stream::iter(speaking).buffer_unordered(2);
    while let Some((said, program)) = speaking.next().await {
        expect_equal(&said, &expected, &program);
    }
}

/// The first command whose words differ.
fn expect_equal(said: &str, expected: &str, program: &Path) {
    let mut command = "";
    for (said, expected) in said.lines().zip(expected.lines()) {
        command = expected.strip_prefix("$ ").unwrap_or(command);
        assert_eq!(said, expected, "{} {command}", program.display());
    }
    assert_eq!(said.lines().count(), expected.lines().count(), "{} {command}", program.display());
}
