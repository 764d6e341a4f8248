//! The stock client, if the machine has one.

use std::path::PathBuf;
use std::process::{Command, Output};

use portolan_apiserver::User;

use crate::harness::Cluster;

pub(crate) fn has_kubectl() -> bool {
    let found =
        Command::new("kubectl").args(["version", "--client"]).output().is_ok_and(|output| output.status.success());
    if !found {
        assert!(std::env::var("CI").is_err(), "CI has kubectl");
        eprintln!("skipped: there is no kubectl here");
    }
    found
}

/// Every version that is here: `kubectl` itself, and such as `kubectl.1.30` beside it.
pub(crate) fn versions() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(first) = std::env::split_paths(&path).find_map(|folder| folder.join("kubectl").canonicalize().ok()) else {
        return Vec::new();
    };
    let beside = std::fs::read_dir(first.parent().unwrap()).unwrap().map(|entry| entry.unwrap());
    let versioned = beside.filter(|entry| entry.file_name().to_string_lossy().starts_with("kubectl.1."));
    let mut versions: Vec<PathBuf> = versioned.map(|entry| entry.path()).collect();
    versions.push("kubectl".into());
    versions.sort();
    versions
}

pub(crate) struct Kubectl {
    pub(crate) program: PathBuf,
    pub(crate) home: tempfile::TempDir,
}

impl Kubectl {
    pub(crate) fn new(cluster: &Cluster) -> Self {
        let home = tempfile::tempdir().unwrap();
        let url = format!("https://{}", cluster.address);
        std::fs::write(home.path().join("config"), cluster.api.kubeconfig(&url, &User::admin()).unwrap()).unwrap();
        Self { program: "kubectl".into(), home }
    }

    pub(crate) async fn output(&self, arguments: &str, manifest: &str) -> Output {
        let file = self.home.path().join("manifest.yaml");
        std::fs::write(&file, manifest).unwrap();
        let path = file.display().to_string();
        self.call(arguments.split(' ').map(|word| if word == "FILE" { path.as_str() } else { word })).await
    }

    pub(crate) async fn call(&self, arguments: impl Iterator<Item = impl AsRef<std::ffi::OsStr>>) -> Output {
        let mut command = Command::new(&self.program);
        command.env("HOME", self.home.path()).env("KUBECONFIG", self.home.path().join("config"));
        command.args(arguments);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    pub(crate) async fn run(&self, arguments: &str, manifest: &str) -> String {
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
    // What older ones know alone, in protobuf.
    let explained = kubectl.run("explain service.spec.type --output=plaintext-openapiv2", "").await;
    assert!(explained.contains("FIELD:    type <string>") && explained.contains("type determines how"), "{explained}");
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
async fn every_version_applies_on_the_server() {
    if !has_kubectl() {
        return;
    }
    for program in versions() {
        let cluster = Cluster::start().await;
        let kubectl = Kubectl { program, ..Kubectl::new(&cluster) };
        let who = kubectl.program.display();
        let said = kubectl.run("apply --server-side -f FILE", MANIFEST).await;
        assert_eq!(said, "deployment.apps/web serverside-applied\nservice/web serverside-applied\n", "{who}");
        let yaml = kubectl.run("get service web -o yaml", "").await;
        assert!(!yaml.contains("managedFields"), "{who}: {yaml}");
        let yaml = kubectl.run("get service web -o yaml --show-managed-fields", "").await;
        assert!(yaml.contains("manager: kubectl\n") && yaml.contains("operation: Apply"), "{who}: {yaml}");
        assert_eq!(kubectl.run("diff --server-side -f FILE", MANIFEST).await, "", "{who}");
        let diff = kubectl.output("diff --server-side -f FILE", &MANIFEST.replace("replicas: 2", "replicas: 3")).await;
        assert_eq!(diff.status.code(), Some(1), "{who}: {}", String::from_utf8_lossy(&diff.stderr));
        let shown = String::from_utf8_lossy(&diff.stdout).into_owned();
        assert!(shown.contains("-  replicas: 2\n+  replicas: 3\n"), "{who}: {shown}");

        kubectl.run("scale deployment web --replicas=5", "").await;
        let refused = kubectl.output("apply --server-side -f FILE", MANIFEST).await;
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        // A client is known by the name of its program.
        let conflict = format!(
            "Apply failed with 1 conflict: conflict with {:?} with subresource \"scale\" using apps/v1: .spec.replicas",
            kubectl.program.file_name().unwrap()
        );
        assert!(words.contains(&conflict) && words.contains("--force-conflicts"), "{who}: {words}");
        kubectl.run("apply --server-side --force-conflicts -f FILE", MANIFEST).await;
        assert_eq!(kubectl.run("get deployment web -o jsonpath={.spec.replicas}", "").await, "2", "{who}");
        let unknown = kubectl.output("apply --server-side -f FILE", &MANIFEST.replace("replicas:", "replica:")).await;
        let words = String::from_utf8_lossy(&unknown.stderr).into_owned();
        let mistake = "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.replica: field not \
                       declared in schema";
        assert!(words.contains(mistake), "{who}: {words}");

        // From client-side apply to the server's, with a change and without a conflict, and back.
        let manifest = MANIFEST.replace("name: web}", "name: old}");
        kubectl.run("apply -f FILE", &manifest).await;
        let changed = manifest.replace("replicas: 2", "replicas: 4").replace("8080", "8081");
        kubectl.run("apply --server-side -f FILE", &changed).await;
        let managers = "get service old --show-managed-fields -o jsonpath={.metadata.managedFields[*].manager}";
        let found = kubectl.run(managers, "").await;
        assert!(!found.contains("client-side"), "{who}: {found}");
        let ports = "get service old -o jsonpath={.spec.ports[*].targetPort}";
        assert_eq!(kubectl.run(ports, "").await, "8081", "{who}");
        let last = kubectl.run("apply view-last-applied deployment old -o json", "").await;
        assert!(last.contains("\"replicas\": 4"), "{who}: {last}");
        kubectl.run("apply -f FILE", &manifest).await;
        assert_eq!(kubectl.run(ports, "").await, "8080", "{who}");
    }
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

const ROLE: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: r, namespace: default}
rules:
- {apiGroups: [\"\"], resources: [configmaps], verbs: [get, list, watch]}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_and_tokens_by_every_kubectl() {
    if !has_kubectl() {
        return;
    }
    for program in versions() {
        let cluster = Cluster::start().await;
        let mut kubectl = Kubectl::new(&cluster);
        kubectl.program.clone_from(&program);
        for (arguments, manifest, expected) in [
            ("create role r --verb=get,list --resource=configmaps", "", "r created"),
            ("create rolebinding b --role=r --user=jane", "", "b created"),
            ("create clusterrole c --verb=get --non-resource-url=/metrics", "", "c created"),
            ("create clusterrolebinding cb --clusterrole=c --serviceaccount=default:robot", "", "cb created"),
            ("create serviceaccount robot", "", "robot created"),
            ("get roles", "", "CREATED AT"),
            ("get rolebindings -o wide", "", "Role/r"),
            ("get clusterrolebindings -o wide", "", "default/robot"),
            ("describe clusterrole c", "", "[/metrics]"),
            ("auth can-i list configmaps --as jane", "", "yes"),
            ("auth can-i get /metrics --as system:serviceaccount:default:robot", "", "yes"),
            ("auth can-i --list --as jane", "", "configmaps"),
            ("auth reconcile -f FILE", ROLE, "reconciled"),
            ("auth can-i watch configmaps --as jane", "", "yes"),
        ] {
            let said = kubectl.run(arguments, manifest).await;
            assert!(said.contains(expected), "{} {arguments}: {said}", program.display());
        }
        let no = kubectl.output("auth can-i delete configmaps --as jane", "").await;
        assert_eq!((no.status.code(), String::from_utf8_lossy(&no.stdout).trim()), (Some(1), "no"));
        let token = kubectl.run("create token robot --duration=10m", "").await;
        let bearer = format!("Bearer {}", token.trim());
        let asked = cluster.stranger().send(http::Method::GET, "/api", &[("authorization", &bearer)], "").await;
        assert_eq!(asked.code, 200, "{}: {token}", program.display());
    }
}
