//! What a container finds around itself, and what its node serves of it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::api::Api;
use crate::lab::{Lab, NODE_IP, app, delete};
use crate::{condition, container, get, gone, ip, ready};

pub(crate) fn too_much_memory_is_oom_killed() {
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    if v2.is_ok_and(|controllers| !controllers.contains("memory")) {
        return portolan_testkit::skip("needs a cgroup hierarchy that can limit memory");
    }
    let lab = Lab::new();
    lab.create(
        "glutton",
        json!({"restartPolicy": "Never", "containers": [
        {"name": "app", "args": ["eat"], "resources": {"limits": {"memory": "32Mi"}}}]}),
    );
    lab.with_agent(async |api: Api| {
        api.until("it is over", |api| api.pod("glutton")["status"]["phase"] == "Failed").await;
        let state = container(&api, "glutton")["state"]["terminated"].clone();
        assert_eq!((&state["reason"], &state["exitCode"]), (&json!("OOMKilled"), &json!(137)));
    });
}

pub(crate) fn a_container_sees_what_its_pod_says() {
    let lab = Lab::new();
    lab.api.put("configmaps", json!({"metadata": {"name": "settings", "namespace": "shop"}, "data": {"key": "value"}}));
    lab.api.put(
        "services",
        json!({"metadata": {"name": "db", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 5432}]}}),
    );
    let shared = |path: &str| json!({"name": "shared", "mountPath": path});
    lab.create("web-0", json!({
        "restartPolicy": "Never",
        "volumes": [{"name": "shared", "emptyDir": {"medium": "Memory"}}, {"name": "config", "configMap": {"name": "settings"}}],
        "initContainers": [
            {"name": "first", "args": ["append", "/shared/note", "first"], "volumeMounts": [shared("/shared")]},
            {"name": "second", "args": ["append", "/shared/note", "second"], "volumeMounts": [shared("/shared")]}],
        "containers": [{
            "name": "app", "args": ["show"], "workingDir": "/tmp",
            "env": [
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "key"}}}],
            "securityContext": {"runAsUser": 1000, "runAsGroup": 1001, "readOnlyRootFilesystem": true,
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [shared("/shared"), {"name": "config", "mountPath": "/config"}]}]}));
    lab.with_agent(async |api: Api| {
        api.until("it is done", |api| api.pod("web-0")["status"]["phase"] == "Succeeded").await;
        assert_eq!(condition(&api, "web-0", "Initialized"), "True");
    });
    let shown = lab.log("web-0", "app", 0);
    let address = ip(&lab.api, "web-0");
    for line in [
        "pid 1 hostname web-0 cwd /tmp",
        "user 1000 group 1001",
        "env NAME=web-0",
        &format!("env IP={address}"),
        "env KEY=value",
        "env DB_SERVICE_HOST=10.96.0.9",
        "env HOSTNAME=web-0",
        "/etc/resolv.conf: nameserver 10.96.0.10",
        &format!("/etc/hosts: {address}\tweb-0"),
        "/etc/hostname: web-0",
        "/shared/note: first",
        "/shared/note: second",
        "/config/key: value",
        "CapBnd:\t0000000000000000",
        "SigBlk:\t0000000000000000",
        "NoNewPrivs:\t1",
        "write to root Err(ReadOnlyFilesystem), to sysctl Err(ReadOnlyFilesystem)",
        // Its three standard ones, and the one it counts them with.
        "open files 4",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line:?} is not in:\n{shown}");
    }
}

pub(crate) fn volumes_follow_what_they_are_made_from_and_have_parts() {
    let lab = Lab::new();
    let settings = |value: &str| json!({"metadata": {"name": "settings", "namespace": "shop"}, "data": {"key": value}});
    lab.api.put("configmaps", settings("old"));
    let mount = |name: &str, path: &str, part: &str| json!({"name": name, "mountPath": path, "subPath": part});
    lab.create(
        "reader",
        json!({"restartPolicy": "Never",
        "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "config", "configMap": {"name": "settings"}}],
        "initContainers": [
            {"name": "writer", "args": ["append", "/part/note", "hello"], "volumeMounts": [mount("scratch", "/part", "a/b")]},
            {"name": "finder", "args": ["await", "/scratch/a/b/note", "hello\n"], "volumeMounts": [mount("scratch", "/scratch", "")]}],
        "containers": [{"name": "app", "args": ["await", "/config/key", "new"], "volumeMounts": [mount("config", "/config", "")]}]}),
    );
    lab.with_agent(async |api: Api| {
        api.until("it runs", |api| !container(api, "reader")["state"]["running"].is_null()).await;
        api.put("configmaps", settings("new"));
        api.until("it has read the new value", |api| api.pod("reader")["status"]["phase"] == "Succeeded").await;
        assert_eq!(api.pod("reader")["status"]["initContainerStatuses"][0]["ready"], true);
    });
}

pub(crate) fn a_condition_that_comes_meanwhile_is_kept() {
    let lab = Lab::new();
    lab.create("web", json!({"containers": [app(&["polite"])]}));
    lab.api.rival("web", |pod| {
        let target = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"});
        pod["status"]["conditions"] = json!([target]);
    });
    lab.with_agent(async |api: Api| {
        ready(&api, "web").await;
        assert_eq!(condition(&api, "web", "DisruptionTarget"), "True");
    });
}

pub(crate) fn a_pod_that_would_change_the_machine_is_rejected() {
    let lab = Lab::new();
    let core_pattern = || std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let before = core_pattern();
    let sysctls = json!([{"name": "kernel.core_pattern", "value": "changed"}]);
    lab.create("rude", json!({"securityContext": {"sysctls": sysctls}, "containers": [app(&["polite"])]}));
    lab.with_agent(async |api: Api| {
        api.until("it has failed", |api| api.pod("rude")["status"]["phase"] == "Failed").await;
        let status = api.pod("rude")["status"].clone();
        let message = "Pod was rejected: forbidden sysctl: \"kernel.core_pattern\" not allowlisted";
        assert_eq!((&status["reason"], &status["message"]), (&json!("SysctlForbidden"), &json!(message)));
    });
    assert_eq!(core_pattern(), before);
}

/// The body of an answer over TLS, with or without a client certificate and its key.
async fn fetch(lab: &Lab, path: &str, client: Option<&(String, String)>) -> Result<String, String> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(lab.tls.client_ca.as_bytes()).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let config = match client {
        Some((certificate, key)) => {
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            config.with_client_auth_cert(vec![certificate], key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    let stream = tokio::net::TcpStream::connect((NODE_IP, 10250)).await.map_err(|error| error.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let talk = async {
        let mut stream = connector.connect("node".try_into().unwrap(), stream).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    let answer: String = talk.await.map_err(|error: std::io::Error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    if head.starts_with("HTTP/1.0 200") { Ok(body.to_owned()) } else { Err(format!("{head}\n{body}")) }
}

pub(crate) fn logs_are_served_to_the_clusters_own() {
    let lab = Lab::new();
    lab.create("talker", json!({"containers": [app(&["say", "one", "two"])]}));
    lab.with_agent(async |api: Api| {
        ready(&api, "talker").await;
        lab.started("talker").await;
        let path = "/containerLogs/shop/talker/app";
        let (known, other) = (Some(&lab.api_server), Some(&lab.other_node));
        let refused = fetch(&lab, path, other).await.unwrap_err();
        assert!(refused.contains("403") && refused.contains("system:node:node-2"), "{refused}");
        let pods: Value = serde_json::from_str(&fetch(&lab, "/pods", known).await.unwrap()).unwrap();
        assert_eq!((&pods["kind"], &pods["items"][0]["metadata"]["name"]), (&json!("PodList"), &json!("talker")));
        fetch(&lab, "/pods", other).await.unwrap_err();
        let follow = fetch(&lab, "/containerLogs/shop/talker/app?follow=true", known);
        let end = async {
            delete(&api, "talker", 30);
        };
        let (followed, ()) = tokio::join!(follow, end);
        assert_eq!(followed.unwrap(), "one\ntwo\nstarted\nterminating\n");
        gone(&api, "talker").await;
        assert!(fetch(&lab, path, known).await.unwrap_err().contains("404"));
        assert_eq!(fetch(&lab, "/healthz", other).await.unwrap(), "ok");
        fetch(&lab, "/healthz", None).await.unwrap_err();
        // Strangers who say nothing, as many as there may be connections, and more: they lose their places.
        let mut silent = Vec::new();
        for _ in 0..300 {
            silent.push(tokio::net::TcpStream::connect((NODE_IP, 10250)).await.unwrap());
        }
        let healthz = tokio::time::timeout(Duration::from_secs(30), fetch(&lab, "/healthz", known)).await;
        assert_eq!(healthz.expect("there is a place for those who are known").unwrap(), "ok");
        drop(silent);
    });
}

pub(crate) fn a_pod_in_the_nodes_network() {
    let lab = Lab::new();
    lab.create("host", json!({"hostNetwork": true, "containers": [app(&["serve"])]}));
    lab.with_agent(async |api: Api| {
        ready(&api, "host").await;
        assert_eq!(ip(&api, "host"), NODE_IP);
        get(format!("{NODE_IP}:8080")).await;
        delete(&api, "host", 1);
        gone(&api, "host").await;
    });
}

pub(crate) fn an_image_that_comes_is_used_at_once() {
    let lab = Lab::new();
    lab.create("early", json!({"containers": [{"name": "app", "image": "late:1", "args": ["polite"]}]}));
    lab.with_agent(async |api: Api| {
        api.until("it waits", |api| container(api, "early")["state"]["waiting"]["reason"] == "ErrImagePull").await;
        let known = lab.images().join("images/docker.io%portolan%workload:latest.json");
        let mut record: Value = serde_json::from_slice(&std::fs::read(known).unwrap()).unwrap();
        record["name"] = json!("docker.io/library/late:1");
        // As an import puts it in place.
        let new = lab.images().join("tmp/late");
        std::fs::write(&new, record.to_string()).unwrap();
        let came = Instant::now();
        std::fs::rename(new, lab.images().join("images/docker.io%library%late:1.json")).unwrap();
        ready(&api, "early").await;
        assert!(came.elapsed() < Duration::from_secs(5), "it came by at its next back-off: {:?}", came.elapsed());
    });
}
