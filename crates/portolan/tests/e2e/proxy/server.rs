//! An API server that is away, gone without a word, or silent.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[test]
fn an_api_server_that_was_away_changes_what_differs() {
    require_root!();
    let lab = Lab::new();
    let _a = Echo::start(&lab.away, "a", &[address(AWAY, 9001)]);
    let _b = Echo::start(&lab.away, "b", &[address(AWAY, 9002)]);
    let server = lab.serve(API_PORT);
    let services = lab.api(API_PORT, |api| {
        register(api);
        ["one", "two", "three"].map(|name| {
            api.post(SLICES, &slice(name, "node1", 9001));
            service(api, name)
        })
    });
    let [one, two, three] = services.each_ref().map(cluster_ip);
    let proxy = lab.proxy();
    [one, two, three].into_iter().for_each(|service| lab.reaches(service, "a"));
    let programmed = lab.operations();
    server.stop();
    for service in [one, two, three] {
        assert_eq!(lab.dial(service).by(), Some("a"), "nobody needs the API server to forward");
    }
    // While the proxy cannot hear of it, an endpoint moves and a Service goes.
    let server = lab.serve(OTHER_PORT);
    let moved = json!({"ports": [{"port": 9002}]});
    lab.api(OTHER_PORT, |api| {
        api.merge(&format!("{SLICES}/two"), &moved);
        api.delete(&format!("{SERVICES}/three"));
    });
    server.stop();
    assert_eq!(lab.dial(two).by(), Some("a"));
    let server = lab.serve(API_PORT);
    lab.reaches(two, "b");
    eventually("the Service that went is gone", SOON, || match lab.dial(three) {
        Outcome::Answered { .. } => Err("it answers still".to_owned()),
        _ => Ok(()),
    });
    lab.reaches(one, "a");
    let difference = lab.operations() - programmed;
    assert!((1.0..programmed).contains(&difference), "{difference} operations, and {programmed} for everything");
    let log = std::fs::read_to_string(lab.path("log")).unwrap();
    assert!(!log.contains("panic"), "{log}");

    // The same once more, with nothing to change.
    let settled = lab.operations();
    server.stop();
    let server = lab.serve(API_PORT);
    lab.api(API_PORT, |api| api.post(SLICES, &slice("four", "node1", 9001)));
    let four = lab.api(API_PORT, |api| service(api, "four"));
    lab.reaches(cluster_ip(&four), "a");
    let each = programmed / 3.0;
    assert!(lab.operations() - settled <= each + 2.0, "one more Service and nothing else");
    proxy.stop();
    server.stop();
}

#[test]
fn an_api_server_that_is_gone_without_a_word_is_noticed() {
    require_root!();
    let lab = Lab::new();
    let (_echo, server, _) = lab.with_web();
    let proxy = lab.proxy();
    // From now on nobody hears anything of the connections that there are; new ones are let through.
    let rules = "add table ip cut; \
        add chain ip cut first { type filter hook prerouting priority 0; }; \
        add rule ip cut first tcp dport 6443 tcp flags & (syn | ack) == syn ct mark set 1; \
        add chain ip cut in { type filter hook input priority 0; }; \
        add rule ip cut in tcp dport 6443 ct mark 0 drop; \
        add chain ip cut out { type filter hook output priority 0; }; \
        add rule ip cut out tcp sport 6443 ct mark 0 drop";
    let Some(cut) = lab.away.command("nft", &[rules]) else { return skip("needs nft, to lose packets") };
    assert!(cut.status.success(), "{}", String::from_utf8_lossy(&cut.stderr));
    notices_in_time(&lab);
    proxy.stop();
    server.stop();
}

/// That the proxy hears nothing from now on by the connections that it has: a Service that comes is forwarded all the
/// same, within the time that client-go takes.
fn notices_in_time(lab: &Lab) {
    let began = Instant::now();
    let late = lab.api(API_PORT, |api| {
        api.post(SLICES, &slice("late", "node1", 9001));
        service(api, "late")
    });
    eventually("the proxy asks anew", Duration::from_secs(60), || match lab.dial(cluster_ip(&late)) {
        outcome if outcome.by() == Some("a") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let took = began.elapsed();
    assert!(took < Duration::from_secs(45), "client-go is as fast: {took:?}");
    eprintln!("noticed after {took:?}");
}

/// Between the proxy and the API server: passes on what comes, until it is told to swallow it.
struct Relay {
    port: u16,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    /// Connections of a lower number hear nothing any more, and are not closed.
    silent: AtomicUsize,
    /// Times that something came from the proxy and was passed on.
    asked: AtomicUsize,
}

impl Relay {
    fn start(lab: &Lab) -> Self {
        let counts = Arc::new(Counts::default());
        let shared = counts.clone();
        // Its threads end with the test's process.
        let port = lab.away.run(|| {
            let listener = TcpListener::bind(address(AWAY, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            std::thread::spawn(move || serve(&listener, &shared));
            port
        });
        Self { port, counts }
    }

    /// Nothing is heard any more of the connections that there are.
    fn swallow(&self) {
        self.counts.silent.store(self.connections(), Ordering::Relaxed);
    }

    fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Relaxed)
    }

    fn asked(&self) -> usize {
        self.counts.asked.load(Ordering::Relaxed)
    }
}

fn serve(listener: &TcpListener, counts: &Arc<Counts>) {
    for from_proxy in listener.incoming() {
        let from_proxy = from_proxy.unwrap();
        let Ok(to_server) = TcpStream::connect(address(AWAY, API_PORT)) else { return };
        let number = counts.connections.fetch_add(1, Ordering::Relaxed);
        for (from, to, asks) in [(&from_proxy, &to_server, true), (&to_server, &from_proxy, false)] {
            let (from, to, counts) = (from.try_clone().unwrap(), to.try_clone().unwrap(), counts.clone());
            std::thread::spawn(move || pass_on(from, to, number, asks, &counts));
        }
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, number: usize, asks: bool, counts: &Counts) {
    let mut buffer = [0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if number < counts.silent.load(Ordering::Relaxed) {
            continue;
        }
        if asks {
            counts.asked.fetch_add(1, Ordering::Relaxed);
        }
        if to.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

#[test]
fn an_api_server_that_lives_and_does_not_answer_is_left_and_a_quiet_one_is_not() {
    require_root!();
    let lab = Lab::new();
    let (_echo, server, _) = lab.with_web();
    let relay = Relay::start(&lab);
    let master = format!("--master=https://{AWAY}:{}", relay.port);
    let proxy = lab.start(&lab.arguments_as(&format!("kubeconfig-{API_PORT}"), &["--socket-lb=false", &master]));
    // Nothing happens, and that is no reason to go: it is asked, and asked again, on the connections there are.
    let (connections, asked) = (relay.connections(), relay.asked());
    eventually("the proxy has asked twice whether it is there", Duration::from_secs(90), || {
        match relay.asked() - asked {
            0 | 1 => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    });
    assert_eq!(relay.connections(), connections);

    relay.swallow();
    notices_in_time(&lab);
    proxy.stop();
    server.stop();
}
