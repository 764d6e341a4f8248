//! `healthCheckNodePort`s -> a small server each, by which an external load balancer learns where a Service has
//! endpoints.
//!
//! Invariants: a port that cannot be had harms nothing else, is reported and tried again; a port opens and closes with
//! its Service; answers are as fresh as the kernel's rules.
//!
//! Source: Kubernetes `pkg/proxy/healthcheck/service_health.go`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderValue, StatusCode};
use portolan_model::{Delta, ServiceId, ServiceType, Snapshot, TrafficPolicy};
use serde_json::json;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::local::Locals;
use super::serve::{Answer, Answered, bind, serve, text};
use super::servers::Shared;

const WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// What one Service's port says.
struct Check {
    id: ServiceId,
    local_endpoints: AtomicUsize,
    shared: Arc<Shared>,
}

impl Answer for Check {
    async fn answer(&self, _path: &str) -> Answered {
        let endpoints = self.local_endpoints.load(Ordering::Relaxed);
        let healthy = self.shared.health().is_live(Instant::now());
        let status = if endpoints > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = json!({
            "service": {"namespace": &*self.id.namespace, "name": &*self.id.name},
            "localEndpoints": endpoints,
            "serviceProxyHealthy": healthy,
        });
        let mut response = text(status, "application/json", body.to_string());
        response.headers_mut().insert(WEIGHT, HeaderValue::from(endpoints));
        response
    }
}

struct Open {
    port: u16,
    check: Arc<Check>,
    /// By address; none while it cannot be had.
    listeners: BTreeMap<IpAddr, Option<AbortHandle>>,
}

/// A port that could not be had, for its Service's Event.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) id: ServiceId,
    pub(crate) address: SocketAddr,
    pub(crate) error: std::io::Error,
}

pub(crate) struct Checks {
    shared: Arc<Shared>,
    open: BTreeMap<ServiceId, Open>,
    addresses: Vec<IpAddr>,
    serving: JoinSet<()>,
}

impl Checks {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, open: BTreeMap::new(), addresses: Vec::new(), serving: JoinSet::new() }
    }

    /// Follows the Services that the delta names, and the node's addresses. Gives the ports that could not be had; they
    /// are tried again by [`retry`](Self::retry).
    pub(crate) async fn apply(
        &mut self,
        snapshot: &Snapshot,
        delta: &Delta,
        locals: &Locals,
        addresses: Vec<IpAddr>,
    ) -> Vec<Failed> {
        while self.serving.try_join_next().is_some() {}
        let moved = self.addresses != addresses;
        self.addresses = addresses;
        for id in &delta.services {
            let port = port(snapshot, id);
            if self.open.get(id).is_some_and(|open| Some(open.port) != port) {
                self.open.remove(id);
            }
            let Some(port) = port else { continue };
            let open = self.open.entry(id.clone()).or_insert_with(|| Open {
                port,
                check: Arc::new(Check {
                    id: id.clone(),
                    local_endpoints: AtomicUsize::new(0),
                    shared: self.shared.clone(),
                }),
                listeners: BTreeMap::new(),
            });
            open.check.local_endpoints.store(locals.ready(id), Ordering::Relaxed);
        }
        let touched: Vec<ServiceId> = match moved {
            true => self.open.keys().cloned().collect(),
            false => delta.services.iter().filter(|id| self.open.contains_key(id)).cloned().collect(),
        };
        self.listen(touched).await
    }

    /// Whether some port could not be had.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.open.values().any(|open| open.listeners.values().any(Option::is_none))
    }

    pub(crate) async fn retry(&mut self) -> Vec<Failed> {
        self.listen(self.open.keys().cloned().collect()).await
    }

    async fn listen(&mut self, services: Vec<ServiceId>) -> Vec<Failed> {
        let mut failed = Vec::new();
        for id in services {
            let Some(open) = self.open.get_mut(&id) else { continue };
            open.listeners.retain(|address, listener| {
                let stays = self.addresses.contains(address);
                if let Some(listener) = listener.as_ref().filter(|_| !stays) {
                    listener.abort();
                }
                stays
            });
            for address in &self.addresses {
                let listener = open.listeners.entry(*address).or_default();
                if listener.is_some() {
                    continue;
                }
                let address = SocketAddr::new(*address, open.port);
                match bind(address).await {
                    Ok(socket) => *listener = Some(self.serving.spawn(serve(socket, open.check.clone()))),
                    Err(error) => failed.push(Failed { id: id.clone(), address, error }),
                }
            }
        }
        failed
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        for listener in self.listeners.values().flatten() {
            listener.abort();
        }
    }
}

/// Where the Service wants to be asked after.
fn port(snapshot: &Snapshot, id: &ServiceId) -> Option<u16> {
    let service = snapshot.service(id)?;
    let asked = service.service_type == ServiceType::LoadBalancer
        && service.external_policy == TrafficPolicy::Local
        && !service.foreign_proxy;
    service.health_check_node_port.filter(|_| asked).map(|port| port.0)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use portolan_model::{Event, translate};
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    struct Lab {
        snapshot: Snapshot,
        locals: Locals,
        checks: Checks,
    }

    impl Lab {
        fn new() -> Self {
            let checks = Checks::new(Shared::new(Duration::from_secs(60)));
            Self { snapshot: Snapshot::default(), locals: Locals::default(), checks }
        }

        async fn happens(&mut self, event: Event) -> Vec<Failed> {
            let delta = self.snapshot.apply(event);
            self.locals.apply(&self.snapshot, &delta, "here");
            self.checks.apply(&self.snapshot, &delta, &self.locals, vec![HERE]).await
        }
    }

    fn service(port: u16) -> Event {
        let object = json!({
            "metadata": {"namespace": "shop", "name": "web"},
            "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "externalTrafficPolicy": "Local",
                "healthCheckNodePort": port, "ports": [{"port": 80, "nodePort": 30080}]},
        });
        Event::Service(translate::service(&serde_json::from_value(object).unwrap()).unwrap().0)
    }

    fn endpoint(node: &str) -> Event {
        let object = json!({
            "metadata": {"namespace": "shop", "name": "web", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"port": 8080}],
            "endpoints": [{"addresses": ["10.244.1.2"], "nodeName": node}],
        });
        Event::Slice(translate::endpoint_slice(&serde_json::from_value(object).unwrap()).unwrap().0)
    }

    /// Status, weight and body.
    async fn ask(port: u16) -> std::io::Result<(u16, String, Value)> {
        let mut stream = TcpStream::connect((HERE, port)).await?;
        stream.write_all(b"GET /whatever HTTP/1.1\r\nhost: here\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let weight = head.lines().find_map(|line| line.strip_prefix("x-load-balancing-endpoint-weight: ")).unwrap();
        Ok((head[9..12].parse().unwrap(), weight.to_owned(), serde_json::from_str(body).unwrap()))
    }

    async fn free_port() -> u16 {
        TcpListener::bind((HERE, 0)).await.unwrap().local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn a_check_opens_and_closes_with_its_service() {
        let (mut lab, port) = (Lab::new(), free_port().await);
        assert!(lab.happens(service(port)).await.is_empty());
        let body = |endpoints| {
            json!({"service": {"namespace": "shop", "name": "web"}, "localEndpoints": endpoints,
                "serviceProxyHealthy": true})
        };
        assert_eq!(ask(port).await.unwrap(), (503, "0".to_owned(), body(0)));
        lab.happens(endpoint("here")).await;
        assert_eq!(ask(port).await.unwrap(), (200, "1".to_owned(), body(1)));
        lab.happens(endpoint("there")).await;
        assert_eq!(ask(port).await.unwrap(), (503, "0".to_owned(), body(0)));
        let other = free_port().await;
        lab.happens(service(other)).await;
        assert_eq!(ask(other).await.unwrap().0, 503, "the port changed");
        lab.happens(Event::ServiceGone(ServiceId::new("shop", "web"))).await;
        for port in [port, other] {
            // The listener goes with its task, which the runtime ends in a moment.
            let closed = async { while TcpStream::connect((HERE, port)).await.is_ok() {} };
            tokio::time::timeout(Duration::from_secs(5), closed).await.expect("closed");
        }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_and_had_once_it_is_free() {
        let taken = TcpListener::bind((HERE, 0)).await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut lab = Lab::new();
        let failed = lab.happens(service(port)).await;
        assert_eq!(failed.iter().map(|f| f.address).collect::<Vec<_>>(), [SocketAddr::new(HERE, port)]);
        assert!(lab.checks.is_incomplete());
        drop(taken);
        assert!(lab.checks.retry().await.is_empty());
        assert!(!lab.checks.is_incomplete());
        assert_eq!(ask(port).await.unwrap().0, 503);
    }
}
