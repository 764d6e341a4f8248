//! What `kubectl logs` shows, option by option.

use std::collections::BTreeSet;
use std::io::Read;

use serde_json::json;

use crate::cluster::SOON;
use crate::machine::eventually;
use crate::streams::{Kubectl, TOOLS};

/// A pod of two containers that speak, the second one of which ends when told to, once.
pub(crate) fn run_teller(kubectl: &Kubectl<'_>) {
    let say = "for word in one two three; do echo $word; done; sleep 1.1; echo four; sleep 1000";
    let die = "echo begin; until test -e /tmp/die; do sleep 0.05; done; echo end; exit 1";
    let container = |name: &str, line: &str| json!({ "name": name, "image": TOOLS, "command": ["sh", "-c", line] });
    let pod = json!({
        "metadata": { "name": "teller", "labels": { "app": "teller" } },
        "spec": { "terminationGracePeriodSeconds": 0, "containers": [container("first", say), container("second", die)] },
    });
    kubectl.cluster.client().post("/api/v1/namespaces/default/pods", &pod);
    eventually("all is said", SOON, || match kubectl.run(&["logs", "teller", "-c", "first"], None) {
        said if said.out.ends_with(b"four\n") => Ok(()),
        said => Err(said.err),
    });
}

/// Who follows sees a container's last words, and then the end; they can be read after it started again.
pub(crate) fn following_ends_with_the_container(kubectl: &Kubectl<'_>) {
    let mut child = kubectl.command(&["logs", "teller", "-c", "second", "-f"]).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut said = [0; 6];
    out.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"begin\n");
    kubectl.ok(&["exec", "teller", "-c", "second", "--", "sh", "-c", "echo > /tmp/die"], None);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "end\n");
    assert!(child.wait().unwrap().success());
    eventually("it runs again", SOON, || match kubectl.text(&["logs", "teller", "-c", "second"]) {
        said if said == "begin\n" => Ok(()),
        said => Err(said),
    });
}

pub(crate) fn every_option_is_heeded(kubectl: &Kubectl<'_>) {
    let logs = |options: &[&str]| kubectl.text(&[&["logs", "teller"], options].concat());
    let first = |options: &[&str]| logs(&[&["-c", "first"], options].concat());
    let all = "one\ntwo\nthree\nfour\n";
    assert_eq!(first(&[]), all);
    assert_eq!(first(&["--tail=2"]), "three\nfour\n");
    assert_eq!(first(&["--tail=0"]), "");
    assert_eq!(first(&["--since=1h"]), all);
    eventually("all is more than a second old", SOON, || match first(&["--since=1s"]) {
        said if said.is_empty() => Ok(()),
        said => Err(said),
    });
    assert_eq!(first(&["--limit-bytes=6"]), "one\ntw");
    let stamped = first(&["--timestamps"]);
    let lines: Vec<(&str, &str)> = stamped.lines().filter_map(|line| line.split_once(' ')).collect();
    assert_eq!(lines.iter().map(|(_, word)| *word).collect::<Vec<_>>(), ["one", "two", "three", "four"], "{stamped}");
    let times: Vec<jiff::Timestamp> = lines.iter().map(|(time, _)| time.parse().unwrap()).collect();
    assert!(times.is_sorted(), "{stamped}");
    // To the second, as kubectl sends it.
    let second = jiff::Timestamp::from_second(times[3].as_second()).unwrap();
    assert_eq!(first(&[&format!("--since-time={second}")]), "four\n");
    assert_eq!(logs(&["-c", "second", "--previous"]), "begin\nend\n");
    let refused = kubectl.refused(&["logs", "teller", "-c", "first", "--previous"]);
    assert!(refused.contains("previous terminated container \"first\" in pod \"teller\" not found"), "{refused}");

    // In whichever order.
    let lines = |options: &[&str]| logs(options).lines().map(ToOwned::to_owned).collect::<BTreeSet<_>>();
    let both = |first: &str, second: &str| BTreeSet::from([first.to_owned(), second.to_owned()]);
    assert_eq!(lines(&["--all-containers", "--tail=1"]), both("four", "begin"));
    let prefixed = lines(&["--all-containers", "--prefix", "--tail=1"]);
    assert_eq!(prefixed, both("[pod/teller/first] four", "[pod/teller/second] begin"));
    let selected = kubectl.text(&["logs", "-l", "app=teller", "-c", "first", "--tail=-1"]);
    assert_eq!(selected, all);
    // Kubectl takes the first, and says so.
    let said = kubectl.run(&["logs", "teller"], None);
    assert_eq!(String::from_utf8_lossy(&said.out), all);
    assert!(said.err.contains("Defaulted container \"first\" out of: first, second"), "{}", said.err);
}
