//! The NodePorts of Services -> those that are new, and who holds their ports already.
//!
//! Deliberately not here: a socket that is bound later. The socket programs refuse it, where there are any.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portolan_dataplane::{Error, Holder, holders};
use portolan_model::{Delta, Protocol, ServiceId, Snapshot};

type Port = (Protocol, u16);

#[derive(Debug, Default)]
pub(crate) struct Ports {
    known: BTreeMap<ServiceId, BTreeSet<Port>>,
}

impl Ports {
    /// Follows the Services that the delta names, and looks who holds the ports that are new with them.
    pub(crate) async fn apply(
        &mut self,
        snapshot: &Snapshot,
        delta: &Delta,
        addresses: &[IpAddr],
    ) -> Result<Vec<(ServiceId, Holder)>, Error> {
        let new = self.take_in(snapshot, delta);
        if new.is_empty() || addresses.is_empty() {
            return Ok(Vec::new());
        }
        let found = holders(&new.keys().copied().collect(), addresses).await?;
        let of = |holder: Holder| Some((new.get(&(holder.protocol, holder.at.port()))?.clone(), holder));
        Ok(found.into_iter().filter_map(of).collect())
    }

    /// The ports that nobody had before, with whose they are.
    fn take_in(&mut self, snapshot: &Snapshot, delta: &Delta) -> BTreeMap<Port, ServiceId> {
        let mut new = BTreeMap::new();
        for id in &delta.services {
            let service = snapshot.service(id).filter(|service| !service.foreign_proxy);
            let ports = service.into_iter().flat_map(|service| &service.ports);
            let ports: BTreeSet<Port> = ports.filter_map(|port| Some((port.protocol, port.node_port?.0))).collect();
            let before = match ports.is_empty() {
                true => self.known.remove(id),
                false => self.known.insert(id.clone(), ports.clone()),
            };
            let before = before.unwrap_or_default();
            new.extend(ports.difference(&before).map(|port| (*port, id.clone())));
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use portolan_model::{Event, translate};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_port_is_looked_at_when_it_comes_and_not_again() {
        let mut snapshot = Snapshot::default();
        let mut ports = Ports::default();
        let mut apply = |node_ports: &[u16]| {
            let entries: Vec<_> = node_ports.iter().map(|port| json!({"port": port, "nodePort": port})).collect();
            let object = json!({"metadata": {"namespace": "shop", "name": "web"},
                "spec": {"clusterIP": "10.96.0.1", "type": "NodePort", "ports": entries}});
            let (service, _) = translate::service(&serde_json::from_value(object).unwrap()).unwrap();
            let delta = snapshot.apply(Event::Service(service));
            ports.take_in(&snapshot, &delta).into_keys().map(|(_, port)| port).collect::<Vec<_>>()
        };
        assert_eq!(apply(&[30_001, 30_002]), [30_001, 30_002]);
        assert_eq!(apply(&[30_001, 30_003]), [30_003]);
        assert_eq!(apply(&[]), [0u16; 0]);
        assert_eq!(apply(&[30_001]), [30_001]);
    }
}
