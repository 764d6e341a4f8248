//! A path of the Kubernetes API -> what it answers to this pod, as one line of JSON: the code, and the message of a
//! refusal or the kind of what came.
//!
//! The pod's token, the authority and the address are found as any client's in a pod are: in the files and variables
//! that every pod has. The token is read anew as often as the client library does.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use http::Request;
use serde_json::{Value, json};

use super::ended_within;

pub(super) async fn run(path: &str, every: Option<Duration>) -> anyhow::Result<ExitCode> {
    let client = portolan_client::connect_from(None, None).await?;
    loop {
        let request = Request::get(path).body(Vec::new()).with_context(|| format!("{path} is no path"))?;
        let answer = match client.request::<Value>(request).await {
            Ok(object) => json!({"code": 200, "kind": object["kind"]}),
            Err(kube::Error::Api(status)) => json!({"code": status.code, "message": status.message}),
            Err(error) => json!({"error": error.to_string()}),
        };
        println!("{answer}");
        let Some(pause) = every else {
            return Ok(if answer["code"] == 200 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        };
        if ended_within(pause).await? {
            return Ok(ExitCode::SUCCESS);
        }
    }
}
