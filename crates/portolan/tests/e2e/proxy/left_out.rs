//! Pods that ask to be left out of socket load balancing, on a node whose kubelet is the test.

use portolan_testkit::{Cgroup, with_bpffs};

use super::*;

const PODS: &str = "/api/v1/namespaces/default/pods";

impl Lab {
    /// Who had to deal with a connection that a process in the cgroup made.
    fn who_leads(&self, cgroup: &Cgroup, to: SocketAddr) -> &'static str {
        let count = || [CONNECTIONS, LED].map(|name| self.metric(name).unwrap_or_default());
        let before = count();
        let outcome = cgroup.run(|| self.dial(to));
        assert_eq!(outcome.by(), Some("a"), "{outcome:?}");
        let after = count();
        match [after[0] - before[0], after[1] - before[1]] {
            [1.0, 0.0] => "nftables",
            [0.0, 1.0] => "socket",
            other => panic!("{other:?}"),
        }
    }

    fn is_led_by(&self, leader: &str, cgroup: &Cgroup, to: SocketAddr) {
        eventually(&format!("a process in {} is led by {leader}", cgroup.path().display()), SOON, || {
            match self.who_leads(cgroup, to) {
                found if found == leader => Ok(()),
                other => Err(other.to_owned()),
            }
        });
    }

    /// Arguments for a proxy that leads sockets of processes in the cgroup.
    fn leading(&self, kubeconfig: &str, cgroup: &Cgroup) -> Vec<String> {
        let below = format!("/{}", cgroup.path().strip_prefix(cgroup.root()).unwrap().display());
        let cgroup = format!("--socket-lb-cgroup={below}");
        self.arguments_as(kubeconfig, &[&cgroup, &format!("--socket-lb-pods-cgroup={below}")])
    }
}

/// Gives the pod's uid.
fn pod(api: &Api, name: &str, annotations: &Value) -> String {
    let pod = api.post(
        PODS,
        &json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"nodeName": "node1", "containers": [{"name": "c", "image": "i"}]},
        }),
    );
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[test]
fn a_pod_is_led_until_it_asks_not_to_be() {
    require_root!();
    let Some(machine) = Cgroup::new() else { return skip("no cgroup v2 hierarchy is mounted") };
    with_bpffs(|_| {
        let lab = Lab::new();
        let (_echo, server, web) = lab.with_web();
        let web = cluster_ip(&web);
        let arguments = lab.leading(&format!("kubeconfig-{API_PORT}"), &machine);
        let proxy = lab.start(&arguments);
        let kubepods = machine.below("kubepods");
        lab.is_led_by("socket", &kubepods, web);

        // The pod is there first, then its cgroup, as on a node where it is started.
        let no = json!({"portolan.dev/socket-lb": "false"});
        let uid = lab.api(API_PORT, |api| pod(api, "early", &no));
        let besteffort = kubepods.below("besteffort");
        let early = besteffort.below(&format!("pod{uid}"));
        let container = early.below("container");
        lab.is_led_by("nftables", &container, web);
        lab.is_led_by("socket", &besteffort, web);

        // It runs already when it comes to ask for it, and then no more.
        let uid = lab.api(API_PORT, |api| pod(api, "late", &json!({})));
        let late = kubepods.below(&format!("kubepods-pod{}.slice", uid.replace('-', "_")));
        assert_eq!(lab.who_leads(&late, web), "socket");
        let annotate = |value: Value| {
            let patch = json!({"metadata": {"annotations": {"portolan.dev/socket-lb": value}}});
            lab.api(API_PORT, |api| api.merge(&format!("{PODS}/late"), &patch));
        };
        annotate(json!("false"));
        lab.is_led_by("nftables", &late, web);
        annotate(Value::Null);
        lab.is_led_by("socket", &late, web);
        assert_eq!(lab.who_leads(&early, web), "nftables", "the other goes on to be left out");

        // While no proxy runs it stays so; the next one finds that nobody asks any more.
        proxy.kill();
        lab.api(API_PORT, |api| api.delete(&format!("{PODS}/early?gracePeriodSeconds=0")));
        let proxy = lab.start(&arguments);
        lab.is_led_by("socket", &early, web);
        proxy.stop();
        server.stop();
    });
}

#[test]
fn who_may_not_see_pods_leads_all_of_them_and_says_so_once() {
    require_root!();
    let Some(machine) = Cgroup::new() else { return skip("no cgroup v2 hierarchy is mounted") };
    with_bpffs(|_| {
        let lab = Lab::new();
        let (_echo, server, web) = lab.with_web();
        let proxy = lab.start(&lab.leading(KUBE_PROXY, &machine));
        lab.is_led_by("socket", &machine, cluster_ip(&web));
        let said = eventually("the log says what is missing", SOON, || {
            let log = std::fs::read_to_string(lab.path("log")).unwrap();
            if log.contains("grant it list and watch of pods") { Ok(log) } else { Err(log) }
        });
        assert_eq!(said.matches("may not see Pods").count(), 1, "{said}");
        proxy.stop();
        server.stop();
    });
}
