//! Sessions with pods and requests through `/proxy`, as every stock kubectl on the PATH asks for them: those before
//! 1.31 speak SPDY, later ones WebSockets.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::cluster::{Cluster, SOON, http, http_get};
use crate::logs;
use crate::machine::{Machine, block_on, eventually, on_a_machine, skip};

/// Every kubectl there is: `kubectl`, `kubectl.1.27` …
fn kubectls() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found: Vec<PathBuf> = std::env::split_paths(&path)
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flat_map(Iterator::flatten)
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name == "kubectl" || name.starts_with("kubectl.1.")
        })
        .filter(|path| Command::new(path).args(["version", "--client"]).output().is_ok_and(|o| o.status.success()))
        .collect();
    // Some directories are others by another name.
    found.sort_by_key(|path| fs::canonicalize(path).unwrap());
    found.dedup_by_key(|path| fs::canonicalize(path).unwrap());
    found
}

/// The name of an image with a shell and a few tools of this machine, and what they are linked with.
pub(crate) const TOOLS: &str = "tools:1";

fn import_tools(machine: &Machine) {
    let root = machine.path("tools");
    for directory in ["bin", "tmp", "etc"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    let shell = |line: &str| {
        let output = Command::new("sh").args(["-c", line]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for tool in ["sh", "cat", "tar", "stty", "sleep", "ls", "openssl"] {
        let from = shell(&format!("readlink -f \"$(command -v {tool})\"")).trim().to_owned();
        fs::copy(&from, root.join("bin").join(tool)).unwrap();
        for word in shell(&format!("ldd {from} || true")).split_whitespace().filter(|word| word.starts_with('/')) {
            let library = root.join(word.trim_start_matches('/'));
            fs::create_dir_all(library.parent().unwrap()).unwrap();
            fs::copy(word, library).unwrap();
        }
    }
    let archive = machine.path("image");
    fs::create_dir_all(&archive).unwrap();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sleep", "3600"]},
        "rootfs": {"type": "layers", "diff_ids": []}});
    fs::write(archive.join("config.json"), config.to_string()).unwrap();
    let manifest = json!([{"Config": "config.json", "RepoTags": [TOOLS], "Layers": ["layer.tar"]}]);
    fs::write(archive.join("manifest.json"), manifest.to_string()).unwrap();
    let tar = machine.path("tools.tar").display().to_string();
    shell(&format!("tar -C {} -cf {}/layer.tar .", root.display(), archive.display()));
    shell(&format!("tar -C {} -cf {tar} .", archive.display()));
    let data = machine.path("data").display().to_string();
    let imported = machine.portolan(&["image", "import", "--data-dir", &data, &tar]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
}

pub(crate) struct Kubectl<'a> {
    program: PathBuf,
    pub(crate) cluster: &'a Cluster<'a>,
}

pub(crate) struct Said {
    status: ExitStatus,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Kubectl<'_> {
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .env("HOME", self.cluster.machine().path("home"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str], input: Option<&[u8]>) -> Said {
        let mut command = self.command(arguments);
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let output = std::thread::scope(|scope| {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // Refused where it is not read to its end.
                scope.spawn(move || drop(stdin.write_all(input)));
            }
            child.wait_with_output().unwrap()
        });
        Said { status: output.status, out: output.stdout, err: String::from_utf8_lossy(&output.stderr).into_owned() }
    }

    pub(crate) fn ok(&self, arguments: &[&str], input: Option<&[u8]>) -> Vec<u8> {
        let Said { status, out, err } = self.run(arguments, input);
        let shown = String::from_utf8_lossy(&out[..out.len().min(1000)]).into_owned();
        assert!(status.success(), "{} {arguments:?}: {shown}{err}", self.program.display());
        out
    }

    pub(crate) fn text(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.ok(arguments, None)).unwrap()
    }

    /// What fails, and what it says.
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments, None);
        assert!(!said.status.success(), "{arguments:?} should fail");
        said.err
    }
}

/// Bytes that no line discipline leaves alone.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

pub(crate) fn on_a_cluster(test: fn(&Cluster<'_>, &[Kubectl<'_>])) {
    let programs = kubectls();
    if programs.is_empty() {
        return skip("needs kubectl");
    }
    if Command::new("openssl").arg("version").output().is_err() {
        return skip("needs openssl, for a backend that speaks TLS");
    }
    on_a_machine(move |machine| {
        let cluster = Cluster::up(machine, &["--nodes", "1"]);
        import_tools(machine);
        let kubectls: Vec<_> = programs.into_iter().map(|program| Kubectl { program, cluster: &cluster }).collect();
        test(&cluster, &kubectls);
        drop(kubectls);
        assert!(cluster.stop().success());
    });
}

fn run_tools(cluster: &Cluster<'_>) {
    let api = cluster.client();
    let pod = json!({
        "metadata": { "name": "tools" },
        "spec": { "terminationGracePeriodSeconds": 0, "containers": [{ "name": "main", "image": TOOLS }] },
    });
    api.post("/api/v1/namespaces/default/pods", &pod);
    eventually("the pod runs", SOON, || match &api.get("/api/v1/namespaces/default/pods/tools")["status"] {
        status if status["phase"] == "Running" => Ok(()),
        status => Err(status.to_string()),
    });
}

#[test]
fn commands_run_in_containers() {
    on_a_cluster(|cluster, kubectls| {
        run_tools(cluster);
        logs::run_teller(&kubectls[0]);
        logs::following_ends_with_the_container(&kubectls[0]);
        for kubectl in kubectls {
            eprintln!("{}", kubectl.program.display());
            let said = kubectl.run(&["exec", "tools", "--", "sh", "-c", "echo out; echo err >&2; exit 3"], None);
            assert_eq!((said.status.code(), said.out.as_slice()), (Some(3), b"out\n".as_slice()), "{}", said.err);
            assert!(said.err.contains("err\n"), "{}", said.err);
            assert!(said.err.contains("command terminated with exit code 3"), "{}", said.err);

            let sent = noise(3 << 20);
            let echoed = kubectl.ok(&["exec", "-i", "tools", "--", "cat"], Some(&sent));
            assert!(echoed == sent, "{} of {} bytes came back", echoed.len(), sent.len());
            // What has ended is not waited for by those that it left behind, and loses nothing of what it said.
            let out = kubectl.ok(&["exec", "tools", "--", "sh", "-c", "sleep 1000 & cat /bin/sh"], None);
            assert!(out == fs::read(cluster.machine().path("tools/bin/sh")).unwrap(), "{} bytes came", out.len());

            let refused = kubectl.refused(&["exec", "tools", "--", "/no/such/program"]);
            assert!(refused.contains("error executing command in container"), "{refused}");
            let refused = kubectl.refused(&["exec", "tools", "-c", "other", "--", "true"]);
            assert!(refused.contains("container other is not valid for pod tools"), "{refused}");
            copies(kubectl);
            terminal(kubectl);
            logs::every_option_is_heeded(kubectl);
        }
    });
}

fn copies(kubectl: &Kubectl<'_>) {
    let machine = kubectl.cluster.machine();
    let (here, back) = (machine.path("here"), machine.path("back"));
    let sent = noise(1 << 20);
    fs::write(&here, &sent).unwrap();
    let _ = fs::remove_file(&back);
    kubectl.ok(&["cp", &here.display().to_string(), "tools:/tmp/there"], None);
    kubectl.ok(&["cp", "tools:/tmp/there", &back.display().to_string()], None);
    assert!(fs::read(&back).unwrap() == sent, "what was copied there and back is the same");
}

/// A terminal for a kubectl, of a size that nobody has by chance.
fn terminal(kubectl: &Kubectl<'_>) {
    let size = nix::pty::Winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(Some(&size), None).unwrap();
    let line = "until test \"$(stty size)\" = '33 99'; do sleep 0.05; done; echo sized $TERM; read word; echo \"got \
                $word\"; until test \"$(stty size)\" = '44 111'; do sleep 0.05; done; echo resized";
    let slave = pty.slave;
    let end = || Stdio::from(slave.try_clone().unwrap());
    let mut child = kubectl
        .command(&["exec", "-it", "tools", "--", "sh", "-c", line])
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .unwrap();
    let mut master = File::from(pty.master);
    let mut reader = master.try_clone().unwrap();
    let (sender, said) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length) = reader.read(&mut buffer) {
            if sender.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut seen = String::new();
    let mut until = |words: &str| {
        while !seen.contains(words) {
            seen += &said.recv_timeout(SOON).unwrap_or_else(|_| panic!("{words} was not said: {seen}"));
        }
    };
    until("sized xterm");
    master.write_all(b"hello\r").unwrap();
    until("got hello");
    // A terminal tells only those whose own it is, and this kubectl is nobody's.
    let resized = Command::new("stty").args(["rows", "44", "cols", "111"]).stdin(end()).status().unwrap();
    assert!(resized.success());
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGWINCH).unwrap();
    until("resized");
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_first_process_can_be_attached_to() {
    on_a_cluster(|cluster, kubectls| {
        for kubectl in kubectls {
            let version = kubectl.program.display();
            let line = "while read word; do echo \"got $word\"; done; echo over; exit 5";
            let image = format!("--image={TOOLS}");
            let arguments = ["run", "once", "-i", "--rm", "--quiet", "--restart=Never", &image, "--", "sh", "-c", line];
            let said = kubectl.run(&arguments, Some(b"one\ntwo\n"));
            let out = String::from_utf8_lossy(&said.out);
            assert!(out.ends_with("over\n") && out.contains("two"), "{version}: {out}{}", said.err);
            assert_eq!(said.status.code(), Some(5), "{version}: {}", said.err);
            let api = cluster.client();
            eventually("the pod is gone", SOON, || {
                match api.get("/api/v1/namespaces/default/pods")["items"].as_array().map_or(0, Vec::len) {
                    0 => Ok(()),
                    left => Err(left.to_string()),
                }
            });
        }
        for kubectl in kubectls {
            input_ends_with_its_client(kubectl);
        }
        // Without input, and to one that goes on: what it says from now on, until one goes away.
        let pod = json!({
            "metadata": { "name": "talker" },
            "spec": { "terminationGracePeriodSeconds": 0, "containers": [{
                "name": "main", "image": TOOLS, "tty": true, "stdin": true,
                "command": ["sh", "-c", "while sleep 0.1; do echo tick; done"],
            }] },
        });
        cluster.client().post("/api/v1/namespaces/default/pods", &pod);
        for kubectl in kubectls {
            kubectl.ok(&["wait", "--for=condition=Ready", "pod/talker", "--timeout=30s"], None);
            let mut child = kubectl.command(&["attach", "talker"]).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
            assert!(lines.any(|line| line.trim_end() == "tick"), "{}", kubectl.program.display());
            child.kill().unwrap();
            child.wait().unwrap();
        }
        input_is_heard(kubectls);
        let logged = kubectls[0].text(&["logs", "talker", "--tail=1"]);
        assert_eq!(logged, "tick\r\n", "a terminal's output is logged as it is");
    });
}

/// A process that was to end with its first client's input does so when that is killed, too.
fn input_ends_with_its_client(kubectl: &Kubectl<'_>) {
    let line = "while read word; do echo \"got $word\"; done; echo over; exit 5";
    let image = format!("--image={TOOLS}");
    let arguments = ["run", "left", "-i", "--quiet", "--restart=Never", &image, "--", "sh", "-c", line];
    let mut child = kubectl.command(&arguments).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    writeln!(stdin, "word").unwrap();
    assert_eq!(lines.next().as_deref(), Some("got word"), "{}", kubectl.program.display());
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the process ends", SOON, || {
        match kubectl.text(&["get", "pod", "left", "-o=jsonpath={.status.phase}"]) {
            phase if phase == "Failed" => Ok(()),
            phase => Err(phase),
        }
    });
    assert!(kubectl.text(&["logs", "left"]).ends_with("over\n"));
    kubectl.ok(&["delete", "pod", "left", "--now"], None);
}

/// Who attaches with input is heard by one first process after the other client: its input ends with none of them.
fn input_is_heard(kubectls: &[Kubectl<'_>]) {
    let pod = json!({
        "metadata": { "name": "listener" },
        "spec": { "terminationGracePeriodSeconds": 0, "containers": [{
            "name": "main", "image": TOOLS, "stdin": true,
            "command": ["sh", "-c", "while read word; do echo \"heard $word\"; done"],
        }] },
    });
    kubectls[0].cluster.client().post("/api/v1/namespaces/default/pods", &pod);
    for (number, kubectl) in kubectls.iter().enumerate() {
        kubectl.ok(&["wait", "--for=condition=Ready", "pod/listener", "--timeout=30s"], None);
        let mut child = kubectl.command(&["attach", "-i", "listener"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "word-{number}").unwrap();
        assert_eq!(lines.next(), Some(format!("heard word-{number}")), "{}", kubectl.program.display());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(kubectls[0].text(&["get", "pod", "listener"]).contains("Running"));
}

/// A port-forward, and the port of this machine that it listens on.
struct Forward {
    child: Child,
    port: u16,
}

impl Forward {
    fn to(kubectl: &Kubectl<'_>, what: &str, port: &str) -> Self {
        Self::by(kubectl, &["port-forward", what, port])
    }

    /// By a kubectl that says first which port it listens on.
    fn by(kubectl: &Kubectl<'_>, arguments: &[&str]) -> Self {
        let mut child = kubectl.command(arguments).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let first = lines.next().unwrap_or_else(|| {
            let mut said = String::new();
            let _ = child.stderr.take().unwrap().read_to_string(&mut said);
            panic!("{} {arguments:?}: {said}", kubectl.program.display())
        });
        let port = first.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        let port = port.parse().unwrap();
        // What it says later must not fill a pipe that nobody reads.
        std::thread::spawn(move || lines.count());
        Self { child, port }
    }

    fn get(&self) -> Result<String, String> {
        http(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)))
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ports_are_forwarded_and_requests_proxied() {
    on_a_cluster(|cluster, kubectls| {
        let api = cluster.client();
        api.deploy("web", 1);
        api.service(json!({
            "metadata": { "name": "web" },
            "spec": { "selector": { "app": "web" }, "ports": [{ "name": "main", "port": 80, "targetPort": "http" }] },
        }));
        let pods = api.get("/api/v1/namespaces/default/pods");
        let pod = pods["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
        eventually("the Service has its endpoint", SOON, || {
            let (status, endpoints) = api.send("GET", "/api/v1/namespaces/default/endpoints/web", "", Vec::new());
            match endpoints["subsets"][0]["addresses"].as_array().map_or(0, Vec::len) {
                1 => Ok(()),
                _ => Err(format!("{status} {endpoints}")),
            }
        });
        run_secure(cluster);
        for kubectl in kubectls {
            let version = kubectl.program.display();
            for what in [format!("pod/{pod}"), "service/web".to_owned(), "deployment/web".to_owned()] {
                let forward = Forward::to(kubectl, &what, if what.starts_with("service") { ":80" } else { ":8080" });
                for _ in 0..3 {
                    assert!(
                        forward.get().is_ok_and(|body| body.contains(&pod)),
                        "{version} {what}: {:?}",
                        forward.get()
                    );
                }
            }
            let forward = Forward::to(kubectl, &format!("pod/{pod}"), ":9");
            assert!(forward.get().is_err(), "{version}: nobody listens there");
            drop(forward);
            proxies(kubectl, &pod);
            let proxy = Forward::by(kubectl, &["proxy", "--port=0"]);
            let through = |path: &str| http_get(SocketAddr::from((Ipv4Addr::LOCALHOST, proxy.port)), path);
            assert!(through("/version").is_ok_and(|body| body.contains("gitVersion")), "{version}");
            let said = through("/api/v1/namespaces/default/services/web:80/proxy/");
            assert!(said.as_ref().is_ok_and(|body| body.contains(&pod)), "{version}: {said:?}");
        }
        upgrades_pass_the_proxy(cluster, &pod);
    });
}

/// A pod and a Service behind which somebody speaks TLS, with a certificate that nobody has heard of.
fn run_secure(cluster: &Cluster<'_>) {
    let path = |name: &str| cluster.machine().path(name).display().to_string();
    let (key, certificate) = (path("key.pem"), path("certificate.pem"));
    let arguments =
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=nobody", "-keyout", &key, "-out", &certificate];
    let made = Command::new("openssl").args(arguments).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let api = cluster.client();
    let read = |path: &str| fs::read_to_string(path).unwrap();
    let data = json!({ "key": read(&key), "certificate": read(&certificate) });
    api.post("/api/v1/namespaces/default/secrets", &json!({ "metadata": { "name": "secure" }, "stringData": data }));
    let command = ["openssl", "s_server", "-accept", "8443", "-key", "/tls/key", "-cert", "/tls/certificate", "-www"];
    let pod = json!({
        "metadata": { "name": "secure", "labels": { "app": "secure" } },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "volumes": [{ "name": "tls", "secret": { "secretName": "secure" } }],
            "containers": [{
                "name": "main", "image": TOOLS, "command": command,
                "volumeMounts": [{ "name": "tls", "mountPath": "/tls" }],
                "readinessProbe": { "tcpSocket": { "port": 8443 }, "periodSeconds": 1 },
            }],
        },
    });
    api.post("/api/v1/namespaces/default/pods", &pod);
    api.service(json!({
        "metadata": { "name": "secure" },
        "spec": { "selector": { "app": "secure" }, "ports": [{ "name": "tls", "port": 443, "targetPort": 8443 }] },
    }));
    eventually("the pod behind TLS is an endpoint", SOON, || {
        let (_, endpoints) = api.send("GET", "/api/v1/namespaces/default/endpoints/secure", "", Vec::new());
        match endpoints["subsets"][0]["addresses"].as_array().map_or(0, Vec::len) {
            1 => Ok(()),
            _ => Err(endpoints.to_string()),
        }
    });
}

fn proxies(kubectl: &Kubectl<'_>, pod: &str) {
    let raw = |path: &str| kubectl.text(&["get", "--raw", &format!("/api/v1/{path}")]);
    for path in [
        format!("namespaces/default/pods/{pod}/proxy/"),
        format!("namespaces/default/pods/{pod}:8080/proxy/"),
        format!("namespaces/default/pods/http:{pod}:8080/proxy/"),
        "namespaces/default/services/web:80/proxy/".to_owned(),
        "namespaces/default/services/web:main/proxy/".to_owned(),
        "namespaces/default/services/http:web:main/proxy/".to_owned(),
        // Led to the place with a slash at its end.
        "namespaces/default/services/web:80/proxy".to_owned(),
    ] {
        let said = raw(&path);
        assert!(said.contains(pod), "{path}: {said}");
    }
    for path in ["pods/https:secure:8443", "services/https:secure:443", "services/https:secure:tls"] {
        let said = raw(&format!("namespaces/default/{path}/proxy/"));
        assert!(said.contains("Ciphers supported in s_server binary"), "{path}: {said}");
    }
    assert_eq!(raw("nodes/node1/proxy/healthz"), "ok");
    assert_eq!(raw("nodes/node1:10250/proxy/healthz"), "ok");
    let refused = |path: &str| kubectl.refused(&["get", "--raw", &format!("/api/v1/{path}")]);
    for (path, why) in [
        ("namespaces/default/services/web:81/proxy/", "no service port 81 found for service \"web\""),
        ("namespaces/default/services/web:other/proxy/", "no endpoints available for service \"web:other\""),
        ("namespaces/default/services/ftp:web:80/proxy/", "invalid service request \"ftp:web:80\""),
        ("namespaces/default/services/none/proxy/", "not found"),
        (&format!("namespaces/default/pods/{pod}:9/proxy/"), "error trying to reach service: dial tcp"),
    ] {
        let said = refused(path);
        assert!(said.contains(why), "{path}: {said}");
    }
}

/// A node's own exec by way of its proxy changes protocols through both.
fn upgrades_pass_the_proxy(cluster: &Cluster<'_>, pod: &str) {
    let path = format!("/api/v1/nodes/node1/proxy/exec/default/{pod}/web?command=/portolan&output=1");
    let request = http::Request::get(path)
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .header("x-stream-protocol-version", "v4.channel.k8s.io")
        .body(kube::client::Body::empty())
        .unwrap();
    let response = block_on(async {
        let client = portolan_client::connect(&cluster.kubeconfig()).await.unwrap();
        client.send(request).await.unwrap()
    });
    assert_eq!(response.status(), 101, "{response:?}");
    assert_eq!(response.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
}
