//! The servers under test, each in processes of its own.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use portolan_apiserver::{ApiServer, Config, User};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_util::sync::CancellationToken;

use crate::client::Access;

/// The argument that makes this program the server under test.
pub(crate) const SERVE: &str = "serve";
const SERVICES: &str = "10.96.0.0/12";
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) enum Contender {
    Portolan,
    Stock { apiserver: PathBuf, etcd: PathBuf },
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portolan => "Portolan",
            Self::Stock { .. } => "kube-apiserver with etcd",
        })
    }
}

impl Contender {
    pub(crate) fn stock() -> Result<Option<Self>> {
        match (std::env::var_os("KUBE_APISERVER"), std::env::var_os("ETCD")) {
            (Some(apiserver), Some(etcd)) => Ok(Some(Self::Stock { apiserver: apiserver.into(), etcd: etcd.into() })),
            (None, None) => Ok(None),
            _ => bail!("KUBE_APISERVER and ETCD go together"),
        }
    }
}

/// Serves from `directory` until it is killed. What a client needs is left there, `port` last.
pub(crate) fn serve(directory: &Path) -> Result<()> {
    // As the binary does: the control plane is mostly waiting, and memory counts.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let server = ApiServer::open(Config::new(directory.join("data"))).await?;
        let admin = server.certificate(&User::admin())?;
        std::fs::write(directory.join("ca.crt"), server.ca())?;
        std::fs::write(directory.join("client.crt"), admin.certificate)?;
        std::fs::write(directory.join("client.key"), admin.key)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let draft = directory.join("port.new");
        std::fs::write(&draft, listener.local_addr()?.port().to_string())?;
        std::fs::rename(draft, directory.join("port"))?;
        Ok(server.serve(vec![listener], CancellationToken::new()).await?)
    })
}

pub(crate) struct Running {
    pub(crate) access: Access,
    processes: Vec<Process>,
}

/// Killed when it is dropped, as by a power cut: with no word of warning.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; both then fail, and there is nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    pub(crate) async fn start(contender: &Contender, directory: &Path) -> Result<Self> {
        let (address, processes) = match contender {
            Contender::Portolan => portolan(directory).await?,
            Contender::Stock { apiserver, etcd } => stock(apiserver, etcd, directory)?,
        };
        let mut running = Self { access: Access::new(address, directory)?, processes };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let failed = match running.ready().await {
                Ok(()) => return Ok(running),
                Err(error) => error,
            };
            for Process { child, log } in &mut running.processes {
                if let Some(status) = child.try_wait()? {
                    bail!("a server ended with {status}: {}", std::fs::read_to_string(log)?);
                }
            }
            if Instant::now() > deadline {
                return Err(failed.context("it is not ready"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ready(&self) -> Result<()> {
        let mut client = self.access.connect().await?;
        client.get("/readyz", false).await?;
        client.get("/api/v1/namespaces/default", false).await?;
        Ok(())
    }

    /// The processor time that all processes together have used.
    pub(crate) fn processor(&self) -> Result<Duration> {
        let mut ticks = 0;
        for Process { child, .. } in &self.processes {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
            let (_, fields) = stat.rsplit_once(')').context("no name in it")?;
            let used = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
            ticks += used.sum::<Result<u64, _>>()?;
        }
        // There are a hundred a second on every Linux that counts.
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Resident now, and at the most, of all processes together.
    pub(crate) fn memory(&self) -> Result<String> {
        let mut sums = [0; 2];
        for Process { child, .. } in &self.processes {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
            for (sum, field) in sums.iter_mut().zip(["VmRSS:", "VmHWM:"]) {
                let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no memory of it")?;
                *sum += line.trim().trim_end_matches(" kB").parse::<u64>()?;
            }
        }
        Ok(format!("{} MB, {} MB at the most", sums[0] / 1024, sums[1] / 1024))
    }
}

fn spawn(program: &Path, arguments: &[String], log: &Path) -> Result<Process> {
    let output = std::fs::File::create(log)?;
    let mut command = Command::new(program);
    // As the binary does it for itself; other programs do not look.
    command.args(arguments).env("MALLOC_ARENA_MAX", "2");
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let child = command.spawn().with_context(|| program.display().to_string())?;
    Ok(Process { child, log: log.to_owned() })
}

async fn portolan(directory: &Path) -> Result<(SocketAddr, Vec<Process>)> {
    let port_file = directory.join("port");
    if port_file.exists() {
        std::fs::remove_file(&port_file)?;
    }
    let arguments = [SERVE.to_owned(), directory.display().to_string()];
    let mut process = spawn(&std::env::current_exe()?, &arguments, &directory.join("portolan.log"))?;
    let deadline = Instant::now() + PATIENCE;
    while !port_file.exists() {
        if let Some(status) = process.child.try_wait()? {
            bail!("it ended with {status}: {}", std::fs::read_to_string(directory.join("portolan.log"))?);
        }
        anyhow::ensure!(Instant::now() < deadline, "it does not say on which port it serves");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let port: u16 = std::fs::read_to_string(port_file)?.parse()?;
    Ok((SocketAddr::from((Ipv4Addr::LOCALHOST, port)), vec![process]))
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn stock(apiserver: &Path, etcd: &Path, directory: &Path) -> Result<(SocketAddr, Vec<Process>)> {
    if !directory.join("ca.crt").exists() {
        certificates(directory)?;
    }
    let (clients, peers, port) = (free_port()?, free_port()?, free_port()?);
    let clients = format!("http://127.0.0.1:{clients}");
    let peers = format!("http://127.0.0.1:{peers}");
    let file = |name: &str| directory.join(name).display().to_string();
    let arguments = [
        format!("--data-dir={}", file("etcd")),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
    ];
    let etcd = spawn(etcd, &arguments, &directory.join("etcd.log"))?;
    let arguments = [
        format!("--etcd-servers={clients}"),
        format!("--secure-port={port}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--cert-dir={}", file("certs")),
        format!("--tls-cert-file={}", file("server.crt")),
        format!("--tls-private-key-file={}", file("server.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--service-account-key-file={}", file("tokens.pub")),
        format!("--service-account-signing-key-file={}", file("tokens.key")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-cluster-ip-range={SERVICES}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        // Pods of no account, since no controller makes accounts here.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
    ];
    let apiserver = spawn(apiserver, &arguments, &directory.join("kube-apiserver.log"))?;
    Ok((SocketAddr::from((Ipv4Addr::LOCALHOST, port)), vec![apiserver, etcd]))
}

/// An authority, a server's certificate and an administrator's, and a key for tokens.
fn certificates(directory: &Path) -> Result<()> {
    let write = |name: &str, text: String| std::fs::write(directory.join(name), text);
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "benchmark");
    let key = KeyPair::generate()?;
    write("ca.crt", authority.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(authority, key);
    for (name, common_name, organization) in [("server", "kube-apiserver", ""), ("client", "admin", "system:masters")] {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let key = KeyPair::generate()?;
        write(&format!("{name}.crt"), params.signed_by(&key, &issuer)?.pem())?;
        write(&format!("{name}.key"), key.serialize_pem())?;
    }
    let tokens = KeyPair::generate()?;
    write("tokens.key", tokens.serialize_pem())?;
    write("tokens.pub", tokens.public_key_pem())?;
    Ok(())
}
