//! Containers that see others' processes: those that `kubectl debug` brings into running pods, and those of pods that
//! share them.

use serde_json::json;

use crate::cluster::SOON;
use crate::machine::eventually;
use crate::streams::{TOOLS, on_a_cluster};

#[test]
fn people_look_into_running_pods() {
    on_a_cluster(|cluster, kubectls| {
        let api = cluster.client();
        let pod = json!({
            "metadata": { "name": "main" },
            "spec": { "terminationGracePeriodSeconds": 0, "containers": [{
                "name": "main", "image": TOOLS, "command": ["sh", "-c", "sleep 3600; echo never"],
            }] },
        });
        api.post("/api/v1/namespaces/default/pods", &pod);
        kubectls[0].ok(&["wait", "--for=condition=Ready", "pod/main", "--timeout=30s"], None);
        let looks = "read word; cat /proc/1/cmdline; echo \" heard $word\"; exit 3";
        let image = format!("--image={TOOLS}");
        for (number, kubectl) in kubectls.iter().enumerate() {
            let name = format!("--container=look-{number}");
            let line = ["debug", "-i", "-q", "main", "--target=main", &image, &name, "--", "sh", "-c", looks];
            let said = kubectl.run(&line, Some(b"word\n"));
            let out = String::from_utf8_lossy(&said.out);
            assert!(out.contains("echo never\0 heard word\n"), "{line:?}: {out}{}", said.err);
        }
        let status = |number: usize| {
            api.get("/api/v1/namespaces/default/pods/main")["status"]["ephemeralContainerStatuses"][number].clone()
        };
        for number in 0..kubectls.len() {
            let name = format!("look-{number}");
            eventually("how it ended is told", SOON, || match status(number) {
                told if told["name"] == *name && told["state"]["terminated"]["exitCode"] == 3 => Ok(()),
                other => Err(other.to_string()),
            });
        }
        assert!(kubectls[0].text(&["logs", "main", "--container=look-0"]).ends_with(" heard word\n"));
        let line = kubectls[0].text(&["get", "pod", "main", "--no-headers"]);
        assert!(line.split_whitespace().take(4).eq(["main", "1/1", "Running", "0"]), "{line}");
        let patch = r#"{"spec":{"ephemeralContainers":[{"name":"look-0","image":"other"}]}}"#;
        let again = ["patch", "pod", "main", "--subresource=ephemeralcontainers", "--patch", patch];
        assert!(kubectls[kubectls.len() - 1].refused(&again).contains("\"look-0\" may not be changed"));
    });
}

#[test]
fn containers_of_a_pod_may_share_their_processes() {
    on_a_cluster(|cluster, kubectls| {
        let (api, kubectl) = (cluster.client(), &kubectls[0]);
        let looks = json!({ "capabilities": { "add": ["SYS_PTRACE"] } });
        let pod = json!({
            "metadata": { "name": "shared" },
            "spec": { "terminationGracePeriodSeconds": 0, "shareProcessNamespace": true, "containers": [
                { "name": "main", "image": TOOLS, "command": ["sh", "-c", "sleep 3600; echo never"] },
                { "name": "looks", "image": TOOLS, "command": ["sleep", "3600"], "securityContext": looks },
            ] },
        });
        api.post("/api/v1/namespaces/default/pods", &pod);
        kubectl.ok(&["wait", "--for=condition=Ready", "pod/shared", "--timeout=30s"], None);
        let sh = |line: &str| kubectl.text(&["exec", "shared", "-c", "looks", "--", "sh", "-c", line]);
        assert!(sh("cat /proc/1/cmdline").starts_with("/pause\0"));
        assert_eq!(sh("cd /proc/1; ls -A root cwd; cat environ"), "cwd:\n\nroot:\n");
        // Through each other they reach what they may.
        let processes = |of: &str| {
            let line = "for p in /proc/[0-9]*; do case \"$(cat $p/cmdline)\" in WORDS) echo ${p#/proc/}; esac; done";
            let numbers = sh(&format!("{} 2>/dev/null", line.replace("WORDS", of)));
            numbers.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let main = processes("*'echo never'").pop().unwrap();
        assert!(sh(&format!("cd /proc/{main}; ls root/bin")).contains("sleep\n"));

        // The end of one is not the end of the others, and what it leaves behind ends with it.
        assert_eq!(processes("sleep3600").len(), 2);
        sh(&format!("kill -9 {main}"));
        let started = || {
            let statuses = api.get("/api/v1/namespaces/default/pods/shared")["status"]["containerStatuses"].clone();
            let count = |name: &str| {
                statuses.as_array().unwrap().iter().find(|status| status["name"] == name).unwrap()["restartCount"]
                    .clone()
            };
            (count("main"), count("looks"))
        };
        eventually("the other is started again", SOON, || match started() {
            counts if counts == (json!(1), json!(0)) => Ok(()),
            counts => Err(format!("{counts:?}")),
        });
        eventually("and is seen again, alone", SOON, || match (processes("*'echo never'"), processes("sleep3600")) {
            (main, sleep) if (main.len(), sleep.len()) == (1, 2) => Ok(()),
            seen => Err(format!("{seen:?}")),
        });
    });
}
