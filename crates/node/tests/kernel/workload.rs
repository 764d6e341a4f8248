//! What the containers of these tests run: this very binary, as `/portolan workload …`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::exit;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

pub(crate) fn run(args: &[String]) -> ! {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["serve"] => serve(),
        ["udp"] => udp(),
        ["say", ref words @ ..] => say(words),
        ["exit", code] => {
            println!("hello");
            eprintln!("oops");
            exit(code.parse().unwrap())
        }
        ["polite"] => polite(),
        ["stubborn"] => {
            println!("started");
            loop {
                std::thread::park();
            }
        }
        ["eat"] => eat(),
        ["show"] => show(),
        ["touch", path] => std::fs::write(path, "x").unwrap(),
        ["append", path, text] => {
            let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
            writeln!(file, "{text}").unwrap();
        }
        ["exists", path] => exit(i32::from(!Path::new(path).exists())),
        ["await", path, text] => {
            let deadline = Instant::now() + Duration::from_secs(60);
            while std::fs::read_to_string(path).is_ok_and(|found| found != text) && Instant::now() < deadline {
                std::thread::yield_now();
            }
            assert_eq!(std::fs::read_to_string(path).unwrap(), text);
        }
        ["get", address] => println!("{}", get(address)),
        ["last-words", text] => {
            std::fs::write("/dev/termination-log", text).unwrap();
            exit(1);
        }
        _ => panic!("no such workload: {args:?}"),
    }
    exit(0)
}

fn say(words: &[&str]) {
    for word in words {
        println!("{word}");
    }
    polite();
}

fn hostname() -> String {
    nix::unistd::gethostname().unwrap().into_string().unwrap()
}

/// Answers every request with the host name.
fn serve() {
    let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
    println!("serving");
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut request = [0; 1024];
        let length = stream.read(&mut request).unwrap_or(0);
        let status = if request[..length].starts_with(b"GET /bad") { "500 Bad" } else { "200 OK" };
        let body = hostname();
        let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    }
}

/// Answers every datagram with the host name.
fn udp() -> ! {
    let socket = UdpSocket::bind("0.0.0.0:5353").unwrap();
    loop {
        let (_, from) = socket.recv_from(&mut [0; 64]).unwrap();
        let _ = socket.send_to(hostname().as_bytes(), from);
    }
}

/// The body of an answer. Waits for somebody to listen: a container without a probe is ready when it has started.
pub(crate) fn get(address: &str) -> String {
    let address = address.parse().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut stream = loop {
        match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > deadline => panic!("{address}: {error}"),
            Err(_) => std::thread::yield_now(),
        }
    };
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned()
}

/// The first process of a PID namespace is not ended by a signal that it does not handle.
fn polite() {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.thread_block().unwrap();
    println!("started");
    mask.wait().unwrap();
    println!("terminating");
}

fn eat() {
    let mut all = Vec::new();
    loop {
        all.push(vec![1u8; 1 << 20]);
    }
}

/// What a container sees of itself.
fn show() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_else(|error| error.to_string());
    println!("pid {} hostname {} cwd {}", std::process::id(), hostname(), std::env::current_dir().unwrap().display());
    println!("user {} group {}", nix::unistd::getuid(), nix::unistd::getgid());
    for (name, value) in std::env::vars() {
        println!("env {name}={value}");
    }
    for path in ["/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/shared/note", "/config/key"] {
        for line in read(path).lines() {
            println!("{path}: {line}");
        }
    }
    let root = std::fs::write("/probe", "x").map_err(|error| error.kind());
    let sysctl = std::fs::write("/proc/sys/kernel/hostname", "x").map_err(|error| error.kind());
    println!("write to root {root:?}, to sysctl {sysctl:?}");
    let status = read("/proc/self/status");
    for key in ["CapBnd", "SigBlk", "SigIgn", "NoNewPrivs"] {
        println!("{}", status.lines().find(|line| line.starts_with(key)).unwrap_or_default());
    }
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    println!("open files {open}");
}
