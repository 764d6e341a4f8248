//! The stock client, if the machine has one.

use std::process::{Command, Output};

use portolan_apiserver::User;

use crate::harness::Cluster;

fn has_kubectl() -> bool {
    let found =
        Command::new("kubectl").args(["version", "--client"]).output().is_ok_and(|output| output.status.success());
    if !found {
        assert!(std::env::var("CI").is_err(), "CI has kubectl");
        eprintln!("skipped: there is no kubectl here");
    }
    found
}

struct Kubectl {
    home: tempfile::TempDir,
}

impl Kubectl {
    fn new(cluster: &Cluster) -> Self {
        let home = tempfile::tempdir().unwrap();
        let url = format!("https://{}", cluster.address);
        std::fs::write(home.path().join("config"), cluster.api.kubeconfig(&url, &User::admin()).unwrap()).unwrap();
        Self { home }
    }

    async fn output(&self, arguments: &str, manifest: &str) -> Output {
        let file = self.home.path().join("manifest.yaml");
        std::fs::write(&file, manifest).unwrap();
        let mut command = Command::new("kubectl");
        command.env("HOME", self.home.path()).env("KUBECONFIG", self.home.path().join("config"));
        let path = file.display().to_string();
        command.args(arguments.split(' ').map(|word| if word == "FILE" { path.as_str() } else { word }));
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn run(&self, arguments: &str, manifest: &str) -> String {
        let output = self.output(arguments, manifest).await;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "kubectl {arguments}: {out}{err}");
        out.into_owned()
    }
}

const MANIFEST: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: portolan/workload}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_with_kubectl() {
    if !has_kubectl() {
        return;
    }
    let cluster = Cluster::start().await;
    let kubectl = Kubectl::new(&cluster);
    let applied = kubectl.run("apply -f FILE", MANIFEST).await;
    assert!(applied.contains("deployment.apps/web created") && applied.contains("service/web created"), "{applied}");
    let again = kubectl.run("apply -f FILE", MANIFEST).await;
    assert!(again.contains("deployment.apps/web unchanged") && again.contains("service/web unchanged"), "{again}");
    let changed = kubectl.run("apply -f FILE", &MANIFEST.replace("port: 80", "port: 81")).await;
    assert!(changed.contains("service/web configured"), "{changed}");
    let got = kubectl.run("get service web -o jsonpath={.spec.ports[0].port}", "").await;
    assert_eq!(got, "81");
    kubectl.run("scale deployment web --replicas=3", "").await;
    assert_eq!(kubectl.run("get deployment web -o jsonpath={.spec.replicas}", "").await, "3");
    kubectl.run("label service web tier=front", "").await;
    kubectl.run("annotate service web note=hello", "").await;
    let selected = kubectl.run("get services -l tier=front -o name", "").await;
    assert_eq!(selected, "service/web\n");
    let table = kubectl.run("get services", "").await;
    assert!(table.contains("CLUSTER-IP") && table.contains("10.96.0.1"), "{table}");
    let described = kubectl.run("describe service web", "").await;
    assert!(described.contains("Selector:"), "{described}");
    kubectl.run("expose deployment web --name=exposed --port=80", "").await;
    kubectl.run("patch service web --type=json -p [{\"op\":\"remove\",\"path\":\"/metadata/labels/tier\"}]", "").await;
    let explained = kubectl.run("explain service.spec", "").await;
    assert!(explained.contains("clusterIP"), "{explained}");
    let resources = kubectl.run("api-resources", "").await;
    assert!(resources.contains("endpointslices") && resources.contains("svc"), "{resources}");
    // These come as protobuf.
    kubectl.run("create configmap c --from-literal=k=v", "").await;
    assert_eq!(kubectl.run("get configmap c -o jsonpath={.data.k}", "").await, "v");
    kubectl.run("create namespace other", "").await;
    kubectl.run("create service nodeport np --tcp=80:8080 --node-port=30123", "").await;
    kubectl.run("create deployment made --image=portolan/workload --replicas=2", "").await;
    assert_eq!(kubectl.run("get deployment made -o jsonpath={.spec.replicas}", "").await, "2");
    assert!(kubectl.run("get all", "").await.contains("30123/TCP"));
    kubectl.run("delete service web exposed", "").await;
    let missing = kubectl.output("get service web", "").await;
    assert_eq!(String::from_utf8_lossy(&missing.stderr), "Error from server (NotFound): services \"web\" not found\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_read_as_with_kubernetes() {
    if !has_kubectl() {
        return;
    }
    let cluster = Cluster::start().await;
    let kubectl = Kubectl::new(&cluster);
    let service = |spec: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {spec}\n");
    for (manifest, words) in [
        (service("{ports: [{port: 80}], foo: 1}"), "strict decoding error: unknown field \"spec.foo\""),
        (service("{clusterIP: 10.96.0.1, ports: [{port: 80}]}"), "provided IP is already allocated"),
        (service("{ports: [{port: 80}, {port: 81}]}"), "spec.ports[0].name: Required value"),
        ("apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: a}\n".into(), "no matches for kind \"Thing\""),
    ] {
        let output = kubectl.output("apply -f FILE", &manifest).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(words), "{manifest}: {error}");
    }
}
