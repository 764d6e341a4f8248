//! Anonymous network namespaces, and veth cables between them.

use std::fs::File;
use std::future::Future;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns, unshare};
use nlink::netlink::addr::{Ipv4Address, Ipv6Address};
use nlink::netlink::link::{BridgeLink, VethLink};
use nlink::netlink::route::{Ipv4Route, Ipv6Route};
use nlink::netlink::{Connection, Route};

/// A network namespace without a name. Clones are the same namespace.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
}

impl Netns {
    /// A new one, with its loopback up, no other link, and addresses that are usable as soon as they are set.
    ///
    /// # Panics
    /// When the kernel refuses, as it does to anyone but root.
    #[must_use]
    pub fn new() -> Self {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("make a network namespace");
            File::open("/proc/thread-self/ns/net").expect("open the new network namespace")
        })
        .join()
        .expect("the namespace's first thread");
        let netns = Self { file: Arc::new(file) };
        // Links give themselves an address that neighbours ask from; detection would hold it back for a second.
        netns.sysctl("net.ipv6.conf.default.accept_dad", "0");
        // Root may send echo requests without raw sockets, which would see everybody's.
        netns.sysctl("net.ipv4.ping_group_range", "0 0");
        netns.configure(|route| async move { route.set_link_up("lo").await });
        netns
    }

    /// The namespace, for `setns` or for a veth's other end.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` on a thread of its own inside the namespace. Panics pass through.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let outcome = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&*self.file, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
                    work()
                })
                .join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs the future that `make` gives on a tokio runtime of its own inside the namespace. The future need not be
    /// `Send`; sockets it opens, and threads it starts, are in the namespace too.
    pub fn block_on<T: Send, F: Future<Output = T>>(&self, make: impl FnOnce() -> F + Send) -> T {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("build a runtime");
            runtime.block_on(make())
        })
    }

    /// The output of a command run inside the namespace; `None` where there is no such program.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Option<Output> {
        self.run(|| match Command::new(program).args(arguments).output() {
            Ok(output) => Some(output),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => panic!("run {program}: {error}"),
        })
    }

    /// Sets a sysctl of the namespace; the key is written with dots, as in `net.ipv4.ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        self.run(|| std::fs::write(&path, value).unwrap_or_else(|error| panic!("set {key} to {value}: {error}")));
    }

    /// What a sysctl of the namespace is set to.
    pub fn read_sysctl(&self, key: &str) -> String {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        self.run(|| std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {key}: {error}")).trim().into())
    }

    /// Lets the namespace forward packets between its links, in both families.
    pub fn forward(&self) {
        self.sysctl("net.ipv4.ip_forward", "1");
        self.sysctl("net.ipv6.conf.all.forwarding", "1");
    }

    /// Gives a link an address, usable at once (without duplicate address detection, which would take a second); the
    /// network it is in becomes reachable through the link.
    pub fn address(&self, link: &str, address: IpNet) {
        let link = link.to_owned();
        self.configure(move |route| async move {
            match address {
                IpNet::V4(net) => route.add_address(Ipv4Address::new(link, net.addr(), net.prefix_len())).await,
                IpNet::V6(net) => route.add_address(Ipv6Address::new(link, net.addr(), net.prefix_len()).nodad()).await,
            }
        });
    }

    /// Sends what is for `destination` to `gateway`, which must be reachable through `link`.
    pub fn route(&self, destination: IpNet, gateway: IpAddr, link: &str) {
        let link = link.to_owned();
        self.configure(move |route| async move {
            match (destination, gateway) {
                (IpNet::V4(net), IpAddr::V4(gateway)) => {
                    route.add_route(Ipv4Route::new(net.addr(), net.prefix_len()).gateway(gateway).dev(link)).await
                }
                (IpNet::V6(net), IpAddr::V6(gateway)) => {
                    route.add_route(Ipv6Route::new(net.addr(), net.prefix_len()).gateway(gateway).dev(link)).await
                }
                _ => panic!("route {destination} via {gateway}: two families"),
            }
        });
    }

    /// Says that `destination` is at the other end of `link`.
    pub fn on_link(&self, destination: IpNet, link: &str) {
        let link = link.to_owned();
        self.configure(move |route| async move {
            match destination {
                IpNet::V4(net) => route.add_route(Ipv4Route::new(net.addr(), net.prefix_len()).dev(link)).await,
                IpNet::V6(net) => route.add_route(Ipv6Route::new(net.addr(), net.prefix_len()).dev(link)).await,
            }
        });
    }

    /// Makes the namespace a switch between these of its links.
    pub fn switch(&self, ports: &[&str]) {
        let ports: Vec<String> = ports.iter().map(|port| (*port).to_owned()).collect();
        self.configure(move |route| async move {
            route.add_link(BridgeLink::new("switch")).await?;
            route.set_link_up("switch").await?;
            for port in ports {
                route.set_link_master(port, "switch").await?;
            }
            Ok(())
        });
    }

    /// Runs `change` with a connection to the namespace's links, addresses and routes.
    pub fn configure<F: Future<Output = nlink::Result<()>>>(&self, change: impl FnOnce(Connection<Route>) -> F + Send) {
        self.block_on(|| async move {
            let route = Connection::<Route>::new().expect("open a route socket");
            change(route).await.unwrap_or_else(|error| panic!("configure a lab namespace: {error}"));
        });
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

/// A veth pair between two namespaces, both ends up: each end is a namespace and the link's name in it.
pub fn cable(left: (&Netns, &str), right: (&Netns, &str)) {
    let names = (left.1.to_owned(), right.1.to_owned());
    let far = right.0.clone();
    left.0.configure(move |route| async move {
        route.add_link(VethLink::new(names.0.clone(), names.1).peer_netns_fd(far.file())).await?;
        route.set_link_up(names.0).await
    });
    let name = right.1.to_owned();
    right.0.configure(move |route| async move { route.set_link_up(name).await });
}
