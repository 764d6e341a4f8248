//! What stands before `/proxy` in a path -> where the request goes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use portolan_kinds::Status;
use rand::RngExt;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::nodes;
use crate::object;
use crate::pods;
use crate::read;
use crate::route::{Sub, Target};
use crate::server::Server;

pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
pub(crate) type Stream = Box<dyn Duplex>;

pub(crate) enum Place {
    Pod {
        node: Value,
        namespace: String,
        name: String,
        address: IpAddr,
        port: u16,
        tls: bool,
    },
    /// The node's own endpoint.
    Agent(Value),
    Node {
        address: SocketAddr,
        tls: bool,
    },
}

/// `[scheme:]name[:port]`, or `scheme:name:` without a port.
fn split(id: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts[..] {
        [name] => ("", name, ""),
        [name, port] => ("", name, port),
        [scheme @ ("" | "http" | "https"), name, port] => (scheme, name, port),
        _ => return None,
    };
    (!name.is_empty()).then_some((scheme, name, port))
}

/// Whether something else than this machine, or what is next to it only, can have the address.
fn is_proxyable(address: IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
    };
    !(local || address.is_loopback() || address.is_multicast() || address.is_unspecified())
}

fn port_number(port: &str) -> Result<u16, Status> {
    let number = port.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| Status::bad_request(format!("\"{port}\" is not the number of a port")))
}

fn object_of(server: &Server, target: &Target, plural: &str, name: &str) -> Result<Value, Status> {
    let target = Target {
        kind: crate::known_kind("", plural).into(),
        namespace: target.namespace.clone(),
        name: Some(name.to_owned()),
        sub: Sub::None,
    };
    let (_, entry) = read::stored(&server.store, &target)?;
    Ok(object::decode(&entry.value))
}

impl Place {
    /// # Errors
    /// In Kubernetes' words: 400 for what names nothing, 404 for what is not there, 503 for a Service without
    /// endpoints.
    pub(super) fn of(server: &Server, target: &Target) -> Result<Self, Status> {
        let id = target.name.as_deref().unwrap_or_default();
        let plural = target.kind.plural;
        let singular = plural.trim_end_matches('s');
        let (scheme, name, port) =
            split(id).ok_or_else(|| Status::bad_request(format!("invalid {singular} request \"{id}\"")))?;
        let tls = scheme == "https";
        match plural {
            "pods" => {
                let pod = object_of(server, target, "pods", name)?;
                let port = if port.is_empty() { first_port(&pod, tls) } else { port_number(port)? };
                Self::pod(server, &pod, port, tls)
            }
            "services" => Self::service(server, target, id, name, port, tls),
            _ => {
                let node = object_of(server, target, "nodes", name)?;
                let (address, own) = nodes::endpoint(&node)
                    .ok_or_else(|| Status::internal(format!("node {name} has not said where it can be asked")))?;
                if !is_proxyable(address) {
                    return Err(Status::bad_request("address not allowed"));
                }
                match port {
                    "" => Ok(Self::Agent(node)),
                    port if port_number(port)? == own => Ok(Self::Agent(node)),
                    port => Ok(Self::Node { address: SocketAddr::new(address, port_number(port)?), tls }),
                }
            }
        }
    }

    fn pod(server: &Server, pod: &Value, port: u16, tls: bool) -> Result<Self, Status> {
        let address = object::text(pod, "/status/podIP").parse().ok().filter(|address| is_proxyable(*address));
        let address = address.ok_or_else(|| Status::bad_request("address not allowed"))?;
        let node = pods::node_of(server, pod)?;
        let namespace = object::text(pod, "/metadata/namespace").to_owned();
        Ok(Self::Pod { node, namespace, name: object::name(pod).to_owned(), address, port, tls })
    }

    fn service(server: &Server, target: &Target, id: &str, name: &str, port: &str, tls: bool) -> Result<Self, Status> {
        let mut port_name = port.to_owned();
        if let Ok(number) = port.parse::<i64>() {
            let service = object_of(server, target, "services", name)?;
            let declared = service["spec"]["ports"].as_array().into_iter().flatten();
            let declared = declared.clone().find(|declared| declared["port"].as_i64() == Some(number));
            let none = || Status::unavailable(format!("no service port {number} found for service \"{name}\""));
            port_name = object::text(declared.ok_or_else(none)?, "/name").to_owned();
        }
        let endpoints = object_of(server, target, "endpoints", name)?;
        let namespace = target.namespace.as_deref().unwrap_or_default();
        for (address, port) in candidates(&endpoints, &port_name) {
            if let Some(pod) = pod_at(server, namespace, address) {
                return Self::pod(server, &pod, port, tls);
            }
        }
        let named = if object::has_items(&endpoints, "/subsets") { id } else { name };
        Err(Status::unavailable(format!("no endpoints available for service \"{named}\"")))
    }

    /// The host by which the backend may know itself.
    pub(super) fn host(&self) -> String {
        match self {
            Self::Pod { address, port, .. } => SocketAddr::new(*address, *port).to_string(),
            Self::Node { address, .. } => address.to_string(),
            Self::Agent(node) => nodes::endpoint(node).map(|at| SocketAddr::from(at).to_string()).unwrap_or_default(),
        }
    }

    /// # Errors
    /// With the reason in words that clients are used to.
    pub(crate) async fn connect(self, server: &Server) -> Result<Stream, String> {
        let (stream, address, tls): (Stream, IpAddr, bool) = match self {
            Self::Agent(node) => {
                let stream = server.nodes.open(&node).await.map_err(|status| status.message().to_owned())?;
                return Ok(Box::new(stream));
            }
            Self::Pod { node, namespace, name, address, port, tls } => {
                let tunnel = server.nodes.tunnel(&node, &namespace, &name, port, &server.tasks).await?;
                (Box::new(TokioIo::new(tunnel)), address, tls)
            }
            Self::Node { address, tls } => {
                let dialed = server.nodes.dial(address).await;
                (Box::new(dialed.map_err(|error| format!("dial tcp {address}: {error}"))?), address.ip(), tls)
            }
        };
        if !tls {
            return Ok(stream);
        }
        let config = any_certificate().map_err(|error| error.to_string())?;
        let connected = TlsConnector::from(Arc::new(config)).connect(ServerName::from(address), stream).await;
        connected.map(|stream| Box::new(stream) as Stream).map_err(|error: io::Error| error.to_string())
    }
}

/// The addresses of endpoints and their ports of this name: from a place at random on, so that all get their share and the
/// first that is what it says is taken.
pub(crate) fn candidates<'a>(endpoints: &'a Value, port_name: &str) -> Vec<(&'a Value, u16)> {
    let mut candidates = Vec::new();
    for subset in endpoints["subsets"].as_array().into_iter().flatten() {
        let ports = subset["ports"].as_array().into_iter().flatten();
        let mut named = ports.filter(|port| object::text(port, "/name") == port_name);
        let number = named.find_map(|port| u16::try_from(port["port"].as_u64()?).ok());
        let addresses = subset["addresses"].as_array().into_iter().flatten();
        candidates
            .extend(number.into_iter().flat_map(|number| addresses.clone().map(move |address| (address, number))));
    }
    let start = if candidates.is_empty() { 0 } else { rand::rng().random_range(0..candidates.len()) };
    candidates.rotate_left(start);
    candidates
}

/// The pod of the namespace that an endpoint says it is, if that has its address.
fn pod_at(server: &Server, namespace: &str, address: &Value) -> Option<Value> {
    let of = address.get("targetRef")?;
    if (object::text(of, "/kind"), object::text(of, "/namespace")) != ("Pod", namespace) {
        return None;
    }
    let key = object::key(crate::known_kind("", "pods"), namespace, object::text(of, "/name"));
    let pod = object::decode(&server.store.get(&key).0?.value);
    let ips = pod["status"]["podIPs"].as_array()?;
    ips.iter().any(|ip| ip["ip"] == address["ip"]).then_some(pod)
}

/// A port of the pod that an endpoint is, if it is one.
pub(crate) fn pod(server: &Server, namespace: &str, address: &Value, port: u16) -> Option<Place> {
    Place::pod(server, &pod_at(server, namespace, address)?, port, false).ok()
}

/// The first port that a pod says it has, or else the scheme's own.
fn first_port(pod: &Value, tls: bool) -> u16 {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let port = containers.filter_map(|container| container["ports"][0]["containerPort"].as_u64()).next();
    port.and_then(|port| u16::try_from(port).ok()).unwrap_or(if tls { 443 } else { 80 })
}

/// Nobody here could know who signs pods' certificates, and upstream does not ask either.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

fn any_certificate() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))).with_no_client_auth())
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let supported = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, supported)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let supported = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, supported)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_schemes_and_ports() {
        for (id, expected) in [
            ("web", Some(("", "web", ""))),
            ("web:http", Some(("", "web", "http"))),
            ("https:web:443", Some(("https", "web", "443"))),
            ("https:web:", Some(("https", "web", ""))),
            (":web:80", Some(("", "web", "80"))),
            ("ftp:web:21", None),
            ("a:b:c:d", None),
            ("", None),
            (":80", None),
        ] {
            assert_eq!(split(id), expected, "{id}");
        }
    }

    #[test]
    fn no_address_of_this_machine_or_its_neighbourhood() {
        for (address, expected) in [
            ("10.244.1.5", true),
            ("fd00::5", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
            ("::1", false),
            ("fe80::1", false),
            ("::ffff:127.0.0.1", false),
        ] {
            assert_eq!(is_proxyable(address.parse().unwrap()), expected, "{address}");
        }
    }
}
