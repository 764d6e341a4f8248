//! What a proxy does on a node, what it says of it, and what stays when it ends.

use super::*;

#[test]
fn a_node_of_any_cluster_is_forwarded_for_and_says_how_it_is() {
    require_root!();
    let lab = Lab::new();
    let (_echo, server, web) = lab.with_web();
    let before = lab.ruleset();
    let proxy = lab.proxy();
    lab.reaches(cluster_ip(&web), "a");

    let health = address("127.0.0.1", 10256);
    let (status, _, body) = lab.get(health, "/healthz").unwrap();
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["healthy"], &body["nodeEligible"]), (200, &json!(true), &json!(true)), "{body}");
    assert_eq!(lab.get(address("127.0.0.1", 10249), "/proxyMode").unwrap().2, "nftables");
    let changes = lab.metric("kubeproxy_sync_proxy_rules_service_changes_total").unwrap();
    assert!(changes >= 2.0, "kubernetes and web: {changes}");
    assert_eq!(lab.metric("kubeproxy_proxy_healthz_total{code=\"200\"}"), Some(1.0));

    let counted = lab.metric(CONNECTIONS).unwrap();
    lab.reaches(cluster_ip(&web), "a");
    assert_eq!(lab.metric(CONNECTIONS), Some(counted + 1.0));

    // The load balancer's question has another answer once the endpoint is elsewhere.
    let check = address(NODE, u16::try_from(web["spec"]["healthCheckNodePort"].as_u64().unwrap()).unwrap());
    let (status, head, body) = lab.get(check, "/").unwrap();
    assert!(head.to_lowercase().contains("x-load-balancing-endpoint-weight: 1"), "{head}");
    let expected = json!({"service": {"namespace": "default", "name": "web"}, "localEndpoints": 1,
        "serviceProxyHealthy": true});
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, expected));
    let elsewhere = json!({"endpoints": slice("web", "node2", 9001)["endpoints"]});
    lab.api(API_PORT, |api| api.merge(&format!("{SLICES}/web"), &elsewhere));
    eventually("the health check says no", SOON, || match lab.get(check, "/") {
        Ok((503, ..)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    lab.reaches(cluster_ip(&web), "a");
    let no_local =
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"}";
    assert_eq!(lab.metric(no_local), Some(1.0));

    // A node that is about to go gets no traffic, and no restart either.
    let taints = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    lab.api(API_PORT, |api| api.merge("/api/v1/nodes/node1", &json!({"spec": {"taints": taints}})));
    eventually("the node is not eligible any more", SOON, || match lab.get(health, "/healthz") {
        Ok((503, ..)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(lab.get(health, "/livez").unwrap().0, 200);

    // There is one proxy, and it is known who.
    let arguments = lab.arguments();
    let second = lab.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains(&proxy.child.id().to_string()), "{said}");
    assert!(said.contains("portolan proxy"), "{said}");
    let cleanup = lab.run(&["--cleanup"]);
    assert!(!cleanup.status.success(), "nothing is removed from under a proxy that runs");
    lab.reaches(cluster_ip(&web), "a");

    proxy.stop();
    lab.reaches(cluster_ip(&web), "a");
    let cleanup = lab.run(&["--cleanup"]);
    assert!(cleanup.status.success(), "{}", String::from_utf8_lossy(&cleanup.stderr));
    assert_eq!(lab.ruleset(), before);
    let cleanup = lab.run(&["--cleanup"]);
    assert!(cleanup.status.success(), "there is nothing to remove, and that is no failure");
    server.stop();
}

#[test]
fn a_killed_proxy_is_replaced_without_a_connection_or_a_rule_noticing() {
    require_root!();
    let lab = Lab::new();
    let (_echo, server, web) = lab.with_web();
    let proxy = lab.proxy();
    lab.reaches(cluster_ip(&web), "a");
    let connection = lab.node.run(|| Dial::tcp(cluster_ip(&web)).open().unwrap());
    assert_eq!(Outcome::greeting(&connection).by(), Some("a"));
    assert!(say(&connection, "before"));
    let counted = lab.metric(CONNECTIONS).unwrap();
    let before = lab.ruleset();
    proxy.kill();
    assert!(say(&connection, "without"));
    lab.reaches(cluster_ip(&web), "a");
    let proxy = lab.proxy();
    assert!(say(&connection, "after"));
    assert_eq!(lab.operations(), 0.0, "what was there was adopted");
    assert!(lab.metric(CONNECTIONS).unwrap() > counted, "counting went on");
    match &before {
        Some(before) => assert_eq!(lab.ruleset().as_ref(), Some(before)),
        None => skip("needs nft, to look at the rules' handles"),
    }
    proxy.stop();
    server.stop();
}

#[test]
fn a_machine_outside_joins_a_running_cluster_as_a_further_node() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "1"]);
        let api = cluster.client();
        api.deploy("web", 2);
        let web = api.service(json!({
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
        }));
        api.post("/api/v1/nodes", &json!({"metadata": {"name": "further"}}));
        let addresses = json!([{"type": "InternalIP", "address": "10.203.0.2"}]);
        api.merge("/api/v1/nodes/further/status", &json!({"status": {"addresses": addresses}}));

        let outside = nlink::netlink::namespace::Netns::open("portolan-outside").unwrap();
        // Pods are behind their node. Services are nowhere: without a proxy, nobody would answer for them.
        let routes = || {
            block_on(async {
                let route = Connection::<Route>::new().unwrap();
                let pods = Ipv4Route::new(Ipv4Addr::new(10, 244, 0, 0), 16);
                route.add_route(pods.gateway(Ipv4Addr::new(10, 203, 0, 11)).dev("eth0")).await.unwrap();
                route.add_route(Ipv4Route::new(Ipv4Addr::new(10, 96, 0, 0), 12).dev("eth0")).await.unwrap();
            });
        };
        outside.run(routes).unwrap();
        let target = cluster_ip(&web);
        let ask = || http_from("portolan-outside", target.ip(), target.port());
        assert!(ask().is_err(), "there is no proxy yet");

        let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
        command.args(["proxy", "--hostname-override=further", "--cluster-cidr=10.244.0.0/16"]);
        command.args(["--conntrack-max-per-core=0", "--oom-score-adj=0", "--socket-lb=false"]);
        // The cluster's own kubeconfig says where the API server is for the machine that it runs on.
        command.args(["--master=https://10.203.0.1:6443", "--kubeconfig"]);
        command.arg(cluster.kubeconfig());
        command.stderr(File::create(machine.path("proxy.log")).unwrap()).stdout(Stdio::null());
        let proxy = Proxy { log: machine.path("proxy.log"), child: outside.run(|| command.spawn().unwrap()).unwrap() };
        let backends = eventually("both pods answer", SOON, || {
            let answers: BTreeSet<String> = (0..20).map(|_| ask()).collect::<Result<_, _>>()?;
            if answers.len() == 2 { Ok(answers) } else { Err(format!("{answers:?}")) }
        });
        // An agent says the same things of its own node, where the others can ask.
        let node1 = |port, path: &'static str| outside.run(move || get(address("10.203.0.11", port), path)).unwrap();
        assert_eq!(node1(10256, "/healthz").unwrap().0, 200);
        assert!(node1(10249, "/metrics").is_err(), "what goes through Services is nobody else's business");
        let own = nlink::netlink::namespace::Netns::open("portolan-node1").unwrap();
        assert_eq!(own.run(|| get(address("127.0.0.1", 10256), "/healthz")).unwrap().unwrap().0, 200);
        let metrics = own.run(|| get(address("127.0.0.1", 10249), "/metrics")).unwrap().unwrap().2;
        assert!(metrics.contains("portolan_service_bytes_total{namespace=\"default\",service=\"web\""), "{metrics}");
        // The pods are replaced, and the proxy follows as every node does.
        api.delete("/api/v1/namespaces/default/pods?labelSelector=app=web");
        eventually("the new pods answer", SOON, || match ask() {
            Ok(answer) if !backends.contains(&answer) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        proxy.stop();
        assert!(cluster.stop().success());
    });
}
