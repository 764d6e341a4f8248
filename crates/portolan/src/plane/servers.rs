//! The plane's state -> `/healthz` and `/livez` for probes, `/metrics` and `/proxyMode` for scrapers.
//!
//! Invariant: an answer does not wait for the plane, so that one that hangs is told of. Only what the Services' traffic
//! came to is the plane's to read; who asks for metrics waits a moment for it, and goes without if it does not come.
//!
//! Source: Kubernetes `cmd/kube-proxy/app/server.go` and `pkg/proxy/healthcheck`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use portolan_exposition::{MEDIA_TYPE, Page, write_process};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::health::{Health, Verdict};
use super::metrics::{Metrics, Probe};
use super::serve::{Answer, Answered, not_found, text};
use super::traffic::Traffic;

const PLAIN: &str = "text/plain; charset=utf-8";
/// How long a scrape waits for the plane, which may be in the middle of writing.
const TRAFFIC_TIMEOUT: Duration = Duration::from_secs(5);

/// What the plane's loop writes and its servers read.
#[derive(Debug)]
pub(crate) struct Shared {
    health: Mutex<Health>,
    metrics: Mutex<Metrics>,
}

impl Shared {
    pub(crate) fn new(health_timeout: Duration) -> Arc<Self> {
        let metrics = Metrics::new(Timestamp::now());
        Arc::new(Self { health: Mutex::new(Health::new(health_timeout)), metrics: Mutex::new(metrics) })
    }

    pub(crate) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn metrics(&self) -> MutexGuard<'_, Metrics> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn probe(&self, probe: Probe) -> Answered {
        let (now, clock) = (Instant::now(), Timestamp::now());
        let Verdict { healthy, body } = match probe {
            Probe::Healthz => self.health().healthz(now, clock),
            Probe::Livez => self.health().livez(now, clock),
        };
        let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        self.metrics().probed(probe, status.as_u16());
        text(status, "application/json", body)
    }
}

pub(crate) struct HealthServer(pub(crate) Arc<Shared>);

impl Answer for HealthServer {
    async fn answer(&self, path: &str) -> Answered {
        match path {
            "/healthz" => self.0.probe(Probe::Healthz),
            "/livez" => self.0.probe(Probe::Livez),
            _ => not_found(),
        }
    }
}

/// Asks the plane to read what went through each Service.
pub(crate) type TrafficRequest = oneshot::Sender<Traffic>;

pub(crate) struct MetricsServer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) traffic: mpsc::Sender<TrafficRequest>,
}

impl MetricsServer {
    async fn traffic(&self) -> Option<Traffic> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.traffic.send(reply).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(TRAFFIC_TIMEOUT, asked).await.ok().flatten()
    }
}

impl Answer for MetricsServer {
    async fn answer(&self, path: &str) -> Answered {
        match path {
            "/healthz" => text(StatusCode::OK, PLAIN, "ok"),
            "/proxyMode" => text(StatusCode::OK, PLAIN, "nftables"),
            "/metrics" => {
                // The plane brings its part of the rest up to date, too.
                let traffic = self.traffic().await;
                let mut page = Page::default();
                self.shared.metrics().write(&mut page);
                write_process(&mut page);
                if let Some(traffic) = traffic {
                    traffic.write(&mut page);
                }
                text(StatusCode::OK, MEDIA_TYPE, page.into_text())
            }
            _ => not_found(),
        }
    }
}
