//! Containers that `kubectl debug` brings into running pods.

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
