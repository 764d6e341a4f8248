//! `/exec` and `/attach`: which process is meant, and the channels to it in the words of each protocol.
//!
//! Source: the kubelet's `remotecommand` server; `v2` to `v5.channel.k8s.io`.

use std::path::PathBuf;

use http::{HeaderMap, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::negotiate::{Chosen, Transport, choose};
use super::process::{self, Channels};
use super::spdy::{self, Stream};
use super::websocket::{self, Coding};
use super::{ALL_STREAMS, Agreed, Refusal, Sink, Source};
use crate::agent::host::Host;
use crate::agent::logs::decoded;
use crate::agent::start::instance_id;
use crate::shim::{Command, Open};

const SPDY_PROTOCOLS: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const WEBSOCKET_PROTOCOLS: [&str; 5] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"];

/// What the query asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
    command: Vec<String>,
}

impl Wanted {
    fn parse(query: &str) -> Result<Self, Refusal> {
        let mut wanted = Self::default();
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "input" => wanted.stdin = value == "1",
                "output" => wanted.stdout = value == "1",
                "error" => wanted.stderr = value == "1",
                "tty" => wanted.tty = value == "1",
                "command" => wanted.command.push(decoded(value)),
                _ => {}
            }
        }
        if !(wanted.stdin || wanted.stdout || wanted.stderr) {
            let reason = "you must specify at least 1 of stdin, stdout, stderr".to_owned();
            return Err((StatusCode::BAD_REQUEST, reason));
        }
        Ok(wanted)
    }
}

/// A request to run a command in a container, or, without `runs`, to be attached to its first process.
pub(in crate::agent) fn exec(
    host: &Host,
    [namespace, pod, container]: [&str; 3],
    query: &str,
    headers: &HeaderMap,
    upgrade: OnUpgrade,
    runs: bool,
) -> Result<Agreed, Refusal> {
    let mut wanted = Wanted::parse(query)?;
    let place = host.logs.place(namespace, pod);
    let place = place.ok_or_else(|| (StatusCode::NOT_FOUND, "pod does not exist".to_owned()))?;
    let missing = || (StatusCode::NOT_FOUND, format!("container not found (\"{container}\")"));
    let attempt = place.running(container).ok_or_else(missing)?;
    let command = runs.then(|| Command { args: std::mem::take(&mut wanted.command), tty: wanted.tty });
    if command.as_ref().is_some_and(|command| command.args.is_empty()) {
        return Err((StatusCode::BAD_REQUEST, "you must specify at least 1 command for the container".to_owned()));
    }
    if !runs {
        // What a process runs on cannot be changed.
        wanted.tty = place.on_terminal(container);
    }
    // A terminal has one output.
    wanted.stderr &= !wanted.tty;
    let open = Open {
        id: instance_id(container, attempt),
        command,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
    };
    let Chosen { transport, protocol, answer } = choose(headers, &SPDY_PROTOCOLS, &WEBSOCKET_PROTOCOLS)?;
    let dir = place.dir;
    let session = async move {
        let Ok(upgraded) = upgrade.await else { return };
        let io = TokioIo::new(upgraded);
        match transport {
            Transport::Spdy => {
                spdy::serve(io, |streams| over_spdy(dir, open, wanted, protocol, streams)).await;
            }
            Transport::WebSocket => {
                let coding = Coding::of(&protocol);
                websocket::channels(io, coding, 5, |ends| over_websocket(dir, open, wanted, protocol, ends)).await;
            }
        }
    };
    Ok((answer, Box::pin(session)))
}

/// Whether how it ended is told as a Status, or as text if it did not end well.
fn tells_status(protocol: &str) -> bool {
    protocol.starts_with("v4.") || protocol.starts_with("v5.")
}

async fn over_websocket(dir: PathBuf, open: Open, wanted: Wanted, protocol: String, ends: Vec<(Source, Sink)>) {
    let mut ends = ends.into_iter();
    let (Some((stdin, _)), Some((_, stdout)), Some((_, stderr)), Some((_, error)), Some((resize, _))) =
        (ends.next(), ends.next(), ends.next(), ends.next(), ends.next())
    else {
        return;
    };
    let channels = Channels {
        stdin: wanted.stdin.then_some(stdin),
        stdout: wanted.stdout.then_some(stdout),
        stderr: wanted.stderr.then_some(stderr),
        resize: wanted.tty.then_some(resize),
    };
    // By this clients know that the connection stands.
    let first = channels.stdout.as_ref().or(channels.stderr.as_ref()).unwrap_or(&error);
    let _ = first.send(Vec::new()).await;
    converse(dir, open, channels, &error, tells_status(&protocol)).await;
}

async fn over_spdy(dir: PathBuf, open: Open, wanted: Wanted, protocol: String, mut streams: mpsc::Receiver<Stream>) {
    let resizes = wanted.tty && (tells_status(&protocol) || protocol.starts_with("v3."));
    let expected = 1 + [wanted.stdin, wanted.stdout, wanted.stderr, resizes].into_iter().filter(|is| *is).count();
    let mut channels = Channels { stdin: None, stdout: None, stderr: None, resize: None };
    let mut error = None;
    let all = async {
        let mut opened = 0;
        while opened < expected {
            let Some(stream) = streams.recv().await else { return false };
            match stream.header("streamtype") {
                "error" => error = Some(stream.sink),
                "stdin" => channels.stdin = Some(stream.source),
                "stdout" => channels.stdout = Some(stream.sink),
                "stderr" => channels.stderr = Some(stream.sink),
                "resize" => channels.resize = Some(stream.source),
                other => {
                    tracing::debug!(kind = other, "a stream of no known kind");
                    stream.sink.reset().await;
                    continue;
                }
            }
            opened += 1;
        }
        true
    };
    let (Ok(true), Some(error)) = (timeout(ALL_STREAMS, all).await, error) else {
        return tracing::debug!("a client did not open the streams that it asked for");
    };
    // Further ones lead nowhere, and keep none of these waiting.
    drop(streams);
    converse(dir, open, channels, &error, tells_status(&protocol)).await;
    error.end().await;
}

/// Runs the session to its end, and says how it ended.
async fn converse(dir: PathBuf, open: Open, channels: Channels, error: &Sink, as_status: bool) {
    let command = open.command.as_ref().map(|command| command.args.clone());
    let ended = process::run(&dir, open, channels).await;
    let status = match (ended, &command) {
        (Ok(0), _) | (Ok(_), None) => json!({"metadata": {}, "status": "Success"}),
        (Ok(code), Some(args)) => {
            let args = args.join(" ");
            json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": format!(
                    "command terminated with non-zero exit code: error executing command [{args}], exit code {code}"
                ),
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            })
        }
        (Err(reason), command) => {
            let what = if command.is_some() { "executing command in" } else { "attaching to" };
            json!({
                "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
                "message": format!("Internal error occurred: error {what} container: {reason}"),
            })
        }
    };
    if as_status {
        let _ = error.send(status.to_string()).await;
    } else if let Some(message) = status["message"].as_str() {
        let _ = error.send(message.to_owned()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let wanted = Wanted::parse("command=sh&command=-c&command=echo%20a+b&input=1&output=1&tty=1").unwrap();
        assert_eq!(wanted.command, ["sh", "-c", "echo a b"]);
        assert!(wanted.stdin && wanted.stdout && wanted.tty && !wanted.stderr);
        assert_eq!(Wanted::parse("command=sh&output=0").unwrap_err().0, StatusCode::BAD_REQUEST);
    }
}
