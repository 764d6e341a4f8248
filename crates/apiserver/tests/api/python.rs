//! Python's `kubernetes` package, if the machine has it.

use std::process::Command;

use portolan_apiserver::User;

use crate::harness::Cluster;

const SCRIPT: &str = "
from kubernetes import client, config, dynamic, watch
config.load_kube_config('config')
core, apps = client.CoreV1Api(), client.AppsV1Api()

service = client.V1Service(metadata=client.V1ObjectMeta(name='web', labels={'app': 'web'}),
    spec=client.V1ServiceSpec(selector={'app': 'web'}, ports=[client.V1ServicePort(port=80, target_port=8080)]))
made = core.create_namespaced_service('default', service)
assert made.spec.cluster_ip and made.spec.type == 'ClusterIP', made
seen = watch.Watch()
for event in seen.stream(core.list_namespaced_service, 'default', label_selector='app=web', timeout_seconds=20):
    assert event['type'] == 'ADDED' and event['object'].metadata.name == 'web', event
    seen.stop()
patched = core.patch_namespaced_service('web', 'default', {'spec': {'ports': [{'port': 80, 'targetPort': 9090}]}})
assert patched.spec.ports[0].target_port == 9090, patched
patched.metadata.labels['more'] = 'x'
assert core.replace_namespaced_service('web', 'default', patched).metadata.labels['more'] == 'x'
try:
    core.create_namespaced_service('default', service)
    assert False
except client.ApiException as refused:
    assert refused.status == 409 and 'already exists' in refused.body, refused

pod = {'containers': [{'name': 'c', 'image': 'i'}]}
template = {'metadata': {'labels': {'app': 'web'}}, 'spec': pod}
deployment = {'apiVersion': 'apps/v1', 'kind': 'Deployment', 'metadata': {'name': 'web'},
    'spec': {'replicas': 2, 'selector': {'matchLabels': {'app': 'web'}}, 'template': template}}
assert apps.create_namespaced_deployment('default', deployment).spec.replicas == 2
assert apps.patch_namespaced_deployment_scale('web', 'default', {'spec': {'replicas': 3}}).spec.replicas == 3

any = dynamic.DynamicClient(client.ApiClient())
slices = any.resources.get(api_version='discovery.k8s.io/v1', kind='EndpointSlice')
slice = {'apiVersion': 'discovery.k8s.io/v1', 'kind': 'EndpointSlice', 'metadata': {'name': 's'}, 'addressType': 'IPv4',
    'endpoints': [{'addresses': ['10.0.0.1']}], 'ports': [{'port': 80}]}
applied = slices.server_side_apply(body=slice, namespace='default', field_manager='python')
assert applied.metadata.managedFields[0].operation == 'Apply', applied
for event in slices.watch(namespace='default', timeout=20):
    assert event['object'].metadata.name == 's', event
    break
for page in (core.list_namespaced_config_map, core.list_namespaced_service):
    first = page('default', limit=1)
    assert len(first.items) <= 1
core.delete_namespaced_service('web', 'default')
assert 'web' not in [item.metadata.name for item in core.list_namespaced_service('default').items]
print('done')
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pythons_client() {
    let found = Command::new("python3").args(["-c", "import kubernetes"]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: there is no Python package kubernetes here");
        return;
    }
    let cluster = Cluster::start().await;
    let home = tempfile::tempdir().unwrap();
    let url = format!("https://{}", cluster.address);
    std::fs::write(home.path().join("config"), cluster.api.kubeconfig(&url, &User::admin()).unwrap()).unwrap();
    let mut command = Command::new("python3");
    command.args(["-c", SCRIPT]).current_dir(home.path());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "done\n", "{}", String::from_utf8_lossy(&output.stderr));
}
