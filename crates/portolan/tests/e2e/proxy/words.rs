//! What is wrong with Services and with configurations, in words.

use super::*;

#[test]
fn what_is_wrong_with_a_service_shows_in_its_events() {
    require_root!();
    let lab = Lab::new();
    let server = lab.serve(API_PORT);
    let web = lab.api(API_PORT, |api| {
        register(api);
        let with_address = |name: &str| {
            api.service(json!({
                "metadata": {"name": name},
                "spec": {"externalIPs": ["198.51.100.7"], "ports": [{"port": 80}]},
            }))
        };
        with_address("first");
        with_address("second");
        service(api, "web")
    });
    let port = u16::try_from(web["spec"]["healthCheckNodePort"].as_u64().unwrap()).unwrap();
    let taken = lab.node.run(|| TcpListener::bind(address(NODE, port)).unwrap());
    let proxy = lab.proxy();
    let event = |reason: &str| {
        eventually(reason, SOON, || {
            let events = lab.api(API_PORT, |api| api.get("/api/v1/namespaces/default/events"));
            let events = events["items"].as_array().unwrap();
            events.iter().find(|event| event["reason"] == reason).cloned().ok_or_else(|| format!("{events:?}"))
        })
    };
    let conflict = event("ServiceFieldIgnored");
    assert_eq!(conflict["source"]["component"], "portolan-proxy");
    let message = conflict["message"].as_str().unwrap();
    assert!(message.contains("198.51.100.7") && message.contains("belongs to Service default/"), "{message}");
    let about = conflict["involvedObject"]["name"].as_str().unwrap();
    let object = lab.api(API_PORT, |api| api.get(&format!("{SERVICES}/{about}")));
    assert_eq!(conflict["involvedObject"]["uid"], object["metadata"]["uid"], "describe looks for the uid");
    let message = event("FailedToStartServiceHealthcheck")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("node1") && message.contains(&port.to_string()), "{message}");
    // Who listens where a NodePort comes is told of.
    let held = lab.node.run(|| TcpListener::bind(address("0.0.0.0", 30_090)).unwrap());
    lab.api(API_PORT, |api| {
        api.service(json!({
            "metadata": {"name": "outward"},
            "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_090}]},
        }))
    });
    let message = event("NodePortHeld")["message"].as_str().unwrap().to_owned();
    let process = format!("(process {}) at 0.0.0.0:30090", std::process::id());
    assert!(message.contains("TCP port 30090 of node node1") && message.contains(&process), "{message}");
    drop((taken, held));
    eventually("the port is had once it is free", SOON, || match lab.get(address(NODE, port), "/") {
        Ok((503, ..)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    proxy.stop();
    server.stop();
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_in_words() {
    require_root!();
    let lab = Lab::new();
    let file = lab.path("config.yaml");
    std::fs::write(
        &file,
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nnftables: {masqueradeBit: 99}\n",
    )
    .unwrap();
    let began = Instant::now();
    let output = lab.run(&["--config", &file.display().to_string()]);
    assert!(began.elapsed() < SOON, "it does not start to run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("config.yaml") && said.contains("nftables.masqueradeBit: 99"), "{said}");
    let output = lab.run(&["--kubeconfig=/nowhere"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("/nowhere"), "{said}");
    let output = lab.run(&["--hostname-override=node1"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--kubeconfig"), "{said}");
}

#[test]
fn another_configuration_ends_the_proxy_and_what_is_written_can_be_used() {
    require_root!();
    let lab = Lab::new();
    let (_echo, server, web) = lab.with_web();
    let file = lab.path("written.yaml");
    let write = format!("--write-config-to={}", file.display());
    let arguments: Vec<String> = lab.arguments().into_iter().chain([write]).collect();
    let written = lab.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("kind: KubeProxyConfiguration") && text.contains("clusterCIDR: 10.244.0.0/16"), "{text}");

    let config = format!("--config={}", file.display());
    let arguments = [&config, "--hostname-override=node1", "--socket-lb=false"];
    let log = File::create(lab.path("log")).unwrap();
    let mut child = lab.node.run(|| lab.command(&arguments).stderr(log).spawn().unwrap());
    lab.reaches(cluster_ip(&web), "a");
    std::fs::write(&file, text.replace("masqueradeAll: false", "masqueradeAll: true")).unwrap();
    let status = eventually("the proxy ends", SOON, || child.try_wait().unwrap().ok_or("it runs on".to_owned()));
    let log = std::fs::read_to_string(lab.path("log")).unwrap();
    assert!(!status.success() && log.contains("written.yaml has changed"), "{log}");
    lab.reaches(cluster_ip(&web), "a");
    server.stop();
}
