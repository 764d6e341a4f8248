//! Objects as people write them, and what is said of them, in full.

use expect_test::{Expect, expect};
use serde_json::Value;

use super::*;

/// Two nodes, the second of them as told.
fn nodes(second_is_ready: &str) -> String {
    let node = |name: &str, address: &str, ready: &str| {
        format!(
            "kind: Node\nmetadata: {{name: {name}}}\nstatus:\n  addresses: [{{type: InternalIP, address: {address}}}]\n  \
             conditions: [{{type: Ready, status: '{ready}', reason: NodeStatusUnknown, message: Kubelet stopped posting node status.}}]\n---\n"
        )
    };
    node("node1", "10.203.0.11", "True") + &node("node2", "10.203.0.12", second_is_ready)
}

/// A pod with a named port, ready or in the state given.
fn pod(name: &str, labels: &str, node: &str, status: &str) -> String {
    let status =
        if status == "ready" { "{phase: Running, conditions: [{type: Ready, status: 'True'}]}" } else { status };
    format!(
        "kind: Pod\nmetadata: {{name: {name}, labels: {{{labels}}}}}\nspec:\n  nodeName: {node}\n  containers:\n  - name: main\n    \
         ports: [{{name: http, containerPort: 8080}}]\nstatus: {status}\n---\n"
    )
}

fn slice(service: &str, port_name: &str, endpoints: &[&str]) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|endpoint| format!("- {endpoint}\n")).collect();
    let endpoints =
        if endpoints.is_empty() { "endpoints: []\n".to_owned() } else { format!("endpoints:\n{}", endpoints.concat()) };
    format!(
        "kind: EndpointSlice\nmetadata: {{name: {service}-x, namespace: default, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: IPv4\nports: [{{name: '{port_name}', port: 8080, protocol: TCP}}]\n{endpoints}---\n"
    )
}

fn service(spec: &str) -> String {
    format!("kind: Service\nmetadata: {{name: web, namespace: default}}\nspec: {{{spec}}}\n---\n")
}

const WEB: &str = "clusterIP: 10.96.0.7, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]";
const ON_1: &str =
    "{addresses: [10.244.1.5], nodeName: node1, conditions: {ready: true}, targetRef: {kind: Pod, name: web-1}}";
const ON_2: &str =
    "{addresses: [10.244.2.5], nodeName: node2, conditions: {ready: true}, targetRef: {kind: Pod, name: web-2}}";

fn read(yaml: &str) -> Objects {
    let mut objects = Objects::default();
    for document in yaml.split("---\n").filter(|document| !document.trim().is_empty()) {
        let value: Value = serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}\n{document}"));
        let kind = value["kind"].as_str().unwrap().to_owned();
        match kind.as_str() {
            "Service" => objects.service = serde_json::from_value(value).unwrap(),
            "EndpointSlice" => objects.slices.push(serde_json::from_value(value).unwrap()),
            "Pod" => objects.pods.push(serde_json::from_value(value).unwrap()),
            "Node" => objects.nodes.push(serde_json::from_value(value).unwrap()),
            "Event" => objects.events.push(serde_json::from_value(value).unwrap()),
            other => panic!("no place for a {other}"),
        }
    }
    objects
}

fn check(parts: &[String], works: bool, expected: &Expect) {
    let explanation = explain(&read(&parts.concat()), "cluster.local");
    expected.assert_eq(&render::render(&explanation));
    assert_eq!(!explanation.broken(), works);
}

#[test]
fn a_service_that_works() {
    let parts = [
        nodes("True"),
        service(WEB),
        pod("web-1", "app: web", "node1", "ready"),
        pod("web-2", "app: web", "node2", "ready"),
        slice("web", "http", &[ON_1, ON_2]),
    ];
    check(
        &parts,
        true,
        &expect![[r#"
        default/web: ClusterIP, for pods with app=web
          web.default.svc.cluster.local is 10.96.0.7

          10.96.0.7:80/TCP (ClusterIP)
             50.0 %  10.244.1.5:8080  pod web-1 on node1
             50.0 %  10.244.2.5:8080  pod web-2 on node2
    "#]],
    );
}

#[test]
fn every_kind_of_address() {
    let spec = "type: LoadBalancer, clusterIP: 10.96.0.7, selector: {app: web}, externalIPs: [192.0.2.9], sessionAffinity: ClientIP, \
                externalTrafficPolicy: Local, loadBalancerSourceRanges: [10.0.0.0/8], ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}]";
    let status = "status: {loadBalancer: {ingress: [{ip: 10.203.0.200, ipMode: VIP}]}}\n---\n";
    let parts = [
        nodes("True"),
        service(spec).replace("---\n", status),
        pod("web-1", "app: web", "node1", "ready"),
        slice("web", "http", &[ON_1]),
    ];
    check(
        &parts,
        true,
        &expect![[r#"
            default/web: LoadBalancer, for pods with app=web
              web.default.svc.cluster.local is 10.96.0.7

              10.96.0.7:80/TCP (ClusterIP)
                a client stays with the backend it was given, until it has been away for 10800s
                100.0 %  10.244.1.5:8080  pod web-1 on node1

              192.0.2.9:80/TCP (external IP)
                a client stays with the backend it was given, until it has been away for 10800s
                on node1:
                100.0 %  10.244.1.5:8080  pod web-1 on node1
                on node2: unanswered: the policy is Local and the endpoints are elsewhere

              10.203.0.200:80/TCP (LoadBalancer)
                a client stays with the backend it was given, until it has been away for 10800s
                node1 is the node that answers for it on the network
                only for clients within 10.0.0.0/8
                as above

              port 30080/TCP of every node (NodePort): 10.203.0.11, 10.203.0.12
                a client stays with the backend it was given, until it has been away for 10800s
                as above

              It works; but:
              - externalTrafficPolicy is Local: on node2 connections from beyond the cluster go unanswered, no endpoint is there
                → that is as asked; set externalTrafficPolicy: Cluster, or run a pod on each node
        "#]],
    );
}

#[test]
fn no_pod_matches() {
    let pods =
        pod("web-1", "app: wbe, tier: front", "node1", "ready") + &pod("db-1", "app: database", "node1", "ready");
    check(
        &[nodes("True"), service(WEB), pods, slice("web", "http", &[])],
        false,
        &expect![[r#"
        default/web: ClusterIP, for pods with app=web
          web.default.svc.cluster.local is 10.96.0.7

          10.96.0.7:80/TCP (ClusterIP)
            refused: there is no endpoint

          It does not work:
          - no pod matches the selector app=web; the nearest is pod web-1: app is "wbe" and not "web"
            → change spec.selector, or the labels in the pods' template
    "#]],
    );
    check(
        &[nodes("True"), service(WEB)],
        false,
        &expect![[r#"
        default/web: ClusterIP, for pods with app=web
          web.default.svc.cluster.local is 10.96.0.7

          10.96.0.7:80/TCP (ClusterIP)
            refused: there is no endpoint

          It does not work:
          - no pod matches the selector app=web: there is no pod in namespace default
            → create pods with the labels app=web
    "#]],
    );
}

#[test]
fn pods_that_are_not_ready() {
    let unhealthy = "kind: Event\ninvolvedObject: {kind: Pod, name: probed}\nreason: Unhealthy\nmetadata: {}\n\
                     message: 'Readiness probe failed: HTTP probe failed with statuscode: 503'\n---\n";
    let waiting = "{phase: Pending, containerStatuses: [{name: main, ready: false, restartCount: 0, image: x, imageID: '', \
                   state: {waiting: {reason: ErrImagePull, message: image nope is not in this node's store}}}]}";
    let crashing = "{phase: Running, containerStatuses: [{name: main, ready: false, restartCount: 3, image: x, imageID: '', \
                    state: {waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {exitCode: 2}}}]}";
    let probed = "{phase: Running, containerStatuses: [{name: main, ready: false, restartCount: 0, image: x, imageID: '', \
                  state: {running: {}}}], conditions: [{type: Ready, status: 'False'}]}";
    let unplaced = "{phase: Pending, conditions: [{type: PodScheduled, status: 'False', message: '0/2 nodes are available: 2 Insufficient cpu.'}]}";
    let not_ready = "{addresses: [10.244.1.5], nodeName: node1, conditions: {ready: false, serving: false}, targetRef: {kind: Pod, name: probed}}";
    let parts = [
        nodes("Unknown"),
        service(WEB),
        pod("crashing", "app: web", "node1", crashing),
        pod("imageless", "app: web", "node1", waiting),
        pod("lost", "app: web", "node2", "{phase: Running, conditions: [{type: Ready, status: 'False'}]}"),
        pod("probed", "app: web", "node1", probed),
        pod("unplaced", "app: web", "null", unplaced),
        pod("finished", "app: web", "node1", "{phase: Succeeded}"),
        slice("web", "http", &[not_ready]),
        unhealthy.to_owned(),
    ];
    check(
        &parts,
        false,
        &expect![[r#"
            default/web: ClusterIP, for pods with app=web
              web.default.svc.cluster.local is 10.96.0.7

              10.96.0.7:80/TCP (ClusterIP)
                refused: there is no endpoint

              It does not work:
              - 6 pods match the selector app=web, but none is ready
              - pod crashing is not ready: container main is waiting: CrashLoopBackOff; it last ended with exit code 2
              - pod imageless is not ready: container main is waiting: ErrImagePull: image nope is not in this node's store
              - pod lost is not ready: its node node2 is not ready: NodeStatusUnknown: Kubelet stopped posting node status.
              - pod probed is not ready: container main is not ready: Readiness probe failed: HTTP probe failed with statuscode: 503
              - pod unplaced is not ready: it is on no node: 0/2 nodes are available: 2 Insufficient cpu.
              - and so are 1 more
        "#]],
    );
}

#[test]
fn target_ports() {
    let named = WEB.replace("targetPort: http", "targetPort: htp");
    let pods = pod("web-1", "app: web", "node1", "ready");
    check(
        &[nodes("True"), service(&named), pods.clone(), slice("web", "http", &[])],
        false,
        &expect![[r#"
            default/web: ClusterIP, for pods with app=web
              web.default.svc.cluster.local is 10.96.0.7

              10.96.0.7:80/TCP (ClusterIP)
                refused: there is no endpoint

              It does not work:
              - port 80 (http) leads to the pods' port named "htp" (TCP), which none of the pods has; as to pod web-1: it has "http" (8080/TCP)
                → change targetPort, or name the port in the pods' template
        "#]],
    );
    let udp = WEB.replace("targetPort: http", "targetPort: 8080, protocol: UDP");
    check(
        &[nodes("True"), service(&udp), pods.clone()],
        false,
        &expect![[r#"
        default/web: ClusterIP, for pods with app=web
          web.default.svc.cluster.local is 10.96.0.7

          10.96.0.7:80/UDP (ClusterIP)
            refused: there is no endpoint

          It does not work:
          - port 80 (http) sends UDP to port 8080, which the pods declare for TCP
            → set the port's protocol in the Service, or the other in the pods' template
          - pods are ready, but no EndpointSlice lists them
            → see whether the EndpointSlice controller runs; it writes within a second
    "#]],
    );
    let number = WEB.replace("targetPort: http", "targetPort: 8081");
    check(
        &[nodes("True"), service(&number), pods, slice("web", "http", &[ON_1])],
        true,
        &expect![[r#"
        default/web: ClusterIP, for pods with app=web
          web.default.svc.cluster.local is 10.96.0.7

          10.96.0.7:80/TCP (ClusterIP)
            100.0 %  10.244.1.5:8080  pod web-1 on node1

          It works; but:
          - port 80 (http) leads to port 8081, which no pod declares (that alone does no harm); they declare "http" (8080/TCP)
            → see whether the program listens there; otherwise change targetPort
    "#]],
    );
}

#[test]
fn hand_written_endpoints() {
    let bare = "clusterIP: 10.96.0.7, ports: [{name: http, port: 80}]";
    let outside = "{addresses: [192.0.2.10]}";
    check(
        &[nodes("True"), service(bare)],
        false,
        &expect![[r#"
        default/web: ClusterIP, for the addresses of hand-written EndpointSlices
          web.default.svc.cluster.local is 10.96.0.7

          10.96.0.7:80/TCP (ClusterIP)
            refused: there is no endpoint

          It does not work:
          - the Service has no selector, and nobody has written an EndpointSlice for it
            → give it a selector, or create an EndpointSlice with the label kubernetes.io/service-name=web
    "#]],
    );
    check(
        &[nodes("True"), service(bare), slice("web", "http", &[])],
        false,
        &expect![[r#"
        default/web: ClusterIP, for the addresses of hand-written EndpointSlices
          web.default.svc.cluster.local is 10.96.0.7

          10.96.0.7:80/TCP (ClusterIP)
            refused: there is no endpoint

          It does not work:
          - the Service has no selector, and its hand-written EndpointSlices hold no address: web-x
            → add endpoints to one of them
    "#]],
    );
    check(
        &[nodes("True"), service(bare), slice("web", "", &[outside])],
        false,
        &expect![[r#"
        default/web: ClusterIP, for the addresses of hand-written EndpointSlices
          web.default.svc.cluster.local is 10.96.0.7

          10.96.0.7:80/TCP (ClusterIP)
            refused: there is no endpoint

          It does not work:
          - port 80 of the Service is named "http" (TCP), but the EndpointSlices name "" (TCP)
            → give the port the same name and protocol in both
    "#]],
    );
    check(
        &[nodes("True"), service(bare), slice("web", "http", &[outside])],
        true,
        &expect![[r#"
        default/web: ClusterIP, for the addresses of hand-written EndpointSlices
          web.default.svc.cluster.local is 10.96.0.7

          10.96.0.7:80/TCP (ClusterIP)
            100.0 %  192.0.2.10:8080  beyond the cluster
    "#]],
    );
}

#[test]
fn names_without_addresses() {
    check(
        &[service("type: ExternalName, externalName: db.example.com")],
        true,
        &expect![[r#"
        default/web: ExternalName
          web.default.svc.cluster.local is an alias (CNAME) of db.example.com; nothing is forwarded
    "#]],
    );
    check(
        &[service("type: ExternalName, externalName: 192.0.2.7")],
        false,
        &expect![[r#"
        default/web: ExternalName
          web.default.svc.cluster.local is an alias (CNAME) of 192.0.2.7; nothing is forwarded

          It does not work:
          - spec.externalName is the address 192.0.2.7, but an alias leads to a name: no resolver follows it
            → make it a Service without a selector, with an EndpointSlice that holds the address
    "#]],
    );
    let headless = WEB.replace("10.96.0.7", "None");
    let pods = pod("web-1", "app: web", "node1", "ready");
    check(
        &[nodes("True"), service(&headless), pods.clone(), slice("web", "http", &[ON_1])],
        true,
        &expect![[r#"
            default/web: headless, for pods with app=web
              web.default.svc.cluster.local is the addresses of its endpoints:
                10.244.1.5  pod web-1 on node1
        "#]],
    );
    let unready = pod("web-1", "app: web", "node1", "{phase: Running}");
    check(
        &[nodes("True"), service(&headless), unready, slice("web", "http", &[])],
        false,
        &expect![[r#"
            default/web: headless, for pods with app=web
              web.default.svc.cluster.local does not exist for now (NXDOMAIN): no endpoint is ready

              It does not work:
              - 1 pod matches the selector app=web, but none is ready
              - pod web-1 is not ready: node1 has not said that it is ready
        "#]],
    );
}

#[test]
fn load_balancers_without_an_address() {
    let spec = format!("type: LoadBalancer, {WEB}");
    let exhausted = "kind: Event\ninvolvedObject: {kind: Service, name: web}\nreason: AllocationFailed\nmetadata: {}\n\
                     message: no address is left in the pool 10.203.0.200-10.203.0.250\n---\n";
    let base = [nodes("True"), pod("web-1", "app: web", "node1", "ready"), slice("web", "http", &[ON_1])];
    let with = |spec: &str, event: &str| [base.concat(), service(spec), event.to_owned()];
    check(
        &with(&spec, exhausted),
        false,
        &expect![[r#"
        default/web: LoadBalancer, for pods with app=web
          web.default.svc.cluster.local is 10.96.0.7

          10.96.0.7:80/TCP (ClusterIP)
            100.0 %  10.244.1.5:8080  pod web-1 on node1

          It does not work:
          - the LoadBalancer has no external address: no address is left in the pool 10.203.0.200-10.203.0.250
    "#]],
    );
    check(
        &with(&format!("{spec}, loadBalancerClass: example.com/cloud"), ""),
        false,
        &expect![[r#"
        default/web: LoadBalancer, for pods with app=web
          web.default.svc.cluster.local is 10.96.0.7

          10.96.0.7:80/TCP (ClusterIP)
            100.0 %  10.244.1.5:8080  pod web-1 on node1

          It does not work:
          - the LoadBalancer has no external address: its class example.com/cloud is left to whoever serves it
            → remove spec.loadBalancerClass (create the Service anew), or run what serves that class
    "#]],
    );
    check(
        &with(&spec, ""),
        false,
        &expect![[r#"
        default/web: LoadBalancer, for pods with app=web
          web.default.svc.cluster.local is 10.96.0.7

          10.96.0.7:80/TCP (ClusterIP)
            100.0 %  10.244.1.5:8080  pod web-1 on node1

          It does not work:
          - the LoadBalancer has no external address yet: the pool is empty or used up, or nobody hands addresses out
            → see the Events of the Service; widen the pool with `portolan up --lb-pool`
    "#]],
    );
}

#[test]
fn a_dead_node_and_nonsense() {
    let nonsense = WEB.replace("selector", "externalIPs: [10.96.0.x], selector");
    let pods = pod("web-1", "app: web", "node1", "ready") + &pod("web-2", "app: web", "node2", "ready");
    check(
        &[nodes("Unknown"), service(&nonsense), pods, slice("web", "http", &[ON_1, ON_2])],
        true,
        &expect![[r#"
        default/web: ClusterIP, for pods with app=web
          web.default.svc.cluster.local is 10.96.0.7

          10.96.0.7:80/TCP (ClusterIP)
             50.0 %  10.244.1.5:8080  pod web-1 on node1
             50.0 %  10.244.2.5:8080  pod web-2 on node2, which is not ready

          It works; but:
          - 1 endpoint is said to be ready, though its node node2 is not ready: NodeStatusUnknown: Kubelet stopped posting node status.
          - the Service, spec.externalIPs: "10.96.0.x" is not an IP address; it is ignored
    "#]],
    );
}
