//! The stock kubectl against the whole cluster.

use std::process::{Command, Output};

use crate::cluster::{Cluster, SOON};
use crate::machine::{eventually, on_a_machine};

struct Kubectl {
    kubeconfig: String,
    home: String,
}

impl Kubectl {
    fn run(&self, arguments: &[&str]) -> Output {
        Command::new("kubectl")
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home)
            .args(arguments)
            .output()
            .unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "kubectl {arguments:?}: {out}{err}");
        out.into_owned()
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "kubectl {arguments:?} should fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  replicas: 2
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      containers:
      - name: web
        image: portolan/workload
        ports: [{ name: http, containerPort: 8080 }]
        readinessProbe: { httpGet: { path: /readyz, port: http }, periodSeconds: 1 }
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec:
  selector: { app: web }
  ports: [{ port: 80, targetPort: http }]
"#;

#[test]
fn the_stock_client_manages_a_service_from_apply_to_delete() {
    if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
        // The one tool that CI takes as it finds it: no package of it can be relied on.
        eprintln!("skipped: needs kubectl");
        return;
    }
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "2"]);
        let kubectl = Kubectl {
            kubeconfig: cluster.kubeconfig().display().to_string(),
            home: machine.path("home").display().to_string(),
        };
        let file = machine.path("web.yaml");
        std::fs::write(&file, MANIFEST).unwrap();
        let file = file.display().to_string();
        assert!(kubectl.ok(&["apply", "-f", &file]).contains("deployment.apps/web created"));
        assert!(kubectl.ok(&["apply", "-f", &file]).contains("service/web unchanged"));
        kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=30s"]);
        kubectl.ok(&["wait", "--for=condition=Available", "deployment/web", "--timeout=30s"]);
        let table = kubectl.ok(&["get", "deployments,services,endpointslices,nodes"]);
        for expected in ["deployment.apps/web", "2/2", "service/web", "ClusterIP", "node1"] {
            assert!(table.contains(expected), "{expected} is not in\n{table}");
        }
        assert!(kubectl.ok(&["get", "pods", "-o", "wide"]).contains("Running"));
        let described = kubectl.ok(&["describe", "service", "web"]);
        assert!(described.contains("Endpoints:") && described.contains(":8080"), "{described}");
        assert!(kubectl.ok(&["describe", "pods", "-l", "app=web"]).contains("Started"));

        kubectl.ok(&["scale", "deployment/web", "--replicas=3"]);
        kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=30s"]);
        kubectl.ok(&["label", "service", "web", "tier=front"]);
        assert!(kubectl.ok(&["get", "services", "-l", "tier=front", "-o", "name"]).contains("service/web"));
        kubectl.ok(&["patch", "service", "web", "-p", r#"{"spec":{"type":"NodePort"}}"#]);
        kubectl.ok(&["expose", "deployment", "web", "--name=web-2", "--port=8081", "--target-port=8080"]);
        assert!(kubectl.ok(&["get", "service", "web-2"]).contains("8081/TCP"));
        kubectl.ok(&["set", "env", "deployment/web", "COLOUR=blue"]);
        kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        assert!(kubectl.ok(&["rollout", "history", "deployment/web"]).contains('2'));
        kubectl.ok(&["rollout", "undo", "deployment/web"]);
        kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        kubectl.ok(&["logs", "-l", "app=web"]);
        assert!(kubectl.ok(&["events"]).contains("ScalingReplicaSet"));
        assert!(kubectl.ok(&["explain", "service.spec.clusterIP"]).contains("clusterIP"));

        let message = kubectl.refused(&["get", "service", "nothing"]);
        assert!(message.contains(r#"services "nothing" not found"#), "{message}");
        let message = kubectl.refused(&["patch", "service", "web", "-p", r#"{"spec":{"clusterIP":"10.96.0.77"}}"#]);
        assert!(message.contains("spec.clusterIPs[0]: Invalid value"), "{message}");

        kubectl.ok(&["create", "namespace", "other"]);
        kubectl.ok(&["apply", "-n", "other", "-f", &file]);
        // Its pods may not listen for signals yet, and then have their 30 s of grace.
        kubectl.ok(&["delete", "namespace", "other", "--timeout=60s"]);
        kubectl.ok(&["delete", "-f", &file, "--timeout=60s"]);
        eventually("every pod is gone", SOON, || match kubectl.ok(&["get", "pods", "-o", "name"]) {
            names if names.is_empty() => Ok(()),
            names => Err(names),
        });
        assert!(cluster.stop().success());
    });
}
