//! What the kernel counted for each frontend -> one row for each port of a Service, for scrapers.
//!
//! A port's addresses of one kind are counted together, whichever family they are of. What the socket programs led is
//! told apart from what nftables translated, because it becomes known at another time: what nftables translates is
//! counted packet by packet, what went over a led TCP connection once it has ended, so that its packets cost nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use portolan_dataplane::sock::Led;
use portolan_dataplane::{Counted, Counts};
use portolan_exposition::{Labels, Page};
use portolan_model::forwarding::{Frontend, FrontendKind};
use portolan_model::{Protocol, ServiceId, Snapshot};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Port {
    service: ServiceId,
    name: Arc<str>,
    protocol: Protocol,
    kind: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    translated: Counts,
    led: Counts,
    datagrams: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic(BTreeMap<Port, Row>);

impl Traffic {
    pub(crate) fn new(snapshot: &Snapshot, translated: Vec<Counted>, led: Vec<(ServiceId, Frontend, Led)>) -> Self {
        let mut traffic = Self::default();
        for counted in translated {
            let counts = counted.counts;
            let sum = &mut traffic.row(counted).translated;
            sum.connections += counts.connections;
            sum.packets += counts.packets;
            sum.bytes += counts.bytes;
        }
        for (id, frontend, counts) in led {
            let counted = snapshot.service(&id).and_then(|service| Counted::of(service, frontend, Counts::default()));
            if let Some(counted) = counted {
                let row = traffic.row(counted);
                row.led.connections += counts.connections;
                row.led.packets += counts.segments;
                row.led.bytes += counts.bytes_with_headers(frontend);
                row.datagrams += counts.datagrams;
            }
        }
        traffic
    }

    fn row(&mut self, counted: Counted) -> &mut Row {
        let kind = match counted.kind {
            FrontendKind::ClusterIp => "ClusterIP",
            FrontendKind::LoadBalancer => "LoadBalancer",
            FrontendKind::ExternalIp => "ExternalIP",
            FrontendKind::NodePort => "NodePort",
        };
        let port = Port { service: counted.service, name: counted.port, protocol: counted.frontend.protocol, kind };
        self.0.entry(port).or_default()
    }

    pub(crate) fn write(&self, page: &mut Page) {
        type Count = fn(&Counts) -> u64;
        let families: [(&str, &str, Count); 3] = [
            ("connections", "Connections and flows that were given a backend, and by what", |counts| {
                counts.connections
            }),
            (
                "packets",
                "Packets in both directions: those that nftables translates as they pass, those of led TCP connections \
                 when these end",
                |counts| counts.packets,
            ),
            ("bytes", "Bytes of these packets, IP headers included", |counts| counts.bytes),
        ];
        for (what, help, count) in families {
            let name = format!("portolan_service_{what}_total");
            page.family(&name, "counter", help);
            self.each(|labels, row| {
                for (by, counts) in [("nftables", &row.translated), ("socket", &row.led)] {
                    page.count(&name, &[labels, &[("by", by)]].concat(), count(counts));
                }
            });
        }
        let name = "portolan_service_datagrams_total";
        let help = "Datagrams led to a backend one by one, as UDP sockets that are not connected send them";
        page.family(name, "counter", help);
        self.each(|labels, row| page.count(name, labels, row.datagrams));
    }

    fn each(&self, mut write: impl FnMut(Labels<'_>, &Row)) {
        for (port, row) in &self.0 {
            let protocol = port.protocol.to_string();
            write(
                &[
                    ("namespace", &port.service.namespace),
                    ("service", &port.service.name),
                    ("port", &port.name),
                    ("protocol", &protocol),
                    ("kind", port.kind),
                ],
                row,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use portolan_model::forwarding::Place;
    use portolan_model::{Event, translate};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_for_each_port() {
        let object = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {
            "clusterIPs": ["10.96.0.1", "fd00::1"], "type": "NodePort",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}});
        let (service, _) = translate::service(&serde_json::from_value(object).unwrap()).unwrap();
        let mut snapshot = Snapshot::default();
        snapshot.apply(Event::Service(service.clone()));
        let at = |place: &str| {
            let address = Place::Address(place.parse().unwrap());
            Frontend { place: address, protocol: Protocol::Tcp, port: 80 }
        };
        let counted = |frontend, connections, packets, bytes| {
            Counted::of(&service, frontend, Counts { connections, packets, bytes }).unwrap()
        };
        let translated = vec![counted(at("10.96.0.1"), 1, 10, 1000), counted(at("fd00::1"), 2, 20, 2000)];
        let led = Led { connections: 5, datagrams: 0, segments: 100, bytes: 5_000 };
        let led = vec![(service.id.clone(), at("10.96.0.1"), led), (ServiceId::new("shop", "gone"), at("::2"), led)];
        let mut page = Page::default();
        Traffic::new(&snapshot, translated, led).write(&mut page);
        let samples: Vec<_> =
            page.into_text().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        expect![[r#"
            portolan_service_connections_total{namespace="shop",service="web",port="http",protocol="TCP",kind="ClusterIP",by="nftables"} 3
            portolan_service_connections_total{namespace="shop",service="web",port="http",protocol="TCP",kind="ClusterIP",by="socket"} 5
            portolan_service_packets_total{namespace="shop",service="web",port="http",protocol="TCP",kind="ClusterIP",by="nftables"} 30
            portolan_service_packets_total{namespace="shop",service="web",port="http",protocol="TCP",kind="ClusterIP",by="socket"} 100
            portolan_service_bytes_total{namespace="shop",service="web",port="http",protocol="TCP",kind="ClusterIP",by="nftables"} 3000
            portolan_service_bytes_total{namespace="shop",service="web",port="http",protocol="TCP",kind="ClusterIP",by="socket"} 10200
            portolan_service_datagrams_total{namespace="shop",service="web",port="http",protocol="TCP",kind="ClusterIP"} 0"#]].assert_eq(&samples.join("\n"));
    }
}
