//! Refused binds, as the programs report them -> one log line each.

use std::path::Path;

use aya::maps::{Map, MapData, RingBuf};
use tokio::io::unix::AsyncFd;

use super::{Error, wire};

const MAP: &str = "refused_binds";

/// Reads reports until dropped.
#[derive(Debug)]
pub(super) struct BindLog {
    _task: tokio::task::JoinSet<()>,
}

impl BindLog {
    pub(super) fn start(directory: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Read { map: MAP, source: Box::new(source) };
        let map = MapData::from_pin(directory.join(MAP)).and_then(Map::from_map_data).map_err(failed)?;
        let reports = RingBuf::try_from(map).map_err(failed)?;
        // SAFETY: the ring buffer owns its descriptor, which stays open for as long as it is registered.
        #[allow(unsafe_code, reason = "registering a descriptor is unsafe in itself")]
        let reports = unsafe { AsyncFd::register(reports) }
            .map_err(|source| Error::File { path: directory.join(MAP), source: source.into() })?;
        let mut task = tokio::task::JoinSet::new();
        task.spawn(read(reports));
        Ok(Self { _task: task })
    }
}

async fn read(mut reports: AsyncFd<RingBuf<MapData>>) {
    while let Ok(mut ready) = reports.readable_mut().await {
        while let Some(record) = ready.get_inner_mut().next() {
            let refused = <[u8; 24]>::try_from(&*record).ok().and_then(|record| wire::read_refused_bind(&record));
            if let Some(wire::RefusedBind { process, protocol, port, command }) = refused {
                tracing::warn!(
                    "{command} (process {process}) may not bind {protocol} port {port} on this node: it is the \
                     NodePort of a Service, and nobody would reach what listens there; choose another port"
                );
            }
        }
        ready.clear_ready();
    }
}
